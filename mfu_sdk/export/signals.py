"""What a window tells besides the sums of its steps: what somebody has seen who knows more than the steps do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from mfu_sdk.export.windows import Sums, Window


@dataclass(frozen=True, slots=True)
class Signals:
    """Where a window's time went between ranks, and how its device was; None for what is not known.

    `comm_s`, `skew_s` and `host_s` are seconds of all its timed steps, never more than these lasted. `comm_bytes` are
    bytes by the bus convention of nccl-tests, `bus_bytes_per_s` and `bus_peak_bytes_per_s` the rate at which they moved
    and the one that was measured, `ideal_ratio` their time over that of computing, by roofline. `memory_bytes_per_s` is
    what the memory of all the process's devices moves, `clock_ratio` the SM clock over that of the peak, `throttled`
    what held the clock back, `witness` the device's own account: tensor pipes busy × clock ratio.
    """

    comm_s: float | None = None
    skew_s: float | None = None
    host_s: float | None = None
    comm_bytes: float | None = None
    bus_bytes_per_s: float | None = None
    bus_peak_bytes_per_s: float | None = None
    ideal_ratio: float | None = None
    memory_bytes_per_s: float | None = None
    clock_ratio: float | None = None
    throttled: tuple[str, ...] | None = None
    witness: float | None = None


UNSEEN: Final = Signals()


class Observer(Protocol):
    """Who sees that. Its methods are called on the thread of one pipeline (`pipeline.Pipeline`)."""

    def look(self, now_unix_ns: int) -> None:
        """Steps are under way: look at the device. About once a second."""
        ...

    def signals(self, window: Window, total: Sums) -> Signals:
        """What is known of `window`, which has closed and whose steps add up to `total`."""
        ...

    def close(self) -> None:
        """Nothing more is asked."""
        ...
