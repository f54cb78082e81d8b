"""The parts of one: by hand, and by law."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.bars import Bar, drawn
from mfu_sdk.run.waterfall import Evidence, together, waterfall

ALL = Evidence(
    step_s=10.0,
    useful_s=3.0,
    data_wait_s=1.0,
    communication_s=0.5,
    skew_s=0.25,
    extra_s=1.0,
    memory_s=0.75,
    products_s=5.0,
    streaming_s=2.0,
    products_memory_s=0.2,
    clock_ratio=0.9,
)
ORDER = [
    "mfu",
    "data_wait",
    "host_gap",
    "exposed_communication",
    "rank_skew",
    "recomputation",
    "memory_bound",
    "kernel_inefficiency",
    "clock_and_power",
    "unexplained",
]

# Half of the least subnormal number is none.
seconds = st.floats(0, 1e3, allow_subnormal=False)
unknown_or = st.none() | seconds


@st.composite
def evidence(draw: st.DrawFn) -> Evidence:
    timed = draw(st.booleans())
    return Evidence(
        step_s=draw(st.floats(1e-3, 1e3)),
        useful_s=draw(seconds),
        data_wait_s=draw(unknown_or),
        communication_s=draw(unknown_or),
        skew_s=draw(unknown_or),
        extra_s=draw(st.none() | st.floats(-1e3, 1e3)),
        memory_s=draw(unknown_or),
        products_s=draw(seconds) if timed else None,
        streaming_s=draw(seconds) if timed else None,
        products_memory_s=draw(seconds) if timed else None,
        clock_ratio=draw(st.none() | st.floats(0.1, 2)),
        idle_s=draw(st.just(0.0) | seconds),
        driver_idle_s=draw(unknown_or),
    )


def test_all_bars_by_hand() -> None:
    """Of 10 s, 1.75 are waits and 7 operators: 1.25 are idle. 3 s of use take 1/3 s longer at 0.9 of the clock.

    The products' 5 s are 3 + 1/3 of those, 1 of recomputation, 0.2 of memory, and the rest are their kernels'.
    """
    found = waterfall(ALL)
    assert [bar.name for bar in found.bars] == ORDER
    by_hand = [3.0, 1.0, 1.25, 0.5, 0.25, 1.0, 2.2, 5 - 3 - 1 / 3 - 1 - 0.2, 1 / 3, 0.0]
    assert [bar.seconds for bar in found.bars] == pytest.approx(by_hand, abs=1e-9)
    assert [bar.share for bar in found.bars] == pytest.approx([each / 10 for each in by_hand], abs=1e-9)
    assert all(bar.reason is None for bar in found.bars)


def test_without_operator_times() -> None:
    """The roofline's excess stands for memory, neither a host gap nor a kernel inefficiency is made up."""
    found = waterfall(replace(ALL, products_s=None, streaming_s=None, products_memory_s=None))
    assert [bar.name for bar in found.bars] == [
        name for name in ORDER if name not in ("host_gap", "kernel_inefficiency")
    ]
    # 10 − 3 − 1.75 of waits − 1 − 0.75 − 1/3.
    assert found.shares["memory_bound"] == pytest.approx(0.075)
    assert found.shares["unexplained"] == pytest.approx((3.5 - 1 / 3) / 10)


def test_nothing_but_time() -> None:
    """MFU and the rest, where nothing else is known."""
    assert waterfall(Evidence(4.0, 1.0)).shares == {"mfu": 0.25, "unexplained": 0.75}


@pytest.mark.parametrize("wait", ["data_wait_s", "communication_s", "skew_s"])
def test_an_unknown_wait_leaves_the_gap_unknown(wait: str) -> None:
    """Idle time in which the device may have waited for data or peers is not called the host's."""
    found = waterfall(replace(ALL, **{wait: None})).shares
    assert "host_gap" not in found
    assert found["unexplained"] == pytest.approx((1.25 + getattr(ALL, wait)) / 10)


def test_waits_beyond_the_steps_are_cut() -> None:
    """12 s of waiting for data in 10 s of steps are 10, and what else was waited for had no time."""
    found = waterfall(Evidence(10.0, 0.0, data_wait_s=12.0, communication_s=1.0))
    data, communication = found.bars[1:3]
    assert (data.share, communication.share) == (1.0, 0.0)
    assert data.reason == "12 s were measured, more than the steps had left: cut to that"


def test_operators_beyond_the_steps_are_scaled() -> None:
    """14 s of operators in 7 s that the waits leave are halved, both kinds alike, and it is said."""
    found = waterfall(Evidence(10.0, 2.0, data_wait_s=3.0, products_s=8.0, streaming_s=6.0, products_memory_s=0.0))
    assert found.shares["memory_bound"] == pytest.approx(0.3)
    assert found.shares["kernel_inefficiency"] == pytest.approx(0.2)
    reason = "operators were timed to take 14 s, and the waits leave 7: scaled to that"
    assert [bar.reason for bar in found.bars if bar.name == "kernel_inefficiency"] == [reason]


