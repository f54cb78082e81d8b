"""What each GPU type, node, tenant and workload cost, brought and did."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from mfu_sdk.provider.economics.cents import apportioned
from mfu_sdk.provider.economics.inputs import PFLOP_HOUR, Held, Ledger, Used
from mfu_sdk.provider.economics.waterfall import Cell, Split, Waterfall

Level = Literal["gpu_type", "node", "tenant", "workload"]
_Name = tuple[str | None, str | None, str | None, str | None]

# Which of (GPU type, host, tenant, workload) name a member of a level, and whether it is of held hours alone.
_LEVELS: Final[dict[Level, tuple[tuple[bool, bool, bool, bool], bool]]] = {
    "gpu_type": ((True, False, False, False), False),
    "node": ((True, True, False, False), False),
    "tenant": ((False, False, True, False), True),
    "workload": ((True, False, True, True), True),
}
_AT_WORK = ("prefill", "decode", "inference")
"""The phases whose tokens are sold; those of training are another product."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An amount at the expected MFU, and at the ends of its interval; None where no expectation came with one."""

    low: float | None
    mid: float
    high: float | None


@dataclass(frozen=True, slots=True)
class Account:
    """One GPU type, node, tenant or workload; the names that are not its level's are None.

    `gpu_hours` and `cost` are of owned hours for a GPU type or node, of held ones for a tenant or workload.
    `attained` = MFU / expected MFU over the steps that have both. `efficiency_gap` is the list value of observed hours
    less that of the hours which the same work takes at the expected MFU. `tokens` are those that count: not of steps
    that were done again; None where some were trained on and others served. What a missing price leaves open is None,
    and so is the work of hours that were held and not observed at all.
    """

    gpu_type: str | None
    host: str | None
    tenant: str | None
    workload: str | None
    gpu_hours: float
    cost: float
    revenue: float | None
    margin: float | None
    useful_gpu_hours: float | None
    useful_pflop_hours: float | None
    cost_per_useful_pflop_hour: float | None
    attained: float | None
    efficiency_gap: Interval | None
    tokens: float | None
    tokens_per_gpu_hour: float | None
    cost_per_million_tokens: float | None
    largest_loss: str | None


@dataclass(frozen=True, slots=True)
class Worth:
    """What work is worth at list: hours at the expected MFU, and those that it took. In amounts of the currency."""

    delivered: Interval
    gap: Interval


def revenue_of(held: Held, rows: Iterable[Used]) -> Fraction | None:
    """What an allocation brings; None where its price, or the tokens that it is priced by, are unknown."""
    if held.contract is None:
        return Fraction(0)
    if held.contract != "per_token":
        return held.bill
    if held.per_million_tokens is None:
        return None
    tokens = [row.tokens_good for row in rows if row.tokens_good is not None]
    # A tenant by the token of whom no tokens were seen is unknown revenue, not none.
    return Fraction(sum(tokens)) * held.per_million_tokens / 10**6 if tokens else None


def attained(splits: Iterable[Split]) -> float | None:
    """MFU / expected MFU over the steps that have both: Σ useful hours / Σ expected MFU × hours."""
    known = [one for one in splits if one.expected and one.step_ns]
    reachable = sum((one.used.expected_mfu or 0.0) * one.step_ns for one in known)
    return sum(one.gpu_ns["useful"] for one in known) / reachable if reachable else None


def worth(ledger: Ledger, found: Waterfall) -> Worth | None:
    """Delivered value and efficiency gap at list over observed hours; None where a list price or all expectation lacks.

    Hours whose expectation is unknown are in neither; one without an interval counts as exact. Work is worth at most
    the hours that it took.
    """
    delivered = [0.0, 0.0, 0.0]
    whole = 0.0
    seen = has_interval = False
    prices: dict[int, float] = {}
    for one in found.splits:
        held = ledger.held[one.used.held]
        reachable = one.used.reachable
        if reachable is None or not held.gpu_ns:
            continue
        if held.list_value is None:
            return None
        seen = True
        price = prices.get(one.used.held)
        if price is None:
            price = prices[one.used.held] = float(held.list_value) / held.gpu_ns
        whole += price * one.step_ns
        has_interval = has_interval or one.used.has_interval
        # The less is expected, the more of it was delivered.
        for place, expected in enumerate(reversed(reachable)):
            delivered[place] += price * min(one.step_ns, one.gpu_ns["useful"] / expected)
    if not seen:
        return None
    idle = 0.0
    for cell in found.cells:
        if cell.stage == "idle" and cell.list_value is not None:
            idle += float(cell.list_value)
    low, mid, high = delivered
    whole += idle
    if not has_interval:
        return Worth(Interval(None, mid, None), Interval(None, whole - mid, None))
    return Worth(Interval(low, mid, high), Interval(whole - high, whole - mid, whole - low))


