"""Each rule by hand, on both sides of each threshold, and the workloads that look like it and are something else."""

from dataclasses import replace
from typing import Any

import pytest

from mfu_sdk.provider.causes import Drift, Earlier, Evidence, Smaller, findings

from .conftest import Make, approx, causes_of, only


def test_healthy(train: Make, decode: Make) -> None:
    """Nothing is wrong with what has nothing wrong, and nothing is known of what tells nothing."""
    assert causes_of(train()) == causes_of(decode()) == []
    assert causes_of(Evidence(tenant="acme", workload=None, day="2026-05-28")) == []


# --- waiting -------------------------------------------------------------------------------------------------------


def test_input_bound(train: Make) -> None:
    """Above 15 % of the time, and the loss is all of it."""
    found = only(train(data=0.2))
    assert (found.cause, found.loss_share, found.confidence) == ("input_bound", 0.2, 0.95)
    assert found.evidence == {"data_share": 0.2}
    assert "20% of the time" in found.remedy
    assert causes_of(train(data=0.1501)) == ["input_bound"]
    assert causes_of(train(data=0.15)) == []
    # A late loader may show as skew.
    assert only(train(data=0.2, skew=None, comm=None)).confidence == 0.5


def test_straggler(train: Make) -> None:
    """Above 6 %, with the rank that the others wait for; communication beside it is no topology."""
    found = only(train(skew=0.1, late_rank=3, late_host="node-2", comm=0.05))
    assert (found.cause, found.loss_share, found.confidence) == ("straggler", 0.1, 0.95)
    assert found.evidence == {"skew_share": 0.1, "late_rank": 3.0, "late_host": "node-2"}
    assert "rank 3 on node-2" in found.remedy
    assert causes_of(train(skew=0.0601)) == ["straggler"]
    assert causes_of(train(skew=0.06)) == []


# --- links ---------------------------------------------------------------------------------------------------------


def test_topology_by_rate(train: Make) -> None:
    """0.2 of the time at 0.4 of the best rate: at the best one 0.12 of the time would be saved."""
    found = only(train(comm=0.2, bus_bytes_per_s=18e9))
    assert found.cause == "poor_topology"
    assert found.loss_share == approx(0.2 * (1 - 18 / 45))
    assert found.confidence == 0.5 + 0.45 / 2
    assert found.evidence["bus_rate_ratio"] == approx(0.4)
    assert "NCCL_DEBUG" in found.remedy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # 8 % of the time, 0.62 of the rate and 5 % of loss are the edges.
        ({"comm": 0.0801, "bus_bytes_per_s": 9e9}, True),
        ({"comm": 0.08, "bus_bytes_per_s": 9e9}, False),
        ({"comm": 0.2, "bus_bytes_per_s": 0.6199 * 45e9}, True),
        ({"comm": 0.2, "bus_bytes_per_s": 0.62 * 45e9}, False),
        ({"comm": 0.1, "bus_bytes_per_s": 0.49 * 45e9}, True),
        ({"comm": 0.1, "bus_bytes_per_s": 0.51 * 45e9}, False),
        # Small messages: slow, and no slower than the best links are at this size.
        ({"comm": 0.2, "bus_bytes_per_s": 2e9, "best_bus_bytes_per_s": 2.5e9}, False),
        # It may be late ranks, or nobody knows what these links could do.
        ({"comm": 0.2, "bus_bytes_per_s": 9e9, "skew": None}, False),
        ({"comm": 0.2, "bus_bytes_per_s": 9e9, "best_bus_bytes_per_s": None}, False),
        ({"comm": 0.2, "bus_bytes_per_s": None}, False),
        # Between machines there is no better path than the network.
        ({"comm": 0.2, "best_bus_bytes_per_s": None, "bus_bytes_per_s": None}, False),
    ],
    ids=str,
)
def test_topology_edges(train: Make, changes: dict[str, Any], named: bool) -> None:
    """Exposed, slow against the best at this size, and material: all three or nothing."""
    assert ("poor_topology" in causes_of(train(**changes))) is named


