"""The watch for drift: baselines and bets by hand, the promise about false alarms, bad input, and what is kept."""

import json
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from mfu_sdk.drift.account import Account, Asked
from mfu_sdk.drift.budget import WEEK_S, Budget
from mfu_sdk.drift.detector import Baseline, Detector, Tuning
from mfu_sdk.drift.stream import Excursion, onset
from mfu_sdk.drift.watch import MOST_STREAMS, Watch
from mfu_sdk.errors import ConfigurationError

FLOPS = 1_000_000
ASKED = Asked(FLOPS, FLOPS, 0.25, 4e6, 4e6)
QUICK = Tuning(block_steps=4, baseline_blocks=16, settle_steps=4)
WARM = 4 + 4 * 16
LEVEL = Baseline(0.0, -0.01, 0.01, 0.02, 128)


def noise(seed: int, spread: float = 0.02) -> Iterator[float]:
    """Factors near 1 that depend on one another: an autoregression with coefficient 0.6."""
    generator, state = random.Random(seed), 0.0
    while True:
        state = 0.6 * state + 0.8 * generator.gauss(0.0, spread)
        yield math.exp(state)


def run(watch: Watch, steps: int, duration_s: float, *, first: int = 0, **more: object) -> list[Excursion]:
    """Enter `steps` steps of about `duration_s` and give back what was found."""
    factors = noise(first + 1)
    found = [
        watch.add(
            **{  # type: ignore[arg-type]
                "phase": "train",
                "asked": ASKED,
                "index": index,
                "start_unix_ns": index * 10**9,
                "duration_s": duration_s * next(factors),
                "tokens": 100,
                "data_s": 0.0,
                "batch": 8.0,
                **more,
            }
        )
        for index in range(first, first + steps)
    ]
    return [each for each in found if each is not None]


# --- the detector ----------------------------------------------------------------------------------------------------


def test_baseline_by_hand() -> None:
    """Of 16 values the 95 % bounds are the fourth from either end: 16/2 − 1.645 · 4/2 − 1 = 3.7."""
    levels = [float(value) for value in range(16)]
    base = Baseline.of(levels, Tuning())
    assert (base.middle, base.low, base.high, base.blocks) == (7.5, 3.0, 12.0, 16)
    # The median of |x − 7.5| is 4; twice the standard deviation that this stands for.
    assert base.scale == pytest.approx(2 * 1.4826 * 4)


def test_a_flat_baseline_has_a_scale() -> None:
    """Levels that never differ are held apart by half of the tolerance."""
    assert Baseline.of([1.0] * 64, Tuning(tolerance=0.02)).scale == pytest.approx(-math.log(0.98) / 2)


def test_bounds_cover_the_median() -> None:
    """The lower bound is below the true median in 95 of 100 baselines of independent blocks."""
    generator = random.Random(1)
    trials = [Baseline.of([generator.gauss(0, 1) for _ in range(128)], Tuning()) for _ in range(2000)]
    below = sum(each.low <= 0 for each in trials) / len(trials)
    assert 0.95 <= below <= 0.985
    assert 0.95 <= sum(each.high >= 0 for each in trials) / len(trials) <= 0.985


def test_bets_by_hand() -> None:
    """One bet of 0.5 against X = −2, twice: R = 2 · (1 + 0) = 2, then 2 · (1 + 2) = 6; the threshold is met."""
    tuning = Tuning(tolerance=0.02, bets=(0.5,))
    detector = Detector(tuning, LEVEL, threshold=6.0)
    # (level − low + slack) / scale = −2
    level = -0.01 - tuning.slack - 2 * 0.02
    assert detector.add(level) is None
    assert detector.score == pytest.approx(2.0)
    assert detector.add(level - 1e-9) == "drop"
    assert detector.excursion == "drop"


def test_a_rise_is_the_mirror_image() -> None:
    """The same bets on the other side."""
    tuning = Tuning(bets=(0.5,))
    detector = Detector(tuning, LEVEL, threshold=6.0)
    level = 0.01 + tuning.slack + 2 * 0.02 + 1e-9
    assert [detector.add(level), detector.add(level)] == [None, "rise"]


