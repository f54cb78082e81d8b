"""Steps into windows: 30 s of one rank, one phase and one denominator, with sums that never mix what cannot be added.

Pure: the clock is an argument. A sum that some step of its set does not know is None, never the sum of the rest: a
ratio over it would be wrong with nothing to show for it. Only requests are not asked of every step: one that has none
to tell of, as in training, adds none.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, mul
from typing import Any, Final

from mfu_sdk.export.identity import WINDOW_NS, window_slot
from mfu_sdk.records import Convention, Phase, StepRecord

MAX_STEPS = 1024
"""A window closes early at this many steps, which bounds a span at two arrays of 1,024 integers."""

GRACE_NS = 1_000_000_000
"""How long past its end a window waits for a step that started in it. A later one opens another window of the slot."""


@dataclass(frozen=True, slots=True)
class Denominator:
    """What the steps of one window have in common; `peak_flops_per_s` is in FLOP/s and may be unknown."""

    phase: Phase
    convention: Convention
    peak_dtype: str | None
    peak_source: str | None
    peak_flops_per_s: float | None

    @classmethod
    def of(cls, step: StepRecord) -> "Denominator":
        """That of one step."""
        return cls(step.phase, step.convention, step.peak_dtype, step.peak_source, step.peak_flops_per_s)

    def is_of(self, step: StepRecord) -> bool:
        """Whether it is that of `step`, without making another one: most steps have their predecessor's."""
        return (
            self.peak_flops_per_s == step.peak_flops_per_s
            and self.phase == step.phase
            and self.peak_dtype == step.peak_dtype
            and self.convention == step.convention
            and self.peak_source == step.peak_source
        )


@dataclass(frozen=True, slots=True)
class Window:
    """The steps of one slot that share a denominator, in the order of their arrival; never empty."""

    slot: int
    denominator: Denominator
    steps: list[StepRecord] = field(default_factory=list)
    # Of a window that a flight recorder no longer has the first step of.
    opened_by: StepRecord | None = None

    @property
    def first(self) -> StepRecord:
        """The step that opened it, by whose index and phase it is known."""
        return self.opened_by or self.steps[0]

    @property
    def start_unix_ns(self) -> int:
        """When its first step started."""
        return min(step.start_unix_ns for step in self.steps)

    @property
    def end_unix_ns(self) -> int:
        """When its last step ended."""
        return max(step.start_unix_ns + round(step.duration_s * 1e9) for step in self.steps)

    @property
    def durations_us(self) -> list[int]:
        """Each step's duration in µs, at least 1; negative where the step was not timed."""
        return [(round(step.duration_s * 1e6) or 1) * (1 if step.timed else -1) for step in self.steps]

    @property
    def utilizations_bp(self) -> list[int]:
        """Each step's MFU in basis points; -1 where it is unknown or the step was not timed."""
        return [-1 if step.mfu is None or not step.timed else round(step.mfu * 1e4) for step in self.steps]


@dataclass(frozen=True, slots=True)
class Sums:
    """What steps add up to: volumes over `finished` steps, times over `timed` ones, FLOPs over `counted` ones.

    `finished` steps did not fail; tokens, samples and requests are what they did, however long it took, so a step
    that was counted while it ran is among them. `timed` steps are those of them whose time is representative, and
    `counted` ones are timed and know their model FLOPs and their peak (`StepRecord.counts`). So tokens over `time_s`
    is no rate: some of the tokens took other time. `requests_s` is in seconds, of requests that may overlap; the
    sums of requests are None where no step tells of any. The ratios are
    Σ numerator / Σ denominator; `mfu_by_dtype` and `achievable_mfu` are weighted by time, which is that ratio as
    long as the peaks stand still, and `batch_running` is a mean over time. So are what a server tells of its load and
    `requests_running`, over the steps that have them; `expected_feasible_mfu` is weighted by available FLOPs. The ends
    of the expected MFU's interval are over the same steps as the MFU itself, all of which must know theirs.
    `coverage` is the least of any step.
    """

    steps: int
    finished: int
    timed: int
    counted: int
    time_s: float | None
    data_wait_s: float | None
    device_s: float | None
    tokens: int | None
    samples: int | None
    requests: int | None
    requests_failed: int | None
    requests_s: float | None
    model_flops: int | None
    hardware_flops: int | None
    available_flops: float | None
    expected_flops: float | None
    expected_available_flops: float | None
    attention_flops_exact: int | None
    attention_flops_full: int | None
    mfu: float | None
    hfu: float | None
    expected_mfu: float | None
    achievable_mfu: float | None
    mfu_by_dtype: float | None
    batch_running: float | None
    arithmetic_intensity: float | None
    coverage: float | None
    requests_running: float | None = None
    batch_feasible: float | None = None
    queue_waiting: float | None = None
    kv_cache_free_ratio: float | None = None
    latency_target_s: float | None = None
    expected_feasible_mfu: float | None = None
    expected_low_mfu: float | None = None
    expected_high_mfu: float | None = None

    @property
    def unknown(self) -> int:
        """Timed steps that are in no sum of FLOPs."""
        return self.timed - self.counted


