"""The run id that all ranks have, and the attempt that rises when they are restarted.

Run as a script this file is one worker of torchrun's.
"""

import json
import os
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mfu_sdk.run import attempts
from mfu_sdk.run.attempts import Attempt, Moment, agree, attempt
from mfu_sdk.run.key_store import KeyStore, key_store

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
DIES = 3
"""The exit code of the rank that fails in the first attempt."""


def be_a_worker(folder: Path) -> None:
    """Open one monitor before there is a process group and one after; in the first attempt rank 1 dies in its loop."""
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import board

    # On a machine that does other things too, a second may not be enough to be heard.
    board.ANSWER_S = board.OTHERS_S = PATIENCE_S
    rank, restart = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
    told: dict[str, Any] = {}

    def tell(name: str, run: Any) -> None:
        identity = run._engine.ledger.identity
        told[name] = [identity.run_id, identity.attempt, identity.rank, identity.world_size]
        (folder / f"{restart}-{rank}.json").write_text(json.dumps(told))

    with mfu.monitor(name="early", peaks=peaks) as run:
        tell("early", run)
    # torch gives the keys of its agent's store no prefix by attempt: gloo may find the addresses of workers that died.
    store = dist.PrefixStore(restart, next(dist.rendezvous("env://"))[0])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    model = DistributedDataParallel(nn.Linear(64, 32, bias=False))
    records = []
    with mfu.monitor(model, name="ddp", peaks=peaks, on_step=records.append) as run:
        tell("ddp", run)
        for step in range(4):
            with run.step(tokens=16):
                if restart == "0" and step == 2:
                    # What rank 1 says is on its way when it dies.
                    dist.barrier()
                    if rank == 1:
                        os._exit(DIES)
                model(torch.randn(16, 64)).sum().backward()
    dist.barrier()
    ranks = run.summary().ranks
    told["flops"] = [record.model_flops for record in records]
    told["sources"] = [record.count_source for record in records]
    told["ranks"] = None if ranks is None else [ranks.complete, ranks.tokens, ranks.model_flops]
    (folder / f"{restart}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each worker told, by restart and rank."""
    folder = tmp_path_factory.mktemp("workers")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
        "--monitor-interval=0.1", __file__, str(folder),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("MFU_RUN")}
    env |= {"OMP_NUM_THREADS": "1", "MFU_GUARD": "raise"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["early", "ddp"])
def test_a_restart_keeps_the_run_and_raises_the_attempt(name: str, told: dict[str, Any]) -> None:
    """Both ranks and both attempts have one id, before there is a process group too."""
    assert sorted(told) == ["0-0", "0-1", "1-0", "1-1"]
    assert len({worker[name][0] for worker in told.values()}) == 1
    assert {who: worker[name][1:] for who, worker in told.items()} == {
        "0-0": [0, 0, 2],
        "0-1": [0, 1, 2],
        "1-0": [1, 0, 2],
        "1-1": [1, 1, 2],
    }
    assert told["0-0"]["early"][0] != told["0-0"]["ddp"][0]


def test_ranks_under_torchrun(told: dict[str, Any]) -> None:
    """Both count the same steps, each its own share, and both know what both have done: one timed step each.

    Forward, and backward for the weight alone: the input needs no gradient. What the first attempt posted is not in it.
    """
    share = 2 * 2 * 16 * 64 * 32
    for rank in ("1-0", "1-1"):
        assert told[rank]["flops"] == [share] * 4
        assert told[rank]["sources"] == ["measured", "measured", "measured", "cached"]
        assert told[rank]["ranks"] == [True, 2 * 4 * 16, 2 * share]


# --- who says it ------------------------------------------------------------------------------------------------------


def test_the_first_to_open_says_it() -> None:
    """Whoever that is: the others take its word, and wait for nobody."""
    shared = KeyStore(dist.HashStore(), outlives=False)
    assert agree(shared, "k", Attempt("a", 0), Moment(10), None) == Attempt("a", 0)
    assert agree(shared, "k", Attempt("b", 0), Moment(20), Moment(15)) == Attempt("a", 0)
    assert agree(shared, "other", Attempt("b", 2), Moment(20), Moment(15)) == Attempt("b", 2)


def test_words_of_dead_workers_count_one_attempt_more() -> None:
    """Three times two ranks in the store of one agent: torchrun counts the failure, not the node that joined."""
    shared = KeyStore(dist.HashStore(), outlives=True)

    def rank(name: str, restarts: int, started_ns: int, now_ns: int) -> Attempt:
        return agree(shared, "k", Attempt(name, restarts), Moment(now_ns), Moment(started_ns))

    assert [rank("a", 0, 10, 13), rank("b", 0, 11, 14)] == [("a", 0), ("a", 0)]
    # A node joins: the count stays, and the new node's begins at 0 as well.
    assert [rank("c", 0, 20, 23), rank("d", 0, 21, 24)] == [("a", 1), ("a", 1)]
    # A worker died before it had opened anything, and one after: two failures since.
    assert [rank("e", 2, 30, 33), rank("f", 0, 31, 34)] == [("a", 2), ("a", 2)]