def test_topology_by_path(train: Make) -> None:
    """A worse path than there is: as much as a path at 0.62 would cost, where nobody measured the better one."""
    eight: dict[str, Any] = {"world_size": 8, "one_machine": True, "comm": 0.2, "best_bus_bytes_per_s": None}
    own = only(train(**eight, link="pcie", link_best="nvlink"))
    assert (own.cause, own.confidence) == ("poor_topology", 0.725)
    assert own.loss_share == approx(0.2 * 0.38)
    assert "NCCL_P2P_DISABLE" in own.remedy
    others = only(train(**eight, link="pcie", link_best="pcie", type_link="nvlink"))
    assert "machines of this GPU type have nvlink" in others.remedy
    spread = only(train(**eight, link="network"))
    assert "8 ranks fit on one machine" in spread.remedy
    assert causes_of(train(**{**eight, "comm": 0.13}, link="pcie")) == []
    assert causes_of(train(**eight, link="nvlink")) == causes_of(train(**{**eight, "one_machine": False})) == []
    # Both say so, and then the 8 % that any exchange may cost are not asked for: 0.07 at a fifth of the rate.
    little = train(**{**eight, "comm": 0.07, "best_bus_bytes_per_s": 300e9}, link="pcie", bus_bytes_per_s=60e9)
    assert only(little).loss_share == approx(0.07 * 0.8)
    assert causes_of(replace(little, link="nvlink")) == causes_of(replace(little, bus_bytes_per_s=200e9)) == []
    assert causes_of(replace(little, bus_bytes_per_s=90e9)) == []
    both = only(train(**{**eight, "best_bus_bytes_per_s": 300e9}, link="pcie", bus_bytes_per_s=30e9))
    assert (both.loss_share, both.confidence) == (approx(0.18), 0.95)


CROSSING: dict[str, Any] = {
    "world_size": 8, "one_machine": True, "hosts": ("node-1",), "link": None, "bus_bytes_per_s": None,
    "best_bus_bytes_per_s": None, "ideal_ratio": None, "comm": 0.5, "step_s": 0.7, "gradient_bytes_per_step": 7e9,
    "weight_bytes": 4e9, "pcie_tx_bytes_per_s": 20e9, "pcie_rx_bytes_per_s": 22e9, "crossing_bytes_per_s": 200e9,
    "untold": frozenset({"bus_bytes_per_s", "ideal_ratio"}),
}  # fmt: skip
"""Eight ranks on one machine, half of whose time is exchanges: 14 GB a step each way over PCIe, 20 GB/s."""
UNTOLD: dict[str, Any] = {
    **CROSSING, "comm": None, "skew": None, "kin_mfu": 0.9, "untold": CROSSING["untold"] | {"own comm"},
}  # fmt: skip
"""The same without a word of communication, at 0.45 of the peak where two others of its structure have 0.9."""


def test_topology_by_what_crosses_pcie(train: Make) -> None:
    """Half of the time is exchanges that on NVLink, at 200 GB/s, would take a tenth of it."""
    found = only(train(**CROSSING))
    assert (found.cause, found.confidence) == ("poor_topology", approx(0.65))
    assert found.loss_share == approx(0.5 - 20 / 200)
    assert found.evidence["pcie_tx_bytes_per_s"] == 20e9
    assert "20 GB/s over PCIe" in found.remedy
    # A machine that is known to have no NVLink proves the path, whatever the gradients are.
    worse = only(train(**{**CROSSING, "link": "pcie", "link_best": "pcie", "gradient_bytes_per_step": None}))
    assert (worse.loss_share, worse.confidence) == (approx(0.4), approx(0.8))
    assert "machines of this GPU type have nvlink" in worse.remedy
    # Its own machine has it.
    assert "NCCL_P2P_DISABLE" in only(train(**{**CROSSING, "link": "pcie", "link_best": "nvlink"})).remedy


