"""Compiled code counts as eager code does, and stays as compiled as it was."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk.counting import compiled, graph_text
from mfu_sdk.counting.books import Books
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.flex import price_flex
from mfu_sdk.counting.masks import Masks
from mfu_sdk.peak.device import resolve
from mfu_sdk.records import Count, RunIdentity
from mfu_sdk.run.configuration import opened

# Inductor's own modules warn, by deprecated syntax and the like; they are not ours.
pytestmark = pytest.mark.filterwarnings("ignore:::torch")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    assert not compiled._originals


def train(fn: Callable[..., Tensor], *args: Any) -> Callable[[], None]:
    return lambda: fn(*args).sum().backward()


def alike(left: Count, right: Count) -> bool:
    """Whether the model's FLOPs agree in every part; recomputation is the compiler's own choice."""
    names = ("forward_flops", "backward_flops", "attention_flops_exact", "attention_flops_full", "by_dtype")
    return all(getattr(left, name) == getattr(right, name) for name in names)


class Block(nn.Module):
    """Attention by scaled_dot_product_attention, or spelled out with a mask made of two aranges."""

    def __init__(self, *, spelled: bool = False, again: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.spelled = spelled
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 16).permute(2, 0, 3, 1, 4)
        if self.spelled:
            place = torch.arange(length)
            scores = (q @ k.transpose(-1, -2) / 4).masked_fill(place[:, None] < place, float("-inf"))
            y = scores.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + (checkpoint(self.mlp, x, use_reentrant=False) if self.again else self.mlp(x))


# Batch 2, 8 tokens, width 32, 2 heads of 16: the products of one block forward, and its attention over 36 pairs.
DENSE = 2 * 16 * (32 * 96 + 32 * 32 + 2 * 32 * 64)
SCORES = 4 * 2 * 2 * 36 * 16


def test_block_by_hand() -> None:
    """A trained block, compiled under the mode, is what a pencil gives; a second count of compiled code is the same."""
    block, x = Block(), torch.randn(2, 8, 32)
    step = train(torch.compile(block, fullgraph=True), x)
    # The input wants no gradient, so the first linear layer has one product backward.
    backward = 2 * DENSE - 2 * 16 * 32 * 96 + 2 * SCORES
    for _ in range(2):
        counted = mfu.count(step)
        assert (counted.forward_flops, counted.backward_flops) == (DENSE + SCORES, backward)
        assert (counted.recompute_flops, counted.coverage, counted.uncounted) == (0, 1.0, ())
    assert alike(mfu.count(train(block, x)), counted)


def test_attention_spelled_out() -> None:
    """Scores, softmax and mask that Inductor fused are known for attention, forward and backward."""
    block, x = Block(spelled=True), torch.randn(2, 8, 32)
    counted = mfu.count(train(torch.compile(block), x))
    assert counted.attention_flops_exact == 3 * SCORES
    assert counted.attention_flops_full == 3 * SCORES * 64 // 36
    assert alike(mfu.count(train(block, x)), counted)


def test_masks_that_are_inputs() -> None:
    """A mask made of inputs is read: a padded key is hidden, in a fused operator and in a bias that is added."""

    def attend(q: Tensor, shown: Tensor, bias: Tensor) -> Tensor:
        fused = F.scaled_dot_product_attention(q, q, q, attn_mask=shown[:, None, None, :].bool())
        return fused + (q @ q.transpose(-1, -2) + bias).softmax(-1) @ q

    q = torch.randn(2, 2, 8, 16, requires_grad=True)
    shown = torch.ones(2, 8, dtype=torch.long)
    shown[1, 5:] = 0
    bias = torch.full((8, 8), float("-inf")).triu(1)
    counted = mfu.count(train(torch.compile(attend), q, shown, bias))
    fused, added = 4 * 2 * 8 * (8 + 5) * 16, 4 * 2 * 2 * 36 * 16
    assert counted.attention_flops_exact == 3 * (fused + added)
    assert alike(mfu.count(train(attend, q, shown, bias)), counted)


def test_facts_stay_with_their_call() -> None:
    """One compiled layer that runs with two masks before either's backward keeps them apart."""

    def attend(q: Tensor, mask: Tensor) -> Tensor:
        return (q @ q.transpose(-1, -2)).masked_fill(mask, float("-inf")).softmax(-1) @ q

    q = torch.randn(1, 1, 8, 16, requires_grad=True)
    causal, window = torch.ones(8, 8, dtype=torch.bool).triu(1), ~torch.eye(8, dtype=torch.bool)
    layer = torch.compile(attend)
    counted = mfu.count(lambda: (layer(q, causal) + layer(q, window)).sum().backward())
    assert counted.attention_flops_exact == 3 * 4 * (36 + 8) * 16


