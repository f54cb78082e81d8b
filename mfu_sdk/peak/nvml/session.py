"""A session with NVML, through nvidia-ml-py: the only file that talks to either.

Every question may fail (not supported on this board, not permitted in this container, not in this driver, the GPU
fallen off the bus, the driver unloaded in the middle of a run), and then its answer is None: nothing here raises but
`Nvml.open`. A driver that came back is met in a new session.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mfu_sdk.errors import NvmlError

if TYPE_CHECKING:
    from mfu_sdk.peak.nvml.gpu import Gpu

# nvmlReturn_t. `UNKNOWN` stands for whatever went wrong outside of NVML: a binding without the function, bytes that are
# no text.
SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 0, 1, 2, 3, 4, 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, VERSION_MISMATCH, UNKNOWN = 9, 12, 18, 999
_REMEDIES = {
    NO_PERMISSION: "let this user read and write /dev/nvidiactl and the GPU's /dev/nvidia*",
    DRIVER_NOT_LOADED: "install NVIDIA's driver, or load its kernel module (modprobe nvidia)",
    LIBRARY_NOT_FOUND: "install NVIDIA's driver, or give this container its `utility` capability",
    VERSION_MISMATCH: "the library and the loaded kernel module differ: reboot, or reload the module",
}
# nvmlValueType_t: which member of the union holds a field's value.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


@dataclass(frozen=True, slots=True)
class Reading:
    """A field's value, and when NVML read it, in microseconds of the CPU's clock."""

    value: float
    at_us: int


class Nvml:
    """An open NVML session. Safe to use and to close from several threads; what is asked after closing is None.

    It belongs to the process that opened it: in a forked child it answers None, and closing it there does nothing.
    """

    __slots__ = ("_closing", "_lock", "_open", "_pid", "_pynvml")

    def __init__(self, pynvml: Any) -> None:
        self._pynvml = pynvml
        self._lock = threading.Lock()
        self._closing: list[Callable[[], None]] = []
        self._open = True
        self._pid = os.getpid()

    @classmethod
    def open(cls) -> Nvml:
        """Start a session; sessions are counted by NVML, so others' are not disturbed. Raises `NvmlError`."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:
            remedy = _REMEDIES.get(_code(error), "install NVIDIA's driver, or reload it")
            raise NvmlError(
                f"NVML cannot be used ({error}): the product, its clocks and MIG slices are unknown; {remedy}"
            ) from error
        return cls(pynvml)

    @property
    def alive(self) -> bool:
        """Whether it is open, in the process that opened it."""
        return self._open and os.getpid() == self._pid

    def close(self) -> None:
        """End the session, once what was made in it is freed. Closing twice is closing once."""
        if not self.alive:
            return
        with self._lock:
            was_open, self._open = self._open, False
            closing, self._closing = self._closing, []
        for free in closing:
            free()
        if was_open:
            self.call("nvmlShutdown")

    def before_close(self, free: Callable[[], None]) -> bool:
        """Have `free` called when the session closes; False where it is closed already. `free` may use `call`."""
        if not self.alive:
            return False
        with self._lock:
            if self._open:
                self._closing.append(free)
            return self._open

    def forget(self, free: Callable[[], None]) -> None:
        """Undo `before_close`: `free` has been called."""
        if not self.alive:
            return
        with self._lock:
            if free in self._closing:
                self._closing.remove(free)

    def __enter__(self) -> Nvml:
        """The session itself."""
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close."""
        self.close()

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of NVML's `function`, or None if it has none."""
        return self.answer(function, *arguments)[0]

    def answer(self, function: str, *arguments: Any) -> tuple[Any, int]:
        """The answer of NVML's `function` and its nvmlReturn_t, for where the reason of a refusal is told apart."""
        return self.call(function, *arguments) if self.alive else (None, UNINITIALIZED)

    def call(self, function: str, *arguments: Any) -> tuple[Any, int]:
        """As `answer`, but whether the session is open or not: for what must still happen while it closes."""
        try:
            return getattr(self._pynvml, function)(*arguments), SUCCESS
        except Exception as error:  # noqa: BLE001 - NVML's errors, a binding without the function, bytes that are no text
            return None, _code(error)

    def fields(self, handle: Any, wanted: Sequence[int | tuple[int, int]]) -> list[Reading | None]:
        """The fields (NVML_FI_*, or such a one and its scope) of a GPU, in one call; None where NVML has no value."""
        values = self.ask("nvmlDeviceGetFieldValues", handle, list(wanted))
        if values is None:
            return [None] * len(wanted)
        return [_reading(value) for value in values]

    def gpu(self, uuid: str) -> Gpu | None:
        """The GPU or MIG device with this UUID, with or without "GPU-" or "MIG-" before it; None if NVML sees none.

        CUDA numbers devices as CUDA_VISIBLE_DEVICES wants, NVML by bus: only the UUID is the same in both.
        """
        from mfu_sdk.peak.nvml.gpu import Gpu

        handle, _code = self.find(uuid)
        return None if handle is None else Gpu(self, handle)

    def gpus(self) -> list[Gpu]:
        """The GPUs that NVML gives this process, whole ones, by bus; empty where it does not tell."""
        from mfu_sdk.peak.nvml.gpu import Gpu

        handles = (
            self.ask("nvmlDeviceGetHandleByIndex", index) for index in range(self.ask("nvmlDeviceGetCount") or 0)
        )
        return [Gpu(self, handle) for handle in handles if handle is not None]

    def find(self, uuid: str) -> tuple[Any, int]:
        """The handle of the device that `gpu` would give, or None, and the nvmlReturn_t that says why."""
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        reason = NOT_FOUND
        for prefix in ("MIG-", "GPU-"):
            handle, code = self.answer("nvmlDeviceGetHandleByUUID", prefix + bare)
            if handle is not None:
                return handle, SUCCESS
            # That there is no such MIG device says nothing when the GPU is there and refuses.
            reason = code if code not in (NOT_FOUND, INVALID_ARGUMENT) else reason
        return None, reason


def _code(error: Exception) -> int:
    value = getattr(error, "value", UNKNOWN)
    return value if isinstance(value, int) else UNKNOWN


def _reading(value: Any) -> Reading | None:
    if value.nvmlReturn != SUCCESS or value.valueType >= len(_MEMBERS):
        return None
    return Reading(getattr(value.value, _MEMBERS[value.valueType]), value.timestamp)
