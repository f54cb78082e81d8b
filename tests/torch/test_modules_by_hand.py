"""Layers and programs as people write them, forward and backward, against numbers worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import bias as biases

import mfu_sdk as mfu

Run = Callable[[], Any]
BATCH, WIDE = 2, 16


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def grad(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def back(run: Callable[[], Tensor]) -> Run:
    return lambda: run().sum().backward()


CONVOLVED = 2 * (2 * 4 * 3 * 4 * 5) * 3 * (2 * 3 * 2)
"""2 · input elements · output channels a group · taps."""

# Queries of 3, keys of 5, of sizes 6 and 7; a bias and a zero are two keys more, which no padding hides.
L, S = 3, 5
PROJECTED = 2 * BATCH * (L * WIDE * WIDE + S * 6 * WIDE + S * 7 * WIDE + L * WIDE * WIDE)
PADDING = torch.tensor([[False, False, False, True, True], [False] * 5])
SEEN = (3 + 2) + (5 + 2)


def attention(*, weights: bool, padding: Tensor | None = None) -> Callable[[], Tensor]:
    layer = nn.MultiheadAttention(WIDE, 2, add_bias_kv=True, add_zero_attn=True, kdim=6, vdim=7)

    def run() -> Tensor:
        out: Tensor = layer(
            grad(L, BATCH, WIDE), grad(S, BATCH, 6), grad(S, BATCH, 7), key_padding_mask=padding, need_weights=weights
        )[0]
        return out

    return run


def transformer() -> Callable[[], Tensor]:
    layer = nn.Transformer(WIDE, 2, 1, 1, 32, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    return lambda: layer(grad(BATCH, 6, WIDE), grad(BATCH, 4, WIDE), tgt_mask=mask)


SQUARE = WIDE * WIDE
ENCODER = 2 * BATCH * 6 * (4 * SQUARE + 2 * WIDE * 32) + 4 * BATCH * 6 * 6 * WIDE
DECODER = 2 * BATCH * 4 * (6 * SQUARE + 2 * WIDE * 32) + 2 * BATCH * 6 * 2 * SQUARE + 4 * BATCH * (10 + 4 * 6) * WIDE
"""Of its 16 pairs of its own a causal decoder of 4 sees 10."""


def grouped_queries() -> Run:
    shown = torch.tensor([[[[True, True, False, False]]], [[[True, True, True, False]]]])
    return back(
        lambda: F.scaled_dot_product_attention(
            grad(2, 8, 3, WIDE), grad(2, 2, 4, WIDE), grad(2, 2, 4, WIDE), attn_mask=shown, enable_gqa=True
        )
    )


def biased(make: Callable[[int, int], Tensor]) -> Run:
    """The bias is made in the step, as models do."""
    return back(
        lambda: F.scaled_dot_product_attention(
            grad(2, 3, 4, WIDE), grad(2, 3, 6, WIDE), grad(2, 3, 6, WIDE), make(4, 6)
        )
    )


def adapted(*, learns: bool) -> Run:
    """LoRA as one addmm: 4 rows from 8 to 16 numbers, through 2."""
    frozen, down, up = rand(16, 8), grad(2, 8), grad(16, 2)
    x = grad(4, 8) if learns else rand(4, 8)
    return back(lambda: torch.addmm(F.linear(x, frozen), F.linear(x, down), up.t(), alpha=0.5))


PLAIN, DOWN, UP = 2 * 4 * 8 * 16, 2 * 4 * 8 * 2, 2 * 4 * 2 * 16


def scripted() -> Run:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.layer(x)
            return x

    model = torch.jit.script(Loop())
    return lambda: model(rand(2, 8))


def rare_words() -> Run:
    """20 words: 5 frequent ones, 7 of which 2 are asked for, and 8 of which 2 are."""
    layer = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 12], div_value=2.0)
    words = torch.tensor([0, 4, 6, 11, 13, 19])
    return lambda: layer(rand(6, 8), words)


def normed() -> Run:
    """A power iteration is a product with the matrix and one with its transpose; the norm is one more, and a dot."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6, bias=False))
    return lambda: layer(rand(4, 8))


