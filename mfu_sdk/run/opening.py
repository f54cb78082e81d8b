"""What a monitor and an inference handler both need before they start: device, peaks, telemetry, books."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mfu_sdk.drift.budget import Budget
from mfu_sdk.drift.detector import Tuning
from mfu_sdk.drift.watch import Watch
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import warn_once
from mfu_sdk.peak.calibrate import current, in_situ, suspect
from mfu_sdk.peak.calibrate import peaks as known_peaks
from mfu_sdk.peak.device import Device, ask_driver, of_tensors, resolve
from mfu_sdk.peak.looks import IDLE, Looks
from mfu_sdk.records import Convention, DriftEvent, Peaks, RunIdentity, StepRecord
from mfu_sdk.run import configuration
from mfu_sdk.run.clock import clock_for
from mfu_sdk.run.drift_files import DriftFiles
from mfu_sdk.run.drifting import Drifting
from mfu_sdk.run.driver_idle import DriverIdle
from mfu_sdk.run.identity import identify
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.observer import Observer
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
    on_drift: Callable[[DriftEvent], None] | None = None,
) -> Ledger:
    """The books of a run that starts now: its device found, its peak read or measured, its exporter opened.

    Raises `ConfigurationError` for a device, a peak or an expectation that cannot be.
    """
    names = devices_of(model, devices)
    device = resolve(names[0])
    identity = identify(name, model, device, settings)
    telemetry = _telemetry(identity, settings)
    # A denominator of the user's own is no calibration to be doubted.
    distrust = None if peaks is not None else partial(suspect, names[0], settings=settings)
    if peaks is None:
        peaks = _peaks(model, names[0], settings, telemetry)
    ledger = Ledger(
        identity,
        peaks,
        clock_for(device.torch_name),
        devices=len(names),
        convention=convention,
        expected=expected,
        telemetry=telemetry,
        on_step=on_step,
        distrust=distrust,
    )
    if telemetry is not None:
        telemetry.observe(partial(_observer, ledger, device))
    if settings.profile != "off" and device.vendor == "NVIDIA" and device.uuid is not None:
        ledger.driver_idle = DriverIdle(device.uuid, ledger.passed, ledger.rested)
        ledger.driver_idle.start()
    if settings.drift == "auto":
        ledger.drift = Drifting(
            Watch(tuning(settings), Budget(settings.drift_alarms_per_week, settings.drift_streams)),
            peaks,
            configuration.opened(model, device, identity),
            devices=len(names),
            device_kind=device.kind,
            alone=identity.world_size == 1,
            files=DriftFiles(settings.resolved_cache_dir() / "drift", identity, named=settings.run_id is not None),
            pulse=partial(_pulse, device) if device.uuid is not None else None,
            on_drift=on_drift,
            telemetry=telemetry,
        )
    return ledger


def _observer(ledger: Ledger, device: Device) -> Observer:
    looks = Looks(device.uuid) if device.vendor == "NVIDIA" and device.uuid is not None else None
    return Observer(ledger.gathered, lambda: ledger.peaks, looks, devices=ledger.devices)


def tuning(settings: Settings) -> Tuning:
    """How the watch for drift is tuned."""
    return Tuning(tolerance=settings.drift_tolerance)


def _pulse(device: Device) -> tuple[float | None, tuple[str, ...]]:
    """The clock of a GPU in MHz and what holds it down; nothing where its driver does not tell.

    One that waits for its host or its data lowers its clock, which says nothing of the work.
    """
    found = ask_driver(device, lambda gpu: gpu.pulse())
    if isinstance(found, str):
        return None, ()
    clock_mhz, reasons = found[0], found[1] or ()
    return None if IDLE in reasons else clock_mhz, reasons


def _telemetry(identity: RunIdentity, settings: Settings) -> Telemetry | None:
    """The way out, or None where no collector or scrape port is named; OpenTelemetry is loaded only where one is."""
    from mfu_sdk.export.destination import configured

    if not configured(provider=settings.provider) and not settings.prometheus_port:
        return None
    from mfu_sdk.export.telemetry import Telemetry

    return Telemetry.open(identity, settings)


def devices_of(
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


def _peaks(
    model: nn.Module | None, device: str | torch.device | None, settings: Settings, telemetry: Telemetry | None
) -> Peaks:
    if settings.calibrate == "off":
        return known_peaks(device, settings=settings)
    started = time.time_ns()
    try:
        found, measured = current(device, _dtypes_in_use(model, device), QUICK_BUDGET_S, settings=settings)
    except Exception as error:  # noqa: BLE001 - no room on the device, a driver's error: whatever it is
        # Without a measurement FLOPs are still worth counting, and there may be a peak on paper or a sister's.
        found = known_peaks(device, settings=settings)
        warn_once("calibration", f"{type(error).__name__}: {error}; the run goes on with {_next_best(found)}")
        return found
    if measured and telemetry is not None:
        telemetry.calibration(found, started, time.time_ns())
    return found


def calibrate_between(
    ledger: Ledger,
    model: nn.Module | None,
    devices: str | torch.device | Sequence[str | torch.device] | None,
    budget_s: float,
    settings: Settings,
) -> list[Peaks]:
    """The peak measured in the middle of a run, entered into its books; empty, with a warning, where it cannot be.

    Of several devices of one process the first stands for all, as at the start.
    """
    device = devices_of(model, devices)[0]
    # Not every dtype that was ever measured here: half a second is short, and fp32 runs as the user has it now.
    dtypes = _dtypes_in_use(model, device)
    started = time.time_ns()
    try:
        found = in_situ(device, dtypes, budget_s, settings=settings)
    except Exception as error:  # noqa: BLE001 - no room on the device, a driver's error: whatever it is
        warn_once("run.calibrate", f"{type(error).__name__}: {error}; the run goes on with {_next_best(ledger.peaks)}")
        return []
    before = ledger.peaks
    ledger.recalibrated(found)
    if ledger.telemetry is not None:
        ledger.telemetry.calibration(found, started, time.time_ns())
        ledger.telemetry.peak_ratios(_ratios(found, before, dtypes))
    return [found]


def _ratios(found: Peaks, before: Peaks, dtypes: Sequence[str] | None) -> dict[str, float]:
    """What was measured just now, which is `dtypes` or all, over what had been measured before."""
    ratios = {}
    for dtype, rate in before.achievable.items():
        if dtypes is not None and dtype not in dtypes:
            continue
        now = found.state.get(f"{dtype}_in_situ_flops_per_s")
        if isinstance(now, float) and now > 0 and rate.flops_per_s > 0:
            ratios[dtype] = now / rate.flops_per_s
    return ratios


def _next_best(found: Peaks) -> str:
    """What a run is held against that could not be calibrated."""
    headline = found.headline("bfloat16") or found.headline("float32")
    if headline is None:
        return "no peak, and its MFU is unknown"
    dtype, rate = headline
    return f"{rate.flops_per_s / 1e12:,.1f} TFLOP/s {dtype} ({rate.source})"


def _dtypes_in_use(model: nn.Module | None, device: str | torch.device | None) -> tuple[str, ...] | None:
    """The dtypes that a run on a GPU needs the rates of, as far as can be seen before it starts; None on a processor.

    bf16 (fp16 before Ampere) is what published MFU is held against. To it come those of the parameters, fp32 ones as
    they are multiplied here (TF32 or not), and autocast's.
    """
    import torch

    target = resolve(device)
    if target.kind != "cuda":
        return None
    from mfu_sdk.counting.precision import products_allow_tf32
    from mfu_sdk.peak.cuda import known_dtypes, measurable

    found = {"bfloat16": None} if measurable(target.torch_name, ("bfloat16",)) else {"float16": None}
    if torch.is_autocast_enabled("cuda"):
        found[str(torch.get_autocast_dtype("cuda")).removeprefix("torch.")] = None
    for parameter in model.parameters() if model is not None else ():
        name = str(parameter.dtype).removeprefix("torch.")
        found["tf32" if name == "float32" and products_allow_tf32() else name] = None
    return measurable(target.torch_name, tuple(dtype for dtype in found if dtype in known_dtypes()))
