"""The processor as a device: a ladder of matrix products and a ladder of copies.

There is no datasheet peak for a processor under a given thread count, so the measured rate is the denominator. What
disturbs the measurement (other processes, hypervisor neighbours) only ever slows it down, so the rate is the 90th
percentile of short batches, with the median and the spread beside it and never less than ±25 % stated: on shared
2-core machines, eight rounds of the same product spread by 23 to 49 %.
bf16 is measured where the processor has instructions for it (AMX, AVX-512-BF16): elsewhere it runs 30 to 100 times
slower than fp32, and one small product tells.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.statistics import Spread, rate_of, spread
from mfu_sdk.records import Rate

SIZES = (256, 384, 512, 768, 1024, 1536, 2048)
"""Sides n of the square products: 0.75 MB to 48 MB of fp32 operands."""
COPY_BYTES = tuple(1 << power for power in range(17, 28))
"""Source sizes of the copies: 128 KiB to 128 MiB; a copy's working set is twice that."""
LONGEST_CALL_S = 0.15
BATCH_S = 0.02
FLOOR = 0.25
# Rounding alone: √n · 2⁻²⁴ in fp32, about 3e-6 at n = 2048; 2⁻⁸ of the result in bf16. A wrong product is off by 1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}

Progress = Callable[[str, float], None]
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the processor did: FLOP/s by dtype, bytes/s, bytes/s by working set, and what the batches looked like."""

    products: dict[str, Rate]
    memory: Rate
    memory_by_size: tuple[tuple[int, float], ...]
    state: dict[str, str | float | bool]


def measure(budget_s: float, progress: Progress, history: Mapping[str, Sequence[float]]) -> Measurement:
    """Measure within `budget_s` seconds: three fifths for the products, two fifths for the copies.

    The user's random state, default dtype and flags stay as they are: operands come from a private generator and
    results go into buffers made here. `history` holds what earlier runs found, by dtype and for "memory". Raises
    `CalibrationError` when not one batch fits or the product is wrong.
    """
    start = time.perf_counter()
    cpu_start = time.process_time()
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        side = _best_side(start + 0.2 * budget_s, generator, progress)
        found = {"float32": _products(side, torch.float32, start + 0.5 * budget_s, generator, progress)}
        busy_wall = time.perf_counter() - start
        busy_cpu = time.process_time() - cpu_start
        if _has_bf16(found["float32"].median, generator):
            found["bfloat16"] = _products(side, torch.bfloat16, start + 0.6 * budget_s, generator, progress)
        copies = _copies(start + budget_s, progress)
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # All threads busy all the time would make CPU time = threads × wall time; less means that someone else had them.
    stolen = busy_wall * threads / busy_cpu if busy_cpu > 0 else float("inf")
    largest = copies[-1][1]
    state: dict[str, str | float | bool] = {
        "threads": float(threads),
        "load_1m": round(load, 2),
        "wall_over_cpu": round(stolen, 3),
        "contended": stolen > 1.2 or load > (os.cpu_count() or 1) + threads,
        "product_side": float(side),
        "memory_spread": round(largest.relative, 4),
    }
    for dtype, batches in found.items():
        state |= {
            f"{dtype}_batches": float(batches.samples),
            f"{dtype}_median_flops_per_s": batches.median,
            f"{dtype}_p10_flops_per_s": batches.p10,
            f"{dtype}_spread": round(batches.relative, 4),
        }
    return Measurement(
        products={
            dtype: rate_of(batches.p90, batches, FLOOR, history=history.get(dtype, ()))
            for dtype, batches in found.items()
        },
        memory=rate_of(largest.median, largest, FLOOR, history=history.get("memory", ())),
        memory_by_size=tuple((2 * size, rates.median) for size, rates in copies),
        state=state,
    )


def _best_side(deadline: float, generator: torch.Generator, progress: Progress) -> int:
    """The side whose fp32 product runs fastest, of those that could be tried until `deadline`."""
    best: tuple[float, int] | None = None
    for position, side in enumerate(SIZES):
        operands = _operands(side, torch.float32, generator)
        call_s = _check(operands)
        if best is not None and (call_s > LONGEST_CALL_S or time.perf_counter() > deadline):
            break
        rate = max(_batches(operands, until=time.perf_counter() + 3 * max(BATCH_S, call_s)))
        best = max(best or (0.0, 0), (rate, side))
        progress(f"fp32 matrix product, {side}²", 0.2 * position / len(SIZES))
    assert best is not None
    return best[1]


def _products(side: int, dtype: torch.dtype, deadline: float, generator: torch.Generator, progress: Progress) -> Spread:
    """FLOP/s of batches of products until `deadline`; at least one batch."""
    operands = _operands(side, dtype, generator)
    _check(operands)
    began = time.perf_counter()
    rates: list[float] = []
    for rate in _batches(operands, until=deadline):
        rates.append(rate)
        share = (time.perf_counter() - began) / max(deadline - began, 1e-9)
        progress(f"{str(dtype).removeprefix('torch.')} matrix product, {side}²", 0.2 + 0.4 * share)
    return spread(rates)


def _has_bf16(fp32_flops_per_s: float, generator: torch.Generator) -> bool:
    """Whether a small bf16 product runs at half of the fp32 rate or better."""
    side = SIZES[0]
    operands = _operands(side, torch.bfloat16, generator)
    _check(operands)
    return 2.0 * side**3 / _check(operands) > fp32_flops_per_s / 2


def _operands(side: int, dtype: torch.dtype, generator: torch.Generator) -> Operands:
    # The device is named, because the user may have set another one as the default.
    left, right = (torch.randn(side, side, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2))
    return left.to(dtype), right.to(dtype), torch.full((side, side), float("nan"), dtype=dtype, device="cpu")


def _check(operands: Operands) -> float:
    """Seconds of one call, after its first row was held against float64. Raises `CalibrationError` if it is wrong."""
    left, right, out = operands
    torch.mm(left, right, out=out)
    truth = left[:1].double() @ right.double()
    error = float((out[:1].double() - truth).abs().max() / truth.abs().max())
    if not error < TOLERANCE[left.dtype]:
        raise CalibrationError(
            f"{left.dtype} product of side {len(left)} is off by {error:g} (at most {TOLERANCE[left.dtype]:g}): "
            "not a usable peak"
        )
    begin = time.perf_counter()
    torch.mm(left, right, out=out)
    return time.perf_counter() - begin


def _batches(operands: Operands, until: float) -> Iterator[float]:
    """FLOP/s of batches of at least `BATCH_S`, until the time `until`; at least one. 2n³ FLOPs a product."""
    left, right, out = operands
    while True:
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < BATCH_S:
            torch.mm(left, right, out=out)
            calls += 1
        yield calls * 2.0 * len(left) ** 3 / elapsed
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
        source = torch.ones(size // 4, dtype=torch.float32, device="cpu")
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
