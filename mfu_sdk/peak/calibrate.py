"""The peak of a device: measured when asked for, kept, and read back while everything that moves it is the same."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mfu_sdk.errors import CalibrationError, ConfigurationError
from mfu_sdk.peak.device import Device, driver_view, resolve, silicon
from mfu_sdk.peak.key import DEVICE, key_of, same_kind
from mfu_sdk.peak.merge import compiled, lasting, longer, merged, of_tier, winners
from mfu_sdk.peak.protocol import SUSTAINED, Progress, Sustain, share_of
from mfu_sdk.peak.results import STALE_S, History, Results
from mfu_sdk.peak.theory import Theory, theoretical
from mfu_sdk.records import Collectives, Peaks
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    import torch

    from mfu_sdk.peak.bench import Tier

_PROBE_S = 0.3
_AFTER_S = 0.1
_COOLED_S = 3600.0
"""After an hour a rate that heat held down is measured again."""


def calibrate(
    device: str | torch.device | None = None,
    dtypes: Sequence[str] | None = None,
    budget_s: float = 3.0,
    sustained: bool = False,
    *,
    collectives: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Peaks:
    """Measure the peak of `device` within about `budget_s` seconds, keep it, and return it.

    On a processor: fp32 matrix products, bf16 ones where it has instructions for them, and copies; `dtypes` may only
    be ("float32",). On a CUDA device: matrix products in each of `dtypes` ("bfloat16", "float16", "tf32" and "float32"
    unless given; "float8_e4m3fn", "float8_e5m2" and "int8" too), by the vendor's library and by Triton, and copies;
    what was measured earlier is kept. A kernel that would have to be compiled first is left out where the budget has
    no time for it, and the state says which ("bfloat16_not_tried").

    `sustained` heats the device for a minute and measures for 25 seconds more for each dtype (on a processor: for 85
    seconds in all), on top of the budget. Such a rate is preferred to one of a first look for a week.

    With `collectives` also, first and in a budget of its own, all-reduce, all-gather, reduce-scatter and all-to-all
    between the ranks of each host, between hosts and between all ranks. That is a collective act: all ranks of the
    default process group must call this, with the same arguments. One that does not come within 30 seconds is named in
    the error that the others get. Without it, those measured earlier are kept.

    `progress` is told what is being measured and how much of the time is gone (0..1). What the device could do on paper
    is beside what it did, as in `peaks`. Raises `ConfigurationError` for a device, dtype or budget that cannot be, or
    for collectives without a process group; `CalibrationError` if it went wrong or a CUDA graph is being captured.
    """
    settings = settings or Settings.from_env()
    target = resolve(device)
    if not budget_s > 0:
        raise ConfigurationError(f"budget_s={budget_s}: must be above 0 seconds; 3 is enough for a first look")
    _check_dtypes(target, dtypes)
    tier: Tier = "sustained" if sustained else "burst"
    heard = progress or _unheard
    together = _measure_collectives(budget_s, heard) if collectives else None
    return _measured(target, dtypes, budget_s, tier, settings, heard, together=together)


def in_situ(
    device: str | torch.device | None,
    dtypes: Sequence[str] | None,
    budget_s: float = 1.0,
    *,
    settings: Settings | None = None,
) -> Peaks:
    """Measure `device` between two steps of a run, at the run's own heat and clocks; keep it like `calibrate`.

    The first half of the time is dropped. To be called by all ranks at once, for GPUs of one machine share their power
    and their cooling.
    """
    target = resolve(device)
    return _measured(target, dtypes, budget_s, "in situ", settings or Settings.from_env(), _unheard)


def peaks(device: str | torch.device | None = None, *, settings: Settings | None = None) -> Peaks:
    """What is known of `device`: what it could do on paper, and its cached calibration.

    `theoretical` holds dense rates at the vendor's reference clock, or at NVML's maximum where no reference clock is
    known; each says so in its `source`. `state["bfloat16_at_max_clock_flops_per_s"]` and the like give them at the
    maximum. A rate that cannot be told is absent, and `state["theory_missing"]` says why; a processor has none at all.
    Without a calibration `state["missing"]` names the remedy, and `achievable` holds what another device of the same
    product reached, if one was measured here: its `source` says "prior" and whose it is.
    """
    target = resolve(device)
    results, key = _results(settings or Settings.from_env()), key_of(target)
    found = results.load(key)
    if found is None:
        former = results.former(key, DEVICE)
        remedy = (
            f"no calibration of {target.name} under this configuration"
            + ("" if former is None else f" ({former})")
            + "; run `mfu calibrate`"
        )
        prior = None if target.kind == "cpu" else results.prior(key, same_kind)
        found = prior or Peaks(target.torch_name, {}, {}, None, None, {})
        found = replace(found, device=target.torch_name, state={"missing": remedy})
    return _with_theory(found, target)


def current(
    device: str | torch.device | None, dtypes: Sequence[str] | None, budget_s: float, *, settings: Settings
) -> tuple[Peaks, bool]:
    """What a run starts with, and whether anything was measured for it.

    A calibration that is there is read back. One older than a week is held against a short probe first, and measured
    again where the probe lies outside its interval; so is one that a run has shown to be too low. A dtype of `dtypes`
    that is missing is measured.
    """
    target = resolve(device)
    found = peaks(device, settings=settings)
    known = {dtype: rate for dtype, rate in found.achievable.items() if rate.source.startswith("calibrated")}
    wanted = tuple(dtypes or known) if target.kind != "cpu" else tuple(known)
    missing = tuple(dtype for dtype in wanted if dtype not in known and f"{dtype}_missing" not in found.state)
    wanted = tuple(dtype for dtype in wanted if dtype in known)
    hot = "degraded" in found.state and min((rate.age_s for rate in known.values()), default=0.0) > _COOLED_S
    if not known or "suspect" in found.state or hot:
        return _measured(target, dtypes, budget_s, "burst", settings, _unheard), True
    if missing:
        return _measured(target, missing, budget_s, "burst", settings, _unheard), True
    if max((known[dtype].age_s for dtype in wanted), default=0.0) <= STALE_S:
        return found, False
    return _probed(target, found, wanted, budget_s, settings), True


def suspect(device: str | torch.device | None, why: str, *, settings: Settings) -> None:
    """Remember that the calibration of `device` cannot be right, so that the next run measures again."""
    target = resolve(device)
    results, key = _results(settings), key_of(target)
    if (found := results.load(key)) is not None:
        results.save(key, replace(found, state={**found.state, "suspect": why}), results.history(key))


def theory_of(device: Device) -> Theory:
    """What a CUDA or ROCm device could do on paper."""
    return _theory_with_clock(device)[0]


def _theory_with_clock(device: Device) -> tuple[Theory, int | None]:
    import torch

    view = driver_view(device)
    identity = None if isinstance(view, str) else view[0]
    properties = torch.cuda.get_device_properties(device.torch_name)
    of = silicon(properties, identity, hip=torch.version.hip is not None)
    found = theoretical(of)
    if isinstance(view, str) and found.missing is not None:
        found = replace(found, missing=f"{found.missing}; {view}")
    return found, of.max_clock_mhz


def _with_theory(found: Peaks, target: Device) -> Peaks:
    # Made anew each time and never cached: the next version's tables may know more.
    return found if target.kind == "cpu" else with_theory(found, theory_of(target))


def with_theory(found: Peaks, theory: Theory) -> Peaks:
    """`found` with the rates of `theory`, and in its state those at the highest clock and what is missing."""
    state = dict(found.state)
    for dtype, rate in theory.at_max_clock.items():
        state[f"{dtype}_at_max_clock_flops_per_s"] = rate.flops_per_s
    if theory.missing is not None:
        state["theory_missing"] = theory.missing
    return replace(found, theoretical=theory.headline, state=state)


# --- measuring, and keeping what was measured ------------------------------------------------------------------------


def _measured(
    target: Device,
    dtypes: Sequence[str] | None,
    budget_s: float,
    tier: Tier,
    settings: Settings,
    progress: Progress,
    sustained: Sustain = SUSTAINED,
    together: Collectives | None = None,
) -> Peaks:
    began_s = time.perf_counter()
    results, key = _results(settings), key_of(target)
    known = results.load(key)
    if tier == "burst":
        # What it took to find the device is of the budget too, and so is what comes after: the batch that is under way
        # at its end, and writing.
        budget_s = max(0.5 * budget_s, budget_s - (time.perf_counter() - began_s) - min(_AFTER_S, 0.1 * budget_s))
    if target.kind == "cpu":
        found = _measure_cpu(target, budget_s, tier, results.history(key), progress, sustained)
    else:
        found = _measure_cuda(target, dtypes, budget_s, tier, results.history(key), known, progress, sustained)
    # Another process may have written meanwhile.
    history, earlier = results.history(key), results.load(key)
    named = {f"{dtype}_{tier}_flops_per_s".replace(" ", "_"): r.flops_per_s for dtype, r in found.achievable.items()}
    found = replace(found, state={**found.state, **named})
    if "degraded" not in found.state:
        # A run that heat or a power brake held down says nothing of how runs differ.
        history = longer(history, found, tier)
    if together is not None:
        told = {} if together.missing is None else {"collectives_missing": together.missing}
        found = replace(found, collectives=together.rates, state={**found.state, **told})
    whole = found if earlier is None else merged(earlier, found)
    results.save(key, whole, history)
    return _with_theory(whole, target)


def _measure_cpu(
    target: Device, budget_s: float, tier: Tier, history: History, progress: Progress, sustained: Sustain
) -> Peaks:
    from mfu_sdk.peak import cpu

    # A processor is measured while others use it, at its heat: a longer look is all that the other tiers are.
    found = cpu.measure(
        max(budget_s, sustained.total_s) if tier == "sustained" else budget_s, progress, of_tier(history, tier)
    )
    return Peaks(
        device=target.torch_name,
        theoretical={},
        achievable=found.products,
        memory=found.memory,
        clock_mhz=None,
        state={"name": target.name, "tier": tier, **found.state},
        memory_by_size=found.memory_by_size,
        calibration_id=_new_id(),
    )


def _measure_cuda(
    target: Device,
    dtypes: Sequence[str] | None,
    budget_s: float,
    tier: Tier,
    history: History,
    earlier: Peaks | None,
    progress: Progress,
    sustained: Sustain,
    *,
    probe: bool = False,
) -> Peaks:
    from mfu_sdk.peak import cuda
    from mfu_sdk.peak.bench import CLOCK, Plan
    from mfu_sdk.peak.watch import watching

    theory, max_clock_mhz = _theory_with_clock(target)
    wanted = cuda.measurable(target.torch_name, dtypes or cuda.DTYPES)
    if not wanted:
        raise CalibrationError(f"{target.name} has no instructions for {', '.join(dtypes or ())}; leave the dtypes out")
    if tier == "sustained":
        # The winner is looked for among all candidates, compiled for it where they have to be.
        budget_s = max(budget_s, cuda.COMPARED_S * (len(wanted) + 1))
    expected = {dtype: rate.flops_per_s for dtype, rate in theory.headline.items()}
    known = compiled(earlier)
    counts = tier != "burst" or budget_s >= cuda.COMPARED_S or CLOCK in known
    with watching(target, allow_probe=counts) as watch:
        plan = Plan(
            tier, watch.floor, of_tier(history, tier), sustained, winners(earlier),
            only_winners=probe or tier == "in situ",
        )  # fmt: skip
        found = cuda.measure(
            target.torch_name, wanted, budget_s, plan, progress, clock=watch.clock_mhz,
            counted=watch.counted_mhz if watch.counts else None, expected=expected, compiled=known,
        )  # fmt: skip
        state: dict[str, str | float | bool] = {"name": target.name, "tier": tier, **found.state, **watch.state()}
        state["measured_on"] = platform.node()
    for dtype, series in found.series.items():
        at_max = theory.at_max_clock.get(dtype)
        if at_max is not None and max_clock_mhz:
            # What it runs at where a kernel has counted it, else what the driver says.
            share = share_of(found.counted.get(dtype) or series.batches, at_max.flops_per_s / (max_clock_mhz * 1e6))
            if share is not None:
                state[f"{dtype}_efficiency"] = round(share, 4)
    clocks = [clock for series in found.series.values() if (clock := series.clock_mhz) is not None]
    return Peaks(
        device=target.torch_name,
        theoretical={},
        achievable=found.rates,
        memory=found.memory,
        clock_mhz=clocks[0] if clocks else None,
        state=state,
        calibration_id=_new_id(),
    )


def _probed(target: Device, found: Peaks, dtypes: Sequence[str], budget_s: float, settings: Settings) -> Peaks:
    """`found` made fresh by a probe that agrees with it, else measured anew."""
    results, key = _results(settings), key_of(target)
    history = results.history(key)
    share_s = _PROBE_S * (len(dtypes) + (target.kind == "cpu"))
    if target.kind == "cpu":
        probe = _measure_cpu(target, share_s, "burst", {}, _unheard, SUSTAINED)
    else:
        probe = _measure_cuda(target, dtypes, share_s, "burst", {}, found, _unheard, SUSTAINED, probe=True)
    for dtype in dtypes:
        new, old = probe.achievable.get(dtype), found.achievable[dtype]
        then = found.state.get(f"{dtype}_burst_flops_per_s", old.flops_per_s)
        # Sustained rates lie below what a probe shows: it is held against the first look of that day.
        shift = float(then) / old.flops_per_s
        if new is None or not old.low * shift <= new.flops_per_s <= old.high * shift:
            return _measured(target, dtypes, budget_s, "burst", settings, _unheard)
    fresh = {dtype: replace(rate, age_s=0.0) for dtype, rate in found.achievable.items() if dtype in dtypes}
    kept = replace(
        found,
        theoretical={},
        achievable={**found.achievable, **fresh},
        # A probe of a GPU has no time for its memory: that keeps its own age.
        state={name: value for name, value in lasting(found.state).items() if not name.endswith("_missing")},
    )
    results.save(key, kept, history)
    return _with_theory(kept, target)


def _measure_collectives(budget_s: float, progress: Progress) -> Collectives:
    from mfu_sdk.peak import collectives
    from mfu_sdk.peak.nvml import path_between

    return collectives.measure(budget_s=budget_s, link_between=path_between, progress=progress)


def _check_dtypes(target: Device, dtypes: Iterable[str] | None) -> None:
    if target.kind == "cpu":
        known: tuple[str, ...] = ("float32",)
    else:
        from mfu_sdk.peak import cuda

        known = cuda.known_dtypes()
    for dtype in dtypes or ():
        if dtype not in known:
            raise ConfigurationError(f"dtypes={dtype!r}: on {target.torch_name} choose among {', '.join(known)}")


def _unheard(_label: str, _share: float) -> None:
    """Where nobody wants to know how far a calibration is."""


def _new_id() -> str:
    return uuid.uuid4().hex[:16]


def _results(settings: Settings) -> Results:
    return Results(settings.resolved_cache_dir() / "calibrations", now=time.time)
