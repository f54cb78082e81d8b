"""The money as text, for who reads the books: what it cost and brought, where it went, who bears it, what to do."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfu_sdk.provider.economics import Economics, Stage
from mfu_sdk.provider.economics.accounts import Account, Interval
from mfu_sdk.provider.economics.cents import apportioned
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Report
from mfu_sdk.provider.report.tables import Column, table

_LABEL_WIDTH: Final = 24
_MOST_ROWS: Final = 10
_STAGES: Final = {
    "unavailable": "down",
    "unsold": "not sold",
    "mig_stranded": "between MIG slices",
    "unobserved": "not observed",
    "idle": "held without steps",
    "lost_work": "steps done again",
    "input": "waiting for data",
    "skew": "waiting for late ranks",
    "comm_topology": "communication: path",
    "comm_scale": "communication: scale",
    "under_batch": "batches too small",
    "clock": "clock held down",
    "drift": "configuration drift",
    "kernel_gap": "kernels and host",
    "unattainable": "out of reach",
    "useful": "useful",
}
"""The waterfall's stages as they are printed."""


def print_money(console: Console, report: Report) -> None:
    """The section on money, or one sentence on what it lacks; the hours alone where only an inventory is known."""
    found = report.economics
    if found is None:
        if report.hours:
            _waterfall(console, report.hours, None)
        if report.economics_missing:
            console.print()
            console.print(report.economics_missing)
        return
    console.print()
    console.print(Text(f"Money, in {found.currency}", style="bold"))
    grid = Table.grid()
    grid.add_column(width=_LABEL_WIDTH, style="dim")
    grid.add_column(overflow="fold")
    for label, value in _figures(report, found):
        grid.add_row(f"  {label}", Text(value))
    console.print(grid)
    _waterfall(console, found.waterfall, found.currency)
    _bearers(console, found)
    _accounts(console, "Tenants, most cost first", found.tenants, (("tenant", lambda row: row.tenant),))
    _accounts(
        console,
        "Money by workload, most cost first",
        found.workloads,
        (("tenant", lambda row: row.tenant), ("workload", lambda row: row.workload)),
    )
    _accounts(console, "Money by GPU type, owned hours", found.gpu_types, (("GPU type", lambda row: row.gpu_type),))
    _accounts(console, "Money by node, owned hours", found.nodes, (("host", lambda row: row.host),))
    _planning(console, found)
    _advice(console, found)
    for note in found.notes:
        console.print()
        console.print(Text(f"Note. {note}"))


def _figures(report: Report, found: Economics) -> list[tuple[str, str]]:
    per_hour = found.cost / found.owned_gpu_hours if found.owned_gpu_hours else None
    rows = [
        ("cost", f"{_money(found.cost)} for {found.owned_gpu_hours:,.1f} owned GPU-hours, {_rate(per_hour)} each"),
        ("revenue", f"{_money(found.revenue)}, {_rate(found.revenue_per_gpu_hour)} per owned GPU-hour"),
        ("margin", f"{_money(found.margin)}, {_rate(found.margin_per_gpu_hour)} per owned GPU-hour"),
        ("useful compute", f"{found.useful_pflop_hours:,.1f} PFLOP-hours of model FLOPs"),
        ("a useful PFLOP-hour", f"{_rate(found.cost_per_useful_pflop_hour)}, all owned hours counted{_bound(report)}"),
        ("", f"{_rate(found.cost_per_useful_pflop_hour_observed)}, observed hours alone"),
    ]
    reach = found.attainable_cost_per_useful_pflop_hour
    if reach is not None:
        rows.append(("", f"{_interval(reach, _rate)}, hours of steps alone, had all run at their expected MFU"))
    for label, value in (
        ("a million tokens", found.cost_per_million_tokens),
        ("a million trained on", found.cost_per_million_training_tokens),
    ):
        if value is not None:
            rows.append((label, f"{_rate(value)}, held hours counted"))
    if found.delivered_value is not None and found.efficiency_gap is not None:
        rows.append(("delivered", f"{_interval(found.delivered_value, _money)} worth at list price"))
        rows.append(("efficiency gap", f"{_interval(found.efficiency_gap, _money)} at list price"))
    whole = sum(found.trust.values())
    if whole:
        behind = (f"{words.percent(hours / whole)} {trust}" for trust, hours in found.trust.items() if hours)
        rows.append(("hours of steps are", ", ".join(behind)))
    return rows


