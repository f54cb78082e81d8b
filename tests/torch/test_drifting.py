"""What a run makes of an excursion: the clock of its device, late ranks, and the configuration near the onset."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mfu_sdk.drift.budget import Budget
from mfu_sdk.drift.detector import Tuning
from mfu_sdk.drift.samples import Ran
from mfu_sdk.drift.watch import Watch
from mfu_sdk.records import Count, DriftEvent, OpCost, Peaks, Rate, RunIdentity
from mfu_sdk.run.drifting import SHORT_S, Drifting
from mfu_sdk.run.kinds import Kind
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.work import Work

from .conftest import Sink

RATE = Rate(1e4, 1e4, 1e4, "user", 0.0)
PEAKS = Peaks("cuda:0", {"bfloat16": RATE}, {"bfloat16": RATE}, None, None, {})
IDENTITY = RunIdentity("run", 0, "work", None, 0, 0, 4, "Example", None, None, 0)
COUNT = Count(600, 600, 200, 400, 0, 0, 0, 0, {"bfloat16": 600}, {}, {}, (), 1.0, 40, {}, "exact")
TUNING = Tuning(block_steps=4, baseline_blocks=16, settle_steps=4)


class Clock:
    """Marks are seconds, and the device is never behind."""

    def mark(self) -> float:
        return 0.0

    def elapsed_s(self, start: float, end: float) -> float:
        return end - start

    def drain(self, mark: float) -> None: ...


class Gpu:
    """A device whose clock is told."""

    mhz: float | None = 1980.0
    reasons: tuple[str, ...] = ("application clocks",)

    def __call__(self) -> tuple[float | None, tuple[str, ...]]:
        return self.mhz, self.reasons


class Books:
    """A ledger with a watch, and the steps that it is given."""

    def __init__(self, *, gpu: Gpu | None = None, asks: bool = False) -> None:
        self.told: list[DriftEvent] = []
        self.ledger = Ledger(IDENTITY, PEAKS, Clock())
        self.drift = self.ledger.drift = Drifting(
            Watch(TUNING, Budget()), PEAKS, {"torch": torch.__version__}, alone=asks, pulse=gpu,
            on_drift=self.told.append,
        )  # fmt: skip
        self.demand = self.ledger.price(COUNT, "cached")
        self.now_s, self.index = 0.0, 0
        self.generator = random.Random(0)

    def steps(
        self,
        number: int,
        duration_s: float,
        exposed_s: float | None = None,
        ran: Ran | None = None,
        waits: Sequence[tuple[float, float]] | None = (),
    ) -> None:
        """So many steps; of every tenth the exchange took `exposed_s`, and every eighth is sampled and shows `ran`."""
        for _ in range(number):
            end_s = self.now_s + duration_s * self.generator.uniform(0.99, 1.01)
            if exposed_s is not None and self.index % 10 == 9:
                self.drift.exchanged(self.index, exposed_s)
            work = Work(self.index, "train", self.now_s, end_s, round(self.now_s * 1e9), self.demand, waits=waits)
            if ran is not None and (self.index % 8 == 5 or self.drift.wants_sample):
                work.profiled = True
                self.drift.sampled(work, ran)
            self.ledger.add(work)
            self.now_s, self.index = end_s, self.index + 1


def test_a_slower_clock_is_heat_or_power() -> None:
    """The clock falls to 70 % with the steps: it is most of the change, and the driver's reason stands beside it."""
    gpu = Gpu()
    books = Books(gpu=gpu)
    books.steps(256, 1.0)
    gpu.mhz, gpu.reasons = 1386.0, ("software thermal slowdown", "application clocks")
    books.steps(100, 1.4)
    [event] = books.told
    assert event.cause == "thermal_or_power"
    assert event.evidence[:2] == ("the clock went to 70% of what it was", "software thermal slowdown")
    assert sum(event.parts.values()) == pytest.approx(event.parts["clock"] + event.parts["compute"], abs=1e-9)
    assert event.parts["clock"] == pytest.approx(sum(event.parts.values()), rel=0.1)


