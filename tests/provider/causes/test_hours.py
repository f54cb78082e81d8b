"""Hours that stand out from a workload's others, and what is said of them: by hand, and by what must not matter."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfu_sdk.provider.causes import Evidence, Finding, Unit, findings
from mfu_sdk.provider.causes.gather import Gathered, clock_of, unit_of
from mfu_sdk.provider.causes.hours import Hour, Stretch, judged, level, tail, worst
from mfu_sdk.provider.causes.parts import clocked, with_parts
from mfu_sdk.provider.rollup import Sums, Usage

from .conftest import TRAINING, Make, approx

H100 = "NVIDIA H100 80GB HBM3"
MORNING = (0.010, 0.012, 0.011, 0.010)


def hour(number: int, *, time_s: float = 7200.0, **shares: float) -> Hour:
    """Two devices' hour: `data`, `comm`, `skew` as shares of the time, `clock` and `slowest` over the peak's, `bus`."""
    told = {"data": 0.01, "comm": 0.05, "skew": 0.01, "clock": 0.97, "slowest": 0.97, "bus": 40e9, **shares}
    return Hour(
        start_unix_s=3600 * number, time_s=time_s, model_flops=0.45 * time_s, available_flops=time_s,
        data_s=told["data"] * time_s, data_known_s=time_s, comm_s=told["comm"] * time_s, comm_known_s=time_s,
        skew_s=told["skew"] * time_s, skew_known_s=time_s, bus_rate_s=told["bus"] * time_s, bus_rate_known_s=time_s,
        clock_s=told["clock"] * time_s, clock_known_s=time_s, slowest_s=told["slowest"] * time_s,
        slowest_known_s=time_s,
    )  # fmt: skip


def waits(*shares: float) -> tuple[Hour, ...]:
    return tuple(hour(number, data=share) for number, share in enumerate(shares))


UNIT = Unit("acme", "llama", "f1", H100, 64, "i1", "new", "train")


def others(clocks: Sequence[float]) -> dict[Unit, tuple[Hour, ...]]:
    """Four more workloads of the type, whose clocks go as `clocks`."""
    return {
        UNIT._replace(workload=f"other-{number}"): tuple(
            hour(at, clock=clock, slowest=clock) for at, clock in enumerate(clocks)
        )
        for number in range(4)
    }


def found(hours: Sequence[Hour], e: Evidence = TRAINING, more: Sequence[float] = (0.97,) * 8) -> list[Finding]:
    """What is found of a workload with these hours beside four others, its day's sums being those of its hours."""
    day = level(hours)
    whole = replace(e, time_s=day.time_s, data=day.data, comm=day.comm, skew=day.skew, clock=day.clock)
    if day.slowest_clock is not None:
        whole = replace(whole, slowest_clock=day.slowest_clock)
    [told] = with_parts([whole], [UNIT], {UNIT: tuple(hours), **others(more)})
    return findings(told)


# --- which hours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "degrees", "above"),
    [(1.0, 1, 0.25), (4.303, 2, 0.025), (3.182, 3, 0.025), (2.776, 4, 0.025), (3.169, 10, 0.005), (3.733, 15, 0.001)],
)
def test_student(t: float, degrees: int, above: float) -> None:
    """The tail is the one of the tables (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""
    assert tail(t, degrees) == approx(above, rel=2e-3)


def test_afternoon() -> None:
    """What waits from the middle of the fifth hour on: the three hours after that, against the four before it."""
    assert worst(waits(*MORNING, 0.11, 0.20, 0.21, 0.20), "data") == Stretch(5, 8, (0, 1, 2, 3))


def test_episode() -> None:
    """An episode in the middle is held against the hours before and after it, and the two next to it are of neither."""
    assert worst(waits(*MORNING, 0.20, 0.21, 0.20, *MORNING), "data") == Stretch(4, 7, (0, 1, 2, 8, 9, 10))


@pytest.mark.parametrize(
    "shares",
    [
        (0.2,) * 8,
        (0.011, 0.010, 0.30, 0.010, 0.012, 0.011, 0.010, 0.011),
        (*MORNING, 0.040, 0.041, 0.040, 0.041),
        (0.05, 0.25, 0.10, 0.20, 0.03, 0.22, 0.15, 0.24),
        (0.01, 0.01, 0.2),
    ],
    ids=["all day", "one hour", "too little", "restless", "too short"],
)
def test_no_stretch(shares: tuple[float, ...]) -> None:
    """What is so all day, passes within the hour, loses too little, comes and goes, or is too short to be judged."""
    assert worst(waits(*shares), "data") is None


def test_a_slower_clock_is_worse() -> None:
    """Of clocks the lower ones are the worse, and those of the slowest device count."""
    slow = [hour(number, slowest=0.97 if number < 4 else 0.80) for number in range(8)]
    assert worst(slow, "clock") == Stretch(4, 8, (0, 1, 2))
    assert worst([hour(number, slowest=0.80 if number < 4 else 0.97) for number in range(8)], "clock") == Stretch(
        0, 4, (5, 6, 7)
    )


def test_lost_hours_decide_nothing() -> None:
    """Where an hour does not tell the signal, no stretch of it stands out; the other signals' still do."""
    hours = [hour(number, data=0.01 if number < 4 else 0.2) for number in range(8)]
    hours[6] = replace(hours[6], data_s=0.0, data_known_s=0.0)
    assert worst(hours, "data") is None


