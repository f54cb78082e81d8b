"""What counting costs, beside every other counter of PyTorch's FLOPs, in one run.

Run: python benchmarks/counting.py [-o FILE]. It takes two to three minutes. Peers that are not installed are reported
so; to have all of them: pip install fvcore ptflops, and DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed.

- A counted step: forward and backward of a host-bound GPT (batch 1, length 16, one thread), where a fixed cost of an
  operator shows most; an optimizer's bulk arithmetic would only hide it. Every counter begins and ends with the step.
  The variants run in a new random order in each round, on one model, so that a change of the machine's speed meets all
  of them. Figures are medians of process CPU time, with the quartiles. "First" is a counter that has met nothing yet.
- A forward, for the counters that know no backward.
- A cached step: what a monitor adds, on the main thread, to a step that it looks up instead of counting. Its model is
  one small layer, so that little hides the difference. In a whole training step, whose own work takes the caches in
  between, it is three times as much: `overhead.py`.
- A 126-layer Llama of 405 billion parameters from its configuration, on meta tensors.

Prints JSON, or writes it with `-o FILE`.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "bytegpt"))

from model import ByteGPT, Config

import mfu_sdk as mfu
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.plan import Plan
from mfu_sdk.peak.device import processor_name
from mfu_sdk.records import Peaks, Rate

ROUNDS, WARM_UP = 80, 5
CACHED_STEPS = 4000
PEERS = ("fvcore", "ptflops", "deepspeed")
PEAKS = Peaks(
    "cpu", {}, {"float32": Rate(1e11, 1e11, 1e11, "user", 0.0)}, Rate(1e10, 1e10, 1e10, "user", 0.0), None, {}
)
# The largest Llama 3.1, as its configuration on Hugging Face has it.
LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}

Work = Callable[[], object]


class Empty(TorchDispatchMode):
    """The least that a counter in Python can cost."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


class LM(nn.Module):
    """The GPT's logits alone, as tracing counters want a model to return tensors only."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = ByteGPT(Config(layers=4, heads=4, width=256, vocab=1024, context=16))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.gpt(ids)[0]
        return logits


def step_variants(model: nn.Module, work: Work, missing: set[str]) -> dict[str, Work]:
    warm = CountingMode(model)

    def counted(mode: CountingMode) -> object:
        mode.reset()
        mode.start()
        work()
        mode.stop()
        return mode.result()

    def under(context: Callable[[], Any]) -> Work:
        def run() -> None:
            with context():
                work()

        return run

    variants: dict[str, Work] = {
        "plain": work,
        "empty_dispatch_mode": under(Empty),
        "mfu_counted_step": lambda: counted(warm),
        "mfu_first_counted_step": lambda: counted(CountingMode(model)),
        "torch_flop_counter_mode": under(lambda: FlopCounterMode(display=False)),
        "torch_profiler_with_flops": under(
            lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True)
        ),
    }
    if "deepspeed" not in missing:
        profiler = _deepspeed()(model)

        def deepspeed() -> None:
            profiler.start_profile()
            work()
            profiler.get_total_flops()
            profiler.end_profile()

        variants["deepspeed_flops_profiler"] = deepspeed
    return variants


def forward_variants(model: nn.Module, ids: Tensor, missing: set[str]) -> dict[str, Work]:
    warm = CountingMode(model)

    def forward() -> Tensor:
        logits: Tensor = model(ids)
        return logits

    def empty() -> None:
        with Empty():
            forward()

    def ours() -> None:
        warm.reset()
        with warm:
            forward()
        warm.result()

    variants: dict[str, Work] = {"plain": forward, "empty_dispatch_mode": empty, "mfu_counted_forward": ours}
    if "fvcore" not in missing:
        from fvcore.nn import FlopCountAnalysis

        def fvcore() -> None:
            analysis = FlopCountAnalysis(model, ids)
            analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
            analysis.total()

        variants["fvcore"] = fvcore
    if "ptflops" not in missing:
        from ptflops import get_model_complexity_info

        for backend in ("pytorch", "aten"):
            # It switches gradients and training off, and prints.
            variants[f"ptflops_{backend}"] = lambda backend=backend: get_model_complexity_info(
                model, (16,), input_constructor=lambda _: {"ids": ids}, print_per_layer_stat=False, as_strings=False,
                backend=backend, verbose=False,
            )  # fmt: skip
    if "deepspeed" not in missing:
        profiler = _deepspeed()(model)

        def deepspeed() -> None:
            profiler.start_profile()
            forward()
            profiler.get_total_flops()
            profiler.end_profile()

        variants["deepspeed_flops_profiler"] = deepspeed
    return variants


def _deepspeed() -> Any:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    return FlopsProfiler


def in_turns(variants: dict[str, Work], rounds: int) -> dict[str, Any]:
    """Median and quartiles of each variant's process CPU time; one that raises is reported with what it raised."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    order = list(variants)
    for number in range(WARM_UP + rounds):
        random.shuffle(order)
        for name in order:
            if name in failed:
                continue
            began = time.process_time()
            try:
                variants[name]()
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            if number >= WARM_UP:
                times[name].append(time.process_time() - began)
        gc.collect()
    medians = {name: statistics.median(taken) for name, taken in times.items() if name not in failed}
    results: dict[str, Any] = {}
    for name, median in medians.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        results[name] = {
            "median_ms": round(median * 1e3, 3),
            "quartiles_ms": [round(low * 1e3, 3), round(high * 1e3, 3)],
            "over_plain": round(median / medians["plain"], 3),
            "over_empty_mode": round(median / medians["empty_dispatch_mode"], 3),
        }
    return results | {name: {"failed": why} for name, why in failed.items()}