def test_within_the_tolerance_nobody_is_told() -> None:
    """A level that is half of the tolerance below the bound, for ever, is no drop at any threshold."""
    tuning = Tuning()
    detector = Detector(tuning, LEVEL, threshold=20.0)
    for _ in range(100_000):
        assert detector.add(-0.01 - 0.5 * tuning.slack) is None
    # R ← (1 − λX)(1 + R) ends at 1/(λX) − 1, here with X = 0.505.
    surplus = 0.5 * tuning.slack / LEVEL.scale
    assert detector.score == pytest.approx(sum(1 / (bet * surplus) - 1 for bet in tuning.bets) / len(tuning.bets))


def test_clipped_blocks_convince_by_and_by() -> None:
    """One block of any depth multiplies a bet of 0.9 by 1 + 6 · 0.9 at most: no single block is an alarm at 20."""
    detector = Detector(Tuning(), LEVEL, threshold=20.0)
    assert detector.add(-1e9) is None
    assert detector.score <= 1 + 6 * 0.9


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0: must be between 0 and 1; 0.02 is 2 %"),
        ({"bets": (1.5,)}, "each bet above 0 and at most 1"),
        ({"baseline_blocks": 2}, "baseline_blocks=2: must be at least 8"),
    ],
)
def test_tuning_that_voids_the_promise(changed: dict[str, float], match: str) -> None:
    """It is refused by name."""
    with pytest.raises(ConfigurationError, match=match):
        Tuning(**changed)  # type: ignore[arg-type]


def test_a_threshold_is_above_one() -> None:
    """Less would be an alarm with the first block."""
    with pytest.raises(ConfigurationError, match=r"threshold=1\.0: must be a number above 1"):
        Detector(Tuning(), LEVEL, 1.0)


def test_the_bound_under_strong_dependence() -> None:
    """P(alarm within n blocks) ≤ n / A, where each block is drawn against the gambler by what came before.

    X has a mean of exactly 0 given the past, the edge of the null: after a loss of money it is 1 or a little below 0,
    after a gain it is −6 with a small chance, so that signs come in runs and spreads in clusters.
    """
    tuning, threshold, blocks, runs = Tuning(), 100.0, 50, 2000
    generator = random.Random(3)
    alarms = 0
    for _ in range(runs):
        detector = Detector(tuning, LEVEL, threshold)
        rose = False
        for _ in range(blocks):
            up, down = (0.2, -6.0) if rose else (1.0, -0.25)
            rose = generator.random() < -down / (up - down)
            level = LEVEL.low - tuning.slack + LEVEL.scale * (up if rose else down)
            if detector.add(level) == "drop":
                alarms += 1
                break
    # The bound is 0.5; a third of it is reached, so that a detector without the 1 + R, or with bets above 1, shows.
    assert 0.05 <= alarms / runs <= blocks / threshold


def test_budget_by_hand() -> None:
    """1,000 streams of 16-second blocks, one alarm a week: 1,000 · 604,800 / 16 blocks, for each of two tests twice."""
    assert Budget(1.0, 1000).threshold(16.0) == 1000 * WEEK_S / 16
    assert Budget(2.0, 1000).threshold(16.0, tests=4) == 2 * 1000 * WEEK_S / 16
    assert Budget(1e9, 1).threshold(16.0) == 20.0
    with pytest.raises(ConfigurationError, match="alarms_per_week=0: must be a number above 0"):
        Budget(alarms_per_week=0)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_drop_is_found_located_and_recovers() -> None:
    """A fifth slower between steps 400 and 600: found, with its onset and its end to a block, and its size."""
    watch = Watch(QUICK)
    assert run(watch, 400, 1.0) == []
    [found] = run(watch, 200, 1.25, first=400)
    assert (found.kind, found.measure, found.recovered_step) == ("drop", "flop_rate", None)
    assert abs(found.onset_step - 400) <= 4
    assert found.onset_unix_ns == found.onset_step * 10**9
    assert found.ratio == pytest.approx(0.8, abs=0.03)
    assert found.score >= 1.0
    # Nothing of the drop is in the baseline, and nothing of the baseline in what came after.
    assert found.before.time_s / found.before.steps == pytest.approx(1.0, rel=0.03)
    assert found.after.time_s / found.after.steps == pytest.approx(1.25, rel=0.05)
    [ended] = run(watch, 400, 1.0, first=600)
    assert ended.onset_step == found.onset_step
    assert abs((ended.recovered_step or 0) - 600) <= 4
    assert watch.excursions == []


