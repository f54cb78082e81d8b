"""What a process with telemetry in it must survive, as cases that any telemetry can be put through.

A case is a program, run in an interpreter of its own against a collector on loopback, and a verdict over what arrived,
what was said and how the process ended. `SUBJECTS` are the preludes: mfu_sdk's own and plain OpenTelemetry's, each with
`step(index)`, `FLOP` to a step, and `end()`. `test_conformance.py` runs the cases that no other test has for mfu_sdk;
`benchmarks/conformance.py` runs all of them for both.
"""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from .conftest import Collector, attributes_of, make_certificate

HERE = Path(__file__).parent
FLOP, LARGE_FLOP = 10**12, 3 * 10**18
"""FLOPs of a step; four of the large ones are beyond 2^63."""
SPARE_S = 0.5
"""What the end of a process may take besides: the machine does other things too."""

MFU = """
    import atexit, os, random, signal, sys, threading, time
    sys.path.insert(0, sys.argv[1])
    from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
    from mfu_sdk.export import worker
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.settings import Settings
    worker.EXIT_S = float(os.environ.get("EXIT_S", worker.EXIT_S))
    FLOP = 10**12
    telemetry = Telemetry.open(IDENTITY, Settings(spans="all"))
    telemetry.on_termination(lambda: telemetry.close(SUMMARY))
    def step(index):
        telemetry.step(make_step(index, model_flops=FLOP, start_unix_ns=EPOCH_NS + index))
    def end():
        telemetry.close(SUMMARY)
    def flush():
        telemetry.flush(120.0)
"""

OPENTELEMETRY = """
    import atexit, os, random, signal, sys, threading, time
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    FLOP = 10**12
    tracing = TracerProvider(resource=Resource.create())
    tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    metering = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=Resource.create())
    tracer = tracing.get_tracer("plain")
    counter = metering.get_meter("plain").create_counter("mfu.model.flop")
    def step(index):
        span = tracer.start_span("mfu.step", attributes={"mfu.step.index": index, "mfu.model.flop": float(FLOP)})
        span.end()
        counter.add(FLOP)
    def end():
        pass
    def flush():
        tracing.force_flush()
        metering.force_flush()
"""

SUBJECTS: Mapping[str, str] = {"mfu_sdk": MFU, "opentelemetry": OPENTELEMETRY}


@dataclass(frozen=True)
class Outcome:
    """How a process ended, and what its collector has."""

    collector: Collector
    out: str
    errors: str
    status: int
    wall_s: float
    recorders: Path

    @property
    def steps(self) -> int:
        """Different step spans that arrived."""
        return len(self.collector.spans("mfu.step"))

    @property
    def flops(self) -> float:
        """Σ of the counter over processes, as a provider adds it up: the last point of each instance."""
        last: dict[object, float] = {}
        for body in self.collector.bodies("/v1/metrics"):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                instance = attributes_of(resource.resource.attributes).get("service.instance.id")
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == "mfu.model.flop":
                            last[instance] = sum(
                                point.as_double or float(point.as_int) for point in metric.sum.data_points
                            )
        return sum(last.values())

    @property
    def left_s(self) -> float:
        """Seconds from the last exit handler registered, which is the first to run, to the first one, the last."""
        return float(self.out.split()[-1]) if self.out.split() else float("inf")


@dataclass(frozen=True)
class Case:
    """`body` runs after the prelude, `prepare` readies the collector, `verdict` tells whether it held, and a figure."""

    name: str
    point: str
    body: str
    verdict: Callable[[Outcome], tuple[bool, str]]
    prepare: Callable[[Collector], None] = lambda collector: None
    env: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    replays: bool = False
    in_suite: bool = True


