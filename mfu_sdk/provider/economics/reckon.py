"""A ledger and what ran in it to the money of a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, get_args

from mfu_sdk.provider.economics.accounts import Account, Interval, accounts, revenue_of, sold_tokens, worth
from mfu_sdk.provider.economics.capacity import Capacity
from mfu_sdk.provider.economics.cents import apportioned, cents
from mfu_sdk.provider.economics.incidence import Incidence, incidence
from mfu_sdk.provider.economics.inputs import HOUR_NS, PFLOP_HOUR, Ledger, Trust
from mfu_sdk.provider.economics.planning import NewHardware, Plan, new_hardware, pairs, plans
from mfu_sdk.provider.economics.pricing import Call, Claim, Tier, calls, tiers
from mfu_sdk.provider.economics.waterfall import STAGES, Cell, Waterfall

# Less would be told as 0.0 GPU-hours, and clocks of hosts and records differ by seconds.
_WORTH_SAYING_NS: Final = HOUR_NS // 20

MOSTLY_OBSERVED: Final = 0.9
"""Below this share of the held hours, cost per useful PFLOP-hour of the owned fleet is said to be an upper bound."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the waterfall: its hours, what they cost, and its share of the owned hours.

    `cost` is None without a cost book that covers all of the hours. The `low` and `high` ends are of stages that hang
    on the expected MFU (unattainable, kernel_gap), where that came with an interval: what one of the two has less, the
    other has more, so that the ends do not add up beside one another.
    """

    stage: str
    gpu_hours: float
    cost: float | None
    share: float
    gpu_hours_low: float | None = None
    gpu_hours_high: float | None = None
    cost_low: float | None = None
    cost_high: float | None = None


@dataclass(frozen=True, slots=True)
class Economics:
    """The money of a window, in `currency`; per *owned* GPU-hour unless the name says otherwise.

    `cost_is_upper_bound` says that the true `cost_per_useful_pflop_hour` may be lower: more than a tenth of the held
    hours was not observed, and counts as if it did nothing. `cost_per_million_tokens` is of the held hours of inference
    allocations over their tokens; that of training stands beside. `attainable_cost_per_useful_pflop_hour` is what the
    observed hours' cost would be over the work that they could have done at the expected MFU. The waterfall's hours
    add up to the owned ones, its costs to `cost`, to the cent. `notes` are sentences on what the figures leave out.
    `trust` are the GPU-hours of steps by what stands behind them: the provider's own counters (witnessed), that they
    contradict none of its records (consistent), their word alone (claimed), nothing (contradicted). Advice on prices is
    built on the first two.
    """

    currency: str
    owned_gpu_hours: float
    cost: float
    revenue: float | None
    margin: float | None
    useful_pflop_hours: float
    cost_per_useful_pflop_hour: float | None
    cost_per_useful_pflop_hour_observed: float | None
    cost_is_upper_bound: bool
    attainable_cost_per_useful_pflop_hour: Interval | None
    revenue_per_gpu_hour: float | None
    margin_per_gpu_hour: float | None
    margin_per_useful_pflop_hour: float | None
    cost_per_million_tokens: float | None
    cost_per_million_training_tokens: float | None
    delivered_value: Interval | None
    efficiency_gap: Interval | None
    waterfall: tuple[Stage, ...]
    incidence: tuple[Incidence, ...]
    gpu_types: tuple[Account, ...]
    nodes: tuple[Account, ...]
    tenants: tuple[Account, ...]
    workloads: tuple[Account, ...]
    plans: tuple[Plan, ...]
    new_hardware: tuple[NewHardware, ...]
    tiers: tuple[Tier, ...]
    calls: tuple[Call, ...]
    notes: tuple[str, ...]
    trust: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What planning needs beyond the window: queued GPUs and capex by GPU type, growth of the work, when types came."""

    queued_gpus: Mapping[str, float]
    growth: float | None
    capex_per_gpu: Mapping[str, float]
    first_owned: Mapping[str, int]


