"""The truth file: every fault with what it truly cost, every workload that is well, and the sums that were sent."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mfu_sdk.provider.simulate import slices
from mfu_sdk.provider.simulate.faults import Injected
from mfu_sdk.provider.simulate.ledger import Account
from mfu_sdk.provider.simulate.prices import CURRENCY, cost_per_hour
from mfu_sdk.provider.simulate.workload import Plan, Serving, Sliced, Workload

VERSION = 1
MATERIAL = 0.05
"""The counterfactual loss from which a fault matters: the definition of the benchmark, not a rule's threshold."""

_ALSO = {
    # One hot GPU of several is slow, and the others wait for it: whoever says so is not wrong.
    ("thermal_or_power", "hot_gpu"): ("straggler",),
    ("thermal_or_power", "hot_machine"): ("straggler",),
    ("thermal_or_power", "power_cap"): ("straggler",),
}


def truth(plan: Plan, accounts: Mapping[tuple[str, str], Account], zero_ns: int) -> dict[str, Any]:
    """The content of the truth file."""
    when = _When(zero_ns)
    faults = [
        _fault(workload, fault, accounts[workload.tenant, workload.name], when)
        for workload in plan.workloads
        for fault in workload.faults
    ]
    faults += [_stranded(plan, each, each.fault, when) for each in plan.sliced if each.fault is not None]
    sent = list(accounts.values())
    model, available = (sum(getattr(each, name) for each in sent) for name in ("model_flops", "available_flops"))
    true_model, true_available = (
        sum(getattr(each, name) for each in sent) for name in ("true_model_flops", "true_available_flops")
    )
    return {
        "version": VERSION,
        "seed": plan.seed,
        "since": when.iso(0.0),
        "until": when.iso(plan.duration_s),
        "gpus": plan.gpus,
        "material_share": MATERIAL,
        "fleet": {
            "model_flop": model,
            "available_flop": available,
            "mfu": model / available if available else None,
            "true_mfu": true_model / true_available if true_available else None,
            "spans": sum(each.spans for each in sent),
        },
        "faults": faults,
        "workloads": [_workload(each, accounts[each.tenant, each.name], when) for each in plan.workloads],
        "sliced_gpus": [
            {"host": each.seat.host, "gpu": each.seat.index, "nature": each.nature, "layouts": [
                {"from": when.iso(at_s), "layout": list(layout)} for at_s, layout in each.layouts
            ]}
            for each in plan.sliced
        ],
    }  # fmt: skip


class _When:
    def __init__(self, zero_ns: int) -> None:
        self._zero_ns = zero_ns

    def iso(self, at_s: float) -> str:
        return datetime.fromtimestamp(self._zero_ns / 1e9 + at_s, UTC).isoformat(timespec="seconds")


def _fault(workload: Workload, fault: Injected, account: Account, when: _When) -> dict[str, Any]:
    if fault.kind == "idle_allocation":
        share = _idle_share(workload, fault)
    else:
        share = account.losses[fault].share if fault in account.losses else 0.0
    hosts = sorted({seat.host for seat in workload.seats})
    if fault.kind in ("straggler", "thermal_or_power") or fault.variant == "nic_downgraded":
        hosts = [workload.seats[fault.rank].host]
    until_s = min(fault.end_s, workload.held_until_s)
    return _entry(fault, share, workload.devices, cost_per_hour(workload.gpu.name), when, until_s) | {
        "tenant": workload.tenant,
        "workload": workload.name,
        "run_ids": account.run_ids,
        "hosts": hosts,
        "gpu_type": workload.gpu.name,
        "signals": None if workload.signals is None else sorted(workload.signals),
        "dcgm": workload.dcgm,
    }


def _idle_share(workload: Workload, fault: Injected) -> float:
    if isinstance(workload.what, Serving):
        return max(1, round(fault.severity * workload.what.replicas)) / workload.what.replicas
    return 1.0


def _stranded(plan: Plan, cut: Sliced, fault: Injected, when: _When) -> dict[str, Any]:
    """A GPU with free slices: the share of its time and slices that somebody waited for in vain."""
    rows = [(at_s, profile) for at_s, profile, waiting in plan.queue if waiting and fault.holds(at_s)]
    steps = max(1, sum(1 for at_s, _, _ in plan.queue if fault.holds(at_s)))
    lost = 0.0
    for at_s, profile in rows:
        layout = next(found for since_s, found in reversed(cut.layouts) if since_s <= at_s)
        lost += slices.stranded(layout, (profile,))
    return _entry(fault, lost / steps, 1.0, cost_per_hour(cut.gpu.name), when, fault.end_s) | {
        "tenant": None,
        "workload": None,
        "run_ids": [],
        "hosts": [cut.seat.host],
        "gpu": cut.seat.index,
        "gpu_type": cut.gpu.name,
        "signals": None,
        "dcgm": False,
    }


def _entry(
    fault: Injected, share: float, devices: float, cost_per_gpu_hour: float, when: _When, until_s: float
) -> dict[str, Any]:
    hours = max(0.0, until_s - fault.onset_s) / 3600 * devices
    return {
        "cause": fault.kind,
        "variant": fault.variant,
        "severity": fault.severity,
        "onset": when.iso(fault.onset_s),
        "end": when.iso(until_s),
        "loss_share": share,
        "material": share >= MATERIAL,
        "gpu_hours": hours,
        "money": {"currency": CURRENCY, "cost": share * hours * cost_per_gpu_hour},
        "also": list(_ALSO.get((fault.kind, fault.variant), ())),
    }


def _workload(workload: Workload, account: Account, when: _When) -> dict[str, Any]:
    return {
        "tenant": workload.tenant,
        "workload": workload.name,
        "nature": workload.nature,
        "healthy": not workload.faults,
        "gpu_type": workload.gpu.name,
        "gpus": workload.devices,
        "hosts": sorted({seat.host for seat in workload.seats}),
        "run_ids": account.run_ids,
        "since": when.iso(workload.start_s),
        "until": when.iso(workload.held_until_s),
        "signals": None if workload.signals is None else sorted(workload.signals),
        "dcgm": workload.dcgm,
        "model_flop": account.model_flops,
        "available_flop": account.available_flops,
        "mfu": account.model_flops / account.available_flops if account.available_flops else None,
    }
