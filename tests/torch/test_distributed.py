"""Ranks: their place, their shared run id, their own counts, and what all of them count together.

Run as a script this file is one rank: it does everything that the tests ask about and writes down what it counted.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfu_sdk.run.distributed import Place, place

WORLD = 4
ROWS, WIDE, INNER = 8, 16, 32
"""The whole batch of 8 rows goes through (16, 32) and (32, 16)."""
LAYER = 2 * ROWS * WIDE * INNER
"""FLOPs of one layer's product over the whole batch."""
TRAIN = 5 * LAYER
"""Two products forward; of the four backward ones the gradient of the input is not wanted."""
WEIGHT_BYTES = 4 * WIDE * INNER
MICROBATCHES, STAGE = 4, 2 * ROWS * WIDE * WIDE
CHOSEN = (0, 1, 2, 3, 3, 0, 1, 2)
STEPS, SOURCES_OF = 8, ("measured", "measured", "measured", "cached", "measured", "cached", "cached", "cached")

TWO_RANKS = """
import json, os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(64, 32, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
records = []
with mfu.monitor(model, name="ddp", peaks=peaks, on_step=records.append) as run:
    identity = run._engine.ledger.identity
    for _ in range(4):
        with run.step():
            optimizer.zero_grad()
            model(torch.randn(16, 64)).sum().backward()
            optimizer.step()
told = {
    "run_id": identity.run_id, "rank": identity.rank, "world_size": identity.world_size,
    "flops": [r.model_flops for r in records], "sources": [r.count_source for r in records],
}
# One write for each rank: lines of ranks that share a pipe must not mix.
os.write(1, (json.dumps(told) + chr(10)).encode())
dist.destroy_process_group()
"""


# --- one rank ---------------------------------------------------------------------------------------------------------


