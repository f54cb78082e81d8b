"""A run's books: records and totals by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting.exchanges import sent
from mfu_sdk.export.signals import Signals
from mfu_sdk.export.windows import Windows, sums
from mfu_sdk.records import (
    CollectiveRate,
    CollectiveTime,
    Count,
    OpCost,
    Peaks,
    Phase,
    Rate,
    RunIdentity,
    StepRecord,
    Uncounted,
)
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.observer import Observer
from mfu_sdk.run.work import Work

IDENTITY = RunIdentity("run", 0, "work", None, 0, 0, 1, "Example", None, None, 0)


def rate(value: float) -> Rate:
    return Rate(value, value, value, "user", 0.0)


PEAKS = Peaks("cuda:0", {}, {"bfloat16": rate(1000.0), "float32": rate(100.0)}, rate(50.0), None, {})
COUNT = Count(
    model_flops=600,
    hardware_flops=800,
    forward_flops=200,
    backward_flops=400,
    recompute_flops=200,
    optimizer_flops=0,
    attention_flops_exact=30,
    attention_flops_full=60,
    by_dtype={"bfloat16": 500, "float32": 100},
    by_module={},
    by_op={},
    uncounted=(),
    coverage=1.0,
    bytes_moved=40,
    comm_bytes={},
    convention="exact",
    # 0.5 s by FLOPs; then 1.0 s by FLOPs against 0.4 s by bytes; then 0.4 s by bytes alone.
    ops=(OpCost("mm", "bfloat16", 500, 0, 1), OpCost("mm", "float32", 100, 20, 1), OpCost("gelu", "float32", 0, 20, 1)),
)


class LateClock:
    """A device that runs behind: marks are times, and the device has come as far as `passed`."""

    def __init__(self) -> None:
        self.passed = float("inf")
        self.drained: list[float] = []

    def mark(self) -> float:
        return 0.0

    def elapsed_s(self, start: float, end: float) -> float | None:
        return end - start if end <= self.passed else None

    def drain(self, mark: float) -> None:
        self.drained.append(mark)
        self.passed = max(self.passed, mark)


def ledger(clock: LateClock | None = None, **options: Any) -> tuple[Ledger, list[StepRecord]]:
    records: list[StepRecord] = []
    return Ledger(IDENTITY, PEAKS, clock or LateClock(), on_step=records.append, **options), records


def work(books: Ledger, index: int, start: float, end: float, **fields: Any) -> Work:
    fields.setdefault("demand", books.price(COUNT, "cached"))
    return Work(index, "train", start, end, 0, **fields)


def test_every_ratio_by_hand() -> None:
    """600 model FLOPs, mostly bf16 at 1,000 FLOP/s, in two seconds."""
    books, records = ledger()
    books.add(work(books, 0, 0.0, 2.0))
    [record] = records
    assert (record.peak_dtype, record.peak_flops_per_s, record.available_flops) == ("bfloat16", 1000.0, 2000.0)
    assert record.mfu == 600 / 2000
    assert record.hfu == 800 / 2000
    assert record.achievable_mfu == 600 / 2000
    # 500 FLOPs at 1,000 a second and 100 at 100 a second would take 1.5 s of the 2 s.
    assert record.mfu_by_dtype == pytest.approx(1.5 / 2)
    # The roofline takes 0.5 + 1.0 + 0.4 s.
    assert record.expected_mfu == pytest.approx(600 / (1000 * 1.9))
    assert record.arithmetic_intensity == 800 / 40
    assert record.coverage == 1.0


def test_memorys_utilization_by_hand() -> None:
    """40 bytes a step of two seconds, of 50 a second that each device's memory moves; unknown without a rate."""
    for devices, mbu in ((1, 0.4), (2, 0.2)):
        books, _ = ledger(devices=devices)
        for index in range(3):
            books.add(work(books, index, 2.0 * index, 2.0 * index + 2))
        summary = books.close()
        assert summary.mbu == pytest.approx(mbu)
        assert summary.peak_memory_bytes_per_s == 50.0 * devices
    assert "MBU          20.0% of 0 GB/s, by what operators read and write" in str(summary)
    books = Ledger(IDENTITY, replace(PEAKS, memory=None), LateClock())
    books.add(work(books, 0, 0.0, 2.0))
    assert books.close().mbu is None


