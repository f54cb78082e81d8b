"""What watching costs a loop on a GPU, and what it tells there: one run, variants in turns, on the device that is here.

Run: python benchmarks/device_loop.py [-o FILE] [--rounds N]. It takes some minutes; without a GPU it says
so and ends. Written for one GPU; nothing is exchanged.

- host-bound: eight small layers, forward, backward, SGD: the device waits for the host, so what the host does more is
  in the time of a step. In turns of 100 steps, in a new random order each round; the difference to the bare loop in the
  same round, median and quartiles. Peers measure or make a span in every step, as ours do.
- handler: the same model's forward as a request.
- GPT-2 124M (bf16 autocast, 16 × 1024 tokens, AdamW), eager and compiled: bound by the device. What a step takes with
  and without us; the MFU that we report beside what the driver calls utilization and what its counters say the tensor
  pipes did; and, of another run, the waterfall with kernels that torch's profiler has timed, which costs more than
  usual there.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from receiver import receiver
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.peak.describe import describe
from mfu_sdk.peak.device import resolve
from mfu_sdk.peak.nvml import Witness, open_gpu
from mfu_sdk.run import kernel_times
from mfu_sdk.run.clock import CudaClock

STEPS, WARM_UP, ROUNDS = 100, 600, 20
WIDTH, LAYERS, BATCH = 256, 8, 64
EXAMPLE = Path(__file__).parents[1] / "examples" / "bytegpt"


def small() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).cuda()


def stepping(model: nn.Module) -> Callable[[], None]:
    optimizer, x = torch.optim.SGD(model.parameters(), lr=1e-4), torch.randn(BATCH, WIDTH, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def answering(model: nn.Module) -> Callable[[], torch.Tensor]:
    x = torch.randn(BATCH, WIDTH, device="cuda")

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return model(x)  # type: ignore[no-any-return]

    return answer


def _evented(step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()

    return run


def _spanned(step: Callable[[], None]) -> Callable[[], None]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("bench")
    attributes = {f"bench.attribute_{index}": index / 7 for index in range(20)}

    def run() -> None:
        with tracer.start_as_current_span("step", attributes=attributes):
            step()

    return run


def _counting(step: Callable[[], None]) -> Callable[[], None]:
    from torch.utils.flop_counter import FlopCounterMode

    def run() -> None:
        with FlopCounterMode(display=False):
            step()

    return run


def block(call: Callable[[], object], steps: int) -> float:
    """Microseconds a call, the device waited for at the end."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps * 1e6


def in_turns(
    calls: dict[str, Callable[[], object]], bare: dict[str, str], rounds: int, steps: int, warm_up: int
) -> dict[str, dict[str, Any]]:
    """For each the time of a call, and what it is beyond that of the bare one in the same round."""
    for name, call in calls.items():
        print(f"warming up: {name}", file=sys.stderr, flush=True)
        block(call, warm_up)
    took: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            took[name].append(block(calls[name], steps))
    found: dict[str, dict[str, Any]] = {}
    for name, all_us in took.items():
        beyond = [us - bare_us for us, bare_us in zip(all_us, took[bare[name]], strict=True)]
        low, middle, high = statistics.quantiles(beyond, n=4)
        found[name] = {"us": round(statistics.median(all_us), 1)}
        if name != bare[name]:
            found[name] |= {"added_us": round(middle, 1), "quartiles_us": [round(low, 1), round(high, 1)]}
    return found


def host_bound(rounds: int) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        model = small()
        ours = stepping(model)
        run = stack.enter_context(mfu.monitor(model, name="host-bound"))

        def monitored() -> None:
            with run.step(tokens=BATCH):
                ours()

        handler = answering(served := small())
        steps: dict[str, Callable[[], object]] = {
            "bare": stepping(small()),
            "two CUDA events": _evented(stepping(small())),
            "mfu_sdk": monitored,
            "OpenTelemetry, a span with 20 attributes": _spanned(stepping(small())),
            "torch FlopCounterMode": _counting(stepping(small())),
        }
        answered = mfu.inference(served, name="handler")(handler)
        stack.callback(answered.run.close)  # type: ignore[attr-defined]  # set by the decorator
        requests: dict[str, Callable[[], object]] = {
            "bare request": answering(small()),
            "mfu_sdk, a request": answered,
        }
        return {
            "steps": in_turns(steps, dict.fromkeys(steps, "bare"), rounds, STEPS, WARM_UP),
            "requests": in_turns(requests, dict.fromkeys(requests, "bare request"), rounds, STEPS, WARM_UP),
        }


