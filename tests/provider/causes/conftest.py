"""Workloads with nothing wrong: each test changes what it is about."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mfu_sdk.provider.causes import Evidence, Finding, findings

Make = Callable[..., Evidence]
approx: Any = pytest.approx
"""Its own type is equal to nothing in mypy's eyes."""

TRAINING = Evidence(
    tenant="acme",
    workload="llama",
    day="2026-05-28",
    phase="train",
    family="f1",
    gpu_type="NVIDIA H100 80GB HBM3",
    world_size=64,
    intent="i1",
    fingerprint="new",
    run_ids=("run-9",),
    hosts=("node-1", "node-2"),
    time_s=86_400.0,
    mfu=0.45,
    expected_mfu=0.48,
    flops_per_s=445e12,
    tokens_per_s=9000.0,
    reference_flops_per_s=989e12,
    peak_flops_per_s=989e12,
    peak_dtype="bfloat16",
    rank_tokens=8192.0,
    data=0.01,
    comm=0.05,
    skew=0.01,
    link="network",
    link_best="nvlink",
    type_link="nvlink",
    one_machine=False,
    bus_bytes_per_s=40e9,
    best_bus_bytes_per_s=45e9,
    ideal_ratio=0.2,
    clock=0.97,
    cohort_clock=0.98,
    heat=0.0,
    cap=0.0,
    witness=0.5,
    witnessed_mfu=0.47,
    claimed_peak=1.0,
    wall=0.99,
    dtype_mix=1.0,
    peak_source="theory",
    rank_spread=1.0,
)
DECODING = Evidence(
    tenant="globex",
    workload="chat",
    day="2026-05-28",
    phase="decode",
    gpu_type="NVIDIA H100 80GB HBM3",
    world_size=1,
    run_ids=("serve-1",),
    hosts=("node-3",),
    time_s=80_000.0,
    mfu=0.09,
    expected_mfu=0.095,
    data=0.0,
    comm=0.0,
    skew=0.0,
    prefill=0.3,
    batch=48.0,
    feasible=64.0,
    feasible_mfu=0.12,
    kv_free=0.3,
    queue=0.0,
    intensity=90.0,
    ridge=295.0,
    answer_s=0.02,
    clock=0.98,
    cohort_clock=0.98,
    heat=0.0,
    witness=0.09,
    witnessed_mfu=0.09,
)


@pytest.fixture
def train() -> Make:
    """Makes a training workload: healthy but for `changes`."""

    def make(**changes: Any) -> Evidence:
        return replace(TRAINING, **changes)

    return make


@pytest.fixture
def decode() -> Make:
    """Makes a server's decode phase: healthy but for `changes`."""

    def make(**changes: Any) -> Evidence:
        return replace(DECODING, **changes)

    return make


def causes_of(e: Evidence) -> list[str]:
    return [each.cause for each in findings(e)]


def only(e: Evidence) -> Finding:
    """The one finding that there is."""
    (found,) = findings(e)
    return found
