"""`mfu.expect`: what MFU a model may be expected to reach on a device, from a run of it or from an intent alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mfu_sdk.counting.expect import assembled, roofline
from mfu_sdk.counting.expect import expect as expect_count
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.intent.experts import Experts, on_one_gpu
from mfu_sdk.intent.layout import Layout, Sizes, Wires, exchanges, laid_out
from mfu_sdk.intent.shape import BYTES, DecoderShape
from mfu_sdk.peak.catalogue import GpuType, find
from mfu_sdk.peak.priors import link_prior, prior_peaks
from mfu_sdk.records import Count, Expectation, OpCost, Peaks, Rate

if TYPE_CHECKING:
    import torch

Stage = Literal["train", "prefill", "decode"]
STAGES: Final[tuple[Stage, ...]] = ("train", "prefill", "decode")
_8_BIT: Final = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
DTYPES: Final = (*BYTES, *_8_BIT)
# Operators that recipes for eight bits run in eight bits: products with weights, not attention's.
_PRODUCTS: Final = frozenset(
    {"products", "products, backward", "aten::mm", "aten::addmm", "aten::linear", "aten::_grouped_mm"}
)
_ADAM_BYTES: Final = 28
"""Bytes that Adam in mixed precision moves for a parameter: it reads 12 of master weight and two moments and 2 of the
gradient, and writes 12 and 2 of the parameter. The states are those of Rajbhandari et al., ZeRO, 2020, section 3.1."""
_ADAM_STATE_BYTES: Final = 12
_ACTIVATION_BYTES: Final = 34
"""Bytes a token, layer and unit of width that a forward keeps in 16 bits, attention's scores left out (Korthikanti et
al., "Reducing Activation Recomputation", 2022, equation 2); 2 where layers are recomputed."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One micro-batch of one replica, as if on one GPU."""

    count: Count
    again: tuple[OpCost, ...]
    params: int
    layers: int | None
    hidden: int | None
    kv: int | None
    notes: tuple[str, ...]
    experts: Experts | None = None


