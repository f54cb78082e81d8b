"""Work that no operator names: autograd functions, Python functions and Triton kernels with prices."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk.counting import functions, registry
from mfu_sdk.counting.books import Books
from mfu_sdk.errors import ConfigurationError


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    functions._users.clear()
    functions._users_kernels.clear()
    functions._changes += 1


class Fused(torch.autograd.Function):
    """Stands for a kernel of an extension: what it computes is seen by no one, only that it allocates."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.empty(x.shape[0], weight.shape[0]).fill_(0.5)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x).fill_(1.0), torch.empty_like(weight).fill_(1.0)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Fused.apply(x, self.weight)  # type: ignore[no-any-return]


def product(x: tuple[int, ...], weight: tuple[int, ...], out: None) -> int:
    assert out is None
    return 2 * x[0] * x[1] * weight[0]


def twice_product(x: tuple[int, ...], weight: tuple[int, ...], out: None) -> int:
    return 2 * product(x, weight, out)


def test_an_autograd_function_by_its_forwards_arguments() -> None:
    """Each call of the three is priced once, in both directions, at its module; what runs beneath is covered."""
    mfu.register_flops(Fused, product, backward=twice_product)
    model = nn.Sequential(Layer(), nn.Linear(5, 3), Layer())
    count = mfu.count(lambda: model(Fused.apply(torch.randn(4, 3), torch.randn(3, 3))).sum().backward())
    outside, inside, linear = 2 * 4 * 3 * 3, 2 * 4 * 3 * 5, 2 * 4 * 5 * 3
    assert count.forward_flops == outside + 2 * inside + linear
    # The one outside has nothing to train.
    assert count.backward_flops == 4 * inside + 2 * linear
    assert count.by_module == {
        "": outside, "Sequential.0": 3 * inside, "Sequential.1": 3 * linear, "Sequential.2": 3 * inside,
    }  # fmt: skip
    assert count.uncounted == ()


def test_calls_in_a_row_are_calls_apart() -> None:
    """Calls whose frames may lie at one address, with nothing in between, are told apart."""
    mfu.register_flops(Fused, product)
    x, weight = torch.randn(4, 3), torch.randn(3, 3)

    def run() -> None:
        for _ in range(10):
            Fused.apply(x, weight)

    assert mfu.count(run).model_flops == 10 * 2 * 4 * 9


def test_a_backward_without_a_price_counts_what_it_runs() -> None:
    """Only the forward was priced: the products of the backward count by themselves."""

    class Half(Fused):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(x).fill_(1.0)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradient @ torch.ones(3, 3)

    mfu.register_flops(Half, lambda x, out: 7)
    count = mfu.count(lambda: Half.apply(torch.randn(2, 3, requires_grad=True)).sum().backward())
    assert (count.forward_flops, count.backward_flops) == (7, 2 * 2 * 9)


def test_recomputation_is_the_hardwares() -> None:
    """Under checkpointing the priced forward runs twice, and the model needs it once."""
    mfu.register_flops(Fused, product, backward=twice_product)
    layer, x = Layer(), torch.randn(4, 3, requires_grad=True)
    for reentrant in (True, False):
        count = mfu.count(lambda again=reentrant: checkpoint(layer, x, use_reentrant=again).sum().backward())
        assert (count.model_flops, count.recompute_flops) == (3 * 120, 120)


def test_a_python_function_covers_what_it_runs() -> None:
    """Its price stands for the product inside, defaults filled in, and for nothing after it."""

    def fused(x: torch.Tensor, times: int = 3, *rest: int) -> torch.Tensor:
        for _ in range(times):
            x = x @ x
        return x

    seen = []

    def formula(x: tuple[int, ...], times: int, rest: tuple[int, ...], out: None) -> int:
        seen.append((x, times, rest))
        return 1000 * times

    mfu.register_flops(fused, formula)
    x = torch.randn(2, 2)
    count = mfu.count(lambda: fused(fused(x) @ x, 5, 1))
    assert (count.model_flops, seen) == (8000 + 16, [((2, 2), 3, ()), ((2, 2), 5, (1,))])


