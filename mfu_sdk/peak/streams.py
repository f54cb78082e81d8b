"""Copies, triads and reads as candidates for a device memory's rate, on random data far larger than any cache."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.buffers import Buffers, OutOfRoomError
from mfu_sdk.peak.protocol import Batch
from mfu_sdk.peak.stopwatch import Pace, Stopwatch

LEAST_BYTES: Final = 32 << 20
_PROGRAMS_A_UNIT: Final = 8
_SAMPLE: Final = 4096


class Stream:
    """A candidate: one kernel that moves `moved_bytes` a call, each operand counted once (McCalpin 1995)."""

    def __init__(self, name: str, moved_bytes: int, call: Callable[[], object], stopwatch: Stopwatch) -> None:
        self.name = name
        self._moved_bytes = moved_bytes
        self._call = call
        self._stopwatch = stopwatch
        self._pace = Pace()

    def run(self, seconds: float) -> Batch:
        """Calls for about `seconds`, by what the last ones took."""
        calls = self._pace.calls(seconds)
        elapsed, clock_mhz = self._stopwatch.time(lambda _index: self._call(), calls)
        self._pace.took(calls, elapsed)
        return Batch(calls * float(self._moved_bytes), elapsed, clock_mhz)


class Memory:
    """Three buffers of one size, and what can be done with them.

    `size` bytes each, or half as often as it takes to fit. Raises `OutOfRoomError` where not even 32 MiB do.
    """

    def __init__(self, size: int, buffers: Buffers, generator: torch.Generator, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        while True:
            try:
                with buffers.attempt():
                    found = [buffers.empty((size // 4,), torch.float32) for _ in range(3)]
                self._source, self._other, self._out = found
                break
            except OutOfRoomError:
                size //= 2
                if size < LEAST_BYTES:
                    raise
        self.size = size // 4 * 4
        self._source.normal_(generator=generator)
        self._other.normal_(generator=generator)
        self._partial = buffers.empty((4096,), torch.float32)

    def copy(self) -> Stream:
        """The driver's copy."""
        return self._checked("torch copy", 2, lambda: self._out.copy_(self._source), lambda: self._source)

    def ours(self) -> Iterator[Stream]:
        """Our copy and triad; none without Triton. Raises whatever Triton does where it cannot compile."""
        source, other, out = self._source, self._other, self._out
        stream = _kernels(source.device)
        if stream is not None:
            yield self._checked("triton copy", 2, lambda: stream.copy(source, out), lambda: source)
            # A number that multiplies without rounding, so that the result is known to the last bit.
            yield self._checked("triton triad", 3, lambda: stream.triad(source, other, 0.5, out), self._triad)

    def read(self, units: int) -> Stream | None:
        """What only reads; None without Triton."""
        stream = _kernels(self._source.device)
        if stream is None:
            return None
        partial = self._partial[: max(1, min(len(self._partial), _PROGRAMS_A_UNIT * units))]
        return Stream("triton read", self.size, lambda: stream.read(self._source, partial), self._stopwatch)

    def _triad(self) -> Tensor:
        at = slice(0, _SAMPLE)
        return self._source[at].cpu() + 0.5 * self._other[at].cpu()

    def _checked(self, name: str, operands: int, call: Callable[[], object], truth: Callable[[], Tensor]) -> Stream:
        self._out.fill_(float("nan"))
        call()
        ends = (slice(0, _SAMPLE), slice(len(self._out) - _SAMPLE, len(self._out)))
        got = self._out[ends[0]].cpu()
        if not torch.equal(got, truth()[ends[0]].cpu()) or bool(torch.isnan(self._out[ends[1]].cpu()).any()):
            raise CalibrationError(f"{name}: does not write what it should: not a usable kernel")
        return Stream(name, operands * self.size, call, self._stopwatch)


def _kernels(device: torch.device) -> Any:
    try:
        stream = importlib.import_module("mfu_kernels.stream")
        gemm = importlib.import_module("mfu_kernels.gemm")
    except ImportError:
        return None
    return stream if device.type != "cpu" or gemm.INTERPRETED else None