def test_models_beyond_the_time_are_scaled() -> None:
    """Recomputation of 3 s and memory of 1 s by the rates, where 2 s are left: 1.5 and 0.5, nothing unexplained."""
    found = waterfall(Evidence(10.0, 8.0, extra_s=3.0, memory_s=1.0))
    assert found.shares["recomputation"] == pytest.approx(0.15)
    assert found.shares["memory_bound"] == pytest.approx(0.05)
    assert found.shares["unexplained"] == pytest.approx(0.0, abs=1e-12)
    assert found.bars[1].reason == "measured rates ask for 3 s, which were not there"


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"clock_ratio": 1.25}, "clock_and_power", "above the clock that its peak assumes"),
        ({"extra_s": -1.0}, "recomputation", "charges more pairs"),
        ({"products_s": 2.0}, "kernel_inefficiency", "faster than the peak allows"),
        ({"useful_s": 11.0, "products_s": None, "streaming_s": None, "products_memory_s": None}, "unexplained", "MFU"),
    ],
)
def test_bars_below_zero_say_why(changed: dict[str, float | None], name: str, words: str) -> None:
    """What is negative for a reason stays negative, with the reason."""
    [bar] = [bar for bar in waterfall(replace(ALL, **changed)).bars if bar.name == name]
    assert bar.share < 0
    assert words in str(bar.reason)


@given(evidence())
def test_bars_add_up_to_one(given_evidence: Evidence) -> None:
    """Whatever the evidence: the sum is 1, the order is kept, and no bar is below zero without a reason."""
    found = waterfall(given_evidence)
    # MFU may be 10^6 here; a sum of such terms is no more exact than their last bits.
    largest = max(1.0, *(abs(bar.share) for bar in found.bars))
    assert abs(math.fsum(found.shares.values()) - 1) <= 1e-9 * largest
    assert [bar.name for bar in found.bars] == [name for name in ORDER if name in found.shares]
    assert found.bars[-1].name == "unexplained"
    for bar in found.bars:
        assert bar.share >= -1e-9 or bar.reason


@given(evidence(), st.floats(0.1, 10))
def test_shares_do_not_depend_on_the_unit(given_evidence: Evidence, factor: float) -> None:
    """Twice the run with all its parts twice as long has the same shares."""
    names = [name for name in Evidence.__slots__ if name not in ("clock_ratio", "idle_sampled")]
    values = {name: getattr(given_evidence, name) for name in names}
    longer = replace(given_evidence, **{name: None if v is None else v * factor for name, v in values.items()})
    shares = waterfall(given_evidence).shares
    assert dict(waterfall(longer).shares) == pytest.approx(dict(shares), rel=1e-6, abs=1e-6 * max(1.0, shares["mfu"]))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step_s": 0.0}, "step_s=0.0: must be a number of seconds above 0"),
        ({"step_s": math.inf}, "step_s=inf"),
        ({"useful_s": -1.0}, "useful_s=-1.0: must be a number of seconds of at least 0"),
        ({"extra_s": math.nan}, "extra_s=nan"),
        ({"clock_ratio": 0.0}, "clock_ratio=0.0"),
        ({"products_s": None}, "all are known or none is"),
    ],
)
def test_impossible_evidence_is_refused(changed: dict[str, float | None], words: str) -> None:
    """Time that is not above zero, and what is not a number, are the caller's mistakes."""
    with pytest.raises(ValueError, match=words):
        waterfall(replace(ALL, **changed))  # type: ignore[arg-type]  # wrong on purpose


def test_lines_by_hand() -> None:
    """In 40 columns there are 16 for the bars: half of them, then a quarter, then the last one."""
    bars = (
        Bar("mfu", 0.5, 5.0, "measured"),
        Bar("data_wait", 0.25, 2.5, "measured"),
        Bar("unexplained", 0.25, 2.5, "rest", "a reason"),
    )
    assert drawn(bars, 11 + 5 + 8 + 6 + 16) == [
        "mfu          50.0%  measured  ████████",
        "data wait    25.0%  measured          ████",
        "unexplained  25.0%  rest                  ████",
        "unexplained: a reason",
    ]


def test_an_mfu_above_one_is_cut_at_the_edge() -> None:
    """What lies outside of 0 to 1 is not drawn, and no line is longer than the terminal."""
    for width in (20, 80):
        lines = drawn(waterfall(Evidence(1.0, 3.0)).bars, width)
        assert "300.0%" in lines[0]
        assert "-200.0%" in lines[1]
        assert max(map(len, lines[:2])) <= max(width, 40)
    assert drawn((), 80) == []