def test_a_device_that_tells_no_clock() -> None:
    """Nothing is made up for it."""
    gpu = Gpu()
    gpu.mhz = None
    books = Books(gpu=gpu)
    books.steps(256, 1.0)
    books.steps(100, 1.4)
    assert [event.cause for event in books.told] == ["unknown"]


def test_late_ranks_are_stragglers() -> None:
    """Exchanges took 0.05 s and take 0.45 s, in steps that take 0.4 s longer: someone comes late to them."""
    books = Books()
    books.steps(200, 1.0, exposed_s=0.05)
    books.steps(100, 1.4, exposed_s=0.45)
    [event] = books.told
    assert event.cause == "straggler"
    assert event.evidence[0] == "waiting for late ranks went from 0.0% to 28.6% of a step"
    assert event.parts["skew"] == pytest.approx(sum(event.parts.values()), rel=0.05)


def test_an_event_waits_for_an_exchange_that_is_timed() -> None:
    """Nothing was timed since the onset: the event comes with the next one that is, or when patience ends."""
    books = Books()
    books.steps(200, 1.0, exposed_s=0.05)
    books.steps(60, 1.4)
    assert books.told == []
    books.drift.exchanged(books.index, 0.45)
    assert [event.cause for event in books.told] == ["straggler"]
    patient = Books()
    patient.steps(200, 1.0, exposed_s=0.05)
    patient.steps(400, 1.4)
    assert [event.cause for event in patient.told] == ["unknown"]


def test_an_alarm_asks_for_a_count() -> None:
    """On a process on its own the next step is counted, and what it shows is the cause."""
    books = Books(asks=True)
    books.drift.counted(Work(0, "train", 0.0, 1.0, 0, None), COUNT)
    books.steps(200, 1.0)
    for _ in range(20):
        books.steps(4, 1.4)
        if books.drift.wants_count:
            break
    assert books.told == []
    again = Count(600, 800, 200, 400, 200, 0, 0, 0, {"bfloat16": 600}, {}, {}, (), 1.0, 40, {}, "exact")
    books.drift.counted(Work(books.index, "train", 0.0, 1.0, 0, None), again)
    assert not books.drift.wants_count
    [event] = books.told
    assert (event.cause, event.fingerprint_diff) == ("configuration_drift", ("recomputed: 0.0 → 0.33",))


def test_a_count_that_never_comes() -> None:
    """A block later the event is told without."""
    books = Books(asks=True)
    books.steps(200, 1.0)
    books.steps(100, 1.4)
    assert [event.cause for event in books.told] == ["unknown"]


def test_what_waits_is_told_at_the_end() -> None:
    """A run that ends while an event waits has it in its summary."""
    books = Books()
    books.steps(200, 1.0, exposed_s=0.05)
    books.steps(60, 1.4)
    assert [event.kind for event in books.ledger.close().drift] == ["drop"]


def test_a_count_that_the_fault_itself_caused() -> None:
    """New shapes are counted when they come, a step or two before the onset as it is located: they are its diff."""
    books = Books(asks=True)
    books.drift.counted(Work(0, "train", 0.0, 1.0, 0, None), COUNT)
    books.steps(200, 1.0)
    other = Count(600, 600, 200, 400, 0, 0, 0, 0, {"float32": 600}, {}, {}, (), 1.0, 40, {}, "exact")
    books.drift.counted(Work(books.index - 6, "train", 0.0, 1.0, 0, None), other)
    books.steps(100, 1.4)
    [event] = books.told
    assert event.fingerprint_diff == ("dtype.products: −bfloat16 +float32",)


