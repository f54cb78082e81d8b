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
from collections.abc import Callable, Iterator
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
"""The steps before which rank 1 comes late."""


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

    def train(fault: str, steps: int = STEPS, halves: int = 1) -> dict[str, Any]:
        """With two halves, gradients are gathered over two forwards and exchanged with the second."""
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
                    if halves > 1:
                        with model.no_sync():
                            model(x).sum().backward()
                    model(x).sum().backward()
        dist.barrier()
        summary = run.summary()
        assert summary.ranks is not None
        return {
            "timed": [record.index for record in records if record.timed],
            "comm_s": [record.comm_s for record in records],
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
    told["gathered"], told["gathered, late"] = train("none", halves=2), train("always late", halves=2)
    # Until the first step whose operators are timed.
    told["sharded"] = train("sharded", FIRST + 2)
    told["evaluated"] = evaluated()
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(
    tmp_path_factory: pytest.TempPathFactory, while_clock_stands: Callable[[Callable[[], Any]], Any]
) -> list[dict[str, Any]]:
    """What two ranks tell."""
    return while_clock_stands(lambda: run_ranks(tmp_path_factory.mktemp("ranks")))


def run_ranks(folder: Path) -> list[dict[str, Any]]:
    """The two, and what they have told."""
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


@pytest.mark.parametrize("fault", ["none", "late rank", "always late", "slow exchange", "gathered", "gathered, late"])
def test_each_step_tells_its_own(fault: str, ranks: list[dict[str, Any]]) -> None:
    """What it waited stands in its record, counted or not, and what the timed ones say is the run's two bars."""
    for rank in ranks:
        told = rank[fault]
        assert None not in told["comm_s"]
        waited_s = sum(told["comm_s"][index] for index in told["timed"])
        assert told["bars"]["exposed_communication"] + told["bars"]["rank_skew"] == pytest.approx(waited_s)
        if fault == "slow exchange":
            assert min(told["comm_s"]) >= 0.9 * ranks[0]["delay_s"]


def test_a_late_rank_is_skew_on_the_other(ranks: list[dict[str, Any]]) -> None:
    """Rank 0 waits for it, which is neither transfer nor anything else; rank 1 waits for no one.

    Three of seven timed exchanges took the delay longer than the shortest.
    """
    waiting, late = (rank["late rank"] for rank in ranks)
    assert waiting["timed"] == list(TIMED)
    assert waiting["bars"]["rank_skew"] >= len(LATE) * ranks[0]["delay_s"] * 0.8
    assert min(waiting["comm_s"][index] for index in LATE) >= 0.8 * ranks[0]["delay_s"]
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
    ("fault", "without", "injected", "own"),
    [
        ("slow exchange", "none", "delay_s", "exposed_communication"),
        ("always late", "none", "often_s", "rank_skew"),
        ("gathered, late", "gathered", "often_s", "rank_skew"),
    ],
    ids=["slow exchange", "always late", "gathered, late"],
)
def test_a_fault_moves_its_own_bar_alone(
    fault: str, without: str, injected: str, own: str, ranks: list[dict[str, Any]]
) -> None:
    """On the rank that waits, beside the same loop without a fault: its bar by what was injected, the others by less.

    As less a quarter of that is taken, since the machine does other things too.
    """
    plain, faulty = ranks[0][without]["bars"], ranks[0][fault]["bars"]
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
        for fault in ("none", "late rank", "always late", "slow exchange", "gathered", "gathered, late", "sharded"):
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
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    yield wrapped
    # A thread of gloo that lets go of an exchange waits for the interpreter's lock, while it holds the group's. So the
    # last to let go of the group must not hold the former: destroying it does not, but the end of a reducer does, and
    # pytest keeps the model for longer than this.
    del wrapped.reducer, wrapped.logger
    dist.destroy_process_group()


class Clock:
    """Nanoseconds that pass only where a test says so, and `look_ns` with each reading."""

    def __init__(self, look_ns: int) -> None:
        self.look_ns = look_ns
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += self.look_ns
        return self.now_ns


def step_of(index: int, calls: int, model: Any, times: Any, **of: Any) -> Any:
    """One step with so many forwards and backwards, as an engine would have it timed."""
    import torch

    from mfu_sdk.run.work import Work

    step = Work(index, "train", time.perf_counter_ns(), 0, time.time_ns(), None, **of)
    for _ in range(calls):
        times.call_begins()
        model(torch.ones(2, 8)).sum().backward()
    return step


def unhidden_s(model: Any) -> float:
    """What torch's record says of the exchange that it has written down last."""
    told = model._get_ddp_logging_data()
    return max(0, told["backward_comm_time"] - told["backward_compute_comm_overlap_time"]) / 1e9


