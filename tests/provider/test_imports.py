"""Allocations out of Slurm and Kubernetes: as the schedulers print them, and what the books make of that."""

import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from mfu_sdk.cli import main
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import load_inventory
from mfu_sdk.provider.books.kubernetes import from_pods
from mfu_sdk.provider.books.slurm import from_sacct, hosts

SACCT = (Path(__file__).parent / "sacct.txt").read_text("utf-8")


def test_sacct() -> None:
    """Every node of a job is a row; steps, jobs without GPUs, and those that never held one are none."""
    found = from_sacct(SACCT)
    rows = [
        (row.allocation_id, row.tenant, row.host, row.gpus, row.profile, row.since, row.until) for row in found.rows
    ]
    assert rows == [
        ("slurm-1201", "acme", "gpu01", 8, None, "2026-11-01T08:00:00Z", "2026-11-01T20:30:00Z"),
        ("slurm-1201", "acme", "gpu02", 8, None, "2026-11-01T08:00:00Z", "2026-11-01T20:30:00Z"),
        ("slurm-1203", "globex", "gpu03", 2, None, "2026-11-01T21:00:00Z", None),
        ("slurm-1207_4", "initech", "gpu06", 1, "3g.40gb", "2026-11-01T21:00:00Z", "2026-11-01T22:00:00Z"),
    ]
    assert len(found.left_out) == 1
    assert "job 1206: 3 GPUs on 2 nodes (gpu[04-05]) do not divide" in found.left_out[0]


def test_zone() -> None:
    """sacct prints times without a zone: that of the cluster is said, summer time and all."""
    text = "JobID|Account|NodeList|AllocTRES|Start|End\n1|a|n1|gres/gpu=1|2026-07-01T12:00:00|2026-12-01T12:00:00\n"
    (row,) = from_sacct(text, ZoneInfo("Europe/Berlin")).rows
    assert (row.since, row.until) == ("2026-07-01T10:00:00Z", "2026-12-01T11:00:00Z")


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("node-1", ("node-1",)),
        ("gpu[01-03]", ("gpu01", "gpu02", "gpu03")),
        ("gpu[1,3,9-11],login", ("gpu1", "gpu3", "gpu9", "gpu10", "gpu11", "login")),
        ("rack[1-2]-gpu[1-2]", ("rack1-gpu1", "rack1-gpu2", "rack2-gpu1", "rack2-gpu2")),
        ("a,b,c", ("a", "b", "c")),
        ("gpu[098-101].example.org", tuple(f"gpu{n:03d}.example.org" for n in (98, 99, 100, 101))),
    ],
)
def test_nodelist(nodelist: str, expected: tuple[str, ...]) -> None:
    """A node list's ranges are written out, leading zeros kept."""
    assert hosts(nodelist) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line lacks JobID, Account, NodeList, AllocTRES, Start, End; take it from `sacct --parsable2"),
        ("JobID|Account|NodeList|Start|End\n", "the first line lacks AllocTRES"),
        ("JobID|Account|NodeList|AllocTRES|Start|End\n1|a|n1\n", "line 2 has 3 cells where the first names 6"),
        (
            "JobID|Account|NodeList|AllocTRES|Start|End\n1|a|n1|gres/gpu=1|11/01-08:00|Unknown\n",
            "job 1: Start='11/01-08:00' is no time of ISO 8601; unset SLURM_TIME_FORMAT",
        ),
    ],
    ids=["empty", "column", "cells", "time"],
)
def test_not_sacct(text: str, message: str) -> None:
    """What is not sacct's is refused in a line that says what to call."""
    with pytest.raises(ConfigurationError) as caught:
        from_sacct(text)
    assert message in str(caught.value)


def pod(name: str, limits: list[dict[str, str]], phase: str = "Running", **more: Any) -> dict[str, Any]:
    """A pod as kubectl prints it, with what matters here."""
    status: dict[str, Any] = {
        "phase": phase,
        "startTime": "2026-11-01T08:00:02Z",
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-01T08:00:30Z"},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-01T08:00:00Z"},
        ],
    }
    return {
        "metadata": {"name": name, "namespace": "acme", "uid": f"uid-{name}", "labels": {}, **more.pop("metadata", {})},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": f"c{i}", "resources": {"limits": each}} for i, each in enumerate(limits)],
            **more.pop("spec", {}),
        },
        "status": status | more.pop("status", {}),
    }


def ended(at: str) -> dict[str, Any]:
    states: list[dict[str, Any]] = [{"state": {"terminated": {"exitCode": 0, "finishedAt": at}}}]
    return {"containerStatuses": [*states, {"state": {}}]}


PODS = [
    pod("train-0", [{"nvidia.com/gpu": "8", "cpu": "64"}, {"cpu": "1"}], metadata={"labels": {"app": "llama"}}),
    pod("web", [{"cpu": "2"}]),
    pod("plain", [{}], spec={"containers": [{"name": "no-resources"}]}),
    pod("chat", [{"nvidia.com/mig-1g.10gb": "2"}, {"nvidia.com/mig-3g.40gb.me": "1"}]),
    pod("done", [{"nvidia.com/gpu": "1"}], "Succeeded", status=ended("2026-11-01T10:00:00Z")),
    pod("evicted", [{"nvidia.com/gpu": "1"}], "Failed"),
    pod("waits", [{"nvidia.com/gpu": "1"}], "Pending", spec={"nodeName": None}),
    pod(
        "init",
        [{"nvidia.com/gpu": "1"}],
        spec={"initContainers": [{"name": "warm", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]},
    ),
    pod("shared", [{"nvidia.com/gpu.shared": "1"}]),
    pod("amd", [{"amd.com/gpu": "1"}], metadata={"labels": {"team": "globex"}}),
]


def test_pods() -> None:
    """Every pod that holds devices is a row, for each kind one, from when it was bound until its containers ended."""
    found = from_pods(json.dumps({"kind": "List", "items": PODS}), "team")
    rows = [(row.allocation_id, row.tenant, row.workload, row.gpus, row.profile, row.until) for row in found.rows]
    assert rows == [
        ("uid-train-0", "acme", "llama", 8, None, None),
        ("uid-chat", "acme", "chat", 2, "1g.10gb", None),
        ("uid-chat", "acme", "chat", 1, "3g.40gb", None),
        ("uid-done", "acme", "done", 1, None, "2026-11-01T10:00:00Z"),
        ("uid-init", "acme", "init", 2, None, None),
        ("uid-amd", "globex", "amd", 1, None, None),
    ]
    assert {row.since for row in found.rows} == {"2026-11-01T08:00:00Z"}
    assert {row.host for row in found.rows} == {"node-1"}
    assert found.left_out == (
        "pod acme/shared: nvidia.com/gpu.shared is a share of a GPU's time, whose hours nobody can tell",
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"items": [1]}', '{"items": [{"metadata": {}}]}'])
def test_not_pods(text: str) -> None:
    """What is not kubectl's is refused in a line that says what to call."""
    with pytest.raises(ConfigurationError, match=r"kubectl: not a list of pods .*; take it from `kubectl get pods"):
        from_pods(text)