def _nothing() -> None:
    pass


def sums(steps: Sequence[StepRecord], breathe: Callable[[], object] = _nothing) -> Sums:
    """What `steps` add up to; `breathe` is called between two pieces of the work.

    By columns: a loop of Python over 1,024 steps would keep the interpreter's lock from the user's for milliseconds.
    """
    finished_rows: list[tuple[Any, ...]] = []
    timed_rows: list[tuple[Any, ...]] = []
    counted_rows: list[tuple[Any, ...]] = []
    for begin in range(0, len(steps), _TOGETHER):
        finished = [step for step in steps[begin : begin + _TOGETHER] if step.error_type is None]
        timed = [step for step in finished if step.timed]
        finished_rows.extend(map(_OF_FINISHED, finished))
        timed_rows.extend(map(_OF_TIMED, timed))
        counted_rows.extend(map(_OF_COUNTED, [step for step in timed if step.counts]))
        breathe()
    done, took, held = (
        _columns(rows, names)
        for rows, names in (
            (finished_rows, _FINISHED_FIELDS), (timed_rows, _TIMED_FIELDS), (counted_rows, _COUNTED_FIELDS),
        )
    )  # fmt: skip
    breathe()
    time_s, counted_s = took["duration_s"], held["duration_s"]
    model = _whole(held["model_flops"])
    hardware = _whole(held["hardware_flops"])
    available_each = list(map(mul, held["peak_flops_per_s"], counted_s))
    available = _real(available_each)
    expecting = [
        row
        for row in zip(
            held["expected_mfu"], held["expected_low_mfu"], held["expected_high_mfu"], available_each, strict=True
        )
        if row[0] is not None
    ]
    could = _real([flops for *_, flops in expecting])
    expected = _real([share * flops for share, *_, flops in expecting])
    return Sums(
        steps=len(steps),
        finished=len(finished_rows),
        timed=len(timed_rows),
        counted=len(counted_rows),
        time_s=_real(time_s),
        data_wait_s=_real(took["data_wait_s"]),
        device_s=_real(took["device_s"]),
        tokens=_whole(done["tokens"]),
        samples=_whole(done["samples"]),
        requests=_whole(_known(done["requests"])),
        requests_failed=_whole(_known(done["requests_failed"])),
        requests_s=_real(_known(done["requests_s"])),
        model_flops=model,
        hardware_flops=hardware,
        available_flops=available,
        expected_flops=expected,
        expected_available_flops=could,
        attention_flops_exact=_whole(held["attention_flops_exact"]),
        attention_flops_full=_whole(held["attention_flops_full"]),
        mfu=ratio(model, available),
        hfu=ratio(hardware, available),
        expected_mfu=ratio(expected, could),
        achievable_mfu=_mean(held["achievable_mfu"], counted_s),
        mfu_by_dtype=_mean(held["mfu_by_dtype"], counted_s),
        batch_running=_mean(took["batch_running"], time_s),
        arithmetic_intensity=ratio(hardware, _bytes_moved(held["hardware_flops"], held["arithmetic_intensity"])),
        coverage=min(_known(list(map(_COVERAGE, steps))), default=None),
        requests_running=_mean_of_known(took["requests_running"], time_s),
        batch_feasible=_mean_of_known(took["batch_feasible"], time_s),
        queue_waiting=_mean_of_known(took["queue_waiting"], time_s),
        kv_cache_free_ratio=_mean_of_known(took["kv_cache_free_ratio"], time_s),
        latency_target_s=_mean_of_known(took["latency_target_s"], time_s),
        expected_feasible_mfu=_mean_of_known(held["expected_feasible_mfu"], available_each),
        expected_low_mfu=ratio(_real(low * flops for _, low, _, flops in expecting), could),
        expected_high_mfu=ratio(_real(high * flops for _, _, high, flops in expecting), could),
    )


_TOGETHER: Final = 256
"""Steps whose numbers are read in one piece: a fifth of a millisecond."""

