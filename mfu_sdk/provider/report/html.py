"""A report as one page: self-contained, without scripts, and without a request to anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jinja2

from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.model import Report, TrendPoint

_WIDTH: Final = 640.0
_HEIGHT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Chart:
    """The trend as SVG paths in a box of `width` × `height`; `top` is the MFU at its upper edge."""

    width: float
    height: float
    top: float
    lines: tuple[str, ...]
    areas: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    expected_y: float | None


def render_html(report: Report, ranges: Sequence[str] = (), tenant: str | None = None) -> str:
    """The page. `ranges` such as "24h" become links to the same page over that time, of `tenant` where given."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        report=report,
        fleet=report.fleet,
        chart=trend_chart(report.fleet.trend, report.fleet.expected_mfu),
        top=_scale_top(report),
        ranges=ranges,
        tenant=tenant,
        peaks=_peaks(report),
        uncounted=[w for w in report.workloads if w.uncounted],
    )


def trend_chart(points: Sequence[TrendPoint], expected_mfu: float | None) -> Chart | None:
    """The trend to draw, None with fewer than two known points; a gap in time is a gap in the line."""
    known = [point.mfu for point in points if point.mfu is not None]
    if len(known) < 2:
        return None
    top = _round_up(max([*known, expected_mfu or 0.0]))
    step = _WIDTH / (len(points) - 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for index, point in enumerate(points):
        if point.mfu is None:
            runs.append([])
        else:
            runs[-1].append((index * step, _HEIGHT * (1 - point.mfu / top)))
    drawn = [run for run in runs if len(run) > 1]
    return Chart(
        _WIDTH,
        _HEIGHT,
        top,
        lines=tuple(_path(run) for run in drawn),
        areas=tuple(f"{_path(run)}L{run[-1][0]:.1f} {_HEIGHT:g}L{run[0][0]:.1f} {_HEIGHT:g}Z" for run in drawn),
        dots=tuple(run[0] for run in runs if len(run) == 1),
        expected_y=None if expected_mfu is None else _HEIGHT * (1 - expected_mfu / top),
    )


def _peaks(report: Report) -> list[str]:
    """The denominators that runs named, each once: dtype and where its peak came from."""
    named = {(", ".join(w.peak_dtypes), ", ".join(w.peak_sources)) for w in report.workloads if w.peak_sources}
    return [f"{words.name(dtype)} peak ({words.name(source)})" for dtype, source in sorted(named)]


def _path(run: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)


def _scale_top(report: Report) -> float:
    """The MFU at the right end of every bar: one scale on the page, so that bars compare across tables."""
    rows = (*report.workloads, *report.nodes, *report.gpu_types)
    return _round_up(max((value for row in rows for value in (row.mfu, row.expected_mfu) if value), default=1.0))


def _round_up(share: float) -> float:
    """The next of 5, 10, 20, 40, 60, 80 and 100 %, or the share itself above."""
    return next((top for top in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if share <= top), share)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mfu_sdk.provider", "web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for spell in (
        words.percent,
        words.flop,
        words.hours,
        words.seconds,
        words.count,
        words.estimate,
        words.name,
        words.moment,
    ):
        environment.filters[spell.__name__] = spell
    return environment
