"""What holds for whatever is known: a lost signal adds nothing, units do not matter, losses fit, and it is cheap."""

import os
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.provider.causes import Drift, Earlier, Evidence, Finding, Smaller, findings
from mfu_sdk.provider.causes.evidence import Rest
from mfu_sdk.provider.causes.hours import SIGNALS

from .conftest import DECODING, TRAINING

EXAMPLES = int(os.environ.get("MFU_TEST_EXAMPLES", "60"))

MEASURED = (
    "mfu", "expected_mfu", "flops_per_s", "tokens_per_s", "rank_tokens", "data", "comm", "skew", "late_rank", "working",
    "late_host", "link", "link_best", "bus_bytes_per_s", "ideal_ratio", "batch", "feasible", "feasible_mfu",
    "kv_free", "queue", "intensity", "ridge", "answer_s", "clock", "heat", "cap", "witness", "witnessed_mfu",
    "claimed_peak", "wall", "rank_spread", "stranded", "unplaceable", "idle", "peak_flops_per_s", "peak_dtype",
    "fingerprint", "phase", "mig_profile", "wanted", "replicas", "world_size", "prefill", "slowest_clock", "dtype_mix",
    "peak_source", "pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s", "gradient_bytes_per_step", "weight_bytes", "step_s",
)  # fmt: skip
"""Signals of the workload itself. What others show (cohort, best rate, earlier runs) and what a tenant promises are
none: without a promise nothing is promised."""


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


def _share(top: float = 1.0) -> st.SearchStrategy[float]:
    return st.floats(0.0, top)


