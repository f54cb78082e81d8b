"""Allocated, busy, useful as text: the figures that others show, beside the one that tells what came of them."""

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfu_sdk.provider.fleet import Figure, FleetUse, NodeUse
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Report
from mfu_sdk.provider.report.tables import Column, table

_LABEL_WIDTH: Final = 24
_MOST_ROWS: Final = 20


def print_use(console: Console, report: Report) -> None:
    """The section, where the reader sees the whole fleet and anything is known of it beside steps."""
    use = report.fleet_use
    watched = use is not None and any(node.watched_gpu_hours for node in use.nodes)
    if use is None or (use.allocation.value is None and not watched):
        return
    console.print()
    console.print(Text("Allocated, busy, useful", style="bold"))
    grid = Table.grid()
    grid.add_column(width=_LABEL_WIDTH, style="dim")
    grid.add_column(overflow="fold")
    for label, value in _figures(use):
        grid.add_row(f"  {label}", Text(value))
    console.print(grid)
    if not watched:
        console.print(
            Text("No exporter of yours tells of utilization, health or GPUs without the SDK.", style="dim"),
            Text("See docs/how-to/provider.md, “DCGM metrics”.", style="dim"),
        )
    _nodes(console, use)
    _witnesses(console, use)


def _figures(use: FleetUse) -> list[tuple[str, str]]:
    held = "held" if use.over == "allocated" else "told of"
    rows = [
        ("allocated", _figure(use.allocation)),
        ("GPU utilization", f"{_figure(use.gpu_utilization)}: any kernel ran, in hours {held}"),
        ("tensor pipes busy", f"{_figure(use.tensor_activity)}, in hours {held}"),
        ("MFU", f"{_figure(use.mfu)}: steps that were sent"),
        ("expected", f"{words.percent(use.expected_mfu.value)} by roofline over the operators that ran"),
        ("owned MFU", f"{_figure(use.owned_mfu)}: what nobody sent steps of counts as nothing"),
    ]
    if use.estimated_mfu.value is not None:
        rows.append(("without the SDK", f"≈ {_figure(use.estimated_mfu)}: an estimate, in none of the MFUs above"))
        rows.append(("", use.estimate_error))
    return rows


def _figure(figure: Figure) -> str:
    if figure.value is None:
        return words.UNKNOWN
    share = "" if figure.owned_share is None else f", {words.percent(figure.owned_share)} of those owned"
    hours = words.UNKNOWN if figure.gpu_hours is None else f"{figure.gpu_hours:,.1f}"
    return f"{words.percent(figure.value)} over {hours} GPU-hours{share}"


def _nodes(console: Console, use: FleetUse) -> None:
    shown = use.nodes[:_MOST_ROWS]
    if not shown:
        return
    more = f", {len(use.nodes) - len(shown):,} more not shown" if len(use.nodes) > len(shown) else ""
    table(
        console,
        f"Nodes, unhealthy ones first{more}",
        (
            Column("host", tuple(words.name(n.host, 40) for n in shown), is_name=True),
            Column("state", tuple(n.state for n in shown)),
            Column("allocated", tuple(_known(n.allocation) for n in shown), drop=2),
            Column("GPU util", tuple(_known(n.gpu_utilization) for n in shown)),
            Column("tensor", tuple(_known(n.tensor_activity) for n in shown), drop=1),
            Column("MFU", tuple(_known(n.mfu) for n in shown)),
            Column("estimate", tuple(_estimate(n) for n in shown)),
            Column("least clock", tuple(_known(n.clock_ratio) for n in shown), drop=5),
            Column(
                "ECC", tuple("–" if n.double_bit_errors is None else str(n.double_bit_errors) for n in shown), drop=4
            ),
            Column("Xid", tuple(", ".join(str(seen.code) for seen in n.xids) or "–" for n in shown)),
            Column("steps failed", tuple(_known(n.step_error_rate) for n in shown), drop=6),
            Column("runs failed", tuple(_known(n.run_error_rate) for n in shown), drop=3),
        ),
    )
    for node in shown:
        if node.advice is not None:
            console.print(Text(f"  {words.name(node.host, 40)}: {node.advice}"))


def _witnesses(console: Console, use: FleetUse) -> None:
    shown = [row for row in use.witnesses if row.by == "provider"][:_MOST_ROWS]
    if not shown:
        return
    table(
        console,
        "What was counted, beside your own counters (of the peak on paper, over wall time)",
        (
            Column("tenant", tuple(words.name(row.tenant, 20) for row in shown), is_name=True, drop=2),
            Column("workload", tuple(words.name(row.workload, 40) for row in shown), is_name=True),
            Column("counted", tuple(words.percent(row.counted) for row in shown)),
            Column("counters", tuple(words.percent(row.witnessed) for row in shown)),
            Column("ratio", tuple("–" if row.ratio is None else f"{row.ratio:.2f}" for row in shown)),
            Column("GPU-hours", tuple(words.count(row.gpu_hours) for row in shown), drop=1),
        ),
    )


def _known(share: float | None) -> str:
    return "–" if share is None else words.percent(share)


def _estimate(node: NodeUse) -> str:
    return "–" if node.estimated_mfu is None else f"≈ {words.percent(node.estimated_mfu)}"
