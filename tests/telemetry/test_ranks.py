"""Two ranks over gloo and a collector: what their windows tell of waiting for one another, beside what their runs do.

Run as a script this file is one rank.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LATE_S = 0.1
"""Rank 1 is late by so much in every step, and by more on a busy machine."""
STEPS = 24
WIDE = 64
"""The weights of a layer without bias: this squared, four bytes each, in one bucket."""


def be_a_rank(folder: Path) -> None:
    """Train with a rank that is always late, close a window in the middle, and keep the records."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import mfu_sdk as mfu
    from mfu_sdk.export import windows
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import board, op_times

    board.ANSWER_S = board.OTHERS_S = 60.0
    # No window but those that are closed here, whatever the time of day.
    windows.window_slot = lambda _start_unix_ns: 0
    windows.WINDOW_NS = 10**20
    # So few operators that one may be timed after a tenth of a second.
    op_times._CALLS_EXPECTED = 50
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pace import at_least

    late_s = at_least(LATE_S)
    rate = Rate(1e9, 1e9, 1e9, "user", 0.0)
    peaks = Peaks("cpu", {}, {"float32": rate}, rate, None, {})

    def train(name: str, steps: int, *, by_hand: bool) -> list[Any]:
        model: nn.Module = nn.Linear(WIDE, WIDE, bias=False)
        if not by_hand:
            model = DistributedDataParallel(model)
        records: list[Any] = []
        batches = [torch.randn(16, WIDE) for _ in range(steps)]
        with mfu.monitor(model, name=name, peaks=peaks, on_step=records.append) as run:
            for step, x in enumerate(run.batches(batches)):
                with run.step():
                    if rank == 1:
                        time.sleep(late_s)
                    model(x).sum().backward()
                    if by_hand:
                        dist.all_reduce(next(model.parameters()).grad)
                if step == 15 and not by_hand:
                    # By now torch has told of all that it times at first; twice, so that each has heard of the other.
                    for _ in range(2):
                        run.summary()
                        dist.barrier()
                    assert run.engine is not None
                    assert run.engine.ledger.telemetry is not None
                    assert run.engine.ledger.telemetry.flush(60.0)
            telemetry = run.engine.ledger.telemetry if run.engine else None
        assert telemetry is not None
        assert telemetry.flush(60.0)
        return [(record.index, record.comm_s, record.duration_s, record.profiled) for record in records]

    told = {
        "ddp": train("ddp", STEPS, by_hand=False),
        "by hand": train("by hand", 15, by_hand=True),
        "late_s": late_s,
    }
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(
    tmp_path_factory: pytest.TempPathFactory, while_clock_stands: Callable[[Callable[[], Any]], Any]
) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """The collector that two ranks told, and their own records."""
    collectors: list[Any] = []
    try:
        told_by = while_clock_stands(lambda: run_ranks(tmp_path_factory.mktemp("ranks"), collectors))
        yield collectors[-1], told_by
    finally:
        for collector in collectors:
            collector.stop()