def test_an_error_of_ours_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken watch costs the watch: every step is in the books, and one warning is said."""
    monkeypatch.setenv("MFU_GUARD", "log")
    books = Books()
    books.steps(10, 1.0)
    monkeypatch.setattr(Watch, "add", lambda *_: 1 / 0)
    books.steps(300, 1.4)
    assert books.ledger.summary().timed_steps == 310
    assert books.told == []


def test_short_steps_are_looked_at_by_chance() -> None:
    """Of steps of 50 µs one in forty is, which is 500 a second; of those of two milliseconds and more each."""
    looked = [0]

    class Counting(Watch):
        def add(self, *args: Any, **kwargs: Any) -> None:
            looked[0] += 1

    drifting = Drifting(Counting(Tuning(), Budget(1.0, 1)), PEAKS, {})
    kind = Kind(None)

    def enter(steps: int, duration_s: float) -> None:
        for index in range(steps):
            drifting.rest_s -= duration_s
            if not drifting.rest_s > 0.0:
                drifting.add(Work(index, "train", 0, 1, 0, None), kind, duration_s, None)

    enter(20_000, 5e-5)
    # Binomial: 500 ± 22; six deviations away is one run in a billion.
    assert abs(looked[0] - 500) < 133
    # However long the last short one lets the watch rest, some milliseconds at the most are passed by for it.
    looked[0] = 0
    enter(100, 1.0)
    assert looked[0] == 100
    drifting.rest_s = looked[0] = 0
    enter(100, SHORT_S)
    assert looked[0] == 100


# --- what sampled steps show -----------------------------------------------------------------------------------------

FLASH = Ran(
    {"pytorch_flash::flash_fwd_kernel<0a1b2c3d>": 0.2, "nvjet_tst_128x256_64x4": 0.6}, 0.8, COUNT.hardware_flops
)
MATH = Ran({"at::native::softmax_warp_forward": 0.6, "nvjet_tst_128x256_64x4": 0.6}, 1.2, COUNT.hardware_flops)


def test_another_kernel_was_chosen() -> None:
    """The same operators by another kernel: the sampled steps on either side say which, and that it is the cause."""
    books = Books()
    books.steps(200, 1.0, ran=FLASH)
    books.steps(100, 1.4, ran=MATH)
    [event] = books.told
    assert event.cause == "configuration_drift"
    assert event.fingerprint_diff == (
        "kernels: −pytorch_flash::flash_fwd_kernel<0a1b2c3d> +at::native::softmax_warp_forward",
    )
    assert event.evidence[0] == event.fingerprint_diff[0]


def test_the_same_kernels_are_no_change() -> None:
    """Slower by the same kernels, or never sampled at all: nothing of the configuration changed."""
    for ran in (FLASH, None):
        books = Books()
        books.steps(200, 1.0, ran=ran)
        books.steps(100, 1.4, ran=ran)
        assert [(event.cause, event.fingerprint_diff) for event in books.told] == [("unknown", ())]


def test_a_slower_clock_is_no_other_kernel() -> None:
    """Heat comes first, whatever kernels run."""
    gpu = Gpu()
    books = Books(gpu=gpu)
    books.steps(256, 1.0, ran=FLASH)
    gpu.mhz = 1386.0
    books.steps(100, 1.4, ran=MATH)
    assert [event.cause for event in books.told] == ["thermal_or_power"]


def test_an_alarm_asks_for_a_sample() -> None:
    """Sampled before the onset and not since: on a process on its own the next step that can be is, and tells."""
    books = Books(asks=True)
    books.steps(200, 1.0, ran=FLASH)
    while not books.drift.wants_sample:
        books.steps(1, 1.4)
    books.drift.counted(Work(books.index, "train", 0.0, 1.0, 0, None), COUNT)
    assert books.told == []
    books.steps(1, 1.4, ran=MATH)
    assert not books.drift.wants_sample
    [event] = books.told
    assert event.fingerprint_diff[-1].startswith("kernels: −pytorch_flash")
    # One that never comes is waited for no longer than that.
    patient = Books(asks=True)
    patient.steps(200, 1.0, ran=FLASH)
    patient.steps(120, 1.4)
    assert [event.cause for event in patient.told] == ["unknown"]
    assert not patient.drift.wants_sample


def test_the_first_sample_changes_no_fingerprint() -> None:
    """What a run is known by is told once, and is the same whether anything of it is ever sampled."""
    sink = Sink()
    for ran in (None, FLASH, MATH):
        drift = Drifting(Watch(TUNING, Budget()), PEAKS, {"torch": "2"}, telemetry=sink)  # type: ignore[arg-type]
        if ran is not None:
            drift.sampled(Work(3, "train", 0.0, 1.0, 0, None), ran)
        drift.counted(Work(4, "train", 0.0, 1.0, 0, None), COUNT)
        if ran is not None:
            drift.sampled(Work(5, "train", 0.0, 1.0, 0, None), ran)
        drift.counted(Work(8, "train", 0.0, 1.0, 0, None), COUNT)
    assert len(sink.configured_as) == 3
    assert len(set(sink.configured_as)) == 1


def test_the_hosts_share() -> None:
    """Steps of 1 s with 0.8 s of work become 1.4 s with as much: what was lost is the host's, all of log(1 / 1.4)."""
    books = Books(asks=True)
    books.steps(200, 1.0, ran=FLASH)
    books.steps(100, 1.4, ran=FLASH)
    [event] = books.told
    assert event.parts["host"] == pytest.approx(math.log(1 / 1.4), abs=0.03)
    assert event.parts["compute"] == pytest.approx(0.0, abs=0.01)
    # The same time lost by the kernels is not.
    books = Books(asks=True)
    books.steps(200, 1.0, ran=FLASH)
    books.steps(100, 1.4, ran=MATH)
    [event] = books.told
    assert event.parts["host"] == pytest.approx(0.0, abs=0.03)
    assert event.parts["compute"] == pytest.approx(math.log(1 / 1.4), abs=0.03)