def test_by_chance() -> None:
    """Of 1,000 workloads whose hours differ by chance alone next to none has a stretch, for all that were looked at."""
    random = Random(8)
    days = ([max(0.0, random.gauss(0.10, 0.04)) for _ in range(24)] for _ in range(1000))
    assert sum(worst(waits(*day), "data") is not None for day in days) <= 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 0.5), min_size=4, max_size=24), st.floats(1e-3, 1e3))
@example([0.45807968268451593, 0.45807968268451593, 0.0, 0.45807968268451593], 1.9)
def test_units_of_time(shares: list[float], factor: float) -> None:
    """However many devices there are, the same hours stand out."""
    plain = waits(*shares)
    larger = [
        replace(each, time_s=each.time_s * factor, data_s=each.data_s * factor, data_known_s=each.data_known_s * factor)
        for each in plain
    ]
    assert (worst(plain, "data") is None) == (worst(larger, "data") is None)


def test_hours_of_little_work() -> None:
    """An hour with a tenth of the fullest one's time counts, one with less does not."""
    hours = [hour(0), hour(1, time_s=720.0), hour(2, time_s=719.0)]
    assert [each.start_unix_s for each in judged(hours)] == [0, 3600]


# --- what is said of them ------------------------------------------------------------------------------------------


def test_diluted_straggler() -> None:
    """Skew of 10 % in three hours of eight is 4.4 % of the day: named with its hours, its loss being the day's."""
    [one] = found([hour(number, skew=0.01 if number < 5 else 0.10) for number in range(8)])
    assert (one.cause, one.loss_share) == ("straggler", approx(0.10 * 3 / 8))
    assert one.evidence["loss_share_within"] == approx(0.10)
    assert (one.evidence["from"], one.evidence["until"]) == ("1970-01-01T05:00Z", "1970-01-01T08:00Z")
    assert one.remedy.startswith("From 1970-01-01T05:00Z to 1970-01-01T08:00Z: All ranks wait")


def test_straggler_against_other_hours(train: Make) -> None:
    """Three of four ranks wait 5.5 % where they waited 1 %: the fourth is late by 4.5 % · 4 / 3 of a step."""
    late = [hour(number, skew=0.01 if number < 4 else 0.055) for number in range(8)]
    [one] = found(late, train(world_size=4))
    assert (one.cause, one.loss_share) == ("straggler", approx(0.045 * 4 / 3 * 4 / 8))
    assert one.evidence["skew_share_in_other_hours"] == approx(0.01)
    # Of 64 ranks it is 4.6 %, and ranks that always wait so much are no news.
    assert found(late, train(world_size=64)) == []
    assert found([hour(number, skew=0.055) for number in range(8)], train(world_size=4)) == []
    # Without a fingerprint another configuration may have run in the morning.
    assert found(late, train(world_size=4, fingerprint=None)) == []


