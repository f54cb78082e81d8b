"""What a GPU's driver says that moves an MFU measured on it: clocks, power, heat, neighbours, memory, bus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mfu_sdk.doctor.finding import Finding
from mfu_sdk.peak.nvml import Counters, Gpu, Health, Identity, Port, State, counters, port

# Event reasons by which the hardware itself halves the clock or worse.
_HARDWARE = frozenset({"hardware slowdown", "hardware thermal slowdown", "power brake"})
_COOLING, _SUPPLY = "look at cooling", "look at the power supply"
_REMEDIES = {
    "application clocks": "nvidia-smi -rac and -rgc undo what someone set",
    "software power cap": "its limit binds, as it may at full load",
    "software thermal slowdown": _COOLING,
    "hardware thermal slowdown": _COOLING,
    "power brake": _SUPPLY,
}
# Of the limits that a GPU counts, those that a healthy one does not meet; a power limit binds at full load.
_ILL = ("thermal", "software thermal slowdown", "hardware thermal slowdown", "power brake")
# Below this share of the time since boot a limit is not worth a line.
_WORTH_SAYING = 0.01


@dataclass(frozen=True, slots=True)
class View:
    """All that NVML says of one device; what was not asked is None."""

    identity: Identity
    state: State
    health: Health | None = None
    port: Port | None = None
    counters: Counters | None = None


def view_of(gpu: Gpu) -> View:
    """Everything that the doctor asks of `gpu`."""
    return View(gpu.identity(), gpu.state(), gpu.health(), port(gpu), counters(gpu))


def gpu_findings(view: View | str, process: int, uptime_s: float | None = None) -> Iterator[Finding]:
    """What is right and wrong with a GPU; `view` may be the sentence that says why NVML tells nothing.

    `process` is the one that asks. `uptime_s` are the seconds since this machine started, the longest that a driver's
    counters can have counted.
    """
    if isinstance(view, str):
        yield Finding("driver", "note", view)
        return
    identity, state = view.identity, view.state
    yield Finding(
        "driver", "good",
        f"{identity.driver or 'unknown version'}, product {identity.product or 'unknown'}"
        f" ({identity.brand or 'brand unknown'}), ECC {_switch(identity.ecc)}",
    )  # fmt: skip
    yield from _mig(identity, state)
    yield _clock(identity, state)
    yield from _settings(identity, state)
    yield from _held(view.counters, uptime_s)
    yield from _memory(identity, view.health)
    yield from _bus(view.port)
    if shared := [other for other in state.processes or () if other != process]:
        yield Finding(
            "processes",
            "note",
            f"{', '.join(map(str, shared))} use this device (in a container, this process may be one of them): "
            "what they take is missing in MFU; stop them or measure elsewhere",
        )


def _mig(identity: Identity, state: State) -> Iterator[Finding]:
    if identity.slice is None:
        if identity.mig:
            yield Finding(
                "mig", "note",
                "the GPU is partitioned, and which of its slices this is, is not known: neither are its neighbours; "
                "set CUDA_VISIBLE_DEVICES to the slice's MIG-UUID",
            )  # fmt: skip
        return
    own = (
        f"a slice{f' ({identity.profile})' if identity.profile else ''} of {identity.slice.sm_count} SMs and "
        f"{identity.slice.memory_bytes / 2**30:.1f} GiB"
    )
    siblings, busy = identity.siblings, state.busy_siblings
    if siblings == 0:
        yield Finding("mig", "good", f"{own}; it has no neighbours on its GPU that can be seen from here")
    elif busy == 0:
        yield Finding("mig", "good", f"{own}; its GPU's {siblings} other slices are idle now")
    else:
        others = "an unknown number" if busy is None else str(busy)
        yield Finding(
            "mig", "note",
            f"{own}; {others} of {'an unknown number of' if siblings is None else siblings} other slices are at work "
            "and share its GPU's power and clock: MFU moves with them; ask for the whole GPU to be rid of them",
        )  # fmt: skip


def _clock(identity: Identity, state: State) -> Finding:
    now = f"{_or_unknown(state.sm_clock_mhz)} of {_or_unknown(identity.max_sm_clock_mhz)} MHz"
    limits = tuple(event for event in state.events or () if event != "idle")
    if not limits:
        idle = " (idle)" if state.events else ""
        return Finding("clock", "good", now + idle)
    # "hardware slowdown" alone may be either, and more than one kind of heat has one remedy.
    wanted = [_REMEDIES[limit] for limit in limits if limit in _REMEDIES]
    wanted += [_COOLING, _SUPPLY] if limits == ("hardware slowdown",) else []
    return Finding(
        "clock", "bad" if _HARDWARE.intersection(limits) else "note",
        f"{now}, held down by: {', '.join(limits)}; " + "; ".join(("MFU will read low", *dict.fromkeys(wanted))),
    )  # fmt: skip


def _settings(identity: Identity, state: State) -> Iterator[Finding]:
    """Limits that someone set. A default application clock below the maximum is the vendor's, and does not bind."""
    clock, usual = state.application_clock_mhz, identity.default_application_clock_mhz
    if clock is not None and usual is not None and clock < usual:
        yield Finding(
            "clock", "note",
            f"application clocks are set to {clock} MHz, {usual} is the default: MFU will read low; "
            "nvidia-smi -rac resets them",
        )  # fmt: skip
    limit, default = state.power_limit_w, identity.default_power_limit_w
    if limit is not None and default is not None and limit < default:
        yield Finding(
            "power", "note",
            f"limited to {limit:.0f} of {default:.0f} W: clocks fall under load, MFU reads low; "
            f"nvidia-smi -pl {default:.0f} gives them back",
        )  # fmt: skip


