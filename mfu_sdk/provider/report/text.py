"""A report as text: fleet first, then what is below it, in tables that fit the width."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfu_sdk.provider.report import money, shared_text, use_text, words
from mfu_sdk.provider.report.answers import print_answers
from mfu_sdk.provider.report.model import Fleet, Report
from mfu_sdk.provider.report.tables import Column, table
from mfu_sdk.provider.report.unexplained import parted

_BARS = "▁▂▃▄▅▆▇█"
_LABEL_WIDTH = 21


def render_text(report: Report, width: int = 100, *, color: bool = False) -> str:
    """The report in lines of at most `width` characters, with ANSI colours where `color` says so."""
    printed = io.StringIO()
    console = Console(
        file=printed,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    _headline(console, report)
    use_text.print_use(console, report)
    if report.workloads:
        _levels(console, report)
        print_answers(console, report.questions)
        shared_text.print_against(console, report.against_fleet)
    if report.inference:
        _inference(console, report)
    _causes(console, report)
    shared_text.print_contested(console, report.contested)
    money.print_money(console, report)
    _not_counted(console, report)
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


def _headline(console: Console, report: Report) -> None:
    fleet = report.fleet
    console.print(
        Text(f"Fleet MFU {words.percent(fleet.mfu)}", style="bold"),
        f"  {words.moment(report.window.since)} to {words.moment(report.window.until)} UTC",
    )
    if not fleet.gpus:
        console.print(
            "No steps were observed in this time. A run reaches this provider with"
            " OTEL_EXPORTER_OTLP_ENDPOINT set to its OTLP address."
        )
        return
    rows = [
        ("model / available", f"{words.flop(fleet.model_flop)} / {words.flop(fleet.available_flop)}"),
        ("expected", f"{words.percent(fleet.expected_mfu)} by roofline over the operators that ran"),
        ("before", f"{words.percent(fleet.previous_mfu)} in as long a time before this one"),
        ("observed", f"{words.hours(fleet.gpu_hours_observed)} on {_devices(fleet.gpus)}"),
        ("share of the fleet", _share_observed(fleet)),
        *([("owned MFU", _owned(fleet))] if fleet.owned_mfu is not None else []),
        ("steps", f"{words.count(fleet.steps)}, of which {words.count(fleet.timed_steps)} timed"),
        ("left out", _left_out(fleet)),
    ]
    latest = [point.mfu for point in fleet.trend][-max(8, console.width - _LABEL_WIDTH) :]
    if len([mfu for mfu in latest if mfu is not None]) > 1:
        rows.append(("trend", _sparkline(latest)))
    grid = Table.grid()
    grid.add_column(width=_LABEL_WIDTH, style="dim")
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(f"  {label}", Text(value))
    console.print(grid)


def _levels(console: Console, report: Report) -> None:
    of = report.workloads
    table(
        console,
        "Workloads, most device time first",
        (
            Column("tenant", tuple(words.name(w.tenant, 20) for w in of), is_name=True, drop=2),
            Column("workload", tuple(words.name(w.workload, 40) for w in of), is_name=True),
            Column("GPU type", tuple(words.name(w.gpu_type, 30) for w in of), is_name=True, drop=3),
            Column("ranks", tuple(words.count(w.world_size) for w in of), drop=4),
            Column("MFU", tuple(words.percent(w.mfu) for w in of)),
            Column("expected", tuple(words.percent(w.expected_mfu) for w in of)),
            Column("model FLOPs", tuple(words.flop(w.model_flop) for w in of), drop=5),
            Column("time", tuple(words.hours(w.gpu_hours) for w in of), drop=1),
        ),
    )
    nodes = report.nodes
    table(
        console,
        "Nodes, lowest MFU first",
        (
            Column("host", tuple(words.name(n.host, 40) for n in nodes), is_name=True),
            Column("GPU type", tuple(words.name(", ".join(n.gpu_types), 40) for n in nodes), is_name=True, drop=2),
            Column("devices", tuple(words.count(n.gpus) for n in nodes), drop=3),
            Column("MFU", tuple(words.percent(n.mfu) for n in nodes)),
            Column("expected", tuple(words.percent(n.expected_mfu) for n in nodes)),
            Column("time", tuple(words.hours(n.gpu_hours) for n in nodes), drop=1),
        ),
    )
    types = report.gpu_types
    table(
        console,
        "GPU types, most device time first",
        (
            Column("GPU type", tuple(words.name(g.gpu_type, 40) for g in types), is_name=True),
            Column("devices", tuple(words.count(g.gpus) for g in types), drop=3),
            Column("MFU", tuple(words.percent(g.mfu) for g in types)),
            Column("expected", tuple(words.percent(g.expected_mfu) for g in types)),
            Column("model FLOPs", tuple(words.flop(g.model_flop) for g in types), drop=4),
            Column("available", tuple(words.flop(g.available_flop) for g in types), drop=4),
            Column("time", tuple(words.hours(g.gpu_hours) for g in types), drop=1),
        ),
    )


def _inference(console: Console, report: Report) -> None:
    of = report.inference
    table(
        console,
        "Inference requests (they overlap: no level above includes them)",
        (
            Column("tenant", tuple(words.name(r.tenant, 20) for r in of), is_name=True, drop=2),
            Column("workload", tuple(words.name(r.workload, 40) for r in of), is_name=True),
            Column("requests", tuple(words.estimate(r.requests, sampled=r.sampled) for r in of)),
            Column("mean", tuple(words.seconds(r.mean_duration_s) for r in of)),
            Column("tokens", tuple(words.estimate(r.tokens, sampled=r.sampled) for r in of), drop=3),
            Column("failed", tuple(words.count(r.failed) for r in of), drop=1),
        ),
    )


def _causes(console: Console, report: Report) -> None:
    seen = [each for each in report.causes if each.state != "muted"]
    shown, rest = parted(seen)
    if shown:
        table(
            console,
            "Why workloads are low, largest losses first",
            (
                Column("tenant", tuple(words.name(c.tenant, 20) for c in shown), is_name=True, drop=2),
                Column("workload", tuple(words.name(c.workload, 40) for c in shown), is_name=True),
                Column("cause", tuple(c.cause for c in shown)),
                Column("loss", tuple(words.percent(c.loss_share) for c in shown)),
                Column("sure", tuple(words.percent(c.confidence, 0) if c.confidence else "–" for c in shown), drop=1),
                Column("state", tuple(c.state for c in shown), drop=3),
            ),
        )
        for each in shown:
            console.print(Text(f"  {words.name(each.workload, 40)}: {words.name(each.remedy, 400)}"))
    if rest is not None:
        console.print()
        console.print(Text(f"{rest.sentence} {rest.remedy}".replace("`", ""), style="dim"))
    for shared in report.shared_causes:
        console.print(
            Text(
                f"{shared.cause} on {shared.workloads} of {shared.of_workloads} workloads with {shared.kind}"
                f" {words.name(shared.place)}, and on {words.percent(shared.elsewhere, 0)} of the others."
            )
        )
    if (muted := len(report.causes) - len(seen)) > 0:
        console.print(f"{muted} muted cause{'' if muted == 1 else 's'} not shown.")
    if report.workloads:
        for cause, why in report.causes_left_out.items():
            console.print(Text(f"{cause} was not looked for: {why}.", style="dim"))


def _not_counted(console: Console, report: Report) -> None:
    console.print()
    for w in report.workloads:
        if w.uncounted:
            operators = words.name(", ".join(w.uncounted), 200)
            console.print(Text(f"Not counted in {words.name(w.workload)}: {operators}"))
    if report.least_coverage is not None:
        # Nothing is known of the operators of unknown steps, and this must not seem to speak of them.
        where = " in the steps that are in the sums" if report.fleet.unknown_steps else ""
        console.print(
            f"Every workload had at least {words.percent(report.least_coverage)} of its operators' bytes priced{where}."
        )
    console.print(
        Text(
            "MFU = Σ model FLOPs / Σ (peak × time) over timed steps; levels add, ratios are never averaged.",
            style="dim",
        )
    )


def _left_out(fleet: Fleet) -> str:
    of = f", {words.percent(fleet.unknown_share)} of them," if fleet.unknown_steps else ""
    return f"{words.count(fleet.unknown_steps)} timed steps{of} have no model FLOPs or no peak: in neither sum"


def _devices(gpus: int) -> str:
    return f"{gpus:,} device" + ("" if gpus == 1 else "s")


def _share_observed(fleet: Fleet) -> str:
    if fleet.observed_share is None:
        return f"{words.percent(None)} (no inventory of owned devices)"
    held = words.percent(fleet.allocated_observed_share)
    return f"{words.percent(fleet.observed_share)} of owned GPU-hours is observed, {held} of those that somebody held"


def _owned(fleet: Fleet) -> str:
    factors = fleet.factors
    return (
        f"{words.percent(fleet.owned_mfu)} = {words.percent(factors.allocation)} allocated"
        f" × {words.percent(factors.runtime)} of that in steps × {words.percent(factors.step)} of those useful,"
        " each weighted by its bf16 peak"
    )


def _sparkline(values: Sequence[float | None]) -> str:
    """One character for each point, from zero to the highest; a blank where nothing was observed."""
    top = max(value for value in values if value is not None) or 1.0
    return "".join(
        " " if value is None else _BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values
    )
