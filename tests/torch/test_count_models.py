"""Whole models: closed forms derived by hand, and the laws that every count keeps."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.records import Count

LAYERS, WIDTH, HEADS, TOKENS, VOCABULARY, BATCH = 2, 32, 4, 16, 50, 3
Checkpointing = Literal["none", "reentrant", "not reentrant"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            if self.checkpointing == "none":
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
        return self.head(self.norm(x))


def ids(batch: int = BATCH) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, TOKENS))


def trained(model: nn.Module, batch: int = BATCH, optimizer: torch.optim.Optimizer | None = None) -> Count:
    mode = CountingMode(model)
    with mode:
        F.cross_entropy(model(ids(batch)).flatten(0, 1), ids(batch).flatten()).backward()
        if optimizer is not None:
            optimizer.step()
    return mode.result()


DENSE = 2 * BATCH * TOKENS * (12 * LAYERS * WIDTH**2 + WIDTH * VOCABULARY)
PAIRS = TOKENS * (TOKENS + 1) // 2
ATTENTION = 4 * BATCH * LAYERS * PAIRS * WIDTH


def test_gpt_by_hand() -> None:
    """Forward 2·B·T·(12·L·d² + d·V) + 4·B·L·T(T+1)/2·d; three times that with the backward, to the FLOP.

    The first linear needs the gradient of its input too, because embeddings are parameters; looking them up is free.
    """
    count = trained(GPT(), optimizer=None)
    assert count.forward_flops == DENSE + ATTENTION
    assert count.model_flops == 3 * (DENSE + ATTENTION)
    assert (count.attention_flops_exact, count.attention_flops_full) == (
        3 * ATTENTION,
        3 * ATTENTION * TOKENS**2 // PAIRS,
    )
    assert (count.uncounted, count.coverage) == ((), 1.0)


def test_splits_add_up() -> None:
    """dtypes, modules and operators each split the model FLOPs; a module's backward is with its forward."""
    count = trained(GPT())
    for split in (count.by_dtype, count.by_module, count.by_op):
        assert sum(split.values()) == count.model_flops
    up = 2 * BATCH * TOKENS * 4 * WIDTH**2
    assert count.by_module["GPT.blocks.1.up"] == 3 * up
    assert count.by_module["GPT.head"] == 3 * 2 * BATCH * TOKENS * WIDTH * VOCABULARY
    assert count.by_module["GPT.blocks.0"] == 3 * ATTENTION // LAYERS
    assert sum(op.flops * op.calls for op in count.ops) == count.hardware_flops
    assert sum(op.bytes_moved * op.calls for op in count.ops) == count.bytes_moved


@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
def test_checkpointing_leaves_the_model_alone(kind: Checkpointing) -> None:
    """Recomputing the blocks adds hardware FLOPs and changes no model FLOP, of no module."""
    plain, saved = trained(GPT()), trained(GPT(kind))
    assert (saved.model_flops, saved.by_module) == (plain.model_flops, plain.by_module)
    assert saved.hardware_flops == plain.hardware_flops + saved.recompute_flops
    # A reentrant block is run again to its end; the other stops at the last tensor that its backward wants, which is
    # the input of the last linear, so that linear is not run again.
    last = LAYERS * 2 * BATCH * TOKENS * 4 * WIDTH**2 if kind == "not reentrant" else 0
    assert saved.recompute_flops == 2 * BATCH * TOKENS * 12 * LAYERS * WIDTH**2 + ATTENTION - last


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_without_gradients_inside(reentrant: bool) -> None:
    """A frozen part of a checkpointed function runs again with gradients off: recomputation, not backward."""
    frozen, live = nn.Linear(8, 8), nn.Linear(8, 8)

    def block(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            offset = frozen(x)
        return live(live(x) * offset)

    x = torch.randn(4, 8, requires_grad=True)
    plain = mfu.count(lambda: block(x).sum().backward())
    saved = mfu.count(lambda: checkpoint(block, x, use_reentrant=reentrant).sum().backward())
    assert (saved.forward_flops, saved.backward_flops) == (plain.forward_flops, plain.backward_flops)
    assert saved.recompute_flops >= 2 * 2 * 4 * 64


def test_batch_doubled_doubles() -> None:
    """Twice the sequences, twice the model FLOPs; accumulated in two halves, the same."""
    model = GPT()
    one, two = trained(model), trained(model, 2 * BATCH)
    assert two.model_flops == 2 * one.model_flops

    def accumulated() -> None:
        for _ in range(2):
            model(ids()).sum().backward()

    whole = mfu.count(lambda: model(ids(2 * BATCH)).sum().backward())
    assert mfu.count(accumulated).model_flops == whole.model_flops


def test_math_attention_leaves_the_model_alone() -> None:
    """The model's FLOPs do not know which kernel computes its attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        count = trained(GPT())
    assert count.model_flops == 3 * (DENSE + ATTENTION)


def test_frozen_weights_count_by_what_autograd_ran() -> None:
    """LoRA on a frozen linear: the frozen weight has no gradient, and the first layer's input wants none."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 8).requires_grad_(requires_grad=False)
            self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.b(self.a(x))

    x, model = torch.randn(4, 8), nn.Sequential(Adapted(), Adapted())
    count = mfu.count(lambda: model(x).sum().backward())
    base, low = 2 * 4 * 64, 2 * 4 * 16
    assert count.forward_flops == 2 * (base + 2 * low)
    # Second layer: base's input gradient, and both of a and b. First layer: both of b, the weight's of a.
    assert count.backward_flops == (base + 4 * low) + 3 * low


def test_frozen_tower_counts_forward_only() -> None:
    """A frozen encoder beneath a trained head has no backward; the head's first layer gets no input gradient."""
    tower, head = nn.Linear(8, 8).requires_grad_(requires_grad=False), nn.Linear(8, 4)
    count = mfu.count(lambda: head(tower(torch.randn(2, 8))).sum().backward())
    assert (count.forward_flops, count.backward_flops) == (2 * 2 * 64 + 2 * 2 * 32, 2 * 2 * 32)


class Orthogonal(torch.optim.Optimizer):
    """An optimizer that multiplies, as Muon does."""

    def __init__(self, params: object) -> None:
        super().__init__(params, {})  # type: ignore[arg-type]

    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad @ parameter.grad.T @ parameter.grad, alpha=1e-3)


