"""Ids: the same for the same span, and never from the user's generators."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from mfu_sdk import semconv
from mfu_sdk.export import identity as ids_module
from mfu_sdk.export.identity import Ids, window_slot
from mfu_sdk.export.resource import resource
from mfu_sdk.ranks import AXES, Axis

from .conftest import EPOCH_NS

ME = Ids("run-7", 1, 3)


def test_ranks(step):
    """Ranks share traces without talking to each other, and no span id."""
    other = Ids("run-7", 1, 4)
    assert ME.run_trace() == other.run_trace()
    assert ME.window_trace(9) == other.window_trace(9)
    for mine, theirs in (
        (ME.run_span(), other.run_span()),
        (ME.window_span(9, step(0)), other.window_span(9, step(0))),
        (ME.step_span(step(0)), other.step_span(step(0))),
    ):
        assert mine != theirs


def test_attempts(step):
    """A restarted run keeps its trace and gets new spans and windows."""
    again = Ids("run-7", 2, 3)
    assert ME.run_trace() == again.run_trace()
    assert ME.run_span() != again.run_span()
    assert ME.window_trace(9) != again.window_trace(9)
    assert ME.step_span(step(0)) != again.step_span(step(0))


def test_replay(step):
    """The same step has the same id whenever it is asked for, and another phase's step of that index another."""
    assert ME.step_span(step(5)) == Ids("run-7", 1, 3).step_span(step(5, duration_s=9.0))
    assert ME.step_span(step(5)) != ME.step_span(step(5, phase="eval"))
    assert ME.step_span(step(5)) != ME.step_span(step(6))


def test_apart():
    """Parts cannot run into each other: run "1" attempt 2 is not run "12"."""
    assert Ids("1", 2, 3).run_span() != Ids("12", 3, 3).run_span()
    assert Ids("a", 1, 23).run_span() != Ids("a", 12, 3).run_span()


def test_golden():
    """The ids of a run are part of the wire format: replay on another version must find the same ones."""
    assert f"{ME.run_trace():032x}" == "232a49660c1dcb536bd734136fa704f9"
    assert f"{ME.run_span():016x}" == "8112b41831fe6f9f"


def test_slots():
    """A window is 30 s aligned to the epoch; its last nanosecond belongs to it."""
    assert window_slot(EPOCH_NS) == EPOCH_NS // 30_000_000_000
    assert window_slot(EPOCH_NS + 29_999_999_999) == window_slot(EPOCH_NS)
    assert window_slot(EPOCH_NS + 30_000_000_000) == window_slot(EPOCH_NS) + 1


def test_seeds():
    """Seeding the user's generators alike does not make random ids alike."""

    def draw():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return ids_module.random_trace_id(), ids_module.random_span_id()

    assert draw() != draw()


def test_resource(identity):
    """Who a run is, with nothing that is not known."""
    found = resource(identity).attributes
    assert found["service.name"] == "bytegpt"
    assert (found["mfu.run.id"], found["mfu.run.attempt"]) == ("run-7", 1)
    assert (found["mfu.dist.rank"], found["mfu.dist.local_rank"], found["mfu.dist.world_size"]) == (3, 1, 8)
    assert found["telemetry.distro.name"] == "mfu_sdk"
    assert "hw.id" not in found
    assert "hw.vendor" not in found
    assert found["service.instance.id"] == resource(identity).attributes["service.instance.id"]


def test_local_rank_unknown(identity):
    """A launcher that does not tell the rank on this host leaves it out: 0 would be a guess."""
    found = resource(dataclasses.replace(identity, local_rank=None)).attributes
    assert "mfu.dist.local_rank" not in found
    assert found["mfu.dist.rank"] == 3


def test_known_axes_are_on_the_resource(identity):
    """Their numbers of ranks: two of five are known, and the others are not said to be 1."""
    known = dataclasses.replace(identity, axes={"dp": Axis(4, 1), "tp": Axis(2, 1)})
    found = {name: value for name, value in resource(known).attributes.items() if name.startswith("mfu.dist.")}
    assert found == {
        "mfu.dist.rank": 3,
        "mfu.dist.local_rank": 1,
        "mfu.dist.world_size": 8,
        "mfu.dist.dp": 4,
        "mfu.dist.tp": 2,
    }
    assert tuple(semconv.DIST_AXES) == AXES


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OTEL_SERVICE_NAME", "named", "named"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed", "listed"),
        ("OTEL_RESOURCE_ATTRIBUTES", "host.name=node-9", "bytegpt"),
    ],
)
def test_resource_environment(identity, monkeypatch, variable, value, name):
    """The standard variables name the service and add what they like."""
    monkeypatch.setenv(variable, value)
    found = resource(identity).attributes
    assert found["service.name"] == name
    if "host.name" in value:
        assert found["host.name"] == "node-9"


def test_resource_is_ours(identity, monkeypatch):
    """The environment cannot make one run look like another: joins depend on our own names."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "mfu.run.id=forged,team=red")
    found = resource(dataclasses.replace(identity, device_id="GPU-1")).attributes
    assert found["mfu.run.id"] == "run-7"
    assert found["team"] == "red"
    assert found["hw.id"] == "GPU-1"