def test_two_that_are_first_agree() -> None:
    """The second finds that the first has been there since it looked."""

    class Late:
        """A store in which somebody else of this attempt writes between two questions."""

        def __init__(self) -> None:
            self.store = dist.HashStore()
            self.between = [("", "old", 0, 5), ("old", "other", 1, 25)]

        def compare_set(self, key: str, expected: str, desired: str) -> bytes:
            if self.between:
                _, run_id, number, now_ns = self.between.pop(0)
                self.store.set(key, attempts._said(Attempt(run_id, number), Moment(now_ns)))
            return self.store.compare_set(key, expected, desired)

    shared = KeyStore(Late(), outlives=True)  # type: ignore[arg-type]
    assert agree(shared, "k", Attempt("mine", 0), Moment(26), Moment(20)) == Attempt("other", 1)


def test_a_clock_that_is_set_back_hides_no_attempt() -> None:
    """On one machine its own count says what came first; between two there is only the clock that they share."""
    shared = KeyStore(dist.HashStore(), outlives=True)
    assert agree(shared, "k", Attempt("a", 0), Moment(5_000, "here", 100), Moment(4_900, "here", 10)) == ("a", 0)
    # Restarted behind it, while the clock was set back by 4,000.
    assert agree(shared, "k", Attempt("b", 0), Moment(1_300, "here", 400), Moment(1_200, "here", 300)) == ("a", 1)
    assert agree(shared, "k", Attempt("c", 0), Moment(1_400, "there", 50), Moment(1_250, "there", 9)) == ("a", 1)
    assert agree(shared, "k", Attempt("d", 0), Moment(1_500, "there", 150), Moment(1_450, "there", 99)) == ("a", 2)


def test_this_process_knows_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before now, and after the machine; what the system does not tell is not known."""
    import time

    started, now = attempts._started(), attempts._now()
    assert started is not None
    assert started.is_before(now)
    assert 0 < time.time_ns() - started.unix_ns < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert started.boot == now.boot != ""
    assert 0 < started.since_boot_ns < now.since_boot_ns
    monkeypatch.setattr(attempts, "Path", lambda _path: Path("/nowhere"))
    assert attempts._started() is None
    assert attempts._now().boot == ""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(attempts, "_opened", {})


def test_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of a process is another one; torchrun's count stands in for an attempt that was not given."""
    assert attempt("mine", 4, "w", 1) == ("mine", 4)
    assert attempt("mine", 4, "w", 1) == ("mine.2", 4)
    assert attempt("yours", None, "w", 8) == ("yours", 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert attempt("theirs", None, "w", 1) == ("theirs", 2)
    assert attempt("theirs", 7, "w", 1) == ("theirs.2", 7)
    assert attempt(None, 7, "w", 1).number == 7


def test_ids_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A UUID of torchrun's is one run's, whatever its store has forgotten; what people write is not."""
    launch = str(uuid.uuid4())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    first, second, other = (attempt(None, None, name, 1).run_id for name in ("w", "w", "v"))
    assert len({first, second, other}) == 3
    monkeypatch.setattr(attempts, "_opened", {})
    assert attempt(None, None, "w", 1).run_id == first
    for written in ("none", "100", ""):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", written)
        monkeypatch.setattr(attempts, "_opened", {})
        assert attempt(None, None, "w", 1).run_id not in (first, attempt(None, None, "w", 1).run_id)


def test_a_store_that_does_not_answer_costs_the_shared_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No agent listens there: the run goes on under an id of its own, and says what to do."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(attempts, "key_store", lambda: (_ for _ in ()).throw(RuntimeError("gone")))
    assert uuid.UUID(attempt(None, None, "w", 8).run_id)
    assert "set MFU_RUN_ID to join ranks and restarts" in caplog.text


def test_ranks_without_a_store_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Launched by something that sets RANK and WORLD_SIZE, before there is a process group."""
    assert attempt(None, None, "w", 8).run_id != attempt(None, None, "w", 8).run_id
    assert "open the monitor after init_process_group, or set MFU_RUN_ID" in caplog.text


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group, the agent's; without either, nowhere."""
    assert key_store({}) is None
    assert key_store({"TORCHELASTIC_USE_AGENT_STORE": "True"}) is None
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
    }
    found = key_store(env)
    assert found is not None
    assert found.outlives
    found.store.set("a", "1")
    assert server.get("a") == b"1"
    assert key_store(env | {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    be_a_worker(Path(sys.argv[1]))
