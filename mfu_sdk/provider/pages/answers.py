"""The six answers as tables of a few rows and the pictures beside them, whose rows have the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from mfu_sdk.provider.pages import charts
from mfu_sdk.provider.pages.charts import Chart, Curve, Ratio, Row
from mfu_sdk.provider.questions import (
    Arrival,
    Estimate,
    LowWorkload,
    MatchedTypes,
    Questions,
    Scaling,
    TenantFilled,
)
from mfu_sdk.provider.report import words


@dataclass(frozen=True, slots=True)
class Series:
    """A scaling curve as its picture has it: the number of its colour and shape, or None where it is not drawn."""

    number: int | None
    curve: Scaling


@dataclass(frozen=True, slots=True)
class Answers:
    """The first rows of each answer, and a picture of those rows."""

    low: tuple[LowWorkload, ...]
    low_picture: Chart | None
    matched: tuple[MatchedTypes, ...]
    matched_picture: Chart | None
    curves: tuple[Series, ...]
    curve_picture: Chart | None
    tenants: tuple[TenantFilled, ...]
    tenant_picture: Chart | None
    arrivals: tuple[Arrival, ...]
    arrival_picture: Chart | None


def of(questions: Questions, shown: int) -> Answers:
    """The answers to `questions`, `shown` rows of each at most."""
    low = questions.low_workloads.workloads[:shown]
    matched = questions.by_gpu_type.matched[:shown]
    curves = numbered(questions.by_scale.curves[:shown])
    tenants = questions.under_batching_tenants.tenants[:shown]
    arrivals = questions.new_hardware.arrivals[:shown]
    return Answers(
        low,
        charts.ranked(
            [Row(w.mfu, w.expected_mfu, _pair(w.workload, w)) for w in low], what="MFU", against="expected MFU"
        ),
        matched,
        charts.ratios([_ratio(m.gpu_type, m.base, m.mfu_ratio) for m in matched], what="The ratio of MFU"),
        curves,
        scaling(curves),
        tenants,
        charts.ranked([Row(t.fill, 1.0, _filled(t)) for t in tenants], what="How full batches are", against="full"),
        arrivals,
        charts.ratios([_ratio(a.gpu_type, a.base, a.mfu_ratio) for a in arrivals], what="The ratio of MFU"),
    )


def numbered(curves: Sequence[Scaling]) -> tuple[Series, ...]:
    """Curves of more than one known point by the number of their line, the first six of them."""
    found: list[Series] = []
    drawn = 0
    for curve in curves:
        is_line = drawn < len(charts.SERIES) and sum(point.mfu is not None for point in curve.points) > 1
        found.append(Series(drawn if is_line else None, curve))
        drawn += is_line
    return tuple(found)


def scaling(curves: Sequence[Series]) -> Chart | None:
    """The curves that have a number."""
    return charts.scaling(
        [
            Curve(
                tuple(
                    (point.world_size, point.mfu, f"{point.world_size:,} ranks: MFU {words.percent(point.mfu)}")
                    for point in series.curve.points
                    if point.mfu is not None
                )
            )
            for series in curves
            if series.number is not None
        ]
    )


def _pair(name: str | None, row: LowWorkload) -> str:
    return f"{words.name(name)}: MFU {words.percent(row.mfu)}, expected {words.percent(row.expected_mfu)}"


def _ratio(new: str, base: str, found: Estimate) -> Ratio:
    interval = "" if found.low is None or found.high is None else f", {found.low:.2f} to {found.high:.2f}"
    return Ratio(
        found.value, found.low, found.high, f"{words.name(new)} over {words.name(base)}: {found.value:.2f}{interval}"
    )


def _filled(row: TenantFilled) -> str:
    return f"{words.name(row.tenant)}: batches {words.percent(row.fill, 0)} full"
