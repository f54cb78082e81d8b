"""Figures to charts: pure functions from plain data to Vega-Lite.

No text that somebody chose is in any spec (see `artist`): rows are told apart by their number in the table beside the
picture, and what a mark says when it is pointed at is in `tips`, which are put into the finished picture. Colours are
the page's own variables, so a picture follows light and dark without being drawn again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Spec = Mapping[str, Any]
"""A Vega-Lite chart as JSON has it."""


WIDE: Final = 860
NARROW: Final = 360
SMALL: Final = 360
"""Widths in CSS pixels: of a picture that has a card to itself, of the same on a phone, and of one beside a table."""

_FONT: Final = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
_QUIET, _LINE, _INK = "var(--quiet)", "var(--line)", "var(--ink)"
_FILL, _MARK, _AREA, _TRACK = "var(--fill)", "var(--mark)", "var(--area)", "var(--track)"
SERIES: Final = ("var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)")
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Series differ by shape as well as by colour."""

HEAT: Final = tuple(f"var(--h{step})" for step in range(6))
"""From the least to the most."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture: `label` is what it shows, in a sentence; `narrow` is the same for a phone where it differs.

    A mark whose description in the spec is ``#n`` says ``tips[n]`` when it is pointed at. `is_grid`: made of cells, so
    that a small one is not drawn larger.
    """

    label: str
    spec: Spec
    tips: tuple[str, ...] = ()
    narrow: Spec | None = None
    is_grid: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A share at a time (ISO 8601 in UTC); None where nothing was seen."""

    at: str
    share: float | None
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table as a pair of shares: what is, and what it is held against."""

    share: float | None
    against: float | None
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One row of a table as a ratio with its interval, whose ends may be unknown."""

    value: float
    low: float | None
    high: float | None
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a waterfall, in hours or as a share; `is_left` for the last, which is what is left."""

    name: str
    amount: float
    tip: str = ""
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a scaling curve: (ranks, share, tip) each."""

    points: tuple[tuple[int, float, str], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a heat map; `share` None is drawn as an outline."""

    column: int
    row: int
    share: float | None
    tip: str


def top(shares: Sequence[float | None]) -> float:
    """A scale's end: the next of 5, 10, 20, 40, 60, 80 and 100 %, or the largest itself above."""
    largest = max((share for share in shares if share is not None), default=1.0)
    return next((end for end in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= end), largest)


def trend(points: Sequence[Point], expected: float | None, *, what: str = "MFU") -> Chart | None:
    """Shares over time with the expectation as a dashed line; None with fewer than two known points.

    A gap in time is a gap in the line, and a point between two gaps is a dot.
    """
    known = [point.share for point in points if point.share is not None]
    if len(known) < 2:
        return None
    end = top([*known, expected])
    values = [
        {"t": point.at, "v": point.share, "d": f"#{number}", "alone": _is_alone(points, number)}
        for number, point in enumerate(points)
    ]

    def draw(width: int, height: int) -> Spec:
        time = _time(ticks=6 if width > NARROW else 3)
        share: dict[str, Any] = {
            "field": "v",
            "type": "quantitative",
            "scale": {"domain": [0, end]},
            "axis": _percent(),
        }
        x = {"field": "t", "type": "temporal", "scale": {"type": "utc"}, "axis": time}
        seen = {"filter": "datum.v !== null"}
        layers: list[dict[str, Any]] = [
            {
                "mark": {
                    "type": "area",
                    "color": _AREA,
                    "line": {"color": _FILL, "strokeWidth": 2},
                    "invalid": "break-paths-show-path-domains",
                },
                "encoding": {"x": x, "y": share},
            },
            {
                "transform": [{"filter": "datum.alone"}],
                "mark": {"type": "point", "filled": True, "size": 24, "color": _FILL},
                "encoding": {"x": x, "y": share},
            },
            {
                "transform": [seen],
                "mark": {"type": "point", "filled": True, "size": 220, "color": _FILL, "opacity": 0},
                "encoding": {"x": x, "y": share, "description": {"field": "d"}},
            },
        ]
        if expected is not None:
            layers.append({"data": {"values": [{"v": expected}]}, "mark": _rule(), "encoding": {"y": share}})
        return _spec(width, height, values, layer=layers)

    return Chart(
        f"{what} over time, from zero to {end:.0%}",
        draw(WIDE, 190),
        tuple(point.tip for point in points),
        draw(NARROW, 150),
    )


