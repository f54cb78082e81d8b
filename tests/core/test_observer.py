"""What a window tells besides its steps' sums: by hand, and as laws that hold for whatever was timed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting.exchanges import Sent, sent
from mfu_sdk.counting.expect import expect
from mfu_sdk.export.signals import Signals
from mfu_sdk.export.windows import Window, Windows, sums
from mfu_sdk.records import CollectiveRate, CollectiveTime, Count, OpCost, Peaks, Phase, Rate, StepRecord
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.held import clock_of_peak_mhz
from mfu_sdk.run.observer import Observer

FAST = Rate(2000.0, 2000.0, 2000.0, "calibrated", 0.0)
# 1,000 bytes in an eighth of a second: 8,000 bytes/s, which are bus bytes between two ranks.
LINK = CollectiveRate(
    "all_reduce", "host", "host", 2, 1, "gloo", Rate(8000.0, 8000.0, 8000.0, "calibrated", 0.0),
    (CollectiveTime(1000, 0.125, 0.125, 0.125, 3),),
)  # fmt: skip
PEAKS = Peaks("cpu", {}, {"float32": FAST}, Rate(1e9, 1e9, 1e9, "calibrated", 0.0), None, {})
RATED = Signals(memory_bytes_per_s=1e9)
"""What is known of any window: with the memory's rate a reader knows whether it or arithmetic binds."""
COUNT = Count(
    model_flops=1000,
    hardware_flops=1000,
    forward_flops=1000,
    backward_flops=0,
    recompute_flops=0,
    optimizer_flops=0,
    attention_flops_exact=0,
    attention_flops_full=0,
    by_dtype={"float32": 1000},
    by_module={},
    by_op={},
    uncounted=(),
    coverage=1.0,
    bytes_moved=0,
    comm_bytes={"allreduce": 1000},
    convention="exact",
    ops=(OpCost("mm", "float32", 1000, 0, 1),),
)


def step(index: int, duration_s: float, waited_s: float | None = 0.1, phase: Phase = "train") -> StepRecord:
    return StepRecord(
        index=index,
        phase=phase,
        duration_s=duration_s,
        model_flops=1000,
        hardware_flops=1000,
        peak_flops_per_s=2000.0,
        peak_source="calibrated",
        mfu=500 / 2000 / duration_s,
        hfu=None,
        mfu_by_dtype=None,
        expected_mfu=None,
        achievable_mfu=None,
        count_source="cached",
        coverage=1.0,
        tokens=None,
        data_wait_s=waited_s,
        comm_s=None,
        device_s=None,
        convention="exact",
        start_unix_ns=index,
        peak_dtype="float32",
    )


def window(*steps: StepRecord) -> Window:
    windows = Windows()
    return [windows.add(each)[0] for each in steps][-1]


def told(gathered: Gathered, *steps: StepRecord, peaks: Peaks = PEAKS) -> Signals:
    of = window(*steps)
    return Observer(gathered, lambda: peaks, None).signals(of, sums(of.steps))


def test_by_hand() -> None:
    """Three seconds of three steps, with what was timed of others taken for them.

    Exchanges of 0.3 and 0.2 s: 0.2 of each step are transfer, 0.05 a late rank. A step of as many FLOPs worked half a
    second. So of 3 s data took 0.3, transfer 0.6, skew 0.15, work 1.5, and the host the rest.
    """
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    gathered.ran({"mm": 0.4, "add": 0.1}, 1000)
    gathered.exchanged(0.3, whole_s=0.5)
    gathered.exchanged(0.2, whole_s=0.25)
    found = told(gathered, step(0, 1.0), step(1, 1.0), step(2, 1.0))
    assert (found.comm_s, found.skew_s, found.host_s) == pytest.approx((0.6, 0.15, 0.45))
    # An all-reduce between two ranks sends its size, here 1,000 bytes a step, and the quicker took a quarter second.
    assert (found.comm_bytes, found.bus_bytes_per_s) == (3000.0, 4000.0)
    assert (found.bus_peak_bytes_per_s, found.ideal_ratio) == (None, None)
    assert (found.clock_ratio, found.throttled, found.witness) == (None, None, None)