def _held(counted: Counters | None, uptime_s: float | None) -> Iterator[Finding]:
    """Heat and power brakes since the driver was loaded, which was after the machine started."""
    if counted is None or not uptime_s:
        return
    for limit in _ILL:
        held = counted.held.get(limit)
        share = 0.0 if held is None else held.total_s / uptime_s
        if held is not None and share >= _WORTH_SAYING:
            # More than there was of it: the machine's clock is not what the counter counts by.
            of_it = f", at least {share:.0%} of its time" if share <= 1 else ""
            yield Finding(
                "throttled", "note",
                f"{limit}: {_hours(held.total_s)} since the driver was loaded{of_it}: expect it again under load; "
                f"{_SUPPLY if limit == 'power brake' else _COOLING}",
            )  # fmt: skip
            # The thermal policy is the sum of the other two kinds of heat.
            return


def _memory(identity: Identity, health: Health | None) -> Iterator[Finding]:
    if identity.ecc is not None and identity.ecc_pending is not None and identity.ecc != identity.ecc_pending:
        yield Finding(
            "ecc", "note",
            f"{_switch(identity.ecc)} now, {_switch(identity.ecc_pending)} after the next reset: rates measured before "
            "it will not hold after it; reset the GPU, then run `mfu calibrate`",
        )  # fmt: skip
    if health is None:
        return
    if health.uncorrected_errors:
        yield Finding(
            "ecc", "bad",
            f"{health.uncorrected_errors} uncorrected error{'' if health.uncorrected_errors == 1 else 's'} since the "
            "driver was loaded: results and speed are not to be trusted; reset this GPU (nvidia-smi -r), and have it "
            "looked at if they come back",
        )  # fmt: skip
    if health.remap_failed:
        yield Finding("ecc", "bad", "a broken row of memory has no spare left: have this GPU replaced")
    elif health.remap_pending or health.retirement_pending:
        yield Finding("ecc", "note", "broken memory waits for a reset to be taken out of use: nvidia-smi -r")


def _bus(found: Port | None) -> Iterator[Finding]:
    if found is not None and found.lanes is not None and found.max_lanes is not None and found.lanes < found.max_lanes:
        yield Finding(
            "pcie", "note",
            f"{found.lanes} of {found.max_lanes} lanes: copies to and from the host take "
            f"{found.max_lanes / found.lanes:.0f} times as long; look at the slot",
        )  # fmt: skip


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _switch(on: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[on]


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)