def ranked(rows: Sequence[Row], *, what: str, against: str) -> Chart | None:
    """Rows by their number from one on: a bar for what is, a tick for what it is held against."""
    if not any(row.share is not None for row in rows):
        return None
    end = top([share for row in rows for share in (row.share, row.against)])
    values = [{"n": number + 1, "v": row.share, "a": row.against, "d": f"#{number}"} for number, row in enumerate(rows)]
    y = {"field": "n", "type": "ordinal", "axis": {**_axis(), "title": None, "grid": False}}
    x = {"type": "quantitative", "scale": {"domain": [0, end]}, "axis": _percent(grid=True)}
    bar = {"type": "bar", "height": {"band": 0.55}}
    layers = [
        {
            "mark": {**bar, "color": _FILL},
            "encoding": {"y": y, "x": {**x, "field": "v"}, "description": {"field": "d"}},
        },
        {
            "transform": [{"filter": "datum.a !== null"}],
            "mark": {"type": "tick", "color": _MARK, "opacity": 1, "thickness": 3, "height": {"band": 0.85}},
            "encoding": {"y": y, "x": {**x, "field": "a"}, "description": {"field": "d"}},
        },
    ]
    label = f"{what} of each row as a bar and {against} as a mark, from zero to {end:.0%}; rows as in the table"
    return Chart(label, _spec(SMALL, 26 * len(rows), values, layer=layers), tuple(row.tip for row in rows))


def ratios(rows: Sequence[Ratio], *, what: str) -> Chart | None:
    """Ratios by their row's number, with intervals, around one: to its right is more, to its left less."""
    if not rows:
        return None
    values = [
        {"n": number + 1, "v": row.value, "low": row.low, "high": row.high, "d": f"#{number}"}
        for number, row in enumerate(rows)
    ]
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    domain = [min(0.9, *ends), max(1.1, *ends)]
    y = {"field": "n", "type": "ordinal", "axis": {**_axis(), "title": None, "grid": False}}
    scale = {"domain": domain, "zero": False, "nice": True}
    axis = {**_axis(), "title": None, "format": "~g", "tickCount": 5, "grid": True, "labelExpr": "datum.label + '×'"}
    x = {"type": "quantitative", "scale": scale, "axis": axis}
    layers = [
        {"data": {"values": [{"v": 1}]}, "mark": _rule(), "encoding": {"x": {**x, "field": "v"}}},
        {
            "transform": [{"filter": "datum.low !== null && datum.high !== null"}],
            "mark": {"type": "rule", "color": _FILL, "strokeWidth": 2},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "description": {"field": "d"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "color": _FILL, "opacity": 1},
            "encoding": {"y": y, "x": {**x, "field": "v"}, "description": {"field": "d"}},
        },
    ]
    label = f"{what} of each row as a point with its interval, one as a dashed line; rows as in the table"
    return Chart(label, _spec(SMALL, 34 * len(rows), values, layer=layers), tuple(row.tip for row in rows))