def projected() -> Run:
    layer = nn.LSTM(8, 16, 2, proj_size=4, bidirectional=True)
    return back(lambda: layer(grad(5, 3, 8))[0])


STEP = 2 * (64 * (8 + 4) + 16 * 4) + 2 * (64 * (8 + 4) + 16 * 4)
"""One token's, both ways, of the first layer; the second reads 2 · 4 numbers, as many as the first."""

BY_HAND: dict[str, tuple[Callable[[], Run], int, int]] = {
    "transposed, in groups, strided and dilated": (
        lambda: back(
            lambda: F.conv_transpose3d(
                grad(2, 4, 3, 4, 5), grad(4, 3, 2, 3, 2), groups=2, stride=2, dilation=(1, 2, 1)
            )
        ),
        CONVOLVED,
        2 * CONVOLVED,
    ),
    "attention with keys of its own": (
        lambda: back(attention(weights=False)),
        PROJECTED + 4 * BATCH * L * (S + 2) * WIDE,
        2 * (PROJECTED + 4 * BATCH * L * (S + 2) * WIDE),
    ),
    **{
        f"padded attention with keys of its own, weights {weights}": (
            lambda weights=weights: back(attention(weights=weights, padding=PADDING)),  # type: ignore[misc]
            PROJECTED + 4 * L * SEEN * WIDE,
            2 * (PROJECTED + 4 * L * SEEN * WIDE),
        )
        for weights in (True, False)
    },
    "encoder and decoder": (lambda: back(transformer()), ENCODER + DECODER, 2 * (ENCODER + DECODER)),
    # 2 and 3 of 4 keys, for 3 queries of 8 heads each.
    "grouped queries under a mask": (grouped_queries, 4 * 24 * (2 + 3) * WIDE, 8 * 24 * (2 + 3) * WIDE),
    "causal from the end": (
        lambda: biased(biases.causal_lower_right), 4 * 6 * (3 + 4 + 5 + 6) * WIDE, 8 * 6 * 18 * WIDE,
    ),
    "causal from the start": (lambda: biased(biases.causal_upper_left), 4 * 6 * 10 * WIDE, 8 * 6 * 10 * WIDE),
    "adapter": (lambda: adapted(learns=False), PLAIN + DOWN + UP, 2 * UP + DOWN),
    "adapter with an input that learns": (
        lambda: adapted(learns=True), PLAIN + DOWN + UP, 2 * UP + 2 * DOWN + PLAIN,
    ),
    "scripted": (scripted, 3 * 2 * 2 * 8 * 8, 0),
    "adaptive softmax": (
        rare_words, 2 * 6 * 8 * (5 + 2) + 2 * 2 * (8 * 4 + 4 * 7) + 2 * 2 * (8 * 2 + 2 * 8), 0,
    ),
    "spectral norm": (normed, 2 * 2 * 48 + 2 * 48 + 2 * 6 + 2 * 4 * 48, 0),
    # Of the first state of each layer and way nobody wants the gradient.
    "projected both ways": (projected, 15 * 2 * STEP, 2 * 15 * 2 * STEP - 4 * 3 * 2 * 64 * 4),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    """What the forward and the wanted gradients cost, and nothing is uncounted."""
    make, forward, backward = BY_HAND[name]
    count = mfu.count(make())
    assert (count.forward_flops, count.backward_flops, count.uncounted) == (forward, backward, ())


def test_a_bias_is_left_as_it_was() -> None:
    """What lets a bias be made while counting is gone afterwards, and beneath a mode of the user's nothing changes."""
    assert "__new__" not in vars(biases.CausalBias)
    made: list[Tensor] = []
    mfu.count(lambda: made.append(biases.causal_lower_right(2, 3)))
    assert isinstance(made[0], biases.CausalBias)
    assert "__new__" not in vars(biases.CausalBias)
