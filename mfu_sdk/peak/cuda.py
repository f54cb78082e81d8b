"""A CUDA or ROCm device on the bench: its events, its clock and its driver's memory, and the user's state untouched."""

from __future__ import annotations

import contextvars
import importlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch.utils._python_dispatch import _disable_current_modes

from mfu_sdk.counting import cuda_graphs
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak import bench
from mfu_sdk.peak.bench import Bench, Measured, Plan
from mfu_sdk.peak.buffers import buffers_for
from mfu_sdk.peak.protocol import Progress
from mfu_sdk.peak.stopwatch import Clock, CudaStopwatch

DTYPES = ("bfloat16", "float16", "tf32", "float32")
"""What is measured unless dtypes are named: of the eight-bit ones only whoever uses them needs the rates."""
_OCP = ("float8_e4m3fn", "float8_e5m2")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
EIGHT_BITS = (*_OCP, *_FNUZ, "int8")
COMPARED_S = 5.0
"""Seconds for each quantity that suffice to compile every candidate and compare them."""
_CACHE_BYTES = 256 << 20
"""Where torch does not say how large the last cache is: MI300's, the largest there is."""


def known_dtypes() -> tuple[str, ...]:
    """Every dtype that can be asked for."""
    return (*DTYPES, *EIGHT_BITS)


def measure(
    device: str,
    dtypes: Iterable[str],
    budget_s: float,
    plan: Plan,
    progress: Progress,
    *,
    clock: Clock,
    counted: Clock | None,
    expected: Mapping[str, float],
    compiled: frozenset[str],
) -> Measured:
    """What `bench.run` finds on `device`, within about `budget_s` seconds.

    Operands come from a private generator into memory of the driver's; modes, autocast, Triton's allocator and the
    current device are as they were afterwards. fp32 products run as the user has allowed; only where the other way is
    asked for, torch's switch is set for that measurement and set back. Waits for the device. Raises `CalibrationError`
    while a CUDA graph is being captured, and where nothing can be measured.
    """
    refuse_capture(device)
    began = time.perf_counter()
    with suppress(ImportError):
        # A second or so on a cold machine, which is no candidate's fault, but of the budget as far as that has room.
        importlib.import_module("mfu_kernels.gemm")
    with _guest(device):
        # Whatever was queued before would be measured along.
        torch.cuda.synchronize()
        on = _bench(device, CudaStopwatch(clock, counted), expected, compiled)
        budget_s = max(0.5 * budget_s, budget_s - (time.perf_counter() - began))
        # Our persistent kernel tells Triton where to get memory, in a context variable: a copy keeps the user's own.
        return contextvars.copy_context().run(bench.run, on, dtypes, budget_s, plan, progress)


def refuse_capture(device: str) -> None:
    """Raise `CalibrationError` while a stream is being captured into a graph: this thread's, or another's.

    Memory that is asked for here would end a capture in another thread too. Of those only the ones that began while a
    monitor or a count lived are known.
    """
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing() or cuda_graphs.captures():
            raise CalibrationError(
                f"{device}: a CUDA graph is being captured, and nothing may be timed now; calibrate before or after it"
            )


def measurable(device: str, dtypes: Iterable[str]) -> tuple[str, ...]:
    """Those of `dtypes` that `device` has instructions for.

    NVIDIA's: bf16 and TF32 since Ampere (before, bf16 is emulated), eight-bit floats of the OCP's kind since Ada.
    AMD's: TF32 and the other kind of eight-bit floats on CDNA 3, the OCP's on CDNA 4 (instruction set references).
    """
    if torch.version.hip is not None:
        architecture = str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
        absent = {"gfx942": _OCP, "gfx950": (*_FNUZ, "tf32")}.get(architecture, (*_OCP, *_FNUZ, "tf32"))
    else:
        capability = torch.cuda.get_device_capability(device)
        absent = (*_FNUZ, *(() if capability >= (8, 9) else _OCP))
        absent += () if capability >= (8, 0) else ("tf32", "bfloat16")
    return tuple(dtype for dtype in dtypes if dtype not in absent)


@contextmanager
def _guest(device: str) -> Iterator[None]:
    # Results are compared on the processor, which the user's alarm for synchronisations would take for theirs. Where
    # it is off it is not touched: torch warns of it as a prototype wherever it is set, if only to what it is.
    alarm = torch.cuda.get_sync_debug_mode()
    with (
        torch.cuda.device(device),
        torch.no_grad(),
        torch.autocast("cuda", enabled=False),
        _disable_current_modes(),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        if alarm:
            torch.cuda.set_sync_debug_mode("default")
        try:
            yield
        finally:
            if alarm:
                torch.cuda.set_sync_debug_mode(alarm)


def _bench(device: str, stopwatch: CudaStopwatch, expected: Mapping[str, float], compiled: frozenset[str]) -> Bench:
    properties = torch.cuda.get_device_properties(device)
    return Bench(
        device=device,
        units=properties.multi_processor_count,
        cache_bytes=int(getattr(properties, "L2_cache_size", 0)) or _CACHE_BYTES,
        free_bytes=lambda: torch.cuda.mem_get_info(device)[0],
        buffers=lambda: buffers_for(device),
        stopwatch=stopwatch,
        now=time.perf_counter,
        expected=expected,
        compiled=compiled,
    )
