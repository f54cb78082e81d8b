"""The questions' one pass over the roll-up against the queries that each of them has by itself."""

import math

import pytest

from mfu_sdk.provider import rollup
from mfu_sdk.provider.questions import answers
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Reading, SpanRow, Store

T0 = 1_780_000_200 * 10**9
HOUR = 3600 * 10**9
SPAN = Range(T0 + 7, T0 + 5 * HOUR - 7)
ASKED: tuple[tuple[Reading, bool, tuple[str, ...]], ...] = (
    ("low_workloads", True, ("tenant", "workload", "gpu_type", "world_size", "start_unix_s")),
    ("change", True, ("gpu_type", "intent", "phase", "tenant", "workload", "family", "world_size", "start_unix_s")),
    ("by_gpu_type", False, ("gpu_type", "family", "intent", "phase", "tenant", "workload")),
    ("by_scale", False, ("tenant", "workload", "family", "gpu_type", "phase", "world_size", "run_id")),
    ("under_batching_tenants", False, ("tenant", "workload", "gpu_type", "phase")),
)


def alike(one: Cell, own: Cell, names: tuple[str, ...]) -> bool:
    """The same names, and what its own query tells differs by no more than the order in which it was added up."""
    return all(getattr(one, name) == getattr(own, name) for name in names) and all(
        told is None or (known is not None and math.isclose(known, told, rel_tol=1e-12))
        for known, told in zip(one.sums, own.sums, strict=True)
    )


@pytest.mark.parametrize(("reading", "has_buckets", "names"), ASKED, ids=[asked[0] for asked in ASKED])
def test_one_pass_is_what_each_asks(
    store: Store,
    tenant: str,
    spans_of_a_fleet: list[SpanRow],
    reading: Reading,
    has_buckets: bool,
    names: tuple[str, ...],
) -> None:
    """The rows of each question, in its order, are those of its own query."""
    store.insert_spans(tenant, spans_of_a_fleet)
    found = answers._in_one_pass(store, SPAN, tenant, None, 3600, 3600).cells[reading]
    own = answers.read(store, reading, SPAN, tenant, **({"bucket_s": 3600} if has_buckets else {}))
    assert len(found) == len(own) > 0
    assert all(alike(one, two, names) for one, two in zip(found, own, strict=True))


def test_buckets_of_one_pass(store: Store, tenant: str, spans_of_a_fleet: list[SpanRow]) -> None:
    """The fleet's trend from the pass is the one that is read by itself, of one GPU type too."""
    store.insert_spans(tenant, spans_of_a_fleet)
    types = {usage.gpu_type for usage in rollup.usages(store, SPAN, tenant)}
    for gpu_type in (None, max(name for name in types if name)):
        found = answers._in_one_pass(store, SPAN, tenant, gpu_type, 10_800, 3600).buckets
        own = rollup.buckets(store, SPAN, tenant, 3600, gpu_type)
        assert [*found] == [*own]
        assert len(own) > 1
        for start, sums in own.items():
            assert found[start].mfu == pytest.approx(sums.mfu, rel=1e-12)


def test_range_before(store: Store, tenant: str, spans_of_a_fleet: list[SpanRow]) -> None:
    """Model FLOPs of the range before come with the answers, and are None before there was any."""
    store.insert_spans(tenant, spans_of_a_fleet)
    after = Range(SPAN.until_unix_ns, 2 * SPAN.until_unix_ns - SPAN.since_unix_ns)
    told = answers.ask(store, after, tenant).previous_flops
    assert told == pytest.approx(rollup.model_flops(store, SPAN, tenant), rel=1e-12)
    assert answers.ask(store, Range(0, HOUR), tenant).previous_flops is None
