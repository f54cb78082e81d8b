"""The thread: bounded, patient with nobody, and gone when its run is."""

import itertools
import os
import threading

import pytest
from opentelemetry import context

from mfu_sdk.export import worker as worker_module
from mfu_sdk.export.worker import EXIT_S, PORTION_ITEMS, QUEUE_ITEMS, TURN_ITEMS, Worker
from mfu_sdk.testing import leaked_hooks


class Notebook:
    """A pipeline that writes down what it is given, waits where told to, and delivers when allowed to."""

    def __init__(self):
        self.items = []
        self.flushes = 0
        self.abandoned = self.unread = 0
        self.looks = []
        self.sendable = True
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.context = None

    def consume(self, item):
        self.context = context.get_value("suppress_instrumentation")
        self.entered.set()
        assert self.gate.wait(120)
        self.items.append(item)

    def flush(self):
        self.flushes += 1

    def deliver(self, deadline_s):
        self.looks.append(len(self.items))
        return None if self.sendable else 0.01

    def retire(self):
        pass

    def abandon(self, unread):
        self.abandoned += 1
        self.unread += unread


@pytest.fixture
def notebook():
    return Notebook()


@pytest.fixture
def worker(notebook):
    made = Worker("test", notebook)
    yield made
    notebook.gate.set()
    made.stop(120.0)


def test_lazy(worker):
    """No thread before the first item; an unused worker closes and flushes without one."""
    assert leaked_hooks() == []
    assert worker.flush(0.0)
    worker.put("a")
    assert [name for name in leaked_hooks() if "mfu-export-test" in name]


def test_daemon(worker, notebook):
    """The thread is a daemon, so nothing that it waits for can keep the process."""
    worker.put("a")
    assert worker.flush(120.0)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "mfu-export-test"] == [True]
    # Libraries that instrument HTTP ask this of the context before they make a span of a request.
    assert notebook.context is True


def test_processor_time(notebook):
    """The thread's own time is read at each look at what there is to send, by the clock that is given."""
    ticks = itertools.count(1)
    made = Worker("test", notebook, thread_s=lambda: next(ticks) / 8)
    assert made.cpu_s == 0.0
    made.put("a")
    assert made.stop(120.0)
    assert made.cpu_s == len(notebook.looks) / 8 > 0


def test_order(worker, notebook):
    """Items arrive in order, `close`'s last, and what comes after is not taken."""
    for item in range(100):
        worker.put(item)
    worker.close("end")
    worker.put("late")
    worker.close("again")
    assert worker.flush(120.0)
    assert notebook.items == [*range(100), "end"]
    assert leaked_hooks() == []


def test_flush_after_the_end(worker):
    """A run that was closed and delivered before anyone asked is delivered."""
    worker.put("a")
    worker.close("end")
    worker._thread.join(120)
    assert worker.flush(0.0)


def test_bounded(worker, notebook):
    """A thread that is held up costs a bounded queue; what does not fit is counted, and `close` always fits."""
    notebook.gate.clear()
    worker.put("held")
    assert notebook.entered.wait(120)
    for item in range(QUEUE_ITEMS + 5):
        worker.put(item)
    assert worker.overflowed == 5
    worker.close("end")
    notebook.gate.set()
    assert worker.flush(120.0)
    assert len(notebook.items) == 1 + QUEUE_ITEMS + 1
    assert notebook.items[-1] == "end"


def test_flush_says_no(worker, notebook):
    """A flush that is not delivered in its time says so, and asks for everything to be due once."""
    notebook.sendable = False
    worker.put("a")
    assert not worker.flush(0.05)
    assert notebook.flushes == 1
    notebook.sendable = True
    assert worker.flush(120.0)


def test_gives_up(worker, notebook):
    """`stop` delivers until its time is over, and then gives up what is left."""
    notebook.sendable = False
    worker.put("a")
    assert worker.stop(0.05) or worker.stop(120.0)
    assert notebook.abandoned == 1
    assert leaked_hooks() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_own_failure(worker, notebook, monkeypatch):
    """A failure of our own ends the thread, and nothing waits for it."""
    monkeypatch.setattr(notebook, "deliver", lambda deadline_s: 1 / 0)
    worker.put("a")
    assert not worker.flush(120.0)
    worker.put("b")
    assert worker.stop(120.0)


