"""Expected against observed MFU: the published runs on A100 and H100, and a training run on the processor that is here.

python benchmarks/expectation.py --published ../shared/data/published_mfu.json
python benchmarks/expectation.py --live [-o benchmarks/results/…json]

Published throughput is turned into our own MFU (exact causal FLOPs over the dense bf16 peak), whatever its source
counts. Layouts: llm-foundry's runs are FSDP with the batch and micro-batch that they name. Others do not say how they
were laid out; they are held against one GPU's operators alone, with no exchange and no bubble, which bounds any layout.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mfu_sdk as mfu
from mfu_sdk.intent.forecast import expect
from mfu_sdk.peak.device import processor_name
from mfu_sdk.records import Expectation

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """A published run: what it had, and what was expected of it, both as our MFU."""

    id: str
    group: str
    dtype: str
    observed: float
    expected: float
    low: float
    high: float
    laid_out: bool


def device_of(row: Row) -> str:
    name = row["accel"].lower()
    if "a100" in name:
        return "A100 SXM 40GB" if "40gb" in name else "A100 SXM 80GB"
    # Of torchtitan's H100s with HBM2e the peak is that of SXM, as its own correction says.
    return "H100 SXM"


def dense(row: Row) -> bool:
    shape = row["hf_config"]
    return bool(shape) and not shape.get("moe") and not shape.get("mla") and not shape.get("sliding_window")


def tokens_per_s(row: Row) -> float | None:
    """Tokens a second of one GPU, where the row has them."""
    if row["tokens_per_s_per_accel"]:
        return float(row["tokens_per_s_per_accel"])
    if row["step_time_s"] and row["global_batch"] and row["n_accel"]:
        return float(row["global_batch"] * row["seq_len"] / row["step_time_s"] / row["n_accel"])
    return None


def shape_of(row: Row) -> dict[str, float]:
    """The published shape's weights, by the numbers that an intent has."""
    shape = row["hf_config"]
    hidden, heads, head = shape["hidden_size"], shape["num_attention_heads"], shape["head_dim"]
    kv = shape["num_key_value_heads"] * head
    ffn = (3 if shape["gated_mlp"] else 2) * hidden * shape["intermediate_size"]
    layer = 2 * hidden * heads * head + 2 * hidden * kv + ffn
    layers = shape["num_hidden_layers"]
    return {
        "params": layers * layer + shape["vocab_size"] * hidden,
        "layers": layers,
        "hidden": hidden,
        "kv_hidden": kv,
    }


