"""What a tenant shares with others, as text: the level of the same work, and GPUs that somebody else tells of too."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.tables import Column, table
from mfu_sdk.provider.shared import Comparison

_MOST_ROWS: Final = 20
WHY: Final = {
    "held_by_another": "held by another tenant, by the provider's records",
    "not_held": "not held by this tenant, by the provider's records",
    "claimed_twice": "told of by another tenant at the same time",
}
"""Why a tenant's steps on a GPU are contested."""


def print_against(console: Console, found: Comparison | None) -> None:
    """A tenant's configurations beside the level of at least three others."""
    if found is None or not (found.rows or found.missing):
        return
    rows = [row for row in found.rows if row.fleet_mfu is not None][:_MOST_ROWS]
    if rows:
        table(
            console,
            f"Yours against the fleet's, the same work ({found.since} to {found.until}, three other tenants at least)",
            (
                Column("workload", tuple(words.name(", ".join(r.workloads), 40) for r in rows), is_name=True),
                Column("configuration", tuple(words.name(r.intent, 16) for r in rows), is_name=True, drop=3),
                Column("GPU type", tuple(words.name(r.gpu_type, 30) for r in rows), is_name=True, drop=2),
                Column("phase", tuple(words.name(r.phase, 12) for r in rows), is_name=True, drop=1),
                Column("MFU", tuple(words.percent(r.mfu) for r in rows)),
                Column("expected", tuple(words.percent(r.expected_mfu) for r in rows), drop=4),
                Column("fleet", tuple(words.percent(r.fleet_mfu) for r in rows)),
                Column("ratio", tuple("–" if r.ratio is None else f"{r.ratio:.2f}" for r in rows)),
            ),
        )
    else:
        console.print()
        console.print(Text("Yours against the fleet's", style="bold"))
    for line in found.missing:
        console.print(Text(f"  {line}", style="dim"))


def print_contested(console: Console, found: Sequence[Contested]) -> None:
    """GPUs that somebody else holds or tells of, most hours first."""
    if not found:
        return
    rows = found[:_MOST_ROWS]
    more = f", {len(found) - len(rows):,} more not shown" if len(found) > len(rows) else ""
    columns = [
        Column("tenant", tuple(words.name(r.tenant, 20) for r in rows), is_name=True, drop=2),
        Column("host", tuple(words.name(r.host, 40) for r in rows), is_name=True, drop=1),
        Column("GPU", tuple(words.name(r.device, 44) for r in rows), is_name=True),
        Column("steps", tuple(words.hours(r.hours) for r in rows)),
        Column("why", tuple(r.why for r in rows)),
    ]
    if any(r.others for r in rows):
        others = tuple(words.name(", ".join(r.others), 40) if r.others else "–" for r in rows)
        columns.append(Column("others", others, is_name=True))
    table(
        console,
        f"Contested GPUs: these steps are no ground for advice or for what others are held against{more}",
        columns,
    )
    for why in dict.fromkeys(r.why for r in rows):
        console.print(Text(f"  {why}: {WHY[why]}", style="dim"))