def _bound(report: Report) -> str:
    seen = report.fleet.allocated_observed_share
    if report.economics is None or not report.economics.cost_is_upper_bound or seen is None:
        return ""
    return f"; an upper bound, for {words.percent(1 - seen)} of the held hours was not observed"


def _waterfall(console: Console, stages: Sequence[Stage], currency: str | None) -> None:
    shown = [stage for stage in stages if stage.gpu_hours]
    # Tenths of hours by largest remainders, as cents are: what is printed adds up.
    tenths = apportioned([Fraction(stage.gpu_hours) / 10 for stage in shown])
    hours = (*(f"{tenth / 10:,.1f}" for tenth in tenths), f"{sum(tenths) / 10:,.1f}")
    columns = [
        Column("where they went", (*(_STAGES[stage.stage] for stage in shown), "all owned hours"), is_name=True),
        Column("GPU-hours", hours),
        Column("share", (*(words.percent(stage.share) for stage in shown), words.percent(1.0))),
    ]
    if any(stage.gpu_hours_low is not None for stage in shown):
        columns.append(Column("at the ends", (*(_ends(stage, currency) for stage in shown), ""), drop=1))
    if currency is not None:
        total = sum(round((stage.cost or 0.0) * 100) for stage in stages) / 100
        columns.append(Column(f"cost, {currency}", (*(_money(stage.cost) for stage in shown), _money(total))))
    table(console, "Owned GPU-hours, from down to useful", columns)
    if any(stage.gpu_hours_low is not None for stage in shown):
        what = "GPU-hours" if currency is None else "cost"
        console.print(f"at the ends: {what} at the ends of the interval of the expected MFU")


def _ends(stage: Stage, currency: str | None) -> str:
    """What a stage is at the ends of the expected MFU's interval; nothing for one that does not hang on it."""
    low, high = stage.cost_low, stage.cost_high
    if currency is None:
        low, high = stage.gpu_hours_low, stage.gpu_hours_high
    return "" if low is None or high is None else f"{low:,.2f} to {high:,.2f}"


def _bearers(console: Console, found: Economics) -> None:
    """Losses by who bears them: useful hours are no loss, and what is out of reach is nobody's."""
    rows = [row for row in found.incidence if row.stage not in ("useful", "unattainable") and row.gpu_hours]
    rows.sort(key=lambda row: -row.cost)
    rows = rows[:_MOST_ROWS]
    if not rows:
        return
    table(
        console,
        "Who bears the largest losses",
        (
            Column("contract", tuple((row.contract or "none").replace("_", " ") for row in rows), is_name=True),
            Column("where they went", tuple(_STAGES[row.stage] for row in rows), is_name=True),
            Column("GPU-hours", tuple(f"{row.gpu_hours:,.1f}" for row in rows), drop=1),
            Column("cost", tuple(_money(row.cost) for row in rows)),
            Column("billed", tuple("–" if row.billed is None else _money(row.billed) for row in rows)),
            Column("borne by", tuple(row.borne_by for row in rows), is_name=True),
        ),
    )