_FINISHED_FIELDS: Final = ("tokens", "samples", "requests", "requests_failed", "requests_s")
_TIMED_FIELDS: Final = (
    "duration_s", "data_wait_s", "device_s", "batch_running", "requests_running", "batch_feasible", "queue_waiting",
    "kv_cache_free_ratio", "latency_target_s",
)  # fmt: skip
_COUNTED_FIELDS: Final = (
    "duration_s", "model_flops", "hardware_flops", "peak_flops_per_s", "expected_mfu", "attention_flops_exact",
    "attention_flops_full", "achievable_mfu", "mfu_by_dtype", "arithmetic_intensity", "expected_feasible_mfu",
    "expected_low_mfu", "expected_high_mfu",
)  # fmt: skip
_OF_FINISHED: Final = attrgetter(*_FINISHED_FIELDS)
_OF_TIMED: Final = attrgetter(*_TIMED_FIELDS)
_OF_COUNTED: Final = attrgetter(*_COUNTED_FIELDS)
_COVERAGE: Final = attrgetter("coverage")


def _columns(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> dict[str, "_Column"]:
    """The numbers of each field, by its name."""
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())


class Windows:
    """The open windows of one process. Not thread-safe: the export thread owns it."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, Denominator], Window] = {}
        # The last step's window: the next one's too, unless the slot or the denominator is another.
        self._last: Window | None = None

    def add(self, step: StepRecord) -> tuple[Window, list[Window]]:
        """Put `step` into its window: (that window, those that this closed, perhaps the same one)."""
        slot = window_slot(step.start_unix_ns)
        window, closed = self._last, list[Window]()
        if window is None or window.slot != slot or not window.denominator.is_of(step):
            window, closed = self._window(slot, Denominator.of(step))
        window.steps.append(step)
        if len(window.steps) == MAX_STEPS:
            closed = [*closed, self._open.pop((slot, window.denominator))]
            self._last = None
        return window, closed

    def _window(self, slot: int, denominator: Denominator) -> tuple[Window, list[Window]]:
        """The open window of these two, made where there is none, and those of earlier slots that this closes."""
        closed = [self._open.pop(key) for key in [key for key in self._open if key[1] == denominator and key[0] < slot]]
        window = self._open.get((slot, denominator))
        if window is None:
            window = self._open[slot, denominator] = Window(slot, denominator)
        self._last = window
        return window, closed

    @property
    def open(self) -> bool:
        """Whether there is any."""
        return bool(self._open)

    def expire(self, now_unix_ns: int) -> list[Window]:
        """Close the windows whose 30 s and grace are over."""
        over = [key for key in self._open if now_unix_ns >= (key[0] + 1) * WINDOW_NS + GRACE_NS]
        if over:
            self._last = None
        return [self._open.pop(key) for key in over]

    def close(self) -> list[Window]:
        """Close all of them."""
        closed = list(self._open.values())
        self._open.clear()
        self._last = None
        return closed


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """`numerator` / `denominator`, None where either is unknown or there is nothing to divide by."""
    return numerator / denominator if numerator is not None and denominator else None


_Column = Sequence[Any]
"""A number of each step, None where the step does not know it."""


def _known(column: _Column) -> _Column:
    return [value for value in column if value is not None]


def _real(values: Iterable[Any]) -> float | None:
    try:
        known = values if isinstance(values, Sequence) else list(values)
        # fsum: a window of 1,024 small terms must equal the sum of its steps to the last bit that a double has.
        return math.fsum(known) if known else None
    except TypeError:
        # None is no number, nor is a product of it.
        return None


def _whole(column: _Column) -> int | None:
    try:
        # FLOP counts are exact integers beyond 2^53; they stay so until they go out.
        return sum(column) if column else None
    except TypeError:
        return None


def _mean(column: _Column, durations_s: _Column) -> float | None:
    return ratio(_real(map(mul, column, durations_s)), _real(durations_s))


def _mean_of_known(column: _Column, weights: _Column) -> float | None:
    # A load is a sample, taken once a second: a step without one says nothing against those that have it.
    if column.count(None) == len(column):
        return None
    known = [pair for pair in zip(column, weights, strict=True) if pair[0] is not None]
    return _mean([value for value, _ in known], [weight for _, weight in known])


def _bytes_moved(hardware_flops: _Column, intensity: _Column) -> float | None:
    # Intensity is hardware FLOPs per byte; a step of zero FLOPs does not tell its bytes.
    return _real(
        flops / each if flops and each else None for flops, each in zip(hardware_flops, intensity, strict=True)
    )
