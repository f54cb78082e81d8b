"""The six answers, on cells that are reckoned by hand."""

import random
from math import log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.provider.questions import (
    by_gpu_type,
    by_scale,
    low_workloads,
    new_hardware,
    statistics,
    trend,
    under_batching,
)
from mfu_sdk.provider.questions.answers import bucket_of
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.rollup import Range, Sums

DAY = 86_400


def cell(mfu: float | None, available: float = 100.0, *, sums: dict[str, float] | None = None, **names: Any) -> Cell:
    """A cell of `available` FLOPs at `mfu`, in an hour of a device."""
    known = {} if mfu is None else {"model_flops": mfu * available, "available_flops": available}
    return Cell(Sums(**{"device_s": 3600.0, **known, **(sums or {})}), **{"tenant": "acme", **names})


def near(value: Any, **tolerance: Any) -> Any:
    """About `value`."""
    return pytest.approx(value, **tolerance)


# --- statistics ------------------------------------------------------------------------------------------------------


def trend_of(series: list[list[tuple[float, float]]]) -> statistics.Trend | None:
    return statistics.trend(statistics.judge(points) for points in series)


def line(values: list[float]) -> list[tuple[float, float]]:
    return [(float(index), value) for index, value in enumerate(values)]


def test_rising_series() -> None:
    """Ten rising points: S is 45 of variance 125, so z = 44 / √125 = 3.935 and p = 8.3e-5; each slope is 2."""
    found = trend_of([line([2.0 * n for n in range(10)])])
    assert found is not None
    assert (found.slope.value, found.slope.low, found.slope.high) == (2.0, 2.0, 2.0)
    assert found.p_value == near(8.3e-5, rel=0.01)
    assert (found.inflation, found.series, found.points) == (1.0, 1, 10)


def test_ties_and_too_few() -> None:
    """A flat series has no trend; seven points are no test."""
    flat = trend_of([line([1.0] * 9)])
    assert flat is not None
    assert (flat.slope.value, flat.p_value) == (0.0, 1.0)
    assert trend_of([line([float(n) for n in range(7)])]) is None


def test_levels_between_series_are_no_trend() -> None:
    """A series that is lower and later than another has no slope against it."""
    early = [(float(n), 10.0 + n % 2) for n in range(8)]
    late = [(float(n), 1.0 + n % 2) for n in range(20, 28)]
    both, joined = trend_of([early, late]), trend_of([early + late])
    assert both is not None
    assert joined is not None
    assert (both.slope.value, joined.slope.value) == (0.0, -0.375)


def autoregression(rng: random.Random, phi: float, length: int) -> list[float]:
    values, level = [], rng.gauss(0, 1) / (1 - phi * phi) ** 0.5
    for _ in range(length):
        level = phi * level + rng.gauss(0, 1)
        values.append(level)
    return values


def test_dependence_is_no_trend() -> None:
    """Of 150 dependent series (φ 0.6) without a trend, the plain test finds one in 38 at least, ours in 18 at most."""
    rng = random.Random(7)
    series = [line(autoregression(rng, 0.6, 40)) for _ in range(150)]
    found = [trend_of([points]) for points in series]
    inflated = [each for each in found if each is not None and each.inflation > 1]
    false = sum(each is not None and each.p_value < 0.05 for each in found)
    plain = 0
    for each in found:
        assert each is not None
        # The uncorrected z is larger by the root of the inflation.
        z = statistics._NORMAL.inv_cdf(1 - each.p_value / 2) * each.inflation**0.5 if each.p_value < 1 else 0.0
        plain += z > 1.96
    assert plain >= 150 / 4
    assert false <= 150 / 8
    assert len(inflated) > 100


@given(st.lists(st.floats(-10, 10), min_size=8, max_size=14, unique=True), st.floats(0.1, 10))
def test_trend_turns_with_its_series(values: list[float], factor: float) -> None:
    """Upside down it falls as it rose; stretched, it rises by as much more and is as sure."""
    found, turned = trend_of([line(values)]), trend_of([line([-v for v in values])])
    wider = trend_of([line([v * factor for v in values])])
    assert found is not None
    assert turned is not None
    assert wider is not None
    assert turned.slope.value == near(-found.slope.value, abs=1e-9)
    assert turned.slope.low == near(-(found.slope.high or 0.0), abs=1e-9)
    assert wider.slope.value == near(found.slope.value * factor, abs=1e-9)


