"""SIGTERM: what was recorded arrives, the program's own handler runs, and the exit status is what it was."""

import signal
import subprocess
import sys
import textwrap

import pytest

from mfu_sdk.export import sigterm
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.export.worker import EXIT_S
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, attributes_of

PROGRAM = """
    import os, signal, sys, threading, time
    sys.path.insert(0, sys.argv[1])
    from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
    from mfu_sdk.export import sigterm
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.settings import Settings

    sigterm.EXIT_S = float(sys.argv[2])

    def opened():
        telemetry = Telemetry.open(IDENTITY, Settings(spans="all"), unix_ns=lambda: EPOCH_NS)
        telemetry.on_termination(lambda: telemetry.close(SUMMARY, error_type="SIGTERM"))
        for index in range(5):
            telemetry.step(make_step(index))
        return telemetry

    def term():
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def program(request, monkeypatch):
    """Runs PROGRAM and `body`: (standard output, standard error, exit status).

    Delivering may take `exit_s`: long enough for a machine however busy, but where that is what is tested.
    """

    def run(body, url, exit_s=60.0):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(body),
             str(request.path.parent), str(exit_s)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return done.stdout, done.stderr, done.returncode

    return run


def test_the_default(program, collector):
    """The run is closed and delivered, its span says why, and the process dies of the signal."""
    _, errors, status = program("telemetry = opened(); term(); time.sleep(200); print('alive')", collector.url)
    assert (errors, status) == ("", -signal.SIGTERM)
    assert len(collector.spans("mfu.step")) == 5
    (run,) = collector.spans("mfu.run")
    assert attributes_of(run.attributes)["error.type"] == "SIGTERM"
    assert collector.points()["mfu.step.count"][0][1] == 5.0


def test_a_monitored_loop(program, collector):
    """A user's loop: the steps until the signal are in the run's span and in the windows."""
    body = """
        import torch
        import mfu_sdk as mfu
        from mfu_sdk.records import Peaks, Rate
        peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
        model = torch.nn.Linear(64, 32, bias=False)
        with mfu.monitor(model, name="train", peaks=peaks) as run:
            for index in range(1000):
                with run.step(tokens=8):
                    model(torch.randn(8, 64))
                if index == 9:
                    term()
    """
    _, errors, status = program(body, collector.url)
    assert (errors, status) == ("", -signal.SIGTERM)
    (last,) = collector.spans("mfu.run")
    attributes = attributes_of(last.attributes)
    assert (attributes["mfu.run.step.count"], attributes["mfu.token.count"]) == (10, 80)
    windows = [attributes_of(span.attributes) for span in collector.spans("mfu.window")]
    assert sum(window["mfu.window.step.count"] for window in windows) == 10


@pytest.mark.parametrize("trouble", ["refused", "hung"])
def test_bounded(program, collector, refused, trouble):
    """Whatever the collector does, the process is gone after the exit budget; what is missing is in the recorder.

    That is 2 s, on a busy machine more, and less than the 10 s that one request may take.
    """
    collector.hung = True
    body = """
        telemetry = opened()
        threading.Thread(target=lambda: (time.sleep(9.0), print("late", flush=True)), daemon=True).start()
        term()
        time.sleep(200)
    """
    out, errors, status = program(body, refused if trouble == "refused" else collector.url, EXIT_S)
    assert (out, status) == ("", -signal.SIGTERM)
    assert "Traceback" not in errors


def test_a_handler_of_the_program(program, collector):
    """It runs after the delivery, the run goes on behind it, and the exit status is the program's."""
    body = """
        def handle(number, frame):
            print("handled", number, len(telemetry.recorder._joined), flush=True)
        signal.signal(signal.SIGTERM, handle)
        telemetry = opened()
        term()
        telemetry.step(make_step(5))
        term()
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
        assert signal.getsignal(signal.SIGTERM) is handle
        sys.exit(7)
    """
    out, errors, status = program(body, collector.url)
    # No window is open once the handler runs: all had gone out.
    assert (out, errors, status) == ("handled 15 0\n" * 2, "", 7)
    assert len(collector.spans("mfu.step")) == 6
    assert len(collector.spans("mfu.run")) == 1


def test_a_handler_that_exits(program, collector):
    """A handler that raises SystemExit ends the program in order, with its own status."""
    body = """
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
        telemetry = opened()
        term()
    """
    _, errors, status = program(body, collector.url)
    assert (errors, status) == ("", 3)
    assert len(collector.spans("mfu.step")) == 5


def test_a_handler_that_comes_later(program, collector):
    """It takes our place; where it passes the signal on to what was there before, that is us."""
    body = """
        telemetry = opened()
        ours = signal.getsignal(signal.SIGTERM)
        def handle(number, frame):
            print("mine", flush=True)
            ours(number, frame)
        signal.signal(signal.SIGTERM, handle)
        term()
        time.sleep(200)
    """
    out, errors, status = program(body, collector.url)
    assert (out, errors, status) == ("mine\n", "", -signal.SIGTERM)
    assert len(collector.spans("mfu.run")) == 1


def test_ignored(program, collector):
    """A program that ignores SIGTERM goes on ignoring it."""
    body = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        telemetry = opened()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        term()
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
    """
    _, errors, status = program(body, collector.url)
    assert (errors, status) == ("", 0)


def test_a_main_thread_that_hangs(program, collector):
    """A main thread that does not come back from C code, as in a collective that hangs, is terminated all the same."""
    body = """
        import ctypes
        telemetry = opened()
        threading.Timer(0.2, term).start()
        # A mutex that is locked already: the wait for it begins anew after every signal, and lets go of the
        # interpreter's lock. All zeros are PTHREAD_MUTEX_INITIALIZER.
        mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
    """
    _, errors, status = program(body, collector.url)
    assert (errors, status) == ("", -signal.SIGTERM)
    assert len(collector.spans("mfu.run")) == 1


def test_children(program, collector):
    """A forked child dies of its own SIGTERM at once and tells nothing; the parent's run goes on."""
    body = """
        telemetry = opened()
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            os.write(told, b"x")
            time.sleep(200)
        os.read(ready, 1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == signal.SIGTERM
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
    """
    _, errors, status = program(body, collector.url)
    assert (errors, status) == ("", 0)
    assert len(collector.spans("mfu.run")) == 1


def test_asyncio(program, collector):
    """A handler of an event loop that runs while we watch is called, and everything is as it was afterwards."""
    body = """
        import asyncio
        telemetry = opened()
        async def main():
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            term()
            await asyncio.wait_for(stop.wait(), 20)
        asyncio.run(main())
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
        assert signal.set_wakeup_fd(-1) == -1
        print("done")
    """
    out, errors, status = program(body, collector.url)
    assert (out, errors, status) == ("done\n", "", 0)


def test_undone(identity, collector, step, summary):
    """With the last run everything is as it was: the handler, the wake-up descriptor, the thread, the descriptors."""
    before = signal.getsignal(signal.SIGTERM)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    first, second = (Telemetry.open(identity, Settings(), env=env, unix_ns=lambda: EPOCH_NS) for _ in range(2))
    assert signal.getsignal(signal.SIGTERM) != before
    first.close(summary)
    assert signal.getsignal(signal.SIGTERM) != before
    second.close(summary)
    assert signal.getsignal(signal.SIGTERM) == before
    assert sigterm._watch is None
    assert signal.set_wakeup_fd(-1) == -1
    assert first.flush(120.0)
    assert second.flush(120.0)