def test_bad_item(worker, notebook, monkeypatch, caplog):
    """One item that fails costs that item and one line in the log."""
    monkeypatch.setenv("MFU_GUARD", "log")
    take = notebook.consume
    monkeypatch.setattr(notebook, "consume", lambda item: take(item) if item != "bad" else 1 / 0)
    for item in ("a", "bad", "b"):
        worker.put(item)
    assert worker.flush(120.0)
    assert notebook.items == ["a", "b"]
    assert len([record for record in caplog.records if "ZeroDivisionError" in record.message]) <= 1


@pytest.mark.parametrize("started", [True, False])
def test_child(worker, notebook, started):
    """In a forked child every method returns at once, does nothing, and starts no thread."""
    if started:
        worker.put("parent's")
        assert worker.flush(120.0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report = "failed"
        try:
            worker.put("child's")
            delivered = worker.flush(5.0)
            worker.close("child's end")
            ended = worker.stop(5.0)
            report = f"{delivered} {ended} {threading.active_count()} {len(worker._queue)}"
        finally:
            os.write(writer, report.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert answer.read() == "True True 1 0"
    assert os.waitpid(child, 0)[1] == 0
    worker.put("after")
    assert worker.flush(120.0)
    assert notebook.items == (["parent's", "after"] if started else ["after"])


def test_turns(worker, notebook, monkeypatch):
    """With much to do the thread lets others have the interpreter's lock after every 32 items."""
    taken = []
    monkeypatch.setattr(worker_module, "give_way", lambda: taken.append(len(notebook.items)))
    notebook.gate.clear()
    worker.put(0)
    assert notebook.entered.wait(120)
    for item in range(1, 101):
        worker.put(item)
    notebook.gate.set()
    assert worker.flush(120.0)
    assert notebook.items == list(range(101))
    # The first was taken alone, before the rest came.
    assert taken == [TURN_ITEMS, 2 * TURN_ITEMS, 3 * TURN_ITEMS]


def test_one_bound_for_all_at_the_end(monkeypatch):
    """At the end of the process nine workers that never end have two seconds together, and all hear of it first."""
    now_s, heard, waited_s = 1000.0, [], []

    class Hung:
        alive = True

        def hurry(self, deadline_s):
            heard.append((deadline_s, len(waited_s)))

        def stop(self, timeout_s):
            nonlocal now_s
            waited_s.append(timeout_s)
            now_s += timeout_s

    monkeypatch.setattr(worker_module, "monotonic", lambda: now_s)
    monkeypatch.setattr(worker_module, "_LIVE", {Hung() for _ in range(9)})
    worker_module._at_exit()
    assert EXIT_S == 2.0
    assert heard == [(1002.0, 0)] * 9
    assert waited_s == [2.0, *[0.0] * 8]


def test_portions(worker, notebook):
    """A long queue is consumed in portions with a delivery after each, and a flush comes when all of it is."""
    notebook.gate.clear()
    worker.put("held")
    assert notebook.entered.wait(120)
    for item in range(2000):
        worker.put(item)
    asked = worker.ask()
    notebook.gate.set()
    assert worker.wait(asked, 20.0)
    assert max(after - before for before, after in itertools.pairwise([0, *notebook.looks])) <= PORTION_ITEMS
    assert notebook.flushes == 1
    assert len(notebook.items) == 2001


def test_the_end_comes_too_soon(worker, notebook):
    """What no portion has come to by the deadline is told as given up."""
    notebook.gate.clear()
    notebook.sendable = False
    worker.put("held")
    assert notebook.entered.wait(120)
    for item in range(2000):
        worker.put(item)
    worker.hurry(0.0)
    notebook.gate.set()
    worker._thread.join(120)
    assert notebook.abandoned == 1
    assert len(notebook.items) + notebook.unread == 2001
    assert notebook.unread >= 2000 - PORTION_ITEMS
