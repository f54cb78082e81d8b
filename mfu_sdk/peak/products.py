"""Matrix products as candidates for a device's peak: the vendor's library and our own kernels, on random operands.

Operands are random, since zeros switch fewer transistors and run up to 15 % faster, and come from a generator of their
own. They rotate through sets larger than the last cache. Before a candidate is timed, its output is filled with what it
cannot be and rows of it are held against float64: a kernel that is wrong is no candidate.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final

import torch
from torch import Tensor

from mfu_sdk.counting.precision import fp32_products, products_allow_tf32
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.buffers import Buffers, OutOfRoomError
from mfu_sdk.peak.protocol import Batch
from mfu_sdk.peak.shapes import Shape
from mfu_sdk.peak.stopwatch import Pace, Stopwatch

_KERNELS: Final = ("gemm_persistent", "gemm_descriptor", "gemm")
_MOST_SETS: Final = 64
_CHUNK_ROWS: Final = 64
# torch's products of eight bits have names of its own use only.
_torch: Final[Any] = torch
_POISON: Final = -(1 << 31)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A dtype of products: what its operands and its output are stored in, and how far rounding may put a result off.

    `tolerance` is a share of the largest true value. Sums are in fp32 (int8: exact in int32), and the result keeps
    eight bits in bf16, eleven in fp16; TF32 keeps eleven of each operand. The sums of Hopper's eight-bit products are
    cut off at some fourteen bits as they go (fast accumulation).
    """

    operand: torch.dtype
    output: torch.dtype
    tolerance: float
    tf32: bool | None = None


NUMBERS: Final = {
    "bfloat16": Numbers(torch.bfloat16, torch.bfloat16, 0.02),
    "float16": Numbers(torch.float16, torch.float16, 0.005),
    "tf32": Numbers(torch.float32, torch.float32, 0.005, tf32=True),
    "float32": Numbers(torch.float32, torch.float32, 1e-4, tf32=False),
    "float8_e4m3fn": Numbers(torch.float8_e4m3fn, torch.bfloat16, 0.05),
    "float8_e5m2": Numbers(torch.float8_e5m2, torch.bfloat16, 0.05),
    "float8_e4m3fnuz": Numbers(torch.float8_e4m3fnuz, torch.bfloat16, 0.05),
    "float8_e5m2fnuz": Numbers(torch.float8_e5m2fnuz, torch.bfloat16, 0.05),
    "int8": Numbers(torch.int8, torch.int32, 0.0),
}
"""By the dtype's name in a `Peaks`."""


@dataclass(frozen=True, slots=True)
class Operands:
    """Sets of (a, b) with a (m, k) by rows and b (k, n) by columns, as matrix units like them, and where they go."""

    shape: Shape
    sets: tuple[tuple[Tensor, Tensor], ...]
    out: Tensor


Call = Callable[[Tensor, Tensor, Tensor], object]
"""a, b, out: writes the product into `out`."""


class Product:
    """A candidate: one kernel on one shape."""

    def __init__(self, name: str, operands: Operands, call: Call, stopwatch: Stopwatch) -> None:
        self.name = f"{name} {operands.shape}"
        self._operands = operands
        self._call = call
        self._stopwatch = stopwatch
        self._pace = Pace()
        self._next = 0

    def run(self, seconds: float) -> Batch:
        """Calls for about `seconds`, by what the last ones took."""
        calls = self._pace.calls(seconds)
        elapsed, clock_mhz = self._stopwatch.time(self._turn, calls)
        self._pace.took(calls, elapsed)
        return Batch(calls * float(self._operands.shape.flops), elapsed, clock_mhz)

    def _turn(self, _index: int) -> None:
        sets = self._operands.sets
        self._next = (self._next + 1) % len(sets)
        self._call(*sets[self._next], self._operands.out)


def allocate(
    shape: Shape,
    numbers: Numbers,
    buffers: Buffers,
    cache_bytes: int,
    generator: torch.Generator,
    *,
    room_bytes: float = inf,
    least_flops: float = 0.0,
) -> Operands:
    """Operands of `shape`, or of half its sides where they do not fit, in sets of four times `cache_bytes` in all.

    They take no more than `room_bytes`: first there are fewer sets, two at the least, then smaller ones. Raises
    `OutOfRoomError` where nothing of at least `least_flops` a product fits: what is smaller would time its launch.
    """
    wanted = shape
    while True:
        try:
            if _bytes(shape, numbers, 2) > room_bytes:
                raise OutOfRoomError(f"{_bytes(shape, numbers, 2):,} bytes of {room_bytes:,.0f} that may be taken")
            with buffers.attempt():
                return _filled(shape, numbers, buffers, cache_bytes, generator, room_bytes)
        except OutOfRoomError as error:
            smaller = shape.smaller()
            if smaller is None or smaller.flops < least_flops:
                raise OutOfRoomError(
                    f"no room for a product of {wanted} in {numbers.operand}, nor for a smaller one ({error}); "
                    "calibrate before the model is loaded"
                ) from error
            shape = smaller


def _bytes(shape: Shape, numbers: Numbers, sets: int) -> int:
    """What so many sets of operands and one output take."""
    one = shape.operand_bytes(numbers.operand.itemsize)
    return sets * one + shape.m * shape.n * numbers.output.itemsize