def test_topology_where_no_communication_is_told(train: Make) -> None:
    """20 GB/s keep the fastest bus busy for 0.3125 of the time and NVLink for 0.1; MFU lacks more than that."""
    found = only(train(**UNTOLD))
    assert (found.cause, found.confidence) == ("poor_topology", 0.5)
    assert found.loss_share == approx(20 / 64 - 20 / 200)
    assert "kin_mfu" not in found.evidence
    # 0.45 of 0.51 is 0.1176 less, of which the loader has 0.01 and the clock, 0.97 of 0.98, another.
    little = only(train(**{**UNTOLD, "kin_mfu": 0.51}))
    assert little.loss_share == approx(0.99 * 0.97 / 0.98 - 0.45 / 0.51)


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": ("node-1", "node-2")},
        {"one_machine": False},
        {"one_machine": None},
        {"world_size": 1},
        {"type_link": "pcie"},
        {"type_link": None},
        {"phase": "eval"},
        # A loader only sends to the device, and what only one way tells is not known.
        {"pcie_tx_bytes_per_s": 0.2e9},
        {"pcie_tx_bytes_per_s": None},
        {"pcie_rx_bytes_per_s": None},
        # An optimizer on the host: 16 bits a weight each way, of all of them or of an eighth.
        {"pcie_tx_bytes_per_s": 4e9 / 0.7, "pcie_rx_bytes_per_s": 4e9 / 0.7},
        {"pcie_tx_bytes_per_s": 0.5e9 / 0.7, "pcie_rx_bytes_per_s": 0.5e9 / 0.7},
        # The same of two ranks, whose gradients are no more than that.
        {"pcie_tx_bytes_per_s": 4e9 / 0.7, "gradient_bytes_per_step": 4e9},
        # Nobody on NVLink is known to do better.
        {"crossing_bytes_per_s": None},
        {"gradient_bytes_per_step": None},
        {"step_s": None},
        # Rates that are told, now or at other times, win.
        {"bus_bytes_per_s": 190e9, "best_bus_bytes_per_s": 200e9, "untold": frozenset({"own comm"})},
        {"untold": frozenset({"own comm"})},
    ],
    ids=str,
)
def test_what_crosses_pcie_and_is_no_poor_path(train: Make, changes: dict[str, Any]) -> None:
    """Several machines, no NVLink, loaders, offloading, no exporter, told rates: none of them is accused."""
    assert "poor_topology" not in causes_of(train(**{**CROSSING, **changes}))
    assert "poor_topology" not in causes_of(train(**{**UNTOLD, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        # The same structure does no better elsewhere, or nobody knows; a slow clock or a slow loader has it all.
        {"kin_mfu": 0.47},
        {"kin_mfu": None},
        {"clock": 0.5, "cohort_clock": 0.98},
        {"data": 0.5},
        {"data": None},
        {"clock": None},
        {"cohort_clock": None},
        # Communication is told elsewhere and lost here.
        pytest.param({"untold": CROSSING["untold"]}, id="communication lost"),
    ],
    ids=str,
)
def test_no_path_is_blamed_for_what_may_be_else(train: Make, changes: dict[str, Any]) -> None:
    """Without communication both the missing MFU and the bus must be known, and nothing else explain it."""
    assert "poor_topology" not in causes_of(train(**{**UNTOLD, **changes}))


def test_little_exposed_is_no_poor_path(train: Make) -> None:
    """Exchanges over PCIe that are hidden cost nothing: 8 % is the edge, and what NVLink would take is no loss."""
    assert causes_of(train(**{**CROSSING, "comm": 0.08, "crossing_bytes_per_s": 2000e9})) == []
    assert only(train(**{**CROSSING, "comm": 0.081, "crossing_bytes_per_s": 2000e9})).loss_share == approx(0.071)
    assert causes_of(train(**{**CROSSING, "comm": 0.149})) == []


SCALED: dict[str, Any] = {"comm": 0.2, "ideal_ratio": 0.8, "smaller": Smaller(8, 8192.0, 10_000.0)}


def test_scaling(train: Make) -> None:
    """All of the exposed time, on links that are as fast as they get; slower than at fewer ranks makes it surer."""
    found = only(train(**SCALED))
    assert (found.cause, found.loss_share, found.confidence) == ("scaling_inefficiency", 0.2, 0.95)
    assert found.evidence["tokens_per_s_against_fewer_ranks"] == 0.9
    assert found.evidence["fewer_ranks"] == 8.0
    assert only(train(**{**SCALED, "smaller": None})).confidence == 0.725


@pytest.mark.parametrize(
    "changes",
    [
        {"comm": 0.08},
        {"bus_bytes_per_s": 0.6199 * 45e9},
        {"ideal_ratio": 0.5},
        {"world_size": 8},
        {"rank_tokens": 0.79 * 8192 * 8 / 64},  # a step has fewer tokens than it had, not only a rank
        {"rank_tokens": None},
        {"one_machine": True},
        {"link": "pcie"},
        {"link": None},
        {"skew": None},
        {"ideal_ratio": None},
    ],
    ids=str,
)
def test_scaling_is_ruled_out(train: Make, changes: dict[str, Any]) -> None:
    """Topology, a shrunken batch, few ranks, little to exchange, or something that is not known."""
    assert "scaling_inefficiency" not in causes_of(train(**{**SCALED, **changes}))


def test_scaling_edges(train: Make) -> None:
    """Just beyond each threshold it is one."""
    beyond: dict[str, Any] = {
        "comm": 0.0801, "bus_bytes_per_s": 0.62 * 45e9, "ideal_ratio": 0.5001, "world_size": 9,
        # The same step over more ranks leaves each of them less: that is the scale.
        "rank_tokens": 0.8 * 8192 * 8 / 9,
    }  # fmt: skip
    assert causes_of(train(**{**SCALED, **beyond})) == ["scaling_inefficiency"]


SILENT: dict[str, Any] = {
    "comm": 0.3, "skew": 0.01, "data": 0.09, "least_comm": 0.6, "bus_bytes_per_s": None, "ideal_ratio": None,
    "link_best": None, "untold": frozenset({"bus_bytes_per_s", "ideal_ratio"}),
}  # fmt: skip
"""0.6 of the time computes; gradients alone would take as long on the best links, 0.9 is exposed or computes."""


def test_scaling_by_gradients(train: Make) -> None:
    """Who tells no rate has links of 0.6 / 0.9 of the best one at least, and 0.6 / 0.6 to exchange; less sure."""
    found = only(train(**SILENT))
    assert (found.cause, found.loss_share, found.confidence) == ("scaling_inefficiency", 0.3, 0.5)
    assert found.evidence["bus_rate_ratio_at_least"] == approx(0.6 / 0.9)
    assert found.evidence["ideal_gradients_over_compute"] == approx(1.0)
    slower = only(train(**SILENT, smaller=Smaller(8, 8192.0, 10_000.0)))
    assert slower.confidence == approx(0.65)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # Half of the best rate at least, whatever else is hidden.
        ({"least_comm": 0.45}, True),
        ({"least_comm": 0.4499}, False),
        # More than half of the computation: 0.46 of 0.2 + 0.72, and 0.46 of 0.08 + 0.84.
        ({"comm": 0.0801, "data": 0.0, "least_comm": 0.5}, True),
        ({"comm": 0.0801, "data": 0.0, "least_comm": 0.48}, False),
        ({"comm": 0.08}, False),
        ({"skew": None}, False),
        ({"least_comm": None}, False),
        ({"world_size": 8}, False),
        # On one machine there is more than gradients to exchange, and over more machines than needed a better path.
        ({"link": "nvlink"}, False),
        ({"one_machine": True}, False),
        ({"one_machine": None}, False),
        # Rates that got lost are no rates that nobody tells.
        ({"untold": frozenset({"ideal_ratio"})}, False),
        ({"untold": frozenset({"bus_bytes_per_s"})}, False),
        ({"smaller": Smaller(8, 8192.0 * 11, 1.0)}, False),
    ],
    ids=str,
)
def test_scaling_by_gradients_edges(train: Make, changes: dict[str, Any], named: bool) -> None:
    """On both sides of each threshold, and only where the workload never tells a rate."""
    assert ("scaling_inefficiency" in causes_of(train(**{**SILENT, **changes}))) is named


