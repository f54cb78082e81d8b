"""What a step costs under a monitor, beside torch's own FlopCounterMode, in one run.

Run: python benchmarks/step_overhead.py [-o FILE]

A host-bound GPT step (batch 1, length 16, one thread) is the worst case: the less a step computes, the more a fixed
cost shows. The variants take turns in blocks, so that a change of the machine's speed meets all of them; the figure of
each is the median over its steps of the step's process CPU time. Prints JSON, or writes it with `-o FILE`.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "bytegpt"))

from model import ByteGPT, Config

import mfu_sdk as mfu
from mfu_sdk.peak.device import processor_name
from mfu_sdk.records import Peaks, Rate

BLOCK, BLOCKS, WARM_UP = 20, 30, 40
PEAKS = Peaks(
    "cpu", {}, {"float32": Rate(1e11, 1e11, 1e11, "user", 0.0)}, Rate(1e10, 1e10, 1e10, "user", 0.0), None, {}
)


class Subject:
    """One variant: its own model, so that no hook of one is in another's way."""

    def __init__(self, *, monitored: bool, counter: Callable[[], object] = nullcontext) -> None:
        torch.manual_seed(0)
        self.model = ByteGPT(Config(layers=4, heads=4, width=64))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.ids = torch.randint(256, (1, 16))
        self.counter = counter
        self.run = mfu.monitor(self.model, peaks=PEAKS).__enter__() if monitored else None
        self.step_s: list[float] = []

    def work(self) -> None:
        loss = F.cross_entropy(self.model(self.ids)[0].flatten(0, 1), self.ids.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def block(self, steps: int) -> None:
        """Run `steps` steps and keep the CPU time of each; counted steps of a monitor are told apart afterwards."""
        with self.counter():  # type: ignore[attr-defined]  # a context manager
            for _ in range(steps):
                began = time.process_time()
                if self.run is None:
                    self.work()
                else:
                    with self.run.step():
                        self.work()
                self.step_s.append(time.process_time() - began)


def counted(index: int) -> bool:
    """Whether a monitor counts the step with this index while it runs."""
    return index % 1000 == 0 if index >= 1000 else index & (index - 1) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    subjects = {
        "plain": Subject(monitored=False),
        "mfu_monitor": Subject(monitored=True),
        "torch_flop_counter_mode": Subject(monitored=False, counter=lambda: FlopCounterMode(display=False)),
    }
    for subject in subjects.values():
        subject.block(WARM_UP)
    for _ in range(BLOCKS):
        for subject in subjects.values():
            subject.block(BLOCK)
        gc.collect()
    run = subjects["mfu_monitor"].run
    assert run is not None
    run.__exit__(None, None, None)
    times = {name: subject.step_s[WARM_UP:] for name, subject in subjects.items()}
    monitored = subjects["mfu_monitor"].step_s
    times["mfu_monitor"] = [t for index, t in enumerate(monitored) if index >= WARM_UP and not counted(index)]
    times["mfu_monitor_counted_step"] = [t for index, t in enumerate(monitored) if index >= 2 and counted(index)]
    plain = statistics.median(times["plain"])
    report = {
        "benchmark": "step_overhead",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, 1 thread used",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mfu_sdk": mfu.__version__,
        "unit": "process CPU time of a step, median",
        "results": {
            name: {
                "steps": len(values),
                "median_us": round(statistics.median(values) * 1e6, 1),
                "over_plain": round(statistics.median(values) / plain, 4),
            }
            for name, values in times.items()
        },
        "sdk_own_overhead_us_per_step": round(run.summary().overhead_s / run.summary().steps * 1e6, 1),
    }
    text = json.dumps(report, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