def expect(
    model_or_config: Any,
    *,
    device: str | Peaks | torch.device | None = None,
    batch: int | None = None,
    seq: int | None = None,
    dtype: str = "bfloat16",
    gpus: int | None = None,
    phase: str = "train",
    dp: int | None = None,
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    microbatches: int | None = None,
    interleave: int = 1,
    recompute: bool = False,
    ep: int = 1,
) -> Expectation:
    """The least time and the most MFU that a step can have: a roofline of its operators, its exchanges and its bubble.

    `model_or_config` is a Hugging Face configuration (a file, its content, or the object), a mapping with `params`,
    `layers` and `hidden` of a dense decoder, a `torch.nn.Module` that takes tokens of shape (batch, seq), or a `Count`
    of a step that ran, which needs none of the arguments but `device`. Modules and configurations are counted on meta
    tensors.

    `device` is a GPU type ("H100 SXM", "A100", "MI300X", a driver's name), whose rates are priors that others have
    published; a device that is here ("cpu", "cuda:0", None), at its calibrated peaks; or `Peaks`. `batch` sequences of
    `seq` tokens are one step of each replica, so of each GPU where neither `tp`, `pp` nor `cp` share one; in "decode"
    a step is one token for each sequence, with a cache of `seq`. `gpus` that `tp`, `pp` and `cp` leave over are data
    parallel: FSDP, or under a pipeline ZeRO-1. `ep` of these share out the experts of a mixture: each token goes to its
    experts' GPUs and back. `recompute`: the forward runs again in the backward.

    Operators count as compiled code runs them: pointwise chains fused, attention in one kernel, shared evenly over a
    replica's GPUs. All that is taken for granted is in the answer's `assumptions`, what has no known rate in `missing`.

    Raises `ConfigurationError` for what does not fit together, a device of unknown rates or a name that may mean
    several; `MissingDependencyError` where counting needs torch or transformers.
    """
    peaks, wires, types = _device(device)
    if isinstance(model_or_config, Count):
        if (gpus or 1, dp or 1, tp, pp, cp, ep) != (1, 1, 1, 1, 1, 1):
            raise ConfigurationError("a Count is one device's work already: leave gpus, dp, tp, pp, cp and ep out")
        found = expect_count(model_or_config, peaks)
        if found is None:
            raise ConfigurationError(_unknown(peaks, model_or_config))
        return found
    if batch is None or seq is None or batch < 1 or seq < 1:
        raise ConfigurationError(f"batch={batch}, seq={seq}: both must be given, 1 or more")
    stage: Stage | None = next((each for each in STAGES if each == phase), None)
    if stage is None:
        raise ConfigurationError(f"phase={phase!r}: must be one of {', '.join(STAGES)}")
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    if recompute and phase != "train":
        raise ConfigurationError(f"recompute=True: only training recomputes, and phase is {phase!r}")
    layout = laid_out(gpus, dp, tp, pp, cp, batch, microbatches, interleave, ep)
    stored = "bfloat16" if dtype in _8_BIT else dtype
    work = _work(model_or_config, batch // layout.microbatches, seq, stage, stored, recompute)
    if ep > 1 and work.experts is None:
        raise ConfigurationError(
            f"ep={ep}: the model has no experts that are known; give the configuration of a mixture, or leave ep out"
        )
    if work.experts is not None and work.experts.number % ep:
        raise ConfigurationError(f"ep={ep}: must divide the {work.experts.number} experts of a layer")
    return _forecast(work, peaks, wires, types, layout, batch, seq, stage, dtype)


def _forecast(
    work: _Work,
    peaks: Peaks,
    wires: Wires,
    types: tuple[GpuType, ...],
    layout: Layout,
    batch: int,
    seq: int,
    phase: Stage,
    dtype: str,
) -> Expectation:
    training, recompute = phase == "train", bool(work.again)
    stored = "bfloat16" if dtype in _8_BIT else dtype
    m, count, experts = layout.microbatches, work.count, work.experts
    new = 1 if phase == "decode" else seq
    made = [*count.ops, *work.again]
    if experts is not None and layout.ep > 1:
        passes = (3 + recompute) if training else 1
        made = on_one_gpu(made, experts, layout.ep, batch / m * new, BYTES[stored], passes)
    ops = [_shared(op, layout, dtype, halved=not training) for op in made]
    owned = work.params / (layout.tp * layout.pp)
    if training:
        moved = round(owned * _ADAM_BYTES / (layout.dp * layout.cp))
        ops.append(OpCost("optimizer", "none", 0, moved, 1))
    found = roofline(ops, peaks)
    if found is None:
        raise ConfigurationError(_unknown(peaks, replace(count, ops=tuple(ops))))
    sizes = Sizes(work.params, work.layers, work.hidden, work.kv, BYTES[stored], batch, new)
    if experts is not None:
        sizes = replace(sizes, experts=experts.params, expert_layers=experts.layers, top_k=experts.top_k)
    sent, missing = exchanges(layout, sizes, wires, training=training, recompute=recompute)
    if count.uncounted:
        missing = (*missing, *(f"{entry.op} ×{entry.calls}, which has no price" for entry in count.uncounted[:5]))
    result = assembled(
        count.model_flops * m / layout.replica,
        found,
        sent,
        peaks,
        peak_dtype=stored,
        backward_share=count.backward_flops / count.model_flops if count.model_flops else 0.0,
        bubble=layout.bubble,
        missing=missing,
        assumptions=_assumptions(work, peaks, types, layout, batch, seq, phase, dtype),
    )
    if result is None:
        raise ConfigurationError(_unknown(peaks, count))
    tokens = layout.dp * batch * (1 if phase == "decode" else seq)
    return replace(result, devices=layout.gpus, tokens_per_s=tokens / result.time_s)


def _shared(op: OpCost, layout: Layout, dtype: str, *, halved: bool) -> OpCost:
    """One GPU's share of all micro-batches of an operator; in eight bits the weights' products, and when only serving
    half the bytes of these."""
    flops, moved, kind = op.flops, op.bytes_moved, op.dtype
    if dtype in _8_BIT and op.op in _PRODUCTS:
        kind, moved = dtype, moved // 2 if halved else moved
    share = layout.replica
    return replace(
        op, dtype=kind, flops=flops // share, bytes_moved=moved // share, calls=op.calls * layout.microbatches
    )


# --- the work ----------------------------------------------------------------------------------------------------


def _work(model: Any, batch: int, seq: int, phase: Stage, dtype: str, recompute: bool) -> _Work:
    if hasattr(model, "named_parameters") and not hasattr(getattr(model, "config", None), "to_dict"):
        return _of_module(model, batch, seq, phase, dtype, recompute)
    if hasattr(model, "named_parameters"):
        model = model.config
    if hasattr(model, "to_dict"):
        model = model.to_dict()
    if isinstance(model, Mapping) and "hf_config" in model:
        model = model["hf_config"]
    if isinstance(model, DecoderShape):
        return _of_shape(model, batch, seq, phase, dtype, recompute)
    if isinstance(model, Mapping) and "model_type" not in model:
        known = {"params", "layers", "hidden", "kv_hidden", "vocab"}
        if not {"params", "layers", "hidden"} <= model.keys() <= known:
            raise ConfigurationError(
                f"a model with {', '.join(map(str, model)) or 'nothing'}: needs a model_type, or params, layers and "
                "hidden, with kv_hidden and vocab if they are known"
            )
        return _of_shape(DecoderShape(**{key: int(value) for key, value in model.items()}), batch, seq, phase, dtype,
                         recompute)  # fmt: skip
    if not isinstance(model, (str, Path, Mapping)):
        raise ConfigurationError(
            f"a {type(model).__name__} is no model: give a configuration, params with layers and hidden, a module or a "
            "Count"
        )
    return _of_config(Path(model) if isinstance(model, str) else model, batch, seq, phase, dtype, recompute)


def _of_shape(shape: DecoderShape, batch: int, seq: int, phase: Stage, dtype: str, recompute: bool) -> _Work:
    again = tuple(replace(op, op=f"{op.op}, again") for op in shape.count(batch, seq, "prefill", dtype).ops)
    again = tuple(replace(op, op="products") if op.op.startswith("products") else op for op in again)
    return _Work(
        shape.count(batch, seq, phase, dtype),
        again if recompute else (),
        shape.params,
        shape.layers,
        shape.hidden,
        shape.kv,
        (f"a dense decoder with a gated MLP of {shape.ffn:,.0f}, as its parameters imply",),
    )


def _of_config(
    config: Path | Mapping[str, Any], batch: int, seq: int, phase: Stage, dtype: str, recompute: bool
) -> _Work:
    from mfu_sdk.counting.huggingface import count_config

    found = count_config(
        config, batch, seq, backward=phase == "train", decode=phase == "decode", fused=True, dtype=dtype
    )
    again: tuple[OpCost, ...] = ()
    if recompute:
        again = count_config(config, batch, seq, backward=False, fused=True, dtype=dtype).count.ops
    routed = found.experts
    experts = None
    if routed is not None and routed.number and routed.top_k:
        experts = Experts(routed.params, routed.layers, routed.number, routed.top_k)
    return _Work(
        found.count, again, found.parameters, found.layers, found.hidden, found.kv_hidden, found.notes, experts
    )


def _of_module(model: Any, batch: int, seq: int, phase: Stage, dtype: str, recompute: bool) -> _Work:
    import torch

    from mfu_sdk.counting.fused_mode import FusedMode, one_kernel_attention

    if phase == "decode":
        raise ConfigurationError(
            f"{type(model).__name__}: the cache of a module cannot be known; count a step of it with mfu.count, and "
            "give the Count to mfu.expect"
        )
    # A copy without data: parameters and buffers are put in place before anything is copied.
    kept = {id(each): each.detach().to("meta").requires_grad_(each.requires_grad) for each in model.buffers()}
    kept |= {id(each): torch.nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in model.parameters()}
    twin = copy.deepcopy(model, dict(kept)).to(getattr(torch, dtype)).eval()
    tokens = torch.zeros(batch, seq, dtype=torch.long, device="meta")

    def counted(*, backward: bool) -> Count:
        mode = FusedMode(twin)
        with one_kernel_attention(), torch.set_grad_enabled(backward), torch.device("meta"), mode:
            result = twin(tokens)
            if backward:
                results = result.values() if isinstance(result, Mapping) else result
                every = [results] if isinstance(results, torch.Tensor) else list(results)
                live = [each.sum() for each in every if isinstance(each, torch.Tensor) and each.requires_grad]
                torch.stack(live).sum().backward()
        return mode.result()

    try:
        count = counted(backward=phase == "train")
        again = counted(backward=False).ops if recompute else ()
    except Exception as error:
        raise ConfigurationError(
            f"{type(model).__name__}: does not run on tokens without data ({' '.join(str(error).split())[:160]}); "
            "count a step of it with mfu.count, and give the Count to mfu.expect"
        ) from error
    return _Work(count, again, sum(each.numel() for each in model.parameters()), None, None, None, ())


# --- the device --------------------------------------------------------------------------------------------------


def _device(device: Any) -> tuple[Peaks, Wires, tuple[GpuType, ...]]:
    if isinstance(device, Peaks):
        return device, _measured(device), ()
    if device is None or not isinstance(device, str) or device.partition(":")[0] in ("cpu", "cuda"):
        from mfu_sdk.peak.calibrate import peaks as known

        found = known(device)
        return found, _measured(found), ()
    types = find(device)
    within = [link_prior(each.link).bus for each in types]
    adapters = [link_prior(each.network).bus for each in types if each.network is not None]
    return (
        prior_peaks(types),
        Wires(_span(within), _span(adapters), min(each.link.gpus for each in types)),
        types,
    )


def _measured(peaks: Peaks) -> Wires:
    def bus(*spans: str) -> Rate | None:
        keys = [f"all_reduce/{span}" for span in spans]
        return next((peaks.collectives[key].bus for key in keys if key in peaks.collectives), None)

    host = peaks.collectives.get("all_reduce/host")
    return Wires(bus("host"), bus("network"), 8 if host is None else host.ranks, bus("all", "network"))


def _span(rates: list[Rate]) -> Rate | None:
    if not rates:
        return None
    low, high = min(rate.low for rate in rates), max(rate.high for rate in rates)
    middle = sum(rate.flops_per_s for rate in rates) / len(rates)
    return Rate(middle, low, high, "; ".join(dict.fromkeys(rate.source for rate in rates)), 0.0)


def _unknown(peaks: Peaks, count: Count) -> str:
    name = peaks.state.get("name", peaks.device)
    wanted = {op.dtype for op in count.ops if op.flops} - peaks.achievable.keys() - peaks.theoretical.keys()
    lacks = [f"products in {', '.join(sorted(wanted))}"] if wanted else []
    if peaks.memory is None and not peaks.memory_by_size:
        lacks.append("memory")
    what = " and ".join(lacks) or "its peak"
    return f"device={name!r}: no rate is known of {what}; run `mfu calibrate` there, or give Peaks that have it"


# --- what was taken for granted ----------------------------------------------------------------------------------


def _assumptions(
    work: _Work,
    peaks: Peaks,
    types: tuple[GpuType, ...],
    layout: Layout,
    batch: int,
    seq: int,
    phase: Stage,
    dtype: str,
) -> tuple[str, ...]:
    products = work.count.attention_flops_full and not any("attention" in op.op for op in work.count.ops)
    attention = (
        "attention is products, as this model has it, whose scores move" if products else "attention is one kernel"
    )
    said = [f"pointwise chains are fused and {attention}; operators do not overlap", *work.notes]
    if dtype in _8_BIT:
        said.append(f"products with weights run in {dtype}, attention in bfloat16; MFU is over the bf16 peak")
    if "among" in peaks.state:
        said.append(f"the device may be any of {peaks.state['among']}, and the interval spans them")
    rate = peaks.achievable.get(dtype)
    if rate is not None:
        said.append(f"{dtype}: {rate.flops_per_s / 1e12:,.4g} TFLOP/s, {rate.source}")
    if peaks.memory is not None:
        said.append(f"memory: {peaks.memory.bytes_per_s / 1e9:,.4g} GB/s, {peaks.memory.source}")
    if phase == "train":
        said.append("Adam in mixed precision" + (", the forward run once more" if work.again else ""))
    if layout.replica > 1:
        said.append(f"a replica's operators are shared evenly by its {layout.replica} GPUs")
    if layout.ep > 1 and work.experts is not None:
        said.append(
            f"tokens spread evenly over {work.experts.number} experts, {work.experts.number // layout.ep} on a GPU, "
            "and none is dropped"
        )
    if layout.pp > 1:
        said.append(
            f"{layout.microbatches} micro-batches in {layout.pp} stages stand idle for (p−1)/(v·m) of their time"
        )
    if types:
        said.append(_room(work, types, layout, batch, seq, phase, dtype))
    return tuple(said)


def _room(
    work: _Work, types: tuple[GpuType, ...], layout: Layout, batch: int, seq: int, phase: Stage, dtype: str
) -> str:
    """Whether a GPU's memory holds it: parameters, gradients and states; what a forward keeps; caches."""
    size = 1 if dtype in _8_BIT and phase != "train" else BYTES.get(dtype, 2)
    element = BYTES.get(dtype, 2)
    apart = work.experts.params if work.experts is not None and layout.ep > 1 else 0
    owned = (work.params - apart + apart / layout.ep) / (layout.tp * layout.pp)
    parts = {"weights": owned * size}
    width = (work.hidden or 0) * (work.layers or 0)
    if phase == "train":
        over = layout.dp * layout.cp
        whole = 2 * element if layout.pp > 1 else 0
        spread = work.params / (layout.tp * layout.pp)
        states = owned * whole + spread * (_ADAM_STATE_BYTES + (0 if whole else 2 * element)) / over
        kept = 2 if work.again else _ACTIVATION_BYTES * element / 2
        # A pipeline's first stage keeps as many micro-batches as there are stages.
        alive = min(layout.pp, layout.microbatches) / layout.microbatches
        parts = {
            "weights, gradients and states": states,
            "activations": kept * width * batch * alive * seq / layout.replica,
        }
    elif work.kv and work.layers:
        parts["keys and values"] = 2 * work.kv * work.layers * batch * seq * element / layout.replica
    need, have = sum(parts.values()) / 1e9, min(each.memory_bytes for each in types) / 1e9
    detail = ", ".join(f"{name} {value / 1e9:,.1f}" for name, value in parts.items())
    fits = "it does not fit as it is" if need > have else "it fits"
    unknown = "" if width or phase != "train" else ", activations unknown"
    return f"memory of a GPU: about {need:,.1f} of {have:,.0f} GB ({detail}{unknown}): {fits}"