def waterfall(stages: Sequence[Stage], *, whole: str, unit: str | None) -> Chart | None:
    """From `whole` down to what is left, each stage a bar that begins where the one before ended; empty ones are out.

    Amounts are in `unit`, or shares where it is None.
    """
    shown = [stage for stage in stages if stage.amount > 0]
    total = sum(stage.amount for stage in stages)
    if not shown or total <= 0:
        return None
    values, before = [], total
    for number, stage in enumerate(shown):
        after = max(before - stage.amount, 0.0)
        # What is left is drawn from zero: it is what the others left of the whole.
        values.append({"s": stage.name, "from": after, "to": before, "left": stage.is_left, "d": f"#{number}"})
        before = after
    names = [stage.name for stage in shown]
    # The browser's font may be wider than the one that the picture was measured with.
    extent = min(round(7.4 * max(map(len, names))), 220)

    def draw(width: int, longest: int) -> Spec:
        axis = {**_axis(), "title": None, "labelLimit": longest, "minExtent": extent, "grid": False, "labelColor": _INK}
        y = {"field": "s", "type": "nominal", "sort": names, "axis": axis}
        x = {
            "field": "from",
            "type": "quantitative",
            "scale": {"domain": [0, total]},
            "axis": _percent() if unit is None else _number(unit, width),
        }
        colour = {"condition": {"test": "datum.left", "value": _FILL}, "value": "var(--lost)"}
        layer = {
            "mark": {"type": "bar", "height": {"band": 0.62}},
            "encoding": {"y": y, "x": x, "x2": {"field": "to"}, "color": colour, "description": {"field": "d"}},
        }
        return _spec(width, 26 * len(shown), values, layer=[layer])

    return Chart(
        f"A waterfall from {whole} to what was useful, in {len(shown)} stages",
        draw(WIDE, 220),
        tuple(stage.tip for stage in shown),
        draw(NARROW, 150),
    )


def scaling(curves: Sequence[Curve]) -> Chart | None:
    """MFU over ranks, a line for each curve with a shape and a colour of its own; six at most, the first ones."""
    shown = [curve for curve in curves if len(curve.points) > 1][: len(SERIES)]
    if not shown:
        return None
    end = top([share for curve in shown for _, share, _ in curve.points])
    tips: list[str] = []
    values = []
    for series, curve in enumerate(shown):
        for ranks, share, tip in curve.points:
            values.append({"r": ranks, "v": share, "s": series, "d": f"#{len(tips)}"})
            tips.append(tip)
    sizes = sorted({ranks for curve in shown for ranks, _, _ in curve.points})
    x = {
        "field": "r",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "domain": [sizes[0], sizes[-1]], "padding": 12},
        "axis": {**_axis(), "title": "ranks", "values": sizes, "format": ",d", "grid": False, "labelOverlap": True},
    }
    y = {"field": "v", "type": "quantitative", "scale": {"domain": [0, end]}, "axis": _percent()}
    of_series = {"field": "s", "type": "nominal", "legend": None}
    domain = list(range(len(shown)))
    colour = {**of_series, "scale": {"domain": domain, "range": list(SERIES[: len(shown)])}}
    shape = {**of_series, "scale": {"domain": domain, "range": list(SHAPES[: len(shown)])}}
    layers = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "description": {"field": "d"}},
        },
    ]
    label = f"MFU over the number of ranks, {len(shown)} curve{'s' if len(shown) > 1 else ''}, from zero to {end:.0%}"
    return Chart(label, _spec(SMALL, 200, values, layer=layers), tuple(tips))