def test_an_expectation_without_its_collectives_says_so() -> None:
    """What was sent at no known rate is in no expectation, and the summary says which."""
    books, records = ledger()
    books.add(work(books, 0, 0.0, 2.0, demand=books.price(replace(COUNT, comm_bytes={"allreduce": 8}), "cached")))
    assert records[0].expected_mfu == pytest.approx(600 / (1000 * 1.9))
    assert "the expectation leaves out allreduce: no rate of it was measured here" in books.close().notes


def test_two_devices_have_twice_the_peak() -> None:
    """The denominator sums over the devices that the process drives, and so does what can be expected of them."""
    books, records = ledger(devices=2)
    books.add(work(books, 0, 0.0, 2.0))
    assert records[0].available_flops == 4000
    assert records[0].mfu == 600 / 4000
    assert records[0].expected_mfu == pytest.approx(600 / (1000 * 1.9))


def test_sums_not_means_of_ratios() -> None:
    """A fast and a slow step: 1,200 FLOPs of 1,000 + 5,000 available, not the mean of 60 % and 12 %."""
    books, _ = ledger()
    books.add(work(books, 0, 0.0, 1.0, tokens=10))
    books.add(work(books, 1, 1.0, 6.0, tokens=10))
    summary = books.close()
    assert summary.mfu == pytest.approx(1200 / 6000)
    assert summary.tokens_per_s == pytest.approx(20 / 6)
    assert summary.duration_s == 6.0
    assert sum(summary.waterfall.values()) == pytest.approx(1, abs=1e-9)


def test_counted_and_failed_steps_enter_no_sum() -> None:
    """Their time is not representative; they are counted as steps all the same."""
    books, records = ledger()
    books.add(work(books, 0, 0.0, 9.0, counting=True))
    books.add(work(books, 1, 9.0, 10.0))
    books.add(work(books, 2, 10.0, 14.0, counting=True))
    books.add(work(books, 3, 14.0, 99.0, error_type="KeyError"))
    summary = books.close()
    assert [r.timed for r in records] == [False, True, False, False]
    # How far the last one came is not known, and against what it is held is.
    assert [r.model_flops for r in records] == [*[records[1].model_flops] * 3, None]
    assert (records[3].mfu, records[3].count_source, records[3].peak_flops_per_s) == (
        None, None, records[1].peak_flops_per_s
    )  # fmt: skip
    assert (summary.steps, summary.timed_steps, summary.mfu) == (4, 1, 0.6)
    # The first step warms up besides; of the second counted one, 3 s are beyond what a step takes.
    assert summary.overhead_s == pytest.approx(3.0)


def test_unknown_flops_enter_no_sum() -> None:
    """A timed step without a count is left out of both sums of FLOPs, not taken for zero."""
    books, records = ledger()
    books.add(work(books, 0, 0.0, 1.0))
    books.add(work(books, 1, 1.0, 5.0, demand=None))
    summary = books.close()
    assert records[1].mfu is None
    assert summary.mfu == 0.6
    assert summary.timed_steps == 2


def test_records_wait_for_the_device() -> None:
    """Steps are told in order, once the device has passed their ends; nothing waits before the run closes."""
    clock = LateClock()
    clock.passed = 1.5
    books, records = ledger(clock)
    for index in range(3):
        books.add(work(books, index, float(index), index + 1.0))
    assert [r.index for r in records] == [0]
    clock.passed = 2.0
    books.settle()
    assert [r.index for r in records] == [0, 1]
    assert clock.drained == []
    books.close()
    assert [r.index for r in records] == [0, 1, 2]
    assert clock.drained[-1] == 3.0


MS = 1_000_000


@pytest.mark.parametrize(
    ("every_ms", "entered"),
    [
        # The first is entered at once, and those that end within 20 ms of it with the first that does not.
        (8, [0, 3, 6, 9]),
        (20, list(range(10))),
        (1000, list(range(10))),
        (0, [0]),
    ],
)
def test_short_steps_are_entered_together(every_ms: int, entered: list[int]) -> None:
    """Steps that end so many milliseconds apart: which of ten have the books entered at their end."""
    books = Ledger(IDENTITY, PEAKS, LateClock())
    seen = []
    for index in range(10):
        books.add(work(books, index, float(index), index + 1.0), index * every_ms * MS)
        if not books._pending:
            seen.append(index)
    assert seen == entered
    assert books.close().steps == 10


