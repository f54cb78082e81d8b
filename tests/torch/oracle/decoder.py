"""Decoders of a published shape on meta tensors, counted one layer of each kind and the head; no library's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfu_sdk as mfu


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: ranks of queries and of keys with values, and sizes a head."""

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    v: int


@dataclass(frozen=True)
class Experts:
    number: int
    top_k: int
    ffn: int
    shared: int


@dataclass(frozen=True)
class Layer:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    bias: bool = False
    window: int | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    # How many of the key's and the value's projections the layer has.
    kv_projections: int = 2


@dataclass(frozen=True)
class Parts:
    """FLOPs of one sequence, forward and backward: attention apart, by both conventions, and so the router's.

    `untouched` are the parameters that no product touches: norms and biases.
    """

    dense: int
    router: int
    exact: int
    full: int
    untouched: int


class Core(nn.Module):
    """Attention over the queries' own sequence."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[-2]
        if self.window is None or self.window >= length:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        at = torch.arange(length, device=q.device)
        near = (at <= at[:, None]) & (at > at[:, None] - self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=near, enable_gqa=True)


class Attention(nn.Module):
    def __init__(self, shape: Layer) -> None:
        super().__init__()
        self.shape, self.core = shape, Core(shape.window)
        hidden, heads, latent, bias = shape.hidden, shape.heads, shape.latent, shape.bias
        if latent is None:
            self.q = nn.Linear(hidden, heads * shape.head_dim, bias=bias)
            self.kv = nn.ModuleList(
                nn.Linear(hidden, shape.kv_heads * shape.head_dim, bias=bias) for _ in range(shape.kv_projections)
            )
            self.out = nn.Linear(heads * shape.head_dim, hidden, bias=bias)
        else:
            self.q_down = nn.Linear(hidden, latent.q_rank, bias=False)
            self.q_up = nn.Linear(latent.q_rank, heads * (latent.nope + latent.rope), bias=False)
            self.kv_down = nn.Linear(hidden, latent.kv_rank + latent.rope, bias=False)
            self.kv_up = nn.Linear(latent.kv_rank, heads * (latent.nope + latent.v), bias=False)
            self.out = nn.Linear(heads * latent.v, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shape, latent = self.shape, self.shape.latent

        def split(values: Tensor, size: int) -> Tensor:
            return values.unflatten(-1, (-1, size)).transpose(1, 2)

        if latent is None:
            q = split(self.q(x), shape.head_dim)
            made = [split(projection(x), shape.head_dim) for projection in self.kv]
            # Keys and values that another layer made, or the one that stands for both.
            k = made[0] if made else split(x.detach()[..., :1].expand(*x.shape[:2], shape.kv_heads * shape.head_dim),
                                           shape.head_dim).requires_grad_()  # fmt: skip
            v = made[-1] if made else k
        else:
            q = split(self.q_up(self.q_down(x)), latent.nope + latent.rope)
            down = self.kv_down(x)
            up = split(self.kv_up(down[..., : latent.kv_rank]), latent.nope + latent.v)
            rope = split(down[..., latent.kv_rank :], latent.rope).expand(-1, shape.heads, -1, -1)
            k, v = torch.cat((up[..., : latent.nope], rope), dim=-1), up[..., latent.nope :]
        return self.out(self.core(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, ffn: int, gated: bool, bias: bool) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(hidden, ffn, bias=bias) for _ in range(1 + gated))
        self.down = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        first, *gate = (up(x) for up in self.up)
        return self.down(F.silu(first) * gate[0] if gate else F.gelu(first))


class Mixture(nn.Module):
    def __init__(self, hidden: int, experts: Experts, gated: bool) -> None:
        super().__init__()
        self.experts = experts
        self.router = nn.Linear(hidden, experts.number, bias=False)
        self.up = nn.Parameter(torch.empty(experts.number, hidden, experts.ffn * (1 + gated)))
        self.down = nn.Parameter(torch.empty(experts.number, experts.ffn, hidden))
        self.shared = FeedForward(hidden, experts.shared, gated, bias=False) if experts.shared else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights = self.router(tokens).softmax(dim=-1)[:, : self.experts.top_k]
        rows = tokens.repeat_interleave(self.experts.top_k, dim=0)
        # Offsets have values, on the processor: every choice of every token is in some group.
        ends = [len(rows) * (i + 1) // self.experts.number for i in range(self.experts.number)]
        offsets = torch.tensor(ends, dtype=torch.int32, device="cpu")
        inner = F.silu(F.grouped_mm(rows, self.up, offs=offsets)[:, : self.experts.ffn])
        out = F.grouped_mm(inner, self.down, offs=offsets).view(*weights.shape, -1)
        mixed = (out * weights.unsqueeze(-1)).sum(dim=1).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)


class Block(nn.Module):
    def __init__(self, shape: Layer) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(shape.hidden, bias=shape.bias) for _ in range(2))
        self.attention = Attention(shape)
        experts = shape.experts
        self.mlp = (
            FeedForward(shape.hidden, shape.ffn, shape.gated, shape.bias)
            if experts is None
            else Mixture(shape.hidden, experts, shape.gated)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def _counted(module: nn.Module, width: int, length: int) -> Parts:
    x = torch.empty(1, length, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    count = mfu.count(lambda: module(x).sum().backward())
    assert count.uncounted == ()
    router = 0
    if isinstance(module, Block) and module.mlp.__class__ is Mixture:
        router = mfu.count(lambda: module.mlp.router(x).sum().backward()).model_flops
    return Parts(
        dense=count.model_flops - count.attention_flops_exact - router,
        router=router,
        exact=count.attention_flops_exact,
        full=count.attention_flops_full,
        untouched=sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 1),
    )


@cache
def layer(shape: Layer, length: int) -> Parts:
    """One layer's count."""
    with torch.device("meta"):
        return _counted(Block(shape).to(torch.bfloat16), shape.hidden, length)