def test_paired_ratios() -> None:
    """Ratios 2 and 8 have the mean 4; with one degree of freedom 12.706 × s / √2 = 12.706 × ln 2 on either side."""
    found = statistics.paired([2.0, 8.0])
    assert found is not None
    assert found.value == near(4.0)
    assert found.high == near(4 * 2**12.706, rel=1e-6)
    assert found.low == near(4 / 2**12.706, rel=1e-6)
    assert statistics.paired([3.0]) == statistics.Estimate(near(3.0))
    assert statistics.paired([]) is None


def test_score_interval() -> None:
    """9 of 10: Wilson's interval begins at 0.5958."""
    assert statistics.wilson_low(9, 10) == near(0.5958, abs=1e-4)
    assert statistics.wilson_low(0, 0) == 0.0


def test_fit_of_a_line() -> None:
    """Points on 3 + 2 x are fitted exactly; without degrees of freedom there is no interval, nor without two xs."""
    fit = statistics.fit_relative([(1, 0), (1, 1), (1, 5)], [3.0, 5.0, 13.0])
    assert fit is not None
    assert fit.coefficients == near((3.0, 2.0))
    assert fit.at((1, 2)).high == near(7.0)
    exact = statistics.fit_relative([(1, 0), (1, 1)], [3.0, 5.0])
    assert exact is not None
    assert exact.at((1, 1)).low is None
    assert statistics.fit_relative([(1, 2), (1, 2), (1, 2)], [1.0, 2.0, 3.0]) is None
    assert statistics.fit_relative([(1, 2)], [1.0]) is None


# --- 1: low ----------------------------------------------------------------------------------------------------------


def expecting(mfu: float, expected: float, **names: Any) -> Cell:
    return cell(mfu, sums={"expected_flops": 100 * expected, "expected_available_flops": 100.0}, **names)


def test_low_against_expectation() -> None:
    """20 % where 40 % is expected is low in 8 of 8 buckets; 20 % where 21 % is expected is not, nor what has none."""
    low = [expecting(0.2, 0.4, workload="low", start_unix_s=n) for n in range(8)]
    episode = [expecting(0.1 if n < 3 else 0.4, 0.4, workload="episode", start_unix_s=n) for n in range(8)]
    fine = [expecting(0.2, 0.21, workload="fine", start_unix_s=n) for n in range(8)]
    found = low_workloads.answer([*low, *episode, *fine, cell(0.2, workload="silent")])
    assert [(w.workload, w.attained, w.low_share, w.buckets, w.consistent) for w in found.workloads] == [
        ("low", near(0.5), 1.0, 8, True),
        ("episode", near(2.3 / 3.2), 3 / 8, 8, False),
    ]
    assert found.workloads[0].shortfall_gpu_hours == near(0.5 * 8)
    assert (found.judged, found.unjudged) == (3, 1)
    assert found.missing == ("1 of 4 workloads have no expected MFU (mfu.expected.flop) to be low against",)
    assert found.picture is not None
    first = found.picture.series[0].points[0]
    assert (first.label, first.y) == ("low", near(0.5))


# --- 2 and 6: GPU types ----------------------------------------------------------------------------------------------


def on(gpu_type: str, intent: str | None, mfu: float, hours: float = 1.0, peak: float = 1.0, **names: Any) -> Cell:
    seconds = hours * 3600
    return cell(mfu, peak * seconds, sums={"device_s": seconds}, gpu_type=gpu_type, intent=intent, **names)


def test_matched_types() -> None:
    """Each configuration is 20 % lower on the new type, while the new type's own work is easier: matched says 0.8."""
    cells = [
        on("old", "a", 0.5, 10),
        on("old", "b", 0.2, 100),
        on("new", "a", 0.4, 100, peak=3.0),
        on("new", "b", 0.16, 1, peak=3.0),
        on("new", "c", 0.9, 1, peak=3.0),
    ]
    found = by_gpu_type.answer(cells)
    [pair] = found.matched
    assert (pair.gpu_type, pair.base, pair.intents) == ("new", "old", 2)
    assert pair.mfu_ratio.value == near(0.8)
    assert (pair.mfu_ratio.low, pair.mfu_ratio.high) == (near(0.8), near(0.8))
    assert pair.rate_ratio is not None
    assert pair.rate_ratio.value == near(2.4)
    assert pair.crude_mfu_ratio is not None
    assert pair.crude_mfu_ratio > 1.5
    assert found.matched_share == near(211 / 212)