def heat(cells: Sequence[Cell], thresholds: Sequence[float], *, label: str, size: int = 34) -> Chart | None:
    """A grid of cells, coloured by the step of `thresholds` (five, rising) that each is in."""
    if not cells:
        return None
    columns, rows = (1 + max(getattr(cell, name) for cell in cells) for name in ("column", "row"))
    values = [
        {"x": cell.column, "y": cell.row, "v": cell.share, "d": f"#{number}"} for number, cell in enumerate(cells)
    ]
    place = {
        name: {"field": name, "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.12, "paddingOuter": 0}}
        for name in ("x", "y")
    }
    scale = {"type": "threshold", "domain": list(thresholds), "range": list(HEAT)}
    layers = [
        {
            "transform": [{"filter": "datum.v !== null"}],
            "mark": {"type": "rect"},
            "encoding": {
                **place,
                "fill": {"field": "v", "type": "quantitative", "scale": scale, "legend": None},
                "description": {"field": "d"},
            },
        },
        {
            "transform": [{"filter": "datum.v === null"}],
            "mark": {"type": "rect", "fill": "transparent", "stroke": _QUIET, "strokeDash": [2, 2]},
            "encoding": {**place, "description": {"field": "d"}},
        },
    ]
    spec = _spec(columns * size, rows * size, values, layer=layers, padding=1)
    return Chart(label, spec, tuple(cell.tip for cell in cells), is_grid=True)


def thresholds(end: float) -> tuple[float, ...]:
    """Five thresholds that part zero to `end` into six equal steps."""
    return tuple(end * step / 6 for step in range(1, 6))


def steps(
    points: Sequence[tuple[int, float, float, float]], marks: Sequence[tuple[int, str]], expected: float | None
) -> Chart | None:
    """A run's MFU over its steps: (step, least, median, most) of consecutive ones, and `marks` as vertical lines."""
    if len(points) < 2:
        return None
    end = top([*(most for *_, most in points), expected])
    values = [{"s": step, "low": low, "v": median, "high": high} for step, low, median, high in points]
    first, last = points[0][0], points[-1][0]

    def draw(width: int, height: int) -> Spec:
        axis = {**_axis(), "title": "step", "format": ",d", "grid": False, "tickCount": 6 if width > NARROW else 3}
        x = {"field": "s", "type": "quantitative", "scale": {"domain": [first, last], "nice": False}, "axis": axis}
        y = {"type": "quantitative", "scale": {"domain": [0, end]}, "axis": _percent()}
        layers: list[dict[str, Any]] = [
            {
                "mark": {"type": "area", "color": _AREA},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": _FILL, "strokeWidth": 1.5},
                "encoding": {"x": x, "y": {**y, "field": "v"}},
            },
        ]
        if expected is not None:
            layers.append(
                {"data": {"values": [{"v": expected}]}, "mark": _rule(), "encoding": {"y": {**y, "field": "v"}}}
            )
        inside = [{"s": step, "d": f"#{n}"} for n, (step, _) in enumerate(marks) if first <= step <= last]
        if inside:
            layers.append(
                {
                    "data": {"values": inside},
                    "mark": {"type": "rule", "color": "var(--bad)", "strokeWidth": 2},
                    "encoding": {"x": x, "description": {"field": "d"}},
                }
            )
        return _spec(width, height, values, layer=layers)

    label = f"MFU from step {first:,} to step {last:,}, from zero to {end:.0%}"
    return Chart(label, draw(WIDE, 190), tuple(tip for _, tip in marks), draw(NARROW, 150))


def _spec(width: int, height: int, values: Sequence[Any], *, layer: Sequence[Any], padding: int = 4) -> Spec:
    """A layered chart whose `width` is the picture's own, axes included."""
    return {
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": padding,
        "background": None,
        "config": {"font": _FONT, "view": {"stroke": None}, "aria": True},
        "data": {"values": list(values)},
        "layer": list(layer),
    }


def _axis() -> dict[str, Any]:
    return {
        "labelColor": _QUIET,
        "labelFontSize": 11,
        "titleColor": _QUIET,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "gridColor": _LINE,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    }


def _percent(*, grid: bool = True) -> dict[str, Any]:
    # A percentage that is no whole number of per cents keeps its decimal.
    return {**_axis(), "title": None, "format": "~%", "tickCount": 4, "grid": grid}


def _number(unit: str, width: int) -> dict[str, Any]:
    return {**_axis(), "title": unit, "format": ".2~s", "tickCount": 5 if width > NARROW else 3, "grid": True}


def _time(*, ticks: int) -> dict[str, Any]:
    # Vega's own choice of format shows a lone "November" for midnight; these are the same everywhere.
    by_day, by_hour = dict.fromkeys(("date", "day", "week"), "%d %b"), dict.fromkeys(("hours", "minutes"), "%H:%M")
    overlap = {"labelOverlap": True, "labelBound": True, "labelSeparation": 12}
    form = {**by_hour, **by_day, "month": "%b %Y"}
    return {**_axis(), **overlap, "title": None, "grid": False, "tickCount": ticks, "format": form}


def _rule() -> dict[str, Any]:
    return {"type": "rule", "color": _MARK, "strokeWidth": 1.5, "strokeDash": [5, 4]}


def _is_alone(points: Sequence[Point], number: int) -> bool:
    around = [points[near].share for near in (number - 1, number + 1) if 0 <= near < len(points)]
    return points[number].share is not None and all(share is None for share in around)
