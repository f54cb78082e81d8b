"""The clock that a GPU really runs at, read inside a kernel: without NVML, in slices and containers too.

Each program reads the multiprocessor's cycle counter and the global nanosecond timer, works for a while, and reads both
again. Cycles over nanoseconds is the clock.
"""

# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Final

import torch
import triton
import triton.language as tl

WARPS: Final = 1
BLOCK: Final = 32
ROUNDS: Final = 200_000
"""Multiply-adds in a row, some 0.5 ms: the global timer of older devices steps by a microsecond."""


@triton.jit
def clock_kernel(x_ptr: tl.tensor, cycles_ptr: tl.tensor, ns_ptr: tl.tensor, rounds: int, block: tl.constexpr) -> None:
    """Cycles and nanoseconds that a chain of `rounds` multiply-adds took in this program."""
    program = tl.program_id(0)
    at = tl.arange(0, block)
    x = tl.load(x_ptr + at)
    # Not pure, so that neither is moved across the work or the other.
    ns_before = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    cycles_before = tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    y = x
    for _ in range(rounds):
        y = y * x + 0.5
    # Read where the work has ended: the sum hangs on it, and the counters on the sum.
    done = tl.sum(y)
    cycles_after = tl.inline_asm_elementwise(
        "{ .reg .f32 t; add.f32 t, $1, 0f00000000; mov.u64 $0, %clock64; }", "=l,f", [done],
        dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip
    ns_after = tl.inline_asm_elementwise(
        "{ .reg .f32 t; add.f32 t, $1, 0f00000000; mov.u64 $0, %globaltimer; }", "=l,f", [done],
        dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip
    tl.store(cycles_ptr + program, cycles_after - cycles_before)
    tl.store(ns_ptr + program, ns_after - ns_before)
    tl.store(x_ptr + at, y)


def clock_mhz(device: torch.device, programs: int | None = None, rounds: int = ROUNDS) -> float:
    """The median clock of the multiprocessors of an NVIDIA GPU, in MHz, over some 0.5 ms of light work.

    It runs beside what the device is at work on, on a stream of its own that goes first, and waits for that stream
    alone: a clock that is held down by the work's power rises within a millisecond of its end. `programs` is one for
    each multiprocessor where it is None. Raises ValueError on a device without these counters: AMD's have others, and a
    CPU none.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        raise ValueError(f"device {device}: the clock probe reads counters of NVIDIA's GPUs only")
    programs = programs or int(torch.cuda.get_device_properties(device).multi_processor_count)
    with torch.cuda.stream(torch.cuda.Stream(device, priority=-1)):
        x = torch.full((BLOCK,), 0.5, device=device)
        counted = torch.zeros(2, programs, dtype=torch.int64, device=device)
        clock_kernel[(programs,)](
            x, counted[0], counted[1], rounds, block=BLOCK, num_warps=WARPS, enable_fp_fusion=True
        )
        cycles, ns = counted.cpu()
    taken = ns > 0
    if not bool(taken.any()):
        raise ValueError(f"device {device}: its global timer stood still; give more rounds than {rounds}")
    return float((cycles[taken].double() / ns[taken].double()).median()) * 1e3