def test_two_drops_are_two() -> None:
    """After a recovery the next drop is found anew, with an onset behind it."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    run(watch, 200, 1.25, first=400)
    run(watch, 300, 1.0, first=600)
    [found] = run(watch, 200, 1.25, first=900)
    assert abs(found.onset_step - 900) <= 4


def test_a_slow_ramp_is_found() -> None:
    """Ten per cent over 2,000 steps."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    found = [each for i in range(100) for each in run(watch, 20, 1.0 + 0.001 * i, first=400 + 20 * i)]
    assert [each.kind for each in found] == ["drop"]
    assert 400 < found[0].onset_step < 2400


def test_a_rise_is_found() -> None:
    """Faster than the device should be is found too."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    [found] = run(watch, 200, 0.7, first=400)
    assert found.kind == "rise"


def test_fewer_tokens_at_the_same_rate_of_flops() -> None:
    """Work that makes no tokens: FLOPs a second are what they were, tokens a second are not."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    [found] = run(watch, 200, 1.0, first=400, tokens=80)
    assert (found.kind, found.measure) == ("drop", "token_rate")


def test_a_silent_fp32_cannot_hide() -> None:
    """Half as fast against a quarter of the denominator: MFU doubles, and it is a drop."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    fp32 = Asked(FLOPS, FLOPS, 1.0, 1e6, 4e6)
    [found] = run(watch, 200, 2.0, first=400, asked=fp32)
    assert found.kind == "drop"
    assert found.after.mfu == pytest.approx(0.5, rel=0.1)
    assert found.before.mfu == pytest.approx(0.25, rel=0.05)
    assert found.after.reference_mfu == pytest.approx(0.125, rel=0.1)


def test_nothing_is_said_while_it_warms_up() -> None:
    """Compiling, allocating, ten times slower: the first steps are no drop, and no baseline either."""
    watch = Watch(QUICK)
    assert run(watch, 4, 10.0) == []
    assert run(watch, 64, 1.0, first=4) == []
    # There is a baseline now, and no evidence against it.
    assert watch.scores()["train"] < 1e-6
    assert run(watch, 400, 1.0, first=68) == []


def test_single_slow_steps_are_no_drift() -> None:
    """A recompilation, a checkpoint: one step in ten that takes twenty times as long moves no median."""
    watch = Watch(QUICK)
    for start in range(0, 4000, 10):
        assert run(watch, 9, 1.0, first=start) == []
        assert run(watch, 1, 20.0, first=start + 9) == []


def test_phases_have_their_own_baselines() -> None:
    """Evaluation is faster than training, and neither is a change of the other."""
    watch = Watch(QUICK)
    for start in range(0, 4000, 40):
        assert run(watch, 30, 1.0, first=start) == []
        assert run(watch, 10, 0.3, first=start + 30, phase="eval") == []


def test_changes_of_load_are_no_drift() -> None:
    """Requests come and go: what a batch of 1 and one of 32 reach of their rooflines differs, and each has its own."""
    watch = Watch(QUICK)
    for start in range(0, 6000, 30):
        batch, duration_s = ((1.0, 1.0), (4.0, 0.6), (32.0, 0.4))[start // 30 % 3]
        assert run(watch, 30, duration_s, first=start, phase="decode", batch=batch, tokens=None) == []
    found = [
        each
        for start in range(6000, 9000, 30)
        for each in run(watch, 30, 0.8, first=start, phase="decode", batch=32.0, tokens=None)
    ]
    assert [(each.phase, each.measure, each.kind) for each in found] == [("decode", "efficiency", "drop")]


@pytest.mark.parametrize("duration_s", [math.nan, math.inf, 0.0, -1.0])
def test_no_time_is_counted_and_not_judged(duration_s: float) -> None:
    """A clock that stands still, runs backwards or says nothing: no crash, no alarm."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    for index in range(400, 2000):
        assert watch.add("train", ASKED, index, 0, duration_s, 100) is None
    assert watch.ignored == {"no_time": 1600}
    assert run(watch, 400, 1.0, first=2000) == []


