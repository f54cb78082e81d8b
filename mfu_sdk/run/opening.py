"""What a monitor and an inference handler both need before they start: device, peaks, telemetry, books."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import warn_once
from mfu_sdk.peak.calibrate import calibrate
from mfu_sdk.peak.calibrate import peaks as known_peaks
from mfu_sdk.peak.device import of_tensors, resolve
from mfu_sdk.records import Convention, Peaks, RunIdentity, StepRecord
from mfu_sdk.run.clock import clock_for
from mfu_sdk.run.identity import identify
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mfu_sdk.export.telemetry import Telemetry

QUICK_BUDGET_S = 3.0


def check_model(model: object, caller: str) -> None:
    """Raise `ConfigurationError` unless `model` is None or a module with parameters."""
    from torch import nn

    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"{caller}(model={type(model).__name__}): must be a torch.nn.Module; pass the model itself"
        )
    if next(model.parameters(), None) is None:
        raise ConfigurationError(
            f"{caller}(model={type(model).__name__}): has no parameters, so there is no model work to count; "
            "pass the module that holds the weights"
            + (", or model=None to count everything in the step" if caller == "monitor" else "")
        )


def check_run(name: object, peaks: object, expected: object, convention: str) -> None:
    """Raise `ConfigurationError` unless these are what `mfu.monitor` says they are."""
    if convention not in ("exact", "full"):
        raise ConfigurationError(f"convention={convention!r}: must be exact or full (see docs/explanation/mfu.md)")
    if expected is not None and not (isinstance(expected, int | float) and 0 < expected <= 1):
        raise ConfigurationError(f"expected={expected!r}: is an MFU, above 0 and at most 1; 0.4 means 40 %")
    if peaks is not None and not isinstance(peaks, Peaks):
        raise ConfigurationError(
            f"peaks={peaks!r}: must be a Peaks, as mfu.calibrate() and mfu.peaks() give; leave it out to measure"
        )
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigurationError(f"name={name!r}: must be a name that is not empty; leave it out for the model's class")


def open_ledger(
    model: nn.Module | None,
    name: str | None,
    devices: str | torch.device | Sequence[str | torch.device] | None,
    peaks: Peaks | None,
    expected: float | None,
    convention: Convention,
    settings: Settings,
    on_step: Callable[[StepRecord], None] | None = None,
) -> Ledger:
    """The books of a run that starts now: its device found, its peak read or measured, its exporter opened.

    Raises `ConfigurationError` for a device, a peak or an expectation that cannot be.
    """
    names = _devices(model, devices)
    device = resolve(names[0])
    identity = identify(name, model, device, settings)
    telemetry = _telemetry(identity, settings)
    if peaks is None:
        peaks = _peaks(names[0], settings, telemetry)
    return Ledger(
        identity,
        peaks,
        clock_for(device.torch_name),
        devices=len(names),
        convention=convention,
        expected=expected,
        telemetry=telemetry,
        on_step=on_step,
    )


def _telemetry(identity: RunIdentity, settings: Settings) -> Telemetry | None:
    """The way out, or None where the environment names no collector; OpenTelemetry is loaded only where it does."""
    from mfu_sdk.export.destination import configured

    if not configured():
        return None
    from mfu_sdk.export.telemetry import Telemetry

    return Telemetry.open(identity, settings)


def _devices(
    model: nn.Module | None, devices: str | torch.device | Sequence[str | torch.device] | None
) -> tuple[str | torch.device | None, ...]:
    """The devices whose peaks add up to the denominator: those given, else those that hold the parameters."""
    if devices is not None:
        given = (devices,) if isinstance(devices, str) or not isinstance(devices, Sequence) else tuple(devices)
        if not given:
            raise ConfigurationError("devices=(): must name at least one device; leave it out to take the model's")
        named = tuple(resolve(device).torch_name for device in given)
        if len(set(named)) < len(named):
            raise ConfigurationError(f"devices={devices!r}: names a device twice; name each once")
        return named
    found = of_tensors(model.parameters()) if model is not None else ()
    # A model that is sharded over the processor and GPUs is held against its GPUs.
    return tuple(d for d in found if d != "cpu") or found or (None,)


def _peaks(device: str | torch.device | None, settings: Settings, telemetry: Telemetry | None) -> Peaks:
    found = known_peaks(device, settings=settings)
    if found.achievable or settings.calibrate == "off":
        return found
    started = time.time_ns()
    try:
        found = calibrate(device, budget_s=QUICK_BUDGET_S, settings=settings)
    except Exception as error:  # noqa: BLE001 - no room on the device, a driver's error: whatever it is
        # Without a denominator FLOPs are still worth counting: MFU is unknown, and the summary says why.
        warn_once("calibration", f"{type(error).__name__}: {error}")
        return found
    if telemetry is not None:
        telemetry.calibration(found, started, time.time_ns())
    return found
