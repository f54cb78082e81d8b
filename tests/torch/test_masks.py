"""Attention written out is recognised, and masks without data are counted as if they had any."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mfu_sdk as mfu
from mfu_sdk.counting import intervals
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.masks import Masks
from mfu_sdk.records import Count

B, H, T, D = 2, 4, 8, 16
CAUSAL = T * (T + 1) // 2
LOWEST = torch.finfo(torch.float32).min


class Watching(TorchDispatchMode):
    """Shows every operator to `Masks`, and nothing else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masks = Masks()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.masks.observe(func._schema.name.removesuffix("_"), Call(func, args, kwargs or {}, out), None)
        return out


def allowed(make: Callable[[str], torch.Tensor], device: str) -> int | None:
    with Watching() as mode:
        mask = make(device)
    return mode.masks.allowed(mask)


def agrees(make: Callable[[str], torch.Tensor]) -> None:
    """What is counted without data is what is read with data, and that is what the mask says."""
    real = make("cpu")
    shown = real > torch.finfo(real.dtype).min / 2 if real.is_floating_point() else real
    expected = int(shown.count_nonzero())
    assert allowed(make, "cpu") == expected
    assert allowed(make, "meta") == expected


def qk(device: str, q_len: int = 9, k_len: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(q_len, device=device)[:, None] + 3, torch.arange(k_len, device=device)[None, :]


def zero(device: str) -> torch.Tensor:
    return torch.zeros((), device=device)


def band(device: str) -> torch.Tensor:
    q, k = qk(device)
    return (k <= q) & (k > q - 4)


def in_place(device: str) -> torch.Tensor:
    mask = torch.full((9, 12), float("-inf"), device=device)
    mask.triu_(4)
    mask *= torch.ones(9, 12, device=device)
    return mask.masked_fill_(band(device), 0.0)


def filled_in_part(device: str) -> torch.Tensor:
    mask = torch.zeros(9, 12, dtype=torch.bool, device=device)
    return mask.fill_(1) & band(device)


def moved_in_place(device: str) -> torch.Tensor:
    q, k = torch.arange(9, device=device), torch.arange(12, device=device)
    q += 2
    return (k <= q[:, None]) & (k * 2 > q[:, None])


MADE: dict[str, Callable[[str], torch.Tensor]] = {
    "band": band,
    "band of a view": lambda d: band(d)[2:7, 1::2],
    "band turned": lambda d: band(d).T[3:],
    "band repeated": lambda d: band(d)[None, None].expand(2, 3, -1, -1),
    "band for heads": lambda d: band(d)[None, :, None, 2:].expand(3, -1, 2, -1),
    "chunks": lambda d: (lambda q, k: (k // 4 == q // 4) & (k <= q))(*qk(d)),
    "chunks by rounding": lambda d: (
        lambda q, k: torch.div(k, 4, rounding_mode="floor") == torch.div(q, 4, rounding_mode="floor")
    )(*qk(d)),
    "prefix": lambda d: (lambda q, k: torch.logical_or(k < 5, k <= q))(*qk(d)),
    "distance": lambda d: (lambda q, k: torch.abs(q - k) <= 2)(*qk(d)),
    "remainder": lambda d: (lambda q, k: (k % 3 == 0) | (k == q))(*qk(d)),
    "not equal": lambda d: (lambda q, k: (k != q) ^ (k > 4))(*qk(d)),
    "bias": lambda d: torch.where(band(d), zero(d), LOWEST),
    "inverted bias": lambda d: (1.0 - band(d).float()) * LOWEST,
    "filled bias": lambda d: torch.zeros(9, 12, device=d).masked_fill(~band(d), float("-inf")),
    "half bias": lambda d: torch.where(band(d), 0.0, LOWEST).to(torch.bfloat16),
    "triangle": lambda d: torch.full((9, 12), float("-inf"), device=d).triu(2),
    "lower triangle": lambda d: torch.ones(3, 9, 12, dtype=torch.bool, device=d).tril(-1),
    "triangle as numbers": lambda d: torch.ones(9, 12, device=d).tril() == 1,
    "minus a triangle": lambda d: (torch.ones_like(band(d).float()) - torch.ones(9, 12, device=d).tril(3)) * -1e38,
    "gathered": lambda d: (lambda i, owner: owner[i[:, None]] == owner[i])(
        torch.arange(9, device=d), torch.cat([torch.zeros(4, device=d), torch.ones(5, device=d)])
    ),
    "rounded": lambda d: (
        torch.arange(300, 312, device=d).to(torch.bfloat16) <= torch.arange(300, 309, device=d)[:, None]
    ),
    "cut to whole numbers": lambda d: ((torch.arange(12, device=d) * 0.3).long() + torch.zeros(9, 1, device=d)) > 0,
    "limits": lambda d: (lambda q, k: torch.minimum(q, k).clamp(min=2) + torch.maximum(q, k) < 11)(*qk(d)),
    "arithmetic": lambda d: (lambda q, k: -(2 * q) + k - 1 >= 3 - q)(*qk(d)),
    "in place": in_place,
    "moved in place": moved_in_place,
    "filled": filled_in_part,
    "empty": lambda d: band(d)[:, :0],
}


@pytest.mark.parametrize("make", MADE)
def test_a_mask_without_data_is_worked_out(make: str) -> None:
    """Made of indices, comparisons, logic and views, it counts what the real mask counts."""
    agrees(MADE[make])


def test_a_fake_mask_is_worked_out() -> None:
    """Fake tensors are no different from meta ones."""
    real = int(band("cpu").sum())
    with FakeTensorMode(), Watching() as mode:
        mask = band("cpu")
    assert mode.masks.allowed(mask) == real


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mask_of_indices(data: st.DataObject) -> None:
    """Random programs of index operators, of random lengths: the same count with and without data."""
    q_len, k_len = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    number = st.integers(-20, 320)
    steps = data.draw(
        st.lists(st.tuples(st.sampled_from(["and", "or", "not", "xor"]), st.integers(0, 5), number, number))
    )

    def make(device: str) -> torch.Tensor:
        q, k = torch.arange(q_len, device=device)[:, None], torch.arange(k_len, device=device)
        mask = k <= q
        for how, which, a, b in steps:
            other = (
                lambda a=a: k > q - a,
                lambda a=a, b=b: k // max(abs(a), 1) == q // max(abs(b), 1),
                lambda a=a: k < a,
                lambda a=a: q >= a,
                lambda a=a, b=b: (q + a) * 2 < k * 3 - b,
                lambda a=a: k.expand(q_len, k_len).tril(a) > 7,
            )[which]()
            mask = {"and": mask & other, "or": mask | other, "not": ~mask & other, "xor": mask ^ other}[how]
        return mask

    assert allowed(make, "meta") == int(make("cpu").sum())


ENDS = st.sampled_from([float("-inf"), -3e38, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0])
OPERATORS = {
    **dict.fromkeys(("add", "sub", "rsub", "mul", "minimum", "maximum", "le", "lt", "ge", "gt", "eq", "ne"), 2),
    **dict.fromkeys(("logical_and", "logical_or"), 2),
    **dict.fromkeys(("neg", "abs", "logical_not", "clone"), 1),
}


@given(
    st.sampled_from(sorted(OPERATORS)), st.lists(ENDS, min_size=1, max_size=4), st.lists(ENDS, min_size=1, max_size=4)
)
def test_bounds_hold(name: str, a: list[float], b: list[float]) -> None:
    """Every result lies within the bounds made of its operands' bounds."""
    x, y = torch.tensor(a, dtype=torch.float64)[:, None], torch.tensor(b, dtype=torch.float64)
    operands = (x, y)[: OPERATORS[name]]
    made = getattr(torch, name)(*operands)
    known = [(float(t.min()), float(t.max())) for t in operands]
    bounds = intervals.of_operator(f"aten::{name}", known, {}, made.dtype)
    if bounds is not None and not made.isnan().any():
        assert bounds[0] <= float(made.double().min())
        assert float(made.double().max()) <= bounds[1]


@given(
    st.lists(st.floats(-70000, 70000), min_size=1, max_size=4),
    st.sampled_from([torch.bfloat16, torch.float16, torch.int64, torch.bool]),
)
def test_bounds_follow_a_change_of_dtype(values: list[float], dtype: torch.dtype) -> None:
    """Rounded, cut to whole numbers or to truth, the values stay within the bounds."""
    made = torch.tensor(values, dtype=torch.float64).to(dtype)
    bounds = intervals.of_operator("aten::_to_copy", [(min(values), max(values))], {}, dtype)
    assert bounds is not None
    assert bounds[0] <= float(made.double().min()) <= float(made.double().max()) <= bounds[1]


def test_an_unknown_operand_hides_nothing() -> None:
    """Padding and learnt biases without data are left out; an index that is not known makes the mask unknown."""
    known = int(band("cpu").sum())
    for make in (
        lambda d: band(d) & torch.empty(9, 12, dtype=torch.bool, device=d),
        lambda d: torch.where(band(d), 0.0, LOWEST) + torch.randn(4, 9, 12, device=d),
        lambda d: torch.randn(9, 12, device=d).masked_fill(~band(d), LOWEST),
    ):
        shown = allowed(make, "meta")
        assert shown in (known, 4 * known)
    assert allowed(lambda d: band(d) == torch.empty(9, 12, dtype=torch.bool, device=d), "meta") is None
    assert (
        allowed(lambda d: torch.arange(12, device=d) + torch.empty(9, 1, dtype=torch.long, device=d) > 3, "meta")
        is None
    )


@pytest.mark.parametrize(
    "across", [lambda m: m.diagonal(), lambda m: m.flatten(), lambda m: m.as_strided((3, 3), (13, 1))]
)
def test_a_view_across_dimensions_is_unknown(across: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A diagonal, or rows run together, are not boxes of the mask: nothing is said of them."""
    assert allowed(lambda d: across(band(d)), "meta") is None
    assert allowed(lambda d: across(band(d)), "cpu") == int(across(band("cpu")).sum())


def test_what_is_written_to_is_not_remembered() -> None:
    """A part of a mask that is overwritten by what is not known makes all of it unknown."""

    def make(device: str) -> torch.Tensor:
        mask = band(device).clone()
        mask[2:4] = torch.empty(2, 12, dtype=torch.bool, device=device)
        return mask

    assert allowed(make, "meta") is None


def test_a_long_mask_takes_no_longer() -> None:
    """Bounds decide all but the edges of a window over 65,536 tokens; its 4.3 billion pairs are too many to look at."""
    tokens, window = 65_536, 4096

    def make(device: str) -> torch.Tensor:
        i = torch.arange(tokens, device=device)
        return ((i <= i[:, None]) & (i > i[:, None] - window)).expand(4, 1, -1, -1)

    expected = window * (window + 1) // 2 + (tokens - window) * window
    assert allowed(make, "meta") == 4 * expected


def heads(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(B, H, T, D, device=device, requires_grad=True) for _ in range(3))
    return q, k, v


def causal_bias(device: str) -> torch.Tensor:
    i = torch.arange(T, device=device)
    return torch.where(i <= i[:, None], 0.0, LOWEST)


def softcapped(device: str) -> torch.Tensor:
    q, k, v = heads(device)
    scores = 30 * torch.tanh(q @ k.mT / 30) + causal_bias(device)
    return scores.softmax(-1) @ v


def with_sinks(device: str) -> torch.Tensor:
    q, k, v = heads(device)
    sinks = torch.randn(H, device=device, requires_grad=True)
    scores = torch.cat([q @ k.mT * 0.25 + causal_bias(device), sinks.view(1, -1, 1, 1).expand(B, -1, T, -1)], -1)
    weights = (scores - scores.max(-1, keepdim=True).values).softmax(-1)[..., :-1]
    return torch.nn.functional.dropout(weights, 0.1) @ v


def in_half(device: str) -> torch.Tensor:
    q, k, v = (t.bfloat16() for t in heads(device))
    scores = q @ k.mT + causal_bias(device).bfloat16()
    return scores.softmax(-1, dtype=torch.float32).to(torch.bfloat16) @ v


def by_einsum(device: str) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in heads(device))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(causal_bias(device) < 0, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def by_baddbmm(device: str) -> torch.Tensor:
    q, k, v = (t.flatten(0, 1) for t in heads(device))
    scores = torch.baddbmm(causal_bias(device).expand(B * H, -1, -1), q, k.mT, alpha=0.25)
    return torch.bmm(scores.softmax(-1), v)


def grouped_by_view(device: str) -> torch.Tensor:
    q, k, v = heads(device)
    q = q.unflatten(1, (2, 2))
    scores = q @ k[:, ::2, None].mT + causal_bias(device)
    return scores.softmax(-1) @ v[:, ::2, None]


def masked_twice(device: str) -> torch.Tensor:
    q, k, v = heads(device)
    scores = (q @ k.mT + torch.randn(H, T, T, device=device)).masked_fill(causal_bias(device) < 0, LOWEST)
    return torch.where(causal_bias(device) < 0, LOWEST, scores).softmax(-1) @ v


WRITTEN_OUT = (softcapped, with_sinks, in_half, by_einsum, by_baddbmm, grouped_by_view, masked_twice)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_masks_in_two_steps_hide_what_either_hides(device: str) -> None:
    """Causal, then no further ahead than a window that starts later: neither mask holds the other."""

    def run() -> None:
        q, k, v = heads(device)
        i = torch.arange(T, device=device)
        hidden = (i > i[:, None] - 3) & (i < 4)
        (((q @ k.mT + causal_bias(device)).masked_fill(hidden, LOWEST)).softmax(-1) @ v).sum()

    shown = sum(k <= q and not (k > q - 3 and k < 4) for q in range(T) for k in range(T))
    assert mfu.count(run).model_flops == 4 * B * H * D * shown


def step(forward: Callable[[str], torch.Tensor], device: str) -> Count:
    return mfu.count(lambda: forward(device).sum().backward())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("forward", WRITTEN_OUT)
def test_attention_written_out_in_many_ways(forward: Callable[[str], torch.Tensor], device: str) -> None:
    """Two products forward and four backward, each over the causal pairs, with data and without."""
    count, pair = step(forward, device), 2 * B * H * D
    assert count.uncounted == ()
    assert (count.forward_flops, count.backward_flops) == (2 * pair * CAUSAL, 4 * pair * CAUSAL)
    assert count.attention_flops_full == 6 * pair * T * T


def test_multi_head_attention_that_returns_its_weights() -> None:
    """nn.MultiheadAttention adds its mask by baddbmm where the weights are wanted."""
    layer = torch.nn.MultiheadAttention(H * D, H, batch_first=True)
    x = torch.randn(B, T, H * D)
    mask = causal_bias("cpu")
    count = mfu.count(lambda: layer(x, x, x, attn_mask=mask, need_weights=True)[0].sum())
    assert count.attention_flops_exact == 4 * B * H * CAUSAL * D
    assert count.forward_flops == count.attention_flops_exact + 8 * B * T * (H * D) ** 2


def test_a_mask_is_read_once_a_step() -> None:
    """Layers that share a mask share its count, until it is written to."""
    masks, mask = Masks(), torch.ones(T, T, dtype=torch.bool).tril()
    reads = 0

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal reads
            reads += func is torch.ops.aten.count_nonzero.default
            return func(*args, **(kwargs or {}))

    with Reads():
        counts = [masks.allowed(mask.expand(B, H, T, T)) for _ in range(5)]
        assert (counts, reads) == ([B * H * CAUSAL] * 5, 1)
        mask.fill_(1)
        assert (masks.allowed(mask.expand(B, H, T, T)), reads) == (B * H * T * T, 2)
