"""flash-linear-attention (fla): gated linear attention, delta rules and their kin, and its fused losses.

Each is an `autograd.Function` that launches Triton kernels, so the function is priced, forward and backward, and what
it launches is covered. The models' FLOPs are those of the recurrence (`recurrences`); where the chunk's size is an
argument, the hardware's are those of the chunked algorithm. What is not listed here (NSA, MesaNet, TTT, log-linear
attention, PaTH) stays uncounted.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice
from mfu_sdk.counting.third_party import recurrences
from mfu_sdk.counting.third_party.recurrences import Chunks, Kind
from mfu_sdk.counting.third_party.sequences import cost, differences, side
from mfu_sdk.counting.third_party.wanted import both

_SOURCE: Final = "fla-org/flash-linear-attention at bc3b101d; Yang et al., arXiv 2312.06635, 2406.06484, 2412.06464"


def _recurrence(kind: Kind) -> FunctionPrice:
    """(batch, length, heads, size) operands; values may have more heads than queries, and so has the state."""

    def formula(named: Mapping[str, Any]) -> FunctionCost:
        query, value = named["q"].shape, named["v"].shape
        model = recurrences.recurrence(kind, value[:-1].numel(), query[-1], value[-1])
        size = named.get("chunk_size")
        executed, again = model, 0
        if size is not None:
            packed = named.get("cu_seqlens")
            lengths = [value[1]] * value[0] if packed is None else differences(packed)
            executed, again = recurrences.chunked(kind, Chunks.cut(lengths, size), value[-2], query[-1], value[-1])
        return both(*recurrences.passes(model, executed, again))

    products = {"linear": 2, "delta": 3, "low_rank": 4}[kind]
    return FunctionPrice(
        formula, "q", words=f"{2 * products}·d_k·d_v a token and value head; backward 2 × forward", source=_SOURCE
    )


def _householder(named: Mapping[str, Any]) -> FunctionCost:
    """DeltaProduct: several delta updates a token, then one read-out."""
    query, value = named["q"].shape, named["v"].shape
    updates = value[:-1].numel()
    tokens = updates // int(named["num_householder"])
    model = 2 * query[-1] * value[-1] * (2 * updates + tokens)
    return both(*recurrences.passes(model, model))


def _slots(named: Mapping[str, Any]) -> FunctionCost:
    """Gated slot attention, and attention with bounded memory: two linear recurrences, over m slots each."""
    query, value, slots = named["q"].shape, named["v"].shape, named["s"].shape[-1]
    model = 4 * value[:-1].numel() * slots * (query[-1] + value[-1])
    return both(*recurrences.passes(model, model))


def _product_of_keys(named: Mapping[str, Any]) -> FunctionCost:
    """RWKV-7's fused decoding, whose low-rank term is made of `kk` and `a`."""
    query, value = named["r"].shape, named["v"].shape
    return FunctionCost(
        Cost.plain(recurrences.recurrence("low_rank", value[:-1].numel(), query[-1], value[-1])),
    )


def _decoding(kind: Kind) -> FunctionPrice:
    """A plain function that launches the forward of a recurrence."""

    def formula(named: Mapping[str, Any]) -> FunctionCost:
        query, value = named["q"].shape, named["v"].shape
        return FunctionCost(Cost.plain(recurrences.recurrence(kind, value[:-1].numel(), query[-1], value[-1])))

    return FunctionPrice(formula, "q", words=_recurrence(kind).words, source=_SOURCE)


def _softmax_attention(named: Mapping[str, Any]) -> FunctionCost:
    """Softmax attention, forgetting or not: causal, over the last `window_size` keys where that is given."""
    query, value = named["q"].shape, named["v"].shape
    packed = named.get("cu_seqlens")
    lengths = [query[1]] * query[0] if packed is None else differences(packed)
    width = named.get("window_size")
    left = None if width is None else side(width - 1)
    pairs = [(length, length) for length in lengths]

    def made(passed: Callable[[int, int, int, int, int], Cost]) -> Cost:
        return cost(passed, pairs, query[-2], (query[-1], value[-1]), causal=True, window=(left, None))

    return both(made(attention.forward), made(attention.backward))


_LINEAR: Final = """
    gla.chunk:ChunkGLAFunction simple_gla.chunk:ChunkSimpleGLAFunction common.fused_recurrent:FusedRecurrentFunction
    common.fused_chunk:FusedChunkFunction rwkv6.chunk:ChunkRWKV6Function
    rwkv6.fused_recurrent:FusedRecurrentRWKV6Function
"""
_DELTA: Final = """
    delta_rule.chunk:ChunkDeltaRuleFunction delta_rule.fused_recurrent:FusedRecurrentFunction
    gated_delta_rule.chunk:ChunkGatedDeltaRuleFunction gated_delta_rule.fused_recurrent:FusedRecurrentFunction
    kda.chunk:ChunkKDAFunction gdn2.chunk:ChunkGDN2Function comba.chunk:ChunkCombaFunction
    comba.fused_recurrent:FusedRecurrentCombaFunction gated_oja_rule.chunk:ChunkOJAFunction
    gated_oja_rule.fused_recurrent:FusedRecurrentFunction precond_kda.chunk:ChunkPrecondKDAFunction
    precond_gated_delta_rule.chunk:ChunkPrecondGatedDeltaRuleFunction
    precond_gated_delta_rule.fused_recurrent:FusedRecurrentPrecondGatedDeltaRuleFunction
"""
_LOW_RANK: Final = """
    generalized_delta_rule.dplr.chunk:ChunkDPLRDeltaRuleFunction
    generalized_delta_rule.dplr.fused_recurrent:FusedRecurrentDPLRDeltaRuleFunction
    generalized_delta_rule.iplr.chunk:ChunkGeneralizedIPLRDeltaRuleFunction
    generalized_delta_rule.iplr.fused_recurrent:FusedRecurrentIPLRDeltaRuleFunction
"""


def _price(formula: Callable[[Mapping[str, Any]], FunctionCost], words: str, operand: str = "q") -> FunctionPrice:
    return FunctionPrice(formula, operand, words=words, source=_SOURCE)


FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    **{f"fla.ops.{name}.forward": _recurrence("linear") for name in _LINEAR.split()},
    **{f"fla.ops.{name}.forward": _recurrence("delta") for name in _DELTA.split()},
    **{f"fla.ops.{name}.forward": _recurrence("low_rank") for name in _LOW_RANK.split()},
    **{
        f"fla.ops.{name}": _decoding("delta")
        for name in ("kda.fused_recurrent:fused_recurrent_kda_fwd", "gdn2.fused_recurrent:fused_recurrent_gdn2_fwd")
    },
    "fla.ops.rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7": _price(
        _product_of_keys, "8·d_k·d_v a token and head", "r"
    ),
    "fla.ops.gated_delta_product.chunk:ChunkGatedDeltaProductFunction.forward": _price(
        _householder, "d_k·d_v·(4 a Householder update + 2 a token); backward 2 × forward"
    ),
    **{
        f"fla.ops.{name}.forward": _price(_slots, "4·m·(d_k + d_v) a token and head; backward 2 × forward")
        for name in (
            "gsa.chunk:ChunkGSAFunction",
            "gsa.fused_recurrent:FusedRecurrentGSAFunction",
            "abc.chunk:ChunkABCFunction",
        )
    },
    "fla.ops.attn.parallel:ParallelAttentionFunction.forward": _price(
        _softmax_attention, "2·pairs·(d_qk + d_v) a query head, causal and windowed; backward 2 × forward"
    ),
}
