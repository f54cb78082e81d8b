"""The scores of named causes, on cases that can be counted by hand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HOUR = 3600.0
T0 = 1_790_035_200.0
"""2026-09-22T00:00:00Z."""


@pytest.fixture(scope="module")
def scores() -> ModuleType:
    """benchmarks/cause_scores.py, which lies beside the package."""
    path = Path(__file__).parents[3] / "benchmarks" / "cause_scores.py"
    spec = importlib.util.spec_from_file_location("cause_scores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cause_scores"] = module
    spec.loader.exec_module(module)
    return module


def fault(
    workload: str | None, cause: str, *, cost: float = 1.0, material: bool = True, **changes: Any
) -> dict[str, Any]:
    return {
        "tenant": None if workload is None else "acme", "workload": workload, "hosts": ["node-1"], "cause": cause,
        "also": [], "material": material, "money": {"cost": cost}, "onset": "2026-09-22T04:00:00+00:00",
        "end": "2026-09-22T12:00:00+00:00", **changes,
    }  # fmt: skip


def truth(*faults: dict[str, Any]) -> dict[str, Any]:
    workloads = [
        {"tenant": "acme", "workload": name, "hosts": hosts, "healthy": healthy, "nature": nature}
        for name, hosts, healthy, nature in (
            ("a", ["node-1"], False, "faulty"),
            ("b", ["node-2"], False, "faulty"),
            ("c", ["node-3"], True, "healthy"),
            ("d", ["node-4"], True, "kv_bound"),
        )
    ]
    return {"faults": list(faults), "workloads": workloads}


def claim(scores: ModuleType, workload: str | None, cause: str, **changes: Any) -> Any:
    values = {"since_s": T0, "until_s": T0 + 24 * HOUR, "known_s": T0 + 6 * HOUR, "host": None, **changes}
    return scores.Claim("acme", workload, cause, **values)


def test_right_and_missed(scores: ModuleType) -> None:
    """One of two stragglers found, the one that costs nine tenths, two hours after its onset."""
    known = truth(fault("a", "straggler", cost=9.0), fault("b", "straggler", cost=1.0))
    found = scores.score(known, [claim(scores, "a", "straggler")]).causes["straggler"]
    assert (found.material, found.found, found.right, found.wrong) == (2, 1, 1, 0)
    assert (found.recall, found.precision, found.money_recall, found.median_delay_h) == (0.5, 1.0, 0.9, 2.0)


def test_nothing_to_divide_by(scores: ModuleType) -> None:
    """Without claims there is no precision, without faults no recall: neither is 0 nor 1."""
    found = scores.score(truth(fault("a", "straggler")), []).causes["straggler"]
    assert (found.recall, found.precision, found.median_delay_h) == (0.0, None, None)
    found = scores.score(truth(), [claim(scores, "c", "straggler")]).causes["straggler"]
    assert (found.recall, found.precision, found.money_recall) == (None, 0.0, None)


def test_wrong_cause_is_a_confusion(scores: ModuleType) -> None:
    """The wrong cause on a faulty workload is wrong, and says what was taken for what; nobody healthy is accused."""
    found = scores.score(truth(fault("a", "input_bound")), [claim(scores, "a", "straggler")])
    assert found.causes["straggler"].wrong == 1
    assert found.causes["input_bound"].found == 0
    assert found.confusions == {("input_bound", "straggler"): 1}
    assert found.accused == ()


def test_healthy_are_accused_once_a_cause(scores: ModuleType) -> None:
    """Two days of the same accusation are two wrong claims and one accused workload; its nature is told."""
    claims = [
        claim(scores, "d", "straggler"),
        claim(scores, "d", "straggler", since_s=T0 + 24 * HOUR, until_s=T0 + 48 * HOUR),
    ]
    found = scores.score(truth(), claims)
    assert found.causes["straggler"].wrong == 2
    assert found.accused == (("acme", "d", "kv_bound", "straggler"),)
    assert found.healthy == 2


def test_unknown_accuses_nobody(scores: ModuleType) -> None:
    """`unknown` is counted by whether there was something to find, and is in no cause's score."""
    found = scores.score(truth(fault("a", "straggler")), [claim(scores, "a", "unknown"), claim(scores, "c", "unknown")])
    assert (found.unknown_faulty, found.unknown_healthy) == (1, 1)
    assert set(found.causes) == {"straggler"}
    assert found.accused == ()


def test_too_small_to_matter(scores: ModuleType) -> None:
    """A claim about an immaterial fault is neither right nor wrong, and such a fault need not be found."""
    found = scores.score(truth(fault("a", "straggler", material=False)), [claim(scores, "a", "straggler")])
    assert found.causes["straggler"].immaterial == 1
    assert (found.causes["straggler"].right, found.causes["straggler"].wrong, found.causes["straggler"].material) == (
        0,
        0,
        0,
    )