def run(case: Case, subject: str, *, timeout_s: float = 120.0, **sizes: int) -> tuple[bool, str]:
    """Put `subject` through `case`: whether it held, and the figure that shows it."""
    collector = Collector()
    try:
        case.prepare(collector)
        with tempfile.TemporaryDirectory() as recorders:
            env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MFU_"))}
            env |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "XDG_STATE_HOME": recorders,
                **{name: value.format(url=collector.url) for name, value in case.env.items()},
                **{name.upper(): str(size) for name, size in sizes.items()},
            }
            program = "\n".join(textwrap.dedent(part) for part in (case.before, SUBJECTS[subject], case.body))
            script = Path(recorders) / "program.py"
            script.write_text(program)
            began = time.monotonic()
            try:
                done = subprocess.run(
                    [sys.executable, script, HERE],
                    capture_output=True,
                    text=True,
                    timeout=timeout_s,
                    check=False,
                    env=env,
                )
            except subprocess.TimeoutExpired:
                return False, f"did not end within {timeout_s:g} s"
            wall_s = time.monotonic() - began
            left = Path(recorders) / "mfu_sdk"
            if case.replays and left.is_dir():
                collector.let_go()
                collector.status = 200
                for path in left.glob("*.mfurec"):
                    subprocess.run(
                        [sys.executable, "-m", "mfu_sdk.cli", "replay", path, "--otlp", collector.url],
                        check=True, capture_output=True, timeout=300, env=env,
                    )  # fmt: skip
            return case.verdict(Outcome(collector, done.stdout, done.stderr, done.returncode, wall_s, left))
    finally:
        collector.stop()


# --- verdicts ------------------------------------------------------------------------------------------------------


def delivered(steps: int, *, status: int = 0, errors: bool = False) -> Callable[[Outcome], tuple[bool, str]]:
    """Every step arrived once, the counter says the same, and the process ended as it should."""

    def verdict(found: Outcome) -> tuple[bool, str]:
        whole = found.steps == steps and found.status == status and (errors or "Traceback" not in found.errors)
        return whole, f"{found.steps} of {steps} steps, exit status {found.status}"

    return verdict


def counted(steps: int, flop: int = FLOP) -> Callable[[Outcome], tuple[bool, str]]:
    """The counter's sum over all processes is what was done, no more and no less."""

    def verdict(found: Outcome) -> tuple[bool, str]:
        ratio = found.flops / (steps * flop)
        return abs(ratio - 1) < 1e-9 and found.status == 0, f"{ratio:.2f} × the FLOPs, exit status {found.status}"

    return verdict


def leaves_in_time(found: Outcome) -> tuple[bool, str]:
    """The end of the process took two seconds at most, and `SPARE_S` for a busy machine."""
    return found.left_s <= 2 + SPARE_S and found.status == 0, f"exit {found.left_s:.1f} s, status {found.status}"


def printed(found: Outcome) -> tuple[bool, str]:
    """The program itself found that it holds."""
    lines = found.out.strip().splitlines()
    return found.status == 0 and lines[-1:] == ["holds"], (
        lines[-1:] or found.errors.strip().splitlines()[-1:] or [""]
    )[0]


# --- cases ---------------------------------------------------------------------------------------------------------

LEAVING = """
    leaving = []
    import atexit, time
    atexit.register(lambda: leaving and print(time.monotonic() - leaving[0]))
"""
TEN = """
    for index in range(10):
        step(index)
"""
LEAVE = """
    end()
    atexit.register(lambda: leaving.append(time.monotonic()))
"""
LOADER = """
    import torch
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 4 * {workers}
        def __getitem__(self, index):
            time.sleep(0.02)
            return index
    if __name__ == "__main__":
        steps = 0
        for epoch in range({epochs}):
            loader = torch.utils.data.DataLoader(
                Data(), num_workers={workers}, multiprocessing_context="{method}"
            )
            for batch in loader:
                if steps < 12:
                    step(steps)
                    steps += 1
        assert steps == 12
        end()
        flush()
"""


def _loader(method: str, workers: str, epochs: str) -> str:
    sizes = {"WORKERS": 'int(os.environ["WORKERS"])', "EPOCHS": 'int(os.environ["EPOCHS"])'}
    return LOADER.format(method=method, workers=sizes.get(workers, workers), epochs=sizes.get(epochs, epochs))


def _hang(collector: Collector) -> None:
    collector.hung = True


def _answer(*script: tuple[int, str | None]) -> Callable[[Collector], None]:
    def prepare(collector: Collector) -> None:
        collector.script = list(script)

    return prepare


