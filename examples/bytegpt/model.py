"""A small byte-level GPT, in the shape of GPT-2: learned positions, pre-norm blocks, causal attention, a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]
"""For each block the keys and values seen so far, (batch, heads, length, head width) each."""


@dataclass(frozen=True)
class Config:
    """The model's size. `vocab` is 256: one token a byte."""

    layers: int = 4
    heads: int = 4
    width: int = 192
    context: int = 128
    vocab: int = 256


class Block(nn.Module):
    """Attention, then a two-layer perceptron four times as wide, each added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm_2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`x`: (batch, length, width). Returns it one block further, and the keys and values up to here."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(width, dim=2)
        )
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        # One new token may look at all the past; a whole sequence only backwards.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)))), (k, v)


class ByteGPT(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """`ids`: (batch, length) → logits (batch, length, vocab), and the cache for the next call."""
        start = 0 if cache is None else cache[0][0].shape[2]
        x = self.token(ids) + self.position(torch.arange(start, start + ids.shape[1], device=ids.device))
        grown: Cache = []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, None if cache is None else cache[index])
            grown.append(pair)
        logits: Tensor = self.head(self.norm(x))
        return logits, grown

    @torch.no_grad()
    def generate(self, prompts: Tensor, new: int) -> Tensor:
        """Continue `prompts` (batch, length) by `new` bytes, each the likeliest: (batch, new)."""
        logits, cache = self(prompts)
        out = [logits[:, -1].argmax(dim=-1, keepdim=True)]
        while len(out) < new:
            logits, cache = self(out[-1], cache)
            out.append(logits[:, -1].argmax(dim=-1, keepdim=True))
        return torch.cat(out, dim=1)


def save(model: ByteGPT, path: str) -> None:
    """Write the weights as plain little-endian numbers: no pickle, nothing that runs when it is read."""
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    torch.from_file(path, shared=True, size=weights.numel(), dtype=torch.float32).copy_(weights)


def load(config: Config, path: str, device: str) -> ByteGPT:
    """The model with the weights that `save` wrote."""
    model = ByteGPT(config)
    size = sum(p.numel() for p in model.parameters())
    weights = torch.from_file(path, shared=False, size=size, dtype=torch.float32)
    nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    return model.to(device).eval()
