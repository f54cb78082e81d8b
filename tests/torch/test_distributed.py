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

pytestmark = pytest.mark.slow

WORLD = 4
PATIENCE_S = 60.0
ROWS, WIDE, INNER = 8, 16, 32
"""The whole batch of 8 rows goes through (16, 32) and (32, 16)."""
LAYER = 2 * ROWS * WIDE * INNER
"""FLOPs of one layer's product over the whole batch."""
TRAIN = 5 * LAYER
"""Two products forward; of the four backward ones the gradient of the input is not wanted."""
WEIGHT_BYTES = 4 * WIDE * INNER
MICROBATCHES, STAGE = 4, 2 * ROWS * WIDE * WIDE
CHOSEN = (0, 1, 2, 3, 3, 0, 1, 2)
EXTRA = 2 * (ROWS // WORLD) * WIDE * INNER
"""FLOPs of one layer's product over a quarter of the batch: what one rank does besides."""
PEAK_FLOPS_PER_S = 1e6
STEPS, SOURCES_OF = 8, ("measured", "measured", "measured", "cached", "measured", "cached", "cached", "cached")

# --- one rank ---------------------------------------------------------------------------------------------------------


def be_a_rank(folder: Path) -> None:
    """Count what this rank does of each kind of parallel work, and write it into `folder`."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh

    from mfu_sdk.run import board

    # On a machine that does other things too, a second may not be enough to be heard.
    board.ANSWER_S = board.OTHERS_S = PATIENCE_S
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), WORLD), rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (WORLD,))

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(WIDE, INNER, bias=False), nn.ReLU(), nn.Linear(INNER, WIDE, bias=False))

    told: dict[str, Any] = {}
    works = (data_parallel, sharded, tensor_parallel, pipelines, collectives, expert_parallel, new_shapes, boards)
    for work in works:
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


def monitored(model: Any, batches: list[Any]) -> dict[str, Any]:
    """[model FLOPs, source] of each step of a monitored loop, and what this rank knows of all ranks behind it.

    A step takes one second on rank 0, two on rank 1, and so on.
    """
    import torch.distributed as dist

    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks, Rate, StepRecord
    from mfu_sdk.run import opening
    from mfu_sdk.run.clock import HostClock
    from mfu_sdk.testing import FakeClock

    clock = FakeClock()
    opening.clock_for = lambda _device: HostClock(clock)
    rate = Rate(PEAK_FLOPS_PER_S, PEAK_FLOPS_PER_S, PEAK_FLOPS_PER_S, "user", 0.0)
    records: list[StepRecord] = []
    with mfu.monitor(
        model, name="rank", peaks=Peaks("cpu", {}, {"float32": rate}, None, None, {}), on_step=records.append
    ) as run:
        axes = run._engine.ledger.identity.axes  # type: ignore[union-attr]
        for batch in batches:
            with run.step(tokens=len(batch)):
                model(batch).sum().backward()
                clock.advance(dist.get_rank() + 1)
        half_way = run.summary().ranks
        assert half_way is not None
        assert not half_way.complete
    # Every rank has said its last word.
    dist.barrier()
    ranks = run.summary().ranks
    assert ranks is not None
    return {
        "steps": [[record.model_flops, record.count_source] for record in records],
        "axes": {name: [axis.size, axis.index] for name, axis in axes.items()},
        "complete": ranks.complete,
        "each": [[each.model_flops, each.available_flops, each.tokens] for each in ranks.ranks],
        "mfu": ranks.mfu,
        "step_flops": ranks.step_flops,
        "notes": ranks.notes,
        "said": str(run.summary()),
    }


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


def boards(network: Callable[[], Any], mesh: Any, rank: int) -> dict[str, Any]:
    """Monitors that tell one another: DDP, FSDP2, two replicas of two tensor-parallel ranks, and rank 2 at odds."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.nn.parallel import DistributedDataParallel

    class Odd(nn.Module):
        """Rank 2 goes through its first layer twice, which neither the structure nor the shapes show."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if rank == 2:
                self.layers[0](x)
            return self.layers(x)  # type: ignore[no-any-return]

    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    quarter = [torch.randn(ROWS // WORLD, WIDE) for _ in range(6)]
    return {
        "ddp board": monitored(DistributedDataParallel(network()), quarter),
        "fsdp board": monitored(fully_shard(network(), mesh=mesh), quarter),
        "tp board": monitored(
            parallelize_module(network(), pairs["tp"], plan), [torch.randn(ROWS // 2, WIDE) for _ in range(6)]
        ),
        "odd board": monitored(Odd(), quarter),
    }


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
        said = [process.communicate(timeout=300)[1] for process in running]
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
        flops, sources = zip(*told["experts"]["steps"], strict=True)
        assert [step for step, source in enumerate(sources) if source == "measured"] == [0, 1, 2, 4]
        assert set(sources[5:]) == {"sampled"}
        assert set(flops[5:]) == {whole // WORLD}
        assert sources[3] == ("cached" if rank == 3 else "sampled")
        # Ranks of the same model and shapes that differ: by their routing, which is nothing to be told of.
        assert [note for note in told["experts"]["notes"] if "different" in note] == []


def test_ranks_count_the_same_steps(ranks: list[dict[str, Any]]) -> None:
    """A shape that is new to one rank is unknown there until the next counted step; nobody waits for it."""
    quarter = TRAIN // WORLD
    for rank, told in enumerate(ranks):
        sources = list(SOURCES_OF)
        flops: list[int | None] = [quarter] * STEPS
        if rank == 1:
            sources[5:], flops[5:] = [None] * 3, [None] * 3  # type: ignore[list-item]
        assert told["new shapes"]["steps"] == [list(pair) for pair in zip(flops, sources, strict=True)]


@pytest.mark.parametrize("board", ["ddp board", "fsdp board", "tp board"])
def test_ranks_tell_one_another(board: str, ranks: list[dict[str, Any]]) -> None:
    """Each knows its own and the global MFU, and that the ranks sum to the whole, without a collective.

    Steps 3 and 5 are timed. Of the whole, 40,960 FLOPs, each rank does a quarter, in 1, 2, 3 and 4 seconds: at
    1 MFLOP/s they could have done 10 million in that step.
    """
    for told in (rank[board] for rank in ranks):
        rows = ROWS // 2 if board == "tp board" else ROWS // WORLD
        assert told["complete"]
        assert told["each"] == [
            [2 * TRAIN // WORLD, 2 * PEAK_FLOPS_PER_S * seconds, 6 * rows] for seconds in (1, 2, 3, 4)
        ]
        assert told["mfu"] == pytest.approx(TRAIN / 10e6)
        assert told["step_flops"] == TRAIN
        assert told["notes"] == []
        assert "all ranks    MFU 0.41 % over 4 of 4 ranks, lowest 0.256 % on rank 3" in told["said"]


def test_axes_of_real_meshes(ranks: list[dict[str, Any]]) -> None:
    """What each wrapper shows of how the ranks work together."""
    for rank, told in enumerate(ranks):
        assert told["ddp board"]["axes"] == {"dp": [4, rank], "tp": [1, 0], "pp": [1, 0]}
        assert told["fsdp board"]["axes"] == {"dp": [4, rank]}
        assert told["tp board"]["axes"] == {"dp": [2, rank // 2], "tp": [2, rank % 2]}
        assert told["odd board"]["axes"] == {}


def test_a_rank_that_does_more_is_found(ranks: list[dict[str, Any]]) -> None:
    """Rank 2 has one product more than the others, in step 4 as in all: every rank's summary says so."""
    quarter = TRAIN // WORLD
    for told in (rank["odd board"] for rank in ranks):
        assert told["step_flops"] == TRAIN + EXTRA
        assert told["notes"] == [
            "in step 4 ranks with the same model, place and shapes counted different FLOPs: "
            f"{quarter:,} on ranks 0, 1, 3, {quarter + EXTRA:,} on rank 2; one does work that the others do not, "
            "or its count is wrong"
        ]


def test_place_of_a_process_on_its_own() -> None:
    """Without a process group or torchrun's variables: rank 0 of 1."""
    assert place({}) == Place(0, None, 1)
    assert place({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == Place(3, 1, 8)
    assert place({"RANK": "none", "WORLD_SIZE": ""}) == Place(0, None, 1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    be_a_rank(Path(sys.argv[1]))