def test_no_intent_is_said() -> None:
    """Without configurations nothing is compared, and the answer says what is missing."""
    found = by_gpu_type.answer([on("old", None, 0.5), on("new", None, 0.4)])
    assert (found.matched, found.missing) == ((), (by_gpu_type.NO_INTENT,))
    assert found.picture is None


def test_phases_are_not_compared() -> None:
    """A configuration's training is not matched with its evaluation."""
    cells = [on("old", "a", 0.5, phase="train"), on("new", "a", 0.2, phase="eval")]
    assert by_gpu_type.answer(cells).matched == ()


@pytest.mark.parametrize(
    ("new", "verdict"), [([0.48, 0.49, 0.5], "raised"), ([0.3, 0.31, 0.32], "lowered"), ([0.3, 0.4, 0.5], "not shown")]
)
def test_new_hardware(new: list[float], verdict: str) -> None:
    """Three configurations at 40 % before: the interval of their ratios says whether they rose."""
    cells = [on("old", name, 0.4, first_unix_s=0) for name in "abc"]
    cells += [on("new", name, mfu, first_unix_s=5 * DAY, peak=2.0) for name, mfu in zip("abc", new, strict=True)]
    cells += [on("new", "d", 0.9, first_unix_s=6 * DAY)]
    found = new_hardware.answer(cells, 0)
    [arrival] = found.arrivals
    assert (arrival.gpu_type, arrival.base, arrival.first_seen_unix_s) == ("new", "old", 5 * DAY)
    assert (arrival.intents, arrival.verdict) == (3, verdict)
    assert arrival.peak_ratio == near(2.0)
    assert arrival.new_share == near(3 / 4)


def test_nothing_new() -> None:
    """Types that were seen from the same day on are neither old nor new, and it is said."""
    cells = [on("x", "a", 0.4, first_unix_s=0), on("y", "a", 0.5, first_unix_s=3600)]
    found = new_hardware.answer(cells, 0)
    assert found.arrivals == ()
    assert found.missing == ("no GPU type was first seen a day or more after another: nothing here is new",)
    later = [on("x", "a", 0.4, first_unix_s=0), on("y", "b", 0.5, first_unix_s=2 * DAY)]
    assert "ran on an older type" in new_hardware.answer(later, 0).missing[0]


# --- 3: scale --------------------------------------------------------------------------------------------------------


def run_of(world: int, step_s: float, tokens_a_rank: float | None, run: str = "r", mfu: float = 0.4) -> Cell:
    """100 steps on each of `world` ranks."""
    steps = 100.0 * world
    sums = {"steps": steps, "timed_steps": steps, "device_s": steps * step_s}
    if tokens_a_rank is not None:
        sums["tokens"] = steps * tokens_a_rank
    return cell(mfu, sums=sums, family="f", gpu_type="H100", phase="train", world_size=world, run_id=f"{run}-{world}")


