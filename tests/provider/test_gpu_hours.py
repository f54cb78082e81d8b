"""Hours of exporters' GPUs: whatever is read of them is what their five minutes say, and late samples change both."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, tzinfo
from typing import Any

import pytest

from mfu_sdk.errors import StoreError
from mfu_sdk.provider.store import PointRow, Row, Store, timestamp

T0 = 1_780_000_200 * 10**9
"""20:30, so that five hours are of two days."""

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
EVER = 20_000


def read(store: Store, since: int, until: int, stretches: list[tuple[str, int, int, float]]) -> list[Row]:
    columns: dict[str, Any] = {
        "keys": [each[0] for each in stretches],
        "since_ns": [str(each[1]) for each in stretches],
        "until_ns": [str(each[2]) for each in stretches],
        "shares": [str(each[3]) for each in stretches],
    }
    return store.read("gpus", since=since, until=until, **columns)


def alike(one: list[Row], two: list[Row]) -> bool:
    return len(one) == len(two) and all(
        math.isclose(left[key], right[key], rel_tol=1e-12) if isinstance(left[key], float) else left[key] == right[key]
        for left, right in zip(one, two, strict=True)
        for key in left
    )


@pytest.fixture(scope="module")
def by_fives(store: Store) -> Callable[..., list[Row]]:
    """Reads without any hours, which are put back afterwards."""

    def made(*asked: Any) -> list[Row]:
        store._writer.query("TRUNCATE TABLE otel.mfu_gpus_1h")
        found = read(store, *asked)
        store._make_gpu_hours(days=EVER)
        return found

    return made


@pytest.fixture
def told(store: Store, points_of_a_fleet: Callable[[str], tuple[PointRow, ...]]) -> tuple[PointRow, ...]:
    """What an exporter tells of two GPUs, stored, over five hours of two days; the clock is not told all along."""
    points = tuple(
        point
        for number, point in enumerate(points_of_a_fleet("provider:dcgm"))
        if point.columns["MetricName"] != "DCGM_FI_DEV_SM_CLOCK" or number % 7
    )
    if not store.query("SELECT 1 FROM otel.mfu_gpus_5m LIMIT 1"):
        store.insert_points(points)
    return points


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ((-40, 340), []),
        ((13, 251), [("GPU-0", 30, 91, 1.0), ("host:node-1", -10, 200, 0.5), ("host:node-1", 202, 204, 1.0)]),
        ((42, 43), [("GPU-0", 0, 340, 1.0)]),
    ],
    ids=["all", "cut", "minute"],
)
def test_hours_say_what_five_minutes_say(
    store: Store,
    told: tuple[PointRow, ...],
    by_fives: Callable[..., list[Row]],
    bounds: tuple[int, int],
    held: list[tuple[str, int, int, float]],
) -> None:
    """Whatever range and holdings cut through them, reading hours and reading five minutes is the same."""
    stretches = [(key, T0 + first * MINUTE, T0 + last * MINUTE, share) for key, first, last, share in held]
    asked = (T0 + bounds[0] * MINUTE + 7, T0 + bounds[1] * MINUTE - 7, stretches)
    expected = by_fives(*asked)
    assert alike(read(store, *asked), expected)


def test_by_hand(store: Store, told: tuple[PointRow, ...]) -> None:
    """Two GPUs, three whole hours, half of them held by one: seconds, means and MHz by hand."""
    store._make_gpu_hours(days=EVER)
    since = T0 + 30 * MINUTE
    rows = read(store, since, since + 3 * HOUR, [("GPU-0", since, since + 90 * MINUTE, 1.0)])
    assert [row["gpu"] for row in rows] == ["GPU-0", "GPU-1"]
    assert [row["seconds"] for row in rows] == [10_800, 10_800]
    assert [row["held_s"] for row in rows] == [5_400, 0]
    assert [row["tensor_weighted"] for row in rows] == [2_700, 2_700]
    assert [row["tensor_held_weighted"] for row in rows] == [1_350, 0]
    assert [row["untold_mhz_s"] for row in rows] == [0.25 * 1024 * 10_800] * 2


def test_late_samples(store: Store, told: tuple[PointRow, ...], by_fives: Callable[..., list[Row]]) -> None:
    """A day's hours are made again where samples came late, by whoever stores the next points on another day."""
    store._make_gpu_hours(days=EVER)
    asked: tuple[int, int, list[tuple[str, int, int, float]]] = (T0, T0 + 3 * HOUR, [])
    before = read(store, *asked)
    late = [
        replace(point, columns={**point.columns, "TimeUnix": timestamp(T0 + 45 * MINUTE), "Value": 1.0})
        for point in told[:1]
    ]
    store.insert_points(late)
    assert read(store, *asked) == before
    store._make_gpu_hours(days=EVER)
    after = read(store, *asked)
    assert after[0]["tensor_weighted"] > before[0]["tensor_weighted"]
    assert alike(after, by_fives(*asked))
    [row] = store.query("SELECT count() AS n, uniqExact(gpu, ts) AS keys FROM otel.mfu_gpus_1h FINAL")
    assert row["n"] == row["keys"] == 2 * 6


class Calendar(datetime):
    """Is on one day, whatever day it is: midnight may come while the test runs."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Calendar":
        return cls(2026, 1, 2, tzinfo=tz)


def test_made_when_a_day_is_over(store: Store, told: tuple[PointRow, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first points of another day make the hours of the one before; a failure of that costs no point."""
    monkeypatch.setattr("mfu_sdk.provider.store.datetime", Calendar)
    store._today = date(2026, 1, 2)
    asked: list[int] = []
    monkeypatch.setattr(store, "_make_gpu_hours", lambda *, days: asked.append(days))
    store.insert_points(told[:1])
    assert asked == []
    store._today = date(2026, 1, 1)
    store.insert_points(told[:1])
    assert asked == [14]

    def fails(*, days: int) -> None:
        raise StoreError(f"{days} days cannot be made")

    monkeypatch.setattr(store, "_make_gpu_hours", fails)
    store._today = date(2026, 1, 1)
    store.insert_points(told[:1])