NODES = "\n".join(
    ["nodes:", *(f'  - {{host: gpu{n:02d}, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 8}}' for n in range(1, 7))]
)


def test_command(tmp_path: Path) -> None:
    """`mfu provider import` reads a file or a pipe and writes a table that `--inventory` takes as it is."""
    (tmp_path / "jobs").write_text(SACCT)
    (tmp_path / "nodes.yaml").write_text(NODES)
    out = tmp_path / "allocations.yaml"
    command = ["provider", "import", "slurm", str(tmp_path / "jobs"), "-o", str(out)]
    result = CliRunner().invoke(main, [*command, "--tenant", "globex=initech", "--contract", "initech=reserved"])
    # A job has to be written by hand: the answer is not whole.
    assert result.exit_code == 1
    assert "job 1206" in result.stderr
    held = load_inventory([tmp_path / "nodes.yaml", out]).allocations
    assert [(row.tenant, row.host, row.contract) for row in held] == [
        ("acme", "gpu01", "on_demand"),
        ("acme", "gpu02", "on_demand"),
        ("initech", "gpu03", "reserved"),
        ("initech", "gpu06", "reserved"),
    ]
    pods = json.dumps({"items": PODS[:1]})
    result = CliRunner().invoke(main, ["provider", "import", "k8s", "--contract", "per_token"], input=pods)
    assert result.exit_code == 0
    assert "allocation_id: uid-train-0" in result.output
    assert "contract: per_token" in result.output
    for wrong, message in (
        (["slurm", "--contract", "spot"], "contract='spot': must be one of on_demand, reserved, per_token"),
        (["slurm", "--tenant", "globex"], "--tenant='globex': must be THEIRS=OURS"),
        (["slurm", "--zone", "Mars"], "--zone='Mars': must be a zone such as Europe/Berlin"),
        (["k8s", "--zone", "UTC"], "--zone: goes with slurm"),
        (["slurm", "--tenant-label", "team"], "--tenant-label: goes with k8s"),
        (["slurm", str(tmp_path / "none")], "cannot be read"),
    ):
        result = CliRunner().invoke(main, ["provider", "import", *wrong], input=SACCT)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
