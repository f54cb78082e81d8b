"""Everything about one window: the books as they stand and the roll-up's sums in, capacity and money out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.attempts import NOTHING, Redone
from mfu_sdk.provider.books import CostBook, Holdings, Inventory, PriceBook, Snapshot, mig
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.economics.adapt import Testimony, adapted, claims_of, reference_peaks
from mfu_sdk.provider.economics.capacity import Capacity, capacity
from mfu_sdk.provider.economics.inputs import Ledger
from mfu_sdk.provider.economics.ledger import ledger
from mfu_sdk.provider.economics.reckon import Economics, Outlook, Stage, reckon, stages
from mfu_sdk.provider.economics.waterfall import Waterfall, waterfall
from mfu_sdk.provider.rollup import Usage

NO_BOOKS = (
    "No money: the provider's books are not given. Name both, --prices FILE (prices and costs) and --inventory FILE"
    " (nodes and allocations)."
)


@dataclass(frozen=True, slots=True)
class Assessment:
    """Capacity and hours where there is an inventory, money where there are costs too; `missing` says what is not.

    `trust` is what stands behind each of the roll-up's rows that are in them, by `Usage.identity`.
    """

    capacity: Capacity | None
    hours: tuple[Stage, ...]
    economics: Economics | None
    missing: str | None
    ledger: Ledger | None = None
    waterfall: Waterfall | None = None
    trust: Testimony = field(default_factory=dict)


def assess(
    books: Snapshot,
    usages: Sequence[Usage],
    since_unix_ns: int,
    until_unix_ns: int,
    findings: Iterable[Mapping[str, Any]] = (),
    growth: float | None = None,
    done_again: Redone = NOTHING,
    testimony: Testimony = MappingProxyType({}),
    outside_s: Mapping[tuple[str, str, str], float] = MappingProxyType({}),
    contests: Sequence[Contested] = (),
) -> Assessment:
    """What the books and `usages`, the sums of all tenants in [since, until), say together.

    `findings` are over the same time, mappings with the keys of the report's `causes`; `growth` is the share by which
    model FLOPs grew over the range before; `done_again` is what of them later attempts did again, `testimony` what is
    known of rows beside their tenants' word, `outside_s` are seconds of steps, by tenant, host and device, at times
    when the tenant held nothing there, `contests` are steps on GPUs that are somebody else's.
    """
    if books.inventory is None:
        lacks = "the inventory is not given; name it with --inventory FILE (nodes and allocations)."
        return Assessment(None, (), None, NO_BOOKS if books.costs is None else f"No money: {lacks}")
    holdings = Holdings(books.inventory)
    rows = ledger(holdings, books.costs, books.prices, since_unix_ns, until_unix_ns)
    if not rows.owned:
        return Assessment(None, (), None, "No money: the inventory owns nothing in this time; see `from` of its nodes.")
    types = {node.gpu_type for node in rows.owned}
    peaks = reference_peaks(types, usages)
    claims = claims_of(findings)
    found = adapted(rows, holdings, usages, peaks, claims, done_again, testimony, outside_s, contests)
    fall = waterfall(found.ledger, found.used)
    factors = capacity(found.ledger, fall, peaks)
    missing = _missing(books.costs, found.ledger)
    if missing is not None or books.costs is None:
        return Assessment(factors, stages(fall), None, missing, found.ledger, fall, found.trust)
    outlook = Outlook(
        _queued(books.inventory, types, since_unix_ns, until_unix_ns),
        growth,
        _capex(books.costs, types, until_unix_ns - 1),
        {gpu_type: _first(books.inventory, gpu_type) for gpu_type in types},
    )
    notes = (*found.notes, *_strangers(books.prices, books.inventory))
    money = reckon(
        found.ledger, fall, factors, peaks, outlook, claims, books.costs.currency, notes, found.elsewhere_hours
    )
    return Assessment(factors, stages(fall), money, None, found.ledger, fall, found.trust)


def _missing(costs: CostBook | None, rows: Ledger) -> str | None:
    if costs is None:
        return "No money: the price and cost books are not given; name them with --prices FILE (prices and costs)."
    without = sorted({node.gpu_type for node in rows.owned if node.cost is None})
    if not without:
        return None
    return (
        f"No money: `costs` has no row for {', '.join(without)} over all of this time; add one, or correct its dates."
    )


def _strangers(prices: PriceBook | None, inventory: Inventory) -> list[str]:
    """A sentence on prices of tenants that no allocation names: one that is misspelt pays another price."""
    known = {allocation.tenant for allocation in inventory.allocations}
    names = sorted({price.tenant for price in prices.prices if price.tenant is not None} - known) if prices else []
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"`prices` has rows for {shown}, and no allocation names them: check how they are spelt in both."]


def _queued(inventory: Inventory, types: Iterable[str], since_unix_ns: int, until_unix_ns: int) -> dict[str, float]:
    """Mean GPUs that waited, by type: a MIG profile is its share of the first type that has it."""
    moments: dict[str, dict[int, int]] = {}
    for sample in inventory.queue:
        if since_unix_ns <= sample.at_unix_ns < until_unix_ns:
            at = moments.setdefault(sample.profile, {})
            at[sample.at_unix_ns] = at.get(sample.at_unix_ns, 0) + sample.waiting
    waiting: dict[str, float] = {}
    for profile, at in moments.items():
        mean = sum(at.values()) / len(at)
        for gpu_type in sorted(types):
            share = _share(gpu_type, profile)
            if share is not None:
                waiting[gpu_type] = waiting.get(gpu_type, 0.0) + mean * share
                break
    return waiting


def _share(gpu_type: str, profile: str) -> float | None:
    if profile == gpu_type:
        return 1.0
    try:
        return float(mig.profile(gpu_type, profile).sm_share)
    except ConfigurationError:
        return None


def _capex(costs: CostBook, types: Iterable[str], at_unix_ns: int) -> dict[str, float]:
    found = {gpu_type: costs.capex(gpu_type, at_unix_ns) for gpu_type in types}
    return {gpu_type: float(price) for gpu_type, price in found.items() if price is not None}


def _first(inventory: Inventory, gpu_type: str) -> int:
    return min(node.since_unix_ns or 0 for node in inventory.nodes if node.gpu_type == gpu_type)
