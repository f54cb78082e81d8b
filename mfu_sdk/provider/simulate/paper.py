"""The provider's files for a simulated fleet: inventory, prices, tokens, in the form of docs/how-to/provider.md."""

from datetime import UTC, datetime
from typing import Any

from mfu_sdk.provider.simulate import prices
from mfu_sdk.provider.simulate.outgoing import PROVIDER
from mfu_sdk.provider.simulate.workload import Plan


def inventory(plan: Plan, zero_ns: int) -> dict[str, Any]:
    """Nodes, allocations, MIG layouts and the queue."""
    allocations = []
    for workload in plan.workloads:
        by_host: dict[str, list[str]] = {}
        for seat in workload.seats:
            by_host.setdefault(seat.host, []).append(seat.hardware_id)
        for host, uuids in by_host.items():
            row: dict[str, Any] = {
                "tenant": workload.tenant, "workload": workload.name, "allocation_id": workload.allocation_id,
                "host": host, "gpus": len(uuids), "gpu_uuids": uuids, "contract": workload.contract,
                "from": iso(zero_ns, workload.start_s), "until": iso(zero_ns, workload.held_until_s),
            }  # fmt: skip
            if workload.seats[0].mig_profile is not None:
                row["profile"] = workload.seats[0].mig_profile
            allocations.append(row)
    # Owned since the day before, and for good.
    bought = iso(zero_ns, -86400.0)
    return {
        "nodes": [
            {"host": host.name, "region": host.region, "gpu_type": host.gpu.name, "gpus": len(host.uuids),
             "gpu_uuids": list(host.uuids), "link": host.link, "fabric": host.fabric, "from": bought}
            for host in plan.hosts
        ],
        "allocations": allocations,
        "mig": [
            {"host": each.seat.host, "gpu": each.seat.index, "layout": list(layout), "from": iso(zero_ns, at_s)}
            for each in plan.sliced
            for at_s, layout in each.layouts
        ],
        "queue": [
            {"profile": profile, "waiting": waiting, "at": iso(zero_ns, at_s)} for at_s, profile, waiting in plan.queue
        ],
    }  # fmt: skip


def price_book(plan: Plan, zero_ns: int) -> dict[str, Any]:
    """Prices and costs since the year before the fleet's time."""
    since = f"{datetime.fromtimestamp(zero_ns / 1e9, UTC).year - 1}-01-01"
    types = [name for name in prices.gpu_types() if any(host.gpu.name == name for host in plan.hosts)]
    per_token = sorted({each.tenant for each in plan.workloads if each.contract == "per_token"})
    return {
        "currency": prices.CURRENCY,
        "prices": [
            *({"gpu_type": name, "contract": "on_demand", "per_gpu_hour": prices.price_per_hour(name, "on_demand"),
               "from": since} for name in types),
            *({"gpu_type": name, "contract": "reserved", "per_gpu_hour": prices.price_per_hour(name, "reserved"),
               "commitment_hours": prices.COMMITMENT_HOURS, "from": since} for name in types),
            *({"tenant": tenant, "contract": "per_token", "per_million_tokens": prices.PER_MILLION_TOKENS,
               "from": since} for tenant in per_token),
        ],
        "costs": [{"gpu_type": name, "per_gpu_hour": prices.cost_per_hour(name), "from": since} for name in types],
    }  # fmt: skip


def tokens(plan: Plan) -> dict[str, Any]:
    """Who may send and read: the tenants, the provider's exporters, and an operator."""
    others = ("operator", PROVIDER)
    return {
        "tenants": {name: [{"token": token}] for name, token in plan.tokens.items() if name not in others},
        "operators": {"operator": [{"token": plan.tokens["operator"]}]},
        "providers": {PROVIDER: [{"token": plan.tokens[PROVIDER]}]},
    }


def iso(zero_ns: int, at_s: float) -> str:
    """A moment of virtual time."""
    return datetime.fromtimestamp(zero_ns // 10**9 + round(at_s), UTC).isoformat().replace("+00:00", "Z")