def read(model: Any, times: Any, steps: int, calls: int = 1) -> list[int]:
    """Which of so many steps are told."""
    found = []
    for index in range(steps):
        exchange = times.after_step(step_of(index, calls, model, times))
        if exchange is not None:
            found.append(exchange.step.index)
            if calls == 1:
                assert exchange.exposed_s == unhidden_s(model)
    return found


def test_long_steps_are_all_timed(model: Any) -> None:
    """A look of 10 µs, reckoned three times, is less than 0.5 % of steps of 10 ms; then torch times what it wants."""
    from mfu_sdk.run.ddp_times import StepTimes

    clock = Clock(10_000)
    times = StepTimes(model, clock)
    found = []
    for index in range(150):
        exchange = times.after_step(step_of(index, 1, model, times))
        clock.now_ns += 10_000_000
        found.append(None if exchange is None else exchange.step.index)
    assert found == list(range(150))
    times.close()
    # From here on torch's turn is at every hundredth again.
    told = set()
    for index in range(210):
        step_of(index, 1, model, times)
        told.add(model._get_ddp_logging_data()["iteration"])
    assert len(told) <= 4


def test_of_short_steps_some_are_timed(model: Any) -> None:
    """Of the first 16 each one; then, in steps of 1 ms, as many as let three looks of 10 µs be half a percent."""
    from mfu_sdk.run.ddp_times import StepTimes

    clock = Clock(10_000)
    times = StepTimes(model, clock)
    found = []
    for index in range(64):
        exchange = times.after_step(step_of(index, 1, model, times))
        clock.now_ns += 1_000_000
        if exchange is not None:
            found.append(exchange.step.index)
    assert found[:16] == list(range(16))
    # 30 µs are half a percent of 6 ms, which steps of a little less than 1 ms do not last.
    assert found[16:] == list(range(21, 64, 7))


def test_each_exchange_of_a_step_counts(model: Any) -> None:
    """Gathered without `no_sync`, gradients are exchanged with every backward, and a step has waited for all."""
    from mfu_sdk.run.ddp_times import StepTimes

    times = StepTimes(model, Clock(0))
    for index in range(6):
        exchange = times.after_step(step_of(index, 3, model, times))
        assert exchange is not None
        # The last of the three, and two that were read before it.
        assert exchange.exposed_s >= unhidden_s(model)
        assert exchange.whole_s is not None
        assert exchange.whole_s >= exchange.exposed_s
    # A model whose calls are not seen (they were compiled): that there were more exchanges than the last one shows.
    step = step_of(6, 3, model, StepTimes(model, Clock(0)))
    assert times.after_step(step) is None
    assert times.after_step(step_of(7, 1, model, times)) is not None


def test_what_is_gathered_exchanges_once(model: Any) -> None:
    """Within `no_sync` a backward exchanges nothing: of three forwards the last one's exchange is the step's."""
    import torch

    from mfu_sdk.run.ddp_times import StepTimes, TorchsTimes

    made: list[tuple[Any, int]] = [(lambda: TorchsTimes(model), 5), (lambda: StepTimes(model, Clock(0)), 6)]
    for make, told in made:
        times, found = make(), []
        for index in range(6):
            with model.no_sync():
                for _ in range(2):
                    times.call_begins()
                    model(torch.ones(2, 8)).sum().backward()
            exchange = times.after_step(step_of(index, 1, model, times))
            if exchange is not None:
                found.append(exchange.step.index)
                assert exchange.exposed_s == unhidden_s(model)
        # torch by itself tells one with the next.
        assert found == list(range(told))


def test_no_step_has_anothers(model: Any) -> None:
    """A step that failed told nothing; an evaluation reads nothing, and one without a backward has none."""
    import torch

    from mfu_sdk.run.ddp_times import StepTimes
    from mfu_sdk.run.work import Work

    times = StepTimes(model, Clock(0))
    assert times.after_step(step_of(0, 1, model, times)) is not None
    # Its exchange is over, and nobody is told that it ended.
    step_of(1, 2, model, times)
    exchange = times.after_step(Work(2, "train", time.perf_counter_ns(), 0, time.time_ns(), None))
    assert exchange is None
    inner = Work(4, "eval", time.perf_counter_ns(), 0, time.time_ns(), None)
    outer = step_of(3, 1, model, times)
    with torch.no_grad():
        times.call_begins()
        model(torch.ones(2, 8))
    assert times.after_step(inner) is None
    exchange = times.after_step(outer)
    assert exchange is not None
    assert (exchange.step.index, exchange.exposed_s) == (3, unhidden_s(model))


