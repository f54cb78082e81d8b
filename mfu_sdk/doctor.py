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
from mfu_sdk.peak.device import driver_view, resolve
from mfu_sdk.peak.nvml import Identity, State
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
    else:
        yield from gpu_findings(driver_view(device), os.getpid())
    yield from _peak(device.torch_name, settings)


def gpu_findings(view: tuple[Identity, State] | str, process: int) -> Iterator[Finding]:
    """What the driver says of a GPU that moves its clock, or shares it; `process` is the one that asks."""
    if isinstance(view, str):
        yield Finding("driver", "note", view)
        return
    identity, state = view
    yield Finding(
        "driver", "good",
        f"{identity.driver or 'unknown version'}, product {identity.product or 'unknown'}"
        f" ({identity.brand or 'brand unknown'}), ECC {_switch(identity.ecc)}",
    )  # fmt: skip
    if identity.slice is not None:
        others = "an unknown number of" if identity.siblings is None else str(identity.siblings)
        yield Finding(
            "mig", "note" if identity.siblings != 0 else "good",
            f"a slice of {identity.slice.sm_count} SMs and {identity.slice.memory_bytes / 2**30:.1f} GiB; "
            f"{others} other slices share its GPU's power and clock",
        )  # fmt: skip
    limits = tuple(event for event in state.events or () if event != "idle")
    yield Finding(
        "clock", "note" if limits else "good",
        f"{_or_unknown(state.sm_clock_mhz)} of {_or_unknown(identity.max_sm_clock_mhz)} MHz"
        + (f", held down by: {', '.join(limits)}; MFU will read low" if limits else ""),
    )  # fmt: skip
    limit, default = state.power_limit_w, identity.default_power_limit_w
    if limit is not None and default is not None and limit < default:
        yield Finding(
            "power", "note", f"limited to {limit:.0f} of {default:.0f} W: clocks fall under load, MFU reads low"
        )
    if shared := [other for other in state.processes or () if other != process]:
        yield Finding(
            "processes",
            "note",
            f"{', '.join(map(str, shared))} use this device (in a container, this process may be one of them)",
        )


def _switch(on: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[on]


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _peak(device: str, settings: Settings) -> Iterator[Finding]:
    known = peaks(device, settings=settings)
    # Before Ampere there is no bf16.
    dtype = "bfloat16" if "bfloat16" in known.theoretical else "float16"
    if dtype in known.theoretical:
        rate = known.theoretical[dtype]
        at_max = known.state.get(f"{dtype}_at_max_clock_flops_per_s")
        yield Finding(
            "on paper", "good",
            f"{dtype} {rate.flops_per_s / 1e12:.1f} TFLOP/s, {rate.source}"
            + ("" if at_max is None else f"; {float(at_max) / 1e12:.1f} at the maximum clock"),
        )  # fmt: skip
    if "theory_missing" in known.state:
        yield Finding("on paper", "note", str(known.state["theory_missing"]))
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
