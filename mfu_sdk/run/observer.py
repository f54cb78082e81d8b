"""What a run's windows tell besides their steps' sums: seconds between ranks, and how the device was.

Asked on the thread of an export when a window closes, never on the path of a step. Seconds are the run's account
(`waterfall`) of a window: what was timed of some of its steps, or else of the last few so far, taken for all of its.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mfu_sdk.export.signals import Signals
from mfu_sdk.peak.looks import Looks, Seen
from mfu_sdk.records import Peaks
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.held import clock_of_peak_mhz
from mfu_sdk.run.waterfall import waterfall

if TYPE_CHECKING:
    from mfu_sdk.export.windows import Sums, Window

_WITHOUT_TENSOR_PIPES: Final = frozenset({"float32"})
"""What is multiplied elsewhere, so that idle tensor pipes say nothing."""
_NOTHING: Final = Seen(None, None, None)


class Observer:
    """One collector's observer of one run (`export.signals.Observer`); `looks` are None without a driver to ask.

    `peaks` gives the run's peaks, of one of its `devices`, which an in-situ calibration may replace.
    """

    def __init__(
        self, gathered: Gathered, peaks: Callable[[], Peaks], looks: Looks | None, *, devices: int = 1
    ) -> None:
        self._gathered = gathered
        self._peaks = peaks
        self._looks = looks
        self._devices = devices

    def look(self, now_unix_ns: int) -> None:
        """Look at the device, and listen to the other ranks."""
        if self._gathered.listen is not None and self._gathered.exchange is not None:
            self._gathered.listen()
        if self._looks is not None:
            self._looks.look(now_unix_ns)

    def close(self) -> None:
        """Nothing more is asked."""
        if self._looks is not None:
            self._looks.close()

    def signals(self, window: Window, total: Sums) -> Signals:
        """What is known of `window`. A window whose steps were all counted has no time to divide."""
        seen = _NOTHING if self._looks is None else self._looks.between(window.start_unix_ns, window.end_unix_ns)
        dtype, peaks = window.denominator.peak_dtype, self._peaks()
        peak_mhz = None if dtype is None else clock_of_peak_mhz(dtype, peaks)
        clock_ratio = seen.clock_mhz / peak_mhz if seen.clock_mhz and peak_mhz else None
        witness = None
        if clock_ratio is not None and seen.tensor_share is not None and dtype not in _WITHOUT_TENSOR_PIPES:
            witness = seen.tensor_share * clock_ratio
        went = self._went(window, total)
        sent, bus_bytes_per_s = self._gathered.sent(window.denominator.phase)
        many = total.timed if sent is not None and sent.bus_bytes is not None else 0
        return Signals(
            comm_s=went.get("exposed_communication"),
            skew_s=went.get("rank_skew"),
            host_s=went.get("host_gap"),
            comm_bytes=sent.bus_bytes * many if sent is not None and sent.bus_bytes is not None and many else None,
            bus_bytes_per_s=bus_bytes_per_s,
            bus_peak_bytes_per_s=None if sent is None else sent.peak_bytes_per_s,
            ideal_ratio=None if sent is None else sent.ideal_ratio,
            memory_bytes_per_s=None if peaks.memory is None else peaks.memory.bytes_per_s * self._devices,
            clock_ratio=clock_ratio,
            throttled=seen.reasons,
            witness=witness,
        )

    def _went(self, window: Window, total: Sums) -> dict[str, float]:
        """The seconds of each bar of the window's waterfall."""
        if not total.time_s:
            return {}
        # What steps asked for is known where all of them tell it.
        hardware_flops = total.hardware_flops if total.counted == total.timed else None
        evidence = self._gathered.waits_of(
            total.timed,
            total.time_s,
            total.data_wait_s,
            hardware_flops,
            window.denominator.phase,
            self._gathered.between_s(step.index for step in window.steps if step.timed),
            _exposed_s(window),
        )
        return {bar.name: bar.seconds for bar in waterfall(evidence).bars}


def _exposed_s(window: Window) -> list[float]:
    """What steps of the window waited for other ranks' data: those in its sums, or where none tells, sampled ones."""
    told = [(step.timed, step.comm_s) for step in window.steps if step.count_source != "measured"]
    return [s for timed, s in told if timed and s is not None] or [s for _, s in told if s is not None]