def reckon(
    ledger: Ledger,
    found: Waterfall,
    capacity: Capacity,
    peaks: Mapping[str, float],
    outlook: Outlook,
    claims: Sequence[Claim],
    currency: str,
    notes: Sequence[str],
    elsewhere_hours: float = 0.0,
) -> Economics:
    """The economics of a ledger whose hours all have a cost. Pure.

    `elsewhere_hours` are those of steps on GPUs that other tenants hold: contradicted, and in nothing but that.
    """
    cost = sum((node.cost or Fraction(0) for node in ledger.owned), Fraction(0))
    hours = Fraction(sum(node.owned_ns for node in ledger.owned), HOUR_NS)
    revenue, unpriced = _revenue(ledger, found)
    margin = None if revenue is None else revenue - cost
    useful = sum(one.useful_flops for one in found.splits) / PFLOP_HOUR
    observed = sum((cell.cost or Fraction(0) for cell in _observed(found)), Fraction(0))
    value = worth(ledger, found)
    held_seen = capacity.allocated_observed_share
    return Economics(
        currency=currency,
        owned_gpu_hours=float(hours),
        cost=round(cost * 100) / 100,
        revenue=None if revenue is None else round(revenue * 100) / 100,
        margin=None if margin is None else round(margin * 100) / 100,
        useful_pflop_hours=useful,
        cost_per_useful_pflop_hour=float(cost) / useful if useful else None,
        cost_per_useful_pflop_hour_observed=float(observed) / useful if useful else None,
        cost_is_upper_bound=held_seen is not None and held_seen < MOSTLY_OBSERVED,
        attainable_cost_per_useful_pflop_hour=_attainable(found),
        revenue_per_gpu_hour=_over(revenue, hours),
        margin_per_gpu_hour=_over(margin, hours),
        margin_per_useful_pflop_hour=float(margin) / useful if margin is not None and useful else None,
        cost_per_million_tokens=_per_million(ledger, found, training=False),
        cost_per_million_training_tokens=_per_million(ledger, found, training=True),
        delivered_value=None if value is None else value.delivered,
        efficiency_gap=None if value is None else value.gap,
        waterfall=stages(found),
        incidence=incidence(ledger, found),
        gpu_types=accounts(ledger, found, "gpu_type"),
        nodes=accounts(ledger, found, "node"),
        tenants=accounts(ledger, found, "tenant"),
        workloads=accounts(ledger, found, "workload"),
        plans=plans(ledger, found, peaks, outlook.queued_gpus, outlook.growth, outlook.capex_per_gpu),
        new_hardware=new_hardware(pairs(ledger, found.splits, outlook.first_owned)),
        tiers=tiers(ledger, found),
        calls=calls(ledger, found, claims, currency),
        notes=(*notes, *unpriced, *_doubts(found)),
        trust=_trust(found, elsewhere_hours),
    )


def stages(found: Waterfall) -> tuple[Stage, ...]:
    """The waterfall's stages, in order and all of them; their costs in whole cents add up to the rounded whole."""
    sums = found.by_stage()
    whole = sum(ns for ns, _ in sums.values())
    costs = [cost for _, cost in sums.values() if cost is not None]
    in_cents = apportioned(costs) if len(costs) == len(STAGES) else [None] * len(STAGES)
    return tuple(
        Stage(
            stage,
            sums[stage][0] / HOUR_NS,
            None if cents is None else cents / 100,
            sums[stage][0] / whole if whole else 0.0,
            *_ends(stage, found, sums),
        )
        for stage, cents in zip(STAGES, in_cents, strict=True)
    )


_Ends = tuple[float | None, float | None, float | None, float | None]


def _ends(stage: str, found: Waterfall, sums: Mapping[str, tuple[int, Fraction | None]]) -> _Ends:
    """Least and most GPU-hours of a stage, least and most cost."""
    bounds = found.unattainable
    if bounds is None or stage not in ("unattainable", "kernel_gap"):
        return None, None, None, None
    low_ns, high_ns, low, high = bounds.least_ns, bounds.most_ns, bounds.least_cost, bounds.most_cost
    if stage == "kernel_gap":
        both_ns = sums["unattainable"][0] + sums["kernel_gap"][0]
        low_ns, high_ns = both_ns - high_ns, both_ns - low_ns
        one, other = sums["unattainable"][1], sums["kernel_gap"][1]
        both = None if one is None or other is None else one + other
        low, high = _less(both, high), _less(both, low)
    return low_ns / HOUR_NS, high_ns / HOUR_NS, _rounded(low), _rounded(high)