def test_where_the_hosts_share_is_not_known() -> None:
    """Without samples, without the loader's waits, or among ranks that nobody heard of: there is no such part."""
    unsampled, ranks, unwatched = Books(asks=True), Books(), Books(asks=True)
    for books, ran in ((unsampled, None), (ranks, FLASH), (unwatched, FLASH)):
        waits = None if books is unwatched else ()
        books.steps(200, 1.0, ran=ran, waits=waits)
        books.steps(100, 1.4, ran=ran, waits=waits)
        [event] = books.told
        assert "host" not in event.parts
        assert math.fsum(event.parts.values()) == pytest.approx(math.log(1 / 1.4), abs=0.03)
    # Ranks that time their exchanges tell it: 0.05 s of them and 0.8 s of work leave 0.15 s, and 0.55 s later.
    books = Books()
    books.steps(200, 1.0, exposed_s=0.05, ran=FLASH)
    books.steps(100, 1.4, exposed_s=0.05, ran=FLASH)
    [event] = books.told
    assert event.parts["host"] == pytest.approx(math.log(1 / 1.4), abs=0.03)


def test_seconds_apart() -> None:
    """Counted, profiled and failed steps have passed too, and are in no sum of times."""
    books = Books()
    books.steps(4, 1.0)
    whole_s, apart_s = books.ledger.passed()
    assert (whole_s, apart_s) == (pytest.approx(4.0, rel=0.01), 0.0)
    for seconds, fields in ((8.0, {"counting": True}), (16.0, {"profiled": True}), (32.0, {"error_type": "Error"})):
        books.ledger.add(Work(books.index, "train", 0.0, seconds, 0, books.demand, **fields))  # type: ignore[arg-type]
    assert books.ledger.passed() == (pytest.approx(whole_s + 56.0), 56.0)


LOST = math.log(1 / 1.4)


