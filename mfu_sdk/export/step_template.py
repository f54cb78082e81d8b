"""Step spans straight from their records: one is encoded as any span is, and is the template of those that follow.

Steps of one window that ask for the same work differ in a few numbers, all of fixed length but their index. So the
bytes of each are those of the first with other numbers in them, which takes half as long as to make a span and to
encode it, and are the same to the byte. A step with anything else in it (an error, a server's load, a number that is
not finite) goes the long way.
"""

from collections.abc import Callable
from math import isfinite
from struct import Struct

from mfu_sdk import semconv
from mfu_sdk.export.encode import BEFORE_DOUBLE, END, UNSET, Layered, Span, encode, head, span_id, whole
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.step_fields import OWN_DOUBLES, alike, doubles_of, plain
from mfu_sdk.export.windows import Window
from mfu_sdk.records import StepRecord


class StepEncoder:
    """Encodes step spans; `allow` leaves out of a span what may not go."""

    def __init__(self, spans: Spans, allow: Callable[[Span], Span]) -> None:
        self._spans = spans
        self._allow = allow
        self._template: _Template | None = None

    def encode(self, step: StepRecord, window: Window, kept: Kept) -> bytes:
        """The bytes of the span of one step, a child of its window's (`Spans.step`)."""
        template = self._template
        if plain(step):
            shared, numbers = alike(step, kept), doubles_of(step)
            if template is not None and template.window is window and template.alike == shared:
                found = template.filled(step, numbers, self._spans.step_id(step))
                if found is not None:
                    return found
            span = self._allow(self._spans.step(step, window, kept))
            self._template = _Template.of(span, window, shared, numbers)
            return encode(span)
        return encode(self._allow(self._spans.step(step, window, kept)))


class _Template:
    """The bytes of a step's span, with room for another's numbers, which must be of the same types as its own were."""

    __slots__ = ("_args", "_chosen", "_kinds", "_pack", "alike", "window")

    def __init__(
        self, span: Span, window: Window, shared: tuple[object, ...], numbers: tuple[object, ...], told: list[str]
    ) -> None:
        assert type(span.attributes) is Layered
        self.window = window
        self.alike = shared
        self._kinds = tuple(map(type, numbers))
        self._chosen = [OWN_DOUBLES.index(name) for name in told]
        began, own_id, named = head(span)
        doubles = [BEFORE_DOUBLE[name] for name in told]
        doubles[0] = span.attributes.common.encoded + doubles[0]
        self._pack = Struct(
            f"<{len(began)}s{len(own_id)}s{len(named)}sQ{len(END)}sQ" + "".join(f"{len(each)}sd" for each in doubles)
        ).pack
        self._args: list[bytes | float] = [began, own_id, named, 0, END, 0]
        for each in doubles:
            self._args += (each, 0.0)

    @classmethod
    def of(
        cls, span: Span, window: Window, shared: tuple[object, ...], numbers: tuple[object, ...]
    ) -> "_Template | None":
        """The template of a step's span, None where it tells anything else than doubles and its index."""
        attributes = span.attributes
        told = [name for name, number in zip(OWN_DOUBLES, numbers, strict=True) if number is not None]
        if type(attributes) is not Layered or not told or list(attributes.own) != [*told, semconv.STEP_INDEX]:
            return None
        return cls(span, window, shared, numbers, told)

    def filled(self, step: StepRecord, numbers: tuple[float | None, ...], own_id: int) -> bytes | None:
        """The bytes of another step, None where it knows more or less, or where a number of its is not finite."""
        if tuple(map(type, numbers)) != self._kinds:
            return None
        known = [numbers[each] for each in self._chosen]
        if not isfinite(sum(known)):  # type: ignore[arg-type]  # of the same kinds, so none of these is None
            return None
        args = self._args
        args[1] = span_id(own_id)
        args[3] = start_unix_ns = step.start_unix_ns
        args[5] = start_unix_ns + round(step.duration_s * 1e9)
        args[7::2] = known  # type: ignore[assignment]  # as above
        return self._pack(*args) + whole(semconv.STEP_INDEX, step.index) + UNSET
