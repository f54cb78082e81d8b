"""What telling of a step costs, from a record to the collector's answer, beside others' spans of the same attributes.

Run: python benchmarks/telemetry.py [-o FILE] [--rounds N] [--memory-steps N]. It takes about two minutes. Peers that
are not installed are reported so (`overhead.py` says how to have them).

- all in: CPU time of the process for each step, all threads, until everything has arrived. The variants take turns in
  a random order, a round of 1,000 steps each, so that a change of the machine's speed meets all of them: medians, with
  the quartiles. Ours builds the record too; the others are handed the values.
- step_call: what of it the caller waits for.
- longest step: of a loop that lets go of the interpreter's lock all the time, while 512 spans are encoded and sent.
- pieces: what the export thread does without letting a waiting step have the interpreter's lock, in ms of CPU time.
- memory: records through a run's books and its pipeline under a stand-in clock, resident memory at every tenth.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext
from receiver import receiver

from mfu_sdk.export.encode import Envelope, Span, encode
from mfu_sdk.export.metrics import Metrics
from mfu_sdk.export.resource import SCOPE
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.export.windows import MAX_STEPS, Windows, sums
from mfu_sdk.export.worker import TURN_ITEMS
from mfu_sdk.peak.device import processor_name
from mfu_sdk.records import PHASES, Peaks, Rate, RunIdentity, StepRecord, step_record
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.work import Work
from mfu_sdk.settings import Settings

ROUNDS, STEPS, REPEATS = 25, 1000, 9
STALLS, STALLED_STEPS = 21, 300
MEMORY_STEPS, SAMPLES = 1_000_000, 10
STEP_S = 0.2
IDENTITY = RunIdentity("bench", 0, "bench", None, 0, 0, 1, "cpu", None, None, time.time_ns())
PACKAGES = ("mfu-sdk", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "protobuf", "logfire")


def make(index: int) -> StepRecord:
    """A step with all that a training step tells."""
    return step_record(
        index=index,
        phase="train",
        duration_s=STEP_S + index % 64 * 1e-4,
        model_flops=10**14,
        hardware_flops=10**14,
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
        start_unix_ns=IDENTITY.start_unix_ns + index * round(STEP_S * 1e9),
        peak_dtype="bfloat16",
        samples=8,
        attention_flops_exact=10**13,
        attention_flops_full=2 * 10**13,
        batch_running=8.0,
        arithmetic_intensity=120.0,
    )


def one_span() -> Span:
    """The span that a step becomes."""
    record = make(1)
    window, _ = Windows().add(record)
    return Spans(IDENTITY).step(record, window, Kept("all", 1.0))


# --- all in --------------------------------------------------------------------------------------------------------


class Ours:
    """Records through `Telemetry`, as a run hands them over: to be built on the export thread."""

    def __init__(self, spans: str) -> None:
        # No budget that would leave spans out; what the flight recorder takes is told by overhead.py and recorder.py.
        settings = Settings(spans=spans, overhead_budget=None, recorder="off")  # type: ignore[arg-type]  # a literal
        found = Telemetry.open(IDENTITY, settings)
        assert found is not None
        self._telemetry = found
        self._next = 0

    def round(self, steps: int) -> None:
        for index in range(self._next, self._next + steps):
            self._telemetry.step(partial(make, index))
        self._next += steps
        assert self._telemetry.flush(30.0), self._telemetry.dropped

    def send(self) -> None:
        """Have 512 spans made and sent meanwhile."""
        for index in range(self._next, self._next + 512):
            self._telemetry.step(partial(make, index))
        self._next += 512
        self._telemetry._workers[0]._wake.set()

    def settle(self) -> None:
        assert self._telemetry.flush(30.0), self._telemetry.dropped

    def close(self) -> None:
        assert self._telemetry.stop(30.0)


class Stock:
    """The same attributes on spans of the SDK, its batch processor and its exporter."""

    def __init__(self) -> None:
        self._attributes = dict(one_span().attributes)
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("bench")

    def round(self, steps: int) -> None:
        for index in range(steps):
            self._attributes["mfu.step.index"] = index
            self._tracer.start_span("step", attributes=self._attributes).end()
        self.settle()

    def send(self) -> None:
        """Have 512 spans sent meanwhile: a batch, which the processor sends as soon as it is full."""
        for _ in range(512):
            self._tracer.start_span("step", attributes=self._attributes).end()

    def settle(self) -> None:
        assert self._provider.force_flush(30_000)

    def close(self) -> None:
        self._provider.shutdown()


class Logfire:
    """The same attributes on Logfire's spans, with the SDK's batch processor and exporter."""

    def __init__(self) -> None:
        import logfire

        self._attributes = dict(one_span().attributes)
        self._logfire = logfire
        processors = [BatchSpanProcessor(OTLPSpanExporter())]
        # It reads the code that calls it to name arguments; of a step there is nothing to name.
        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=processors, inspect_arguments=False
        )

    def round(self, steps: int) -> None:
        for index in range(steps):
            self._attributes["mfu.step.index"] = index
            with self._logfire.span("step") as span:
                span.set_attributes(self._attributes)
        assert self._logfire.force_flush(30_000)

    def close(self) -> None:
        self._logfire.shutdown()


VARIANTS: dict[str, Callable[[], Any]] = {
    "mfu_sdk, MFU_SPANS=all": lambda: Ours("all"),
    "mfu_sdk, MFU_SPANS=auto": lambda: Ours("auto"),
    "mfu_sdk, MFU_SPANS=windows": lambda: Ours("windows"),
    "OpenTelemetry": Stock,
    "Logfire": Logfire,
}


def all_in(rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Microseconds a step of each variant; and why there are none of some."""
    variants: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, variant in VARIANTS.items():
        try:
            os.environ["OTEL_SERVICE_NAME"] = name
            variants[name] = variant()
            variants[name].round(STEPS)
        except ImportError as error:
            absent[name] = f"{type(error).__name__}: {error}"
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            began = time.process_time()
            variants[name].round(STEPS)
            times[name].append((time.process_time() - began) / STEPS * 1e6)
    for variant in variants.values():
        variant.close()
    return {name: _spread(values) for name, values in times.items()}, absent