def test_exposed_in_some_hours_is_no_scale(train: Make) -> None:
    """Where no rate is told and communication stands out in some hours, nothing is said of scale."""
    part = train(**SILENT, worse="comm", time_s=3600.0)
    assert "scaling_inefficiency" not in causes_of(train(**SILENT, parts=(part,)))
    assert "scaling_inefficiency" in causes_of(train(**SILENT, parts=(replace(part, worse="data"),)))


# --- inference -----------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {"batch": 4.0, "expected_mfu": 0.01, "mfu": 0.01, "intensity": 8.0, "witness": None}


def test_under_batched(decode: Make) -> None:
    """4 of 64: tokens a second would be twelvefold by roofline, so 1 − 0.01 / 0.12 of the time is lost."""
    found = only(decode(**FEW))
    assert (found.cause, found.confidence) == ("under_batched_inference", 0.95)
    assert found.loss_share == approx(1 - 0.01 / 0.12)
    assert found.evidence["fill_ratio"] == 0.0625
    assert "max_num_seqs from 4 towards 64" in found.remedy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 0.3499 * 64}, True),
        ({"batch": 0.35 * 64}, False),
        ({"kv_free": 0.2501}, True),
        ({"kv_free": 0.25}, False),  # bound by its cache
        ({"queue": 0.5}, True),
        ({"queue": 0.51}, False),
        ({"intensity": 0.499 * 295}, True),
        ({"intensity": 0.5 * 295}, False),
        ({"feasible_mfu": 0.01 / 0.949}, True),
        ({"feasible_mfu": 0.01 / 0.951}, False),
        ({"phase": "prefill"}, False),
        ({"phase": "train"}, False),
        ({"kv_free": None}, False),
        ({"queue": None}, False),
        ({"feasible": None}, False),
        ({"feasible_mfu": None}, False),
    ],
    ids=str,
)
def test_under_batched_edges(decode: Make, changes: dict[str, Any], named: bool) -> None:
    """On both sides of each threshold, and nothing without all that it stands on."""
    assert ("under_batched_inference" in causes_of(decode(**{**FEW, **changes}))) is named