def test_the_optimizers_products_are_hardware_only() -> None:
    """2 · 2·8·8·8 FLOPs of an orthogonalised step are in hardware and optimizer FLOPs, in no model FLOP."""
    model = nn.Linear(8, 8, bias=False)
    optimizer = Orthogonal(model.parameters())

    def step() -> None:
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()

    count = mfu.count(step)
    assert (count.optimizer_flops, count.model_flops) == (2 * 2 * 512, 2 * 2 * 4 * 64)
    assert count.hardware_flops == count.model_flops + count.optimizer_flops


def test_a_closure_is_the_models() -> None:
    """What step() calls back for is forward and backward."""
    model = nn.Linear(8, 8, bias=False)
    optimizer = Orthogonal(model.parameters())
    count = mfu.count(lambda: optimizer.step(lambda: model(torch.randn(4, 8)).sum().backward()))
    assert (count.forward_flops, count.backward_flops, count.optimizer_flops) == (512, 512, 2 * 2 * 512)


def test_counting_that_starts_inside_step() -> None:
    """A step() that was entered before counting began is recognised all the same."""
    model = nn.Linear(8, 8, bias=False)
    model.weight.grad = torch.randn(8, 8)
    optimizer = Orthogonal(model.parameters())
    mode = CountingMode(model)
    optimizer.register_step_pre_hook(lambda *_: mode.start())
    optimizer.step()
    mode.stop()
    assert (mode.result().optimizer_flops, mode.result().model_flops) == (2048, 0)


def test_an_optimizer_inside_the_backward() -> None:
    """Stepping from a gradient hook, as fused backward-optimizers do, is no backward."""
    model = nn.Linear(8, 8, bias=False)
    optimizer = Orthogonal(model.parameters())
    model.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    count = mfu.count(lambda: model(torch.randn(4, 8)).sum().backward())
    assert (count.backward_flops, count.optimizer_flops) == (512, 2048)


def test_functional_gradients_are_backward() -> None:
    """torch.func.grad runs its backward with gradients on; it is no recomputation."""
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    count = mfu.count(lambda: torch.func.grad(lambda w: (x @ w).sum())(w))
    assert (count.forward_flops, count.backward_flops, count.recompute_flops) == (512, 512, 0)


def test_double_backward() -> None:
    """Of sum((x·w)²), the gradient's gradient is backward too."""
    x, w = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)

    def run() -> None:
        (gradient,) = torch.autograd.grad(((x @ w) ** 2).sum(), w, create_graph=True)
        gradient.sum().backward()

    count = mfu.count(run)
    # xᵀ·g; then the gradient of that product by g, and of the first by w.
    assert (count.forward_flops, count.backward_flops, count.recompute_flops) == (512, 3 * 512, 0)