def operators(work: Work) -> int:
    with Empty() as mode:
        work()
    return mode.seen


def cached_step_us() -> dict[str, float]:
    """Main-thread CPU time that a monitor adds to a step whose count it looks up, in microseconds."""
    x = torch.randn(1, 4)
    plain, watched = nn.Linear(4, 4), nn.Linear(4, 4)

    def timed(work: Work) -> float:
        began = time.thread_time_ns()
        work()
        return (time.thread_time_ns() - began) / 1e3

    bare: list[float] = []
    monitored: list[float] = []
    with mfu.monitor(watched, peaks=PEAKS) as run:

        def step() -> None:
            with run.step(tokens=16):
                watched(x)

        for index in range(CACHED_STEPS):
            bare.append(timed(lambda: plain(x)))
            taken = timed(step)
            if index > 16 and not Plan.should_count(index):
                monitored.append(taken)
    without = statistics.median(bare)
    low, median, high = statistics.quantiles(monitored, n=4)
    return {
        name: round(us - without, 2) for name, us in (("median", median), ("quartile_1", low), ("quartile_3", high))
    }


def llama_405b_s() -> dict[str, Any]:
    """Wall seconds to count one training step of 8,192 tokens, with the imports before it apart."""
    began = time.perf_counter()
    import transformers.models.llama.modeling_llama

    from mfu_sdk.counting.huggingface import count_config

    imported = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(LLAMA_405B))
        found = count_config(config, 1, 8192)
    return {
        "imports_s": round(imported - began, 2),
        "count_s": round(time.perf_counter() - imported, 2),
        "parameters": found.parameters,
        "model_flops": found.count.model_flops,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    warnings.simplefilter("ignore")
    versions: dict[str, str | None] = {}
    for peer in PEERS:
        try:
            versions[peer] = version(peer)
        except PackageNotFoundError:
            versions[peer] = None
    missing = {peer for peer, found in versions.items() if found is None}
    llama = llama_405b_s()

    model = LM()
    ids = torch.randint(1024, (1, 16))

    def work() -> None:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        for parameter in model.parameters():
            parameter.grad = None

    seen = operators(work)
    gc.disable()
    # Peers print what they find.
    with contextlib.redirect_stdout(io.StringIO()):
        steps = in_turns(step_variants(model, work, missing), options.rounds)
        forwards = in_turns(forward_variants(model, ids, missing), options.rounds)
    gc.enable()
    for result in steps.values():
        if "median_ms" in result:
            added_ms = result["median_ms"] - steps["plain"]["median_ms"]
            result["added_us_per_operator"] = round(added_ms * 1e3 / seen, 2)
    report = {
        "benchmark": "counting",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, 1 thread used, load {os.getloadavg()[0]:.2f}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "mfu_sdk": mfu.__version__}
        | {name: found or "not installed" for name, found in versions.items()},
        "rounds": options.rounds,
        "operators_a_step": seen,
        "unit": "process CPU time, median and quartiles",
        "step": steps,
        "forward": forwards,
        "cached_step_added_us": cached_step_us(),
        "llama_405b": llama,
    }
    text = json.dumps(report, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
