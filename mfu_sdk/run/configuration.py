"""The facts of a run's configuration (`drift.fingerprint`): what stands when it opens, and what may change in it."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from mfu_sdk.drift.fingerprint import Fact, env_facts
from mfu_sdk.drift.samples import MAIN_SHARE
from mfu_sdk.guard import shield
from mfu_sdk.peak.key import key_of
from mfu_sdk.records import Count, RunIdentity

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.peak.device import Device

_ATTENTION: Final = ("scaled_dot_product", "flash", "efficient_attention", "flex_attention")
# What the modes of torch.compile differ in (torch._inductor.list_mode_options).
_COMPILER_OPTIONS: Final = ("max_autotune", "coordinate_descent_tuning", "triton.cudagraphs")
# Which board of a kind it is changes nothing that a configuration says.
_ONE_DEVICE: Final = frozenset({"uuid", "parent", "siblings", "protocol", "kernels", "threads"})


class Shown(NamedTuple):
    """What a counted step shows: its facts, all of its operators, and those that matter.

    These have FLOPs, or a hundredth of the bytes that the step moves.
    """

    facts: Mapping[str, Fact]
    operators: frozenset[str]
    main: frozenset[str]


def opened(model: nn.Module | None, device: Device, identity: RunIdentity) -> dict[str, Fact]:
    """What stands for the whole run: model, device and its driver, versions, ranks, switches of the environment."""
    import torch

    facts: dict[str, Fact] = {
        f"device.{name}": value for name, value in key_of(device).items() if name not in _ONE_DEVICE
    }
    facts |= {
        "model": identity.workload_family,
        "device.mig": identity.mig_profile,
        "parallel.world_size": identity.world_size,
        **{f"parallel.{name}": axis.size for name, axis in identity.axes.items()},
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        **env_facts(os.environ),
    }
    if device.kind == "cuda":
        from torch.cuda.nccl import version as nccl_version

        facts["cudnn"] = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        nccl = nccl_version() if torch.distributed.is_nccl_available() else None
        facts["nccl"] = None if nccl is None else ".".join(map(str, nccl))
    if model is not None:
        facts["dtype.parameters"] = {_name(parameter.dtype) for parameter in model.parameters()}
        kinds = {type(module).__name__ for module in model.modules()}
        facts["parallel.wrapper"] = kinds & {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
        facts |= _compilation(model)
    return facts


def now(device_kind: str) -> dict[str, Fact]:
    """The switches of torch that a program may turn at any time, as they stand; some microseconds."""
    import torch

    cuda = torch.backends.cuda
    kernels = {
        "flash": cuda.flash_sdp_enabled(),
        "mem_efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    facts: dict[str, Fact] = {
        "attention.allowed": {name for name, allowed in kernels.items() if allowed},
        "matmul.precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly_detection": torch.is_anomaly_enabled(),
    }
    if device_kind == "cpu":
        facts["threads"] = torch.get_num_threads()
    else:
        facts["cudnn.benchmark"] = torch.backends.cudnn.benchmark
    return facts


def autocast() -> str:
    """What autocast makes of products where it is asked: a dtype, or "off"."""
    import torch

    for kind in ("cuda", "cpu"):
        if torch.is_autocast_enabled(kind):
            return _name(torch.get_autocast_dtype(kind))
    return "off"


def counted(count: Count, autocast_to: str | None = None) -> Shown:
    """What a counted step shows: in which dtypes it multiplied, by which operators, and what it did again.

    `autocast_to`: what `autocast` said where the step called the model, if it did.
    """
    moved: defaultdict[str, float] = defaultdict(float)
    for cost in count.ops:
        # What has FLOPs matters, however few bytes it moves.
        moved[cost.op] += math.inf if cost.flops else cost.calls * cost.bytes_moved
    least = MAIN_SHARE * sum(cost.calls * cost.bytes_moved for cost in count.ops)
    main = frozenset(op for op, its_bytes in moved.items() if its_bytes >= least)
    attention = {op for op in moved if any(word in op for word in _ATTENTION)}
    again = count.recompute_flops / count.model_flops if count.model_flops else 0.0
    facts: dict[str, Fact] = {
        "autocast": autocast_to,
        "dtype.products": {dtype for dtype, flops in count.by_dtype.items() if flops},
        "operators": set(moved),
        "attention.operators": attention or {"none fused"},
        "recomputed": round(again, 2),
    }
    return Shown(facts, frozenset(moved), main)


def _compilation(model: nn.Module) -> dict[str, Fact]:
    """Whether any of it is compiled, and which of Inductor's options its mode turned on."""
    # The whole (`torch.compile`), or in place (`Module.compile`).
    calls = [
        module if type(module).__name__ == "OptimizedModule" else module._compiled_call_impl
        for module in model.modules()
    ]
    compiled = [call for call in calls if call is not None]
    options: set[str] = set()
    with shield("asking how a model is compiled"):
        for call in compiled:
            told = getattr(call, "get_compiler_config", lambda: None)()
            options |= {name for name in _COMPILER_OPTIONS if isinstance(told, dict) and told.get(name)}
    return {"compile": bool(compiled), "compile.options": options}


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