def test_a_whole_day_goes_first() -> None:
    """What the day's sums say already is said of the day."""
    [one] = found([hour(number, skew=0.05 if number < 4 else 0.30) for number in range(8)])
    assert (one.cause, "from" in one.evidence) == ("straggler", False)


def test_input_against_other_hours() -> None:
    """Waits of 9 % are within what a tuned loader may leave; where they were 1 % before they are 8 % too long."""
    [one] = found([hour(number, data=0.01 if number < 4 else 0.09) for number in range(8)])
    assert (one.cause, one.loss_share) == ("input_bound", approx(0.08 * 4 / 8))
    assert found([hour(number, data=0.09) for number in range(8)]) == []


def test_clock_against_other_hours(train: Make) -> None:
    """A clock that falls by 10 % is within what its cohort's differ by; its own does not fall by itself."""
    falls = [
        hour(number, clock=0.97 if number < 4 else 0.873, slowest=0.97 if number < 4 else 0.873) for number in range(8)
    ]
    [one] = found(falls)
    # Of the half in which it does not wait for data or links, a tenth.
    assert (one.cause, one.loss_share) == ("thermal_or_power", approx(0.94 * 0.1 * 4 / 8))
    assert found(falls, train(fingerprint=None)) == []
    assert found(falls, train(phase="decode", feasible=None)) == []


def test_a_limit_for_all(train: Make) -> None:
    """Where the clocks of the whole type fall at noon it is a limit that they share, and nobody's fault."""
    clocks = [0.97] * 4 + [0.873] * 4
    falls = [hour(number, clock=clock, slowest=clock) for number, clock in enumerate(clocks)]
    assert found(falls, train(), clocks) == []


def test_clock_without_peers() -> None:
    """Without four others of the type nobody knows whether it was a limit for all."""
    falls = [hour(number, slowest=0.97 if number < 4 else 0.873) for number in range(8)]
    day = level(falls)
    whole = replace(TRAINING, time_s=day.time_s, slowest_clock=day.slowest_clock)
    [alone] = with_parts([whole], [UNIT], {UNIT: tuple(falls)})
    assert findings(alone) == []


def test_clock_of_more_work() -> None:
    """A clock that falls once the waits are over is held by the work that there is now."""
    falls = [
        hour(
            number,
            clock=0.97 if number < 4 else 0.90,
            slowest=0.97 if number < 4 else 0.90,
            comm=0.12 if number < 4 else 0.05,
        )
        for number in range(8)
    ]
    assert found(falls) == []


def test_links_that_slowed() -> None:
    """Exchanges that take 9 % more of the time than in the morning, at 0.8 of their own rate then."""
    slowed = [hour(number, comm=0.05 if number < 4 else 0.14, bus=40e9 if number < 4 else 32e9) for number in range(8)]
    [one] = found(slowed)
    assert (one.cause, one.loss_share) == ("poor_topology", approx(0.09 * 4 / 8))
    same = [hour(number, comm=0.05 if number < 4 else 0.14) for number in range(8)]
    assert found(same) == []


def test_links_that_slowed_and_tell_no_rate(train: Make) -> None:
    """The same exchanges take 9 % more of the time and steps are longer by it: links are slower, if nothing else is."""
    silent = train(bus_bytes_per_s=None, best_bus_bytes_per_s=None, untold=frozenset({"bus_bytes_per_s"}))

    def hours(mfu: float) -> list[Hour]:
        told = [hour(number, comm=0.05 if number < 4 else 0.14) for number in range(8)]
        told = [replace(each, bus_rate_s=0.0, bus_rate_known_s=0.0) for each in told]
        return [*told[:4], *(replace(each, model_flops=mfu * each.time_s) for each in told[4:])]

    [one] = found(hours(0.41), silent)
    assert (one.cause, one.loss_share, one.confidence) == ("poor_topology", approx(0.09 * 4 / 8), 0.5)
    # As fast as before: faster computation hides less. And a rate that got lost says nothing.
    assert found(hours(0.45), silent) == []
    assert found(hours(0.41), replace(silent, untold=frozenset())) == []


