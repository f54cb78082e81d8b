"""Bias and coverage of the calibration's estimators on simulated devices, beside a plain mean and a maximum of means.

`python benchmarks/calibration.py [--runs N] [--output FILE]`. The device is simulated (there is none whose true rate is
known); the protocol and the statistics are the very code that measures a GPU, under a simulated clock. Printed and
bounded in the tests; the quick tier's seconds are measured on this machine's processor.

The simulated device, rates as shares of what it sustains: +8 % of boost that decays with 0.4 s from a cold start, +2 %
of coolness that decays with 15 s, both through the clock; AR(1) noise of 0.8 % with a correlation of 0.5 at 50 ms; from
run to run 0.7 %, a property of the run (temperature of the room, the rest of the machine). The neighbour of a MIG slice
takes 6 % away while it works, in bouts of 8 s with pauses of 8 s on average.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from math import exp, sqrt
from pathlib import Path

from mfu_sdk.peak.device import processor_name
from mfu_sdk.peak.protocol import IN_SITU, QUICK, SUSTAINED, Batch, Series, measure, sustain
from mfu_sdk.peak.statistics import ENOUGH_RUNS, estimate
from mfu_sdk.peak.watch import FLOOR, NEIGHBOUR_FLOOR

BOOST, BOOST_S = 0.08, 0.4
COOL, COOL_S = 0.02, 15.0
NOISE, NOISE_S = 0.008, 0.05 / 0.6931471805599453
BETWEEN = 0.007
NEIGHBOUR, BOUT_S = 0.06, 8.0
CLOCK_MHZ = 1500.0


@dataclass
class Device:
    """A simulated device whose sustained rate, alone and on average over runs, is 1."""

    random: random.Random
    neighbour: bool = False
    time_s: float = 0.0
    heat_s: float = 0.0
    """How long it has been at work: what boost and coolness decay with."""
    run: float = field(init=False)
    noise: float = field(init=False)
    busy: bool = field(init=False)
    turns_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.run = 1 + self.random.gauss(0, BETWEEN)
        self.noise = self.random.gauss(0, NOISE)
        self.busy = self.random.random() < 0.5
        self.turns_s = self.random.expovariate(1 / BOUT_S)

    def now(self) -> float:
        return self.time_s

    def work(self, seconds: float, efficiency: float = 1.0) -> Batch:
        """Work for `seconds`, in steps of a quarter of a batch at the most."""
        # One call at the least, of 1.5 ms.
        seconds = max(seconds, 1.5e-3)
        done, left, clocks = 0.0, seconds, []
        while left > 1e-12:
            step = min(left, 0.0125)
            clock = 1 + BOOST * exp(-self.heat_s / BOOST_S) + COOL * exp(-self.heat_s / COOL_S)
            kept = exp(-step / NOISE_S)
            self.noise = kept * self.noise + sqrt(1 - kept * kept) * self.random.gauss(0, NOISE)
            while self.time_s > self.turns_s:
                self.busy = not self.busy
                self.turns_s += self.random.expovariate(1 / BOUT_S)
            taken = NEIGHBOUR if self.neighbour and self.busy else 0.0
            done += step * efficiency * self.run * clock * (1 + self.noise) * (1 - taken)
            clocks.append(clock * CLOCK_MHZ)
            self.time_s += step
            self.heat_s += step
            left -= step
        return Batch(done, seconds, sum(clocks) / len(clocks))


@dataclass
class Kernel:
    """One candidate on a simulated device."""

    name: str
    device: Device
    efficiency: float = 1.0

    def run(self, seconds: float) -> Batch:
        return self.device.work(seconds, self.efficiency)


def candidates(device: Device, number: int = 4) -> list[Kernel]:
    """As many equal kernels: the case in which choosing the luckiest overstates most."""
    return [Kernel(f"kernel {i}", device) for i in range(number)]


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


def _interval(series: Series, history: Sequence[float], floor: float) -> Estimate:
    rate = estimate(series.rates, floor, history=history)
    return Estimate(rate.flops_per_s, rate.low, rate.high)


def quick(device: Device, history: Sequence[float], floor: float) -> Estimate:
    return _interval(measure(candidates(device), QUICK, 1.5, device.now), history, floor)


def in_situ(device: Device, history: Sequence[float], floor: float) -> Estimate:
    device.heat_s = 600.0
    return _interval(measure(candidates(device, 1), IN_SITU, 1.0, device.now), history, floor)


def sustained(device: Device, history: Sequence[float], floor: float) -> Estimate:
    return _interval(sustain(candidates(device, 1)[0], SUSTAINED, device.now), history, floor)


def clock_normalised(device: Device, history: Sequence[float], floor: float) -> Estimate:
    """The quick tier's share of its clock, times the clock at which training settles."""
    series = measure(candidates(device), QUICK, 1.5, device.now)
    scale = [[b.rate / (b.clock_mhz or CLOCK_MHZ) * CLOCK_MHZ for b in group] for group in series.groups]
    rate = estimate(scale, floor, history=history)
    return Estimate(rate.flops_per_s, rate.low, rate.high)


