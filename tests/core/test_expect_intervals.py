"""The expectation's interval, its communication and its bandwidth, with numbers that a pencil can check."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting.expect import expect
from mfu_sdk.records import CollectiveRate, CollectiveTime, Count, Expectation, OpCost, Over, Peaks, Rate

COUNT = Count(
    model_flops=6000,
    hardware_flops=6000,
    forward_flops=2000,
    backward_flops=4000,
    recompute_flops=0,
    optimizer_flops=0,
    attention_flops_exact=0,
    attention_flops_full=0,
    by_dtype={"bfloat16": 6000},
    by_module={},
    by_op={},
    uncounted=(),
    coverage=1.0,
    bytes_moved=1200,
    comm_bytes={},
    convention="exact",
    # 6 × 10 s of products, and 600 bytes that take 6 s.
    ops=(OpCost("mm", "bfloat16", 1000, 100, 6), OpCost("add", "none", 0, 600, 1)),
)
PEAKS = Peaks(
    device="cuda",
    theoretical={"bfloat16": Rate(200.0, 200.0, 200.0, "theory", 0.0)},
    achievable={"bfloat16": Rate(100.0, 80.0, 125.0, "calibrated", 0.0)},
    memory=Rate(100.0, 50.0, 200.0, "calibrated", 0.0),
    clock_mhz=None,
    state={},
)


def collective(kind: str, over: Over, ranks: int, bytes_per_s: float, spread: float = 1.0) -> CollectiveRate:
    bus = Rate(bytes_per_s, bytes_per_s / spread, bytes_per_s * spread, "calibrated", 0.0)
    times = (CollectiveTime(8, 1.0, 1.0, 1.0, 3),)
    return CollectiveRate(kind, over, "nvlink", ranks, 1, "nccl", bus, times)


def found(count: Count = COUNT, peaks: Peaks = PEAKS) -> Expectation:
    expectation = expect(count, peaks)
    assert expectation is not None
    return expectation


def test_the_interval_takes_every_rate_at_its_ends() -> None:
    """At best 6000/125 + 600/200 = 51 s, at worst 6000/80 + 600/50 = 87 s; MFU is 6000/200 over either."""
    e = found()
    assert (e.time_s, e.low_s, e.high_s) == (66.0, 51.0, 87.0)
    assert (e.mfu, e.low_mfu, e.high_mfu) == pytest.approx((30 / 66, 30 / 87, 30 / 51))


def test_an_operator_may_change_sides_within_its_interval() -> None:
    """1000 FLOPs take 10 s, 8 at best; 1000 bytes 10, 5 or 20 s: the interval is [8, 20]."""
    e = found(replace(COUNT, ops=(OpCost("mm", "bfloat16", 1000, 1000, 1),)))
    assert (e.time_s, e.low_s, e.high_s) == (10.0, 8.0, 20.0)


def test_memory_by_size_is_as_sure_as_memory() -> None:
    """A cache's 400 B/s has no interval of its own: half as much at worst, twice at best, as memory's has."""
    e = found(replace(COUNT, ops=(OpCost("add", "none", 0, 800, 1),)), replace(PEAKS, memory_by_size=((1000, 400.0),)))
    assert (e.time_s, e.low_s, e.high_s) == (2.0, 1.0, 4.0)


def test_memory_bandwidth_utilization() -> None:
    """6 × 100 + 600 bytes in 66 s, of the 6,600 that memory could have moved."""
    e = found()
    assert (e.bytes_moved, e.mbu) == (1200, pytest.approx(1200 / 6600))
    unmeasured = replace(PEAKS, memory=None, memory_by_size=((1, 100.0),))
    assert found(peaks=unmeasured).mbu is None


def test_each_operator_names_what_binds_it() -> None:
    """The longest first: 60 s of arithmetic, then 6 s of memory."""
    ops = [(op.op, op.calls, op.seconds, op.bound) for op in found().ops]
    assert ops == [("mm", 6, 60.0, "compute"), ("add", 1, 6.0, "memory")]


def test_theory_is_said_to_stand_in() -> None:
    """Who is held to theory is told so."""
    e = found(peaks=replace(PEAKS, achievable={}))
    assert (e.time_s, e.assumptions) == (36.0, ("held to theory, since not measured: bfloat16",))


# --- communication -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "seconds"),
    [
        # 400 bytes of every rank, between 4: 2 · 3/4 · 400 / 10.
        ("allreduce", "all_reduce", 60.0),
        ("all_reduce_coalesced", "all_reduce", 60.0),
        # A quarter of 1,600: 3/4 · 1600 / 10.
        ("allgather_base", "all_gather", 120.0),
        ("all_gather_into_tensor", "all_gather", 120.0),
        ("reduce_scatter_tensor", "reduce_scatter", 30.0),
        ("alltoall_base", "all_to_all", 30.0),
    ],
)
def test_collectives_at_their_bus_rate(name: str, kind: str, seconds: float) -> None:
    """What torch calls it, the whole message from what a rank hands over, and the factor of nccl-tests."""
    peaks = replace(PEAKS, collectives={f"{kind}/host": collective(kind, "host", 4, 10.0)})
    e = found(replace(COUNT, comm_bytes={name: 400}), peaks)
    assert e.communication_s + e.hidden_s == pytest.approx(seconds)
    assert e.missing == ()


def test_all_reduces_hide_behind_the_backward_only() -> None:
    """66 s of work, two thirds of it backward: of 60 s 44 hide, 16 show; of 30 none show."""
    peaks = replace(PEAKS, collectives={"all_reduce/host": collective("all_reduce", "host", 4, 10.0)})
    e = found(replace(COUNT, comm_bytes={"allreduce": 400}), peaks)
    assert (e.hidden_s, e.communication_s, e.time_s) == pytest.approx((44.0, 16.0, 82.0))
    assert e.mfu == pytest.approx(30 / 82)
    e = found(replace(COUNT, comm_bytes={"allreduce": 200}), peaks)
    assert (e.hidden_s, e.communication_s, e.time_s) == pytest.approx((30.0, 0.0, 66.0))
    assert e.assumptions == ("all-reduces run beside the backward, as DDP's do",)


def test_a_forward_alone_waits_for_its_all_reduces() -> None:
    """Without a backward there is nothing to hide behind."""
    peaks = replace(PEAKS, collectives={"all_reduce/host": collective("all_reduce", "host", 4, 10.0)})
    e = found(replace(COUNT, backward_flops=0, comm_bytes={"allreduce": 200}), peaks)
    assert (e.hidden_s, e.communication_s) == (0.0, pytest.approx(30.0))


def test_gathers_hide_behind_what_is_left() -> None:
    """44 of 60 s hide behind the backward, 22 of 30 behind the rest: 16 + 8 show. All-to-alls all show."""
    rates = {
        f"{kind}/host": collective(kind, "host", 4, 10.0) for kind in ("all_reduce", "reduce_scatter", "all_to_all")
    }
    sent = {"allreduce": 400, "reduce_scatter_tensor": 400, "alltoall_base": 400}
    e = found(replace(COUNT, comm_bytes=sent), replace(PEAKS, collectives=rates))
    assert (e.hidden_s, e.communication_s) == pytest.approx((66.0, 54.0))


def test_the_interval_hides_all_or_nothing() -> None:
    """At best 51 s of work hide 34 of 30 s; at worst all 120 s, at half the rate, come on top of 87."""
    peaks = replace(PEAKS, collectives={"all_reduce/host": collective("all_reduce", "host", 4, 10.0, spread=2.0)})
    e = found(replace(COUNT, comm_bytes={"allreduce": 400}), peaks)
    assert (e.low_s, e.high_s) == pytest.approx((51.0, 87.0 + 120.0))


def test_the_interval_spans_the_links() -> None:
    """Between all 8 ranks at 5 B/s, among 4 of a host at 10: the first is expected, the second is at best."""
    rates = {
        "all_to_all/all": collective("all_to_all", "all", 8, 5.0),
        "all_to_all/host": collective("all_to_all", "host", 4, 10.0),
    }
    e = found(replace(COUNT, comm_bytes={"alltoall": 400}), replace(PEAKS, collectives=rates))
    assert e.communication_s == pytest.approx(400 * 7 / 8 / 5)
    assert e.high_s == pytest.approx(87 + 400 * 7 / 8 / 5)
    # At best 30 s of it hide behind 51.
    assert e.low_s == pytest.approx(51.0)


@pytest.mark.parametrize("sent", [{"allreduce": 400}, {"broadcast": 10}])
def test_an_unknown_collective_is_said(sent: dict[str, int]) -> None:
    """One without a rate is named, its time is in no figure, and there is no upper end of the time."""
    ((name, size),) = sent.items()
    peaks = replace(PEAKS, collectives={"all_gather/host": collective("all_gather", "host", 4, 10.0)})
    e = found(replace(COUNT, comm_bytes=sent), peaks)
    assert e.missing == (f"{name} of {size} bytes",)
    assert (e.time_s, e.low_s, e.high_s, e.low_mfu) == (66.0, 51.0, None, None)


def test_communication_may_bind() -> None:
    """600 s on the bus outweigh 60 s of products."""
    peaks = replace(PEAKS, collectives={"all_to_all/host": collective("all_to_all", "host", 4, 1.0)})
    assert found(replace(COUNT, comm_bytes={"alltoall": 800}), peaks).bound == "communication"
    assert found().bound == "compute"


# --- laws --------------------------------------------------------------------------------------------------------

_RATES = st.floats(1.0, 1e6)
_OPS = st.lists(
    st.builds(
        OpCost, st.just("op"), st.just("bfloat16"), st.integers(0, 10**9), st.integers(1, 10**9), st.integers(1, 9)
    ),
    min_size=1,
    max_size=8,
)


def peaks_of(flops: float, memory: float, bus: float, wide: float = 1.5) -> Peaks:
    return replace(
        PEAKS,
        achievable={"bfloat16": Rate(flops, flops / wide, flops * wide, "test", 0.0)},
        memory=Rate(memory, memory / wide, memory * wide, "test", 0.0),
        collectives={"all_reduce/host": collective("all_reduce", "host", 4, bus, wide)},
    )


@given(_OPS, _RATES, _RATES, _RATES, st.integers(0, 10**9))
def test_the_interval_contains_the_value(ops: list[OpCost], flops: float, memory: float, bus: float, sent: int) -> None:
    """low ≤ value ≤ high, of time and of MFU; the parts add up to the whole."""
    e = found(replace(COUNT, ops=tuple(ops), comm_bytes={"allreduce": sent}), peaks_of(flops, memory, bus))
    assert e.low_s is not None
    assert e.high_s is not None
    assert e.low_s <= e.time_s * (1 + 1e-12)
    assert e.time_s <= e.high_s * (1 + 1e-12)
    assert (e.low_mfu or 0) <= e.mfu * (1 + 1e-12)
    assert e.mfu <= (e.high_mfu or 0) * (1 + 1e-12)
    assert e.compute_s + e.memory_s + e.communication_s + e.bubble_s == pytest.approx(e.time_s)
    assert sum(op.seconds for op in e.ops) == pytest.approx(e.compute_s + e.memory_s + e.communication_s + e.hidden_s)


@given(_OPS, _RATES, _RATES, _RATES, st.integers(0, 10**9), st.floats(1.0, 10.0), st.sampled_from([0, 1, 2]))
def test_faster_never_takes_longer(
    ops: list[OpCost], flops: float, memory: float, bus: float, sent: int, faster: float, which: int
) -> None:
    """A higher rate of arithmetic, of memory or of the bus lengthens no end of the interval."""
    count = replace(COUNT, ops=tuple(ops), comm_bytes={"allreduce": sent})
    rates = [flops, memory, bus]
    before = found(count, peaks_of(*rates))
    rates[which] *= faster
    after = found(count, peaks_of(*rates))
    for slow, fast in ((before.time_s, after.time_s), (before.low_s, after.low_s), (before.high_s, after.high_s)):
        assert slow is not None
        assert fast is not None
        assert fast <= slow * (1 + 1e-9)
