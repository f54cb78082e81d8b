"""Ranks: their place, their shared run id, their own counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mfu_sdk.run.distributed import Place, place

RANK = """
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


def test_place_of_a_process_on_its_own() -> None:
    """Without a process group or torchrun's variables: rank 0 of 1."""
    assert place({}) == Place(0, None, 1)
    assert place({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == Place(3, 1, 8)
    assert place({"RANK": "none", "WORLD_SIZE": ""}) == Place(0, None, 1)


def test_two_ranks_under_torchrun(tmp_path: Path) -> None:
    """Both ranks have one run id without MFU_RUN_ID, count the same steps, and each its own share."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
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
