"""The six answers as text: a table for each, and a line for what nobody sent that it would need."""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from rich.console import Console
from rich.text import Text

from mfu_sdk.provider.questions import (
    ByGpuType,
    ByScale,
    Change,
    Estimate,
    LowWorkloads,
    NewHardware,
    Questions,
    Tested,
    UnderBatching,
)
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.tables import Column, table

T = TypeVar("T")

_MOST_ROWS: Final = 20


def print_answers(console: Console, questions: Questions) -> None:
    """Each question, answered or with what is missing."""
    _low(console, questions.low_workloads)
    _types(console, questions.by_gpu_type)
    _scale(console, questions.by_scale)
    _batches(console, questions.under_batching_tenants)
    _trend(console, questions.trend)
    _new(console, questions.new_hardware)


def _low(console: Console, of: LowWorkloads) -> None:
    rows = of.workloads[:_MOST_ROWS]
    if rows:
        table(
            console,
            f"Low against expectation ({len(of.workloads)} of {words.count(of.judged)}), most device time short first",
            (
                Column("workload", _each(rows, lambda w: words.name(w.workload, 40)), is_name=True),
                Column("tenant", _each(rows, lambda w: words.name(w.tenant, 20)), is_name=True, drop=3),
                Column("attained", _each(rows, lambda w: words.percent(w.attained))),
                Column("short of", _each(rows, lambda w: words.hours(w.shortfall_gpu_hours)), drop=1),
                Column("low in", _each(rows, lambda w: words.percent(w.low_share, 0)), drop=2),
                Column("", _each(rows, lambda w: "consistently" if w.consistent else ""), drop=4),
            ),
        )
    _say(console, "Low workloads", rows, "none is 10 % below its expectation" if of.judged else "unknown", of.missing)


def _types(console: Console, of: ByGpuType) -> None:
    rows = of.matched
    if rows:
        table(
            console,
            f"The same work on two GPU types (MFU, 95 % interval; {words.percent(of.matched_share, 0)} of device time)",
            (
                Column("GPU type", _each(rows, lambda m: words.name(m.gpu_type, 30)), is_name=True),
                Column("against", _each(rows, lambda m: words.name(m.base, 30)), is_name=True),
                Column("configs", _each(rows, lambda m: words.count(m.intents)), drop=2),
                Column("MFU", _each(rows, lambda m: times(m.mfu_ratio))),
                Column("FLOP/s", _each(rows, lambda m: times(m.rate_ratio)), drop=1),
                Column("unmatched", _each(rows, lambda m: times(_of(m.crude_mfu_ratio))), drop=3),
            ),
        )
    _say(console, "By GPU type", rows, "there is one GPU type only", of.missing)


def _scale(console: Console, of: ByScale) -> None:
    rows = [(curve, point) for curve in of.curves[:_MOST_ROWS] for point in curve.points]
    if rows:
        table(
            console,
            "With scale, against the smallest size",
            (
                Column("structure", _each(rows, lambda r: words.name(r[0].workload_family, 16)), is_name=True),
                Column("GPU type", _each(rows, lambda r: words.name(r[0].gpu_type, 30)), is_name=True, drop=3),
                Column("scaling", _each(rows, lambda r: r[0].kind or words.UNKNOWN), drop=2),
                Column("ranks", _each(rows, lambda r: words.count(r[1].world_size))),
                Column("MFU", _each(rows, lambda r: words.percent(r[1].mfu))),
                Column("efficiency", _each(rows, lambda r: words.percent(r[1].parallel_efficiency))),
                Column("a step", _each(rows, lambda r: words.seconds(r[1].step_time_s)), drop=1),
            ),
        )
    for curve in of.curves[:_MOST_ROWS]:
        if curve.fit is not None:
            fit = curve.fit
            shared = "" if fit.divided_s is None else f" + {seconds(fit.divided_s)} / W"
            console.print(
                Text(
                    f"  {words.name(curve.workload_family, 16)}: T(W) = {seconds(fit.fixed_s)}{shared}"
                    f" + {seconds(fit.each_doubling_s)} · log2 W over {fit.runs} runs;"
                    f" {fit.next_size} ranks would be at {times(fit.next_efficiency, percent=True)}"
                )
            )
    _say(console, "With scale", rows, "", of.missing)


