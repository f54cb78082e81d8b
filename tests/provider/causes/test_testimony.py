"""Whose word a row of use has: the provider's counters where they watched and agree, nobody's where figures clash."""

from collections.abc import Callable
from typing import Any

import pytest

from mfu_sdk.provider import causes
from mfu_sdk.provider.causes import Evidence
from mfu_sdk.provider.causes.accounting import borne_out
from mfu_sdk.provider.causes.gather import unit_of
from mfu_sdk.provider.rollup import Sums, Usage

Make = Callable[..., Evidence]
WATCHED = {"GPU-0": 20.0, "GPU-1": 20.0}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"witnessed_mfu": 0.40, "witness": 0.41}, True),
        # Two points, or a twentieth of the count where that is more.
        ({"witnessed_mfu": 0.30, "witness": 0.281}, True),
        ({"witnessed_mfu": 0.30, "witness": 0.279}, False),
        ({"witnessed_mfu": 0.60, "witness": 0.571}, True),
        ({"witnessed_mfu": 0.60, "witness": 0.569}, False),
        # Recomputation and padding keep pipes busy: up to twice what is counted.
        ({"witnessed_mfu": 0.20, "witness": 0.40}, True),
        ({"witnessed_mfu": 0.20, "witness": 0.41}, False),
        ({"witnessed_mfu": 0.01, "witness": 0.03}, True),
        # The count is of a peak that is 0.6 of the one on paper: 0.36.
        ({"witnessed_mfu": 0.60, "witness": 0.36, "claimed_peak": 0.6}, True),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "watched_gpu_hours": None}, None),
        ({"witnessed_mfu": 0.40, "witness": None}, None),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "dtype_mix": None}, None),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "dtype_mix": 1.1}, None),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "peak_dtype": "float32"}, None),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "phase": "decode", "batch": 4.0}, None),
        ({"witnessed_mfu": 0.40, "witness": 0.41, "phase": "decode", "batch": 64.0}, True),
    ],
    ids=str,
)
def test_borne_out(train: Make, changes: dict[str, Any], verdict: bool | None) -> None:
    """Agreement within the tolerance, on either side of it, and where nothing can be told."""
    told = {"watched_gpu_hours": 40.0, "dtype_mix": 1.0, "claimed_peak": 1.0, "peak_dtype": "bfloat16", **changes}
    assert borne_out(train(**told)) is verdict


def usage(e: Evidence, device: str, hours: float) -> Usage:
    return Usage(
        e.tenant, e.workload, e.family, e.gpu_type, e.world_size, "node-1", device, e.run_ids,
        Sums(device_s=3600 * hours), e.phase, e.intent, e.fingerprint,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # GPU-1 was watched for 20 of 40.5 hours of steps, GPU-2 not at all.
        ({}, {"GPU-0": "witnessed"}),
        ({"witness": 0.2}, {"GPU-0": "contradicted", "GPU-1": "contradicted", "GPU-2": "contradicted"}),
        # An MFU above 1 is none, whatever the counters say.
        ({"mfu": 1.2}, {"GPU-0": "contradicted", "GPU-1": "contradicted", "GPU-2": "contradicted"}),
        ({"claimed_peak": 2.0}, {"GPU-0": "contradicted", "GPU-1": "contradicted", "GPU-2": "contradicted"}),
        ({"wall": 1.5}, {"GPU-0": "contradicted", "GPU-1": "contradicted", "GPU-2": "contradicted"}),
        ({"rank_spread": 1.5}, {"GPU-0": "contradicted", "GPU-1": "contradicted", "GPU-2": "contradicted"}),
        ({"watched_gpu_hours": None}, {}),
    ],
    ids=["agrees", "clashes", "above 1", "a peak that is none", "more time than passed", "ranks differ", "unwatched"],
)
def test_testimony(train: Make, changes: dict[str, Any], words: dict[str, str]) -> None:
    """A device is witnessed for what was watched of it; what cannot be right is so for all devices of the work."""
    told: dict[str, Any] = {
        "witnessed_mfu": 0.40, "witness": 0.41, "watched_gpu_hours": 40.0, "watched_devices": WATCHED, "dtype_mix": 1.0,
        "claimed_peak": 1.0, "peak_dtype": "bfloat16",
    }  # fmt: skip
    e = train(**told | changes)
    rows = [usage(e, "GPU-0", 40.0), usage(e, "GPU-1", 40.5), usage(e, "GPU-2", 40.0)]
    assert unit_of(rows[0])[:2] == (e.tenant, e.workload)
    found = causes.testimony([e], rows)
    assert {row.device: found[row.identity] for row in rows if row.identity in found} == words


def test_other_work_is_untouched(train: Make) -> None:
    """Another configuration's rows, or another tenant's, have nothing of this one's testimony."""
    e = train(mfu=1.5)
    others = [usage(train(tenant="another"), "GPU-0", 1.0), usage(train(fingerprint="another"), "GPU-0", 1.0)]
    assert causes.testimony([e], others) == {}