def _spread(values: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median_us": round(median, 2), "quartiles_us": [round(low, 2), round(high, 2)], "rounds": len(values)}


# --- pieces --------------------------------------------------------------------------------------------------------


def best_ms(work: Callable[[], object]) -> float:
    """The least thread time of several, in ms."""
    took = []
    for _ in range(REPEATS):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return round(min(took) * 1e3, 4)


def longest_piece_ms(work: Callable[[Callable[[], None]], object]) -> float:
    """Of work that breathes in between: thread time from one breath to the next, the longest; the least of several."""
    longest = []
    for _ in range(REPEATS):
        times = [time.thread_time()]
        work(lambda times=times: times.append(time.thread_time()))  # type: ignore[misc]  # a default binds the list
        times.append(time.thread_time())
        longest.append(max(later - sooner for sooner, later in pairwise(times)))
    return round(min(longest) * 1e3, 4)


def pieces() -> dict[str, float]:
    """What is done in one go: the step call and one span in µs, pieces of the export thread in ms."""
    spans, windows = Spans(IDENTITY), Windows()
    records = [make(index) for index in range(MAX_STEPS)]
    shared = windows.add(records[0])[0]
    shared.steps[:] = records
    kept = Kept("all", 1.0)
    made = [spans.step(record, shared, kept) for record in records[:TURN_ITEMS]]
    total = sums(shared.steps)
    windowed = spans.window(shared, total)
    resource = Resource({"service.name": "bench"})
    stock = [_stock(span, resource) for span in made]
    envelope = Envelope(resource)
    metrics = Metrics(None, 0, delta=False)
    for phase in PHASES:
        metrics.step(dataclasses.replace(records[0], phase=phase))
    telemetry = Telemetry.open(IDENTITY, Settings(spans="windows", recorder="off"))
    assert telemetry is not None
    telemetry._workers[0]._thread = object()  # type: ignore[assignment]  # nothing is taken out of the queue meanwhile
    call_ms = best_ms(lambda: [telemetry.step(partial(make, 1)) for _ in range(800)])
    telemetry._workers[0]._queue.clear()
    telemetry._workers[0]._thread = None
    return {
        "step_call_us": round(call_ms * 1e3 / 800, 3),
        "record_us": round(best_ms(lambda: [make(index) for index in range(512)]) * 1e3 / 512, 3),
        "span_us": round(best_ms(lambda: [spans.step(each, shared, kept) for each in records[:512]]) * 1e3 / 512, 3),
        "encode_us": round(best_ms(lambda: [encode(span) for span in made]) * 1e3 / len(made), 3),
        "encode_by_opentelemetry_us": round(
            best_ms(lambda: encode_spans(stock).SerializeToString()) * 1e3 / len(made), 3
        ),
        "span_bytes": len(envelope.request([encode(span) for span in made])) / len(made),
        "window_bytes": len(envelope.request([encode(windowed)])),
        "metrics_of_all_phases_ms": best_ms(
            lambda: encode_metrics(metrics.snapshot(resource, 1, dropped={}, alive=True)).SerializeToString()
        ),
        "turn_of_steps_ms": best_ms(lambda: _turn(spans, windows, records)),
        "window_1024_sums_us": round(best_ms(lambda: sums(shared.steps)) * 1e3, 1),
        "window_1024_sums_longest_piece_ms": longest_piece_ms(lambda breathe: sums(shared.steps, breathe)),
        "window_1024_span_and_encode_ms": best_ms(lambda: encode(spans.window(shared, total))),
    }


def _turn(spans: Spans, windows: Windows, records: list[StepRecord]) -> None:
    for record in records[:TURN_ITEMS]:
        window, _ = windows.add(record)
        encode(spans.step(record, window, Kept("all", 1.0)))


def _stock(span: Span, resource: Resource) -> ReadableSpan:
    context = SpanContext(span.trace_id, span.span_id, is_remote=False)
    parent = SpanContext(span.trace_id, span.parent_id or 1, is_remote=False)
    return ReadableSpan(
        span.name,
        context=context,
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        start_time=span.start_unix_ns,
        end_time=span.end_unix_ns,
        instrumentation_scope=SCOPE,
    )


# --- how long a step waits -----------------------------------------------------------------------------------------


def stalls() -> dict[str, Any]:
    """The longest of the steps during which 512 spans are encoded and sent, in ms: median and worst of several times.

    A step lets go of the interpreter's lock forty times, as one of torch's operators does, and has to have it back.
    """
    block = bytes(16 * 1024)
    ours, stock = Ours("all"), Stock()
    ours.round(1)
    found: dict[str, list[float]] = {"nothing sent": [], "mfu_sdk": [], "OpenTelemetry": []}
    for _ in range(STALLS):
        for name, send in (("nothing sent", int), ("mfu_sdk", ours.send), ("OpenTelemetry", stock.send)):
            send()
            longest = 0.0
            for _ in range(STALLED_STEPS):
                began = time.perf_counter()
                for _ in range(40):
                    hashlib.sha256(block).digest()
                longest = max(longest, time.perf_counter() - began)
            found[name].append(longest * 1e3)
            ours.settle()
            stock.settle()
    ours.close()
    stock.close()
    return {
        name: {"median_ms": round(statistics.median(values), 2), "worst_ms": round(max(values), 2)}
        for name, values in found.items()
    }


# --- memory --------------------------------------------------------------------------------------------------------


def memory(steps: int) -> dict[str, Any]:
    """Steps of 0.1 s by a clock that is told, so that a million of them fill three thousand windows."""
    peaks = Peaks("cpu", {}, {"float32": Rate(1e11, 1e11, 1e11, "user", 0.0)}, None, None, {})
    telemetry = Telemetry.open(IDENTITY, Settings(spans="auto", recorder="off"))
    assert telemetry is not None
    ledger = Ledger(IDENTITY, peaks, HostClock(), telemetry=telemetry)
    demand = Demand(10**9, 10**9, {"float32": 10**9}, 0, 0, 10**8, 1e8, 0.05, "cached")
    step_ns = 100_000_000
    mib = []
    began = time.process_time()
    for index in range(steps):
        start_ns = index * step_ns
        start_unix_ns = IDENTITY.start_unix_ns + start_ns
        ledger.add(Work(index, "train", start_ns, start_ns + step_ns, start_unix_ns, demand, tokens=4))
        if index % 4096 == 0:
            # A run's steps come no faster than its export thread takes them; these would.
            assert telemetry.flush(60.0), telemetry.dropped
        if (index + 1) % (steps // SAMPLES) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            mib.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2))
    process_us = (time.process_time() - began) / steps * 1e6
    ledger.close()
    assert telemetry.flush(60.0)
    return {
        "steps": steps,
        "resident_mib": mib,
        "grown_after_the_first_tenth_mib": round(mib[-1] - mib[0], 2),
        "process_us_a_step": round(process_us, 2),
        "dropped": dict(telemetry.dropped),
    }


# --- the report ----------------------------------------------------------------------------------------------------


def bounds(found: dict[str, Any], parts: dict[str, float], grown_mib: float | None) -> dict[str, Any]:
    rows = {
        "an exported step span, at most 40 us all in": (found["mfu_sdk, MFU_SPANS=all"]["median_us"], 40.0),
        "no piece holds the lock for over 2 ms": (
            max(value for name, value in parts.items() if name.endswith("_ms")), 2.0,
        ),
    }  # fmt: skip
    if grown_mib is not None:
        rows["memory flat over the records, within 4 MiB"] = (grown_mib, 4.0)
    return {
        name: {"measured": measured, "bound": bound, "holds": measured <= bound}
        for name, (measured, bound) in rows.items()
    }


def installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--memory-steps", type=int, default=MEMORY_STEPS, help="0 leaves this part out")
    options = parser.parse_args()
    with receiver() as collector:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        parts = pieces()
        found, absent = all_in(options.rounds)
        waits = stalls()
        arrived = collector.spans()
        remembered = memory(options.memory_steps) if options.memory_steps else None
    report = {
        "benchmark": "telemetry",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}",
        "versions": installed(),
        "all_in": found,
        "absent": absent,
        "spans_that_arrived": arrived,
        "pieces": parts,
        "longest_step_while_512_spans_go": waits,
        "memory": remembered,
        "bounds": bounds(found, parts, None if remembered is None else remembered["grown_after_the_first_tenth_mib"]),
    }
    text = json.dumps(report, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