def test_strong_and_weak_are_apart() -> None:
    """Runs of 4,096 tokens a rank are one curve, runs of 32,768 tokens in all another, those without tokens a third."""
    weak = [run_of(w, 1.0 + 0.1 * log2(w), 4096, "weak") for w in (1, 2, 4)]
    strong = [run_of(w, 0.5 + 8 / w + 0.1 * log2(w), 32_768 / w, "strong") for w in (16, 32, 64, 128)]
    silent = [run_of(w, 1.0, None, "silent") for w in (1, 2)]
    curves = by_scale.curves([*strong, *silent, *weak])
    assert [(c.kind, [p.world_size for p in c.points], c.tokens_per_step) for c in curves] == [
        ("weak", [1, 2, 4], 4096.0),
        ("strong", [16, 32, 64, 128], 32_768.0),
        (None, [1, 2], None),
    ]
    found = by_scale.answer(curves)
    assert found.missing == (by_scale.NO_TOKENS,)
    weak_fit, strong_fit, none = (curve.fit for curve in found.curves)
    assert none is None
    assert weak_fit is not None
    assert strong_fit is not None
    assert (weak_fit.fixed_s.value, weak_fit.divided_s) == (near(1.0), None)
    assert weak_fit.each_doubling_s.value == near(0.1)
    assert strong_fit.fixed_s.value == near(0.5)
    assert strong_fit.divided_s is not None
    assert strong_fit.divided_s.value == near(8.0)
    # T(1) = 1.0 and T(8) = 1.3; 16 ranks take 1.4 s for a sixteenth, 256 take 1.33 s for a 256th.
    assert (weak_fit.next_size, weak_fit.next_efficiency) == (8, statistics.Estimate(*[near(1 / 1.3)] * 3))
    assert strong_fit.next_efficiency is not None
    assert strong_fit.next_efficiency.value == near(1.4 / 16 / (0.5 + 8 / 256 + 0.8))


def test_fit_intervals_hold_the_truth() -> None:
    """Over 200 draws of 2 % noise, the 95 % interval of c holds it in 180 to 199."""
    rng = random.Random(3)
    held = 0
    for _ in range(200):
        runs = [
            run_of(w, (1.0 + 0.1 * log2(w)) * (1 + rng.gauss(0, 0.02)), 4096, f"r{n}")
            for w in (1, 2, 4, 8)
            for n in range(3)
        ]
        [curve] = by_scale.curves(runs)
        assert curve.fit is not None
        c = curve.fit.each_doubling_s
        held += (c.low or 0) <= 0.1 <= (c.high or 0)
    assert 180 <= held <= 199


def test_one_size_is_no_curve() -> None:
    """One size is told among the curves, and is no answer."""
    curves = by_scale.curves([run_of(8, 1.0, 4096)])
    assert len(curves) == 1
    assert by_scale.answer(curves).curves == ()
    assert by_scale.answer(curves).missing == ("no model structure (mfu.workload.family) ran at two world sizes",)


# --- 4: batches ------------------------------------------------------------------------------------------------------


def serving(tenant: str, running: float, feasible: float | None, expected: float, at_feasible: float | None) -> Cell:
    sums = {
        "tokens": 36_000.0, "batch_s": running * 3600, "batch_device_s": 3600.0,
        "expected_flops": 100 * expected, "expected_available_flops": 100.0,
    }  # fmt: skip
    if feasible is not None:
        sums |= {"batch_feasible_weighted": feasible * 3600, "batch_feasible_s": 3600.0}
    if at_feasible is not None:
        sums |= {"feasible_mfu_weighted": at_feasible * 3600, "feasible_mfu_s": 3600.0}
    return cell(0.05, sums=sums, tenant=tenant, workload="chat", phase="decode")


def test_under_batching() -> None:
    """8 of 32 at an expected 10 % where 32 would reach 40 %: 3/4 of the tokens are lost, 30 a second beside 10."""
    found = under_batching.answer(
        [serving("full", 31, 32, 0.39, 0.4), serving("low", 8, 32, 0.1, 0.4), serving("mute", 8, None, 0.1, None)]
    )
    low, full = found.workloads
    assert (low.fill, low.lost_share, low.tokens_per_s) == (0.25, near(0.75), 10.0)
    assert low.lost_tokens_per_s == near(30.0)
    assert low.lost_gpu_hours == near(0.75)
    assert full.lost_share == near(0.025)
    assert [(t.tenant, t.fill, t.under_batches) for t in found.tenants] == [
        ("low", 0.25, True),
        ("full", 31 / 32, False),
    ]
    assert found.missing == ("1 tenants' inference does not say what batch would fit (load=, mfu.batch.feasible)",)


def test_unknown_loss_is_not_zero() -> None:
    """A server that says what would fit, of a model whose expectation there is not known: the loss is unknown."""
    found = under_batching.answer([serving("t", 8, 32, 0.1, None)])
    assert (found.workloads[0].fill, found.workloads[0].lost_share, found.tenants[0].under_batches) == (
        0.25,
        None,
        None,
    )
    assert "tokens lost need the expected MFU" in found.missing[0]