def run_ranks(folder: Path, collectors: list[Any]) -> list[dict[str, Any]]:
    """Two ranks and a new collector, which is put behind the others; what the ranks have told."""
    from .conftest import Collector

    collectors.append(collector := Collector())
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MFU_GUARD": "raise",
        "MFU_RUN_ID": "ranks",
        "MFU_SPANS": "all",
        "MFU_OVERHEAD_BUDGET": "off",
        "MFU_RECORDER_DIR": str(folder / "recorder"),
        "MFU_CACHE_DIR": str(folder / "cache"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    running = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def told(collector: Any, workload: str, rank: int, name: str) -> list[dict[str, Any]]:
    """The attributes of the spans of this name that one rank sent."""
    from .conftest import attributes_of

    found: list[dict[str, Any]] = []
    for request in collector.trace_requests():
        for resource in request.resource_spans:
            who = attributes_of(resource.resource.attributes)
            if (who["mfu.workload.name"], who["mfu.dist.rank"]) == (workload, rank):
                spans = [span for scope in resource.scope_spans for span in scope.spans if span.name == name]
                found += [attributes_of(span.attributes) for span in spans]
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_windows_add_up_to_the_run(ranks: tuple[Any, list[dict[str, Any]]], rank: int) -> None:
    """Transfer and skew of a rank's windows are those of its run, and in no window more than its steps took.

    Where a window's steps were quicker than the waits that were timed of others, it has less of the skew.
    """
    collector, _ = ranks
    windows = told(collector, "ddp", rank, "mfu.window")
    (run,) = told(collector, "ddp", rank, "mfu.run")
    assert len(windows) >= 2
    comm_s, skew_s = (sum(window[f"mfu.step.{part}_time"] for window in windows) for part in ("comm", "skew"))
    assert comm_s == pytest.approx(run["mfu.step.comm_time"], rel=1e-6, abs=1e-9)
    full = False
    for window in windows:
        parts = sum(window[f"mfu.step.{part}_time"] for part in ("data", "comm", "skew"))
        assert parts <= window["mfu.step.time"] * (1 + 1e-9)
        full |= parts > window["mfu.step.time"] * (1 - 1e-6)
    if full:
        assert skew_s <= run["mfu.step.skew_time"] * (1 + 1e-6)
    else:
        assert skew_s == pytest.approx(run["mfu.step.skew_time"], rel=1e-6, abs=1e-9)


def test_who_waits_for_whom(ranks: tuple[Any, list[dict[str, Any]]]) -> None:
    """Rank 0 waits for the late one in every step, which is skew; the late one waits for nobody."""
    collector, told_by = ranks
    waiting, late = (told(collector, "ddp", rank, "mfu.window")[-1] for rank in (0, 1))
    assert waiting["mfu.step.skew_time"] > 0.5 * told_by[0]["late_s"] * waiting["mfu.window.step.timed"]
    assert waiting["mfu.step.skew_time"] > 4 * waiting["mfu.step.comm_time"]
    assert late["mfu.step.skew_time"] < waiting["mfu.step.skew_time"] / 4


def test_bytes_and_their_rate(ranks: tuple[Any, list[dict[str, Any]]]) -> None:
    """An all-reduce between two ranks sends its size: the weights' bytes, once a timed step.

    Rank 1 finds the other waiting, so its exchange is the transfer alone, and faster than what rank 0 sees.
    """
    collector, told_by = ranks
    rates = []
    for rank in (0, 1):
        for window in told(collector, "ddp", rank, "mfu.window"):
            assert window["mfu.comm.bytes"] == 4 * WIDE * WIDE * window["mfu.window.step.timed"]
            assert "mfu.comm.bus_rate.peak" not in window
        rates.append(window["mfu.comm.bus_rate"])
    assert 0 < rates[0] < 4 * WIDE * WIDE / (told_by[0]["late_s"] / 2)
    assert rates[1] > rates[0]


def test_the_step_that_was_timed_says_so(ranks: tuple[Any, list[dict[str, Any]]]) -> None:
    """Of collectives that the loop waits for itself the timed step has its seconds; of gradients every step."""
    _, told_by = ranks
    for rank in (0, 1):
        timed = [row for row in told_by[rank]["by hand"] if row[1] is not None]
        # Index, seconds of waiting, seconds, whether its operators were timed.
        [(index, comm_s, duration_s, profiled)] = timed
        assert (index, profiled) == (13, True)
        assert 0 < comm_s < duration_s
        # torch times each step of DistributedDataParallel, and no other is left out.
        waited = [(comm_s, duration_s) for _, comm_s, duration_s, _ in told_by[rank]["ddp"]]
        assert waited
        assert all(comm_s is not None and 0 <= comm_s < duration_s for comm_s, duration_s in waited)
        if rank == 0:
            assert comm_s > told_by[0]["late_s"] / 2


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]))
