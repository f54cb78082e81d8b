"""Everything that is looked at, most fundamental first."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator

from mfu_sdk.doctor.debugging import debugging_findings
from mfu_sdk.doctor.exporter import exporter_findings
from mfu_sdk.doctor.finding import Finding
from mfu_sdk.doctor.gpu import gpu_findings, view_of
from mfu_sdk.doctor.peaks import divisor, peak_findings
from mfu_sdk.doctor.processor import processor_findings, read_processor
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.peak.calibrate import peaks
from mfu_sdk.peak.device import ask_driver, resolve
from mfu_sdk.peak.nvml import Nvml, NvmlError
from mfu_sdk.settings import Settings


def examine() -> list[Finding]:
    """Every finding, most fundamental first. Never raises: what cannot be examined is a finding."""
    findings = [Finding("python", "good", f"{platform.python_version()} on {platform.platform()}")]
    try:
        settings = Settings.from_env()
    except ConfigurationError as error:
        return [*findings, Finding("settings", "bad", str(error))]
    if not settings.enabled:
        findings.append(Finding("settings", "note", "MFU_ENABLED=0: nothing would be measured; unset it"))
    return [
        *findings,
        *_attempt("device", lambda: _device(settings)),
        *_attempt("traces", exporter_findings),
    ]


def _attempt(what: str, part: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of one part, until it fails."""
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001 - a driver that breaks under torch is what a doctor is called for
        yield Finding(what, "bad", f"cannot be examined ({type(error).__name__}: {' '.join(str(error).split())})")


def _device(settings: Settings) -> Iterator[Finding]:
    try:
        device = resolve()
    except MissingDependencyError as error:
        yield Finding("torch", "bad", str(error))
        return
    import torch

    threads = torch.get_num_threads()
    yield Finding("torch", "good", f"{torch.__version__}, {threads} threads")
    yield Finding(
        "device", "good", f"{device.torch_name}: {device.name}" + (f" ({device.uuid})" if device.uuid else "")
    )
    cuda = device.kind == "cuda"
    known = peaks(device.torch_name, settings=settings)
    view = None
    if cuda:
        view = ask_driver(device, view_of)
        told = f"{view}; MFU rests on {divisor(known, settings)}" if isinstance(view, str) else view
        yield from gpu_findings(told, os.getpid(), _uptime_s())
    else:
        yield from unused_gpus(torch.__version__)
    yield from processor_findings(read_processor(), threads, measured=not cuda)
    yield from peak_findings(known, settings, view)
    yield from debugging_findings(os.environ, torch, cuda=cuda)


def unused_gpus(torch_version: str) -> Iterator[Finding]:
    """That there are GPUs which torch does not use, because it is a build without CUDA or they are hidden from it."""
    try:
        with Nvml.open() as nvml:
            count = nvml.ask("nvmlDeviceGetCount")
    except NvmlError:
        return
    if count:
        yield Finding(
            "device", "note",
            f"NVIDIA's driver lists {count} GPU{'' if count == 1 else 's'}, and torch {torch_version} sees none: MFU "
            "would be the processor's; install a CUDA build of torch, or look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip


def _uptime_s() -> float | None:
    """Seconds since this machine started, suspended ones included; None where the system does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)