# --- 5: trend --------------------------------------------------------------------------------------------------------


def moving(intent: str, mfu: list[float], available: list[float]) -> list[Cell]:
    return [
        cell(value, weight, gpu_type="H100", intent=intent, start_unix_s=n * DAY)
        for n, (value, weight) in enumerate(zip(mfu, available, strict=True))
        if weight
    ]


def test_a_changed_mix_is_no_trend() -> None:
    """Two works that stay at 20 and 40 % while the second takes over: the fleet rises, neither work does."""
    rng = random.Random(1)
    low = moving("low", [0.2 * (1 + rng.gauss(0, 0.01)) for _ in range(20)], [100.0 - 4 * n for n in range(20)])
    high = moving("high", [0.4 * (1 + rng.gauss(0, 0.01)) for _ in range(20)], [4.0 * n for n in range(20)])
    found = trend.answer([*low, *high], [cell(0.2, gpu_type="H100", intent="low")], DAY)
    assert found.crude is not None
    assert found.matched is not None
    assert found.crude.verdict == "rising"
    assert found.matched.verdict == "no trend shown"
    assert found.matched.series == 2
    assert found.mix == near((found.mfu or 0) - 0.2, abs=0.01)


def test_a_falling_work_falls() -> None:
    """2 % less each day for 20 days is (1 − 0.02)^20 − 1 over the range, by itself and matched."""
    cells = moving("a", [0.4 * 0.98**n for n in range(20)], [100.0] * 20)
    found = trend.answer(cells, [], DAY)
    assert found.matched is not None
    assert found.matched.verdict == "falling"
    assert found.matched.change.value == near(0.98**20 - 1)
    assert (found.mix, found.within, found.previous_mfu) == (None, None, None)
    assert [kind.gpu_type for kind in found.gpu_types] == ["H100"]


def test_split_by_hand() -> None:
    """From 20 % all to half 20, half 40: +10 points of mix. From 20 and 40 at halves to 30 and 40: +5 within."""

    def a(mfu: float) -> Cell:
        return cell(mfu, intent="a")

    def b(mfu: float) -> Cell:
        return cell(mfu, intent="b")

    assert trend.split([a(0.2)], [a(0.2), b(0.4)]) == (near(0.1), near(0.0))
    assert trend.split([a(0.2), b(0.4)], [a(0.3), b(0.4)]) == (near(0.0), near(0.05))
    assert trend.split([], [a(0.2)]) == (None, None)


CELLS = st.lists(
    st.builds(
        cell, st.floats(0, 1), st.floats(1, 1000), intent=st.sampled_from("abc"), gpu_type=st.sampled_from(["x", "y"])
    ),
    min_size=1,
    max_size=8,
)


@given(CELLS, CELLS)
def test_split_is_exact(before: list[Cell], after: list[Cell]) -> None:
    """Mix and within add up to the change, whatever came and went."""
    found = trend.answer(after, before, DAY)
    assert found.mix is not None
    assert found.within is not None
    assert found.mix + found.within == near((found.mfu or 0) - (found.previous_mfu or 0), abs=1e-9)


@given(CELLS, CELLS)
def test_split_turns(before: list[Cell], after: list[Cell]) -> None:
    """Backwards, each part has the other sign."""
    mix, within = trend.split(before, after)
    back = trend.split(after, before)
    assert back == (near(-(mix or 0), abs=1e-9), near(-(within or 0), abs=1e-9))


def test_too_short_to_test() -> None:
    """Three buckets are a change and no trend."""
    found = trend.answer(moving("a", [0.1, 0.2, 0.3], [1.0] * 3), [], DAY)
    assert found.crude is found.matched is None
    assert found.missing[0].startswith("a test needs 8 buckets")


@pytest.mark.parametrize(("days", "bucket_s"), [(1 / 24, 300), (1, 3600), (7, 21_600), (30, 86_400), (365, 604_800)])
def test_buckets(days: float, bucket_s: int) -> None:
    """The longest bucket of which twenty fit."""
    assert bucket_of(Range(0, round(days * DAY * 1e9))) == bucket_s