def test_what_steps_tell_themselves() -> None:
    """Two of three tell 0.3 and 0.5 s: they stand for the third. What others were timed to wait is only the least.

    Where none of the window's sums does, one that was sampled; one that was counted stands for no other.
    """
    gathered = Gathered(ranks=2)
    for exposed_s in (0.1, 0.3, 0.5):
        gathered.exchanged(exposed_s)
    steps = [replace(step(index, 1.0), comm_s=exposed_s) for index, exposed_s in enumerate((0.3, 0.5, None))]
    counted = replace(step(3, 1.0), comm_s=9.0, count_source="measured")
    sampled = replace(step(4, 1.0), comm_s=0.7, profiled=True)
    found = told(gathered, *steps, counted, sampled)
    assert (found.comm_s, found.skew_s) == pytest.approx((0.3, 3 * 0.4 - 0.3))
    found = told(gathered, steps[2], counted, sampled)
    assert (found.comm_s, found.skew_s) == pytest.approx((0.1, 0.6))


def test_a_gpu_that_stood_still() -> None:
    """Of steps that its driver looked at three quarters: of two seconds 1.5, less 0.2 that they waited for data.

    Of steps that do not say what they waited, or of a handler's, nothing is told; nor of a moment's looks.
    """
    gathered = Gathered(ranks=1)
    gathered.rested(0.75, 1.0)
    assert told(gathered, step(0, 1.0), step(1, 1.0)).host_s is None
    gathered.rested(2.25, 3.0)
    assert told(gathered, step(0, 1.0), step(1, 1.0)).host_s == pytest.approx(1.3)
    assert told(gathered, step(0, 1.0, None)).host_s is None
    assert told(gathered, step(0, 1.0, phase="decode")).host_s is None


def test_measured_links() -> None:
    """With a rate of the links: what they can do at this size, and their ideal share of computing (0.125 s of 0.5)."""
    peaks = replace(PEAKS, collectives={"all_reduce/host": LINK})
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, peaks, "train", expect(COUNT, peaks))
    gathered.exchanged(0.2)
    found = told(gathered, step(0, 1.0), peaks=peaks)
    assert (found.bus_peak_bytes_per_s, found.ideal_ratio, found.bus_bytes_per_s) == (8000.0, 0.25, None)
    # Of the 0.2 s that were waited no more than an eighth is the link's.
    assert (found.comm_s, found.skew_s) == pytest.approx((0.125, 0.075))