@contextmanager
def driver_says() -> Iterator[dict[str, Any]]:
    """The driver's utilization, sampled ten times a second, and its counters of the tensor pipes, over the block."""
    import pynvml

    found: dict[str, Any] = {}
    uuid = resolve("cuda").uuid
    assert uuid is not None
    with open_gpu(uuid) as gpu:
        witness = Witness.of(gpu)
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        seen: list[int] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.1):
                seen.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

        thread = threading.Thread(target=look, daemon=True)
        if witness is not None:
            witness.take()
        thread.start()
        yield found
        over.set()
        thread.join()
        found["driver_utilization"] = statistics.median(seen) / 100 if seen else None
        if witness is not None and (activity := witness.take()) is not None:
            found |= {"tensor_pipes_active": activity.tensor, "sms_active": activity.sm}
        pynvml.nvmlShutdown()


def gpt2(compiled: bool, rounds: int) -> dict[str, Any]:
    sys.path.insert(0, str(EXAMPLE))
    from model import ByteGPT, Config

    torch.manual_seed(0)
    model = ByteGPT(Config(layers=12, heads=12, width=768, context=1024, vocab=50304)).cuda()
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(50304, (16, 1024), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(called(ids)[0].flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def monitored(run: Any) -> Callable[[], None]:
        def marked() -> None:
            with run.step(tokens=ids.numel()):
                step()

        return marked

    block(step, 10)
    with mfu.monitor(called, name="gpt2") as run:
        calls: dict[str, Callable[[], object]] = {"bare": step, "mfu_sdk": monitored(run)}
        took = in_turns(calls, dict.fromkeys(calls, "bare"), rounds, 15, 40)
    with mfu.monitor(called, name="gpt2, watched by the driver") as run:
        marked = monitored(run)
        block(marked, 40)
        with driver_says() as driver:
            block(marked, 100)
    plain = run.summary()
    # A step in eight, from the start: in the minutes of a benchmark half a per cent of the run earns none.
    kernel_times.MOST_OF_RUN, kept = 0.5, kernel_times.MOST_OF_RUN
    os.environ["MFU_PROFILE"] = "kernels"
    try:
        with mfu.monitor(called, name="gpt2, its kernels profiled") as run:
            block(monitored(run), 120)
    finally:
        kernel_times.MOST_OF_RUN = kept
        del os.environ["MFU_PROFILE"]
    return {
        "took": took,
        "tokens_per_s": round(ids.numel() / took["bare"]["us"] * 1e6),
        "mfu": plain.mfu,
        **driver,
        "summary": str(plain).splitlines(),
        "summary_with_kernels": str(run.summary()).splitlines(),
    }


def marks() -> dict[str, float]:
    """Microseconds of a mark of ours and of an event that is made for it, in turns."""
    clock, took = CudaClock("cuda:0"), {"ours": list[float](), "torch's": list[float]()}

    def made() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream("cuda:0"))
        return event

    for _ in range(20):
        for name, call in (("ours", clock.mark), ("torch's", made)):
            began = time.perf_counter()
            for _ in range(500):
                call()
            took[name].append((time.perf_counter() - began) / 500 * 1e6)
            torch.cuda.synchronize()
    return {name: round(statistics.median(us), 2) for name, us in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("device_loop: skipped: torch finds no GPU")
        return
    peaks = mfu.calibrate("cuda", ["bfloat16", "tf32", "float32"], budget_s=20.0)
    with receiver() as collector:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        small_loop = host_bound(options.rounds)
        large = {way: gpt2(way == "compiled", max(3, options.rounds // 4)) for way in ("eager", "compiled")}
    report = {
        "benchmark": "device_loop",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "triton", "opentelemetry-sdk")},
        },
        "a_mark_us": marks(),
        "peaks": describe(peaks).splitlines(),
        "host_bound": small_loop,
        "gpt2_124m": large,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
