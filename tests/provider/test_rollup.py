"""The levels, on numbers that are summed by hand."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk import semconv
from mfu_sdk.provider import rollup
from mfu_sdk.provider.rollup import Job, Level, Quality, Range, Requests, Sums, Usage
from mfu_sdk.provider.store import SpanRow, Store

Make = Callable[..., SpanRow]
T0 = 1_780_000_200 * 10**9
MINUTE = 60 * 10**9


def fleet(store: Store, span: Range, tenant: str) -> Sums:
    return rollup.level(rollup.usages(store, span, tenant)).sums


def test_sum_of_ratios_is_not_the_ratio_of_sums(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """1 of 4 and 3 of 16 FLOP are 4 of 20: 20 %, not the mean of 25 % and 18.75 %."""
    store.insert_spans(tenant, [window(0), window(30, mfu__model__flop=3e15, mfu__available__flop=16e15)])
    found = fleet(store, hour, tenant)
    assert (found.model_flops, found.available_flops, found.mfu) == (4e15, 20e15, 0.2)
    assert (found.steps, found.timed_steps, found.unknown_steps) == (20, 18, 0)
    assert (found.device_s, found.device_hours) == (54.0, 0.015)
    assert found.tokens is None


def test_windows_replace_their_steps(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """A process that sends windows and steps counts by its windows; one that sends steps only counts by them."""
    step: dict[str, Any] = {"mfu__model__flop": 1e15, "mfu__available__flop": 2e15, "mfu__token__count": 5}
    other = {semconv.DIST_RANK: 1}
    store.insert_spans(
        tenant,
        [
            window(0),
            *(span(semconv.SPAN_STEP, at_s, 3.0, **step) for at_s in range(0, 30, 3)),
            # Another rank of the run, minutes later, so that the roll-up holds the two apart in time as well.
            *(span(semconv.SPAN_STEP, 400 + at_s, 3.0, resource=other, **step) for at_s in range(0, 30, 3)),
        ],
    )
    found = fleet(store, hour, tenant)
    assert (found.model_flops, found.available_flops) == (1e15 + 10e15, 4e15 + 20e15)
    assert (found.steps, found.timed_steps) == (10 + 10, 9 + 10)
    assert (found.device_s, found.tokens) == (27.0 + 30.0, 50)


@pytest.mark.parametrize(
    ("attributes", "steps", "timed", "unknown", "flop", "device_s"),
    [
        # Kept with a probability of 1/4: it stands for four.
        ({"mfu.sample.ratio": 0.25, "mfu.sample.reason": "periodic"}, 4, 4, 0, 4e15, 8.0),
        ({"mfu.sample.ratio": 1.0, "mfu.sample.reason": "all"}, 1, 1, 0, 1e15, 2.0),
        # Kept besides the sample, which stands for it already.
        ({"mfu.sample.reason": "error"}, 0, 0, 0, 0.0, 0.0),
        ({"mfu.sample.ratio": 0.0}, 0, 0, 0, 0.0, 0.0),
        ({"mfu.sample.ratio": 7.0}, 0, 0, 0, 0.0, 0.0),
        # Not timed: counted while it ran, or ended by an error.
        ({"mfu.count.source": "measured"}, 1, 0, 0, None, 0.0),
        ({"error.type": "ValueError"}, 1, 0, 0, None, 0.0),
        ({"mfu.count.source": "cached"}, 1, 1, 0, 1e15, 2.0),
        # Timed, but nobody knows its FLOPs or its peak.
        ({"mfu.model.flop": None}, 1, 1, 1, None, 2.0),
        ({"mfu.available.flop": None}, 1, 1, 1, None, 2.0),
        ({"mfu.available.flop": 0.0}, 1, 1, 1, None, 2.0),
        ({"mfu.model.flop": "nan"}, 1, 1, 1, None, 2.0),
        ({"mfu.model.flop": -1.0}, 1, 1, 1, None, 2.0),
        ({"mfu.available.flop": "inf"}, 1, 1, 1, None, 2.0),
    ],
)
def test_what_a_step_adds(
    store: Store,
    tenant: str,
    span: Make,
    hour: Range,
    attributes: dict[str, object],
    steps: int,
    timed: int,
    unknown: int,
    flop: float | None,
    device_s: float,
) -> None:
    """A step of 2 s with 1 of 4 PFLOP adds what its attributes say; both sums know it, or neither."""
    all_of = {"mfu.model.flop": 1e15, "mfu.available.flop": 4e15, **attributes}
    store.insert_spans(tenant, [span(semconv.SPAN_STEP, 0, 2.0, **{k: v for k, v in all_of.items() if v is not None})])
    found = fleet(store, hour, tenant)
    assert (found.steps, found.timed_steps, found.unknown_steps) == (steps, timed, unknown)
    assert found.model_flops == flop
    assert found.available_flops == (None if flop is None else 4 * flop)
    assert found.device_s == device_s


def test_unknown_windows(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """A window without model FLOPs is in neither sum, its timed steps are unknown; one that knows a part says so."""
    store.insert_spans(tenant, [window(0), window(30, mfu__model__flop=None), window(60, mfu__window__step__unknown=2)])
    found = fleet(store, hour, tenant)
    assert (found.model_flops, found.available_flops) == (2e15, 8e15)
    assert (found.timed_steps, found.unknown_steps) == (27, 9 + 2)


def test_full_is_brought_to_exact(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """10 PFLOP of which 4 are attention over all pairs and 2 over the pairs let through are 8 under `exact`."""
    full = {"mfu__convention": "full", "mfu__model__flop": 10e15, "mfu__available__flop": 20e15}
    attention = {"mfu__attention__flop__full": 4e15, "mfu__attention__flop__exact": 2e15}
    expected = {"mfu__expected__flop": 15e15, "mfu__expected__available__flop": 20e15}
    store.insert_spans(
        tenant,
        [
            window(0, **full, **attention, **expected),
            # Without the attention's share nobody can tell, and it is left out.
            window(30, **full, **expected),
        ],
    )
    found = fleet(store, hour, tenant)
    assert (found.model_flops, found.available_flops, found.unknown_steps) == (8e15, 20e15, 9)
    # The expectation's numerator is 8/10 of what it was.
    assert (found.expected_flops, found.expected_available_flops) == (12e15, 20e15)


def test_expected(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """Expected MFU is over the steps that have an expectation: 3 of 4 in a window, 50 % of 2 in a step; 4 of 6."""
    store.insert_spans(
        tenant,
        [
            window(0, mfu__expected__flop=3e15, mfu__expected__available__flop=4e15),
            window(30),
            span(
                semconv.SPAN_STEP,
                60,
                1.0,
                resource={semconv.RUN_ID: "other"},
                mfu__model__flop=0.5e15,
                mfu__available__flop=2e15,
                mfu__expected=0.5,
            ),
        ],
    )
    assert fleet(store, hour, tenant).expected_mfu == pytest.approx(4 / 6)


def test_batch_is_a_mean_over_time(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Batch 8 for 10 s and batch 2 for 30 s are 3.5; a window that says nothing of it has no part."""
    store.insert_spans(
        tenant,
        [
            window(0, mfu__batch__running=8.0, mfu__step__time=10.0),
            window(30, mfu__batch__running=2.0, mfu__step__time=30.0),
            window(60),
        ],
    )
    assert fleet(store, hour, tenant).batch_running == 3.5


