"""A run's configuration as its steps show it, and what of it changed near an onset, in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from mfu_sdk.drift.fingerprint import Fact, Fingerprint
from mfu_sdk.run import configuration
from mfu_sdk.run.configuration import Shown
from mfu_sdk.run.drift_files import Left

if TYPE_CHECKING:
    from mfu_sdk.drift.stream import Excursion
    from mfu_sdk.records import Count, DriftEvent
    from mfu_sdk.run.sides import Sides
    from mfu_sdk.run.work import Work

BATCH_RATIO: Final = 1.05
"""By which factor the mean batch, or the tokens of a step, must change to be another configuration."""
_NOTHING: Final = Shown({}, frozenset(), frozenset())


class Snapshot(NamedTuple):
    """The configuration as it was in a step: torch's switches, and what the step showed where it was counted."""

    step: int
    phase: str
    switches: Mapping[str, Fact]
    shown: Shown


class Changes:
    """Of one run, which was `opened` with these facts; `sides` know what else its steps show."""

    def __init__(self, opened: Mapping[str, Fact], device_kind: str, sides: Sides) -> None:
        self._opened = opened
        self._device_kind = device_kind
        self._sides = sides
        self._snapshots: deque[Snapshot] = deque(maxlen=64)
        # By phase, what the last counted step showed: an evaluation runs other operators than training.
        self._shown: dict[str, Shown] = {}
        self.before: Left | None = None
        """What the attempt before this one has left."""

    @property
    def seen(self) -> bool:
        """Whether any step was."""
        return bool(self._snapshots)

    def counted(self, work: Work, count: Count) -> None:
        """A step was counted, and shows what it ran."""
        self._shown[work.phase] = configuration.counted(count, work.autocast)
        self.see(work)

    def see(self, work: Work) -> None:
        """Take down how it is in this step."""
        shown = self._shown.get(work.phase, _NOTHING)
        self._snapshots.append(Snapshot(work.index, work.phase, configuration.now(self._device_kind), shown))

    def complete(self, work: Work) -> Fingerprint:
        """What the run is known by to others of its configuration: with the shape of the step that was just seen."""
        shape: dict[str, Fact] = {"batch": work.batch_running, "sequence": None}
        if work.tokens and work.batch_running:
            shape["sequence"] = work.tokens / work.batch_running
        seen = self._snapshots[-1]
        return self._fingerprint(seen.switches, {**seen.shown.facts, **shape})

    def left(self, clock_mhz: float | None, events: tuple[DriftEvent, ...]) -> Left | None:
        """What another attempt of this run is to know, its clock and events too; None before any step was seen."""
        if not self._snapshots:
            return None
        phase = self._snapshots[0].phase
        shown = self._shown.get(phase, _NOTHING)
        fingerprint = self._fingerprint(self._snapshots[-1].switches, shown.facts)
        return Left(phase, fingerprint, shown.main, clock_mhz, events)

    @property
    def clock_before_mhz(self) -> float | None:
        """The clock of the attempt before this one, on a device of the same kind."""
        if self.before is None:
            return None
        devices = [
            [fact for fact in each.facts if fact[0] == "device.name"]
            for each in (self.before.configuration, Fingerprint.of(self._opened))
        ]
        return self.before.clock_mhz if devices[0] == devices[1] else None

    def diff(self, excursion: Excursion) -> tuple[str, ...]:
        """What changed of the configuration since the last time that it was seen well before the onset."""
        changed: list[str] = []
        # What was found may have begun in the middle of a block, and its onset is known to some blocks.
        before, after = excursion.before, excursion.now
        if excursion.phase in ("train", "eval"):
            changed += _other("batch", before.batch, after.batch)
            if before.tokens and after.tokens:
                changed += _other("tokens a step", before.tokens / before.steps, after.tokens / after.steps)
        now = self._shown.get(excursion.phase, _NOTHING)
        if (was := self._was(excursion, now)) is not None:
            changed += was.diff(self._fingerprint(configuration.now(self._device_kind), now.facts))
        # A processor's kernels are its operators, which a count may have told already.
        told = self._device_kind == "cpu" and any(each.startswith("operators:") for each in changed)
        if not told:
            changed += self._sides.kernels(excursion)
        return tuple(changed)

    def _was(self, excursion: Excursion, now: Shown) -> Fingerprint | None:
        """The configuration before the onset; what no step of its phase showed then is as it is `now`."""
        earlier = [seen for seen in self._snapshots if seen.step < self._sides.before(excursion)]
        if not earlier and self.before is not None:
            # It was there when this process began: what the attempt before it was.
            left, shown = self.before, Fingerprint.of(now.facts)
            if left.phase != excursion.phase:
                return left.configuration.replaced(shown)
            operators = _operators(left.configuration.words("operators"), left.main, now)
            return shown.replaced(left.configuration).replaced(Fingerprint.of(operators))
        earlier = earlier or list(self._snapshots)[:1]
        if not earlier:
            return None
        same = [seen.shown for seen in earlier if seen.phase == excursion.phase and seen.shown is not _NOTHING]
        was = same[-1] if same else now
        facts = {**was.facts, **_operators(was.operators, was.main, now)}
        return self._fingerprint(earlier[-1].switches, facts)

    def _fingerprint(self, switches: Mapping[str, Fact], shown: Mapping[str, Fact]) -> Fingerprint:
        return Fingerprint.of({**self._opened, **switches, **shown})


def _operators(before: frozenset[str], main: frozenset[str], now: Shown) -> dict[str, Fact]:
    """The operators of before as those that run `now` but for what matters: what mattered and is gone, what has come.

    A step that logs, or averages weights, runs operators that others do not: that is nobody's choice.
    """
    if not now.operators:
        return {}
    return {"operators": (now.operators | main) - (now.main - before)}


def _other(name: str, before: float | None, after: float | None) -> list[str]:
    if not before or not after or max(before / after, after / before) < BATCH_RATIO:
        return []
    return [f"{name}: {before:.4g} → {after:.4g}"]
