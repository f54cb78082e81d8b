"""What other tenants reach with the same work, as far as one tenant may be told: a level that three stand behind.

The same work is one intent (model, batch, sequence, dtype, layout) in one phase on one GPU type. A level is the
geometric mean of what each of at least three *other* tenants reached there in one whole week, tenants alike, to two
digits. Each of these words stands against a way to work out what one of them did:

- *other*: of a mean that holds the asker's own figure the asker can take it out again.
- *three*, each with an hour of a GPU at least, of rows that are witnessed or consistent (`economics.inputs.Trust`): a
  made-up tenant, or one that ran for a minute, stands for nobody. How many there were is not told: that it rose from
  three to four would say what the fourth did.
- *tenants alike*: of Σ FLOPs / Σ available FLOPs the largest tenant would be most. A median is somebody's own figure.
- *one whole week*, from Monday to Monday in UTC, over for a day, whatever range is asked for: two answers are of the
  same rows or of none in common, so that no difference of two is a day of somebody's.
- *once*: a week's levels are kept as they were first told while the daemon runs, so that what comes late or is found
  out later is no difference either. After a restart they are reckoned anew.

What is left: who holds the tokens of two tenants can take one of them out of what the other is told, and who holds
those of two of the three others knows the third.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import exp, log
from typing import Final, NamedTuple

from mfu_sdk.provider import economics, findings, rollup
from mfu_sdk.provider.books import Holdings, Snapshot
from mfu_sdk.provider.causes import testimony
from mfu_sdk.provider.contested import contested
from mfu_sdk.provider.economics.adapt import Testimony
from mfu_sdk.provider.economics.inputs import TRUSTED
from mfu_sdk.provider.outside import outside
from mfu_sdk.provider.rollup import Range, Sums, Usage, ratio, total
from mfu_sdk.provider.store import Store

LEAST_TENANTS: Final = 3
"""Other tenants that a level stands on."""
LEAST_HOURS: Final = 1.0
"""Of GPUs at the same work in the week, for a tenant to be one of them."""

SETTLES_NS: Final = 86_400 * 10**9
"""How long a week is over before it is told: what comes late is in it then."""

_DAY_NS: Final = 86_400 * 10**9
_WEEK_NS: Final = 7 * _DAY_NS
_MONDAY_NS: Final = 4 * _DAY_NS
"""1970-01-05."""
_MOST_WEEKS: Final = 60

NO_WEEK: Final = "No whole week of the fleet is over for a day yet: nothing can be held against others' work."
UNTRUSTED: Final = (
    "Without the provider's inventory nothing of others' work is known to be true: nothing is held against it."
)


class Work(NamedTuple):
    """What makes work the same."""

    intent: str
    gpu_type: str
    phase: str | None


Reached = Mapping[Work, Mapping[str, float]]
"""MFU by work and tenant: of tenants that a level may stand on."""


@dataclass(frozen=True, slots=True)
class SameWork:
    """A tenant's work over the report's range beside the same work of others over the week.

    `mfu` is Σ model FLOPs / Σ available FLOPs of the tenant's own, `expected_mfu` by roofline over its operators.
    `fleet_mfu` is the level of at least three other tenants, None where there are fewer: then what is expected is all
    that it is held against. `ratio` is `mfu` / `fleet_mfu`.
    """

    intent: str
    gpu_type: str
    phase: str | None
    workloads: tuple[str, ...]
    gpu_hours: float | None
    mfu: float | None
    expected_mfu: float | None
    fleet_mfu: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Most GPU-hours first; the days of the others' week, [since, until), ISO 8601; what has no level, and why."""

    rows: tuple[SameWork, ...] = ()
    since: str | None = None
    until: str | None = None
    missing: tuple[str, ...] = ()


class Levels:
    """The levels of a store's weeks, each reckoned once. Safe to use from several threads."""

    def __init__(self, store: Store, holdings: Callable[[], Holdings | None]) -> None:
        self._store, self._holdings = store, holdings
        self._lock = threading.Lock()
        self._weeks: OrderedDict[int, Reached] = OrderedDict()

    def against(self, tenant: str, usages: Sequence[Usage], span: Range, now_unix_ns: int) -> Comparison:
        """`usages`, of `tenant` over `span`, beside others' work of the last whole week up to the end of `span`."""
        week = last_week(min(span.until_unix_ns, now_unix_ns - SETTLES_NS))
        if week is None:
            return compared(tenant, usages, {}, None, (NO_WEEK,))
        if all(_work(usage) is None for usage in usages):
            return compared(tenant, usages, {}, week)
        holdings = self._holdings()
        with self._lock:
            found = self._weeks.get(week.since_unix_ns)
            if found is None:
                found = self._weeks[week.since_unix_ns] = reached(self._store, week, holdings)
                while len(self._weeks) > _MOST_WEEKS:
                    self._weeks.popitem(last=False)
        return compared(tenant, usages, found, week, () if found or holdings is not None else (UNTRUSTED,))


