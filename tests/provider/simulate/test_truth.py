"""The truth file: counterfactual losses by hand, money, and who is well."""

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as Gauge

from mfu_sdk.provider.simulate import scenario, simulation
from mfu_sdk.provider.simulate.planning import plan

UNTIL_NS = 1_790_000_100 * 10**9


class Nowhere:
    """Sends nothing on."""

    def spans(self, tenant: str, resource: bytes, spans: Sequence[bytes]) -> None:
        """Drop."""

    def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
        """Drop."""


def truth_of(fault: dict[str, object], hours: float = 0.5, seed: int = 1) -> dict[str, Any]:
    wanted = {"faults": [fault], "hard_negatives": {}, "missing": {}}
    made = plan(32, hours * 3600, scenario.parse(wanted, "faults"), seed)
    return simulation.simulate(made, UNTIL_NS, Nowhere())


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("poor_topology", "nic_downgraded"),
        ("configuration_drift", "library"),
        ("configuration_drift", "batch"),
        ("input_bound", "loader"),
        ("thermal_or_power", "hot_gpu"),
        ("straggler", "slow_rank"),
        ("accounting", "over_counted"),
    ],
)
def test_a_null_fault_costs_nothing(kind: str, variant: str) -> None:
    """Severity 0 is a loss of 0, no money, and not material."""
    (fault,) = truth_of({"kind": kind, "variant": variant, "severity": 0.0, "onset_h": 0.1})["faults"]
    assert fault["loss_share"] == pytest.approx(0.0, abs=2e-3)
    assert fault["money"]["cost"] == pytest.approx(0.0, abs=0.1)
    assert not fault["material"]


def test_accounting_by_hand() -> None:
    """Half as many FLOPs again that are not there: a third of what was counted."""
    found = truth_of({"kind": "accounting", "variant": "over_counted", "severity": 0.5})
    (fault,) = found["faults"]
    assert fault["loss_share"] == pytest.approx(1 / 3)
    assert found["fleet"]["mfu"] > found["fleet"]["true_mfu"]


def test_stranded_slices_by_hand() -> None:
    """Somebody waits half of the time for what does not fit: half of the free slices' share is lost."""
    found = truth_of({"kind": "mig_fragmentation", "severity": 0.5, "onset_h": 0}, hours=2)
    (fault,) = found["faults"]
    (cut,) = found["sliced_gpus"]
    free = 7 - sum(int(name[0]) for name in cut["layouts"][0]["layout"])
    assert fault["loss_share"] == pytest.approx(free / 7 / 2)
    assert fault["tenant"] is None
    assert fault["hosts"] == [cut["host"]]


def test_idle_by_hand() -> None:
    """An abandoned allocation is lost as a whole from the onset on: its GPU-hours, and their cost."""
    (fault,) = truth_of({"kind": "idle_allocation", "variant": "abandoned", "onset_h": 0.1})["faults"]
    cost = {
        "NVIDIA H100 80GB HBM3": 1.80, "NVIDIA H200": 2.20, "NVIDIA H100 PCIe": 1.50, "NVIDIA A100-SXM4-80GB": 1.00,
        "NVIDIA L40S": 0.60,
    }[fault["gpu_type"]]  # fmt: skip
    assert fault["loss_share"] == 1.0
    assert fault["gpu_hours"] % 0.4 == pytest.approx(0.0)
    assert fault["money"]["cost"] == pytest.approx(cost * fault["gpu_hours"])


def test_idle_devices_are_seen_to_be_idle() -> None:
    """The exporter scrapes an abandoned GPU once a minute until the allocation ends, at no utilization."""

    class Scrapes(Nowhere):
        def __init__(self) -> None:
            self.idle: list[int] = []

        def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
            (point,) = Gauge.FromString(metrics[2]).gauge.data_points
            if point.as_double == 0:
                self.idle.append(point.time_unix_nano)

    wanted = {"faults": [{"kind": "idle_allocation", "variant": "abandoned", "onset_h": 0.5}], "hard_negatives": {}}
    for seed in range(50):
        made = plan(8, 3600, scenario.parse({**wanted, "missing": {}}, "faults"), seed)
        if made.workloads[0].dcgm:
            break
    out = Scrapes()
    simulation.simulate(made, UNTIL_NS, out)
    devices = len(made.workloads[0].seats)
    begin_ns = UNTIL_NS - 1800 * 10**9
    assert sorted(out.idle) == sorted([begin_ns + 60 * 10**9 * minute for minute in range(30)] * devices)


def test_more_severe_costs_more() -> None:
    """A slower rank of the same job costs more, and whoever blames that rank's machine is right."""
    shares = []
    for severity in (0.1, 0.3, 0.6):
        (fault,) = truth_of({"kind": "straggler", "severity": severity, "onset_h": 0.1})["faults"]
        shares.append(fault["loss_share"])
        assert len(fault["hosts"]) == 1
    assert shares == sorted(shares)
    assert shares[-1] > 0.25


def test_healthy_are_named() -> None:
    """Whoever has no fault is well, and says which hard case it is."""
    made = plan(96, 600, scenario.parse({"faults": [], "missing": {}}, "faults"), 2)
    found = simulation.simulate(made, UNTIL_NS, Nowhere())
    assert found["faults"] == []
    assert all(each["healthy"] for each in found["workloads"])
    natures = {each["nature"] for each in found["workloads"]}
    assert {"kv_bound", "latency_bound", "prefill_heavy", "small_messages", "warm_up"} <= natures
    assert found["fleet"]["mfu"] == pytest.approx(found["fleet"]["true_mfu"])