@pytest.mark.parametrize("set_back_ms", [0, 1, 3_600_000])
def test_no_step_waits_for_more_than_sixty_three_others(set_back_ms: int) -> None:
    """However short they are. And a clock that is set back while they wait ends the wait."""
    books = Ledger(IDENTITY, PEAKS, LateClock())
    books.add(work(books, 0, 0.0, 1.0), 10**18)
    waiting = []
    for index in range(1, 200):
        books.add(work(books, index, float(index), index + 1.0), 10**18 + index - set_back_ms * MS * (index > 100))
        waiting.append(len(books._pending))
    assert max(waiting) == 63
    assert waiting[:63] == list(range(1, 64))
    assert waiting[63] == 0
    # The hundredth after the first is the last one before the clock is set.
    assert (waiting[100] == 0) == (set_back_ms > 0)


def test_a_given_expectation_stands() -> None:
    """The user's own expectation replaces the roofline's."""
    books, records = ledger(expected=0.5)
    books.add(work(books, 0, 0.0, 2.0))
    assert records[0].expected_mfu == 0.5
    assert books.close().expected_mfu == 0.5


def test_a_missing_rate_leaves_the_expectation_unknown() -> None:
    """Work in a dtype whose rate nobody measured has no expectation and no ratio by dtype."""
    books, records = ledger()
    odd = replace(COUNT, by_dtype={"bfloat16": 500, "int8": 100}, ops=(OpCost("mm", "int8", 100, 0, 1),))
    books.add(work(books, 0, 0.0, 2.0, demand=books.price(odd, "cached")))
    assert records[0].mfu == 0.3
    assert records[0].expected_mfu is None
    assert records[0].mfu_by_dtype is None


def test_demands_add() -> None:
    """Calls of a request add up; the least sure source names the sum, and one unknown expectation is enough."""
    books, _ = ledger()
    cached, sampled = books.price(COUNT, "cached"), books.price(COUNT, "sampled")
    both = cached + sampled
    assert (both.model_flops, both.hardware_flops, both.bytes_moved) == (1200, 1600, 80)
    assert both.by_dtype == {"bfloat16": 1000, "float32": 200}
    assert both.expected_s == pytest.approx(3.8)
    assert both.source == "sampled"
    assert (replace(cached, expected_s=None) + sampled).expected_s is None


def test_a_waterfall_by_hand() -> None:
    """2 s a step at 1,000 FLOP/s: 600 FLOPs of use, 200 more that ran, and what the roofline takes beyond FLOPs.

    By rates the FLOPs take 0.5 s (bf16), 1 s (fp32) and 0.2 s (those that ran beyond the model's); the roofline 1.9 s.
    """
    books, _ = ledger()
    books.add(work(books, 0, 0.0, 2.0, waits=((0.0, 0.25),)))
    books.add(work(books, 1, 2.0, 4.0, waits=((2.0, 2.25),)))
    shares = books.close().waterfall
    assert dict(shares) == pytest.approx(
        {
            "mfu": 0.3,
            "data_wait": 0.125,
            "exposed_communication": 0.0,
            "rank_skew": 0.0,
            "recomputation": 0.1,
            "memory_bound": 0.1,
            "unexplained": 0.375,
        }
    )


def test_a_waterfall_weighs_steps_with_their_peaks() -> None:
    """A second of waiting at 1,000 FLOP/s loses ten times as much as one at 100."""
    books, _ = ledger()
    slow = replace(COUNT, model_flops=50, hardware_flops=50, by_dtype={"float32": 50}, ops=())
    books.add(work(books, 0, 0.0, 2.0, waits=((0.0, 1.0),)))
    books.add(work(books, 1, 2.0, 4.0, demand=books.price(slow, "cached"), waits=()))
    summary = books.close()
    assert summary.mfu == pytest.approx(650 / 2200)
    assert summary.waterfall["mfu"] == pytest.approx(650 / 2200)
    assert summary.waterfall["data_wait"] == pytest.approx(1000 / 2200)
    # Where one of the steps does not tell, the sum is not known.
    books.add(work(books, 2, 4.0, 6.0))
    assert "data_wait" not in books.summary().waterfall


def test_the_clock_of_a_calibration() -> None:
    """720 FLOP/s that are 80 % of what the clock allowed: it ran at 900 of the peak's 1,000."""
    peaks = replace(
        PEAKS,
        theoretical={"bfloat16": rate(1000.0)},
        achievable={"bfloat16": rate(720.0), "float32": rate(100.0)},
        state={"bfloat16_efficiency": 0.8},
    )
    books = Ledger(IDENTITY, peaks, LateClock())
    books.add(work(books, 0, 0.0, 4.0))
    shares = books.close().waterfall
    # 0.6 s of use would take 0.6 / 0.9 at that clock; the 200 FLOPs more take theirs at the measured rate.
    assert shares["clock_and_power"] == pytest.approx((0.6 / 0.9 - 0.6) / 4)
    assert shares["recomputation"] == pytest.approx(200 / 720 / 4)


