"""The driver's eyes on a calibration: the clock under load, what held it down, and how wide one run's error is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Final

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.device import Device
from mfu_sdk.peak.nvml import Gpu, State, open_gpu

FLOOR: Final = 0.02
"""± 2 %: of runs that differ by 0.7 % and batches that differ by 0.8 %, nine in ten next runs lie within
(benchmarks/calibration.py); within ± 1 %, seven."""
SLICE_FLOOR: Final = 0.03
NEIGHBOUR_FLOOR: Final = 0.08
"""A slice's neighbours share its power and its memory controllers, and no clock shows them at work."""
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
        self._states: list[State] = []

    @property
    def floor(self) -> float:
        """The least half width of an interval from one run, as a share."""
        if self._gpu is None or not self._gpu.sliced:
            return FLOOR
        alone = self._gpu.identity().siblings == 0 or self._gpu.state().busy_siblings == 0
        return SLICE_FLOOR if alone else NEIGHBOUR_FLOOR

    def clock_mhz(self) -> float | None:
        """The clock now: the driver's, else what a kernel counts; None where neither tells."""
        if self._gpu is not None:
            state = self._gpu.state()
            self._states.append(state)
            if state.sm_clock_mhz is not None:
                return float(state.sm_clock_mhz)
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
        """What was seen: reasons for a low clock, watts, degrees, and the processes on the device."""
        found: dict[str, str | float | bool] = {}
        seen = {event for state in self._states for event in state.events or () if event != "idle"}
        if seen:
            found["clock_events"] = ", ".join(sorted(seen))
        if degrading := seen & DEGRADING:
            found["degraded"] = ", ".join(sorted(degrading))
        for name, values in (
            ("power_w", [state.power_w for state in self._states]),
            ("power_limit_w", [state.power_limit_w for state in self._states]),
            ("temperature_c", [state.temperature_c for state in self._states]),
        ):
            known = [value for value in values if value is not None]
            if known:
                found[name] = float(median(known))
        siblings = max((state.busy_siblings for state in self._states if state.busy_siblings is not None), default=None)
        if siblings is not None:
            found["busy_siblings"] = float(siblings)
        processes = max((len(state.processes) for state in self._states if state.processes is not None), default=None)
        if processes is not None:
            found["processes"] = float(processes)
        return found


@contextmanager
def watching(target: Device, *, allow_probe: bool) -> Iterator[Watch]:
    """A watch on `target` while it is measured; without a driver that answers it sees nothing, and says nothing.

    `allow_probe`: where the driver tells no clock, a kernel may, for which there must be time to compile it.
    """
    with ExitStack() as stack:
        gpu = None
        if target.vendor == "NVIDIA" and target.uuid is not None:
            try:
                gpu = stack.enter_context(open_gpu(target.uuid))
            except NvmlError:
                gpu = None
        yield Watch(target, gpu, probes=allow_probe and target.vendor == "NVIDIA")
