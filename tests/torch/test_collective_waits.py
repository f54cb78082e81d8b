"""Waiting for collectives, timed in the thread and the steps that are watched, and nowhere else."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.distributed_c10d import Work

from mfu_sdk import testing
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.collective_waits import CollectiveWaits
from mfu_sdk.run.ddp_times import waits_unseen
from mfu_sdk.run.op_times import OpTimes

WAIT_S = 3.0


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this process have compiled keeps operators from being timed, and is not here."""
    monkeypatch.setattr("mfu_sdk.run.op_times._compiled_graphs", lambda: 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """A clock by which every `Work.wait` takes three seconds."""
    fake = testing.FakeClock()
    original = Work.wait

    def slow(self: Any, *args: Any) -> Any:
        fake.advance(WAIT_S)
        return original(self, *args)

    monkeypatch.setattr(Work, "wait", slow)
    return fake


def reduce() -> None:
    """One collective, which waits for itself."""
    dist.all_reduce(torch.ones(2))


def test_waits_are_summed_while_watched(clock: testing.FakeClock) -> None:
    """Two of four: one came before, one comes after, and what torch had there before is there again."""
    before = Work.wait
    waits = CollectiveWaits(HostClock(clock))
    reduce()
    waits.start()
    assert testing.leaked_hooks() == ["waiting for collectives watched"]
    reduce()
    work = dist.all_reduce(torch.ones(2), async_op=True)
    assert work is not None
    work.wait()
    waits.stop()
    waits.stop()
    reduce()
    assert (waits.calls, waits.seconds) == (2, 2 * WAIT_S)
    assert Work.wait is before
    waits.start()
    waits.stop()
    assert (waits.calls, waits.seconds) == (0, 0.0)


def test_other_threads_wait_for_themselves(clock: testing.FakeClock) -> None:
    """A checkpoint's thread is no part of the step; one that watches too has its own sum."""
    mine, theirs = CollectiveWaits(HostClock(clock)), CollectiveWaits(HostClock(clock))

    def watched() -> None:
        theirs.start()
        reduce()
        theirs.stop()

    mine.start()
    for target in (reduce, watched):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    reduce()
    mine.stop()
    assert (mine.calls, theirs.calls) == (1, 1)


def test_what_waiting_raises_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its time is counted."""

    def fails(self: Any, *args: Any) -> None:
        raise ValueError("the user's")

    monkeypatch.setattr(Work, "wait", fails)
    waits = CollectiveWaits(HostClock())
    waits.start()
    with pytest.raises(ValueError, match="the user's"):
        reduce()
    waits.stop()
    assert waits.calls == 1


def exchanged(clock: testing.FakeClock, *collectives: Any) -> float | None:
    times = OpTimes(HostClock(clock))
    times.start()
    for collective in collectives:
        collective()
    times.stop()
    return times.exchanged_s()


def test_what_a_step_exchanged(clock: testing.FakeClock) -> None:
    """Through c10d and as a function, whose wait is an operator; both count, and computing does not."""
    assert exchanged(clock, reduce, lambda: torch.ones(2).neg()) == WAIT_S
    assert exchanged(clock, lambda: functional.all_reduce(torch.ones(2), "sum", dist.group.WORLD).sum()) == 0.0
    assert exchanged(clock, lambda: torch.ones(2).neg()) is None


def test_what_nothing_was_seen_to_wait_for_is_unknown(clock: testing.FakeClock) -> None:
    """The bytes were awaited by other means, a future's: how long, nobody has seen."""

    def by_future() -> None:
        work = dist.all_reduce(torch.ones(2), async_op=True)
        assert work is not None
        work.get_future().wait()

    assert exchanged(clock, by_future) is None


def test_a_pipelines_waits_are_its_design(clock: testing.FakeClock) -> None:
    """A bubble is neither transfer nor a late rank."""
    times = OpTimes(HostClock(clock))
    times.start()
    reduce()
    times.stop()
    assert times.exchanged_s() == WAIT_S
    times._seconds[torch.ops.c10d.recv_.default] = 1.0
    assert times.exchanged_s() is None


def test_ddp_waits_unseen() -> None:
    """Its reducer is not Python, in whatever it is wrapped."""
    assert waits_unseen(nn.Sequential(nn.parallel.DistributedDataParallel(nn.Linear(2, 2))))
    assert not waits_unseen(nn.Linear(2, 2))
    assert not waits_unseen(None)