LINK = CollectiveRate(
    "all_reduce",
    "host",
    "host",
    2,
    1,
    "gloo",
    rate(1e9),
    (CollectiveTime(4, 0.05, 0.05, 0.05, 3), CollectiveTime(400, 0.05, 0.05, 0.05, 3)),
)


@pytest.mark.parametrize(("links", "transfer_s"), [({}, 0.1), ({"all_reduce/host": LINK}, 0.05)])
def test_ranks_that_come_late(links: dict[str, CollectiveRate], transfer_s: float) -> None:
    """Of exchanges of 0.1, 0.3 and 0.5 s the shortest is transfer, or what the link was measured to take."""
    peaks = replace(PEAKS, collectives=links)
    books = Ledger(replace(IDENTITY, world_size=2), peaks, LateClock())
    books.gathered.counted(replace(COUNT, comm_bytes={"allreduce": 40}), peaks)
    for index, exposed_s in enumerate((0.1, 0.3, 0.5)):
        books.add(work(books, index, 2.0 * index, 2.0 * index + 2.0))
        books.gathered.exchanged(exposed_s)
    shares = books.close().waterfall
    assert shares["exposed_communication"] == pytest.approx(transfer_s / 2)
    assert shares["rank_skew"] == pytest.approx((0.3 - transfer_s) / 2)


def test_what_other_ranks_have_timed() -> None:
    """One of them waited 0.02 s at the least: the bytes take no longer, so the rest of 0.3 is for whoever is late."""
    books = Ledger(replace(IDENTITY, world_size=2), PEAKS, LateClock())
    books.add(work(books, 0, 0.0, 2.0))
    books.gathered.exchanged(0.3)
    books.gathered.heard(0.02)
    shares = books.close().waterfall
    assert shares["exposed_communication"] == pytest.approx(0.02 / 2)
    assert shares["rank_skew"] == pytest.approx(0.28 / 2)


@pytest.mark.parametrize(("also", "transfer_s"), [({}, 0.05), ({"all_gather_into_tensor": 8}, 0.1)])
def test_a_link_of_all_reductions_times_nothing_else(also: dict[str, int], transfer_s: float) -> None:
    """What a step waited for all its collectives is held against their rate where they were nothing but these."""
    peaks = replace(PEAKS, collectives={"all_reduce/host": LINK})
    books = Ledger(replace(IDENTITY, world_size=2), peaks, LateClock())
    books.gathered.counted(replace(COUNT, comm_bytes={"allreduce": 40, **also}), peaks)
    books.add(work(books, 0, 0.0, 2.0))
    books.gathered.exchanged(0.1, of_all=True)
    assert books.close().waterfall["exposed_communication"] == pytest.approx(transfer_s / 2)


def test_operator_times_are_scaled_to_the_run() -> None:
    """A step whose products took 0.7 s and whose rest took 0.4, and two others of the same FLOPs, timed as 2 s each.

    The products' bytes take no longer than their FLOPs, so memory has the 0.4 s alone.
    """
    books, _ = ledger()
    books.gathered.counted(COUNT, PEAKS)
    books.gathered.ran({"mm": 0.7, "gelu": 0.3, "dropout": 0.1}, COUNT.hardware_flops)
    for index in range(2):
        books.add(work(books, index, 2.0 * index, 2.0 * index + 2.0, waits=()))
    shares = books.close().waterfall
    assert shares["host_gap"] == pytest.approx(0.9 / 2)
    assert shares["memory_bound"] == pytest.approx(0.4 / 2)
    # 0.6 s of use would leave 0.1 s, which the 200 FLOPs beyond the model's ask for twice.
    assert shares["recomputation"] == pytest.approx(0.1 / 2)
    assert shares["kernel_inefficiency"] == pytest.approx(0.0, abs=1e-12)


def test_uncounted_operators_are_in_the_summary() -> None:
    """What had no formula is named, and the coverage is by bytes."""
    books, _ = ledger()
    partly = replace(COUNT, uncounted=(Uncounted("lib::op", 3, "block"),), coverage=0.75)
    books.add(work(books, 0, 0.0, 1.0, demand=books.price(partly, "cached")))
    summary = books.close()
    assert summary.uncounted == (Uncounted("lib::op", 3, "block"),)
    assert summary.coverage == 0.75
    assert "lib::op ×3" in str(summary)