def test_one_rank_waits_for_nobody() -> None:
    """Where nothing passes between ranks nothing was sampled there, and the bars do not claim it."""

    def known(communication_s: float, skew_s: float) -> set[str]:
        found = waterfall(replace(ALL, communication_s=communication_s, skew_s=skew_s))
        return {bar.known for bar in found.bars if bar.name in ("exposed_communication", "rank_skew")}

    assert known(0.0, 0.0) == {"modelled"}
    assert known(0.5, 0.0) == known(0.5, 0.25) == {"sampled"}


def test_steps_that_asked_for_nothing_are_the_hosts() -> None:
    """Of ten seconds two went into checkpoints: of the host's, with or without the operators' times."""
    alone = waterfall(Evidence(step_s=10.0, useful_s=3.0, data_wait_s=1.0, idle_s=2.0))
    assert alone.shares["host_gap"] == 0.2
    assert alone.shares["unexplained"] == pytest.approx(0.4)
    assert {bar.name: bar.known for bar in alone.bars}["host_gap"] == "measured"
    # Of ALL, 1.25 s of gap; now 8.25 s are left for 7 s of operators, and two for checkpoints.
    assert waterfall(ALL).shares["host_gap"] == pytest.approx(0.125)
    assert waterfall(replace(ALL, step_s=12.0, idle_s=2.0)).shares["host_gap"] == pytest.approx((1.25 + 2.0) / 12)
    # No more than the waits have left.
    assert waterfall(Evidence(step_s=1.0, useful_s=0.0, data_wait_s=0.75, idle_s=2.0)).shares["host_gap"] == 0.25


def test_what_a_driver_saw_idle_is_the_hosts() -> None:
    """Of ten seconds a GPU stood still for six: less one of waiting for data and one without any work, four more."""
    seen = Evidence(step_s=10.0, useful_s=2.0, data_wait_s=1.0, idle_s=1.0, memory_s=3.0, driver_idle_s=6.0)
    found = waterfall(seen)
    bars = {bar.name: bar for bar in found.bars}
    assert (bars["host_gap"].seconds, bars["host_gap"].known, bars["host_gap"].reason) == (5.0, "sampled", None)
    # 10 − 1 − 5 − 2 of use are left for the memory's three.
    assert (bars["memory_bound"].seconds, bars["unexplained"].seconds) == (2.0, pytest.approx(0.0))
    # Where nothing tells of waits for data they may be in it, which is said.
    [blurred] = [bar for bar in waterfall(replace(seen, data_wait_s=None)).bars if bar.name == "host_gap"]
    assert (blurred.seconds, "run.batches()" in str(blurred.reason)) == (6.0, True)
    # The driver looks once a second: what the FLOPs took at the least was not idle.
    assert waterfall(Evidence(10.0, 8.0, driver_idle_s=6.0)).shares == {"mfu": 0.8, "host_gap": 0.2, "unexplained": 0.0}
    assert waterfall(Evidence(10.0, 8.0, driver_idle_s=0.0)).shares["host_gap"] == 0.0
    # Operators that were timed know better.
    assert waterfall(replace(ALL, driver_idle_s=9.0)) == waterfall(ALL)


@given(st.lists(evidence(), min_size=1, max_size=4))
def test_parts_of_a_run_add_up(parts: list[Evidence]) -> None:
    """Seconds of every bar are the sums over the parts that know it, and the shares of all are one again."""
    each = [waterfall(part) for part in parts]
    found = together(each)
    total_s = math.fsum(part.step_s for part in parts)
    largest = max(1.0, *(abs(bar.share) for bar in found.bars))
    assert abs(math.fsum(found.shares.values()) - 1) <= 1e-9 * largest
    assert [bar.name for bar in found.bars] == [name for name in ORDER if name in found.shares]
    for bar in found.bars:
        summed = math.fsum(b.seconds for part in each for b in part.bars if b.name == bar.name)
        assert bar.seconds == pytest.approx(summed, rel=1e-6, abs=1e-6 * total_s * largest)
        assert bar.share >= -1e-9 or bar.reason


def test_a_sum_is_as_sure_as_its_least_sure_part() -> None:
    """A gap that was measured in one phase and sampled in another is sampled; one of nothing says nothing."""
    measured = waterfall(Evidence(4.0, 1.0, idle_s=1.0))
    sampled = waterfall(Evidence(4.0, 1.0, idle_s=2.0, idle_sampled=True))
    assert together([measured]) is measured
    for parts, known in (((measured, measured), "measured"), ((measured, sampled), "sampled")):
        bars = {bar.name: bar for bar in together(parts).bars}
        assert bars["host_gap"].known == known
    assert bars["host_gap"].seconds == 3.0
    assert bars["host_gap"].share == 3 / 8
    waits = [waterfall(Evidence(4.0, 1.0, communication_s=each_s, skew_s=0.0)) for each_s in (1.0, 0.0)]
    assert {bar.name: bar.known for bar in together(waits).bars}["exposed_communication"] == "sampled"