def _batches(console: Console, of: UnderBatching) -> None:
    rows = of.tenants[:_MOST_ROWS]
    if rows:
        table(
            console,
            "Batches against what would fit, most device time lost first",
            (
                Column("tenant", _each(rows, lambda t: words.name(t.tenant, 20)), is_name=True),
                Column("fill", _each(rows, lambda t: words.percent(t.fill, 0))),
                Column("tokens lost", _each(rows, lambda t: words.percent(t.lost_share))),
                Column("time lost", _each(rows, lambda t: words.hours(t.lost_gpu_hours)), drop=1),
                Column("", _each(rows, lambda t: "under-batches" if t.under_batches else ""), drop=2),
            ),
        )
    _say(console, "Batches", rows, "no inference was seen", of.missing)


def _trend(console: Console, of: Change) -> None:
    console.print()
    console.print(Text("Trend", style="bold"))
    if of.mix is not None and of.within is not None:
        console.print(
            f"  {points(of.mix + of.within)} against the time before: {points(of.within)} in the work itself,"
            f" {points(of.mix)} by its mix"
        )
    named: list[tuple[str, Tested | None]] = [("fleet, whatever ran", of.crude), ("each work by itself", of.matched)]
    if len(of.gpu_types) > 1:
        named += [(f"{words.name(kind.gpu_type, 30)}, each work by itself", kind.matched) for kind in of.gpu_types]
    for name, tested in named:
        if tested is not None:
            console.print(
                Text(
                    f"  {name}: {tested.verdict}, {change(tested.change)} over the range, p {tested.p_value:.2g},"
                    f" {tested.series} series"
                )
            )
    for line in of.missing:
        console.print(Text(f"  unknown: {line}", style="dim"))


def _new(console: Console, of: NewHardware) -> None:
    rows = of.arrivals
    if rows:
        table(
            console,
            "New hardware, on the same configurations (new / old, 95 % interval)",
            (
                Column("new", _each(rows, lambda a: words.name(a.gpu_type, 30)), is_name=True),
                Column("old", _each(rows, lambda a: words.name(a.base, 30)), is_name=True),
                Column("configs", _each(rows, lambda a: words.count(a.intents)), drop=2),
                Column("MFU", _each(rows, lambda a: times(a.mfu_ratio))),
                Column("FLOP/s", _each(rows, lambda a: times(a.rate_ratio)), drop=1),
                Column("effective MFU", _each(rows, lambda a: a.verdict)),
            ),
        )
    _say(console, "New hardware", rows, "", of.missing)


def times(of: Estimate | None, *, percent: bool = False) -> str:
    """A ratio with its interval: 0.93 (0.90–0.96)."""
    if of is None:
        return words.UNKNOWN

    def one(value: float) -> str:
        return f"{value * 100:.0f} %" if percent else f"{value:.2f}"

    ends = "" if of.low is None or of.high is None else f" ({one(of.low)}–{one(of.high)})"
    return one(of.value) + ends


def seconds(of: Estimate) -> str:
    """Seconds with half their interval: 1.20 ± 0.05 s."""
    if of.low is None or of.high is None:
        return words.seconds(of.value) if of.value >= 0 else f"{of.value:.3g} s"
    return f"({of.value:.3g} ± {(of.high - of.low) / 2:.2g}) s"


def change(of: Estimate) -> str:
    """A relative change with its interval: +2.1 % (+0.3 to +4.0)."""
    ends = "" if of.low is None or of.high is None else f" ({of.low * 100:+.1f} to {of.high * 100:+.1f})"
    return f"{of.value * 100:+.1f} %{ends}"


def points(share: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{share * 100:+.2f} points"


def _of(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value)


def _each(rows: Iterable[T], cell: Callable[[T], str]) -> tuple[str, ...]:
    return tuple(cell(row) for row in rows)


def _say(console: Console, title: str, rows: object, otherwise: str, missing: Iterable[str]) -> None:
    if not rows:
        console.print()
        console.print(Text(title, style="bold"))
        if otherwise and not missing:
            console.print(Text(f"  {otherwise}"))
    for line in missing:
        console.print(Text(f"  unknown: {line}", style="dim"))