def test_checkpoint_inside() -> None:
    """Checkpointing inside of a compiled graph recomputes: hardware work, and no backward of the model's."""
    plain, again = Block(), Block(again=True)
    x = torch.randn(2, 8, 32)
    counted = mfu.count(train(torch.compile(again), x))
    assert counted.recompute_flops >= 2 * 16 * 32 * 64
    assert counted.hardware_flops >= counted.model_flops + counted.recompute_flops
    assert alike(mfu.count(train(plain, x)), counted)


def test_backward_alone() -> None:
    """Counted from its middle on, a step still knows what its backward graph recomputes."""
    loss = torch.compile(Block(again=True))(torch.randn(2, 8, 32)).sum()
    counted = mfu.count(loss.backward)
    assert counted.forward_flops == 0
    assert counted.recompute_flops >= 2 * 16 * 32 * 64
    assert counted.backward_flops == 2 * DENSE - 2 * 16 * 32 * 96 + 2 * SCORES


def test_templates() -> None:
    """A product that became a kernel of Inductor's own is counted; the calls that the kernel makes would be none."""
    model, x = nn.Linear(64, 64), torch.randn(64, 64)
    options = {"max_autotune": True, "max_autotune_gemm_backends": "CPP", "freezing": True}
    seen: list[str] = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        @classmethod
        def ignore_compile_internals(cls) -> bool:
            return True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), inductor.patch(options):
        fast = torch.compile(model)
        fast(x)
        seen.clear()
        with Seen():
            fast(x)
        assert not any("mm" in name or "linear" in name for name in seen)
        assert mfu.count(fast, x).model_flops == 2 * 64**3


def test_dynamic_sizes() -> None:
    """One graph for all lengths is priced for the length that it is called with, without compiling again."""
    block = Block()
    fast = torch.compile(block, dynamic=True)
    for length in (8, 9, 13):
        x = torch.randn(2, length, 32)
        with torch._dynamo.config.patch(error_on_recompile=length != 8):
            assert alike(mfu.count(train(fast, x)), mfu.count(train(block, x)))


def test_a_layer_compiled_by_itself() -> None:
    """Layers that share one compiled graph count once for each call, and graph breaks lose nothing."""
    blocks = nn.Sequential(Block(), Block())
    x = torch.randn(2, 8, 32)
    eager = mfu.count(train(blocks, x))
    for block in blocks:
        block.compile()
    assert alike(mfu.count(train(blocks, x)), eager)

    def broken(x: Tensor) -> Tensor:
        x = blocks[0](x)
        torch._dynamo.graph_break()
        return blocks[1](x)

    assert alike(mfu.count(train(torch.compile(broken), x)), eager)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_backends_without_kernels(backend: str) -> None:
    """Backends that run ordinary operators are counted by those."""
    block, x = Block(), torch.randn(2, 8, 32)
    assert alike(mfu.count(train(torch.compile(block, backend=backend), x)), mfu.count(train(block, x)))