@cache
def linear(inner: int, outer: int, length: int) -> Parts:
    """One matrix's count, the head's for instance."""
    with torch.device("meta"):
        return _counted(nn.Linear(inner, outer, bias=False).to(torch.bfloat16), inner, length)


def kinds(shape: Mapping[str, Any], *, window: bool, gated: bool, head_dim: int | None) -> Counter[Layer]:
    """The layers of a published shape, by kind. `window`: whether sliding layers slide."""
    moe, mla, number = shape["moe"], shape["mla"], shape["num_hidden_layers"]
    base = Layer(
        shape["hidden_size"],
        shape["num_attention_heads"],
        shape["num_key_value_heads"],
        head_dim or shape["head_dim"],
        shape["intermediate_size"],
        gated,
        bool(shape.get("bias")),
        latent=None if mla is None else Latent(mla["q_lora_rank"], mla["kv_lora_rank"], mla["qk_nope_head_dim"],
                                               mla["qk_rope_head_dim"], mla["v_head_dim"]),
    )  # fmt: skip
    whole = replace(
        base,
        head_dim=shape.get("global_head_dim", base.head_dim),
        kv_heads=shape.get("global_num_kv_heads", base.kv_heads),
        kv_projections=1 if shape.get("share_kv_projections_global") else 2,
    )
    every = {"alternate": 2, "5": 6, "4": 5, "None": 1}[str(shape.get("layer_types")).split()[0]]
    found: Counter[Layer] = Counter()
    for i in range(number):
        one = whole if (i + 1) % every == 0 else replace(base, window=shape["sliding_window"] if window else None)
        if moe is not None and i >= moe["n_dense_layers"]:
            one = replace(one, experts=Experts(moe["num_experts"], moe["top_k"], moe["moe_ffn"], moe["shared_ffn"]))
        if i >= number - shape.get("num_kv_shared_layers", 0):
            wide = 2 if shape.get("double_wide_mlp_on_shared") else 1
            one = replace(one, kv_projections=0, ffn=wide * one.ffn)
        found[one] += 1
    return found