def _filled(
    shape: Shape,
    numbers: Numbers,
    buffers: Buffers,
    cache_bytes: int,
    generator: torch.Generator,
    room_bytes: float,
) -> Operands:
    one = shape.operand_bytes(numbers.operand.itemsize)
    fit = (room_bytes - _bytes(shape, numbers, 0)) // one
    number = int(max(2, min(_MOST_SETS, fit, -(-4 * cache_bytes // one))))
    out = buffers.empty((shape.m, shape.n), numbers.output)
    rows = [
        (buffers.empty((shape.m, shape.k), numbers.operand), buffers.empty((shape.n, shape.k), numbers.operand))
        for _ in range(number)
    ]
    chunk = buffers.empty((_CHUNK_ROWS, shape.k), torch.float32)
    for pair in rows:
        for tensor in pair:
            _fill(tensor, chunk, generator)
    return Operands(shape, tuple((a, b.T) for a, b in rows), out)


def _fill(tensor: Tensor, chunk: Tensor, generator: torch.Generator) -> None:
    """Normal deviates; eight-bit floats scaled so that the largest is near the format's, integers over their range."""
    if tensor.dtype == torch.int8:
        tensor.random_(-127, 128, generator=generator)
        return
    if tensor.dtype.itemsize > 1:
        tensor.normal_(generator=generator)
        return
    # A million normal deviates reach about 5: a fifth of the largest number leaves none to saturate, or next to none.
    scale = torch.finfo(tensor.dtype).max / 5.5
    for start in range(0, len(tensor), len(chunk)):
        part = tensor[start : start + len(chunk)]
        part.copy_(chunk[: len(part)].normal_(generator=generator).mul_(scale).clamp_(-scale * 5.5, scale * 5.5))


def check(operands: Operands, call: Call, numbers: Numbers, name: str) -> None:
    """Raise `CalibrationError` unless rows of the product, of the first set, are what float64 says.

    The output is filled beforehand with what a product cannot be, so that a kernel which writes nothing, or not
    everything, is found out. Three rows and the first and last columns are compared, on the processor.
    """
    (a, b), out = operands.sets[0], operands.out
    out.fill_(_POISON if out.dtype == torch.int32 else float("nan"))
    call(a, b, out)
    columns = b.T
    picked = (slice(0, _CHUNK_ROWS), slice(max(len(columns) - _CHUNK_ROWS, 0), len(columns)))
    parts = [columns[each].cpu().double() for each in picked]
    for row in sorted({0, len(a) // 2, len(a) - 1}):
        got = out[row].cpu().double()
        if not bool(torch.isfinite(got).all()) or (out.dtype == torch.int32 and bool((got == _POISON).any())):
            raise CalibrationError(f"{name}: left parts of row {row} of its product unwritten: not a usable kernel")
        left = a[row].cpu().double()
        for each, part in zip(picked, parts, strict=True):
            truth = part @ left
            error = float((got[each] - truth).abs().max() / truth.abs().max())
            if not error <= numbers.tolerance:
                raise CalibrationError(
                    f"{name}: product is off by {error:g} in row {row} (at most {numbers.tolerance:g}): "
                    "not a usable kernel"
                )


def vendor(dtype: str, buffers: Buffers) -> tuple[str, Call] | None:
    """The product of the library that torch calls for `dtype`, by its name; None where there is none."""
    numbers = NUMBERS[dtype]
    if dtype == "int8":
        # The out-variant checks shapes alone.
        return "torch._int_mm", lambda a, b, out: _torch._int_mm(a, b, out=out)
    if numbers.operand.itemsize > 1:
        return "torch.mm", lambda a, b, out: torch.mm(a, b, out=out)
    if "e5m2" in dtype:
        # No vendor's library multiplies two of these: torch's gradients are e5m2 times e4m3.
        return None
    one = buffers.empty((), torch.float32).fill_(1.0)
    # Sums as the Hopper recipes for training have them in the forward; nothing changes elsewhere.
    scaled = _torch._scaled_mm
    return "torch._scaled_mm", lambda a, b, out: scaled(
        a, b, one, one, out_dtype=out.dtype, use_fast_accum=True, out=out
    )


def ours(dtype: str, device: torch.device) -> Iterator[tuple[str, Call]]:
    """Our own kernels for `dtype` on `device`, those that move tiles by descriptors first; none without Triton.

    What an architecture or the Triton that is installed lacks is left out (`configs.lacks`).
    """
    try:
        gemm = importlib.import_module("mfu_kernels.gemm")
        configs = importlib.import_module("mfu_kernels.configs")
    except ImportError:
        return
    precision = "tf32" if dtype == "tf32" else "ieee"
    if device.type == "cpu":
        names: Sequence[str] = _KERNELS if gemm.INTERPRETED and precision == "ieee" else ()
        names = [name for name in names if name == "gemm" or gemm.HAS_DESCRIPTORS]
    else:
        architecture = gemm.architecture_of(device)
        names = [name for name in _KERNELS if not configs.lacks(name, architecture, dtype, gemm.TRITON)]
    for name in names:
        yield f"triton {name}", partial(_by_kernel, gemm.matmul, precision, name)


def _by_kernel(matmul: Any, precision: str, kernel: str, a: Tensor, b: Tensor, out: Tensor) -> object:
    return matmul(a, b, out, precision=precision, kernel=kernel)


def precision_of(dtype: str) -> AbstractContextManager[None]:
    """What lets `torch.mm` run in `dtype`: nothing, but where fp32 is wanted in the other way than the user has it."""
    wanted = NUMBERS[dtype].tf32
    if wanted is None or wanted == products_allow_tf32():
        return nullcontext()
    return fp32_products(tf32=wanted)