RATE = st.floats(1e9, 1e12)
EVIDENCE = st.builds(
    Evidence,
    tenant=st.just("acme"),
    workload=st.just("llama"),
    day=st.just("2026-05-28"),
    phase=st.sampled_from((None, "train", "eval", "prefill", "decode", "inference")),
    fingerprint=_maybe(st.just("new")),
    world_size=_maybe(st.sampled_from((1, 8, 9, 64))),
    untold=st.frozensets(
        st.sampled_from(("data", "comm", "skew", "clock", "queue", "bus_bytes_per_s", "ideal_ratio", "own comm"))
    ),
    hosts=st.sampled_from(((), ("node-1",))),
    pcie_tx_bytes_per_s=_maybe(RATE),
    pcie_rx_bytes_per_s=_maybe(RATE),
    crossing_bytes_per_s=_maybe(RATE),
    gradient_bytes_per_step=_maybe(RATE),
    weight_bytes=_maybe(RATE),
    step_s=_maybe(st.floats(0.01, 10.0)),
    kin_mfu=_maybe(st.floats(0.01, 1.0)),
    time_s=st.just(100.0),
    mfu=_maybe(_share(1.2)),
    expected_mfu=_maybe(st.floats(0.01, 1.0)),
    flops_per_s=_maybe(RATE),
    tokens_per_s=_maybe(RATE),
    peak_flops_per_s=_maybe(RATE),
    peak_dtype=_maybe(st.sampled_from(("bfloat16", "float32"))),
    rank_tokens=_maybe(RATE),
    data=_maybe(_share()),
    comm=_maybe(_share()),
    skew=_maybe(_share()),
    late_rank=_maybe(st.integers(0, 7)),
    link=_maybe(st.sampled_from(("nvlink", "pcie", "system", "network", "none"))),
    link_best=_maybe(st.sampled_from(("nvlink", "pcie"))),
    type_link=_maybe(st.sampled_from(("nvlink", "pcie"))),
    one_machine=_maybe(st.booleans()),
    bus_bytes_per_s=_maybe(RATE),
    best_bus_bytes_per_s=_maybe(RATE),
    ideal_ratio=_maybe(_share(2.0)),
    least_comm=_maybe(_share()),
    smaller=_maybe(st.builds(Smaller, st.just(4), RATE, RATE)),
    batch=_maybe(st.floats(1.0, 64.0)),
    feasible=_maybe(st.floats(1.0, 256.0)),
    feasible_mfu=_maybe(st.floats(0.01, 1.0)),
    kv_free=_maybe(_share()),
    queue=_maybe(_share(2.0)),
    intensity=_maybe(st.floats(1.0, 400.0)),
    ridge=_maybe(st.floats(100.0, 400.0)),
    answer_s=_maybe(st.floats(0.001, 0.1)),
    latency_target_s=_maybe(st.floats(0.001, 0.1)),
    prefill=_maybe(_share()),
    clock=_maybe(st.floats(0.6, 1.0)),
    # The slowest of several is no faster than their mean.
    slowest_clock=_maybe(st.floats(0.3, 0.6)),
    cohort_clock=_maybe(st.floats(0.3, 1.0)),
    heat=_maybe(_share()),
    cap=_maybe(_share()),
    witness=_maybe(_share()),
    witnessed_mfu=_maybe(_share()),
    dtype_mix=_maybe(st.floats(0.5, 1.5)),
    peak_source=_maybe(st.sampled_from(("theory", "user", "calibrated"))),
    claimed_peak=_maybe(st.floats(0.1, 3.0)),
    wall=_maybe(st.floats(0.5, 2.0)),
    rank_spread=_maybe(st.floats(1.0, 2.0)),
    mig_profile=_maybe(st.just("1g.10gb")),
    wanted=_maybe(st.just("4g.40gb")),
    stranded=_maybe(_share()),
    unplaceable=_maybe(_share()),
    idle=_maybe(_share()),
    replicas=_maybe(st.integers(1, 9)),
    working=_maybe(st.integers(0, 9)),
    drifts=st.lists(
        st.builds(
            Drift,
            st.sampled_from(("configuration_drift", "straggler")),
            st.floats(-0.9, -0.01),
            st.integers(0, 9999),
            _share(),
            st.sampled_from(((), ("torch: 2.6 → 2.7",))),
        ),
        max_size=2,
    ).map(tuple),
    earlier=st.lists(
        st.builds(Earlier, st.just("run-1"), st.sampled_from(("old", "new")), RATE, _maybe(RATE), _maybe(RATE)),
        max_size=3,
    ).map(tuple),
).map(
    lambda e: replace(e, untold=frozenset(name for name in e.untold if getattr(e, name.removeprefix("own ")) is None))
)
"""Whole days; `PARTED` are some with a part that stands out."""
REST = st.builds(
    Rest,
    _maybe(_share()),
    _maybe(_share()),
    _maybe(RATE),
    _maybe(st.floats(0.3, 1.0)),
    _maybe(_share()),
    _maybe(_share()),
)
PARTED = st.builds(
    lambda e, part, worse, rest, share: replace(
        e,
        parts=(
            replace(
                part, untold=e.untold & part.untold, worse=worse, rest=rest, time_s=share * 100.0,
                since_unix_s=0, until_unix_s=7200,
            ),
        ),
    ),
    EVIDENCE, EVIDENCE, st.sampled_from(SIGNALS), _maybe(REST), st.floats(0.05, 1.0),
)  # fmt: skip


def _without(e: Evidence, lost: str) -> Evidence:
    nothing: dict[str, Any] = {lost: None}
    return replace(e, parts=tuple(replace(part, **nothing) for part in e.parts), **nothing)


def _by_cause(e: Evidence) -> dict[str, Finding]:
    return {each.cause: each for each in findings(e)}


@settings(max_examples=EXAMPLES, deadline=None)
@given(EVIDENCE | PARTED, st.sampled_from(MEASURED))
def test_a_lost_signal_adds_nothing(e: Evidence, lost: str) -> None:
    """Without one of its signals a workload has no cause that it had not, and none of which anybody is surer."""
    before, after = _by_cause(e), _by_cause(_without(e, lost))
    for cause, found in after.items():
        # What is unknown is what no other cause explains any longer.
        if cause != "unknown":
            assert cause in before
            assert found.confidence <= before[cause].confidence + 1e-12