@pytest.mark.parametrize(
    ("handed", "bus_bytes"),
    [
        ({}, 0.0),
        # Four ranks: 2·3/4, 4 parts of 3/4, 3/4, 3/4, once.
        ({"allreduce": 400}, 600.0),
        ({"all_gather_into_tensor": 400}, 1200.0),
        ({"reduce_scatter_tensor": 400}, 300.0),
        ({"all_to_all_single": 400}, 300.0),
        ({"broadcast": 400, "send": 100}, 500.0),
        ({"allreduce": 400, "gather": 4}, None),
    ],
    ids=["nothing", "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "once", "no convention"],
)
def test_bytes_by_the_bus_convention(handed: dict[str, int], bus_bytes: float | None) -> None:
    """What passes each rank's link, as nccl-tests reckon it; unknown where one has no convention."""
    assert sent(replace(COUNT, comm_bytes=handed), PEAKS, 4, None) == Sent(bus_bytes, None, None)


def test_of_each_phase_its_own() -> None:
    """An evaluation exchanges nothing that was timed in training; nothing is known of it, which is not zero."""
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    gathered.exchanged(0.2)
    found = told(gathered, step(0, 1.0, phase="eval"))
    assert (found.comm_s, found.skew_s, found.comm_bytes, found.host_s) == (None, None, None, None)


def test_one_rank() -> None:
    """It waits for nobody; its host's share needs no more than the times of operators."""
    gathered = Gathered(ranks=1)
    gathered.counted(COUNT, PEAKS)
    assert told(gathered, step(0, 1.0)) == replace(RATED, comm_s=0.0, skew_s=0.0)
    gathered.ran({"mm": 0.6}, 1000)
    assert told(gathered, step(0, 1.0)) == replace(RATED, comm_s=0.0, skew_s=0.0, host_s=pytest.approx(0.3))
    # Without a loader that is seen, waiting for data would be in it.
    assert told(gathered, step(0, 1.0, None)).host_s is None


def test_what_is_long_past_is_no_windows() -> None:
    """A thousand steps worked half a second and one rank came late to none; of the last sixteen both are otherwise.

    The run's own account is of all of them.
    """
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    for _ in range(1000):
        gathered.ran({"mm": 0.5}, 1000)
        gathered.exchanged(0.1)
    assert told(gathered, step(0, 1.0)).host_s == pytest.approx(0.3)
    for _ in range(16):
        gathered.ran({"mm": 0.3}, 1000)
        gathered.exchanged(0.4)
    found = told(gathered, step(0, 1.0))
    assert (found.comm_s, found.skew_s, found.host_s) == pytest.approx((0.1, 0.3, 0.2))
    assert gathered.worked_s(1016 * 1000, "train") == pytest.approx((504.8, 0.0))
    assert gathered.exchange == pytest.approx((106.4 / 1016, 0.1))


def test_the_memorys_rate_is_that_of_all_devices() -> None:
    """As the denominator is; unknown where no calibration told it."""
    of = window(step(0, 1.0))
    for peaks, rate in ((PEAKS, 2e9), (replace(PEAKS, memory=None), None)):
        found = Observer(Gathered(ranks=1), lambda peaks=peaks: peaks, None, devices=2).signals(of, sums(of.steps))
        assert found.memory_bytes_per_s == rate


def test_a_checkpoint_is_the_hosts() -> None:
    """A step that asks nothing of the device leaves it to the host, but for waiting."""
    gathered = Gathered(ranks=1)
    saved = replace(step(0, 2.0, phase="checkpoint"), model_flops=0, hardware_flops=0)
    assert told(gathered, saved).host_s == pytest.approx(1.9)


def test_no_time_to_divide() -> None:
    """A window whose steps were all counted, or failed, tells nothing of time."""
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    gathered.exchanged(0.2)
    assert told(gathered, replace(step(0, 1.0), count_source="measured")) == RATED


seconds = st.floats(0.0, 10.0)


@given(st.lists(seconds, min_size=1, max_size=5), st.lists(st.floats(0.001, 5.0), min_size=1, max_size=6), seconds)
def test_never_more_than_the_steps_took(exchanges: list[float], durations: list[float], waited_s: float) -> None:
    """Whatever was timed, the seconds of a window's parts add up to no more than its steps' time."""
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    gathered.ran({"mm": 0.01}, 1000)
    for exposed_s in exchanges:
        gathered.exchanged(exposed_s)
    found = told(gathered, *(step(i, duration_s, waited_s) for i, duration_s in enumerate(durations)))
    parts = (found.comm_s, found.skew_s, found.host_s)
    assert None not in parts
    assert sum(part or 0.0 for part in parts) <= sum(durations) * (1 + 1e-9)


@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_windows_add_up_to_the_run(exchanges: list[float], sizes: list[int]) -> None:
    """However the steps of a run are cut into windows, these add up to its transfer, its skew and its host's share."""
    gathered = Gathered(ranks=2)
    gathered.counted(COUNT, PEAKS)
    gathered.ran({"mm": 0.25}, 1000)
    for exposed_s in exchanges:
        gathered.exchanged(exposed_s)
    whole = told(gathered, *(step(i, 1.0) for i in range(sum(sizes))))
    cut = [told(gathered, *(step(i, 1.0) for i in range(size))) for size in sizes]
    for name in ("comm_s", "skew_s", "host_s", "comm_bytes"):
        assert sum(getattr(part, name) for part in cut) == pytest.approx(getattr(whole, name))


def test_the_clock_of_a_peak() -> None:
    """Of a measured peak the clock that ran; of one on paper the clock that it assumes.

    720 TFLOP/s at 1,600 MHz are 0.8 of what that allows, 900; so the paper's 1,012.5 are those at 1,800 MHz.
    """
    state = {"bfloat16_clock_mhz": 1600.0, "bfloat16_efficiency": 0.8}
    measured, paper = (Rate(each, each, each, "", 0.0) for each in (720e12, 1012.5e12))
    peaks = replace(PEAKS, device="cuda:0", achievable={"bfloat16": measured}, state=state)
    assert clock_of_peak_mhz("bfloat16", peaks) == 1600.0
    assert clock_of_peak_mhz("bfloat16", replace(peaks, theoretical={"bfloat16": paper})) == pytest.approx(1800.0)
    assert clock_of_peak_mhz("bfloat16", replace(peaks, theoretical={"bfloat16": paper}, state={})) is None
    assert clock_of_peak_mhz("float32", peaks) is None