def mean_of_50(device: Device, _history: Sequence[float], _floor: float) -> Estimate:
    """The mean of 50 calls of 1.5 ms from a cold start, with its standard error: superbenchmark's, accelrod's way."""
    rates = [device.work(1.5e-3).rate for _ in range(50)]
    mean, error = statistics.mean(rates), statistics.stdev(rates) / sqrt(50)
    return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error)


def max_of_means(device: Device, _history: Sequence[float], _floor: float) -> Estimate:
    """The largest of 75 means of 100 calls after 30 s of warm-up: mamf-finder's way. It states no interval."""
    device.work(30.0)
    means = [device.work(0.15).rate for _ in range(75)]
    return Estimate(max(means), max(means), max(means))


ESTIMATORS: dict[str, Callable[[Device, Sequence[float], float], Estimate]] = {
    "quick tier": quick,
    "quick tier, by clock": clock_normalised,
    "in situ": in_situ,
    "sustained": sustained,
    "mean of 50": mean_of_50,
    "max of means": max_of_means,
}


@dataclass(frozen=True)
class Result:
    """What an estimator did over many runs: in per cent of the truth, and as shares of the runs."""

    estimator: str
    neighbour: bool
    history: int
    runs: int
    bias_percent: float
    deviation_percent: float
    half_width_percent: float
    covers_sustained: float
    covers_next_run: float


def judge(name: str, *, neighbour: bool, history: int, runs: int, seed: int = 0) -> Result:
    """`runs` independent runs of an estimator, each after `history` earlier ones, and each followed by another."""
    chance = random.Random(seed)
    run = ESTIMATORS[name]
    floor = NEIGHBOUR_FLOOR if neighbour else FLOOR
    # A slice shares its device half of the time, so that is what it sustains on average.
    truth = 1 - NEIGHBOUR / 2 if neighbour else 1.0
    found: list[Estimate] = []
    sustained_inside = next_inside = 0
    for _ in range(runs):
        earlier = [run(Device(chance, neighbour), (), floor).value for _ in range(history)]
        this = run(Device(chance, neighbour), earlier, floor)
        following = run(Device(chance, neighbour), (), floor).value
        sustained_inside += this.low <= truth <= this.high
        next_inside += this.low <= following <= this.high
        found.append(this)
    values = [each.value for each in found]
    return Result(
        name,
        neighbour,
        history,
        runs,
        round(100 * (statistics.mean(values) / truth - 1), 2),
        round(100 * statistics.stdev(values) / truth, 2),
        round(100 * statistics.mean((each.high - each.low) / 2 / each.value for each in found), 2),
        round(sustained_inside / runs, 3),
        round(next_inside / runs, 3),
    )


def quick_tier_seconds() -> list[float]:
    """Seconds that three quick calibrations of this machine's processor take, with the default budget of 3 s."""
    import tempfile

    import mfu_sdk as mfu
    from mfu_sdk.settings import Settings

    taken = []
    with tempfile.TemporaryDirectory() as folder:
        mfu.peaks("cpu")
        for _ in range(3):
            began = time.perf_counter()
            mfu.calibrate("cpu", settings=Settings(cache_dir=Path(folder)))
            taken.append(round(time.perf_counter() - began, 3))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    results = [
        judge(
            name,
            neighbour=neighbour,
            history=history,
            runs=given.runs if name not in ("sustained", "max of means") else max(2, given.runs // 3),
        )
        for neighbour in (False, True)
        for name in ESTIMATORS
        for history in ((0, 5) if name in ("quick tier", "quick tier, by clock", "in situ", "sustained") else (0,))
    ]
    heads = ("neighbour", "history", "runs", "bias %", "sd %", "± %", "covers sustained", "next run")
    widths = (11, 9, 6, 9, 7, 7, 18, 10)
    print(f"{'estimator':<22}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for r in results:
        print(
            f"{r.estimator:<22}{'yes' if r.neighbour else 'no':>11}{r.history:>9}{r.runs:>6}{r.bias_percent:>9.2f}"
            f"{r.deviation_percent:>7.2f}{r.half_width_percent:>7.2f}{r.covers_sustained:>18.3f}{r.covers_next_run:>10.3f}"
        )
    seconds = quick_tier_seconds()
    print(f"quick tier on this processor, budget 3 s: {', '.join(map(str, seconds))} s")
    if given.output is not None:
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{processor_name()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": version("torch"),
            "mfu_sdk": version("mfu-sdk"),
            "enough_runs": ENOUGH_RUNS,
            "results": [{name: getattr(r, name) for name in Result.__dataclass_fields__} for r in results],
            "quick_tier_seconds": seconds,
        }
        given.output.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