@pytest.mark.parametrize("e", [TRAINING, DECODING], ids=["training", "decoding"])
def test_healthy_however_little_is_known(e: Evidence) -> None:
    """A healthy workload has no finding, whichever signals are lost."""
    assert findings(e) == []
    for lost in MEASURED:
        assert findings(_without(e, lost)) == []


TIMES = {"time_s", "step_s", "answer_s", "latency_target_s"}
RATES = {
    "flops_per_s", "tokens_per_s", "peak_flops_per_s", "reference_flops_per_s", "bus_bytes_per_s",
    "best_bus_bytes_per_s", "pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s", "crossing_bytes_per_s",
}  # fmt: skip


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(EVIDENCE, st.sampled_from((0.25, 0.5, 4.0, 1024.0)))
def test_units_of_time(e: Evidence, factor: float) -> None:
    """All times longer and all rates lower by one factor: the same causes, losses and confidences."""

    def times(value: float | None, by: float) -> float | None:
        return None if value is None else value * by

    changes: dict[str, Any] = {name: times(getattr(e, name), factor) for name in TIMES}
    changes |= {name: times(getattr(e, name), 1 / factor) for name in RATES}
    changes["earlier"] = tuple(
        replace(run, flops_per_s=run.flops_per_s / factor, tokens_per_s=times(run.tokens_per_s, 1 / factor))
        for run in e.earlier
    )
    if e.smaller is not None:
        changes["smaller"] = replace(e.smaller, tokens_per_s=e.smaller.tokens_per_s / factor)
    # The fastest PCIe bus, which only what has kin is held against, is as fast as it is.
    e = replace(e, kin_mfu=None)
    scaled = replace(e, **changes)
    plain = {cause: (found.loss_share, found.confidence) for cause, found in _by_cause(e).items()}
    assert {cause: (found.loss_share, found.confidence) for cause, found in _by_cause(scaled).items()} == plain


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(EVIDENCE | PARTED)
def test_losses_and_confidences(e: Evidence) -> None:
    """Losses of time fit into the time, every share is one, confidences are above 0 and never certain."""
    found = _by_cause(e)
    of_time = [
        each
        for each in found.values()
        if each.cause not in ("mig_fragmentation", "idle_allocation", "accounting", "unknown")
    ]
    assert sum(each.loss_share for each in of_time) <= 1 + 1e-9
    assert all(
        0 <= each.loss_share <= 1 and 0 < each.confidence <= 0.95 for each in found.values() if each.cause != "unknown"
    )
    if "unknown" in found:
        assert found.keys() <= {"unknown", "mig_fragmentation", "idle_allocation"}
    for each in found.values():
        assert all(isinstance(value, str | float) for value in each.evidence.values())
        assert each.remedy.endswith(".")


def test_every_signal_is_read() -> None:
    """No field of the evidence is beside the point: each is who, when, where, or read by some rule."""
    told = {field.name for field in fields(Evidence)}
    who = {"tenant", "workload", "day", "family", "gpu_type", "intent", "run_ids", "hosts", "places", "time_s"}
    others = {
        "cohort_clock",
        "best_bus_bytes_per_s",
        "type_link",
        "one_machine",
        "smaller",
        "earlier",
        "drifts",
        "least_comm",
        "crossing_bytes_per_s",
        "kin_mfu",
    }
    others |= {"watched_gpu_hours", "watched_devices", "parts", "worse", "since_unix_s", "until_unix_s", "rest"}
    assert told == who | others | set(MEASURED) | {"untold", "latency_target_s", "reference_flops_per_s"}


def test_cost_of_a_workload() -> None:
    """A healthy workload costs at most 60 calls of Python and C, a sick one 200: 14,000 of them are half a second."""
    sick = replace(TRAINING, data=0.3, skew=0.1, comm=0.2, bus_bytes_per_s=9e9, clock=0.7, mfu=0.1)
    assert len(_by_cause(sick)) == 4
    assert _calls(TRAINING) <= 60
    assert _calls(DECODING) <= 60
    assert _calls(sick) <= 200


def _calls(e: Evidence) -> int:
    seen = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        findings(e)
    finally:
        sys.setprofile(None)
    return seen