def test_links_that_slowed_are_no_scale(train: Make) -> None:
    """Communication that nothing hides on the best path is the scale's, unless the links were faster in other hours."""
    scaled = train(ideal_ratio=0.7)
    assert [each.cause for each in found([hour(number, comm=0.14) for number in range(8)], scaled)] == [
        "scaling_inefficiency"
    ]
    slowed = [hour(number, comm=0.05 if number < 4 else 0.14, bus=40e9 if number < 4 else 32e9) for number in range(8)]
    assert [each.cause for each in found(slowed, scaled)] == ["poor_topology"]


def test_unknown_beyond_a_part(train: Make) -> None:
    """What a part of the day lost explains that much of a shortfall, and the rest is still unknown."""
    hours = [hour(number, skew=0.01 if number < 5 else 0.10) for number in range(8)]
    assert [each.cause for each in found(hours, train(mfu=0.30, expected_mfu=0.48))] == ["straggler", "unknown"]
    assert [each.cause for each in found(hours, train(mfu=0.42, expected_mfu=0.48))] == ["straggler"]


@pytest.mark.parametrize("lost", ["data", "skew", "comm"])
def test_a_lost_wait_only_lowers(lost: str) -> None:
    """Without one of its waits a slow clock costs at least what products took: less, and nobody is surer."""
    hot = replace(TRAINING, slowest_clock=0.6, data=0.0, comm=0.0, skew=0.0)
    nothing = {lost: None}
    [before], after = findings(hot), findings(replace(hot, **nothing))  # type: ignore[arg-type]
    assert [each.cause for each in after] == ["thermal_or_power"]
    assert after[0].loss_share <= before.loss_share
    assert after[0].confidence <= before.confidence


# --- clocks that only the exporter tells ---------------------------------------------------------------------------


def silent(unit: Unit, devices: Sequence[str]) -> tuple[Gathered, list[Usage]]:
    """A workload without clocks, and its devices."""
    usages = [
        Usage(
            unit.tenant, unit.workload, unit.family, unit.gpu_type, unit.world_size, "node-1", device, (),
            Sums(device_s=3600.0), phase=unit.phase, intent=unit.intent, fingerprint=unit.fingerprint,
        )
        for device in devices
    ]  # fmt: skip
    assert all(unit_of(usage) == unit for usage in usages)
    return Gathered(unit, replace(TRAINING, clock=None)), usages


def without_clock(number: int) -> Hour:
    return replace(hour(number), clock_s=0.0, clock_known_s=0.0, slowest_s=0.0, slowest_known_s=0.0)


def test_clock_by_exporter() -> None:
    """1,830 and 915 MHz on H100s, whose peak is at 1,830: the mean device's clock, the slowest one's, the hours'."""
    each, usages = silent(UNIT, ("GPU-0", "GPU-1"))
    hours = {UNIT: (without_clock(0), without_clock(1))}
    seen = {"GPU-0": {0: 1830.0, 3600: 1830.0}, "GPU-1": {0: 915.0, 3600: 915.0}}
    [told], filled = clocked([each], hours, usages, seen)
    assert clock_of(H100, 1830.0) == approx(1.0)
    assert (told.evidence.clock, told.evidence.slowest_clock) == (approx(0.75), approx(0.5))
    assert sorted(told.clocks) == [approx(0.5), approx(1.0)]
    assert level(filled[UNIT]).slowest_clock == approx(0.5)


@pytest.mark.parametrize("case", ["a device unseen", "somebody else's hours", "told by itself"])
def test_no_clock_by_exporter(case: str) -> None:
    """Not where a device was not seen, not in hours that another workload worked, and not over what a tenant tells."""
    each, usages = silent(UNIT, ("GPU-0", "GPU-1"))
    hours = {UNIT: (without_clock(0), without_clock(1))}
    seen = {"GPU-0": {0: 1830.0, 3600: 1830.0}, "GPU-1": {0: 915.0, 3600: 915.0}}
    if case == "a device unseen":
        del seen["GPU-1"]
    elif case == "told by itself":
        each = replace(each, evidence=TRAINING)
    else:
        other = UNIT._replace(workload="other")
        usages += silent(other, ("GPU-1",))[1]
        hours[other] = (hour(0), hour(1))
    [told], _ = clocked([each], hours, usages, seen)
    assert told.evidence.clock == each.evidence.clock
