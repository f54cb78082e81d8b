"""What an MFU measured on this machine would rest on, and what would be wrong with it."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.export.destination import destination
from mfu_sdk.peak.calibrate import peaks
from mfu_sdk.peak.device import resolve
from mfu_sdk.settings import Settings

STALE_S = 7 * 24 * 3600.0
"""After a week a calibration is due again: clocks, cooling and neighbours change."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the screen: what was looked at, how it is, and the sentence about it with the remedy."""

    what: str
    state: Literal["good", "note", "bad"]
    text: str


def examine() -> list[Finding]:
    """Every finding, most fundamental first. Never raises: what cannot be examined is a finding."""
    findings = [Finding("python", "good", f"{platform.python_version()} on {platform.platform()}")]
    try:
        settings = Settings.from_env()
    except ConfigurationError as error:
        return [*findings, Finding("settings", "bad", str(error))]
    if not settings.enabled:
        findings.append(Finding("settings", "note", "MFU_ENABLED=0: nothing would be measured; unset it"))
    return [*findings, *_device(settings), *_exporter()]


def _device(settings: Settings) -> Iterator[Finding]:
    try:
        device = resolve()
    except MissingDependencyError as error:
        yield Finding("torch", "bad", str(error))
        return
    import torch

    yield Finding("torch", "good", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield Finding(
        "device", "good", f"{device.torch_name}: {device.name}" + (f" ({device.uuid})" if device.uuid else "")
    )
    if device.kind == "cpu":
        cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = load > cores
        yield Finding(
            "load", "note" if busy else "good",
            f"{load:.1f} on {cores} cores" + (": others compete for this processor, MFU will read low" if busy else ""),
        )  # fmt: skip
    elif "MIG" in device.name:
        yield Finding("mig", "note", "a MIG slice: its peak must be measured, the parent's does not apply")
    yield from _peak(device.torch_name, settings)


def _peak(device: str, settings: Settings) -> Iterator[Finding]:
    known = peaks(device, settings=settings)
    if not known.achievable:
        yield Finding("peak", "note", str(known.state["missing"]))
        return
    for dtype, rate in known.achievable.items():
        age = rate.age_s
        stale = age > STALE_S
        yield Finding(
            "peak", "note" if stale else "good",
            f"{dtype} {rate.flops_per_s / 1e12:.3f} TFLOP/s [{rate.low / 1e12:.3f} .. {rate.high / 1e12:.3f}], "
            f"{rate.source} {_age(age)} ago" + ("; due again, run `mfu calibrate`" if stale else ""),
        )  # fmt: skip
    if known.memory is not None:
        yield Finding("memory", "good", f"{known.memory.bytes_per_s / 1e9:.1f} GB/s, read + written")
    if known.state.get("contended"):
        yield Finding("peak", "bad", "measured while others had the processor; run `mfu calibrate` on a quiet machine")


def _exporter() -> Iterator[Finding]:
    for signal in ("traces", "metrics"):
        try:
            found = destination(signal)
        except ConfigurationError as error:
            yield Finding(signal, "bad", str(error))
            continue
        if found is None:
            yield Finding(
                signal, "note", "not sent: no endpoint is set, or it is turned off (OTEL_EXPORTER_OTLP_ENDPOINT)"
            )
        else:
            yield _reachable(signal, found.url)


def _reachable(signal: str, url: str) -> Finding:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except (OSError, ValueError) as error:
        return Finding(signal, "bad", f"{parts.netloc} does not answer ({error}); is the collector running?")
    return Finding(signal, "good", f"{parts.netloc} answers")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
