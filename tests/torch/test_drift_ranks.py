"""One rank of four comes late: the others find it, and say that they wait for it.

Run as a script this file is one rank.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORLD, LATE, FAULT, AT_MOST = 4, 2, 180, 1200
LATE_S = 0.1
"""By how much, or more on a busy machine."""


def be_a_rank(folder: Path) -> None:
    """Train with the others, sleep from step `FAULT` on if this is the late one, and write down what was told."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import mfu_sdk as mfu
    from mfu_sdk.drift.detector import Tuning
    from mfu_sdk.records import DriftEvent, Peaks, Rate
    from mfu_sdk.run import opening
    from mfu_sdk.settings import Settings

    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), WORLD), rank=rank, world_size=WORLD)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pace import at_least

    late_s = at_least(LATE_S)
    # Half of a step's time is what a busy machine makes of steps this short.
    tuning = Tuning(0.5, block_steps=8, baseline_blocks=16, settle_steps=16)
    opening.tuning = lambda _settings: tuning  # type: ignore[assignment]
    rate = Rate(1e11, 1e11, 1e11, "user", 0.0)
    peaks = Peaks("cpu", {}, {"float32": rate}, None, None, {})
    settings = Settings(profile="off", cache_dir=folder / "cache", drift_alarms_per_week=1e6)
    model = DistributedDataParallel(nn.Linear(64, 64))
    told: list[DriftEvent] = []
    with mfu.monitor(model, peaks=peaks, settings=settings, on_drift=told.append) as run:
        for index in range(AT_MOST):
            # The ranks end together, once all of them have been told.
            if index % 20 == 0 and index > FAULT:
                done = torch.tensor(float(any(is_the_fault(event.kind, event.onset_step) for event in told)))
                dist.all_reduce(done, dist.ReduceOp.MIN)
                if done:
                    break
            with run.step(tokens=8):
                if rank == LATE and index >= FAULT:
                    time.sleep(late_s)
                model(torch.randn(8, 64)).sum().backward()
    (folder / f"{rank}.json").write_text(
        json.dumps([[event.kind, event.cause, event.onset_step, *event.evidence] for event in told])
    )
    dist.destroy_process_group()


def is_the_fault(kind: str, onset_step: int) -> bool:
    """Whether an event may be the late rank, and no burst of a busy machine before it."""
    return kind == "drop" and onset_step >= FAULT - 60


def test_a_late_rank(tmp_path: Path) -> None:
    """Three ranks name a straggler. The late one sees that its own work takes longer, and nothing that explains it."""
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(WORLD), "PYTHONWARNINGS": "ignore"},
        )
        for rank in range(WORLD)
    ]
    try:
        assert [rank.wait(900) for rank in ranks] == [0] * WORLD
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    causes = {}
    for number in range(WORLD):
        told = json.loads((tmp_path / f"{number}.json").read_text())
        drops = [event for event in told if is_the_fault(event[0], event[2])]
        assert drops, (number, told)
        causes[number] = drops[0][1]
    assert causes == {rank: "unknown" if rank == LATE else "straggler" for rank in range(WORLD)}


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]))