def test_torchs_record_is_read_when_it_has_news(model: Any) -> None:
    """torch times iterations 0 to 9 and every hundredth, and tells with the next one's step."""
    from mfu_sdk.run.ddp_times import TorchsTimes

    asked = 0
    told = model.logger._get_ddp_logging_data

    class Logger:
        def _get_ddp_logging_data(self) -> Any:
            nonlocal asked
            asked += 1
            return told()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real, model.logger = model.logger, Logger()
    times, found = TorchsTimes(model), []
    for index in range(210):
        exchange = times.after_step(step_of(index, 1, model, times))
        if exchange is not None:
            found.append(exchange.step.index)
    model.logger = real
    assert found == [*range(10), 99, 199]
    assert asked <= 16 + 2 * 2 + 2


def test_a_late_monitor_finds_torchs_turn(model: Any) -> None:
    """Begun at iteration 57: what torch told before is of no step, and its next turn but one, at 200, is found."""
    from mfu_sdk.run.ddp_times import TorchsTimes

    for index in range(57):
        step_of(index, 1, model, TorchsTimes(model))
    assert read(model, TorchsTimes(model), 260) == [199 - 57, 299 - 57]


def test_steps_that_do_not_count_tell_nothing_late(model: Any) -> None:
    """What torch tells with the next step is not all of one with two exchanges; a counted step is not like others."""
    from mfu_sdk.run.ddp_times import TorchsTimes

    times, found = TorchsTimes(model), []
    for index in range(8):
        step = step_of(index, 2 if index == 3 else 1, model, times, counting=index == 5)
        exchange = times.after_step(step)
        if exchange is not None:
            found.append(exchange.step.index)
    assert found == [0, 1, 2, 4, 6]


def test_the_model_within_is_enough(model: Any) -> None:
    """Frameworks name the model and call its wrapper: that one's exchanges are the run's, in a loop without marks."""
    import torch

    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks

    records: list[Any] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mfu.monitor(model.module, peaks=Peaks("cpu", {}, {}, None, None, {}), on_step=records.append):
        for _ in range(6):
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()
    # The first one's forward had begun before the run saw it.
    assert [record.comm_s is not None for record in records[1:]] == [True] * 5


def test_a_clock_that_is_set_hides_a_step_and_no_more(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reckons with the machine's clock: of the step in which that is set nothing is told, of the next all is."""
    from mfu_sdk.run import ddp_times

    real_ns, back_ns = time.time_ns, 0
    monkeypatch.setattr(ddp_times.time, "time_ns", lambda: real_ns() - back_ns)
    times = ddp_times.StepTimes(model, Clock(0))
    told = []
    for index in range(6):
        step = step_of(index, 1, model, times)
        if index == 3:
            back_ns = 40_000_000
        exchange = times.after_step(step)
        told.append(exchange is not None)
    assert told == [True, True, True, False, True, True]


def test_two_clocks_that_are_corrected_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs 500 ppm fast is being corrected; one that is 2 ms off at once was set; a look that is held up is
    made again."""
    from mfu_sdk.run import ddp_times

    steady_ns, ahead_ns, held_up = 10**9, 0, []

    def now_ns() -> int:
        nonlocal steady_ns
        steady_ns += held_up.pop() if held_up else 50
        return steady_ns

    monkeypatch.setattr(ddp_times.time, "perf_counter_ns", now_ns)
    monkeypatch.setattr(ddp_times.time, "time_ns", lambda: steady_ns + ahead_ns)
    clocks = ddp_times._TwoClocks()
    steady_ns += 10 * 10**9
    ahead_ns += 5_000_000
    assert not clocks.came_apart()
    held_up = [5_000_000, 50]
    assert not clocks.came_apart()
    assert not held_up
    ahead_ns -= 2_000_000
    assert clocks.came_apart()
    assert not clocks.came_apart()


@pytest.mark.parametrize(("each", "kind"), [(True, "StepTimes"), (False, "TorchsTimes")])
def test_who_times(each: bool, kind: str, model: Any) -> None:
    """MFU_PROFILE=off leaves torch alone, as does its own log; and what is not wrapped is not timed at all."""
    import torch.distributed as dist
    from torch import nn

    from mfu_sdk.run.ddp_times import ddp_times

    assert type(ddp_times(model, each=each)).__name__ == kind
    # Also where the model is watched that lies within.
    assert type(ddp_times(model.module, each=each)).__name__ == kind
    assert ddp_times(nn.Linear(1, 1), each=each) is None
    assert ddp_times(None, each=each) is None
    level = dist.get_debug_level()
    try:
        dist.set_debug_level(dist.DebugLevel.DETAIL)
        assert type(ddp_times(model, each=each)).__name__ == "TorchsTimes"
    finally:
        dist.set_debug_level(level)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    be_a_rank(Path(sys.argv[1]))