def test_compiled_optimizer() -> None:
    """What a compiled step() of an optimizer multiplies is the optimizer's, not the model's."""
    weight = nn.Parameter(torch.randn(16, 16))
    weight.grad = torch.randn(16, 16)

    class Muonlike(torch.optim.Optimizer):
        def __init__(self) -> None:
            super().__init__([weight], {})

        @torch.no_grad()
        def step(self) -> None:  # type: ignore[override]
            assert weight.grad is not None
            weight.sub_(weight.grad @ weight.grad.T)

    counted = mfu.count(torch.compile(Muonlike().step))
    assert (counted.model_flops, counted.optimizer_flops) == (0, 2 * 16**3)


def test_flex_attention() -> None:
    """Flex attention in a compiled graph arrives with the data and the formula of its mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 256, 256, device="cpu")
    q = torch.randn(1, 2, 256, 16)
    fast = torch.compile(
        lambda q: flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: s + (i - j), block_mask=mask)
    )
    mode, calls = CountingMode(), list[compiled.CompiledCall]()
    regions = compiled.CompiledRegions(mode, calls.append)
    with mode:
        regions.start()
        fast(q)
        regions.stop()
    (operation,) = calls[0].operations or ()
    cost = price_flex(operation.func._name, operation.args, operation.kwargs, Masks(), fused=True)
    assert cost.exact == 4 * 2 * (256 * 257 // 2) * 16


def test_control_flow() -> None:
    """A branch on inputs is the branch taken; one that hangs on the graph's own products is not known, and listed."""

    def branch(x: Tensor, y: Tensor) -> Tensor:
        return torch.cond(y.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, (x,))

    x = torch.ones(8, 8)
    fast = torch.compile(branch)
    assert mfu.count(fast, x, x).model_flops == 2 * 8**3
    assert mfu.count(fast, x, -x).model_flops == 2 * 2 * 8**3
    hidden = mfu.count(torch.compile(lambda x: branch(x, x @ x)), x)
    assert hidden.model_flops == 2 * 8**3
    assert hidden.coverage < 1
    assert [u.op for u in hidden.uncounted] == ["higher_order::cond"]


@torch.library.custom_op("mfu_test_compiled::scale", mutates_args={"x"})
def scale(x: Tensor, by: Tensor) -> None:
    """An operator without a price, which writes to its argument."""
    x.mul_(by)


def test_unknown_operators_are_listed() -> None:
    """An operator without a price in a compiled graph is uncounted once, as it is in eager code."""

    def fn(x: Tensor, y: Tensor) -> Tensor:
        product = x @ y
        scale(product, y)
        return product @ y

    counted = mfu.count(torch.compile(fn), torch.randn(8, 8), torch.randn(8, 8))
    assert counted.model_flops == 2 * 2 * 8**3
    assert [(u.op, u.calls) for u in counted.uncounted] == [("mfu_test_compiled::scale", 1)]
    assert counted.coverage < 1


def test_unreadable_text_lowers_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the graph's text cannot be read, its calls to kernels are counted, and the rest is said to be unknown."""

    def unreadable(*_: str) -> graph_text.GraphText:
        raise ValueError("another version's text")

    monkeypatch.setattr(graph_text, "read", unreadable)
    counted = mfu.count(torch.compile(lambda x: (x @ x).relu()), torch.randn(64, 64))
    assert counted.model_flops == 2 * 64**3
    assert [u.op for u in counted.uncounted] == ["inductor::CompiledFxGraph"]
    assert counted.coverage < 1


def test_nothing_is_compiled_again() -> None:
    """Counted first, then not, then counted: one compilation, no graph break, no guard that fails, compiled code."""
    block, x = Block(), torch.randn(2, 8, 32)
    fast = torch.compile(block, fullgraph=True)
    mfu.count(train(fast, x))
    assert counters["stats"]["unique_graphs"] == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(fast, x)()
        mfu.count(train(fast, x))
        train(fast, x)()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    ran: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fast(x)
    ran = [event.key for event in profile.key_averages()]
    assert any("CompiledFxGraph" in name for name in ran)


