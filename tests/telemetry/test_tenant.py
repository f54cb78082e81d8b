"""A tenant's whole program, decorators and context managers and all, against a collector."""

import os
import subprocess
import sys
import textwrap

from .conftest import Collector, attributes_of

PEAKS = """
from mfu_sdk.export import worker
from mfu_sdk.records import Peaks, Rate
# On a machine that does other things too, two seconds may not be enough to be heard.
worker.EXIT_S = 60.0
peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
"""


def run(program: str, collector: Collector, **env: str) -> None:
    """Run a program to its end, with the collector as its receiver; it must succeed and say nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PEAKS + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} | env,
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_handler_that_nobody_closes(collector: Collector) -> None:
    """The end of the process closes the handler's run before the exporter stops: nothing is missing."""
    run(
        """
        import torch
        import mfu_sdk as mfu
        model = torch.nn.Linear(64, 32, bias=False)

        @mfu.inference(model, name="classify", tokens=len, peaks=peaks)
        def handle(rows):
            with torch.no_grad():
                return model(torch.randn(rows, 64))

        for _ in range(5):
            handle(8)
        """,
        collector,
    )
    (last,) = collector.spans("mfu.run")
    assert attributes_of(last.attributes)["mfu.run.step.count"] == 5
    windows = [attributes_of(span.attributes) for span in collector.spans("mfu.window")]
    assert sum(window["mfu.request.count"] for window in windows) == 5
    # Forward FLOPs of the four requests that were not counted while they ran; a window may end behind the one that was.
    assert sum(window.get("mfu.model.flop", 0.0) for window in windows) == 4 * 2 * 8 * 64 * 32
    assert sum(window["mfu.token.count"] for window in windows) == 5 * 8


def test_two_runs_under_one_run_id(collector: Collector) -> None:
    """MFU_RUN_ID names the process's first run; the second is told apart, so that no span id comes twice."""
    run(
        """
        import torch
        import mfu_sdk as mfu
        model = torch.nn.Linear(64, 32, bias=False)
        for _ in range(2):
            with mfu.monitor(model, name="train", peaks=peaks) as run:
                for _ in range(4):
                    with run.step():
                        model(torch.randn(8, 64))
        """,
        collector,
        MFU_RUN_ID="run-7",
        MFU_SPANS="all",
    )
    spans = [span for name in ("mfu.run", "mfu.window", "mfu.step") for span in collector.spans(name)]
    assert len(collector.spans("mfu.run")) == 2
    assert len({span.span_id for span in spans}) == len(spans)
