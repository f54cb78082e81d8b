"""The price of a step, counted: calls of Python and memory, which are the same on every machine.

What it takes in time is measured, beside other tools, by benchmarks/overhead.py. A budget is what the path needs today:
lower it with the path, and raise it with a reason.
"""

import dataclasses
import gc
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run import drifting, ledger
from mfu_sdk.settings import Settings

PACKAGE = str(Path(mfu.__file__).parent)
RATE = Rate(1e11, 1e11, 1e11, "user", 0.0)
PEAKS = Peaks("cpu", {}, {"float32": RATE}, RATE, None, {})
FIRST_STEADY, STEADY = 21, 5

MARKED_CALLS = 26
UNMARKED_CALLS = 30
RECORDED_CALLS = 36
DISABLED_CALLS = 4
HELD_BYTES = 1024


@pytest.fixture(autouse=True)
def _every_step_is_looked_at(monkeypatch):
    """The watch for drift looks at some of these short steps only, by chance: here at each, the most that it costs.

    And each is settled at its end, not several together.
    """
    monkeypatch.setattr(drifting, "SHORT_S", 0.0)
    monkeypatch.setattr(ledger, "SETTLE_EVERY_NS", 0)


def quiet(**options):
    """Steps 0, 1, 2, 4, 8, 16 … are counted while they run; operators of none are timed here."""
    return dataclasses.replace(Settings.from_env(), profile="off", **options)


class Loop:
    """A model and a step of its training."""

    def __init__(self, layers=1):
        self.model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.batch = torch.ones(2, 4)

    def work(self):
        self.model(self.batch).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def calls_of(step):
    """Functions of ours that one call of `step` calls in this thread, by file and name."""
    found = Counter()

    def profile(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found[Path(frame.f_code.co_filename).name, frame.f_code.co_name] += 1

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def steady(step):
    """The calls of a step once the shapes are known: the same in every one of them."""
    for _ in range(FIRST_STEADY):
        step()
    several = [calls_of(step) for _ in range(STEADY)]
    assert all(each == several[0] for each in several)
    return several[0]


def marked(run, loop):
    def step():
        with run.step(tokens=2):
            loop.work()

    return step


def test_marked_step(sink):
    """A step that the loop marks, under a monitor that exports."""
    loop, told = Loop(), []
    sink.add_steps = lambda records, _rows: told.extend(records)
    with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet()) as run:
        found = steady(marked(run, loop))
    assert found.total() <= MARKED_CALLS, found
    # The record is made where it is read.
    assert found["ledger.py", "_record"] == 0
    assert [make().index for make in told] == list(range(FIRST_STEADY + STEADY))


def test_unmarked_step(sink):
    """A step that nothing marks."""
    loop = Loop()
    sink.add_steps = lambda _records, _rows: None
    with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet()):
        found = steady(loop.work)
    assert found.total() <= UNMARKED_CALLS, found


def test_recorded_step(sink):
    """A step whose record the user wants at once."""
    loop, records = Loop(), []
    sink.add_steps = lambda records, _rows: sink.steps.extend(records)
    with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet(), on_step=records.append) as run:
        found = steady(marked(run, loop))
    assert found.total() <= RECORDED_CALLS, found
    assert len(records) == FIRST_STEADY + STEADY
    assert sink.steps == records


def test_size_of_the_model(sink):
    """A model of forty layers costs as many calls as one of one layer: nothing is asked of each of them."""
    found = []
    for layers in (1, 40):
        loop = Loop(layers)
        with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet()) as run:
            found.append(steady(marked(run, loop)))
    assert found[0] == found[1]


def test_disabled():
    """Under MFU_ENABLED=0 a step is made, entered and left, and that is all; nothing is held."""
    with mfu.monitor(settings=Settings(enabled=False)) as run:

        def step():
            with run.step(tokens=2):
                pass

        found = steady(step)
        before = sys.getallocatedblocks()
        for _ in range(1000):
            step()
        held = sys.getallocatedblocks() - before
    assert found.total() <= DISABLED_CALLS, found
    assert held < 10


def test_nothing_is_kept(sink):
    """Two thousand steps leave nothing behind: no list, table or cache grows with the number of steps.

    The watch for drift, which keeps 256 blocks of 16 steps and begins anew after an excursion, is held to that alone.
    """
    loop = Loop()
    sink.add_steps = lambda _records, _rows: None
    with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet(drift="off")) as run:
        step = marked(run, loop)
        for _ in range(1030):
            step()
        kept = []
        # To 1,990: the 2,000th is counted.
        for _ in range(3):
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(320):
                step()
            gc.collect()
            kept.append(sys.getallocatedblocks() - before)
    # What other code of the process keeps comes and goes, up to some fifty blocks; what grows by a block a step does so
    # in every part.
    assert min(kept) < 160, f"{kept} blocks in 320 steps each"


@pytest.mark.parametrize("layers", [1, 40])
def test_held_in_a_step(sink, layers):
    """At its fullest a step holds a few KiB of ours, however large the model is."""
    loop = Loop(layers)
    sink.add_steps = lambda _records, _rows: None
    with mfu.monitor(loop.model, peaks=PEAKS, settings=quiet()) as run:
        step = marked(run, loop)
        for _ in range(FIRST_STEADY):
            step()
        tracemalloc.start()
        try:
            step()
            own = [tracemalloc.Filter(inclusive=True, filename_pattern=f"{PACKAGE}/*")]
            with run.step(tokens=2):
                loop.work()
                inside = tracemalloc.take_snapshot().filter_traces(own)
        finally:
            tracemalloc.stop()
    assert sum(trace.size for trace in inside.traces) <= HELD_BYTES
