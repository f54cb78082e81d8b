"""The price of telling of a step, counted: calls of Python, and memory over many steps.

What it takes in time is measured, beside other tools, by benchmarks/telemetry.py.
"""

import gc
import itertools
import sys
from pathlib import Path

import pytest

import mfu_sdk
from mfu_sdk.export.destination import Destination
from mfu_sdk.export.otlp import Outcome, Sender
from mfu_sdk.export.outbox import MAX_BYTES
from mfu_sdk.export.pipeline import Exports, Pipeline
from mfu_sdk.export.telemetry import Lane, Telemetry
from mfu_sdk.export.worker import QUEUE_ITEMS, Worker
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.work import Work
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, make_step

PACKAGE = str(Path(mfu_sdk.__file__).parent)
NOWHERE = Destination("http://127.0.0.1:9")
RATE = Rate(100.0, 90.0, 110.0, "calibrated", 0.0)
CALLS = {"windows": 16, "auto": 21, "all": 32}


def calls_of(work):
    """How many functions of ours `work` calls in this thread."""
    found = 0

    def profile(frame, event, _argument):
        nonlocal found
        found += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def pipeline(identity, spans):
    exports = Exports(NOWHERE, NOWHERE)
    return Pipeline(identity, Settings(spans=spans), exports, unix_ns=lambda: EPOCH_NS, monotonic_s=lambda: 0.0)


def test_caller(identity):
    """The thread that trains makes two calls for all steps that it hands over at once, and looks at none of them."""
    worker = Worker("price", None)
    telemetry = Telemetry((Lane(None, worker),), lambda: EPOCH_NS)
    # A thread that takes nothing: what is queued stays there to be counted.
    worker._thread = object()
    steps = [lambda: pytest.fail("built by the caller")] * 7
    assert calls_of(lambda: telemetry.add_steps(steps, None)) == 2
    assert len(worker._queue) == 7
    for _ in range(QUEUE_ITEMS // 7 + 1):
        telemetry.add_steps(steps, None)
    telemetry.step(None)
    lost = 7 * (QUEUE_ITEMS // 7 + 2) + 1 - QUEUE_ITEMS
    assert (len(worker._queue), worker.overflowed) == (QUEUE_ITEMS, lost)


@pytest.mark.parametrize("spans", CALLS)
def test_export_thread(identity, spans):
    """Calls for each step on the export thread: ten steps a second, in the middle of a window."""
    consumer = pipeline(identity, spans)
    steps = [make_step(index, start_unix_ns=EPOCH_NS + index * 10**8, duration_s=0.1) for index in range(200)]
    for step in steps[:100]:
        consumer.consume(step)

    def rest():
        for step in steps[100:]:
            consumer.consume(step)

    assert calls_of(rest) / 100 <= CALLS[spans]


def test_many_steps(identity, monkeypatch):
    """Twenty thousand steps, seventy windows: books, windows, metrics and queues hold no more than after the first."""
    monkeypatch.setattr(Sender, "send", lambda self, body, timeout_s=None: Outcome("delivered"))
    now_ns = EPOCH_NS
    # Of the processor's time one long piece would be taken for many: nothing may be left out here.
    consumer = Pipeline(
        identity,
        Settings(spans="auto", overhead_budget=None),
        Exports(NOWHERE, NOWHERE),
        unix_ns=lambda: now_ns,
        monotonic_s=lambda: now_ns / 1e9,
    )

    class Direct:
        """The pipeline without its thread."""

        recorder = None

        def on_termination(self, close):
            pass

        def add_steps(self, records, rows):
            for record in records:
                consumer.consume(record)

        def overhead(self, seconds):
            pass

        def close(self, summary, *, error_type=None):
            pass

    ledger = Ledger(identity, Peaks("cpu", {}, {"float32": RATE}, RATE, None, {}), HostClock(), telemetry=Direct())
    demand = Demand(5, 6, {"float32": 5}, 0, 0, 10, 10.0, 0.05, "cached")

    def run(first, last):
        nonlocal now_ns
        for index in range(first, last):
            start_ns = index * 10**8
            now_ns = EPOCH_NS + start_ns
            ledger.add(Work(index, "train", start_ns, start_ns + 10**8, now_ns, demand, tokens=3))
            if index % 50 == 49:
                while consumer.deliver(None) is not None:
                    pass
        consumer.flush()
        consumer.deliver(None)
        gc.collect()
        return sys.getallocatedblocks()

    marks = [run(first, first + 5000) for first in range(0, 20_000, 5000)]
    # Threads and caches of others come and go by some hundred blocks; what grows does so in every part.
    assert min(later - earlier for earlier, later in itertools.pairwise(marks)) < 50
    summary = ledger.close()
    assert (summary.steps, summary.tokens) == (20_000, 60_000)
    assert consumer.dropped == {}
    assert consumer._traces._outbox._bytes < MAX_BYTES / 10
