"""A dense decoder known by three numbers, as a count: parameters, layers and width say most of what a step costs.

Where a configuration is at hand its count is better (`counting.huggingface`). Here every layer has grouped-query
attention and a gated MLP whose width makes up the parameters, and an untied head's or table's parameters are taken for
the layers' where `vocab` does not tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mfu_sdk.counting.formulas import FORMULA_VERSION
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.records import Count, OpCost, Phase

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_ASKED: Final = "give params, layers and hidden as in {params: 8.0e9, layers: 32, hidden: 4096}"


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """`params` in all, `layers` of width `hidden`; `kv_hidden` is the width of all keys, `hidden` unless given.

    `vocab` is the number of rows of an input table that no product touches. `ffn`, the width of the gated MLP, follows
    from params / layers = 2·hidden² + 2·hidden·kv_hidden + 3·hidden·ffn. Raises `ConfigurationError` where it would be
    below zero.
    """

    params: int
    layers: int
    hidden: int
    kv_hidden: int | None = None
    vocab: int = 0
    ffn: float = field(init=False)

    def __post_init__(self) -> None:
        if not (self.params > 0 and self.layers > 0 and self.hidden > 0):
            raise ConfigurationError(
                f"params={self.params}, layers={self.layers}, hidden={self.hidden}: each must be above 0; {_ASKED}"
            )
        ffn = (self.weights / self.layers - 2 * self.hidden * (self.hidden + self.kv)) / (3 * self.hidden)
        if ffn <= 0:
            raise ConfigurationError(
                f"params={self.params:,}: fewer than attention alone has in {self.layers} layers of {self.hidden}; "
                f"{_ASKED}"
            )
        object.__setattr__(self, "ffn", ffn)

    @property
    def kv(self) -> int:
        """The width of all keys of a token, and of all values."""
        return self.kv_hidden or self.hidden

    @property
    def weights(self) -> int:
        """Parameters that products touch."""
        return self.params - self.vocab * self.hidden

    def count(self, batch: int, seq: int, phase: Phase, dtype: str) -> Count:
        """One step: `batch` sequences of `seq` tokens, or in decode one token each with a cache of `seq`.

        Products: 2 FLOPs a weight and token, bytes of the weights and of what goes in and out; twice both in the
        backward. Attention: 4·hidden FLOPs a visible pair, flash attention's 10 in the backward (8 in model FLOPs);
        only queries, keys, values and results move (Dao et al., FlashAttention, 2022). Pointwise chains read what
        products and the residual stream hold and write what these take: `counting.fused`.
        """
        h, kv, f, size = self.hidden, self.kv, self.ffn, BYTES[dtype]
        new = 1 if phase == "decode" else seq
        tokens = batch * new
        pairs = batch * (seq if phase == "decode" else seq * (seq + 1) // 2)
        weights = self.weights / self.layers
        # In and out of q, k, v, o, gate, up and down; then two norms with residuals, rotary embedding, activation.
        products = round(size * (weights + (9 * h + 2 * kv + 3 * f) * tokens))
        chains = round(size * (10 * h + 2 * kv + 3 * f) * tokens)
        flops, scores = round(2 * weights * tokens), 4 * h * pairs
        attention = size * batch * (2 * h * new + 2 * kv * seq)
        ops = [
            OpCost("products", dtype, flops, products, self.layers),
            OpCost("attention", dtype, scores, attention, self.layers),
            OpCost("pointwise", "none", 0, chains, self.layers),
        ]
        if phase == "train":
            ops += [
                OpCost("products, backward", dtype, flops, products, 2 * self.layers),
                OpCost("attention, backward", dtype, scores * 10 // 4, 2 * attention, self.layers),
                OpCost("pointwise, backward", "none", 0, chains, 2 * self.layers),
            ]
        forward = self.layers * (flops + scores)
        backward = 2 * forward if phase == "train" else 0
        exact = self.layers * scores * (3 if phase == "train" else 1)
        full = exact if phase == "decode" else self.layers * 4 * h * batch * seq * seq * (3 if phase == "train" else 1)
        return Count(
            model_flops=forward + backward,
            hardware_flops=sum(op.calls * op.flops for op in ops),
            forward_flops=forward,
            backward_flops=backward,
            recompute_flops=0,
            optimizer_flops=0,
            attention_flops_exact=exact,
            attention_flops_full=full,
            by_dtype={dtype: forward + backward},
            by_module={},
            by_op={"products": forward + backward - exact, "attention": exact},
            uncounted=(),
            coverage=1.0,
            bytes_moved=sum(op.calls * op.bytes_moved for op in ops),
            comm_bytes={},
            convention="exact",
            ops=tuple(ops),
            formula_version=FORMULA_VERSION,
        )
