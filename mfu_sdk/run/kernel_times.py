"""What a GPU's kernels took in some steps, by torch's profiler: only where the user asks for it (MFU_PROFILE=kernels).

It is opt-in because it is not free of side effects: the profiler's library writes to standard error when it
starts and ends, its hooks into the driver (CUPTI, roctracer) stay, and no other profiler can have them meanwhile.
A profiled step ends with a synchronisation, since its kernels have to have ended to be in the trace.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # not in its list

from mfu_sdk.counting import cuda_graphs
from mfu_sdk.drift.samples import Ran
from mfu_sdk.guard import shield
from mfu_sdk.run.kernel_names import canonical
from mfu_sdk.run.kernels import Kernel, Spent, kind_of, spent
from mfu_sdk.run.op_times import EVERY, FIRST

if TYPE_CHECKING:
    from mfu_sdk.records import Phase
    from mfu_sdk.run.evidence import Gathered

FIRST_COST_S: Final = 2.0
"""What starting the profiler for the first time is reckoned to take: 1.2 s on a processor (AMD EPYC, torch 2.13,
November 2026), and on a GPU its hooks into the driver besides."""
MOST_OF_RUN: Final = 0.005
"""The share of the run's time that profiling may take."""
# Kineto's names of what ran on a device; its annotations and the runtime's calls are none of it.
_KERNEL, _FILL, _COPY, _OTHER = "kernel", "gpu_memset", "gpu_memcpy", ""
_SYNCHRONISATIONS: Final = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")


class KernelTimes:
    """Profiles the kernels of a step while it is on, and knows when a step may be profiled."""

    rests = False
    """A GPU's steps are long beside the question."""
    pauses = 0
    """A loader works on the host, and its kernels are few: nothing is left out."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic, make: Callable[[], Any] | None = None) -> None:
        self._now_s = now_s
        self._make = make or _profiler
        self._opened_s = now_s()
        self._spent_s = 0.0
        self._next_s = FIRST_COST_S
        self._profiler: Any = None
        self._found: Spent | None = None
        # Seconds by kernel.
        self._kernels: dict[str, float] = {}

    def due(self, step: int, *, wanted: bool = False) -> bool:
        """Whether the run's `step`-th step is to be profiled, by its number and by what that costs.

        Of one that is `wanted` the price does not matter.
        """
        if step < FIRST or (step - FIRST) % EVERY:
            return False
        if torch.autograd._profiler_enabled() or cuda_graphs.captures():  # type: ignore[attr-defined]  # not in its list
            return False
        return wanted or self._spent_s + self._next_s <= MOST_OF_RUN * (self._now_s() - self._opened_s)

    def start(self) -> None:
        """Profile from here on."""
        began_s = self._now_s()
        self._found = None
        self._profiler = self._make()
        try:
            self._profiler.start()
        except BaseException:
            self._profiler = None
            raise
        finally:
            self._spent_s += self._now_s() - began_s
            self._next_s = self._now_s() - began_s

    def stop(self) -> None:
        """Wait for the device, and read what ran; nothing where it is not on."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        began_s = self._now_s()
        with shield("profiling a step's kernels"):
            profiler.stop()
            events = profiler.profiler.kineto_results.events()
            self._found, self._kernels = spent(_kernels(events)), _by_name(events)
        taken_s = self._now_s() - began_s
        self._spent_s += taken_s
        self._next_s += taken_s

    def tell(self, gathered: Gathered, hardware_flops: int, phase: Phase = "train") -> Ran:
        """Enter what the step that was profiled last, of so many FLOPs, has shown, and return that."""
        found, kernels = self._found, self._kernels
        self._found, self._kernels = None, {}
        if found is None or not found.is_told:
            return Ran(kernels, None, hardware_flops)
        streaming_s = found.streaming_s + found.unknown_s
        gathered.worked(found.products_s, streaming_s, hardware_flops, phase)
        if gathered.ranks == 1:
            return Ran(kernels, found.products_s + streaming_s, hardware_flops)
        gathered.exchanged(found.communication_s, of_all=True, phase=phase)
        return Ran(kernels, found.products_s + streaming_s, hardware_flops, found.communication_s)


def _profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile

    # Without the host's operators: kernels are told by their names, and a step of ten thousand operators stays short.
    return profile(activities=[ProfilerActivity.CUDA], acc_events=True)


def _kernels(events: Any) -> Iterator[Kernel]:
    """What ran on the device. Copies from and to the host are left out: while only they run, it does not work."""
    for event in events:
        kind = _activity(event)
        start_ns = event.start_ns()
        end_ns = start_ns + event.duration_ns()
        if kind == _KERNEL:
            yield Kernel(kind_of(event.name()), start_ns, end_ns)
        elif kind == _FILL or (kind == _COPY and "DtoD" in event.name()):
            yield Kernel("streaming", start_ns, end_ns)


def _activity(event: Any) -> str:
    """What an event is by Kineto's word for it; torch 2.11 does not hand that on, but a device and a name."""
    if (told := getattr(event, "activity_type", None)) is not None:
        return str(told())
    if event.device_type() == DeviceType.CPU or event.is_user_annotation():
        return _OTHER
    name = event.name()
    if name.startswith(_SYNCHRONISATIONS):
        return _OTHER
    return _COPY if name.startswith("Memcpy") else _FILL if name.startswith("Memset") else _KERNEL


def _by_name(events: Any) -> dict[str, float]:
    """Seconds by kernel, by names that are the same in every launch; copies and fills are none."""
    found: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if _activity(event) == _KERNEL:
            found[canonical(event.name())] += event.duration_ns() / 1e9
    return dict(found)