def test_unknown_flops_are_counted_and_not_judged() -> None:
    """MFU is None for a while, and steps without work pass: both wait, and neither is a drop."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    assert run(watch, 1000, 5.0, first=400, asked=None) == []
    assert run(watch, 10, 5.0, first=1400, asked=Asked(0, 0, None, None, None)) == []
    assert watch.ignored == {"no_flops": 1010}
    assert run(watch, 400, 1.0, first=1410) == []


@pytest.mark.parametrize("more", [{"tokens": 0}, {"tokens": None}, {"batch": math.nan}, {"data_s": math.nan}])
def test_odd_amounts(more: dict[str, Any]) -> None:
    """What is missing or no number is left out; the rest is judged."""
    watch = Watch(QUICK)
    assert run(watch, 400, 1.0, **more) == []
    [found] = run(watch, 200, 2.0, first=400, **more)
    assert found.measure == "flop_rate"


def test_work_of_any_size() -> None:
    """FLOPs beyond the largest double have a logarithm; seconds below the smallest have one too."""
    watch = Watch(QUICK)
    huge = Asked(10**400, 10**400, None, None, None)
    assert run(watch, 300, 1.0, asked=huge) == []
    assert run(watch, 100, 1e-300, asked=huge, first=300) != []


def test_phases_without_end() -> None:
    """A million phases take the memory of 64; what is beyond them is counted."""
    watch = Watch(QUICK)
    found = [watch.add(f"phase {index}", ASKED, index, 0, 1.0) for index in range(1_000_000)]
    assert not any(found)
    assert watch.ignored == {"no_room": 1_000_000 - MOST_STREAMS}
    assert len(watch._streams) == MOST_STREAMS


def test_onset_by_hand() -> None:
    """Half-way between 0 and −1: the sum beyond −0.5 is largest from the first −1 on, noise or none."""
    assert onset([0.0, 0.1, -0.1, -1.0, -0.9, -1.1], 0.0, -1.0) == 3
    assert onset([-1.0, -1.0], 0.0, -1.0) == 0
    assert onset([0.0, -0.6, 0.0, 0.0, 0.7, 1.0], 0.0, 1.0) == 4


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_state_goes_on_where_it_stopped() -> None:
    """A run that is told and restored in the middle of an excursion finds the same recovery."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    [found] = run(watch, 200, 1.25, first=400)
    again = Watch(QUICK)
    assert again.restore(watch.state())
    assert again.excursions == [watch.excursions[0]]
    assert again.excursions[0].onset_step == found.onset_step
    assert json.loads(again.state()) == json.loads(watch.state())
    [ended] = run(again, 400, 1.0, first=600)
    assert ended.recovered_step is not None


def test_a_restored_baseline_needs_no_warm_up() -> None:
    """It finds a drop that is there from the first step, where a new run would take it for its baseline."""
    watch = Watch(QUICK)
    run(watch, 400, 1.0)
    again = Watch(QUICK)
    assert again.restore(watch.state())
    assert len(run(again, 200, 1.25)) == 1
    assert run(Watch(QUICK), 200, 1.25) == []


