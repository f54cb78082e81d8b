"""Waiting for other ranks: two ranks over gloo, a rank that comes late, and an exchange that takes long.

Run as a script this file is one rank.
"""

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfu_sdk.run.op_times import FIRST

pytestmark = pytest.mark.slow

DELAY_S = 0.5
"""Far more than anything else in a step; longer on a machine so busy that it would not be."""
OFTEN_S = 0.2
"""The same where it is in every step. Ranks tell what they took: `often_s`, and `delay_s` in the same ratio."""
PATIENCE_S = 60.0
STEPS = 12
TIMED = (3, 5, 6, 7, 9, 10, 11)
"""Not counted, and before the first whose operators are timed."""
LATE = (5, 9, 11)
"""The steps before which rank 1 comes late. Of those that torch times (3, 5, 6, 7, 9) two, of the timed ones three."""


def be_a_rank(folder: Path) -> None:
    """Train with each fault, and write down the seconds of each bar."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    import mfu_sdk as mfu
    from mfu_sdk.export import windows as windows_of
    from mfu_sdk.export.windows import Windows, sums
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import board
    from mfu_sdk.run.observer import Observer

    # On a machine that does other things too, a second may not be enough to be heard.
    board.ANSWER_S = board.OTHERS_S = PATIENCE_S
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pace import at_least

    often_s = at_least(OFTEN_S)
    delay_s = often_s * DELAY_S / OFTEN_S
    torch.manual_seed(0)
    peaks = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})

    def slowly(_state, bucket):  # type: ignore[no-untyped-def]  # torch checks annotations for its own types
        """A comm hook: the mean of all ranks' gradients, each bucket of which arrives late."""
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        buffer = bucket.buffer().div_(2)
        future = dist.all_reduce(buffer, async_op=True).get_future()

        def deliver() -> None:
            time.sleep(delay_s)
            done.set_result(future.wait()[0])

        threading.Thread(target=deliver).start()
        return done

    def train(fault: str, steps: int = STEPS) -> dict[str, Any]:
        model: nn.Module = nn.Linear(64, 64, bias=False)
        if fault == "sharded":
            fully_shard(model)
        else:
            model = DistributedDataParallel(model)
        if fault == "slow exchange":
            model.register_comm_hook(None, slowly)
        loader = [torch.randn(16, 64) for _ in range(steps)]
        records = []
        with mfu.monitor(model, name="ddp", peaks=peaks, on_step=records.append) as run:
            for step, x in enumerate(run.batches(loader)):
                with run.step():
                    if fault == "late rank" and rank == 1 and step in LATE:
                        time.sleep(delay_s)
                    if fault in ("always late", "sharded") and rank == 1:
                        time.sleep(often_s)
                    model(x).sum().backward()
        dist.barrier()
        summary = run.summary()
        assert summary.ranks is not None
        return {
            "timed": [record.index for record in records if record.timed],
            "duration_s": summary.duration_s,
            "bars": {bar.name: bar.seconds for bar in summary.bars},
            "sum": sum(summary.waterfall.values()),
            "late": summary.ranks.late,
        }

    def evaluated() -> dict[str, Any]:
        """Training with an evaluation of two batches behind every fourth step, rank 1 always late in training."""
        model = DistributedDataParallel(nn.Linear(64, 64, bias=False))
        records = []
        with mfu.monitor(model, name="ddp", peaks=peaks, on_step=records.append) as run:
            for step, x in enumerate(run.batches([torch.randn(16, 64) for _ in range(STEPS)])):
                with run.step():
                    if rank == 1:
                        time.sleep(often_s)
                    model(x).sum().backward()
                for _ in range(2 * (step % 4 == 3)):
                    with run.step(phase="eval"), torch.no_grad():
                        model(x)
            assert run.engine is not None
            gathered = run.engine.ledger.gathered
        dist.barrier()
        # One window of each phase, whatever the time of day: one that holds a few quick steps has less of the skew.
        windows_of.window_slot = lambda _start_unix_ns: 0
        windows = Windows()
        for record in records:
            windows.add(record)
        seconds: dict[str, dict[str, float | None]] = {}
        for window in windows.close():
            seen = Observer(gathered, lambda: peaks, None).signals(window, sums(window.steps))
            assert window.denominator.phase not in seconds
            seconds[window.denominator.phase] = {"exposed_communication": seen.comm_s, "rank_skew": seen.skew_s}
        bars = {bar.name: bar.seconds for bar in run.summary().bars}
        timed = [record.phase for record in records if record.timed]
        return {"bars": bars, "windows": seconds, "train": timed.count("train"), "eval": timed.count("eval")}

    told: dict[str, Any] = {"delay_s": delay_s, "often_s": often_s}
    told |= {fault: train(fault) for fault in ("none", "late rank", "always late", "slow exchange")}
    # Until the first step whose operators are timed.
    told["sharded"] = train("sharded", FIRST + 2)
    told["evaluated"] = evaluated()
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks tell."""
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MFU_GUARD": "raise", "MFU_RUN_ID": "exchanges"}
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


def test_a_late_rank_is_skew_on_the_other(ranks: list[dict[str, Any]]) -> None:
    """Rank 0 waits for it, which is neither transfer nor anything else; rank 1 waits for no one.

    Two of five timed exchanges took the delay longer than the shortest, which is taken for all seven timed steps.
    """
    waiting, late = (rank["late rank"] for rank in ranks)
    assert waiting["timed"] == list(TIMED)
    assert waiting["bars"]["rank_skew"] >= 2 / 5 * len(TIMED) * ranks[0]["delay_s"] * 0.8
    assert waiting["bars"]["rank_skew"] > waiting["duration_s"] / 2
    assert late["bars"]["rank_skew"] < waiting["bars"]["rank_skew"] / 2
    assert waiting["bars"]["exposed_communication"] < waiting["bars"]["rank_skew"] / 2


def test_a_rank_that_is_always_late_is_skew_too(ranks: list[dict[str, Any]]) -> None:
    """By itself rank 0 could take it for a slow link; rank 1, which never waits, has told how long the bytes take."""
    waiting, late = (rank["always late"] for rank in ranks)
    assert waiting["bars"]["rank_skew"] >= 0.5 * len(TIMED) * ranks[0]["often_s"]
    assert waiting["bars"]["rank_skew"] > 4 * waiting["bars"]["exposed_communication"]
    assert late["bars"]["rank_skew"] < waiting["bars"]["rank_skew"] / 4
    for told in (waiting, late):
        rank, waited_s = told["late"]
        assert rank == 1
        assert waited_s > 0.5 * ranks[0]["often_s"]


def test_a_slow_exchange_is_communication_on_both(ranks: list[dict[str, Any]]) -> None:
    """Every exchange takes half a second longer on both ranks alike: nobody was late."""
    for rank in ranks:
        bars = rank["slow exchange"]["bars"]
        assert bars["exposed_communication"] >= len(TIMED) * rank["delay_s"] * 0.9
        assert bars["exposed_communication"] > 0.8 * rank["slow exchange"]["duration_s"]
        assert bars["rank_skew"] < bars["exposed_communication"] / 4


@pytest.mark.parametrize(
    ("fault", "injected", "own"),
    [("slow exchange", "delay_s", "exposed_communication"), ("always late", "often_s", "rank_skew")],
    ids=["slow exchange", "always late"],
)
def test_a_fault_moves_its_own_bar_alone(fault: str, injected: str, own: str, ranks: list[dict[str, Any]]) -> None:
    """On the rank that waits, beside the same loop without a fault: its bar by what was injected, the others by less.

    As less a quarter of that is taken, since the machine does other things too.
    """
    plain, faulty = ranks[0]["none"]["bars"], ranks[0][fault]["bars"]
    injected_s = len(TIMED) * ranks[0][injected]
    moved = {name: (faulty[name] - plain[name]) / injected_s for name in plain}
    assert plain.keys() == faulty.keys()
    assert moved.pop(own) == pytest.approx(1, abs=0.25)
    assert max(map(abs, moved.values())) < 0.25, moved


def test_sharded_ranks_wait_too(ranks: list[dict[str, Any]]) -> None:
    """FSDP2: what gathering weights and scattering gradients took in the step whose operators were timed."""
    waiting, late = (rank["sharded"] for rank in ranks)
    each_s = waiting["bars"]["rank_skew"] / len(waiting["timed"])
    often_s = ranks[0]["often_s"]
    assert each_s > 0.5 * often_s
    assert waiting["bars"]["rank_skew"] > 4 * waiting["bars"]["exposed_communication"]
    assert late["bars"]["rank_skew"] < waiting["bars"]["rank_skew"] / 4
    # Sleeping is the late rank's own: between its operators and its waits.
    assert late["bars"]["host_gap"] > 0.5 * often_s * len(late["timed"])
    assert waiting["late"][0] == late["late"][0] == 1


def test_bars_of_ranks_add_up(ranks: list[dict[str, Any]]) -> None:
    """On every rank and with every fault, and without a fault the exchange is known too."""
    for rank in ranks:
        for fault in ("none", "late rank", "always late", "slow exchange", "sharded"):
            told = rank[fault]
            assert told["sum"] == pytest.approx(1, abs=1e-9)
            assert {"exposed_communication", "rank_skew", "data_wait"} <= set(told["bars"])
            # No operator was timed in twelve steps, so that nothing idle is called the host's.
            assert ("host_gap" in told["bars"]) == (fault == "sharded")


def test_evaluations_exchange_nothing(ranks: list[dict[str, Any]]) -> None:
    """What training waits for is not laid upon the steps of an evaluation: a run's seconds are those of its windows.

    The evaluation was counted, and sent nothing: its zero is known.
    """
    for rank in ranks:
        told = rank["evaluated"]
        assert told["eval"] >= 2
        assert told["windows"]["eval"] == {"exposed_communication": 0.0, "rank_skew": 0.0}
        for name in ("exposed_communication", "rank_skew"):
            assert told["bars"][name] == pytest.approx(told["windows"]["train"][name])
    waiting, late = (rank["evaluated"] for rank in ranks)
    assert 0.5 < waiting["bars"]["rank_skew"] / waiting["train"] / ranks[0]["often_s"] < 2
    assert late["bars"]["rank_skew"] < waiting["bars"]["rank_skew"] / 4


@pytest.fixture
def model() -> Iterator[Any]:
    """A wrapped model in a group of one process."""
    import torch.distributed as dist
    from torch import nn

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    dist.destroy_process_group()


def read(model: Any, steps: int, before: int = 0) -> tuple[list[int], int]:
    """Which of `steps` steps tell an exchange, after `before` others, and how often torch's record is read for it."""
    import torch

    from mfu_sdk.run.ddp_times import DdpTimes

    def step() -> None:
        model(torch.ones(2, 8)).sum().backward()

    asked = 0
    told = model._get_ddp_logging_data

    def counted() -> Any:
        nonlocal asked
        asked += 1
        return told()

    model._get_ddp_logging_data = counted
    for _ in range(before):
        step()
    times, found = DdpTimes(model), []
    for index in range(steps):
        began = time.time_ns()
        step()
        exposed_s = times.after_step(began, 1, timed=True)
        if exposed_s is not None:
            found.append(index)
            latest = told()
            unhidden = latest["backward_comm_time"] - latest["backward_compute_comm_overlap_time"]
            assert exposed_s == max(0, unhidden) / 1e9
    return found, asked


def test_torchs_record_is_read_when_it_has_news(model: Any) -> None:
    """torch times iterations 0 to 9 and every hundredth, and tells with the next: in 12 steps, and 2 for each other."""
    assert read(model, 210) == ([*range(1, 11), 100, 200], 12 + 2 * 2)


def test_a_late_monitor_finds_torchs_turn(model: Any) -> None:
    """Begun at iteration 57: what torch told before is of no step, and its next turn but one, at 200, is found."""
    found, _ = read(model, 260, before=57)
    assert found == [200 - 57, 300 - 57]


def test_steps_that_do_not_count_tell_nothing(model: Any) -> None:
    """Of a step with two forwards one exchange was timed at most, and a counted step is not like others."""
    import torch

    from mfu_sdk.run.ddp_times import DdpTimes

    times, found = DdpTimes(model), []
    for index in range(8):
        calls = 2 if index == 3 else 1
        began = time.time_ns()
        for _ in range(calls):
            model(torch.ones(2, 8)).sum().backward()
        if times.after_step(began, calls, timed=index != 5) is not None:
            found.append(index)
    # What step 3 and step 5 did would be told after steps 4 and 6.
    assert found == [1, 2, 3, 5, 7]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    be_a_rank(Path(sys.argv[1]))