def of_phases(records: list[StepRecord], books: Ledger) -> list[tuple[str, Signals]]:
    """What the windows of these steps tell, each with its phase."""
    windows = Windows()
    for record in records:
        windows.add(record)
    observer = Observer(books.gathered, lambda: PEAKS, None)
    return [(each.denominator.phase, observer.signals(each, sums(each.steps))) for each in windows.close()]


def test_each_phase_has_its_own_account() -> None:
    """Three steps of training and two evaluations, 2 s each: gradients are exchanged in training alone.

    Exchanges of 0.3 and 0.1 s: 0.1 of each step is transfer, 0.1 for a late rank, so 0.3 s each of ten.
    """
    records: list[StepRecord] = []
    books = Ledger(replace(IDENTITY, world_size=2), PEAKS, LateClock(), on_step=records.append)
    sends = replace(COUNT, comm_bytes={"allreduce": 40})
    books.gathered.counted(sends, PEAKS, "train")
    books.gathered.counted(COUNT, PEAKS, "eval")
    demands = {phase: books.price(COUNT, "cached") for phase in ("train", "eval")}
    order: tuple[Phase, ...] = ("train", "train", "eval", "train", "eval")
    for index, phase in enumerate(order):
        books.add(Work(index, phase, 2.0 * index, 2.0 * index + 2, 0, demands[phase], waits=()))
    for exposed_s in (0.3, 0.1):
        books.gathered.exchanged(exposed_s)
    shares = books.close().waterfall
    assert shares["exposed_communication"] == pytest.approx(0.3 / 10)
    assert shares["rank_skew"] == pytest.approx(0.3 / 10)
    assert [(phase, seen.comm_s, seen.skew_s) for phase, seen in of_phases(records, books)] == [
        ("train", pytest.approx(0.3), pytest.approx(0.3)),
        ("eval", 0.0, 0.0),
    ]
    # A step that sent nothing, as one of several micro-batches, does not make another's exchange unsaid.
    books.gathered.counted(COUNT, PEAKS, "train")
    assert books.gathered.sent("train")[0] == sent(sends, PEAKS, 2, None)


phases = st.lists(st.tuples(st.sampled_from(("train", "eval")), st.floats(0.5, 4.0)), min_size=2, max_size=12)


@given(phases, st.floats(0, 0.4), st.floats(0, 0.2), st.floats(0, 0.2))
def test_windows_of_all_phases_add_up(
    steps: list[tuple[Phase, float]], exposed_s: float, products_s: float, waited_s: float
) -> None:
    """Whatever steps of whatever phase a run had: its seconds of transfer, skew, data and host are its windows'."""
    records: list[StepRecord] = []
    books = Ledger(replace(IDENTITY, world_size=2), PEAKS, LateClock(), on_step=records.append)
    light = replace(COUNT, model_flops=100, hardware_flops=100, by_dtype={"bfloat16": 100})
    counts: dict[Phase, Count] = {"train": replace(COUNT, comm_bytes={"allreduce": 40}), "eval": light}
    demands = {phase: books.price(each, "cached") for phase, each in counts.items()}
    for phase, each in counts.items():
        books.gathered.counted(each, PEAKS, phase)
        books.gathered.ran({"mm": products_s, "gelu": 0.01}, each.hardware_flops, phase)
    books.gathered.exchanged(exposed_s)
    books.gathered.exchanged(exposed_s / 2)
    at_s = 0.0
    for index, (phase, duration_s) in enumerate(steps):
        wait = (at_s, at_s + waited_s)
        books.add(Work(index, phase, at_s, at_s + duration_s, 0, demands[phase], waits=(wait,)))
        at_s += duration_s
    seconds = {bar.name: bar.seconds for bar in books.close().bars}
    told = [seen for _, seen in of_phases(records, books)]
    for name, field in (("exposed_communication", "comm_s"), ("rank_skew", "skew_s"), ("host_gap", "host_s")):
        assert math.fsum(getattr(each, field) for each in told) == pytest.approx(seconds[name], abs=1e-9)
    assert seconds["data_wait"] == pytest.approx(math.fsum(each.data_wait_s or 0.0 for each in records))
    assert math.fsum(seconds.values()) == pytest.approx(at_s)