def test_a_restored_state_has_the_budget_of_now() -> None:
    """A fleet that has grown needs more evidence, also of runs that were begun before."""
    watch = Watch(QUICK, Budget(streams=100))
    run(watch, 400, 1.0)
    again = Watch(QUICK, Budget(streams=1000))
    assert again.restore(watch.state())
    before, now = (json.loads(each.state())["streams"][0][2]["detectors"]["flop_rate"] for each in (watch, again))
    assert now["threshold"] == pytest.approx(10 * before["threshold"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 0, "detector": "betting-sr/1", "streams": []}',
        '{"version": 1, "detector": "another", "streams": []}',
        '{"version": 1, "detector": "betting-sr/1", "streams": [["train", null, {}]]}',
        '{"version": 1, "detector": "betting-sr/1", "streams": [["train", null, {"before": null, "excursion": null, '
        '"own": [], "detectors": {"flop_rate": {"baseline": {"middle": 0, "low": 0, "high": 0, "scale": 0, '
        '"blocks": 1}, '
        '"threshold": 100, "excursion": null, "evidence": [[], [], []]}}}]]}',
    ],
)
def test_a_state_of_another_kind_is_left_alone(text: str) -> None:
    """Old versions, broken files, a scale of zero: the watch begins anew, and says so."""
    watch = Watch(QUICK)
    assert not watch.restore(text)
    assert run(watch, 400, 1.0) == []


def test_warm_from_earlier_runs() -> None:
    """Between the lowest and the highest bound of three earlier runs nothing is wrong; beyond it is, at once."""
    earlier = []
    for speed in (0.95, 1.0, 1.05):
        watch = Watch(QUICK)
        run(watch, 400, speed)
        earlier.append(watch.baselines())
    told = json.loads(json.dumps(earlier))
    fine = Watch(QUICK)
    assert fine.warm(told)
    assert run(fine, 400, 1.05) == []
    # By now it has a baseline of its own, and no longer the room that three runs need.
    [own] = fine.baselines()
    assert own[2]["levels"]["flop_rate"]["middle"] == pytest.approx(math.log(FLOPS / 1.05), abs=0.02)
    [found] = run(fine, 200, 1.15, first=400)
    assert found.kind == "drop"
    slow = Watch(QUICK)
    assert slow.warm(told)
    [found] = run(slow, 100, 1.4)
    assert (found.kind, slow.baselines()) == ("drop", [])
    # Also where steps came before it was known which runs were like this one.
    late = Watch(QUICK)
    assert run(late, 10, 1.4) == []
    assert late.warm(told)
    assert len(run(late, 100, 1.4, first=10)) == 1
    assert not Watch(QUICK).warm([["train", None, {"before": {}, "levels": {}}]])


def test_memory_of_evidence_does_not_grow() -> None:
    """A state after 40,000 steps is no longer than one after 4,000."""
    watch = Watch(QUICK)
    run(watch, 4000, 1.0)
    before = len(watch.state())
    run(watch, 36_000, 1.0, first=4000)
    assert len(watch.state()) < 1.1 * before


def test_accounts_add_up() -> None:
    """Sums of sums are the sums of all; what one does not know, none knows; clocks are weighted by time."""
    one = Account(1, 2.0, 10, 12, data_s=0.5, clock=1.0, batch_sum=4.0)
    other = Account(3, 6.0, 30, 36, data_s=0.25, comm_s=1.0, clock=0.5, batch_sum=12.0)
    both = one + other
    assert (both.steps, both.time_s, both.model_flops, both.data_s, both.comm_s) == (4, 8.0, 40, 0.75, None)
    assert both.clock == pytest.approx((2 * 1.0 + 6 * 0.5) / 8)
    assert both.batch == 4.0
    assert both.share(both.data_s) == pytest.approx(0.75 / 8)


def test_noise_is_noise() -> None:
    """The test's own noise has the spread and the dependence that it says."""
    values = [math.log(factor) for factor, _ in zip(noise(5), range(20_000), strict=False)]
    assert sum(value**2 for value in values) / len(values) == pytest.approx(0.02**2, rel=0.1)
    assert sum(a * b for a, b in pairwise(values)) / len(values) == pytest.approx(0.6 * 0.02**2, rel=0.1)