def _accounts(
    console: Console, title: str, rows: Sequence[Account], names: Sequence[tuple[str, Callable[[Account], str | None]]]
) -> None:
    if not rows:
        return
    more = f", {len(rows) - _MOST_ROWS:,} more not shown" if len(rows) > _MOST_ROWS else ""
    rows = rows[:_MOST_ROWS]
    table(
        console,
        f"{title}{more}",
        (
            *(Column(name, tuple(words.name(of(row), 40) for row in rows), is_name=True) for name, of in names),
            Column("GPU-hours", tuple(f"{row.gpu_hours:,.1f}" for row in rows), drop=4),
            Column("cost", tuple(_money(row.cost) for row in rows)),
            Column("revenue", tuple(_money(row.revenue) for row in rows), drop=5),
            Column("margin", tuple(_money(row.margin) for row in rows)),
            Column("PFLOP-h", tuple(_pflop_hours(row) for row in rows), drop=3),
            Column("per PFLOP-h", tuple(_rate(row.cost_per_useful_pflop_hour) for row in rows)),
            Column("attained", tuple(words.percent(row.attained, 0) for row in rows)),
            Column("per 1M tokens", tuple(_known(row.cost_per_million_tokens) for row in rows), drop=6),
        ),
    )


def _planning(console: Console, found: Economics) -> None:
    lines = []
    for plan in found.plans:
        if plan.gpus_per_point is None:
            continue
        text = (
            f"{plan.gpu_type}: one point more MFU does the work of {plan.gpus_per_point:,.1f} GPUs more"
            f" ({plan.gpus:,.1f} are held and observed)"
        )
        if plan.gpus_avoided is None:
            text += "; whether anybody wants them is not known (no `queue`, no earlier range)."
        else:
            text += f". Demand is for {plan.demand_gpus:,.1f}: {plan.gpus_avoided:,.1f} need not be bought"
            text += "." if plan.capex_avoided is None else f", {_money(plan.capex_avoided)} of capex."
        lines.append(text)
    for row in found.new_hardware:
        verb = "cost less" if row.saved >= 0 else "cost more"
        lines.append(
            f"{row.after} against {row.before}, {row.intents} matched intents: a useful PFLOP-hour costs"
            f" {_rate(row.cost_per_useful_pflop_hour_after)} instead of {_rate(row.cost_per_useful_pflop_hour_before)};"
            f" this time's work {verb} by {_money(abs(row.saved))}."
        )
    _lines(console, "Planning", lines)


def _advice(console: Console, found: Economics) -> None:
    rows = found.tiers
    # One tier alone pays what it pays.
    if len(rows) > 1:
        table(
            console,
            "Priced by delivered hours at unchanged revenue",
            (
                Column("attained of expected", tuple(row.attained for row in rows), is_name=True),
                Column("tenants", tuple(words.name(", ".join(row.tenants), 40) for row in rows), is_name=True),
                Column("GPU-hours", tuple(f"{row.gpu_hours:,.1f}" for row in rows), drop=1),
                Column("pays", tuple(_rate(row.price_per_gpu_hour) for row in rows)),
                Column("would pay", tuple(_rate(row.neutral_price_per_gpu_hour) for row in rows)),
                Column("change", tuple(f"{100 * row.change:+.1f} %" for row in rows)),
            ),
        )
    calls = [f"{words.name(call.tenant)}: {_safe(call.sentence)}" for call in found.calls[:_MOST_ROWS]]
    _lines(console, "Whom to call, most money first", calls)


def _lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print()
        console.print(Text(title, style="bold"))
        for line in lines:
            console.print(Text(f"- {line}"))


def _safe(sentence: str) -> str:
    return words.name(sentence, 1000)


def _money(amount: float | None) -> str:
    return words.UNKNOWN if amount is None else f"{amount:,.2f}"


def _rate(amount: float | None) -> str:
    """An amount of money for one of something, with at least two significant digits."""
    if amount is None:
        return words.UNKNOWN
    return f"{amount:,.2f}" if abs(amount) >= 0.1 or amount == 0 else f"{amount:#.2g}"


def _pflop_hours(row: Account) -> str:
    return words.UNKNOWN if row.useful_pflop_hours is None else f"{row.useful_pflop_hours:,.1f}"


def _known(amount: float | None) -> str:
    return "–" if amount is None else _rate(amount)


def _interval(value: Interval, spell: Callable[[float | None], str]) -> str:
    if value.low is None or value.high is None or value.low == value.high:
        return spell(value.mid)
    return f"{spell(value.mid)} ({spell(value.low)} to {spell(value.high)})"
