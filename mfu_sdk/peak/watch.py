"""The driver's eyes on a calibration: the clock under load, what held it down, and how wide one run's error is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.device import Device
from mfu_sdk.peak.nvml import Gpu, open_gpu

FLOOR: Final = 0.02
"""± 2 %: of runs that differ by 0.7 % and batches that differ by 0.8 %, nine in ten next runs lie within
(benchmarks/calibration.py); within ± 1 %, seven."""
SLICE_FLOOR: Final = 0.03
NEIGHBOUR_FLOOR: Final = 0.08
"""A slice's neighbours share its power and its memory controllers, and no clock shows them at work."""
SEEN: Final = (
    "clock_events", "degraded", "power_w", "power_limit_w", "temperature_c", "temperature_before_c", "processes",
    "busy_siblings",
)  # fmt: skip
"""What a watch says, by the names in a calibration's state."""
_LASTING: Final = 0.1
DEGRADING: Final = frozenset(
    {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake"}
)
"""What holds a clock down that has nothing to do with the work: a rate measured meanwhile is no baseline."""


class Watch:
    """Reads the driver at each batch, while the device is at work on it."""

    def __init__(self, target: Device, gpu: Gpu | None, *, probes: bool) -> None:
        self._target = target
        self._gpu = gpu
        self._probes = probes
        # Where the device was idle before it was measured, and where it was still warm after.
        self._before = None if gpu is None else gpu.state()
        self._looks = 0
        self._events: Counter[str] = Counter()

    @property
    def floor(self) -> float:
        """The least half width of an interval from one run, as a share."""
        if self._gpu is None or not self._gpu.sliced:
            return FLOOR
        busy = None if self._before is None else self._before.busy_siblings
        alone = busy == 0 or self._gpu.identity().siblings == 0
        return SLICE_FLOOR if alone else NEIGHBOUR_FLOOR

    def clock_mhz(self) -> float | None:
        """The clock now: the driver's, else what a kernel counts; None where neither tells.

        The driver's lags by some 0.3 s, and is not what the multiprocessors run at: under products of bf16 on an H200
        they counted 0.90 to 0.93 of its cycles, and all of them when idle (November 2026).
        """
        if self._gpu is not None:
            clock_mhz, events = self._gpu.pulse()
            self._looks += 1
            self._events.update(event for event in events or () if event != "idle")
            if clock_mhz is not None:
                return float(clock_mhz)
        return self.counted_mhz()

    @property
    def counts(self) -> bool:
        """Whether a kernel may count the clock."""
        return self._probes

    def counted_mhz(self) -> float | None:
        """The clock that a kernel counts beside what the device is at work on; None where it must not or cannot."""
        return self._probed() if self._probes else None

    def _probed(self) -> float | None:
        try:
            import torch

            from mfu_kernels.clock import clock_mhz

            return clock_mhz(torch.device(self._target.torch_name))
        except Exception:  # noqa: BLE001 - no Triton, no such counters, no compiler: then the clock is not known
            self._probes = False
            return None

    def state(self) -> dict[str, str | float | bool]:
        """What was seen: reasons for a low clock, watts, degrees, and the processes on the device. Looks once more."""
        found: dict[str, str | float | bool] = {}
        # A blip, as when the clock moves up from idle, held nothing down.
        lasting = sorted(event for event, times in self._events.items() if times >= _LASTING * self._looks)
        if lasting:
            found["clock_events"] = ", ".join(lasting)
        if degrading := [event for event in lasting if event in DEGRADING]:
            found["degraded"] = ", ".join(degrading)
        after = None if self._gpu is None else self._gpu.state()
        if after is not None:
            processes = None if after.processes is None else len(after.processes)
            known = {
                "power_w": after.power_w,
                "power_limit_w": after.power_limit_w,
                "temperature_c": after.temperature_c,
                "temperature_before_c": None if self._before is None else self._before.temperature_c,
                "processes": processes,
                "busy_siblings": after.busy_siblings,
            }
            found |= {name: float(value) for name, value in known.items() if value is not None}
        return found


@contextmanager
def watching(target: Device, *, allow_probe: bool) -> Iterator[Watch]:
    """A watch on `target` while it is measured; without a driver that answers it sees nothing, and says nothing.

    `allow_probe`: a kernel may count the clock, for which there must be time to compile it.
    """
    with ExitStack() as stack:
        gpu = None
        if target.vendor == "NVIDIA" and target.uuid is not None:
            try:
                gpu = stack.enter_context(open_gpu(target.uuid))
            except NvmlError:
                gpu = None
        watch = Watch(target, gpu, probes=allow_probe and target.vendor == "NVIDIA")
        # What compiles or loads it takes time in which the device is idle, and its clock rises: not between batches.
        watch.counted_mhz()
        yield watch