def test_prompts_are_ruled_out(decode: Make) -> None:
    """Where prompts take more of the time than answers, they bound the batch of answers."""
    assert causes_of(decode(**FEW, prefill=0.5)) == ["under_batched_inference"]
    assert causes_of(decode(**FEW, prefill=0.51)) == causes_of(decode(**FEW, prefill=None)) == []


def test_latency_by_choice(decode: Make) -> None:
    """A promise cuts off the batch: t(64) = 16 · 0.01 / 0.12 of t(4), 0.0267 s for a token that takes 0.02 s."""
    full_s = 0.02 * 16 * 0.01 / 0.12
    assert "under_batched_inference" not in causes_of(decode(**FEW, latency_target_s=0.02))
    # Half of the way in time is half of the way in batch: 34 sequences.
    half = only(decode(**FEW, latency_target_s=(0.02 + full_s) / 2))
    assert half.evidence["batch_feasible"] == approx(34.0)
    assert half.loss_share == approx(1 - (0.02 + full_s) / 2 / 0.02 * 4 / 34)
    assert only(decode(**FEW, latency_target_s=full_s)).loss_share == approx(1 - 0.01 / 0.12)
    # So little room that 4 are more than 0.35 of what it lets through.
    assert "under_batched_inference" not in causes_of(decode(**FEW, latency_target_s=0.0207))
    # A promise, and nobody knows how long answers take.
    assert "under_batched_inference" not in causes_of(decode(**FEW, latency_target_s=1.0, answer_s=None))


def test_under_batched_without_a_cache(decode: Make) -> None:
    """A classifier has no cache: only a promise with room tells that its callers could wait."""
    assert only(decode(**{**FEW, "phase": "inference", "kv_free": None}, latency_target_s=1.0)).confidence == 0.725
    assert "under_batched_inference" not in causes_of(decode(**{**FEW, "phase": "inference", "kv_free": None}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, True), ({"kv_free": 0.25}, False), ({"queue": 0.51}, False), ({"intensity": 0.5 * 295}, False)],
    ids=str,
)
def test_under_batched_with_prompts_among_the_answers(decode: Make, changes: dict[str, Any], named: bool) -> None:
    """A server that tells neither from the other, nor a promise: its cache, its queue and its intensity do."""
    mixed = decode(**{**FEW, "phase": "inference", "prefill": None, **changes})
    assert ("under_batched_inference" in causes_of(mixed)) is named


# --- clocks --------------------------------------------------------------------------------------------------------


def test_clock(train: Make) -> None:
    """0.7 of the cohort's clock, for the 0.93 of the time that is not waited."""
    found = only(train(clock=0.686))
    assert (found.cause, found.confidence) == ("thermal_or_power", 0.725)
    assert found.loss_share == approx(0.93 * 0.3)
    assert "node-1, node-2" in found.remedy
    assert causes_of(train(clock=0.8799 * 0.98)) == ["thermal_or_power"]
    assert causes_of(train(clock=0.88 * 0.98)) == []


def test_heat(train: Make) -> None:
    """What the driver names counts against the cohort's clock, and against the peak's where there is none."""
    found = only(train(clock=0.89, heat=0.6))
    assert (found.cause, found.confidence) == ("thermal_or_power", 0.725)
    assert found.loss_share == approx(0.93 * (1 - 0.89 / 0.98))
    assert only(train(clock=0.89, heat=0.6, cohort_clock=None)).loss_share == approx(0.93 * 0.6 * 0.11)
    assert causes_of(train(clock=0.89, heat=0.48, cohort_clock=None)) == []
    assert causes_of(train(clock=0.4, cohort_clock=0.4, heat=0.0999)) == []
    assert only(train(clock=0.6, heat=1.0)).confidence == 0.95


def test_the_slowest_sets_the_pace(train: Make) -> None:
    """One of eight at half of the clock: the mean hides it, and the seven that wait for it do not."""
    found = {each.cause: each.loss_share for each in findings(train(clock=0.92, slowest_clock=0.49, skew=0.4))}
    assert found == {"straggler": approx(0.4), "thermal_or_power": approx(0.94 * 0.5)}


def test_shared_power_cap(train: Make) -> None:
    """A cap on the whole cohort is no fault of this workload; and without a cohort nothing is low."""
    assert causes_of(train(clock=0.7, cohort_clock=0.71, cap=1.0)) == []
    assert causes_of(train(clock=0.7, cohort_clock=None, cap=1.0)) == []


