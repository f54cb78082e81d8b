"""What a point of MFU is worth in GPUs that need not be bought, and whether new hardware paid."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mfu_sdk.provider.economics.inputs import HOUR_NS, PFLOP_HOUR, TRUSTED, Ledger
from mfu_sdk.provider.economics.waterfall import Split, Waterfall

_OUTSIDE = frozenset({"unavailable", "unsold", "mig_stranded", "unobserved"})


@dataclass(frozen=True, slots=True)
class Plan:
    """One GPU type. `gpus` are the mean number that was held and observed; `mfu` is theirs, at the reference peak.

    At one point (0.01) more MFU the work of `gpus_per_point` = gpus × 0.01 / mfu GPUs is done beside. That many need
    not be bought as far as somebody wants them: `demand_gpus` wait in the queue or are the growth of the work over the
    range before. `gpus_avoided` is the lesser, None where no demand is known; `capex_avoided` is its price to buy.
    """

    gpu_type: str
    gpus: float
    mfu: float | None
    gpus_per_point: float | None
    demand_gpus: float | None
    gpus_avoided: float | None
    capex_avoided: float | None


@dataclass(frozen=True, slots=True)
class Side:
    """What one intent's work cost on one GPU type: hours of its steps, their cost, its useful FLOPs."""

    gpu_type: str
    gpu_hours: float
    cost: float
    useful_flops: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The same intent (model, batch, sequence, dtype, layout), in one phase, on an older and on a newer GPU type."""

    intent: str
    before: Side
    after: Side


@dataclass(frozen=True, slots=True)
class NewHardware:
    """Older against newer GPUs on matched intents, weighted by the work that now runs on the newer.

    `cost_per_useful_pflop_hour_before` is what that work would have cost on the older; `saved` is the difference over
    the work that was done.
    """

    before: str
    after: str
    intents: int
    useful_pflop_hours: float
    cost_per_useful_pflop_hour_before: float
    cost_per_useful_pflop_hour_after: float
    saved: float


def plans(
    ledger: Ledger,
    found: Waterfall,
    peaks: Mapping[str, float],
    queued_gpus: Mapping[str, float],
    growth: float | None,
    capex_per_gpu: Mapping[str, float],
) -> tuple[Plan, ...]:
    """A plan for every GPU type that is held; `growth` is the share by which work grew, None where unknown."""
    window_ns = ledger.until_unix_ns - ledger.since_unix_ns
    held: dict[str, int] = {}
    for cell in found.cells:
        if cell.stage not in _OUTSIDE:
            held[cell.gpu_type] = held.get(cell.gpu_type, 0) + cell.gpu_ns
    flops: dict[str, float] = {}
    for one in found.splits:
        flops[one.used.gpu_type] = flops.get(one.used.gpu_type, 0.0) + one.claimed_flops
    rows = []
    for gpu_type, ns in sorted(held.items(), key=lambda item: -item[1]):
        gpus, peak = ns / window_ns, peaks.get(gpu_type)
        mfu = flops.get(gpu_type, 0.0) / (peak * ns / 1e9) if peak else None
        wanted = [
            *([queued_gpus[gpu_type]] if gpu_type in queued_gpus else []),
            *([max(0.0, growth) * gpus] if growth is not None else []),
        ]
        demand = sum(wanted) if wanted else None
        rows.append(plan(gpu_type, gpus, mfu, demand, capex_per_gpu.get(gpu_type)))
    return tuple(rows)


def plan(gpu_type: str, gpus: float, mfu: float | None, demand_gpus: float | None, capex: float | None) -> Plan:
    """The plan of one type; `capex` is the price of one GPU, with its share of all that is bought with it."""
    per_point = gpus * 0.01 / mfu if mfu else None
    avoided = min(per_point, demand_gpus) if per_point is not None and demand_gpus is not None else None
    worth = avoided * capex if avoided is not None and capex is not None else None
    return Plan(gpu_type, gpus, mfu, per_point, demand_gpus, avoided, worth)


def pairs(ledger: Ledger, splits: Iterable[Split], first_owned: Mapping[str, int]) -> tuple[Pair, ...]:
    """Every intent that ran on several GPU types: the type that was owned first against the one owned last.

    Of rows that are witnessed or consistent: a purchase should not rest on a tenant's word.
    """
    sides: dict[tuple[str, str], dict[str, Side]] = {}
    for one in splits:
        held, intent = ledger.held[one.used.held], one.used.intent
        if intent is None or not one.step_ns or held.cost is None or not held.gpu_ns:
            continue
        if one.used.trust not in TRUSTED:
            continue
        of = sides.setdefault((intent, one.used.phase or ""), {})
        old = of.get(held.gpu_type, Side(held.gpu_type, 0.0, 0.0, 0.0))
        of[held.gpu_type] = Side(
            held.gpu_type,
            old.gpu_hours + one.step_ns / HOUR_NS,
            old.cost + float(held.cost) * one.step_ns / held.gpu_ns,
            old.useful_flops + one.useful_flops,
        )
    found = []
    for (intent, _), of in sorted(sides.items()):
        in_order = sorted(of.values(), key=lambda side: (first_owned.get(side.gpu_type, 0), side.gpu_type))
        if len(in_order) > 1 and first_owned.get(in_order[0].gpu_type, 0) < first_owned.get(in_order[-1].gpu_type, 0):
            found.append(Pair(intent, in_order[0], in_order[-1]))
    return tuple(found)


def new_hardware(matched: Iterable[Pair]) -> tuple[NewHardware, ...]:
    """What moving to the newer type did, by pair of types; intents without useful work on both sides tell nothing."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in matched:
        if pair.before.useful_flops > 0 and pair.after.useful_flops > 0:
            groups.setdefault((pair.before.gpu_type, pair.after.gpu_type), []).append(pair)
    rows = []
    for (before, after), members in sorted(groups.items()):
        work = sum(pair.after.useful_flops for pair in members) / PFLOP_HOUR
        then = sum(pair.before.cost / pair.before.useful_flops * pair.after.useful_flops for pair in members)
        now = sum(pair.after.cost for pair in members)
        intents = len({pair.intent for pair in members})
        rows.append(NewHardware(before, after, intents, work, then / work, now / work, then - now))
    return tuple(rows)