def test_another_name(scores: ModuleType) -> None:
    """A hot GPU's job that is called a straggler's is no mistake, and the heat is not found by it."""
    known = truth(fault("a", "thermal_or_power", also=["straggler"]))
    found = scores.score(known, [claim(scores, "a", "straggler")])
    assert (found.causes["straggler"].also, found.causes["straggler"].wrong) == (1, 0)
    assert found.causes["thermal_or_power"].found == 0


@pytest.mark.parametrize(
    ("since_h", "until_h", "right"), [(0, 3.0, False), (0, 3.5, True), (12.5, 24, True), (13.0, 24, False)]
)
def test_time_has_an_hour_of_tolerance(scores: ModuleType, since_h: float, until_h: float, right: bool) -> None:
    """A claim about a time that ends an hour before the onset, or begins one after the end, is about another fault."""
    made = claim(scores, "a", "straggler", since_s=T0 + since_h * HOUR, until_s=T0 + until_h * HOUR)
    found = scores.score(truth(fault("a", "straggler")), [made]).causes["straggler"]
    assert (found.right, found.wrong) == ((1, 0) if right else (0, 1))


def test_slices_are_found_by_their_machine(scores: ModuleType) -> None:
    """Slices that nobody holds are hit by their host, or by a workload on it, and by nothing elsewhere."""
    known = truth(fault(None, "mig_fragmentation"))
    for made, right in (
        (claim(scores, None, "mig_fragmentation", host="node-1"), 1),
        (claim(scores, "a", "mig_fragmentation"), 1),
        (claim(scores, None, "mig_fragmentation", host="node-3"), 0),
        (claim(scores, "c", "mig_fragmentation"), 0),
        (claim(scores, "a", "straggler"), 0),
    ):
        causes = scores.score(known, [made]).causes
        assert sum(each.right for each in causes.values()) == right


def test_fleets_add_up(scores: ModuleType) -> None:
    """Ratios over several fleets are of their sums: 1 of 1 and twice 0 of 2 are a fifth, not a third."""
    one = scores.score(truth(fault("a", "straggler")), [claim(scores, "a", "straggler")])
    none = scores.score(truth(fault("a", "straggler"), fault("b", "straggler")), [])
    added = scores.total([one, none, none])["straggler"]
    assert (added.material, added.found) == (5, 1)
    assert added.recall == pytest.approx(0.2)
    assert added.delays_h == (2.0,)


def test_told_beside_all(scores: ModuleType) -> None:
    """A straggler whose tenant tells no skew is missed among all, and is none of those whose signals are told."""
    known = truth(
        fault("a", "straggler", signals=["components"], variant="slow_rank", loss_share=0.2),
        fault("b", "straggler", signals=[], variant="slow_rank", loss_share=0.2),
    )
    found = scores.score(known, [claim(scores, "a", "straggler")])
    each = found.causes["straggler"]
    assert (each.recall, each.told, each.found_told, each.recall_told) == (0.5, 1, 1, 1.0)
    assert [(one.workload, one.why) for one in found.missed] == [("b", "signal absent")]


def test_an_exporter_tells_clocks(scores: ModuleType) -> None:
    """Clocks are told by the tenant or by the provider's exporter."""
    known = truth(
        fault("a", "thermal_or_power", signals=[], dcgm=True), fault("b", "thermal_or_power", signals=[], dcgm=False)
    )
    assert scores.score(known, []).causes["thermal_or_power"].told == 1


def test_an_exporter_tells_what_crosses_pcie(scores: ModuleType) -> None:
    """Of a path inside a machine, never of a NIC; without an exporter the tenant's word is needed."""
    known = truth(
        fault("a", "poor_topology", signals=[], dcgm=True, variant="slow_link"),
        fault("a", "poor_topology", signals=[], dcgm=True, variant="nic_downgraded"),
        fault("b", "poor_topology", signals=[], dcgm=False, variant="pcie_only"),
    )
    assert scores.score(known, []).causes["poor_topology"].told == 1


@pytest.mark.parametrize(
    ("changes", "said", "why"),
    [
        ({"loss_share": 0.09}, (), "diluted"),
        ({"loss_share": 0.2}, ("thermal_or_power",), "taken for another"),
        ({"loss_share": 0.2}, ("unknown",), "not decided"),
        ({"loss_share": 0.09, "onset": "2026-09-22T00:00:00+00:00"}, (), "small"),
    ],
    ids=["diluted", "another", "undecided", "small"],
)
def test_why_it_was_missed(scores: ModuleType, changes: dict[str, Any], said: tuple[str, ...], why: str) -> None:
    """9 % over eight hours of sixteen are 4.5 % of them; over all of them they are little; 20 % were to be found."""
    known = truth(fault("a", "straggler", **{"end": "2026-09-22T16:00:00+00:00", **changes}))
    known |= {"since": "2026-09-22T00:00:00+00:00", "until": "2026-09-23T08:00:00+00:00"}
    if "onset" in changes:
        known["until"] = "2026-09-22T16:00:00+00:00"
    [missed] = scores.score(known, [claim(scores, "a", cause) for cause in said]).missed
    assert (missed.why, missed.said) == (why, said)