# Of a step behind the onset, and what of the loss is the host's: all, or as much as it had before.
@pytest.mark.parametrize(("idle_s", "share"), [(0.6, 1.0), (0.2 * 1.4, 0.2), (None, None)])
def test_the_hosts_share_by_a_gpus_driver(idle_s: float | None, share: float | None) -> None:
    """It saw nothing run in 0.2 s of steps of 1 s, and then in some of those of 1.4 s.

    Nobody sampled anything, and waits for data are not known. A driver that was not asked behind it says nothing.
    """
    books = Books(gpu=Gpu())
    for _ in range(40):
        books.steps(5, 1.0, waits=None)
        books.ledger.rested(5 * 0.2, 5 * 1.0)
    for _ in range(20):
        books.steps(5, 1.4, waits=None)
        if idle_s is not None:
            books.ledger.rested(5 * idle_s, 5 * 1.4)
    [event] = books.told
    assert event.parts.get("host") == (None if share is None else pytest.approx(share * LOST, abs=0.03))
    assert math.fsum(event.parts.values()) == pytest.approx(LOST, abs=0.03)


def test_sampled_waits_for_ranks() -> None:
    """What a sampled step waited for others is an exchange that was timed, as one of DistributedDataParallel's is."""
    books = Books()
    books.steps(200, 1.0, ran=FLASH._replace(exposed_s=0.05))
    books.steps(100, 1.4, ran=FLASH._replace(exposed_s=0.45))
    [event] = books.told
    assert event.cause == "straggler"


def test_an_evaluation_is_no_other_configuration() -> None:
    """The last step that was counted before the onset is an evaluation, which runs other operators: no change."""
    books = Books(asks=True)
    again = replace(COUNT, recompute_flops=300, by_dtype={"float32": 600})
    books.drift.counted(Work(0, "train", 0.0, 1.0, 0, None), COUNT)
    books.drift.counted(Work(1, "eval", 0.0, 1.0, 0, None), again)
    books.steps(200, 1.0)
    while not books.drift.wants_count:
        books.steps(4, 1.4)
    books.drift.counted(Work(books.index, "eval", 0.0, 1.0, 0, None), again)
    assert books.told == []
    books.drift.counted(Work(books.index, "train", 0.0, 1.0, 0, None), COUNT)
    assert [(event.cause, event.fingerprint_diff) for event in books.told] == [("unknown", ())]


@pytest.mark.parametrize("marks", [{"counting": True}, {"profiled": True}, {"error_type": "ValueError"}])
def test_steps_that_are_not_judged(marks: dict[str, Any]) -> None:
    """Two of three steps are counted, profiled or fail, and take five times as long: none of them is in any block."""
    books = Books()
    books.steps(200, 1.0)
    for _ in range(200):
        for more, duration_s in ((marks, 5.0), (marks, 5.0), ({}, 1.0)):
            books.index += 1
            end_s = books.now_s + duration_s * books.generator.uniform(0.99, 1.01)
            books.ledger.add(Work(books.index, "train", books.now_s, end_s, 0, books.demand, waits=(), **more))
            books.now_s = end_s
    assert books.told == []
    assert books.ledger.summary().steps == 800


def test_a_step_that_logs() -> None:
    """Operators that one of two counted steps ran by the way are no change; one that moves a tenth of the bytes is."""
    more = (OpCost("aten::mm", "bfloat16", 600, 800, 1), OpCost("aten::_local_scalar_dense", "float32", 0, 4, 1))
    plain, logs = replace(COUNT, ops=more[:1]), replace(COUNT, ops=more)
    other = replace(COUNT, ops=(*more[:1], OpCost("aten::sort", "float32", 0, 100, 1)))
    diffs = []
    for before, now in ((plain, logs), (logs, plain), (plain, other), (other, plain)):
        books = Books(asks=True)
        books.drift.counted(Work(0, "train", 0.0, 1.0, 0, None), before)
        books.steps(200, 1.0)
        while not books.drift.wants_count:
            books.steps(4, 1.4)
        books.drift.counted(Work(books.index, "train", 0.0, 1.0, 0, None), now)
        diffs += [event.fingerprint_diff for event in books.told]
    assert diffs == [(), (), ("operators: +aten::sort",), ("operators: −aten::sort",)]
