"""Who used a GPU lately: the share of time that each process kept its SMs and its memory busy."""

from __future__ import annotations

from dataclasses import dataclass

from mfu_sdk.peak.nvml.gpu import Gpu
from mfu_sdk.peak.nvml.session import NOT_FOUND


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What NVML last sampled of a process: shares of time (0..1) in which a kernel of it ran, or its memory was used.

    It says that kernels ran, not how much of the GPU they filled. `at_us` is the sample's CPU time in microseconds:
    pass the latest one back to hear only of what came after.
    """

    process: int
    sm_share: float
    memory_share: float
    at_us: int


def process_use(gpu: Gpu, since_us: int = 0) -> tuple[ProcessUse, ...] | None:
    """The processes that used `gpu` after `since_us`, the busiest first: two calls. Empty if none did.

    None where NVML does not tell, which is so of GPUs that are partitioned (nvmlDeviceGetProcessUtilization).
    """
    samples, code = gpu.answer_gpu("nvmlDeviceGetProcessUtilization", since_us)
    if samples is None:
        # That nothing ran is an error of this function's own.
        return () if code == NOT_FOUND else None
    uses = (
        ProcessUse(sample.pid, sample.smUtil / 100, sample.memUtil / 100, sample.timeStamp)
        for sample in samples
        # Slots that the driver did not fill come back with what was in them before.
        if sample.timeStamp > since_us and sample.smUtil <= 100 and sample.memUtil <= 100
    )
    return tuple(sorted(uses, key=lambda use: (-use.sm_share, use.process)))
