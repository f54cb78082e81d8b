"""The axes that a model shows: device meshes under the names that people give them, wrappers, and what stays unknown.

torch's fake process group stands for eight ranks, of which this process is number 5; it runs no collective.
"""

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from mfu_sdk.ranks import AXES, Axis
from mfu_sdk.records import RunIdentity
from mfu_sdk.run.mesh import axes, place_but_data

WORLD, RANK = 8, 5


@pytest.fixture(scope="module", autouse=True)
def _ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    yield
    dist.destroy_process_group()


def layer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False))


def sharded(mesh: Any) -> nn.Module:
    model = layer()
    fully_shard(model, **({} if mesh is None else {"mesh": mesh}))
    return model


def test_a_process_on_its_own_has_one_of_each() -> None:
    assert axes(layer(), 1) == dict.fromkeys(AXES, Axis(1, 0))


def test_a_plain_model_shows_nothing() -> None:
    """Eight ranks that do something together: what, no parameter says, and unknown is not 1."""
    assert axes(layer(), WORLD) == {}
    assert axes(None, WORLD) == {}


def test_ddp_has_a_replica_on_every_rank() -> None:
    """So no rank has a part of one; a context or an expert axis may be there all the same."""
    model = nn.parallel.DistributedDataParallel(layer())
    assert axes(model, WORLD) == {"dp": Axis(8, 5), "tp": Axis(1, 0), "pp": Axis(1, 0)}
    # Of 16 ranks, this group would leave two for something else.
    assert axes(model, 2 * WORLD) == {"dp": Axis(8, 5)}


def test_the_first_fsdp_is_data_parallel() -> None:
    """But for its hybrid strategies, whose groups are shards and replicas."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    cpu = torch.device("cpu")
    assert axes(FullyShardedDataParallel(layer(), device_id=cpu), WORLD) == {"dp": Axis(8, 5)}
    hybrid = FullyShardedDataParallel(
        layer(),
        device_id=cpu,
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        process_group=(dist.group.WORLD, dist.new_group([5])),
    )
    assert axes(hybrid, WORLD) == {}


def test_fully_shard_without_a_mesh_is_data_parallel() -> None:
    assert axes(sharded(None), WORLD) == {"dp": Axis(8, 5)}


@pytest.mark.parametrize("name", ["dp", "fsdp", "dp_shard", "data_parallel"])
def test_names_of_one_axis(name: str) -> None:
    assert axes(sharded(init_device_mesh("cpu", (8,), mesh_dim_names=(name,))), WORLD) == {"dp": Axis(8, 5)}


def test_a_name_that_nobody_knows_is_no_axis() -> None:
    assert axes(sharded(init_device_mesh("cpu", (8,), mesh_dim_names=("blocks",))), WORLD) == {}


def test_fsdp_over_tensor_parallel() -> None:
    """Rank 5 of (4, 2) is at (2, 1)."""
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "tp"))
    model = parallelize_module(layer(), mesh["tp"], {"0": ColwiseParallel()})
    assert axes(model, WORLD) == {"dp": Axis(4, 2), "tp": Axis(2, 1)}
    fully_shard(model, mesh=mesh["dp"])
    assert axes(model, WORLD) == {"dp": Axis(4, 2), "tp": Axis(2, 1)}


def test_replicas_of_shards_are_one_axis() -> None:
    """HSDP: rank 5 is shard 1 of replica 2, number 2 × 2 + 1 of the eight; a sub-mesh alone knows one part of it."""
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    assert axes(sharded(mesh), WORLD) == {"dp": Axis(8, 5)}
    assert axes(sharded(mesh["dp_shard"]), WORLD) == {"dp": Axis(8, 5)}


def test_torchtitans_world() -> None:
    """Its root names pipeline, context and tensor parallel; parameters lie on data and context parallel together."""
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp_shard", "cp"))
    flat = mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
    assert axes(sharded(flat), WORLD) == {"dp": Axis(2, 0), "pp": Axis(2, 1), "cp": Axis(2, 1)}


def test_data_and_context_parallel_in_one_are_unknown() -> None:
    """Where the root has no names, how many of the ranks are data parallel cannot be told."""
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_shard_cp", "tp"))
    assert axes(sharded(mesh["dp_shard_cp"]), WORLD) == {"tp": Axis(2, 1)}


def test_fsdp_is_context_parallel_too_in_torchtitan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharded(init_device_mesh("cpu", (8,), mesh_dim_names=("fsdp",)))
    monkeypatch.setitem(sys.modules, "torchtitan", types.ModuleType("torchtitan"))
    assert axes(model, WORLD) == {}


def test_experts_on_a_mesh_of_their_own() -> None:
    """Their mesh cuts the same ranks in another way: what it has of data parallel ranks is not the run's."""
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=("dp",))
    experts = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_shard_in_ep", "ep"))
    model = nn.Sequential(sharded(mesh), layer())
    model[1][0].weight = nn.Parameter(distribute_tensor(torch.ones(32, 16), experts["ep"], [Shard(0)]))
    assert axes(model, WORLD) == {"dp": Axis(8, 5), "ep": Axis(2, 1)}


def test_meshes_that_disagree_are_unknown() -> None:
    one = init_device_mesh("cpu", (8,), mesh_dim_names=("dp",))
    other = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "tp"))
    model = nn.Sequential(sharded(one), sharded(other["dp"]))
    assert axes(model, WORLD) == {"tp": Axis(2, 1)}


def test_who_does_the_same_work() -> None:
    """Ranks that differ in their data alone; with experts on other ranks, none."""

    def place(**at: Axis) -> str:
        return place_but_data(RunIdentity("run", 0, "w", "family", 3, 0, 8, "cpu", None, None, 0, at))

    assert place(dp=Axis(4, 0), tp=Axis(2, 1)) == place(dp=Axis(4, 3), tp=Axis(2, 1)) == "family tp 1"
    assert place(tp=Axis(2, 0)) != place(tp=Axis(2, 1))
    assert place(dp=Axis(4, 0), ep=Axis(2, 0)) == "rank 3"
    assert place(dp=Axis(4, 0), ep=Axis(1, 0)) == "family ep 0"