def test_where_the_time_went(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """3 s of 27, and a step that stands for two: components come with the time in which they are known."""
    store.insert_spans(
        tenant,
        [
            window(0, mfu__step__comm_time=3.0, mfu__step__skew_time=0.0, mfu__step__data_time=2.0),
            # Neither negative seconds nor no number are known, and neither is a component of untimed steps.
            window(30, mfu__step__comm_time=-1.0, mfu__step__skew_time="nan"),
            span(
                semconv.SPAN_STEP, 60, 1.0, resource={semconv.RUN_ID: "other"}, mfu__step__data_time=0.5,
                mfu__sample__ratio=0.5,
            ),
            span(
                semconv.SPAN_STEP, 61, 1.0, resource={semconv.RUN_ID: "other"}, mfu__step__data_time=0.5,
                mfu__count__source="measured",
            ),
        ],
    )  # fmt: skip
    found = fleet(store, hour, tenant)
    assert (found.comm_s, found.comm_known_s) == (3.0, 27.0)
    assert (found.skew_s, found.skew_known_s) == (0.0, 27.0)
    assert (found.data_s, found.data_known_s) == (2.0 + 2 * 0.5, 27.0 + 2 * 1.0)
    assert (found.host_s, found.host_known_s) == (None, None)


LOADS = {
    "bus_rate": "mfu.comm.bus_rate",
    "bus_peak": "mfu.comm.bus_rate.peak",
    "ideal_ratio": "mfu.comm.ideal_ratio",
    "clock": "mfu.clock.ratio",
    "witness": "mfu.witness.utilization",
    "batch_feasible": "mfu.batch.feasible",
    "queue": "mfu.queue.waiting",
    "kv_free": "mfu.kv_cache.free_ratio",
    "intensity": "mfu.arithmetic_intensity",
    "memory_rate": "mfu.peak.memory_rate",
    "feasible_mfu": "mfu.expected.feasible",
    "latency_target": "mfu.latency.target",
}


def test_loads_are_means_over_time(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Each load of 1 for 10 s and of 5 for 30 s is 4; a window that says nothing of it has no part."""
    said = [{name.replace(".", "__"): value for name in LOADS.values()} for value in (1.0, 5.0)]
    store.insert_spans(
        tenant,
        [
            window(0, mfu__step__time=10.0, **said[0]),
            window(30, mfu__step__time=30.0, **said[1]),
            window(60),
            # Without its seconds it weighs nothing.
            window(90, mfu__step__time=None, **said[1]),
        ],
    )
    found = fleet(store, hour, tenant)
    assert {name: getattr(found, name) for name in LOADS} == dict.fromkeys(LOADS, 4.0)
    assert {getattr(found, f"{name}_s") for name in LOADS} == {40.0}


def test_hardware_flop(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Executed FLOPs are of steps whose model FLOPs and peak are known."""
    store.insert_spans(
        tenant,
        [
            window(0, mfu__hardware__flop=1.5e15),
            window(30),
            window(60, mfu__hardware__flop=9e15, mfu__available__flop=None),
        ],
    )
    assert fleet(store, hour, tenant).hardware_flops == 1.5e15


def test_what_a_usage_is_told_by(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Phase, configuration, links, slice and allocation are the usage's; a pod is on its node, not on its host name."""
    store.insert_spans(
        tenant,
        [
            window(
                0,
                resource={
                    semconv.CONFIG_INTENT: "intent",
                    semconv.CONFIG_FINGERPRINT: "print",
                    semconv.TOPOLOGY_LINK: "pcie",
                    semconv.TOPOLOGY_LINK_BEST: "nvlink",
                    semconv.MIG_PROFILE: "3g.40gb",
                    semconv.HW_PARENT: "GPU-a",
                    semconv.ALLOCATION_ID: "slurm-1",
                    semconv.K8S_NODE_NAME: "node-7",
                },
                mfu__phase="train",
            ),
            window(30, mfu__phase="eval"),
        ],
    )
    bare, full = (replace(usage, sums=Sums()) for usage in rollup.usages(store, hour, tenant))
    assert full == Usage(
        tenant, "gpt", None, "H100", 1, "node-7", "node-7/0", ("run-1",), Sums(), phase="train", intent="intent",
        fingerprint="print", link="pcie", link_best="nvlink", mig_profile="3g.40gb", parent="GPU-a",
        allocation_id="slurm-1",
    )  # fmt: skip
    assert bare == Usage(tenant, "gpt", None, "H100", 1, "node-1", "node-1/0", ("run-1",), Sums(), phase="eval")


def test_inference_never_counts(store: Store, tenant: str, span: Make, hour: Range) -> None:
    """Requests overlap: they are told by themselves and are in no level."""
    store.insert_spans(
        tenant,
        [
            span(semconv.SPAN_INFERENCE, 0, 1.0, mfu__model__flop=1e15, mfu__token__count=10),
            span(semconv.SPAN_INFERENCE, 0.5, 3.0, mfu__token__count=20, error__type="Timeout"),
            span(semconv.SPAN_RUN, 0, 60.0, mfu__model__flop=1e15, mfu__available__flop=1e16),
        ],
    )
    assert rollup.usages(store, hour, tenant) == ()
    assert rollup.requests(store, hour, tenant) == (Requests(tenant, "gpt", 2, 1, 2.0, 30, sampled=False),)


def test_sampled_requests_stand_for_the_others(store: Store, tenant: str, span: Make, hour: Range) -> None:
    """One request in four was sent: each stands for four. A failed one sent besides stands for none, but did fail."""
    store.insert_spans(
        tenant,
        [
            span(semconv.SPAN_INFERENCE, 0, 1.0, mfu__token__count=10, mfu__sample__ratio=0.25),
            span(semconv.SPAN_INFERENCE, 4, 3.0, mfu__token__count=20, mfu__sample__ratio=0.25),
            span(semconv.SPAN_INFERENCE, 5, 9.0, mfu__sample__reason="error", error__type="Timeout"),
        ],
    )
    assert rollup.requests(store, hour, tenant) == (Requests(tenant, "gpt", 8, 1, 2.0, 120, sampled=True),)


def test_windows_hold_all_requests(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """(4 + 6) requests in (2 + 8) s, one failed, (30 + 50) tokens: totals of windows stand before any sample."""
    first = {"mfu__request__count": 4, "mfu__request__failed": 0, "mfu__request__time": 2.0, "mfu__token__count": 30}
    second = {"mfu__request__count": 6, "mfu__request__failed": 1, "mfu__request__time": 8.0, "mfu__token__count": 50}
    store.insert_spans(
        tenant,
        [
            window(0, **first),
            window(30, **second),
            # A window without requests, as one of training, has no part in them, and one out of the range none either.
            window(60, mfu__token__count=7),
            window(-30, **first),
            span(semconv.SPAN_INFERENCE, 1, 1.0, mfu__token__count=9, mfu__sample__ratio=0.25),
            span(semconv.SPAN_INFERENCE, 2, 9.0, mfu__sample__reason="error", error__type="Timeout"),
        ],
    )
    assert rollup.requests(store, hour, tenant) == (Requests(tenant, "gpt", 10, 1, 1.0, 80, sampled=False),)


def test_each_workload_by_its_own_requests(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """One workload's windows say nothing of another's requests, and a total that nobody sent is None."""
    chat, search = ({semconv.WORKLOAD_NAME: name} for name in ("chat", "search"))
    store.insert_spans(
        tenant,
        [
            window(0, resource=chat, mfu__request__count=5),
            span(semconv.SPAN_INFERENCE, 0, 2.0, resource=chat),
            span(semconv.SPAN_INFERENCE, 0, 3.0, resource=search, mfu__sample__ratio=0.5),
        ],
    )
    assert rollup.requests(store, hour, tenant) == (
        Requests(tenant, "chat", 5, None, None, None, sampled=False),
        Requests(tenant, "search", 2, 0, 3.0, None, sampled=True),
    )


@pytest.mark.parametrize(
    ("attributes", "tokens"),
    [
        ({}, 5),
        ({"mfu.sample.ratio": 0.25}, 20),
        # Counted while it ran: its time is not representative, its tokens were work all the same.
        ({"mfu.count.source": "measured"}, 5),
        ({"mfu.count.source": "measured", "mfu.sample.ratio": 0.25}, 20),
        ({"error.type": "ValueError"}, 0),
        ({"mfu.sample.reason": "error", "error.type": "ValueError"}, 0),
    ],
)
def test_tokens_of_a_step(
    store: Store, tenant: str, span: Make, hour: Range, attributes: dict[str, object], tokens: int
) -> None:
    """A step's tokens weigh as it does, timed or not, unless it failed."""
    store.insert_spans(tenant, [span(semconv.SPAN_STEP, 0, 2.0, **{"mfu.token.count": 5, **attributes})])
    assert fleet(store, hour, tenant).tokens == tokens


def test_tokens_of_a_window(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """A window's tokens are those of all its steps that did not fail, and are taken as they are."""
    store.insert_spans(tenant, [window(0, mfu__token__count=50), window(30, mfu__window__step__timed=0), window(60)])
    assert fleet(store, hour, tenant).tokens == 50


def test_range_is_half_open(store: Store, tenant: str, window: Make) -> None:
    """A span belongs to the range in which it starts: at `since` it is in, at `until` it is out."""
    store.insert_spans(tenant, [window(at_s) for at_s in (0, 299.999999999, 300, 600)])
    edges = {
        (T0, T0 + 1): 1,
        (T0 + 1, T0 + 5 * MINUTE): 1,
        (T0, T0 + 5 * MINUTE): 2,
        (T0, T0 + 10 * MINUTE): 3,
        (T0, T0 + 10 * MINUTE + 1): 4,
        (T0 + 5 * MINUTE - 1, T0 + 5 * MINUTE): 1,
        (T0 + 5 * MINUTE, T0 + 5 * MINUTE + 1): 1,
        (T0 - 20 * MINUTE, T0): 0,
    }
    for (since, until), windows in edges.items():
        found = rollup.usages(store, Range(since, until), tenant)
        assert sum(usage.sums.model_flops or 0 for usage in found) == windows * 1e15, (since - T0, until - T0)


def test_adjacent_ranges_add_up(store: Store, tenant: str, window: Make) -> None:
    """Wherever three hours are cut, their parts' sums are their own: of hours, five minutes and spans."""
    rng = random.Random(5)
    hours = Range(T0 - 75 * MINUTE, T0 + 105 * MINUTE)
    store.insert_spans(tenant, [window(rng.uniform(-4500, 6300), mfu__model__flop=float(n)) for n in range(50)])
    whole = fleet(store, hours, tenant)
    assert whole.model_flops == 50 * 49 / 2
    for _ in range(8):
        cut = rng.randrange(hours.since_unix_ns + 1, hours.until_unix_ns)
        parts = fleet(store, Range(hours.since_unix_ns, cut), tenant) + fleet(
            store, Range(cut, hours.until_unix_ns), tenant
        )
        assert parts.model_flops == whole.model_flops
        assert parts.steps == whole.steps


def test_previous_range() -> None:
    """The range before has the same length and ends where this one begins."""
    assert Range(100, 130).previous == Range(70, 100)


def test_a_tenant_sees_itself(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Every reading holds one tenant to itself; without a tenant all are read."""
    other = f"{tenant}-other"
    theirs = window(0, resource={semconv.TENANT_ID: other, semconv.WORKLOAD_NAME: "secret"})
    store.insert_spans(other, [theirs])
    store.insert_spans(tenant, [window(0)])
    assert {usage.tenant for usage in rollup.usages(store, hour, tenant)} == {tenant}
    assert {moment.job.tenant for moment in rollup.moments(store, hour, tenant, 300)} == {tenant}
    assert {job.tenant for job in rollup.qualities(store, hour, tenant)} == {tenant}
    assert {usage.tenant for usage in rollup.usages(store, hour, None)} >= {tenant, other}
    # An empty name is a tenant that nobody is, not everybody.
    assert rollup.usages(store, hour, "") == ()


def test_levels(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Two nodes of two GPU types, three devices: each level is the sum of its devices."""
    at = [("node-1", "GPU-a", "H100", 0), ("node-1", "GPU-b", "H100", 1), ("node-2", None, "L4", 2)]
    store.insert_spans(
        tenant,
        [
            window(
                30 * number,
                resource={
                    semconv.HOST_NAME: host,
                    semconv.HW_ID: device,
                    semconv.HW_NAME: gpu,
                    semconv.DIST_RANK: rank,
                    semconv.DIST_WORLD_SIZE: 3,
                    semconv.RUN_ID: f"run-{number}",
                },
                mfu__model__flop=rank + 1.0,
                mfu__available__flop=10.0,
            )
            for host, device, gpu, rank in at
            for number in range(2)
        ],
    )
    usages = rollup.usages(store, hour, tenant)
    assert {usage.device for usage in usages} == {"GPU-a", "GPU-b", "node-2/2"}
    nodes = rollup.by(usages, lambda usage: usage.host)
    assert {host: (found.sums.mfu, found.devices) for host, found in nodes.items()} == {
        "node-1": (6 / 40, 2),
        "node-2": (6 / 20, 1),
    }
    types = rollup.by(usages, lambda usage: usage.gpu_type)
    assert {name: found.sums.model_flops for name, found in types.items()} == {"H100": 6.0, "L4": 6.0}
    jobs = rollup.by(usages, lambda usage: usage.job)
    assert jobs[Job(tenant, "gpt", "L4", 3)].run_ids == ("run-0", "run-1")
    assert rollup.level(usages).devices == 3


def test_unsaid_is_none(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """What a resource does not say is None."""
    names = [
        semconv.WORKLOAD_NAME,
        semconv.HOST_NAME,
        semconv.HW_NAME,
        semconv.DIST_WORLD_SIZE,
        semconv.DIST_RANK,
        semconv.RUN_ID,
        semconv.RUN_ATTEMPT,
    ]
    store.insert_spans(tenant, [window(0, resource=dict.fromkeys(names))])
    [usage] = rollup.usages(store, hour, tenant)
    assert replace(usage, sums=Sums()) == Usage(tenant, None, None, None, None, None, "/-1", (), Sums())


def test_quality_and_uncounted(store: Store, tenant: str, window: Make, span: Make, hour: Range) -> None:
    """Coverage is the least of any window; uncounted operators come from runs that overlap the range."""
    store.insert_spans(
        tenant,
        [
            window(0, mfu__count__coverage=0.9, mfu__peak__dtype="bfloat16", mfu__peak__source="theory"),
            window(30, mfu__count__coverage=0.7, mfu__peak__dtype="bfloat16", mfu__convention="exact"),
            span(semconv.SPAN_RUN, -60, 90.0, mfu__count__uncounted='["b::op","a::op"]'),
            span(semconv.SPAN_RUN, -60, 30.0, mfu__count__uncounted='["too::old"]'),
        ],
    )
    job = Job(tenant, "gpt", "H100", 1)
    assert rollup.qualities(store, hour, tenant) == {job: Quality(0.7, ("bfloat16",), ("theory",), ("exact",))}
    assert rollup.uncounted(store, hour, tenant) == {(tenant, "gpt"): ("a::op", "b::op")}


def test_moments(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Sums in buckets of fifteen minutes, by the start of each span."""
    store.insert_spans(tenant, [window(0), window(899), window(900, mfu__model__flop=2e15)])
    found = rollup.moments(store, hour, tenant, 900)
    start_s = T0 // 10**9
    assert [(moment.start_unix_s - start_s, moment.sums.model_flops) for moment in found] == [(0, 2e15), (900, 2e15)]


NUMBERS = st.none() | st.integers(0, 2**40).map(float)
SUMS = st.builds(Sums, **dict.fromkeys(Sums._fields, NUMBERS))
USAGES = st.lists(
    st.builds(
        Usage,
        tenant=st.just("t"),
        workload=st.sampled_from(["a", "b", None]),
        family=st.none(),
        gpu_type=st.sampled_from(["x", "y"]),
        world_size=st.none(),
        host=st.sampled_from(["n", "m"]),
        device=st.sampled_from(["1", "2", "3"]),
        run_ids=st.just(("r",)),
        sums=SUMS,
    ),
    max_size=6,
)


@given(USAGES)
def test_every_split_sums_to_the_fleet(usages: list[Usage]) -> None:
    """Whatever the fleet is split by, the parts' sums add up to its own."""
    whole = rollup.level(usages).sums
    for key in (lambda u: u.host, lambda u: u.gpu_type, lambda u: u.job, lambda u: u.device):
        assert sum((part.sums for part in rollup.by(usages, key).values()), Sums()) == whole


@given(SUMS, SUMS)
def test_sums_add(left: Sums, right: Sums) -> None:
    """Sums commute, and nothing is their zero."""
    assert left + right == right + left
    assert left + Sums() == left


def test_nothing_is_unknown() -> None:
    """A level of nothing knows nothing: no MFU of zero."""
    assert rollup.level(()) == Level(Sums(), 0, ())
    assert Sums().mfu is None
    assert Sums(model_flops=0.0, available_flops=0.0).mfu is None
    assert Sums(model_flops=0.0, available_flops=1.0).mfu == 0.0


def told(low: object, mid: object, high: object, available: float = 4e15) -> dict[str, object]:
    """What a window says of its expectation."""
    return {
        "mfu__expected": mid, "mfu__expected__low": low, "mfu__expected__high": high, "mfu__available__flop": available,
        "mfu__expected__flop": float(str(mid)) * available, "mfu__expected__available__flop": available,
    }  # fmt: skip


def test_interval_of_the_expectation(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """0.5 (0.4 to 0.6) of 4 PFLOP and 0.25 (0.2 to 0.4) of 12: 5 of 16, between 4 and 7.2 of them."""
    store.insert_spans(tenant, [window(0, **told(0.4, 0.5, 0.6)), window(30, **told(0.2, 0.25, 0.4, 12e15))])
    found = fleet(store, hour, tenant)
    assert found.expected_mfu == pytest.approx(5 / 16)
    assert (found.expected_low_mfu, found.expected_high_mfu) == pytest.approx((4 / 16, 7.2 / 16))


@pytest.mark.parametrize(
    ("low", "high"),
    [(None, None), (0.4, None), (0.6, 0.7), (0.3, 0.4), ("nan", 0.6), (0.4, "inf"), (-1, 0.6)],
    ids=["not told", "one end", "above", "below", "no number", "endless", "negative"],
)
def test_ends_that_are_none(store: Store, tenant: str, window: Make, hour: Range, low: object, high: object) -> None:
    """An interval that is not told, or on the wrong side of what is expected, is that of the steps that tell theirs."""
    kept = {name: value for name, value in told(low, 0.5, high).items() if value is not None}
    store.insert_spans(tenant, [window(0, **kept)])
    assert (fleet(store, hour, tenant).expected_low_mfu, fleet(store, hour, tenant).expected_mfu) == (None, 0.5)
    store.insert_spans(tenant, [window(30, **told(0.45, 0.5, 0.6))])
    found = fleet(store, hour, tenant)
    assert (found.expected_low_mfu, found.expected_high_mfu) == pytest.approx((0.45, 0.6))


def test_interval_of_full_attention(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Brought to the exact convention an expectation takes the ends of its interval with it."""
    attention = {"mfu__convention": "full", "mfu__attention__flop__full": 6e14, "mfu__attention__flop__exact": 1e14}
    store.insert_spans(tenant, [window(0, **told(0.4, 0.5, 0.6), **attention)])
    found = fleet(store, hour, tenant)
    # Half of the 10^15 FLOPs stay.
    assert (found.expected_low_mfu, found.expected_mfu, found.expected_high_mfu) == pytest.approx((0.2, 0.25, 0.3))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("mfu.step.time", "device_s"), ("mfu.step.data_time", "data_s"), ("mfu.step.comm_time", "comm_s"),
        ("mfu.step.skew_time", "skew_s"), ("mfu.step.host_time", "host_s"), ("mfu.model.flop", "model_flops"),
        ("mfu.available.flop", "available_flops"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["-5", "-inf", "nan", "1e309"])
def test_what_no_step_can_have(
    store: Store, tenant: str, window: Make, hour: Range, name: str, field: str, value: str
) -> None:
    """A negative time or count of FLOPs, or one that is no number, is not known; a neighbour's is as it was."""
    told = {"mfu__step__data_time": 3.0, "mfu__step__comm_time": 3.0, "mfu__step__skew_time": 3.0}
    told["mfu__step__host_time"] = 3.0
    store.insert_spans(tenant, [window(0, **told), window(30, **told | {name.replace(".", "__"): value})])
    alone = {"device_s": 27.0, "model_flops": 1e15, "available_flops": 4e15}.get(field, 3.0)
    assert getattr(fleet(store, hour, tenant), field) == alone
