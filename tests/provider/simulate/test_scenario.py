"""Faults files: what they ask for is injected, what is wrong with them is one line."""

from pathlib import Path

import pytest
import yaml

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.simulate import fleet, paper, scenario, simulation
from mfu_sdk.provider.simulate.faults import KINDS
from mfu_sdk.provider.simulate.planning import plan
from mfu_sdk.provider.simulate.scenario import HARD_NEGATIVES, MISSING

NOW_NS = 1_790_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "no YAML"),
        ("3", "must be a mapping"),
        ("{}", "has no faults"),
        ("faults: 3", "must be a list"),
        ("faults: []\nmore: 1", "'more' is unknown"),
        ("faults: [{kind: rust}]", "kind 'rust' is unknown; must be one of under_batched_inference"),
        ("faults: [{variant: x}]", "has no kind"),
        ("faults: [{kind: straggler, variant: tired}]", "straggler has slow_rank"),
        ("faults: [{kind: straggler, count: 0}]", "whole number of at least 1"),
        ("faults: [{kind: straggler, count: true}]", "whole number of at least 1"),
        ("faults: [{kind: straggler, severity: 1.5}]", "severity 1.5: must be a number from 0 to 1"),
        ("faults: [{kind: straggler, severity: [0.5, 0.2]}]", "the lowest comes first"),
        ("faults: [{kind: straggler, severity: [0.5]}]", "one number or two"),
        ("faults: [{kind: straggler, onset_h: -1}]", "from 0 to"),
        ("faults: [{kind: straggler, duration_h: 0}]", "from 0.01 to"),
        ("faults: [{kind: idle_allocation, variant: abandoned, severity: 0.5}]", "leave severity out"),
        ("faults: []\nhard_negatives: {sleepy: 1}", "'sleepy' is unknown"),
        ("faults: []\nhard_negatives: {kv_bound: -1}", "must be a whole number"),
        ("faults: []\nmissing: {nothing: 0.7, old_sdk: 0.7}", "add up to 1 at most"),
    ],
)
def test_wrong_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    """The message names the file and the entry, the rule and the remedy, in one line."""
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        scenario.load(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is told so."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        scenario.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("gpus", "hours", "text", "said"),
    [
        (0, 1, "faults: []", "at least 1"),
        (8, 0, "faults: []", "above 0"),
        (8, 1, "faults: [{kind: straggler, count: 9}]", "too few for the 9 workloads"),
        (8, 1, "faults: [{kind: straggler, onset_h: 2}]", "beyond --hours 1"),
    ],
)
def test_what_does_not_fit(gpus: int, hours: float, text: str, said: str) -> None:
    """Faults that a fleet has no room or no time for are refused before anything is sent."""
    with pytest.raises(ConfigurationError, match=said):
        plan(gpus, hours * 3600, scenario.parse(yaml.safe_load(text), "faults"), 0)


def test_moment() -> None:
    """--until is ISO 8601, in UTC where it names no zone."""
    assert fleet.moment(None, 7) == 7
    assert fleet.moment("1970-01-01T00:01:00", 7) == fleet.moment("1970-01-01T01:01:00+01:00", 7) == 60 * 10**9
    with pytest.raises(ConfigurationError, match="ISO 8601"):
        fleet.moment("yesterday", 7)


@pytest.mark.parametrize(
    ("kind", "variant"), [(kind, variant) for kind, found in KINDS.items() for variant in found.variants]
)
def test_what_is_asked_for_is_injected(kind: str, variant: str) -> None:
    """Each kind and variant comes as often as asked, as severe, and over the time that is asked for."""
    wanted: dict[str, object] = {"kind": kind, "variant": variant, "count": 2, "onset_h": 2, "duration_h": 4}
    if variant != "abandoned":
        wanted["severity"] = 0.5
    text = {"faults": [wanted], "hard_negatives": {}, "missing": {}}
    made = plan(96, 8 * 3600, scenario.parse(text, "faults"), 1)
    found = [fault for each in made.workloads for fault in each.faults]
    found += [each.fault for each in made.sliced if each.fault is not None]
    assert [(each.kind, each.variant) for each in found] == [(kind, variant)] * 2
    assert {(each.onset_s, each.end_s) for each in found} == {(2 * 3600.0, 6 * 3600.0)}
    assert {each.severity for each in found} == {1.0 if variant == "abandoned" else 0.5}
    assert made.gpus == 96
    held = [seat.hardware_id for each in made.workloads for seat in each.seats]
    assert len(held) == len(set(held))


def test_built_in_mix_has_everything() -> None:
    """A large fleet without a file has each kind and variant, each hard negative and each sort of silence."""
    made = plan(2000, 3600, scenario.built_in(2000), 2)
    faults = {(fault.kind, fault.variant) for each in made.workloads for fault in each.faults}
    faults |= {(each.fault.kind, each.fault.variant) for each in made.sliced if each.fault}
    assert faults == {(kind, variant) for kind, found in KINDS.items() for variant in found.variants}
    natures = {each.nature for each in made.workloads}
    assert natures == {*HARD_NEGATIVES, "healthy", "faulty"}
    assert set(scenario.built_in(200).missing) == set(MISSING)
    assert len({each.tenant for each in made.workloads}) > 60


def test_books_say_what_the_plan_has() -> None:
    """Nodes, allocations, layouts, queue, prices and tokens are those of the plan, dated into its time."""
    made = plan(200, 7200, scenario.built_in(200), 3)
    zero_ns = simulation.begins_ns(made, NOW_NS)
    inventory, prices, tokens = (
        paper.inventory(made, zero_ns), paper.price_book(made, zero_ns), paper.tokens(made)
    )  # fmt: skip
    assert sum(node["gpus"] for node in inventory["nodes"]) == 200
    known = {uuid for node in inventory["nodes"] for uuid in node["gpu_uuids"]}
    for row in inventory["allocations"]:
        assert len(row["gpu_uuids"]) == row["gpus"]
        assert row["from"] < row["until"]
        assert "profile" in row or set(row["gpu_uuids"]) <= known
        assert row["tenant"] in tokens["tenants"]
    starts = [(row["host"], row["gpu"], row["from"]) for row in inventory["mig"]]
    assert len(starts) == len(set(starts)) > 0
    assert any(row["waiting"] for row in inventory["queue"])
    types = {node["gpu_type"] for node in inventory["nodes"]}
    assert {row["gpu_type"] for row in prices["costs"]} == types
    assert len({each[0]["token"] for each in tokens["tenants"].values()}) == len(tokens["tenants"])


def test_page_is_true() -> None:
    """The page's faults file is one, and it names every kind, variant, hard negative and sort of silence."""
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "simulate.md").read_text("utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    asked = scenario.parse(yaml.safe_load(example), "page").faults
    assert [(each.kind, each.variant, each.count) for each in asked] == [
        ("straggler", "slow_rank", 3), ("under_batched_inference", None, 1),
    ]  # fmt: skip
    variants = {name for found in KINDS.values() for name in found.variants}
    for name in {*KINDS, *variants, *HARD_NEGATIVES, *MISSING}:
        assert f"`{name}`" in page, name
    for name, (share, _) in MISSING.items():
        assert f"| `{name}` | {share:g} |" in page