def be_a_rank(folder: Path) -> None:
    """Count what this rank does of each kind of parallel work, and write it into `folder`."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), WORLD), rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (WORLD,))

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(WIDE, INNER, bias=False), nn.ReLU(), nn.Linear(INNER, WIDE, bias=False))

    told: dict[str, Any] = {}
    for work in (data_parallel, sharded, tensor_parallel, pipelines, collectives, expert_parallel, new_shapes):
        told |= work(network, mesh, rank)
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def told_of(run: Callable[[], object]) -> dict[str, Any]:
    """What counting `run` gives, after two runs that let every library set itself up, as DDP its buckets."""
    import mfu_sdk as mfu

    for _ in range(2):
        run()
    count = mfu.count(run)
    return {
        "model": count.model_flops,
        "hardware": count.hardware_flops,
        "uncounted": [each.op for each in count.uncounted],
        "sent": dict(count.comm_bytes),
    }


def data_parallel(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """The whole by one process, DistributedDataParallel on a share of it, and two halves of a share accumulated."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = network()
    ddp = DistributedDataParallel(network())
    share = ROWS // WORLD

    def accumulated() -> None:
        with ddp.no_sync():
            ddp(torch.randn(share // 2, WIDE)).sum().backward()
        ddp(torch.randn(share // 2, WIDE)).sum().backward()

    return {
        "whole": told_of(lambda: model(torch.randn(ROWS, WIDE)).sum().backward()),
        "ddp": told_of(lambda: ddp(torch.randn(share, WIDE)).sum().backward()),
        "ddp accumulated": told_of(accumulated),
    }


def sharded(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """FSDP2: each layer its own group, freed after its forward and gathered again for its backward."""
    import torch
    from torch.distributed.fsdp import fully_shard

    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    return {"fsdp": told_of(lambda: model(torch.randn(ROWS // WORLD, WIDE)).sum().backward())}


def tensor_parallel(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """The first layer by columns, the second by rows: every rank has all rows of the batch and a quarter of each."""
    import torch
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return {"tp": told_of(lambda: model(torch.randn(ROWS, WIDE)).sum().backward())}


def pipelines(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """A layer a rank, by two schedules; and the four layers in one process."""
    import torch
    from torch import nn
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    layers = [nn.Linear(WIDE, WIDE, bias=False) for _ in range(WORLD)]
    whole = nn.Sequential(*layers)
    found = {"pp whole": told_of(lambda: whole(torch.randn(ROWS, WIDE)).sum().backward())}
    for name, kind in (("gpipe", ScheduleGPipe), ("1f1b", Schedule1F1B)):
        stage = PipelineStage(layers[rank], rank, WORLD, torch.device("cpu"))
        schedule = kind(stage, n_microbatches=MICROBATCHES, loss_fn=lambda y, target: (y - target).square().sum())

        def step(schedule: Any = schedule) -> None:
            if rank == 0:
                schedule.step(torch.randn(ROWS, WIDE))
            elif rank == WORLD - 1:
                schedule.step(target=torch.randn(ROWS, WIDE))
            else:
                schedule.step()

        found[name] = told_of(step)
    return found


def collectives(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """Each collective of 8 floats, through c10d and as a function."""
    import torch
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    x, four = torch.ones(8), torch.ones(WORLD, 8)
    group = dist.group.WORLD
    each: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(x.clone()),
        "broadcast": lambda: dist.broadcast(x.clone(), 0),
        "reduce": lambda: dist.reduce(x.clone(), 0),
        "all_gather": lambda: dist.all_gather(list(torch.empty(WORLD, 8)), x),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(torch.empty(8 * WORLD), x),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(torch.empty(8), four.flatten()),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty(8), x),
        "barrier": dist.barrier,
        "functional all_reduce": lambda: functional.all_reduce(x, "sum", group).sum(),
        "functional all_gather": lambda: functional.all_gather_tensor(x, 0, group).sum(),
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(four, "sum", 0, group).sum(),
        "functional all_to_all": lambda: functional.all_to_all_single(x, None, None, group).sum(),
    }
    return {"collectives": {name: told_of(run) for name, run in each.items()}}


def monitored(model: Any, batches: list[Any]) -> list[Any]:
    """[model FLOPs, source] of each step of a monitored loop, and how much the run's own count of it is."""
    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks, Rate, StepRecord

    peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
    records: list[StepRecord] = []
    with mfu.monitor(model, name="rank", peaks=peaks, on_step=records.append) as run:
        for batch in batches:
            with run.step():
                model(batch).sum().backward()
    return [[record.model_flops, record.count_source] for record in records]


def expert_parallel(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """An expert a rank: each step, all ranks send all their tokens to one expert, so that one rank has all the work."""
    import torch
    import torch.distributed as dist
    from torch import nn

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.Linear(WIDE, WIDE, bias=False)
            self.step = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = CHOSEN[self.step]
            self.step += 1
            sends = [len(x) if to == chosen else 0 for to in range(WORLD)]
            takes = [len(x) if rank == chosen else 0] * WORLD
            mine = torch.empty(sum(takes), WIDE)
            dist.all_to_all_single(mine, x, takes, sends)
            return self.expert(mine)  # type: ignore[no-any-return]

    return {"experts": monitored(Experts(), [torch.randn(2, WIDE) for _ in range(STEPS)])}


def new_shapes(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """Rank 1 meets a new shape at step 5: ranks that wait for one another must not have it counted out of turn."""
    import torch

    rows = [3 if rank == 1 and step >= 5 else 2 for step in range(STEPS)]
    return {"new shapes": monitored(network(), [torch.randn(each, WIDE) for each in rows])}


# --- what the tests ask about ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes counted."""
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD), "MFU_GUARD": "raise", "MFU_RUN_ID": "ranks"}
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    running = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=80)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * WORLD, "\n".join(said)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def of(ranks: list[dict[str, Any]], work: str, what: str = "model") -> list[Any]:
    return [rank[work][what] for rank in ranks]


def test_one_process_has_the_whole(ranks: list[dict[str, Any]]) -> None:
    """Five products of 8 rows, on every rank that runs them all."""
    assert of(ranks, "whole") == [TRAIN] * WORLD
    assert of(ranks, "pp whole") == [(3 * WORLD - 1) * STAGE] * WORLD


@pytest.mark.parametrize("work", ["ddp", "ddp accumulated", "fsdp", "tp"])
def test_ranks_sum_to_the_whole(work: str, ranks: list[dict[str, Any]]) -> None:
    """However the work is shared: each rank has a quarter, to the FLOP, and nothing is uncounted."""
    assert of(ranks, work) == [TRAIN // WORLD] * WORLD
    assert of(ranks, work, "hardware") == [TRAIN // WORLD] * WORLD
    assert of(ranks, work, "uncounted") == [[]] * WORLD


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_pipeline_stages_sum_to_the_whole(schedule: str, ranks: list[dict[str, Any]]) -> None:
    """Each stage has its layer's three products; the first one's input wants no gradient."""
    assert of(ranks, schedule) == [2 * STAGE] + [3 * STAGE] * (WORLD - 1)
    assert of(ranks, schedule, "uncounted") == [[]] * WORLD


def test_bytes_of_gradients_and_weights(ranks: list[dict[str, Any]]) -> None:
    """What parallel training hands over.

    DDP: both weights' gradients once, accumulated or not. FSDP: a quarter of each weight before its forward and before
    its backward, and each whole gradient. TP: the partial outputs, (8, 16) floats.
    """
    gradients = 2 * WEIGHT_BYTES
    assert of(ranks, "ddp", "sent") == [{"allreduce": gradients}] * WORLD
    assert of(ranks, "ddp accumulated", "sent") == [{"allreduce": gradients}] * WORLD
    gathered = 2 * 2 * WEIGHT_BYTES // WORLD
    for sent in of(ranks, "fsdp", "sent"):
        assert sorted(sent.values()) == [gathered, gradients]
    assert [sum(sent.values()) for sent in of(ranks, "tp", "sent")] == [4 * ROWS * WIDE] * WORLD


def test_bytes_of_each_collective(ranks: list[dict[str, Any]]) -> None:
    """8 floats are 32 bytes, whichever way they go; what is reduced and scattered is four times as much."""
    for rank in ranks:
        for name, told in rank["collectives"].items():
            expected = {"barrier": 0, "reduce_scatter_tensor": 128, "functional reduce_scatter": 128}.get(name, 32)
            assert sum(told["sent"].values()) == expected, (name, told)
            assert (told["model"], told["uncounted"]) == (0, []), (name, told)


def test_bytes_between_stages(ranks: list[dict[str, Any]]) -> None:
    """A stage sends its output on and its input's gradient back: (8, 16) floats each, which the ends do once."""
    once = 4 * ROWS * WIDE
    assert [sent.get("send", 0) for sent in of(ranks, "1f1b", "sent")] == [once, 2 * once, 2 * once, once]


def test_experts_on_other_ranks_are_sampled(ranks: list[dict[str, Any]]) -> None:
    """Other ranks' routing decides: the mean of the steps counted, the same on all ranks, says that it is a sample.

    Of the counted steps 0, 1, 2 and 4 each rank had one with all ranks' tokens, so the means add up to the whole.
    Before its first, rank 3 could not know that its counts would differ.
    """
    tokens = 2 * WORLD
    whole = 2 * 2 * tokens * WIDE * WIDE
    for rank, told in enumerate(ranks):
        flops, sources = zip(*told["experts"], strict=True)
        assert [step for step, source in enumerate(sources) if source == "measured"] == [0, 1, 2, 4]
        assert set(sources[5:]) == {"sampled"}
        assert set(flops[5:]) == {whole // WORLD}
        assert sources[3] == ("cached" if rank == 3 else "sampled")


def test_ranks_count_the_same_steps(ranks: list[dict[str, Any]]) -> None:
    """A shape that is new to one rank is unknown there until the next counted step; nobody waits for it."""
    quarter = TRAIN // WORLD
    for rank, told in enumerate(ranks):
        sources = list(SOURCES_OF)
        flops: list[int | None] = [quarter] * STEPS
        if rank == 1:
            sources[5:], flops[5:] = [None] * 3, [None] * 3  # type: ignore[list-item]
        assert told["new shapes"] == [list(pair) for pair in zip(flops, sources, strict=True)]


def test_place_of_a_process_on_its_own() -> None:
    """Without a process group or torchrun's variables: rank 0 of 1."""
    assert place({}) == Place(0, None, 1)
    assert place({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == Place(3, 1, 8)
    assert place({"RANK": "none", "WORLD_SIZE": ""}) == Place(0, None, 1)


def test_two_ranks_under_torchrun(tmp_path: Path) -> None:
    """Both ranks have one run id without MFU_RUN_ID, count the same steps, and each its own share."""
    script = tmp_path / "rank.py"
    script.write_text(TWO_RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        launch, capture_output=True, text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    told = sorted(map(json.loads, done.stdout.splitlines()), key=lambda rank: rank["rank"])
    assert [rank["rank"] for rank in told] == [0, 1]
    assert {rank["world_size"] for rank in told} == {2}
    assert len({rank["run_id"] for rank in told}) == 1
    # Forward, and backward for the weight alone: the input needs no gradient.
    assert [rank["flops"] for rank in told] == [[2 * 2 * 16 * 64 * 32] * 4] * 2
    assert [rank["sources"] for rank in told] == [["measured", "measured", "measured", "cached"]] * 2


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    be_a_rank(Path(sys.argv[1]))