def test_a_formula_that_raises_leaves_the_inside_to_itself() -> None:
    """The function is listed as uncounted, and the operators beneath it count as they would."""

    def fused(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    mfu.register_flops(fused, lambda x, out: 1 // 0)
    count = mfu.count(fused, torch.randn(2, 2))
    assert count.model_flops == 16
    assert [entry.op.rpartition(".")[2] for entry in count.uncounted] == ["fused"]


def test_no_frame_is_kept_beyond_counting() -> None:
    """What a priced function held is let go with it."""
    held = []

    class Big:
        def __del__(self) -> None:
            held.append("gone")

    def fused(x: torch.Tensor, big: Big) -> torch.Tensor:
        return x.clone()

    mfu.register_flops(fused, lambda x, big, out: 1)
    mfu.count(lambda: fused(torch.ones(2), Big()))
    assert held == ["gone"]


@pytest.mark.parametrize("target", [print, 3, torch.Tensor, nn.Linear])
def test_targets_without_a_frame(target: object) -> None:
    """They are refused, with the way out."""
    with pytest.raises(ConfigurationError, match="or a Python function; for code written in C"):
        mfu.register_flops(target, lambda *_: 0)


def test_only_an_autograd_function_has_a_backward() -> None:
    """An operator's backward is another operator."""
    with pytest.raises(ConfigurationError, match=r"only an autograd\.Function has one"):
        mfu.register_flops("lib::op", product, backward=product)


TRITON = """
import torch, triton, triton.language as tl
from torch.utils.flop_counter import flop_registry
import mfu_sdk as mfu

@triton.jit
def scale(x, out, number, factor: tl.constexpr, BLOCK: tl.constexpr = 16):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < number) * factor, mask=at < number)

@triton.jit
def theirs(x, out, number, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < number), mask=at < number)

def run():
    x, out = torch.ones(40), torch.empty(40)
    scale[(3,)](x, out, 40, factor=2)
    scale[(3,)](x, out, 40, 2, num_warps=1)
    assert out.sum() == 80, out

before = type(scale).run
unknown = mfu.count(run)
assert type(scale).run is before
seen = []
def formula(x, written, number, factor, block, out):
    seen.append((x, number, factor, block))
    return 2 * number

mfu.register_flops(scale, formula)
known = mfu.count(run)
# register_flop_formula takes compiled kernels only, and this one is interpreted.
flop_registry[theirs] = lambda *args, **kwargs: kwargs["kwargs"]["number"]
other = mfu.count(lambda: theirs[(3,)](torch.ones(40), torch.empty(40), 40, 16))
print([(u.op, u.calls) for u in unknown.uncounted], unknown.coverage < 1)
print(known.model_flops, known.by_dtype, known.uncounted, seen)
print(other.model_flops)
"""


def test_triton_kernels_launched_from_python() -> None:
    """Without a price they are listed, never silent; with one, ours or one given to torch's counter, they count."""
    pytest.importorskip("triton")
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-"], input=TRITON, capture_output=True, text=True, timeout=300, check=False,
        env={"TRITON_INTERPRET": "1", "PATH": "", "MFU_GUARD": "raise"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines() == [
        "[('triton::__main__:scale', 2)] True",
        "160 {'float32': 160} () [((40,), 40, 2, 16), ((40,), 40, 2, 16)]",
        "40",
    ]


def test_a_launch_in_a_captured_graph() -> None:
    """What stands for a launch in a graph is priced by its kernel, with constants among the arguments."""
    triton = pytest.importorskip("triton")
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation

    def body(x, out, number, BLOCK):  # type: ignore[no-untyped-def]  # noqa: N803
        pass

    kernel = triton.jit(body)
    held = {"x": torch.ones(40), "out": torch.empty(40)}
    constants = kernel_side_table.add_constant_args({"number": 40, "BLOCK": 16})
    index = kernel_side_table.add_kernel(triton.autotune([triton.Config({})], [])(kernel))
    launch = {"kernel_idx": index, "constant_args_idx": constants, "grid": [(3,)], "kwargs": held}

    def entered() -> Any:
        books = Books(None, "exact", tuple)
        rule = registry.rule(triton_kernel_wrapper_mutation)
        books.enter(rule, triton_kernel_wrapper_mutation, (), launch, None, ("", "forward", ()))
        return books.count()

    name = f"triton::{__name__}:{body.__qualname__}"
    assert [entry.op for entry in entered().uncounted] == [name]
    mfu.register_flops(kernel, lambda x, written, number, block, out: 2 * number + block)
    count = entered()
    assert (count.by_op, count.by_dtype, count.uncounted) == ({name: 96}, {"float32": 96}, ())
