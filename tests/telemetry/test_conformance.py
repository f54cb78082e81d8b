"""mfu_sdk through the cases of `conformance.py`, and through those that need a hand from outside of the process."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from mfu_sdk.export.destination import Destination
from mfu_sdk.export.pipeline import Exports, Pipeline
from mfu_sdk.settings import Settings

from . import conformance
from .conformance import CASES, HERE, MFU, Case, run
from .conftest import EPOCH_NS, Collector, attributes_of

pytestmark = pytest.mark.slow

HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("case", [case for case in CASES if case.in_suite], ids=lambda case: case.name)
def test_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case holds, on a machine however busy.

    So the end of a process may take a minute here; where that is the question, what is refused is not waited for.
    """
    monkeypatch.setattr(conformance, "SPARE_S", 20.0)
    held, figure = run(case, "mfu_sdk", workers=4, epochs=3, exit_s=60)
    assert held, figure


class Program:
    """A program under our hand: it does what a line on its standard input says, and answers with one."""

    def __init__(self, url: str, **env: str) -> None:
        body = """
            for line in sys.stdin:
                exec(line)
                print("done", flush=True)
        """
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(MFU) + textwrap.dedent(body), HERE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": url} | env,
        )  # fmt: skip

    def do(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait(120)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status


def test_a_collector_that_is_restarted(free_port: Callable[[], int]) -> None:
    """It is gone in the middle of the run and comes back: nothing is lost, and nothing counts twice."""
    collector = Collector(free_port())
    program = Program(collector.url)
    program.do("for index in range(50): step(index)")
    program.do("flush()")
    collector.stop()
    program.do("for index in range(50, 150): step(index)")
    # Tried, and refused.
    program.do("telemetry.flush(0.2)")
    again = Collector(collector.port)
    try:
        program.do("for index in range(150, 200): step(index)")
        program.do("end(); flush()")
        assert program.end() == 0
        before, after = collector.spans("mfu.step"), again.spans("mfu.step")
        assert len(before) == 50
        assert len({span.span_id for span in before + after}) == 200
        windows = {span.span_id: attributes_of(span.attributes) for span in collector.spans("mfu.window")}
        windows |= {span.span_id: attributes_of(span.attributes) for span in again.spans("mfu.window")}
        assert sum(window["mfu.window.step.count"] for window in windows.values()) == 200  # type: ignore[misc]
        assert again.points()["mfu.step.count"][0][1] == 200.0
    finally:
        again.stop()


def test_a_certificate_that_does_not_fit(collector: Collector, loopback: tuple[object, object]) -> None:
    """A collector that we do not trust gets nothing, the run goes on, and its end is bounded."""
    certificate, key = loopback
    collector.speak_tls(certificate, key)  # type: ignore[arg-type]
    program = Program(collector.url, PYTHONWARNINGS="error")
    program.do("for index in range(10): step(index)")
    program.do("telemetry.flush(0.5)")
    program.do("end()")
    assert program.end() == 0
    assert collector.requests == []


@pytest.mark.parametrize("jump_ns", [-HOUR_NS, HOUR_NS])
def test_the_wall_clock_jumps(collector: Collector, identity: object, step: object, jump_ns: int) -> None:
    """An hour ahead or back in the middle of a run: every step is in one window, each window has an id of its own."""
    clock = [EPOCH_NS]
    made = Pipeline(
        identity, Settings(spans="windows"), Exports(Destination(f"{collector.url}/v1/traces"), None),  # type: ignore[arg-type]
        unix_ns=lambda: clock[0], monotonic_s=lambda: 0.0,
    )  # fmt: skip
    for index in range(120):
        clock[0] += 10**9 if index != 60 else jump_ns
        made.consume(step(index, start_unix_ns=clock[0]))  # type: ignore[operator]
        made.deliver(None)
    made.flush()
    while made.deliver(None) is not None:
        pass
    windows = [attributes_of(span.attributes) for span in collector.spans("mfu.window")]
    assert sum(window["mfu.window.step.count"] for window in windows) == 120  # type: ignore[misc]
    assert sum(len(window["mfu.window.step.durations"]) for window in windows) == 120  # type: ignore[arg-type]
    assert made.dropped == {}


def test_many_threads_of_inference(collector: Collector) -> None:
    """64 threads that record at once lose nothing."""
    program = Program(collector.url)
    program.do(
        "threads = [threading.Thread(target=lambda n=n: [step(n * 10 + k) for k in range(10)]) for n in range(64)]; "
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    program.do("end(); flush()")
    assert program.end() == 0
    assert len(collector.spans("mfu.step")) == 640
    assert collector.points()["mfu.step.count"][0][1] == 640.0
