"""What a chart of an answer is drawn from: numbers and words, nothing of pixels."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Point:
    """One value with its interval; `x` is a number where the axis is one, and the bar's `label` is told beside it."""

    label: str
    y: float | None
    x: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart: bars by label, points with intervals, or lines over `x`; `reference` is a line to compare with."""

    kind: Literal["bars", "points", "lines"]
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    reference: float | None = None
