"""The price of a step: what each way of watching a training loop adds to it, in one run.

Run: python benchmarks/overhead.py [-o FILE] [--rounds N] [--memory-steps N]. It takes five to ten minutes.
Peers that are not installed are reported so. To have them, beside the packages that are here, without another torch:

    pip install --target DIR --no-deps lightning pytorch-lightning lightning-utilities torchmetrics \
      logfire logfire-sdk executing opentelemetry-instrumentation wrapt \
      nv-one-logger-core nv-one-logger-training-telemetry nv-one-logger-otel StrEnum overrides toml \
      einops hjson msgpack ninja psutil py-cpuinfo
    DS_BUILD_OPS=0 pip install --target DIR --no-deps --no-build-isolation deepspeed
    PYTHONPATH=DIR python benchmarks/overhead.py

The loop is bound by its host: four small layers, SGD, one thread. The less a step computes, the more a fixed cost
shows. Each variant runs it in a process of its own, so that neither hooks nor threads of one are in another's way; the
processes take turns of some 150 ms in a new random order in each round, so that a change of the machine's speed meets
all of them. After every second round each delivers what it has to deliver. And the processes are started anew several
times: where one's code and data came to lie is worth tens of µs a step to it, for as long as it lives
(`by_generation_us`).

- main: CPU time of the thread that trains, over the steps of a turn but its first tenth, beyond that of the bare loop
  in the same round: median and quartiles over the rounds. One step in 1,000 is counted while it runs: its cost is in
  that of every second turn.
- cold: the same of a turn's first tenth, some 15 ms, which finds the processor's caches full of a dozen other
  processes' work. A loop that runs alone is never there; one that shares its cores with as many others always is.
- elsewhere: CPU time of all other threads from one delivery to the next, and of the delivery, a step: the same of
  those. Main and elsewhere together are the process's.
- A peer that measures FLOPs does so in every step; one that makes spans gives each 20 attributes, as ours have.
- The collector is `receiver.py`: it reads what it is sent, and counts the spans.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from receiver import receiver

from mfu_sdk.peak.device import processor_name

ROUNDS, DELIVER_EVERY, GENERATIONS = 60, 2, 4
STEPS, FEW_STEPS, WARM_UP, COLD = 500, 50, 1100, 10
BATCH, WIDTH, LAYERS = 4, 16, 4
MEMORY_STEPS, SAMPLES = 1_000_000, 10
PACKAGES = (
    "torch", "mfu-sdk", "opentelemetry-sdk", "lightning", "deepspeed", "logfire", "nv-one-logger-training-telemetry",
)  # fmt: skip

Block = Callable[[int], None]
Flush = Callable[[], object]
Work = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of watching: `watch` is a context that gives a block of steps and what flushes, `steps` a block's length.

    `collects`: whether it is told of a collector. `python`: the oldest that it runs with.
    """

    watch: Callable[[], "contextlib.AbstractContextManager[tuple[Block, Flush]]"]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    steps: int = STEPS
    collects: bool = True
    python: tuple[int, int] = (3, 11)


# --- the loop ------------------------------------------------------------------------------------------------------


