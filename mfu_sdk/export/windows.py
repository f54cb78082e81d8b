"""Steps into windows: 30 s of one rank, one phase and one denominator, with sums that never mix what cannot be added.

Pure: the clock is an argument. A sum that some step of its set does not know is None, never the sum of the rest: a
ratio over it would be wrong with nothing to show for it. Only requests are not asked of every step: one that has none
to tell of, as in training, adds none.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

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
        return [max(1, round(step.duration_s * 1e6)) * (1 if step.timed else -1) for step in self.steps]

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
    `requests_running`, over the steps that have them. `coverage` is the least of any step.
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

    @property
    def unknown(self) -> int:
        """Timed steps that are in no sum of FLOPs."""
        return self.timed - self.counted


def sums(steps: Sequence[StepRecord]) -> Sums:
    """What `steps` add up to."""
    finished = [step for step in steps if step.error_type is None]
    timed = [step for step in finished if step.timed]
    counted = [step for step in timed if step.counts]
    expecting = [step for step in counted if step.expected_mfu is not None]
    model = _whole(counted, lambda step: step.model_flops)
    hardware = _whole(counted, lambda step: step.hardware_flops)
    available = _real(counted, lambda step: step.available_flops)
    expected = _real(expecting, lambda step: _product(step.expected_mfu, step.available_flops))
    expected_available = _real(expecting, lambda step: step.available_flops)
    known_coverage = [step.coverage for step in steps if step.coverage is not None]
    return Sums(
        steps=len(steps),
        finished=len(finished),
        timed=len(timed),
        counted=len(counted),
        time_s=_real(timed, lambda step: step.duration_s),
        data_wait_s=_real(timed, lambda step: step.data_wait_s),
        device_s=_real(timed, lambda step: step.device_s),
        tokens=_whole(finished, lambda step: step.tokens),
        samples=_whole(finished, lambda step: step.samples),
        requests=_whole([step for step in finished if step.requests is not None], lambda step: step.requests),
        requests_failed=_whole(
            [step for step in finished if step.requests_failed is not None], lambda step: step.requests_failed
        ),
        requests_s=_real([step for step in finished if step.requests_s is not None], lambda step: step.requests_s),
        model_flops=model,
        hardware_flops=hardware,
        available_flops=available,
        expected_flops=expected,
        expected_available_flops=expected_available,
        attention_flops_exact=_whole(counted, lambda step: step.attention_flops_exact),
        attention_flops_full=_whole(counted, lambda step: step.attention_flops_full),
        mfu=ratio(model, available),
        hfu=ratio(hardware, available),
        expected_mfu=ratio(expected, expected_available),
        achievable_mfu=_mean(counted, lambda step: step.achievable_mfu),
        mfu_by_dtype=_mean(counted, lambda step: step.mfu_by_dtype),
        batch_running=_mean(timed, lambda step: step.batch_running),
        arithmetic_intensity=ratio(hardware, _real(counted, _bytes_moved)),
        coverage=min(known_coverage, default=None),
        requests_running=_mean_of_known(timed, lambda step: step.requests_running),
        batch_feasible=_mean_of_known(timed, lambda step: step.batch_feasible),
        queue_waiting=_mean_of_known(timed, lambda step: step.queue_waiting),
        kv_cache_free_ratio=_mean_of_known(timed, lambda step: step.kv_cache_free_ratio),
        latency_target_s=_mean_of_known(timed, lambda step: step.latency_target_s),
    )


class Windows:
    """The open windows of one process. Not thread-safe: the export thread owns it."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, Denominator], Window] = {}

    def add(self, step: StepRecord) -> tuple[Window, list[Window]]:
        """Put `step` into its window: (that window, those that this closed, perhaps the same one)."""
        slot = window_slot(step.start_unix_ns)
        denominator = Denominator(step.phase, step.convention, step.peak_dtype, step.peak_source, step.peak_flops_per_s)
        closed = [self._open.pop(key) for key in [key for key in self._open if key[1] == denominator and key[0] < slot]]
        window = self._open.get((slot, denominator))
        if window is None:
            window = self._open[slot, denominator] = Window(slot, denominator)
        window.steps.append(step)
        if len(window.steps) == MAX_STEPS:
            closed.append(self._open.pop((slot, denominator)))
        return window, closed

    def expire(self, now_unix_ns: int) -> list[Window]:
        """Close the windows whose 30 s and grace are over."""
        over = [key for key in self._open if now_unix_ns >= (key[0] + 1) * WINDOW_NS + GRACE_NS]
        return [self._open.pop(key) for key in over]

    def close(self) -> list[Window]:
        """Close all of them."""
        closed = list(self._open.values())
        self._open.clear()
        return closed


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """`numerator` / `denominator`, None where either is unknown or there is nothing to divide by."""
    return numerator / denominator if numerator is not None and denominator else None


def _known(values: Iterable[float | None]) -> list[float] | None:
    known = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return known or None


def _real(steps: Sequence[StepRecord], of: Callable[[StepRecord], float | None]) -> float | None:
    known = _known(map(of, steps))
    # fsum: a window of 1,024 small terms must equal the sum of its steps to the last bit that a double has.
    return None if known is None else math.fsum(known)


def _whole(steps: Sequence[StepRecord], of: Callable[[StepRecord], int | None]) -> int | None:
    known = _known(map(of, steps))
    # FLOP counts are exact integers beyond 2^53; they stay so until they go out.
    return None if known is None else sum(int(value) for value in known)


def _mean(steps: Sequence[StepRecord], of: Callable[[StepRecord], float | None]) -> float | None:
    return ratio(
        _real(steps, lambda step: _product(of(step), step.duration_s)), _real(steps, lambda step: step.duration_s)
    )


def _mean_of_known(steps: Sequence[StepRecord], of: Callable[[StepRecord], float | None]) -> float | None:
    # A load is a sample, taken once a second: a step without one says nothing against those that have it.
    return _mean([step for step in steps if of(step) is not None], of)


def _product(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left * right


def _bytes_moved(step: StepRecord) -> float | None:
    # Intensity is hardware FLOPs per byte; a step of zero FLOPs does not tell its bytes.
    return ratio(step.hardware_flops, step.arithmetic_intensity) if step.hardware_flops else None