def _always(status: int) -> Callable[[Collector], None]:
    def prepare(collector: Collector) -> None:
        collector.status = status

    return prepare


def _distrusted(collector: Collector) -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "loopback.pem", Path(folder) / "key.pem"
        make_certificate(certificate, key)
        collector.speak_tls(certificate, key)


SHORT_INTERVAL = {"OTEL_METRIC_EXPORT_INTERVAL": "100"}
CASES: tuple[Case, ...] = (
    Case("forked data loaders", "1", _loader("fork", "WORKERS", "EPOCHS"), counted(12), env=SHORT_INTERVAL),
    Case("data loaders by forkserver", "1", _loader("forkserver", "2", "2"), counted(12), env=SHORT_INTERVAL,
         in_suite=False),
    Case("spawned data loaders", "1", _loader("spawn", "2", "2"), counted(12), env=SHORT_INTERVAL, in_suite=False),
    Case("a collector that accepts and never answers", "2", TEN + LEAVE, leaves_in_time, _hang, before=LEAVING,
         in_suite=False),
    Case("a collector that answers 503", "2", TEN + LEAVE, leaves_in_time, _always(503), before=LEAVING,
         in_suite=False),
    Case("nobody listens", "2", TEN + LEAVE, leaves_in_time, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
         before=LEAVING, in_suite=False),
    Case("401", "2", TEN + LEAVE, leaves_in_time, _always(401), before=LEAVING),
    Case("413", "2", TEN + LEAVE, leaves_in_time, _always(413), before=LEAVING),
    Case("429 with Retry-After", "2", TEN + "    end()\n    flush()\n", delivered(10), _answer(*[(429, "1")] * 2)),
    Case("a certificate that does not fit", "2", TEN + LEAVE, leaves_in_time, _distrusted, before=LEAVING,
         in_suite=False),
    Case("SIGTERM", "3", TEN + "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(20)\n",
         delivered(10, status=-signal.SIGTERM), in_suite=False),
    Case("SIGKILL", "4", TEN + "    os.kill(os.getpid(), signal.SIGKILL)\n", delivered(10, status=-signal.SIGKILL),
         replays=True, in_suite=False),
    Case("os._exit", "4", TEN + "    os._exit(3)\n", delivered(10, status=3), replays=True, in_suite=False),
    Case("the user's random numbers", "5", """
        random.seed(1)
        expected = [random.Random(1).random()]
        for index in range(10):
            step(index)
        flush()
        print("holds" if random.random() == expected[0] else "the user's stream has moved")
    """, printed, in_suite=False),
    Case("more than 2^63 FLOPs", "6", f"    FLOP = {LARGE_FLOP}\n" + TEN + "    end()\n    flush()\n",
         counted(10, LARGE_FLOP), in_suite=False),
    Case("the user's exception", "7", TEN + "    raise LookupError('mine')\n", delivered(10, status=1, errors=True),
         in_suite=False),
    Case("a patched clock", "3", """
        time.time = time.monotonic = lambda: 12.0
        time.time_ns = time.monotonic_ns = lambda: 12 * 10**9
        for index in range(10):
            step(index)
        end()
    """, delivered(10)),
    Case("the end of the interpreter in the middle of an export", "2", """
        for index in range(2000):
            step(index)
        end()
    """, delivered(2000)),
    Case("a million steps while nobody answers", "2", """
        import resource
        def peak_mib():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for index in range(100_000):
            step(index)
        before = peak_mib()
        for index in range(100_000, 1_000_000):
            step(index)
        grown = peak_mib() - before
        end()
        print("holds" if grown < 32 else f"{grown:.0f} MiB more")
    """, printed, _hang, in_suite=False),
    Case("a thread that records until the end", "2", """
        def work():
            for index in range(10, 10**9):
                step(index)
                if index % 50 == 0:
                    time.sleep(0.001)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
    """, lambda found: (found.status == 0 and "Traceback" not in found.errors and "Fatal" not in found.errors,
                        f"exit status {found.status}"), before=LEAVING),
)  # fmt: skip