def test_clock_of_those_who_wait(train: Make) -> None:
    """Where most of the time is waited a slow clock costs little; where that was lost, at least what products took."""
    # (1 − 0.65 − 0.05 − 0.01) · 0.15 = 4.35 %
    assert "thermal_or_power" not in causes_of(train(clock=0.833, data=0.65, mfu=0.15))
    assert "thermal_or_power" not in causes_of(train(clock=0.7, data=None, mfu=None))
    # 0.45 of the peak at 0.7 of its clock take 0.45 / 0.7 of the time.
    lost = only(train(clock=0.7, data=None))
    assert lost.loss_share == approx(0.45 / 0.7 * (1 - 0.7 / 0.98))
    assert lost.confidence < only(train(clock=0.7)).confidence
    assert only(train(clock=0.7, data=None, untold=frozenset({"data"}))).cause == "thermal_or_power"


# --- drift ---------------------------------------------------------------------------------------------------------


def _drift(change: float, share: float, cause: str = "configuration_drift", diff: tuple[str, ...] = ("a",)) -> Drift:
    return Drift(cause, change, 4096, share, diff)


def test_drift_within(train: Make) -> None:
    """A tenth slower for half of the time is a twentieth of the time; with a change, and no other cause."""
    changed = ("env.NVIDIA_TF32_OVERRIDE: not set → 0",)
    found = only(train(drifts=(_drift(-0.2, 0.5, diff=changed),)))
    assert (found.cause, found.loss_share, found.confidence) == ("configuration_drift", 0.1, 0.95)
    assert "TF32" in found.remedy
    assert "4,096" in found.remedy
    assert causes_of(train(drifts=(_drift(-0.1, 0.5),))) == ["configuration_drift"]
    assert causes_of(train(drifts=(_drift(-0.1, 0.499),))) == []
    # A provider is not told what changed, but that it did.
    untold = only(train(drifts=(_drift(-0.3, 1.0, diff=()),)))
    assert (untold.cause, untold.confidence) == ("configuration_drift", 0.725)
    assert "which its owner is told" in untold.remedy
    assert "changed" not in untold.evidence
    for other in ("thermal_or_power", "straggler", "input_bound", "load", "unknown"):
        assert causes_of(train(drifts=(_drift(-0.3, 1.0, other),))) == []


def _before(share: float = 1.0, run: str = "run-1", fingerprint: str = "old", **more: Any) -> Earlier:
    return Earlier(
        run, fingerprint, 445e12 / share, **{"tokens_per_s": 9000 / share, "peak_flops_per_s": 989e12, **more}
    )


def test_drift_between(train: Make) -> None:
    """Earlier runs did the same in 0.8 of the time, by FLOP/s and by tokens; by one of them is no drift."""
    found = only(train(earlier=(_before(0.8), _before(0.8, "run-2"))))
    assert (found.cause, found.loss_share) == ("configuration_drift", approx(0.2))
    assert found.confidence == 0.95
    assert found.evidence["mfu_over_bf16_reference"] == approx(0.45, rel=1e-3)
    assert found.evidence["time_per_token_s"] == approx(1 / 9000)
    assert "80% of the time" in found.remedy
    assert only(train(earlier=(_before(0.8),))).confidence == approx(0.5 + 0.45 * 4 / 5)
    assert causes_of(train(earlier=(_before(0.949),))) == ["configuration_drift"]
    assert causes_of(train(earlier=(_before(0.951),))) == []
    # More work in a token, or fewer FLOPs for it: another task, done as well as before.
    assert causes_of(train(earlier=(_before(0.8, tokens_per_s=9000.0),))) == []
    assert causes_of(train(earlier=(replace(_before(0.8), flops_per_s=445e12),))) == []
    # Tokens were told, and are not now.
    assert causes_of(train(tokens_per_s=None, earlier=(_before(0.8),))) == []
    assert causes_of(train(tokens_per_s=None, earlier=(_before(0.8, tokens_per_s=None),))) == ["configuration_drift"]


def test_silent_fp32(train: Make) -> None:
    """Against its own peak the run is better than before; against the reference it is a tenth of what it was."""
    fp32: dict[str, Any] = {
        "mfu": 0.66, "expected_mfu": 0.7, "flops_per_s": 44.5e12, "peak_flops_per_s": 67e12, "tokens_per_s": 900.0,
        "peak_dtype": "float32", "witness": 0.0,
    }  # fmt: skip
    found = only(train(**fp32, earlier=(_before(),)))
    assert (found.cause, found.loss_share) == ("configuration_drift", approx(0.9))
    assert "peak of 989 TFLOP/s instead of 67" in found.remedy


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"clock": 0.7}, "thermal_or_power"),
        ({"skew": 0.2}, "straggler"),
        ({"data": 0.2}, "input_bound"),
        ({"clock": None}, None),
        ({"skew": None, "comm": None}, None),
        ({"data": None}, None),
    ],
    ids=str,
)
def test_drift_is_ruled_out(train: Make, changes: dict[str, Any], cause: str | None) -> None:
    """A rival that is there explains it; one that was lost may be it."""
    found = causes_of(train(**changes, earlier=(_before(0.8),)))
    assert found == ([] if cause is None else [cause])