def loop() -> tuple[Any, Work]:
    """A model and a step of its training."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(BATCH, WIDTH)

    def work() -> None:
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, work


def repeat(step: Work) -> Block:
    def block(steps: int) -> None:
        for _ in range(steps):
            step()

    return block


TEXTS = {f"mfu.text.{number}": "calibrated" for number in range(4)}
COUNTS = {f"mfu.count.{number}": number for number in range(2)}
NUMBERS = {f"mfu.number.{number}": number + 0.5 for number in range(13)}
NINETEEN = TEXTS | COUNTS | NUMBERS


def twenty(index: int) -> dict[str, Any]:
    """Attributes of one step: what ours has of each type, and next to nothing for putting them together."""
    return {**NINETEEN, "mfu.step.index": index}


# --- ours ----------------------------------------------------------------------------------------------------------


@contextmanager
def bare() -> Iterator[tuple[Block, Flush]]:
    _, work = loop()
    yield repeat(work), lambda: None


@contextmanager
def ours() -> Iterator[tuple[Block, Flush]]:
    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import opening
    from mfu_sdk.run.clock import HostClock

    # A peak that is given, so that none is measured first.
    rate = Rate(1e11, 1e11, 1e11, "user", 0.0)
    peaks = Peaks("cpu", {}, {"float32": rate}, Rate(1e10, 1e10, 1e10, "user", 0.0), None, {})
    model, work = loop()
    # Operators are timed for a share of the run's time, of which waiting for the others' turns is no part.
    idle_ns = 0
    began_waiting_ns = time.perf_counter_ns()
    opening.clock_for = lambda _device: HostClock(lambda: time.perf_counter_ns() - idle_ns)  # type: ignore[assignment]
    with mfu.monitor(model, peaks=peaks) as run:

        def block(steps: int) -> None:
            nonlocal idle_ns, began_waiting_ns
            idle_ns += time.perf_counter_ns() - began_waiting_ns
            for _ in range(steps):
                with run.step(tokens=BATCH):
                    work()
            began_waiting_ns = time.perf_counter_ns()

        def flush() -> None:
            telemetry = None if run._engine is None else run._engine.ledger.telemetry
            if telemetry is not None:
                assert telemetry.flush(30.0), telemetry.dropped

        yield block, flush


# --- peers ---------------------------------------------------------------------------------------------------------


@contextmanager
def opentelemetry() -> Iterator[tuple[Block, Flush]]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    _, work = loop()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("overhead")
    index = 0

    def step() -> None:
        nonlocal index
        index += 1
        with tracer.start_as_current_span("step") as span:
            work()
            span.set_attributes(twenty(index))

    yield repeat(step), provider.force_flush
    provider.shutdown()


@contextmanager
def flop_counter() -> Iterator[tuple[Block, Flush]]:
    from torch.utils.flop_counter import FlopCounterMode

    _, work = loop()

    def step() -> None:
        with FlopCounterMode(display=False) as counter:
            work()
        counter.get_total_flops()

    yield repeat(step), lambda: None


@contextmanager
def profiler() -> Iterator[tuple[Block, Flush]]:
    from torch.profiler import ProfilerActivity, profile

    _, work = loop()

    def block(steps: int) -> None:
        with profile(activities=[ProfilerActivity.CPU], with_flops=True):
            for _ in range(steps):
                work()

    yield block, lambda: None


@contextmanager
def lightning() -> Iterator[tuple[Block, Flush]]:
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.throughput import ThroughputMonitor

    _, work = loop()
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    monitor = ThroughputMonitor(fabric)
    began, index = time.perf_counter(), 0

    def step() -> None:
        nonlocal index
        index += 1
        work()
        monitor.update(time=time.perf_counter() - began, batches=index, samples=index * BATCH, flops=100_000)
        monitor.compute_and_log(step=index)

    yield repeat(step), lambda: None


@contextmanager
def deepspeed() -> Iterator[tuple[Block, Flush]]:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    model, work = loop()
    counter = FlopsProfiler(model)

    def step() -> None:
        counter.start_profile()
        work()
        counter.get_total_flops()
        counter.end_profile()

    yield repeat(step), lambda: None


@contextmanager
def one_logger() -> Iterator[tuple[Block, Flush]]:
    from nv_one_logger.api.config import OneLoggerConfig
    from nv_one_logger.otel.exporter.otel_exporter import OTelExporter
    from nv_one_logger.training_telemetry.api import callbacks
    from nv_one_logger.training_telemetry.api.config import TrainingTelemetryConfig
    from nv_one_logger.training_telemetry.api.training_telemetry_provider import TrainingTelemetryProvider
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    _, work = loop()
    exporter = OTelExporter(OTLPSpanExporter())
    config = OneLoggerConfig(application_name="overhead", world_size_or_fn=1, session_tag_or_fn="overhead")
    provider = TrainingTelemetryProvider.instance()
    provider.with_base_config(config).with_exporter(exporter).configure_provider()
    callbacks.on_app_start()
    provider.set_training_telemetry_config(
        TrainingTelemetryConfig(perf_tag_or_fn="overhead", global_batch_size_or_fn=BATCH, flops_per_sample_or_fn=25_000)
    )
    callbacks.on_train_start(train_iterations_start=0, train_iterations_target_or_fn=10**7)

    def step() -> None:
        callbacks.on_training_single_iteration_start()
        work()
        callbacks.on_training_single_iteration_end()

    yield repeat(step), exporter._processor.force_flush
    callbacks.on_train_end()
    callbacks.on_app_end()


@contextmanager
def logfire() -> Iterator[tuple[Block, Flush]]:
    import logfire
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    _, work = loop()
    processors = [BatchSpanProcessor(OTLPSpanExporter())]
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=processors)
    index = 0

    def step() -> None:
        nonlocal index
        index += 1
        with logfire.span("step") as span:
            work()
            span.set_attributes(twenty(index))

    yield repeat(step), logfire.force_flush
    logfire.shutdown()


@contextmanager
def lens() -> Iterator[tuple[Block, Flush]]:
    from nemo.lens import NemoLensConfig, SpanGroup, managed_span, setup_telemetry
    from opentelemetry import trace

    _, work = loop()
    os.environ.update(NEMO_LENS_ENABLED="1", NEMO_LENS_SPAN_GROUPS="all", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
    handle = setup_telemetry(NemoLensConfig.from_env(), 0, 1)
    provider: Any = trace.get_tracer_provider()
    index = 0

    def step() -> None:
        nonlocal index
        index += 1
        with managed_span(SpanGroup.STEP, "step", **twenty(index)):
            work()

    yield repeat(step), provider.force_flush
    handle.shutdown()


# Of steps as short as these half a per cent is less than telling of them takes, and we would leave spans out.
UNSHED = {"MFU_OVERHEAD_BUDGET": "off"}
VARIANTS = {
    "bare": Variant(bare, collects=False),
    "mfu_sdk, MFU_ENABLED=0": Variant(ours, {"MFU_ENABLED": "0"}, collects=False),
    "mfu_sdk, no collector": Variant(ours, collects=False),
    "mfu_sdk, MFU_SPANS=windows": Variant(ours, {"MFU_SPANS": "windows"} | UNSHED),
    "mfu_sdk, MFU_SPANS=auto": Variant(ours, {"MFU_SPANS": "auto"} | UNSHED),
    "mfu_sdk, MFU_SPANS=all": Variant(ours, {"MFU_SPANS": "all"} | UNSHED),
    "OpenTelemetry, a span with 20 attributes": Variant(opentelemetry),
    "Logfire, a span with 20 attributes": Variant(logfire),
    "nv-one-logger, an iteration": Variant(one_logger),
    "NeMo Lens, a span with 20 attributes": Variant(lens, python=(3, 13)),
    "Lightning ThroughputMonitor": Variant(lightning, collects=False),
    "torch FlopCounterMode": Variant(flop_counter, steps=FEW_STEPS, collects=False),
    "torch.profiler, with_flops": Variant(profiler, collects=False),
    "DeepSpeed flops profiler": Variant(deepspeed, steps=FEW_STEPS, collects=False),
}
OTEL, AUTO = "OpenTelemetry, a span with 20 attributes", "mfu_sdk, MFU_SPANS=auto"


# --- one process a variant -----------------------------------------------------------------------------------------


def watched(name: str, url: str, pipe: Connection) -> None:
    """Run blocks as they are asked for; the first answer is None, or why there will be none."""
    variant = VARIANTS[name]
    os.environ.update(variant.environment, OTEL_SERVICE_NAME=name)
    if variant.collects:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    with contextlib.ExitStack() as stack:
        # A flight recorder's file is none of the user's here.
        os.environ["MFU_RECORDER_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            if not name.startswith(("bare", "mfu_sdk")):
                # What peers print and warn of, with each span that they cannot encode, is theirs.
                for number in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
                warnings.simplefilter("ignore")
            block, flush = stack.enter_context(variant.watch())
            block(WARM_UP if variant.steps == STEPS else FEW_STEPS)
            flush()
        except Exception as error:
            if variant.watch in (bare, ours):
                raise
            # Whatever a peer raises is its result.
            pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
            return
        pipe.send(None)
        main_s = 0.0
        process_s = time.process_time()
        while (asked := pipe.recv()) is not None:
            if asked == "block":
                cold_steps = variant.steps // COLD
                began = time.thread_time()
                block(cold_steps)
                warm = time.thread_time()
                block(variant.steps - cold_steps)
                ended = time.thread_time()
                main_s += ended - began
                pipe.send(((warm - began) / cold_steps, (ended - warm) / (variant.steps - cold_steps)))
            else:
                flush()
                now_s = time.process_time()
                pipe.send((now_s - process_s - main_s) / (variant.steps * DELIVER_EVERY))
                main_s, process_s = 0.0, time.process_time()


@dataclasses.dataclass
class Times:
    """Of one variant, in seconds a step: `cold` and `main` of each round, `elsewhere` of each delivery."""

    cold: list[float] = dataclasses.field(default_factory=list)
    main: list[float] = dataclasses.field(default_factory=list)
    elsewhere: list[float] = dataclasses.field(default_factory=list)


def in_turns(rounds: int, url: str, chosen: list[str]) -> tuple[dict[str, Times], dict[str, str]]:
    """The times of each variant that was chosen, and why there are none of some."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    absent = {}
    for name in chosen:
        variant = VARIANTS[name]
        if sys.version_info < variant.python:
            absent[name] = "it needs Python {}.{}".format(*variant.python)
            continue
        ours, theirs = context.Pipe()
        process = context.Process(target=watched, args=(name, url, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        # One after the other: what starts beside it would be in the figures of whoever runs already.
        if (why := ours.recv()) is None:
            pipes[name] = ours
        else:
            absent[name] = why
    times = {name: Times() for name in pipes}
    for number in range(1, rounds + 1):
        order = random.sample(list(pipes), len(pipes))
        for name in order:
            pipes[name].send("block")
            cold_s, main_s = pipes[name].recv()
            times[name].cold.append(cold_s)
            times[name].main.append(main_s)
        for name in order if number % DELIVER_EVERY == 0 else ():
            pipes[name].send("deliver")
            times[name].elsewhere.append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join(60)
    return times, absent


def in_generations(
    number: int, rounds: int, url: str, chosen: list[str]
) -> tuple[list[dict[str, Times]], dict[str, str]]:
    """`in_turns` with so many processes of each variant, one after the other, which share the rounds."""
    each_rounds = max(DELIVER_EVERY, rounds // number // DELIVER_EVERY * DELIVER_EVERY)
    found, absent = [], {}
    for _ in range(number):
        times, missing = in_turns(each_rounds, url, [name for name in chosen if name not in absent])
        found.append(times)
        absent |= missing
    return found, absent


def together(generations: list[dict[str, Times]]) -> dict[str, Times]:
    """All rounds of the variants that every generation has."""
    names = [name for name in generations[0] if all(name in times for times in generations)]
    return {
        name: Times(
            *([s for times in generations for s in getattr(times[name], of)] for of in ("cold", "main", "elsewhere"))
        )
        for name in names
    }


def figures(generations: list[dict[str, Times]]) -> dict[str, Any]:
    times = together(generations)
    plain = times["bare"]
    found: dict[str, Any] = {}
    for name, of in times.items():
        main = [(value - bare) * 1e6 for value, bare in zip(of.main, plain.main, strict=True)]
        cold = [(value - bare) * 1e6 for value, bare in zip(of.cold, plain.cold, strict=True)]
        elsewhere = [(value - bare) * 1e6 for value, bare in zip(of.elsewhere, plain.elsewhere, strict=True)]
        found[name] = {
            "rounds": len(main),
            "steps_a_turn": VARIANTS[name].steps,
            "main_us": round(statistics.median(of.main) * 1e6, 2),
            "main_added_us": round(statistics.median(main), 2),
            "main_added_quartiles_us": _quartiles(main),
            "main_added_mean_us": round(statistics.fmean(main), 2),
            "by_generation_us": [
                round(statistics.median(map(float.__sub__, each[name].main, each["bare"].main)) * 1e6, 2)
                for each in generations
            ],
            "cold_added_us": round(statistics.median(cold), 2),
            "elsewhere_added_us": round(statistics.median(elsewhere), 2),
            "elsewhere_added_quartiles_us": _quartiles(elsewhere),
            "process_added_us": round(statistics.median(main) + statistics.median(elsewhere), 2),
        }
    return found


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, 2), round(high, 2)]


# --- what is no loop -----------------------------------------------------------------------------------------------


def disabled_ns() -> float:
    """A step of nothing under MFU_ENABLED=0, in a tight loop: the best of several, in nanoseconds."""
    import mfu_sdk as mfu
    from mfu_sdk.settings import Settings

    best = float("inf")
    with mfu.monitor(settings=Settings(enabled=False)) as run:
        for _ in range(9):
            began = time.perf_counter_ns()
            for _ in range(10_000):
                with run.step(tokens=BATCH):
                    pass
            best = min(best, (time.perf_counter_ns() - began) / 10_000)
    return best


def import_ms() -> dict[str, float]:
    """Of `import mfu_sdk` in a new interpreter, at best; and how much of it is the standard library's typing."""
    found: dict[str, list[float]] = {"mfu_sdk": [], "typing": []}
    for _ in range(9):
        command = [sys.executable, "-X", "importtime", "-c", "import mfu_sdk"]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines():
            _, cumulative, module = line.removeprefix("import time:").split("|")
            if module.strip() in found:
                found[module.strip()].append(int(cumulative) / 1e3)
    return {name: round(min(values), 2) for name, values in found.items()}


def memory(steps: int, url: str) -> dict[str, Any]:
    """Resident memory while a real model is called, under a monitor that sends, `steps` times."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=remembered, args=(steps, url, theirs), daemon=True)
    process.start()
    found: dict[str, Any] = ours.recv()
    process.join(60)
    return found


def remembered(steps: int, url: str, pipe: Connection) -> None:
    os.environ.update(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="memory", MFU_SPANS="auto", **UNSHED)
    import torch

    import mfu_sdk as mfu
    from mfu_sdk.records import Peaks, Rate

    torch.set_num_threads(1)
    model = torch.nn.Linear(4, 4)
    batch = torch.randn(2, 4)
    peaks = Peaks("cpu", {}, {"float32": Rate(1e11, 1e11, 1e11, "user", 0.0)}, None, None, {})
    mib = []
    with torch.no_grad(), mfu.monitor(model, peaks=peaks) as run:
        for _ in range(SAMPLES):
            for _ in range(steps // SAMPLES):
                with run.step(tokens=2, phase="eval"):
                    model(batch)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            mib.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2))
    grown = mib[-1] - mib[0]
    pipe.send({"steps": steps, "resident_mib": mib, "grown_after_the_first_tenth_mib": round(grown, 2)})


# --- the report ----------------------------------------------------------------------------------------------------


def bounds(found: dict[str, Any], disabled: float, imported: float, grown_mib: float | None) -> dict[str, Any]:
    """Each bound, what was measured, and whether it holds."""
    rows: dict[str, tuple[float, float, str]] = {}
    if AUTO in found and OTEL in found:
        rows["main thread, at most half of an OpenTelemetry span"] = (
            found[AUTO]["main_added_us"], found[OTEL]["main_added_us"] / 2, "us",
        )  # fmt: skip
    if AUTO in found:
        rows["process at MFU_SPANS=auto, at most 80 us"] = (found[AUTO]["process_added_us"], 80.0, "us")
    rows["MFU_ENABLED=0, under 1 us"] = (disabled / 1e3, 1.0, "us")
    rows["import mfu_sdk, under 30 ms"] = (imported, 30.0, "ms")
    if grown_mib is not None:
        # What an allocator keeps differs from run to run; a list of one small object a step would be 60 MiB.
        rows["memory flat, within 4 MiB"] = (grown_mib, 4.0, "MiB")
    return {
        name: {"measured": round(measured, 3), "bound": round(bound, 3), "unit": unit, "holds": measured <= bound}
        for name, (measured, bound, unit) in rows.items()
    }


def installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{'added to a step, us':44} {'main thread (quartiles)':>28} {'cold':>9} {'elsewhere':>10} {'process':>10}"
    ]
    for name, row in report["loop"].items():
        low, high = row["main_added_quartiles_us"]
        main = f"{row['main_added_us']:.1f} ({low:.1f} to {high:.1f})"
        lines.append(
            f"{name:44} {main:>28} {row['cold_added_us']:9.1f} {row['elsewhere_added_us']:10.1f} "
            f"{row['process_added_us']:10.1f}"
        )
    lines += [f"{name:44} absent: {why}" for name, why in report["absent"].items()]
    for name, row in report["bounds"].items():
        holds = "holds" if row["holds"] else "MISSED"
        lines.append(f"{name:58} {row['measured']:10.3f} of {row['bound']:.3f} {row['unit']}: {holds}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--generations", type=int, default=GENERATIONS, help="processes that share them")
    parser.add_argument("--memory-steps", type=int, default=MEMORY_STEPS, help="0 leaves this part out")
    parser.add_argument("--only", action="append", default=[], help="those with this in their name, and the bare loop")
    options = parser.parse_args()
    chosen = [name for name in VARIANTS if name == "bare" or not options.only or any(o in name for o in options.only)]
    disabled, imported = disabled_ns(), import_ms()
    with receiver() as collector:
        times, absent = in_generations(options.generations, options.rounds, collector.url, chosen)
        arrived = collector.spans()
        remembered = memory(options.memory_steps, collector.url) if options.memory_steps else None
    found = figures(times)
    grown = None if remembered is None else remembered["grown_after_the_first_tenth_mib"]
    report = {
        "benchmark": "overhead",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, 1 thread used, load {os.getloadavg()[0]:.2f}",
        "versions": installed(),
        "unit": "CPU time of a step; added: beyond the bare loop's in the same round, medians",
        "loop": found,
        "absent": absent,
        "spans_that_arrived": arrived,
        "disabled_step_ns": round(disabled, 1),
        "import_ms": imported,
        "memory": remembered,
        "bounds": bounds(found, disabled, imported["mfu_sdk"], grown),
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report) if options.output else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
