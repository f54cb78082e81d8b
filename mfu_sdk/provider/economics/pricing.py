"""Advice on prices and on whom to call, from rows that were witnessed or contradict nothing the provider knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from mfu_sdk.provider.economics.accounts import attained
from mfu_sdk.provider.economics.inputs import HOUR_NS, TRUSTED, Ledger
from mfu_sdk.provider.economics.waterfall import Split, Waterfall

TIERS: Final = ((0.9, "at least 90 %"), (0.7, "70 to 90 %"), (0.5, "50 to 70 %"), (0.0, "below 50 %"))
"""Tiers by MFU / expected MFU."""
_HOURLY: Final = ("on_demand", "reserved")
# Nothing to call a tenant about: a doubtful count, room between slices that the provider cut, and nobody knows what.
_NO_CALL: Final = frozenset({"accounting", "mig_fragmentation", "unknown"})


@dataclass(frozen=True, slots=True)
class Claim:
    """What a finding over the window says: a cause of a workload in one phase, the share of its step time, the remedy.

    With `run_id` it is of the configuration of that run alone. Of `idle_allocation` the share is not used: what is idle
    is known from the allocations.
    """

    tenant: str
    workload: str | None
    gpu_type: str | None
    cause: str
    loss_share: float
    confidence: float
    remedy: str
    world_size: int | None = None
    phase: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """Tenants by the hour whose attained share of the expected MFU lies in one range.

    Priced by delivered hours (those that their work takes at the expected MFU) at one rate for all, these tenants
    would pay `neutral_price_per_gpu_hour` for the hours they hold, `change` from what they pay: a discount below
    zero, a surcharge above. Over all tiers the revenue stays what it is.
    """

    attained: str
    tenants: tuple[str, ...]
    gpu_hours: float
    price_per_gpu_hour: float
    neutral_price_per_gpu_hour: float
    change: float


@dataclass(frozen=True, slots=True)
class Call:
    """A tenant to call about a workload: `money` is what its loss cost `borne_by`, `sentence` what to say.

    For a tenant by the hour it is that part of its bill, for one by the token the cost of the hours.
    """

    tenant: str
    workload: str | None
    cause: str
    money: float
    gpu_hours: float
    borne_by: str
    confidence: float
    sentence: str


def tiers(ledger: Ledger, found: Waterfall) -> tuple[Tier, ...]:
    """The tiers that have tenants, best first; none where no trusted tenant by the hour has a price and expectation."""
    splits: dict[str, list[Split]] = {}
    for one in found.splits:
        if one.used.trust in TRUSTED and ledger.held[one.used.held].contract in _HOURLY:
            splits.setdefault(ledger.held[one.used.held].tenant, []).append(one)
    tenants = []
    for tenant, rows in splits.items():
        share = attained(rows)
        held = [ledger.held[index] for index in {one.used.held for one in rows}]
        if share is None or any(one.bill is None for one in held):
            continue
        hours = sum(one.gpu_ns for one in held) / HOUR_NS
        bill = float(sum((one.bill or Fraction(0) for one in held), Fraction(0)))
        tenants.append((tenant, min(share, 1.0), hours, bill))
    delivered = sum(share * hours for _, share, hours, _ in tenants)
    if not delivered:
        return ()
    rate = sum(bill for *_, bill in tenants) / delivered
    rows_out = []
    upper = float("inf")
    for least, name in TIERS:
        members = [row for row in tenants if least <= row[1] < upper]
        upper = least
        hours, bill = sum(row[2] for row in members), sum(row[3] for row in members)
        if not hours or not bill:
            continue
        neutral = rate * sum(row[1] * row[2] for row in members) / hours
        names = tuple(sorted(row[0] for row in members))
        rows_out.append(Tier(name, names, hours, bill / hours, neutral, neutral / (bill / hours) - 1))
    return tuple(rows_out)


def calls(ledger: Ledger, found: Waterfall, claims: Sequence[Claim], currency: str) -> tuple[Call, ...]:
    """Whom to call, most money first. Workloads of which any row is only claimed are left out.

    Rows name the places in `claims` that are about them.
    """
    of_claim: dict[int, list[Split]] = {}
    for one in found.splits:
        for place in one.used.claims:
            of_claim.setdefault(place, []).append(one)
    idle: dict[int, int] = {}
    for cell in found.cells:
        if cell.stage == "idle" and cell.held is not None:
            idle[cell.held] = idle.get(cell.held, 0) + cell.gpu_ns
    rows = []
    for place, claim in enumerate(claims):
        splits = of_claim.get(place, [])
        if not splits or claim.cause in _NO_CALL or any(one.used.trust not in TRUSTED for one in splits):
            continue
        lost: dict[int, float] = {}
        for one in splits:
            if claim.cause == "idle_allocation":
                lost[one.used.held] = float(idle.get(one.used.held, 0))
            else:
                share = min(1.0, max(0.0, claim.loss_share))
                lost[one.used.held] = lost.get(one.used.held, 0.0) + share * one.step_ns
        call = _call(ledger, claim, lost, currency)
        if call is not None:
            rows.append(call)
    return tuple(sorted(rows, key=lambda row: (-row.money, row.tenant, row.workload or "", row.cause)))


def _call(ledger: Ledger, claim: Claim, lost_ns: Mapping[int, float], currency: str) -> Call | None:
    money = hours = 0.0
    by_token = False
    for index, ns in lost_ns.items():
        held = ledger.held[index]
        by_token = held.contract == "per_token"
        worth = held.cost if held.bill is None else held.bill
        if worth is not None and held.gpu_ns:
            hours += ns / HOUR_NS
            money += ns * float(worth / held.gpu_ns)
    if money < 0.005:
        return None
    paid = "It cost us" if by_token else "You paid"
    sentence = (
        f"{claim.workload or 'Your workload'}: {claim.remedy} {paid} {currency} {money:,.0f} for it in this time"
        f" ({hours:,.0f} GPU-hours)."
    )
    bearer = "provider" if by_token else "tenant"
    return Call(claim.tenant, claim.workload, claim.cause, money, hours, bearer, claim.confidence, sentence)
