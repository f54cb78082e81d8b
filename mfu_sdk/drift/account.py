"""What steps asked for and what they took, in sums: the material of levels, of causes, and of an event's figures."""

from dataclasses import dataclass
from typing import NamedTuple


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


class Took(NamedTuple):
    """One step of a block: when it ran, what it asked for, how long it took in seconds, and what it was for."""

    step: int
    start_unix_ns: int
    asked: Asked
    duration_s: float
    tokens: int | None
    data_s: float | None
    batch: float | None


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

    @classmethod
    def of(cls, steps: list[Took]) -> "Account":
        """The sums of `steps`. A wait for data is at most as long as its step."""
        first = steps[0].asked
        if all(step.asked is first for step in steps):
            return cls._of_alike(steps, first)
        return cls(
            len(steps),
            sum(step.duration_s for step in steps),
            sum(step.asked.model_flops for step in steps),
            sum(step.asked.hardware_flops for step in steps),
            _sum([step.asked.expected_s for step in steps]),
            _sum([_times(step.asked.peak_flops_per_s, step.duration_s) for step in steps]),
            _sum([_times(step.asked.reference_flops_per_s, step.duration_s) for step in steps]),
            _tokens(steps),
            _waits(steps),
            batch_sum=_sum([step.batch for step in steps]),
        )

    @classmethod
    def _of_alike(cls, steps: list[Took], asked: Asked) -> "Account":
        count, time_s = len(steps), sum([step.duration_s for step in steps])
        return cls(
            count,
            time_s,
            count * asked.model_flops,
            count * asked.hardware_flops,
            _times(asked.expected_s, count),
            _times(asked.peak_flops_per_s, time_s),
            _times(asked.reference_flops_per_s, time_s),
            _tokens(steps),
            _waits(steps),
            batch_sum=_sum([step.batch for step in steps]),
        )


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _times(one: float | None, other: float) -> float | None:
    return None if one is None else one * other


def _tokens(steps: list[Took]) -> int | None:
    known = [step.tokens for step in steps if step.tokens is not None]
    return sum(known) if len(known) == len(steps) else None


def _waits(steps: list[Took]) -> float | None:
    return _sum([None if step.data_s is None else min(step.data_s, step.duration_s) for step in steps])


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
