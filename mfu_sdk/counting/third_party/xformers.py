"""xformers, and MSLK, which holds its kernels now: memory-efficient attention.

What they run through `aten` (CUTLASS, PyTorch's own flash attention) is counted there. Their split-K Triton kernels for
decoding stay uncounted: the lengths are in an object that no argument of an operator shows.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party import flash_attention
from mfu_sdk.counting.third_party.sequences import Pass, cost, differences, values, window
from mfu_sdk.errors import FormulaError

_SOURCE: Final = "facebookresearch/xformers at ca6d2aa0; meta-pytorch/MSLK at 2a3c897"


def _composable(passed: Pass) -> Price:
    """The kernels of Composable Kernel (ROCm): (batch, length, heads, size), or packed with starting positions."""

    def formula(call: Call, _: Masks) -> Cost:
        if call.get("window_size") or call.get("block_tables") is not None or call.get("attn_bias") is not None:
            raise FormulaError(
                "composable-kernel attention with a window, pages or a bias: no price; register a formula"
            )
        query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
        starts = call.get("seqstart_q")
        if starts is None:
            lengths = [(query[1], key[1])] * query[0]
        else:
            keys = values(call["seqlen_k"]) if call.get("seqlen_k") is not None else differences(call["seqstart_k"])
            lengths = list(zip(differences(starts), keys, strict=True))
        # 0 no mask, 1 causal from the top left, 2 causal from the bottom right.
        kind = int(call["custom_mask_type"])
        align: attention.Alignment = "top_left" if kind == 1 else "bottom_right"
        heads = math.prod(query[2:-1])
        return cost(passed, lengths, heads, (query[-1], value[-1]), causal=kind != 0, align=align)

    return Price(formula, "query", words="2·pairs·(d_qk + d_v) a query head", source=_SOURCE)


def _blackwell(passed: Pass) -> Price:
    """CUTLASS's Blackwell kernels, whose causal masks may be aligned top-left."""

    def formula(call: Call, _: Masks) -> Cost:
        query, key, value = call.shape("q"), call.shape("k"), call.shape("v")
        packed = call.get("cu_seqlens_q")
        queries = [query[1]] * query[0] if packed is None else differences(packed)
        used, starts = call.get("seqlen_kv"), call.get("cu_seqlens_k")
        if used is not None:
            keys = values(used)
        elif call.get("page_table") is not None:
            raise FormulaError("attention over paged keys without their lengths: no price; register a formula")
        else:
            keys = [key[1]] * len(queries) if starts is None else differences(starts)
        align: attention.Alignment = "bottom_right" if call.get("bottom_right", True) else "top_left"
        return cost(
            passed,
            list(zip(queries, keys, strict=True)),
            query[-2],
            (query[-1], value[-1]),
            causal=bool(call["causal"]),
            window=window(call),
            align=align,
        )

    return Price(formula, "q", words="2·pairs·(d_qk + d_v) a query head", source=_SOURCE)


def _wrapped(call: Call, masks: Masks) -> Cost:
    """`memory_efficient_attention` as one operator: (batch, length, heads, size), with a tensor bias or none."""
    query, key, value, bias = call.shape("q"), call.shape("k"), call.shape("v"), call.get("b")
    full = math.prod(query[:1] + query[2:-1]) * query[1] * key[1]
    allowed = masks.allowed(bias) if isinstance(bias, torch.Tensor) and bias.numel() else None
    exact = full if allowed is None else full * allowed // bias.numel()
    return attention.forward(exact, full, full, query[-1], value[-1])


_WRAPPED: Final = Price(_wrapped, "q", words="2·pairs·(d_qk + d_v) a query head", source=_SOURCE)


def _free(_call: Call, _masks: Masks) -> Cost:
    return FREE


def _merge(name: str) -> Price:
    return Price(_free, name, words="0", source=_SOURCE)


def _flash(passed: Pass) -> Price:
    return flash_attention.operator(passed, "query", _SOURCE)


def _of(library: str) -> dict[str, Price]:
    return {
        f"{library}_flash::flash_fwd": _flash(attention.forward),
        f"{library}_flash::flash_bwd": _flash(attention.backward),
        f"{library}_flash3::flash_fwd": _flash(attention.forward),
        f"{library}_flash3::flash_bwd": _flash(attention.backward),
        f"{library}::efficient_attention_forward_ck": _composable(attention.forward),
        f"{library}::efficient_attention_backward_ck": _composable(attention.backward),
        f"{library}::fmha_merge_attentions_varargs": _merge("attn_split"),
        f"{library}::merge_attentions_varargs_backward": _merge("attn_split"),
    }


OPERATORS: Final[Mapping[str, Price]] = {
    **_of("xformers"),
    **_of("mslk"),
    **{
        f"{library}::memory_efficient_attention_forward{end}": _WRAPPED
        for library in ("xformer", "mslk")
        for end in ("", "_with_bias")
    },
    **{
        f"mslk::{name}_{end}": _blackwell(passed)
        for name in ("cutlass_blackwell_fmha", "fmha")
        for end, passed in (("fwd", attention.forward), ("bwd", attention.backward))
    },
}
