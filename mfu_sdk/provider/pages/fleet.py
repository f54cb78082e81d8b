"""The fleet's page: what a report says, most important first, as a page of the daemon or as one file."""

from collections.abc import Sequence
from typing import Any, Final

from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.pages import answers, charts, nodes, use
from mfu_sdk.provider.pages.charts import Chart, Row
from mfu_sdk.provider.pages.engine import Engine
from mfu_sdk.provider.pages.money import waterfall_chart
from mfu_sdk.provider.pages.view import View
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Cause, Report, Workload
from mfu_sdk.provider.report.unexplained import parted
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Moment, Sums

SHOWN: Final = 10
"""Rows of a table on the fleet's page; the pages of the levels have them all."""


def render_html(report: Report, artist: Artist | None = None) -> str:
    """The fleet's page as one file: style and pictures in it, no script, no link, no request to anywhere."""
    if artist is not None:
        return page(Engine(artist), report, None)
    with Artist() as own:
        return page(Engine(own), report, None)


def page(engine: Engine, report: Report, view: View | None, **context: Any) -> str:
    """The fleet's page under the filters of `view`; as one file where that is None."""
    cells = nodes.groups(report.nodes)
    money = report.economics
    causes, unexplained = parted(next_steps(report))
    return engine.render(
        "fleet.html.j2",
        report=report,
        fleet=report.fleet,
        view=view,
        chain=use.chain(report),
        guess=use.guess(report.fleet_use),
        is_watched=use.is_watched(report.fleet_use),
        causes=causes,
        unexplained=unexplained,
        decided=sum(cause.state != "open" for cause in report.causes),
        shown=SHOWN,
        top=scale_end(report),
        answers=answers.of(report.questions, SHOWN),
        trend=trend_chart(report),
        types_picture=types_chart(report),
        cells=cells,
        heat=nodes.heat_map(cells, node_end(report)),
        heat_end=node_end(report),
        waterfall=waterfall_chart(report.hours, None if money is None else money.currency),
        peaks=peaks(report.workloads),
        uncounted=[w for w in report.workloads if w.uncounted],
        least_coverage=report.least_coverage,
        **context,
    )


def next_steps(report: Report) -> tuple[Cause, ...]:
    """What is open, the most device time lost first: a large loss of a small workload is not the first thing to do."""
    hours: dict[tuple[str, str | None, str | None], float] = {}
    for w in report.workloads:
        key = (w.tenant, w.workload, w.gpu_type)
        hours[key] = hours.get(key, 0.0) + (w.gpu_hours or 0.0)
    open_ones = (cause for cause in report.causes if cause.state == "open")
    return tuple(sorted(open_ones, key=lambda c: -c.loss_share * hours.get((c.tenant, c.workload, c.gpu_type), 0.0)))


def scale_end(report: Report) -> float:
    """The MFU at the right end of every bar: one scale on the page, so that bars compare across tables."""
    rows = (*report.workloads, *report.nodes, *report.gpu_types)
    return charts.top([value for row in rows for value in (row.mfu, row.expected_mfu)])


def node_end(report: Report) -> float:
    """The MFU from which on a node has the last colour."""
    return charts.top([node.mfu for node in report.nodes])


def trend_chart(report: Report) -> Chart | None:
    """The fleet's MFU over the range."""
    points = [
        charts.Point(
            point.at,
            point.mfu,
            f"{words.moment(point.at)}: {words.percent(point.mfu)}, {words.flop(point.model_flop)} of "
            f"{words.flop(point.available_flop)}",
        )
        for point in report.fleet.trend
    ]
    return charts.trend(points, report.fleet.expected_mfu, what="Fleet MFU")


def workload_trend(moments: Sequence[Moment], bucket_s: int, jobs: Sequence[Workload]) -> Chart | None:
    """A workload's MFU over the range, of all of its `moments` together."""
    buckets: dict[int, Sums] = {}
    for moment in moments:
        buckets[moment.start_unix_s] = buckets.get(moment.start_unix_s, Sums()) + moment.sums
    if not buckets:
        return None
    points = []
    for start in range(min(buckets), max(buckets) + 1, bucket_s):
        at, mfu = iso(start * 10**9), buckets.get(start, Sums()).mfu
        points.append(charts.Point(at, mfu, f"{words.moment(at)}: {words.percent(mfu)}"))
    # Only one row has the one expectation that a line across the picture can be.
    expected = jobs[0].expected_mfu if len(jobs) == 1 else None
    return charts.trend(points, expected, what="MFU of this workload")


def types_chart(report: Report) -> Chart | None:
    """GPU types by their rank in the table."""
    return charts.ranked(
        [
            Row(row.mfu, row.expected_mfu, _pair(row.gpu_type, row.mfu, row.expected_mfu))
            for row in report.gpu_types[:SHOWN]
        ],
        what="MFU",
        against="expected MFU",
    )


def peaks(workloads: Sequence[Workload]) -> list[str]:
    """The denominators that runs named, each once: dtype and where its peak came from."""
    named = {(", ".join(w.peak_dtypes), ", ".join(w.peak_sources)) for w in workloads if w.peak_sources}
    return [f"{words.name(dtype)} peak ({words.name(source)})" for dtype, source in sorted(named)]


def _pair(name: str | None, mfu: float | None, expected: float | None) -> str:
    return f"{words.name(name)}: MFU {words.percent(mfu)}, expected {words.percent(expected)}"