def test_rivals_that_nobody_tells(train: Make) -> None:
    """Where no device of the kind tells its clock it is less sure, and named."""
    found = only(train(clock=None, untold=frozenset({"clock"}), earlier=(_before(0.8),)))
    assert found.confidence == approx(0.5 + 0.45 * 3 / 5)


def test_same_configuration_was_fast(train: Make) -> None:
    """With this very configuration it was as fast before: it is not the configuration."""
    assert causes_of(train(earlier=(_before(0.8), _before(0.8, "run-2", "new")))) == []
    assert causes_of(train(earlier=(_before(0.8, "run-2", "new"),))) == []


def test_load_is_no_configuration(decode: Make, train: Make) -> None:
    """A changed batch is a change of configuration in training, and load in inference."""
    now: dict[str, Any] = {"fingerprint": "new", "flops_per_s": 80e12, "tokens_per_s": 4000.0}
    earlier: dict[str, Any] = {"tokens_per_s": 5000.0, "batch": 64.0}
    assert causes_of(decode(**now, earlier=(replace(_before(**earlier), flops_per_s=100e12),))) == []
    earlier["batch"] = 48.0
    assert causes_of(decode(**now, earlier=(replace(_before(**earlier), flops_per_s=100e12),))) == [
        "configuration_drift"
    ]
    assert causes_of(train(batch=8.0, earlier=(_before(0.8, batch=32.0),))) == ["configuration_drift"]


# --- slices, allocations, accounts ---------------------------------------------------------------------------------


def test_mig(decode: Make) -> None:
    """Two sevenths stranded, and half of what waits fits nowhere."""
    found = only(decode(stranded=2 / 7, unplaceable=0.5, mig_profile="3g.40gb", wanted="4g.40gb"))
    assert (found.cause, found.loss_share) == ("mig_fragmentation", approx(1 / 7))
    assert found.confidence == 0.95
    assert "3g.40gb" in found.remedy
    assert causes_of(decode(stranded=0.1001, unplaceable=0.5)) == ["mig_fragmentation"]
    assert causes_of(decode(stranded=0.1, unplaceable=0.5)) == []
    # Right-sized, placeable, or without an inventory.
    assert causes_of(decode(stranded=0.0, unplaceable=1.0)) == causes_of(decode(stranded=1.0, unplaceable=0.0)) == []
    assert causes_of(decode(stranded=0.5)) == []


def test_idle(decode: Make, train: Make) -> None:
    """Half of the time without steps and nobody waiting: fewer replicas, a slice, or an end."""
    assert "3 replicas instead of 10" in only(decode(idle=0.7, replicas=10)).remedy
    assert "MIG slice" in only(decode(idle=0.9, replicas=1)).remedy
    assert "hangs" in only(train(idle=0.9)).remedy
    found = only(decode(idle=0.05, replicas=20))
    assert (found.cause, found.loss_share, found.confidence) == ("idle_allocation", 0.05, 0.95)
    assert causes_of(decode(idle=0.049)) == causes_of(decode(idle=0.9, queue=0.6)) == causes_of(decode(idle=None)) == []
    assert causes_of(decode(idle=0.9, queue=None)) == []
    assert only(decode(idle=1.0, queue=None, untold=frozenset({"queue"}))).confidence == 0.5


