"""Aids for debugging that are on in this process or its environment and slow a run down."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mfu_sdk.doctor.finding import Finding

_COLLECTIVES = "collectives are checked or waited for, and communication does not hide behind arithmetic"


@dataclass(frozen=True, slots=True)
class _Variable:
    """A variable that slows a run when `on` says so of its value; `cuda` where it does so to a GPU alone."""

    name: str
    on: Callable[[str], bool]
    state: Literal["note", "bad"]
    effect: str
    cuda: bool = True


def _set(value: str) -> bool:
    return value.lower() not in ("", "0", "n", "no", "f", "false", "off")


# Each is read by CUDA, NCCL or torch as it is here. What costs only compilation (TORCH_LOGS, TORCH_COMPILE_DEBUG) is
# not among them: it is over before a step is measured. Neither is TORCH_USE_CUDA_DSA, an option of torch's own build.
_VARIABLES = (
    _Variable("CUDA_LAUNCH_BLOCKING", _set, "bad", "the host waits for every kernel"),
    _Variable("AMD_SERIALIZE_KERNEL", _set, "bad", "the host waits for every kernel"),
    _Variable("PYTORCH_NO_CUDA_MEMORY_CACHING", bool, "bad", "every tensor is allocated by the driver, which waits"),
    _Variable("NV_SANITIZER_INJECTION_PORT_BASE", bool, "bad", "compute-sanitizer checks every access of every kernel"),
    _Variable("CUDA_INJECTION64_PATH", bool, "note", "a profiler or checker sits between torch and the driver"),
    _Variable(
        "NVIDIA_TF32_OVERRIDE", lambda value: value == "0", "note", "no library uses TF32, whatever torch allows"
    ),
    _Variable("TORCH_DISTRIBUTED_DEBUG", lambda value: value.upper() == "DETAIL", "note", _COLLECTIVES),
    _Variable("TORCH_NCCL_BLOCKING_WAIT", _set, "note", _COLLECTIVES),
    _Variable(
        "TORCH_COMPILE_DISABLE", lambda value: value == "1", "note", "torch.compile compiles nothing", cuda=False
    ),
    _Variable("TORCHDYNAMO_DISABLE", lambda value: value == "1", "note", "torch.compile compiles nothing", cuda=False),
)


def debugging_findings(environment: Mapping[str, str], torch: Any, *, cuda: bool) -> Iterator[Finding]:
    """What is on in `environment`, in this interpreter and in `torch`; one line that says so if nothing is.

    What a script turns on for itself is seen only when this is asked in that script (`mfu_sdk.doctor.examine`).
    """
    found = [*_environment(environment, cuda=cuda), *_interpreter(environment), *_torch(torch)]
    yield from found or [Finding("debugging", "good", "no aid is on in this environment that slows a run down")]


def _environment(environment: Mapping[str, str], *, cuda: bool) -> Iterator[Finding]:
    for variable in _VARIABLES:
        value = environment.get(variable.name, "")
        if variable.on(value) and (cuda or not variable.cuda):
            yield Finding("debugging", variable.state, f"{variable.name}={value}: {variable.effect}; unset it")


def _interpreter(environment: Mapping[str, str]) -> Iterator[Finding]:
    if hasattr(sys, "gettotalrefcount"):
        yield Finding("debugging", "bad", "this Python is a debug build: launches come late; use a release build")
    if sys.flags.dev_mode:
        yield Finding(
            "debugging", "note", "Python's development mode (-X dev, PYTHONDEVMODE) checks memory: launches come late"
        )
    if watching := _watching():
        yield Finding(
            "debugging", "note",
            f"{', '.join(watching)} in this interpreter (a debugger, coverage or a profiler): launches come late; "
            "measure without it",
        )  # fmt: skip
    # What is loaded already, as in a process that is being traced; nothing is imported to ask.
    tracemalloc = sys.modules.get("tracemalloc")
    if tracemalloc is not None and tracemalloc.is_tracing():
        yield Finding(
            "debugging", "note", "tracemalloc records every allocation of Python: launches come late; stop it"
        )
    if "asan" in environment.get("LD_PRELOAD", "") or "tsan" in environment.get("LD_PRELOAD", ""):
        yield Finding(
            "debugging", "bad", f"LD_PRELOAD={environment['LD_PRELOAD']}: a sanitizer checks every access; unset it"
        )


def _watching() -> list[str]:
    """What Python calls for every line, call or event."""
    hooks = {
        "sys.settrace": sys.gettrace(),
        "sys.setprofile": sys.getprofile(),
        "threading.settrace": threading.gettrace(),
        "threading.setprofile": threading.getprofile(),
    }
    monitoring = getattr(sys, "monitoring", None)
    tools = [] if monitoring is None else [monitoring.get_tool(number) for number in range(6)]
    return [name for name, hook in hooks.items() if hook is not None] + [
        f"sys.monitoring ({tool})" for tool in tools if tool is not None
    ]


def _torch(torch: Any) -> Iterator[Finding]:
    if torch.version.debug:
        yield Finding("debugging", "bad", f"torch {torch.__version__} is a debug build; install a release build")
    if torch.is_anomaly_enabled():
        yield Finding(
            "debugging",
            "bad",
            "autograd's anomaly detection keeps a stack for every operator and looks for NaN; end it",
        )
    if torch.are_deterministic_algorithms_enabled():
        yield Finding(
            "debugging", "note", "torch.use_deterministic_algorithms chooses slower kernels: MFU is that of those"
        )
    if torch.autograd.profiler._is_profiler_enabled:
        yield Finding("debugging", "note", "torch's profiler is recording: launches come late; measure without it")
