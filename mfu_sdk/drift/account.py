"""What steps asked for and what they took, in sums: the material of levels, of causes, and of an event's figures."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """What each step of one kind asks for. Only steps whose FLOPs are known have one.

    `expected_s` is the roofline's time for it. `peak_flops_per_s` is the denominator of MFU, which follows the dtype;
    `reference_flops_per_s` the one that does not (dense bf16), so that nothing hides behind a smaller denominator.
    """

    model_flops: int
    hardware_flops: int
    expected_s: float | None
    peak_flops_per_s: float | None
    reference_flops_per_s: float | None


Took = tuple[int, int, Asked, float, int | None, float | None, float | None]
"""One step: its index, when it began in Unix nanoseconds, what it asked for, how long it took in seconds, its tokens,
its wait for data in seconds, and the mean leading dimension of its calls. A plain tuple: every step makes one."""


@dataclass(frozen=True, slots=True)
class Account:
    """Sums over `steps` steps: seconds of time and of its disjoint parts, FLOPs, tokens. None: not known of all.

    `expected_s` is the roofline's time, `available_flops` Σ peak × time, `reference_flops` the same with the reference
    peak. `batch_sum` adds up leading dimensions. `clock` is the device's clock over a reference one.
    """

    steps: int
    time_s: float
    model_flops: int
    hardware_flops: int
    expected_s: float | None = None
    available_flops: float | None = None
    reference_flops: float | None = None
    tokens: int | None = None
    data_s: float | None = None
    comm_s: float | None = None
    skew_s: float | None = None
    host_s: float | None = None
    batch_sum: float | None = None
    clock: float | None = None

    @property
    def mfu(self) -> float | None:
        """Σ model FLOPs / Σ available FLOPs."""
        return self.model_flops / self.available_flops if self.available_flops else None

    @property
    def reference_mfu(self) -> float | None:
        """Σ model FLOPs over the reference peak's."""
        return self.model_flops / self.reference_flops if self.reference_flops else None

    @property
    def batch(self) -> float | None:
        """The mean leading dimension of the model's calls."""
        return self.batch_sum / self.steps if self.batch_sum is not None and self.steps else None

    def share(self, seconds: float | None) -> float | None:
        """`seconds` as a share of the time."""
        return None if seconds is None else seconds / self.time_s

    def __add__(self, other: "Account") -> "Account":
        clock = None
        if self.clock is not None and other.clock is not None:
            clock = (self.clock * self.time_s + other.clock * other.time_s) / (self.time_s + other.time_s)
        return Account(
            self.steps + other.steps,
            self.time_s + other.time_s,
            self.model_flops + other.model_flops,
            self.hardware_flops + other.hardware_flops,
            _plus(self.expected_s, other.expected_s),
            _plus(self.available_flops, other.available_flops),
            _plus(self.reference_flops, other.reference_flops),
            None if self.tokens is None or other.tokens is None else self.tokens + other.tokens,
            _plus(self.data_s, other.data_s),
            _plus(self.comm_s, other.comm_s),
            _plus(self.skew_s, other.skew_s),
            _plus(self.host_s, other.host_s),
            _plus(self.batch_sum, other.batch_sum),
            clock,
        )


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _times(one: float | None, other: float) -> float | None:
    return None if one is None else one * other


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


Sums = tuple[
    int,
    float,
    int,
    int,
    float | None,
    float | None,
    float | None,
    int | None,
    float | None,
    None,
    None,
    None,
    float | None,
]
"""The fields of an `Account` but for its clock: every block is summed, and few are ever asked for their account."""


def sums(steps: Sequence[Took]) -> Sums:
    """The sums of `steps`. A wait for data is at most as long as its step."""
    _, _, asked, times_s, tokens, waits_s, batches = zip(*steps, strict=True)
    count, time_s, first = len(steps), sum(times_s), asked[0]
    known_tokens = None if None in tokens else sum(tokens)
    data_s = None if None in waits_s else sum(map(min, waits_s, times_s))
    batch_sum = None if None in batches else sum(batches)
    if asked.count(first) == count:
        model_flops, hardware_flops = count * first.model_flops, count * first.hardware_flops
        expected_s = _times(first.expected_s, count)
        available = _times(first.peak_flops_per_s, time_s)
        reference = _times(first.reference_flops_per_s, time_s)
    else:
        model_flops = sum(each.model_flops for each in asked)
        hardware_flops = sum(each.hardware_flops for each in asked)
        expected_s = _sum([each.expected_s for each in asked])
        timed = list(zip(asked, times_s, strict=True))
        available = _sum([_times(each.peak_flops_per_s, each_s) for each, each_s in timed])
        reference = _sum([_times(each.reference_flops_per_s, each_s) for each, each_s in timed])
    return (
        count, time_s, model_flops, hardware_flops, expected_s, available, reference, known_tokens, data_s, None, None,
        None, batch_sum,
    )  # fmt: skip
