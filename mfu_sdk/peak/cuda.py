"""A CUDA device measured with the vendor's matrix product and a device-to-device copy.

Launches are queued in batches between two events, so what is timed is the device and not the launch. Operands are
random (zeros draw less power and run up to 15 % faster) and rotate through sets larger than the L2 cache. fp32 is
measured twice, as TF32 and as itself: whether torch may use TF32 is set for the measurement and set back. The Triton
candidates, per-architecture shapes and the clock probe of the full protocol are not in this version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch

from mfu_sdk.counting.precision import fp32_products
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.statistics import Spread, rate_of, spread
from mfu_sdk.records import Rate

SIDE = 8192
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
}
COPY_BYTES = 1 << 30
SETS = 3
BATCH_S = 0.05
# ± 1 % is what repeated runs of the same device differ by at the least; one run cannot claim less.
FLOOR = 0.01

Progress = Callable[[str, float], None]


def measure(
    device: str, dtypes: Iterable[str], budget_s: float, progress: Progress
) -> tuple[dict[str, Rate], Rate, dict[str, str | float | bool]]:
    """Per dtype FLOP/s, bytes/s (read plus written) and the spread of each, within about `budget_s` seconds.

    Raises `CalibrationError` for a device without room for the operands or a product that is wrong.
    """
    # Before Ampere there is no TF32, and asking for it gives fp32.
    has_tf32 = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    wanted = tuple(dtype for dtype in dtypes if dtype != "tf32" or has_tf32)
    share = budget_s / (len(wanted) + 1)
    rates: dict[str, Rate] = {}
    state: dict[str, str | float | bool] = {}
    with torch.cuda.device(device), torch.no_grad(), torch.autocast("cuda", enabled=False):
        generator = torch.Generator(device).manual_seed(0)
        for position, name in enumerate(wanted):
            progress(f"{name} matrix product", position / (len(wanted) + 1))
            with fp32_products(tf32=name == "tf32"):
                found = _products(device, DTYPES[name], share, generator)
            rates[name] = rate_of(found.median, found, FLOOR)
            state |= {
                f"{name}_batches": float(found.samples),
                f"{name}_median_flops_per_s": found.median,
                f"{name}_spread": round(found.relative, 4),
            }
        progress("memory copies", len(wanted) / (len(wanted) + 1))
        copies = _copies(device, share)
        state["memory_spread"] = round(copies.relative, 4)
    return rates, rate_of(copies.median, copies, FLOOR), state


def _products(device: str, dtype: torch.dtype, budget_s: float, generator: torch.Generator) -> Spread:
    try:
        sets = [
            tuple(torch.randn(SIDE, SIDE, device=device, dtype=dtype, generator=generator) for _ in range(2))
            for _ in range(SETS)
        ]
        out = torch.full((SIDE, SIDE), float("nan"), device=device, dtype=dtype)
    except torch.OutOfMemoryError as error:
        raise CalibrationError(
            f"{device}: no room for {SETS} operand sets of {SIDE}² {dtype}; calibrate before the model is loaded"
        ) from error
    torch.mm(*sets[0], out=out)
    truth = sets[0][0][:1].double() @ sets[0][1].double()
    error_ratio = float((out[:1].double() - truth).abs().max() / truth.abs().max())
    # bf16 keeps 8 bits: rounding the result alone is off by up to 2⁻⁸ = 0.4 %.
    if not error_ratio < 0.02:
        raise CalibrationError(f"{device}: {dtype} product is off by {error_ratio:g} (at most 0.02): not a usable peak")
    return _timed(
        lambda index: torch.mm(*sets[index % SETS], out=out), work=2.0 * SIDE**3, budget_s=budget_s, drop_s=0.3
    )


def _copies(device: str, budget_s: float) -> Spread:
    free, _total = torch.cuda.mem_get_info(device)
    size = min(COPY_BYTES, int(free * 0.1)) // 4 * 4
    source = torch.ones(size // 4, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    return _timed(lambda _index: target.copy_(source), work=2.0 * size, budget_s=budget_s, drop_s=0.0)


def _timed(call: Callable[[int], object], *, work: float, budget_s: float, drop_s: float) -> Spread:
    """Units of `work` a second over batches of about `BATCH_S`; what ran in the first `drop_s` seconds is dropped.

    The first moments run at boost clocks that no training step sees.
    """
    calls = 1
    began = time.perf_counter()
    rates: list[float] = []
    while True:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for index in range(calls):
            call(index)
        end.record()
        # Calibration is not on a step path: waiting for the batch is what bounds the time.
        end.synchronize()
        seconds = start.elapsed_time(end) / 1e3
        spent = time.perf_counter() - began
        if seconds < BATCH_S / 2:
            calls *= 2
        elif spent > min(drop_s, budget_s / 2) or spent > budget_s:
            rates.append(calls * work / seconds)
        if spent > budget_s and rates:
            return spread(rates)