def accounts(ledger: Ledger, found: Waterfall, level: Level) -> tuple[Account, ...]:
    """An account for each of a level's members, most cost first; hours that nobody holds are no tenant's."""
    kept, held_only = _LEVELS[level]

    def name(gpu_type: str, host: str, tenant: str | None, workload: str | None) -> _Name:
        return (
            gpu_type if kept[0] else None,
            host if kept[1] else None,
            tenant if kept[2] else None,
            workload if kept[3] else None,
        )

    cells: dict[_Name, list[Cell]] = {}
    for cell in found.cells:
        if cell.tenant is not None or not held_only:
            cells.setdefault(name(cell.gpu_type, cell.host, cell.tenant, cell.workload), []).append(cell)
    splits: dict[_Name, list[Split]] = {}
    for one in found.splits:
        held = ledger.held[one.used.held]
        splits.setdefault(name(held.gpu_type, held.host, held.tenant, one.used.workload), []).append(one)
    costs = [_cost(ledger, members) for members in cells.values()]
    in_cents = apportioned(costs)
    rows = [
        _account(ledger, key, members, splits.get(key, []), cost)
        for (key, members), cost in zip(cells.items(), in_cents, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: (-row.cost, row.gpu_type or "", row.host or "", row.tenant or "")))


def _account(ledger: Ledger, name: _Name, cells: Sequence[Cell], splits: Sequence[Split], cost_cents: int) -> Account:
    cost = cost_cents / 100
    revenue = _revenue(ledger, cells, splits)
    # Of hours that were held and not seen nobody knows what they did.
    unseen = not splits and any(cell.stage == "unobserved" for cell in cells)
    flops = sum(one.useful_flops for one in splits)
    tokens = _tokens(splits)
    hours = sum(cell.gpu_ns for cell in cells) / 3.6e12
    losses = {cell.stage: 0 for cell in cells}
    for cell in cells:
        losses[cell.stage] += cell.gpu_ns
    worst = max((stage for stage in losses if stage != "useful"), key=lambda s: losses[s], default=None)
    value = worth(ledger, Waterfall(tuple(cells), tuple(splits), 0)) if splits else None
    return Account(
        *name,
        hours,
        cost,
        None if revenue is None else float(revenue),
        None if revenue is None else float(revenue) - cost,
        None if unseen else losses.get("useful", 0) / 3.6e12,
        None if unseen else flops / PFLOP_HOUR,
        cost * PFLOP_HOUR / flops if flops else None,
        attained(splits),
        None if value is None else value.gap,
        tokens,
        None if tokens is None or not hours else tokens / hours,
        cost * 1e6 / tokens if tokens else None,
        worst,
    )


def _cost(ledger: Ledger, cells: Iterable[Cell]) -> Fraction:
    """What cells cost, those of one allocation together: fractions are slow, and a fleet has many cells."""
    ns: dict[int, int] = {}
    total = Fraction(0)
    for cell in cells:
        if cell.held is None:
            total += cell.cost or Fraction(0)
        else:
            ns[cell.held] = ns.get(cell.held, 0) + cell.gpu_ns
    for index, gpu_ns in ns.items():
        held = ledger.held[index]
        if held.cost is not None and held.gpu_ns:
            total += held.cost * gpu_ns / held.gpu_ns
    return total


def _tokens(splits: Iterable[Split]) -> float | None:
    known = [one.used for one in splits if one.used.tokens_good is not None]
    if len({row.phase in _AT_WORK for row in known}) != 1:
        return None
    return sum(row.tokens_good or 0.0 for row in known)


def _revenue(ledger: Ledger, cells: Iterable[Cell], splits: Iterable[Split]) -> Fraction | None:
    """Hours billed by these cells' part of their allocations, tokens by these rows."""
    rows: dict[int, list[Used]] = {}
    for one in splits:
        rows.setdefault(one.used.held, []).append(one.used)
    ns: dict[int, int] = {}
    for cell in cells:
        if cell.held is not None:
            ns[cell.held] = ns.get(cell.held, 0) + cell.gpu_ns
    total = Fraction(0)
    for index, gpu_ns in ns.items():
        held = ledger.held[index]
        brought = revenue_of(held, rows.get(index, ()))
        if brought is None:
            return None
        total += brought if held.contract == "per_token" else brought * gpu_ns / held.gpu_ns
    return total


def sold_tokens(splits: Iterable[Split], *, training: bool) -> tuple[float, tuple[int, ...]] | None:
    """Tokens that count, of inference or of training, and the allocations that made them; None where none are known."""
    known = [
        one.used for one in splits if one.used.tokens_good is not None and (one.used.phase in _AT_WORK) is not training
    ]
    if not known:
        return None
    return sum(row.tokens_good or 0.0 for row in known), tuple(sorted({row.held for row in known}))