def test_errors_pass_and_nothing_stays() -> None:
    """What compiled code raises reaches the caller; the mode and torch's class are as they were."""
    fast = torch.compile(lambda x, i: x[i] @ x)
    mode = CountingMode()
    x = torch.randn(8, 8)
    fast(x, torch.arange(8))
    with pytest.raises(RuntimeError, match="index out of bounds"), mode:
        fast(x, torch.full((8,), 99))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert mfu.count(fast, x, torch.arange(8)).model_flops == 2 * 8**3


def test_two_modes() -> None:
    """A count inside of a count sees the same compiled graph once each."""
    outer = CountingMode()
    fast = torch.compile(lambda x: x @ x)
    x = torch.randn(8, 8)
    with outer:
        inner = mfu.count(fast, x)
        fast(x)
    assert inner.model_flops == 2 * 8**3
    assert outer.result().model_flops == 2 * 2 * 8**3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("style", ["wrapper", "in place", "function"])
def test_monitored(style: str, before: bool) -> None:
    """A monitor of a compiled model counts what eager has, whichever came first, and breaks no graph."""
    model = Block()
    x = torch.randn(2, 8, 32)
    eager = mfu.count(train(model, x)).model_flops
    fast: Callable[[Tensor], Tensor] = model

    def compile_it() -> None:
        nonlocal fast
        if style == "wrapper":
            fast = torch.compile(model, fullgraph=True)
        elif style == "in place":
            model.compile(fullgraph=True)
        else:
            fast = torch.compile(lambda x: model(x), fullgraph=True)

    if before:
        compile_it()
    watched = fast if isinstance(fast, nn.Module) else model
    flops: list[int | None] = []
    with mfu.monitor(watched, on_step=lambda record: flops.append(record.model_flops)) as run:
        if not before:
            compile_it()
        for _ in range(4):
            with run.step():
                train(fast, x)()
    assert flops == [eager] * 4
    assert not counters["graph_break"]
    assert not inductor.freezing


class Experts(nn.Module):
    """Four experts whose rows a router in the same graph chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.weight = nn.Parameter(torch.randn(4, 16, 32, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        ends = F.one_hot(chosen, 4).sum(0).cumsum(0).to(torch.int32)
        return torch._grouped_mm(x[chosen.argsort()].bfloat16(), self.weight, offs=ends).float()


def test_experts_routed_inside_of_the_graph() -> None:
    """Only the data says how many rows each expert has: their products count as they are called, once."""
    experts, x = Experts(), torch.randn(64, 16)
    step = train(torch.compile(experts), x)
    product = 2 * 64 * 16 * 32
    for _ in range(2):
        counted = mfu.count(step)
        # The rows want no gradient: the grouped product has one product backward. The router is not trained at all.
        assert counted.by_op == {"aten::addmm": 2 * 64 * 16 * 4, "aten::_grouped_mm": 2 * product}
        assert (counted.forward_flops, counted.backward_flops) == (2 * 64 * 16 * 4 + product, product)
        assert counted.uncounted == ()


def test_experts_in_a_kernel_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the compiled code does not call the grouped product as it is, it is listed and not lost."""
    monkeypatch.setattr(Books, "seen_late", lambda *_: None)
    counted = mfu.count(train(torch.compile(Experts()), torch.randn(64, 16)))
    assert [(entry.op, entry.calls) for entry in counted.uncounted] == [("aten::_grouped_mm", 2)]


def test_its_part_of_a_configuration() -> None:
    """As a whole or in place, and in which mode: modes turn Inductor's options on."""
    identity = RunIdentity("run", 0, "work", "f1", 0, 0, 1, "Example", None, None, 0)
    in_place = nn.Sequential(nn.Linear(2, 2))
    in_place[0].compile(mode="max-autotune-no-cudagraphs")
    whole: Any = torch.compile(nn.Linear(2, 2), mode="reduce-overhead")
    found = [opened(model, resolve("cpu"), identity) for model in (nn.Sequential(nn.Linear(2, 2)), in_place, whole)]
    assert [each["compile"] for each in found] == [False, True, True]
    assert [each["compile.options"] for each in found] == [
        set(), {"coordinate_descent_tuning", "max_autotune"}, {"triton.cudagraphs"},
    ]  # fmt: skip