def last_week(before_unix_ns: int) -> Range | None:
    """The last week from Monday to Monday in UTC that was over by that moment; None before 1970-01-12."""
    end = (before_unix_ns - _MONDAY_NS) // _WEEK_NS * _WEEK_NS + _MONDAY_NS
    return Range(end - _WEEK_NS, end) if end - _WEEK_NS >= 0 else None


def reached(store: Store, week: Range, holdings: Holdings | None) -> Reached:
    """What each tenant reached in `week` with each work, as far as the provider stands behind it."""
    usages = rollup.usages(store, week, None)
    if not usages:
        return {}
    return by_work(usages, _trust(store, week, holdings, usages))


def _trust(store: Store, week: Range, holdings: Holdings | None, usages: Sequence[Usage]) -> Testimony:
    contests = contested(store, week, holdings, usages)
    said = testimony(findings.judge(store, week, holdings, (), usages, contests).evidence, usages)
    if holdings is None:
        pairs = {(each.tenant, each.device) for each in contests}
        taken = {usage.identity for usage in usages if (usage.tenant, usage.device) in pairs}
        return {identity: word for identity, word in said.items() if identity not in taken}
    found = economics.assess(
        Snapshot(inventory=holdings.inventory), usages, week.since_unix_ns, week.until_unix_ns, testimony=said,
        outside_s=outside(store, week, holdings), contests=contests,
    )  # fmt: skip
    return found.trust


def by_work(usages: Iterable[Usage], trust: Testimony) -> Reached:
    """MFU by work and tenant over rows that are witnessed or consistent, of tenants with an hour of it at least."""
    parts: dict[Work, dict[str, list[Sums]]] = {}
    for usage in usages:
        work = _work(usage)
        if work is not None and trust.get(usage.identity) in TRUSTED:
            parts.setdefault(work, {}).setdefault(usage.tenant, []).append(usage.sums)
    found: dict[Work, dict[str, float]] = {}
    for work, of in parts.items():
        for tenant, sums in of.items():
            whole = total(sums)
            if whole.mfu and (whole.device_hours or 0.0) >= LEAST_HOURS:
                found.setdefault(work, {})[tenant] = whole.mfu
    return found


def level(of_tenants: Mapping[str, float], asker: str) -> float | None:
    """The geometric mean over tenants but the asker, to two digits; None of fewer than three."""
    others = [mfu for tenant, mfu in of_tenants.items() if tenant != asker]
    if len(others) < LEAST_TENANTS:
        return None
    return float(f"{exp(sum(map(log, others)) / len(others)):.2g}")


def compared(
    tenant: str, usages: Iterable[Usage], found: Reached, week: Range | None, missing: tuple[str, ...] = ()
) -> Comparison:
    """The tenant's own work beside the levels of `found`. Pure."""
    mine: dict[Work, list[Usage]] = {}
    nameless = False
    for usage in usages:
        if (work := _work(usage)) is not None:
            mine.setdefault(work, []).append(usage)
        else:
            nameless = True
    rows = tuple(_row(work, of, level(found.get(work, {}), tenant)) for work, of in mine.items())
    alone = sum(row.fleet_mfu is None for row in rows)
    if alone and not missing:
        missing = (
            f"{alone} of {len(rows)} configurations have no level of others: in the week fewer than three other tenants"
            " ran them for an hour with figures that the provider stands behind. They are held against what their own"
            " operators allow.",
        )
    if nameless:
        missing += ("Work that names no configuration (mfu.config.intent) or no GPU type is held against nobody's.",)
    ordered = tuple(sorted(rows, key=lambda row: (-(row.gpu_hours or 0.0), row.intent, row.gpu_type, row.phase or "")))
    if week is None:
        return Comparison(ordered, None, None, missing)
    return Comparison(ordered, _day(week.since_unix_ns), _day(week.until_unix_ns), missing)


def _row(work: Work, usages: Sequence[Usage], of_others: float | None) -> SameWork:
    sums = total(usage.sums for usage in usages)
    return SameWork(
        work.intent,
        work.gpu_type,
        work.phase,
        tuple(sorted({usage.workload for usage in usages if usage.workload})),
        sums.device_hours,
        sums.mfu,
        sums.expected_mfu,
        of_others,
        ratio(sums.mfu, of_others),
    )


def _work(usage: Usage) -> Work | None:
    if usage.intent is None or usage.gpu_type is None:
        return None
    return Work(usage.intent, usage.gpu_type, usage.phase)


def _day(unix_ns: int) -> str:
    return f"{datetime.fromtimestamp(unix_ns // 10**9, UTC):%Y-%m-%d}"