def _less(whole: Fraction | None, part: Fraction | None) -> Fraction | None:
    return None if whole is None or part is None else whole - part


def _rounded(amount: Fraction | None) -> float | None:
    """To the cent, as the stages are."""
    return None if amount is None else cents(amount) / 100


def _trust(found: Waterfall, elsewhere_hours: float) -> dict[str, float]:
    hours: dict[str, float] = dict.fromkeys(get_args(Trust), 0.0) | {"contradicted": elsewhere_hours}
    for one in found.splits:
        hours[one.used.trust] += (one.step_ns + one.gpu_ns["unobserved"]) / HOUR_NS
    return hours


def _observed(found: Waterfall) -> list[Cell]:
    return [cell for cell in found.cells if cell.held is not None and cell.stage != "unobserved"]


def _revenue(ledger: Ledger, found: Waterfall) -> tuple[Fraction | None, list[str]]:
    """All revenue, None where some is unknown; a sentence for each price that is missing."""
    rows: dict[int, list[int]] = {}
    for place, one in enumerate(found.splits):
        rows.setdefault(one.used.held, []).append(place)
    total: Fraction | None = Fraction(0)
    missing: dict[str, int] = {}
    for index, held in enumerate(ledger.held):
        used = [found.splits[place].used for place in rows.get(index, [])]
        brought = revenue_of(held, used)
        if brought is None:
            if held.contract == "per_token" and held.per_million_tokens is not None:
                reason = f"{held.tenant} pays by the token and sent none: its revenue is unknown"
            else:
                reason = f"no price for {held.tenant}, {held.contract}, {held.gpu_type} over all of the time it held"
            missing[reason] = missing.get(reason, 0) + held.gpu_ns
            total = None
        elif total is not None:
            total += brought
    return total, [f"Revenue: {reason} ({ns / HOUR_NS:,.1f} GPU-hours)." for reason, ns in missing.items()]


def _attainable(found: Waterfall) -> Interval | None:
    """Cost of the hours of steps with an expectation, over the work that they could have done at it."""
    work = [0.0, 0.0, 0.0]
    cost = 0.0
    has_interval = False
    rates: dict[int, float] = {}
    for cell in found.cells:
        if cell.held is not None and cell.cost is not None:
            rates[cell.held] = float(cell.cost) / cell.gpu_ns
    for one in found.splits:
        row, reachable = one.used, one.used.reachable
        if reachable is None or not one.step_ns:
            continue
        cost += rates[row.held] * one.step_ns
        has_interval = has_interval or row.has_interval
        for place, expected in enumerate(reachable):
            work[place] += expected * row.peak_flops_per_s * one.step_ns / 1e9 / PFLOP_HOUR
    least, mid, most = work
    if not mid:
        return None
    return Interval(cost / most, cost / mid, cost / least) if has_interval else Interval(None, cost / mid, None)


def _per_million(ledger: Ledger, found: Waterfall, *, training: bool) -> float | None:
    tokens = sold_tokens(found.splits, training=training)
    if tokens is None or not tokens[0]:
        return None
    cost = sum((ledger.held[index].cost or Fraction(0) for index in tokens[1]), Fraction(0))
    return float(cost) * 1e6 / tokens[0]


def _doubts(found: Waterfall) -> list[str]:
    sentences = []
    if found.excess_ns >= _WORTH_SAYING_NS:
        sentences.append(
            f"{found.excess_ns / HOUR_NS:,.1f} GPU-hours of steps do not fit into the time that their allocations hold,"
            " and were cut in proportion: check the allocations' times."
        )
    exact = sum(one.step_ns for one in found.splits if one.expected and not one.used.has_interval)
    if exact and found.unattainable is not None:
        sentences.append(
            f"{exact / HOUR_NS:,.1f} GPU-hours of steps have an expected MFU without an interval, and are taken at it"
            " in every interval."
        )
    blind = sum(one.step_ns for one in found.splits if not one.expected)
    if blind:
        sentences.append(
            f"{blind / HOUR_NS:,.1f} GPU-hours of steps have no expected MFU: what is unattainable of them is in the"
            " kernel gap."
        )
    return sentences


def _over(amount: Fraction | None, hours: Fraction) -> float | None:
    return float(amount / hours) if amount is not None and hours else None
