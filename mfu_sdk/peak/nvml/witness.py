"""The device's own account of an interval: how busy its tensor pipes, SMs and memory were (GPM, since Hopper).

It witnesses for or against an MFU: it counts cycles, knows nothing of the model, and does not depend on our formulas.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

from mfu_sdk.peak.nvml.gpu import Gpu
from mfu_sdk.peak.nvml.session import SUCCESS

# NVML_GPM_METRIC_*, each a percentage of the interval, in the order of `Activity`.
_METRICS = (5, 7, 6, 9, 2, 3, 10)
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Activity:
    """Shares (0..1) of an interval, averaged over the SMs; None for what the device does not tell.

    `tensor`: tensor pipes busy with anything, of which `tensor_half`, `tensor_double` and `tensor_integer` are the
    parts that NVML calls HMMA, DFMA and IMMA. `sm`: SMs busy with any warp; `occupancy`: warps resident of those
    possible. `memory`: bandwidth used of the theoretical one. Meaning: nvml.h, nvmlGpmMetricId_t.
    """

    tensor: float | None
    tensor_half: float | None
    tensor_double: float | None
    tensor_integer: float | None
    sm: float | None
    occupancy: float | None
    memory: float | None


class Witness:
    """Samples of a GPU's or a MIG slice's activity, taken when the caller says: two calls into the driver each.

    For the edges of windows, not for steps. Safe to use and to close from several threads; the samples are freed by
    `close`, or when the session closes. In a forked child it has nothing to say.
    """

    __slots__ = ("_begun", "_gpu", "_instance", "_lock", "_samples")

    def __init__(self, gpu: Gpu, instance: int | None, samples: list[Any]) -> None:
        self._gpu = gpu
        self._instance = instance
        self._lock = threading.Lock()
        # The earlier sample and the one to be taken next; empty once they are freed.
        self._samples = samples
        self._begun = False

    @classmethod
    def of(cls, gpu: Gpu) -> Witness | None:
        """A witness of `gpu`, or None where the device or its driver has none (before Hopper)."""
        support = gpu.ask_gpu("nvmlGpmQueryDeviceSupport")
        if support is None or not support.isSupportedDevice:
            return None
        instance = gpu.ask("nvmlDeviceGetGpuInstanceId") if gpu.sliced else None
        if gpu.sliced and instance is None:
            return None
        samples = [gpu.session.ask("nvmlGpmSampleAlloc") for _ in range(2)]
        made = cls(gpu, instance, [sample for sample in samples if sample is not None])
        if None in samples or not gpu.session.before_close(made._release):
            made._release()
            return None
        return made

    def take(self) -> Activity | None:
        """Sample now, and tell what happened since the sample before; None the first time, and where it fails."""
        # Before the lock, which a fork may have left taken.
        if not self._gpu.session.alive:
            return None
        with self._lock:
            if not self._samples:
                return None
            earlier, current = self._samples
            if not self._sample(current):
                self._begun = False
                return None
            self._samples = [current, earlier]
            begun, self._begun = self._begun, True
            return self._between(earlier, current) if begun else None

    def close(self) -> None:
        """Free the samples. Closing twice is closing once."""
        if self._gpu.session.alive:
            self._gpu.session.forget(self._release)
            self._release()

    def _release(self) -> None:
        with self._lock:
            samples, self._samples = self._samples, []
        for sample in samples:
            # The session may be closing, and takes no questions any more.
            self._gpu.session.call("nvmlGpmSampleFree", sample)

    def _sample(self, into: Any) -> bool:
        if self._instance is None:
            return self._gpu.ask_gpu("nvmlGpmSampleGet", into) is not None
        return self._gpu.ask_gpu("nvmlGpmMigSampleGet", self._instance, into) is not None

    def _between(self, earlier: Any, current: Any) -> Activity | None:
        request = self._gpu.session.ask("c_nvmlGpmMetricsGet_t")
        if request is None:
            return None
        request.version, request.numMetrics = _VERSION, len(_METRICS)
        request.sample1, request.sample2 = earlier, current
        for slot, metric in zip(request.metrics, _METRICS, strict=False):
            slot.metricId = metric
        if self._gpu.session.ask("nvmlGpmMetricsGet", request) is None:
            return None
        return Activity(*(_share(slot) for slot in request.metrics[: len(_METRICS)]))


def _share(slot: Any) -> float | None:
    known = slot.nvmlReturn == SUCCESS and math.isfinite(slot.value) and slot.value >= 0
    return slot.value / 100 if known else None
