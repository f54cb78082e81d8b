"""The processor as a device: an fp32 matrix-product ladder and a ladder of copies.

There is no datasheet peak for a processor under a given thread count, so the measured rate is the denominator. What
disturbs the measurement (other processes, hypervisor neighbours) only ever slows it down, so the rate is the 90th
percentile of short batches, with the median and the spread beside it and never less than ±25 % stated: on shared
2-core machines, eight rounds of the same product spread by 23 to 49 %.
Sixteen-bit formats are not tried: without AVX-512 or AMX they run 30 to 100 times slower than fp32 and would hold
the budget for nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.statistics import Spread, rate_of, spread
from mfu_sdk.records import Rate

SIZES = (256, 384, 512, 768, 1024, 1536, 2048)
"""Sides n of the square products: 0.75 MB to 48 MB of operands."""
COPY_BYTES = tuple(1 << power for power in range(17, 28))
"""Source sizes of the copies: 128 KiB to 128 MiB; a copy's working set is twice that."""
LONGEST_CALL_S = 0.15
BATCH_S = 0.02
FLOOR = 0.25

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the processor did: fp32 FLOP/s, bytes/s, bytes/s by working set, and what the batches looked like."""

    gemm: Rate
    memory: Rate
    memory_by_size: tuple[tuple[int, float], ...]
    state: dict[str, str | float | bool]


def measure(budget_s: float, progress: Progress) -> Measurement:
    """Measure within `budget_s` seconds: three fifths for the products, two fifths for the copies.

    The user's random state, default dtype and flags stay as they are: operands come from a private generator and
    results go into buffers made here. Raises `CalibrationError` when not one batch fits or the product is wrong.
    """
    start = time.perf_counter()
    cpu_start = time.process_time()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        side, gemm = _products(start + 0.6 * budget_s, progress)
        busy_wall = time.perf_counter() - start
        busy_cpu = time.process_time() - cpu_start
        copies = _copies(start + budget_s, progress)
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # All threads busy all the time would make CPU time = threads × wall time; less means that someone else had them.
    stolen = busy_wall * threads / busy_cpu if busy_cpu > 0 else float("inf")
    sizes = tuple((2 * size, found.median) for size, found in copies)
    largest = copies[-1][1]
    return Measurement(
        gemm=rate_of(gemm.p90, gemm, FLOOR),
        memory=rate_of(largest.median, largest, FLOOR),
        memory_by_size=sizes,
        state={
            "threads": float(threads),
            "load_1m": round(load, 2),
            "wall_over_cpu": round(stolen, 3),
            "contended": stolen > 1.2 or load > (os.cpu_count() or 1) + threads,
            "gemm_side": float(side),
            "gemm_batches": float(gemm.samples),
            "gemm_median_flops_per_s": gemm.median,
            "gemm_p10_flops_per_s": gemm.p10,
            "gemm_spread": round(gemm.relative, 4),
            "memory_spread": round(largest.relative, 4),
        },
    )


def _products(deadline: float, progress: Progress) -> tuple[int, Spread]:
    """The fastest side of the ladder, measured until `deadline`: (side, FLOP/s of its batches)."""
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    best: tuple[float, int] | None = None
    for side in SIZES:
        operands = _operands(side, generator)
        call_s = _check(operands)
        # The ladder may use half the time; the rest is for many batches of the winner.
        if best is not None and (call_s > LONGEST_CALL_S or time.perf_counter() > (began + deadline) / 2):
            break
        rate = max(_batches(operands, side, until=time.perf_counter() + 3 * max(BATCH_S, call_s)))
        best = max(best or (0.0, 0), (rate, side))
        progress(f"fp32 matrix product, {side}²", 0.3 * (time.perf_counter() - began) / (deadline - began))
    assert best is not None
    side = best[1]
    operands = _operands(side, generator)
    _check(operands)
    rates: list[float] = []
    for rate in _batches(operands, side, until=deadline):
        rates.append(rate)
        progress(f"fp32 matrix product, {side}²", 0.6 * (time.perf_counter() - began) / (deadline - began))
    return side, spread(rates)


def _operands(side: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, right = (torch.randn(side, side, generator=generator, dtype=torch.float32) for _ in range(2))
    return left, right, torch.full((side, side), float("nan"), dtype=torch.float32)


def _check(operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    """Seconds of one call, after its first row was held against float64. Raises `CalibrationError` if it is wrong."""
    left, right, out = operands
    torch.mm(left, right, out=out)
    truth = left[:1].double() @ right.double()
    error = float((out[:1].double() - truth).abs().max() / truth.abs().max())
    # Rounding grows like √n · 2⁻²⁴, about 3e-6 at n = 2048; a wrong product is off by order 1.
    if not error < 1e-4:
        raise CalibrationError(
            f"fp32 product of side {len(left)} is off by {error:g} (at most 1e-4): not a usable peak"
        )
    begin = time.perf_counter()
    torch.mm(left, right, out=out)
    return time.perf_counter() - begin


def _batches(operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], side: int, until: float) -> Iterator[float]:
    """FLOP/s of batches of at least `BATCH_S`, until the time `until`; at least one. 2n³ FLOPs a product."""
    left, right, out = operands
    while True:
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < BATCH_S:
            torch.mm(left, right, out=out)
            calls += 1
        yield calls * 2.0 * side**3 / elapsed
        if time.perf_counter() >= until:
            return


def _copies(deadline: float, progress: Progress) -> list[tuple[int, Spread]]:
    """Bytes/s, read plus written, of copies of rising size: (source bytes, rates)."""
    began = time.perf_counter()
    # Half of the time for the caches, half for the memory behind them.
    share = 0.5 * (deadline - began) / (len(COPY_BYTES) - 1)
    found: list[tuple[int, Spread]] = []
    for size in COPY_BYTES:
        until = deadline if size == COPY_BYTES[-1] else time.perf_counter() + share
        source = torch.ones(size // 4, dtype=torch.float32)
        target = torch.zeros_like(source)
        target.copy_(source)
        rates: list[float] = []
        while not rates or time.perf_counter() < until:
            calls, begin = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < BATCH_S / 4:
                target.copy_(source)
                calls += 1
            rates.append(calls * 2.0 * size / elapsed)
        found.append((size, spread(rates)))
        progress("memory copies", 0.6 + 0.4 * (time.perf_counter() - began) / max(deadline - began, 1e-9))
        # Memory that is short or slow ends the ladder early; the largest size reached stands for memory.
        if time.perf_counter() > deadline:
            break
    return found