def test_idle_beside_work(decode: Make) -> None:
    """Requests that wait at devices that work are none of those that nobody asks; where none works they may be."""
    calm = only(decode(idle=0.5, replicas=4, working=2))
    found = only(decode(idle=0.5, replicas=4, working=2, queue=3.0))
    assert (found.cause, found.loss_share, calm.confidence, found.confidence) == ("idle_allocation", 0.5, 0.95, 0.725)
    assert "requests wait at the 2 that work" in found.remedy
    assert "nobody waited" in calm.remedy
    assert "nobody waited" not in found.remedy
    lost = only(decode(idle=0.5, replicas=4, working=2, queue=None))
    assert lost.confidence == 0.725
    assert "nobody tells who waits" in lost.remedy
    # All of them stand still between bursts: they are kept for those who wait then.
    assert causes_of(decode(idle=0.9, replicas=4, working=0, queue=3.0)) == []
    assert causes_of(decode(idle=0.9, replicas=4, working=0, queue=None)) == []
    assert causes_of(decode(idle=0.049, replicas=4, working=3, queue=3.0)) == []


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({"witnessed_mfu": 0.6, "witness": 0.39}, 1 - 0.39 / 0.6),
        ({"witnessed_mfu": 0.6, "witness": 0.57}, 0.05),  # no pipe does more than it is busy for
        ({"witnessed_mfu": 0.6, "witness": 0.575}, None),
        ({"witnessed_mfu": 0.04, "witness": 0.021}, None),  # within two points
        ({"witnessed_mfu": 0.6, "witness": 0.4, "dtype_mix": 0.7}, None),  # each dtype over its own peak: 0.42
        ({"witnessed_mfu": 0.6, "witness": 0.4, "dtype_mix": 1.1}, None),  # some of it may not run on the pipes
        ({"witnessed_mfu": 0.6, "witness": 0.4, "dtype_mix": None}, None),
        ({"witnessed_mfu": 0.02, "witness": 0.2, "phase": "decode", "batch": 4.0}, None),  # 16 rows for 4
        ({"witnessed_mfu": 0.02, "witness": 0.2, "phase": "decode", "batch": 16.0}, 0.9),
        ({"witnessed_mfu": 0.2, "witness": 0.41}, 1 - 0.2 / 0.41),
        ({"witnessed_mfu": 0.2, "witness": 0.4}, None),
        ({"witnessed_mfu": 0.6, "witness": 0.39, "claimed_peak": 0.6}, None),  # 0.36 of what it can on paper
        ({"witnessed_mfu": 0.6, "witness": 0.0, "peak_dtype": "float32"}, None),  # no product runs on the pipes
        ({"witnessed_mfu": 0.6, "witness": 0.39, "claimed_peak": None}, None),
        ({"mfu": 1.06}, 1 - 1 / 1.06),
        ({"mfu": 1.05}, None),
        ({"claimed_peak": 0.49, "witness": None}, 0.51),
        ({"claimed_peak": 0.5, "witness": None}, None),
        ({"claimed_peak": 0.89, "witness": None, "peak_source": "user"}, 0.11),  # nobody measured it
        ({"claimed_peak": 0.93, "witness": None, "peak_source": "user"}, None),  # the reference clock's
        ({"claimed_peak": 0.89, "witness": None, "peak_source": "calibrated"}, None),
        ({"claimed_peak": 2.0, "witness": None}, 0.5),
        ({"claimed_peak": 1.05}, None),
        ({"wall": 1.9}, 1 - 1 / 1.9),
        ({"wall": 1.05}, None),
        ({"rank_spread": 1.25}, 0.2),
        ({"rank_spread": 1.05}, None),
    ],
    ids=str,
)
def test_accounting(train: Make, changes: dict[str, Any], loss: float | None) -> None:
    """Figures that cannot be, and figures that just can."""
    e = train(**{"expected_mfu": None, **changes})
    if loss is None:
        assert causes_of(e) == []
    else:
        found = only(e)
        assert (found.cause, found.loss_share) == ("accounting", approx(loss))


# --- unknown -------------------------------------------------------------------------------------------------------


def test_unknown(train: Make) -> None:
    """From a tenth below the expectation on, where nothing else is named; it says what nobody told."""
    found = only(train(mfu=0.36, expected_mfu=0.4))
    assert (found.cause, found.loss_share) == ("unknown", approx(0.1))
    # Of five that could have been seen one was not: no earlier run is known.
    assert found.confidence == approx(0.95 * 4 / 5)
    assert found.evidence["not_told"] == "earlier runs"
    assert causes_of(train(mfu=0.3601, expected_mfu=0.4)) == []
    assert causes_of(train(mfu=0.3, expected_mfu=0.4, data=0.2)) == ["input_bound"]
    assert causes_of(train(mfu=0.3, expected_mfu=0.4, idle=0.6)) == ["idle_allocation", "unknown"]
    assert causes_of(train(mfu=0.3, expected_mfu=None)) == []


def test_losses_fit(train: Make) -> None:
    """Several causes share the whole: waits first, drift takes what is left."""
    e = train(data=0.3, skew=0.3, comm=0.4, bus_bytes_per_s=4.5e9, drifts=(_drift(-0.5, 1.0),), idle=0.6, witness=None)
    from mfu_sdk.provider.causes import findings

    losses = {each.cause: each.loss_share for each in findings(e)}
    assert losses == {
        "input_bound": 0.3,
        "straggler": 0.3,
        "poor_topology": approx(0.36),
        "configuration_drift": approx(0.04),
        "idle_allocation": 0.6,
    }
