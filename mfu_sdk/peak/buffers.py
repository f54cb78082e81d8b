"""Device memory for a calibration, taken past torch's allocator, whose statistics and cache are the user's."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Protocol

import torch

from mfu_sdk.errors import CalibrationError

_DRIVER = "libcuda.so.1"
_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY of the driver's interface (cuda.h)."""


class OutOfRoomError(CalibrationError):
    """The device has no room for what was asked; smaller operands may fit."""


class Buffers(Protocol):
    """Tensors with memory of their own, all given back together. A context manager."""

    origin: str

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor, not initialised. Raises `OutOfRoomError`."""
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """What is taken inside of the block is given back where `OutOfRoomError` ends it; then use none of it."""
        ...

    def __enter__(self) -> Buffers:
        """Itself."""
        ...

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give everything back; no tensor may be used after this."""
        ...


class TorchBuffers:
    """Memory from torch's allocator: on a processor, and where a GPU's driver cannot be asked directly."""

    origin = "torch"

    def __init__(self, device: str) -> None:
        self._device = device

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor, not initialised. Raises `OutOfRoomError`."""
        try:
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)
        except torch.OutOfMemoryError as error:
            raise OutOfRoomError(f"{self._device} has no room for {tuple(shape)} of {dtype}") from error

    def attempt(self) -> AbstractContextManager[None]:
        """torch takes back a tensor's memory when nobody holds it any more."""
        return nullcontext()

    def __enter__(self) -> TorchBuffers:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None


class _Block:
    """A stretch of device memory, in the form in which torch takes it over without copying."""

    def __init__(self, address: int, size: int) -> None:
        # The CUDA array interface, version 3 (numba's documentation); bytes, so that any dtype can be viewed in it.
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


class DriverBuffers:
    """Memory of an NVIDIA GPU straight from its driver (cuMemAlloc), in the context that torch has made current."""

    origin = "driver"

    def __init__(self, device: str, driver: ctypes.CDLL) -> None:
        self._device = device
        self._driver = driver
        self._addresses: list[int] = []

    @classmethod
    def open(cls, device: str) -> DriverBuffers | None:
        """None where there is no such driver, or no NumPy, through which torch takes memory over that is not its own.

        torch must have used the device before.
        """
        if importlib.util.find_spec("numpy") is None:
            return None
        try:
            driver = ctypes.CDLL(_DRIVER)
            driver.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
            driver.cuMemFree_v2.argtypes = [ctypes.c_uint64]
        except (OSError, AttributeError):
            return None
        return cls(device, driver)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor, not initialised. Raises `OutOfRoomError`, and `CalibrationError` for other refusals."""
        elements = 1
        for side in shape:
            elements *= side
        address = self.allocate(elements * dtype.itemsize)
        flat = torch.as_tensor(_Block(address, elements * dtype.itemsize), device=self._device)
        return flat.view(dtype).view(tuple(shape))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, given back on leaving."""
        address = ctypes.c_uint64()
        status = self._driver.cuMemAlloc_v2(ctypes.byref(address), size)
        if status == _OUT_OF_MEMORY:
            raise OutOfRoomError(f"{self._device} has no room for {size:,} bytes")
        if status:
            raise CalibrationError(f"{self._device}: cuMemAlloc of {size:,} bytes failed with {status}; see cuda.h")
        self._addresses.append(address.value)
        return address.value

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Give back what a failed attempt has taken, so that a smaller one finds room."""
        before = len(self._addresses)
        try:
            yield
        except OutOfRoomError:
            self._release(before)
            raise

    def _release(self, keep: int) -> None:
        # cuMemFree waits for what still uses the memory.
        while len(self._addresses) > keep:
            self._driver.cuMemFree_v2(self._addresses.pop())

    def __enter__(self) -> DriverBuffers:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._release(0)


def buffers_for(device: str) -> Buffers:
    """The driver's where it can be asked, else torch's."""
    if device.startswith("cuda") and torch.version.hip is None and (found := DriverBuffers.open(device)) is not None:
        return found
    return TorchBuffers(device)