def compared(row: Row) -> Compared:
    rate = tokens_per_s(row)
    assert rate is not None
    fp8 = "fp8" in row["dtype"].lower() or row["dtype"] == "float8"
    dtype = "float8_e4m3fn" if fp8 else "float16" if row["dtype"] == "fp16" else "bfloat16"
    shape, device = shape_of(row), device_of(row)
    again = row["activation_checkpointing"] in (True, "full")
    laid_out = row["formula_id"] == "llmfoundry"
    found: Expectation
    if laid_out:
        batch = row["global_batch"] // row["n_accel"]
        found = expect(shape, device=device, batch=batch, seq=row["seq_len"], dtype=dtype, gpus=row["n_accel"],
                       microbatches=max(1, batch // row["micro_batch"]), recompute=again)  # fmt: skip
    else:
        # All sequences of a step at once on one GPU: so weights are read, and the optimizer runs, as rarely as can be.
        found = expect(shape, device=device, batch=row["global_batch"] or 1, seq=row["seq_len"], dtype=dtype,
                       recompute=again)  # fmt: skip
    # MFU and throughput are in one proportion for one shape: observed follows from the tokens a second.
    assert found.tokens_per_s is not None
    observed = found.mfu * rate / (found.tokens_per_s / found.devices)
    assert found.low_mfu is not None
    assert found.high_mfu is not None
    return Compared(row["id"], f"{row['formula_id']}, {device.split()[0]}, {dtype}", dtype, observed, found.mfu,
                    found.low_mfu, found.high_mfu, laid_out)  # fmt: skip


def comparable(rows: list[Row]) -> Iterator[Row]:
    """Dense training on A100 or H100 that prints a throughput; fine-tuning of short or frozen parts left out."""
    for row in rows:
        name = row["accel"].lower()
        trains = row["mode"] == "train" and ("a100" in name or "h100" in name) and dense(row) and tokens_per_s(row)
        if not trains or "lora" in row["id"].lower() or "nemo2407-ft" in row["id"]:
            continue
        if row["formula_id"] == "llmfoundry" and row["global_batch"] % row["n_accel"]:
            continue
        if row["formula_id"] == "llmfoundry":
            batch = row["global_batch"] // row["n_accel"]
            if batch % max(1, batch // row["micro_batch"]):
                continue
        yield row


def published(path: Path) -> list[Compared]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [compared(row) for row in comparable(rows)]


def summary(found: list[Compared]) -> dict[str, Any]:
    """How far observed MFU is from the expected one, by group and in all, and what is above it."""

    def of(its: list[Compared]) -> dict[str, Any]:
        ratios = sorted(each.observed / each.expected for each in its)
        return {"runs": len(its), "least": ratios[0], "median": statistics.median(ratios), "most": ratios[-1],
                "above_expected": sum(each.observed > each.expected for each in its),
                "above_interval": sum(each.observed > each.high for each in its)}  # fmt: skip

    groups = {group: of([each for each in found if each.group == group]) for group in sorted({e.group for e in found})}
    return {"all": of(found), "laid_out": of([each for each in found if each.laid_out]), "groups": groups}


def tell(found: list[Compared]) -> None:
    every = summary(found)
    for name, its in (("all", every["all"]), ("laid out", every["laid_out"]), *every["groups"].items()):
        print(f"  {name:<34} {its['runs']:>4} runs, observed / expected {its['least']:.2f} .. {its['median']:.2f} .. "
              f"{its['most']:.2f}; {its['above_expected']} above, {its['above_interval']} of them beyond")  # fmt: skip
    for each in found:
        if each.observed > each.expected:
            print(f"  above: {each.id} observed {each.observed:.3f}, expected {each.expected:.3f}, to {each.high:.3f}")


def live(steps: int = 6) -> dict[str, Any]:
    """The example's training step on this processor: the expected seconds of a step over the median ones."""
    import sys

    import torch
    import torch.nn.functional as F

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "bytegpt"))
    from model import ByteGPT, Config  # type: ignore[import-not-found]

    # With one thread, whose rate neighbours move least.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Config()
    model = ByteGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randint(0, 256, (16, config.context))

    def step() -> None:
        logits, _ = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), inputs.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    count = mfu.count(step)
    # A shared processor's speed moves while one looks: each round has a calibration of its own beside its steps.
    rounds = []
    for _ in range(5):
        expected = mfu.expect(count, device=mfu.calibrate("cpu", budget_s=4.0))
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        took = statistics.median(times)
        inside = (expected.low_s or 0.0) <= took
        rounds.append({"seconds": took, "expected_s": expected.time_s, "low_s": expected.low_s,
                       "high_s": expected.high_s, "bound": expected.bound,
                       "observed_over_expected_mfu": expected.time_s / took})  # fmt: skip
        print(f"bytegpt, batch 16: {took * 1e3:.0f} ms a step, expected {expected.time_s * 1e3:.0f} ms, bound by "
              f"{expected.bound}: observed / expected MFU {expected.time_s / took:.2f}"
              + ("" if inside else ", faster than the interval"))  # fmt: skip
    ratios = [each["observed_over_expected_mfu"] for each in rounds]
    return {
        "torch": torch.__version__,
        "rounds": rounds,
        "median_observed_over_expected_mfu": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="the published rows")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "expectation",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "mfu_sdk": mfu.__version__,
    }
    if options.published:
        found = published(options.published)
        tell(found)
        result["published"] = summary(found)
    if options.live:
        result["live"] = live()
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
