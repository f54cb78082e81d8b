"""mamba_ssm, causal_conv1d and fla's own: selective scans, state-space duality, short causal convolutions.

A selective scan keeps N numbers for each of D channels: h ← Ā h + (Δ x) Bᵀ is an outer product and y = h C a read-out,
4·D·N FLOPs a token by the convention of `recurrences`. The authors give 9·B·L·D·N (state-spaces/mamba issue 110): they
add what is elementwise, exp(Δ A), Δ B x, the decay, which is free here. Mamba-2's heads of P channels share their
decay: the same 4·P·N a token and head, run in chunks.
"""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, Needs
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party import recurrences
from mfu_sdk.counting.third_party.recurrences import Chunks
from mfu_sdk.counting.third_party.wanted import both, ordered, products

_SOURCE: Final = "state-spaces/mamba at e9594ce; Gu and Dao, arXiv 2312.00752, 2405.21060"
_CONVOLUTION: Final = "2·elements·width"


def _selective(tokens: int, channels: int, states: int) -> tuple[Cost, Cost]:
    model = recurrences.recurrence("linear", tokens, channels, states)
    # The backward kernel makes the states again, one of the two products.
    return recurrences.passes(model, model, model // 2)


def _selective_scan(named: Mapping[str, Any]) -> FunctionCost:
    (batch, channels, length), matrix = named["u"].shape, named["A"]
    # A complex state is N pairs of numbers; each channel's input and output are real.
    states = matrix.shape[-1] * (2 if matrix.is_complex() else 1)
    return both(*_selective(batch * length, channels, states))


def _dual(lengths: list[int], size: int, heads: int, groups: int, v_dim: int, states: int) -> tuple[Cost, Cost]:
    """State-space duality: heads of one group share their scores C Bᵀ, which the backward makes again, and states."""
    chunks = Chunks.cut(lengths, size)
    model = recurrences.recurrence("linear", heads * chunks.tokens, states, v_dim)
    scores = 2 * groups * chunks.squares * states
    executed = scores + 2 * heads * chunks.squares * v_dim + model
    return recurrences.passes(model, executed, scores + model // 2)


def _chunk_scan(named: Mapping[str, Any]) -> FunctionCost:
    batch, length, heads, v_dim = named["x"].shape
    groups, states = named["B"].shape[-2:]
    return both(*_dual([length] * batch, named["chunk_size"], heads, groups, v_dim, states))


def _split_convolution_scan(named: Mapping[str, Any]) -> FunctionCost:
    """A whole Mamba-2 block behind its input projection: convolution, scan, norm and the output projection."""
    batch, length, _ = named["zxbcdt"].shape
    heads, groups = named["D"].shape[0], named["ngroups"]
    v_dim = named["headdim"] if named["D"].dim() == 1 else named["D"].shape[1]
    weight, projection = named["conv1d_weight"], named.get("outproj_weight")
    states = (weight.shape[0] - heads * v_dim) // groups // 2
    scan, scan_backward = _dual([length] * batch, named["chunk_size"], heads, groups, v_dim, states)
    dense = 2 * batch * length * (weight.numel() + (0 if projection is None else projection.numel()))
    return both(scan + Cost.plain(dense), scan_backward + Cost.plain(2 * dense))


def _block(named: Mapping[str, Any]) -> FunctionCost:
    """A whole Mamba block behind its input projection: convolution, three projections and the scan."""
    batch, _, length = named["xz"].shape
    weights = ("conv1d_weight", "x_proj_weight", "delta_proj_weight", "out_proj_weight")
    tokens, channels = batch * length, named["conv1d_weight"].shape[0]
    scan, scan_backward = _selective(tokens, channels, named["A"].shape[-1])
    dense = {name: 2 * tokens * named[name].numel() for name in weights}
    order = ordered(named)

    def backward(needs: Needs) -> Cost:
        if not any(needs):
            return FREE
        # The gradient flows through every matrix; a frozen one takes no gradient of its own.
        wanted = dict(zip(order, needs, strict=False))
        return scan_backward + Cost.plain(sum(flops * (1 + wanted[name]) for name, flops in dense.items()))

    return FunctionCost(scan + Cost.plain(sum(dense.values())), backward)


def _state_update(named: Mapping[str, Any]) -> FunctionCost:
    """One token of decoding: the state is (batch, …, channels, N)."""
    return FunctionCost(Cost.plain(4 * named["x"].numel() * named["state"].shape[-1]))


def _convolution(named: Mapping[str, Any]) -> FunctionCost:
    return products(named, 2 * named["x"].numel() * named["weight"].shape[-1], "x", "weight")


def _convolution_update(named: Mapping[str, Any]) -> FunctionCost:
    return FunctionCost(Cost.plain(2 * named["x"].numel() * named["weight"].shape[-1]))


def _operator(passes: int) -> Price:
    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(2 * passes * call["x"].numel() * call.shape("weight")[-1])

    return Price(formula, "x", words=_CONVOLUTION, source="Dao-AILab/causal-conv1d at 0d2252d")


OPERATORS: Final[Mapping[str, Price]] = {
    "DaoAILab::_causal_conv1d_fwd_cpp": _operator(1),
    "DaoAILab::_causal_conv1d_bwd_cpp": _operator(2),
    "DaoAILab::_causal_conv1d_update_cpp": _operator(1),
}

_SSD: Final = "mamba_ssm.ops.triton.ssd_combined"
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    "mamba_ssm.ops.selective_scan_interface:SelectiveScanFn.forward": FunctionPrice(
        _selective_scan, "u", words="4·B·L·D·N; backward 2 × forward", source=_SOURCE
    ),
    "mamba_ssm.ops.selective_scan_interface:MambaInnerFn.forward": FunctionPrice(
        _block, "xz", words="4·B·L·D·N + 2·B·L·(weights)", source=_SOURCE
    ),
    f"{_SSD}:MambaChunkScanCombinedFn.forward": FunctionPrice(
        _chunk_scan, "x", words="4·B·L·H·P·N; executed in chunks; backward 2 × forward", source=_SOURCE
    ),
    f"{_SSD}:MambaSplitConv1dScanCombinedFn.forward": FunctionPrice(
        _split_convolution_scan, "zxbcdt", words="4·B·L·H·P·N + 2·B·L·(weights)", source=_SOURCE
    ),
    "mamba_ssm.ops.triton.selective_state_update:selective_state_update": FunctionPrice(
        _state_update, "x", words="4·B·D·N", source=_SOURCE
    ),
    "causal_conv1d.causal_conv1d_interface:CausalConv1dFn.forward": FunctionPrice(
        _convolution, "x", words=_CONVOLUTION, source="Dao-AILab/causal-conv1d at 0d2252d"
    ),
    "fla.modules.conv.triton.ops:CausalConv1dFunction.forward": FunctionPrice(
        _convolution, "x", words=_CONVOLUTION, source="fla-org/flash-linear-attention at bc3b101d"
    ),
    "causal_conv1d.causal_conv1d_interface:causal_conv1d_update": FunctionPrice(
        _convolution_update, "x", words=_CONVOLUTION, source="Dao-AILab/causal-conv1d at 0d2252d"
    ),
}
