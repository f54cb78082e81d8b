"""What telemetry costs: the caller's part of a step, and the export thread's CPU time for a span, a window, a step.

Run: python benchmarks/export_cost.py. Prints JSON with the machine, the versions and the date. The collector is an
HTTP server in a process of its own, so its work is not in these numbers; times are the best of several rounds.
"""

import datetime as dt
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource

from mfu_sdk.export.metrics import Metrics
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.export.windows import MAX_STEPS, Windows, sums
from mfu_sdk.export.worker import QUEUE_ITEMS
from mfu_sdk.records import RunIdentity, StepRecord
from mfu_sdk.settings import Settings

ROUNDS = 7
IDENTITY = RunIdentity("bench", 0, "bench", None, 0, 0, 1, "cpu", None, None, time.time_ns())


def collect(pipe: Connection) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


def make(index: int) -> StepRecord:
    return StepRecord(
        index=index,
        phase="train",
        duration_s=0.2,
        model_flops=10**15,
        hardware_flops=10**15,
        peak_flops_per_s=9.895e14,
        peak_source="theory",
        mfu=0.41,
        hfu=0.45,
        mfu_by_dtype=0.42,
        expected_mfu=0.7,
        achievable_mfu=0.5,
        count_source="cached",
        coverage=0.999,
        tokens=8192,
        data_wait_s=0.01,
        comm_s=None,
        device_s=0.19,
        convention="exact",
        start_unix_ns=IDENTITY.start_unix_ns + index,
        peak_dtype="bfloat16",
        samples=8,
        attention_flops_exact=10**14,
        attention_flops_full=2 * 10**14,
        batch_running=8.0,
        arithmetic_intensity=120.0,
    )


def best(work: Callable[[], object], clock: Callable[[], int] = time.thread_time_ns) -> float:
    """The fewest nanoseconds of several rounds."""
    took = []
    for _ in range(ROUNDS):
        began = clock()
        work()
        took.append(clock() - began)
    return min(took)


def measure(metrics: Metrics, records: list[StepRecord]) -> None:
    for record in records:
        metrics.step(record)


def call_ns(url: str, records: list[StepRecord]) -> float:
    """Wall nanoseconds of one `step`, the export thread at work beside it; the queue never fills."""
    took = []
    for _ in range(ROUNDS):
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        telemetry = Telemetry.open(IDENTITY, Settings(spans="windows"))
        assert telemetry is not None
        telemetry.step(records[0])
        assert telemetry.flush(30)
        step = telemetry.step
        began = time.perf_counter_ns()
        for record in records:
            step(record)
        took.append(time.perf_counter_ns() - began)
        assert telemetry.flush(30)
        assert telemetry.stop(30)
        assert telemetry.dropped == {}
    return min(took) / len(records)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=collect, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    records = [make(index) for index in range(QUEUE_ITEMS // 2)]
    few = records[:32]
    spans = Spans(IDENTITY, Resource({"service.name": "bench"}))
    windows = Windows()
    window = [windows.add(record) for record in records[:MAX_STEPS]][-1][0]
    kept = Kept("all", 1.0)
    made = [spans.step(record, window, kept) for record in few]
    windowed = spans.window(window, sums(window.steps))
    metrics = Metrics(None, 0, delta=False)
    try:
        results = {
            "step_call_ns": call_ns(url, records),
            "step_metrics_us": best(lambda: measure(metrics, few)) / len(few) / 1e3,
            "step_window_us": best(lambda: [windows.add(record) for record in few]) / len(few) / 1e3,
            "span_build_us": best(lambda: [spans.step(record, window, kept) for record in few]) / len(few) / 1e3,
            "span_encode_us": best(lambda: encode_spans(made).SerializeToString()) / len(few) / 1e3,
            "span_bytes": len(encode_spans(made).SerializeToString()) / len(few),
            "window_1024_sums_and_build_us": best(lambda: spans.window(window, sums(window.steps))) / 1e3,
            "window_1024_encode_us": best(lambda: encode_spans([windowed]).SerializeToString()) / 1e3,
            "window_1024_bytes": len(encode_spans([windowed]).SerializeToString()),
        }
    finally:
        server.terminate()
        server.join()
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    packages = ("mfu-sdk", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-common", "protobuf")
    report = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.platform()},
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "rounds": ROUNDS,
        "results": {name: round(value, 3) for name, value in results.items()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
