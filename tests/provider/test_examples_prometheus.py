"""Prometheus' rules, alerts and panels: names that exist, runbooks that exist, and values by promtool."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfu_sdk import naming
from mfu_sdk.export import allowed

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "provider"
PROMETHEUS = EXAMPLES / "prometheus"

FOREIGN = {
    # github.com/NVIDIA/dcgm-exporter, etc/default-counters.csv
    "DCGM_FI_DEV_GPU_UTIL": {"UUID"},
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": {"UUID"},
    # github.com/kubernetes/kube-state-metrics, docs/metrics: workload/pod-metrics.md and cluster/node-metrics.md
    "kube_pod_container_resource_requests": {"namespace", "pod", "resource"},
    "kube_pod_status_phase": {"namespace", "pod", "phase"},
    "kube_node_status_allocatable": {"resource"},
    # docs.vllm.ai, "Production Metrics"; namespace and pod are the scrape's
    "vllm:num_requests_waiting": {"namespace", "pod"},
}
"""Series that others show, and the labels of theirs that are used."""

WORDS = {"by", "on", "and", "unless", "or", "group_left", "ignoring", "bool"}


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / f"{name}.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = [rule["record"] for rule in rules("rules")]
ALERTS = {rule["alert"]: rule for rule in rules("alerts")}


def of_panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((EXAMPLES / "grafana" / "prometheus.json").read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"].replace("$tenant", ".*")


EXPRESSIONS = {
    **{rule["record"]: rule["expr"] for rule in rules("rules")},
    **{name: rule["expr"] for name, rule in ALERTS.items()},
    **dict(of_panels()),
}


def names(expression: str) -> tuple[set[str], set[str]]:
    """The series and the labels that an expression of PromQL names."""
    bare = re.sub(r"#[^\n]*", "", expression)
    copied = set(re.findall(r'label_replace\(.*?,\s*"(\w+)", "\$1", "(\w+)"', bare, flags=re.DOTALL))
    labels = {label for pair in copied for label in pair}
    bare = re.sub(r'"[^"]*"', '""', bare)
    for selector in re.findall(r"\{([^}]*)\}", bare):
        labels |= set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    for grouped in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", bare):
        labels |= set(re.findall(r"\w+", grouped))
    bare = re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", " ", bare)
    found = set(re.findall(r"(?<![\w.])[A-Za-z_:][\w:]*(?![\w:]|\s*\()", bare))
    return found - WORDS, labels


@pytest.mark.parametrize("of", EXPRESSIONS)
def test_names(of: str) -> None:
    """What is asked for is what the SDK shows, what a rule records, or a listed series of somebody else."""
    series, labels = names(EXPRESSIONS[of])
    assert series
    assert series <= naming.all_series() | set(RECORDED) | FOREIGN.keys()
    ours = naming.labels() | {naming.label(name) for name in allowed.RESOURCE}
    assert labels <= ours.union(*FOREIGN.values())


def test_names_are_found() -> None:
    """The reading of expressions itself: series, labels of selectors, groupings and copies, and no function."""
    text = 'sum by (a, b) (rate(x_total{c!="d", e=~".*"}[5m]) * on (f) group_left (g) y:z:one) > 1e3 unless on () up'
    assert names(text) == ({"x_total", "y:z:one", "up"}, {"a", "b", "c", "e", "f", "g"})


def test_no_average_of_ratios() -> None:
    """Nothing averages, and each recorded ratio is a quotient of sums or counts."""
    for name, expression in EXPRESSIONS.items():
        assert not re.search(r"\bavg(_over_time)?\b|\bquantile\b", expression), name
    for rule in rules("rules"):
        if "ratio" in rule["record"].rpartition(":")[2]:
            assert re.search(r"(sum|count)[\s\S]*\n?\s*/[\s(]*(100|sum|count)", rule["expr"]), rule["record"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ALERTS)
def test_runbook(name: str) -> None:
    """Each alert says in a sentence what it is, names a severity and waits, and its runbook is a page's section."""
    alert = ALERTS[name]
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["labels"]["severity"] in {"info", "warning"}
    assert alert["for"]
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


def test_every_alert_is_tried() -> None:
    """promtool's test makes each alert fire."""
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == ALERTS.keys()


# --- Debian's promtool ---------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> None:
    """Run promtool; what it says is shown where it fails."""
    found = shutil.which("promtool")
    assert found, "promtool is missing: `make test-services` installs Debian's prometheus"
    said = subprocess.run(
        [found, *arguments], cwd=PROMETHEUS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout


@pytest.mark.services
def test_rules() -> None:
    """The values and alerts that rules_test.yml has by hand."""
    promtool("test", "rules", "rules_test.yml")


@pytest.mark.services
def test_configuration() -> None:
    """prometheus.yml and the rules that it names."""
    promtool("check", "config", "prometheus.yml")


@pytest.mark.services
def test_panels(tmp_path: Path) -> None:
    """Prometheus parses every panel's expression."""
    made = [{"record": f"panel_{number}", "expr": expression} for number, (_, expression) in enumerate(of_panels())]
    assert len(made) > 10
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}), encoding="utf-8")
    promtool("check", "rules", path)
