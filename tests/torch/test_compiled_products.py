"""Products that Inductor takes apart count as in eager code, and elementwise work of the same look does not."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch._functorch.config as functorch
from torch import Tensor, nn

import mfu_sdk as mfu
from mfu_sdk.counting import compiled, graph_run, graph_text, provenance, registry
from mfu_sdk.counting.decomposed import _OUTER
from mfu_sdk.counting.provenance import Provenance
from mfu_sdk.records import Count

# Inductor's own modules warn, by deprecated syntax and the like; they are not ours.
pytestmark = pytest.mark.filterwarnings("ignore:::torch")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    # What AOTAutograd's cache has is compiled by nobody; how that counts is for test_warm_cache.
    with functorch.patch(enable_autograd_cache=False):
        yield
    assert not compiled._originals


def parts(count: Count) -> tuple[int, int, int]:
    """Forward, backward and recomputed FLOPs."""
    return count.forward_flops, count.backward_flops, count.recompute_flops


def train(fn: Callable[..., Any], args: list[Tensor]) -> Callable[[], None]:
    def step() -> None:
        found = fn(*args)
        outputs = found if isinstance(found, tuple) else (found,)
        # The gradient is no constant: a product with ones could be folded.
        sum((output.square().sum() for output in outputs), torch.zeros(())).backward()

    return step


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, spread: bool = False) -> list[Tensor]:
    """Tensors that want gradients; `spread` ones lie in every second place of the last dimension."""
    made = []
    for *rest, last in shapes:
        whole = torch.randn(*rest, 2 * last if spread else last, dtype=dtype)
        made.append((whole[..., ::2] if spread else whole).detach().requires_grad_())
    return made


# By name: a product, its operands' sizes, its FLOPs forward, and those of its gradients as eager code takes them:
# each is a product with as many multiply-adds, but those of vectors with a number or a vector (mul, ger: elementwise).
PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], int, int]] = {
    "dot": (torch.dot, [(16,), (16,)], 2 * 16, 0),
    "mv": (torch.mv, [(8, 16), (16,)], 2 * 8 * 16, 2 * 8 * 16),
    "addmv": (torch.addmv, [(8,), (8, 16), (16,)], 2 * 8 * 16, 2 * 8 * 16),
    "column": (torch.mm, [(8, 16), (16, 1)], 2 * 8 * 16, 2 * 2 * 8 * 16),
    "row": (torch.mm, [(1, 16), (16, 9)], 2 * 16 * 9, 2 * 2 * 16 * 9),
    "number": (torch.mm, [(1, 16), (16, 1)], 2 * 16, 2 * 2 * 16),
    "outer": (torch.mm, [(8, 1), (1, 9)], 2 * 8 * 9, 2 * 2 * 8 * 9),
    "linear": (nn.functional.linear, [(4, 16), (1, 16), (1,)], 2 * 4 * 16, 2 * 2 * 4 * 16),
    "small": (torch.addmm, [(9,), (1, 7), (7, 9)], 2 * 7 * 9, 2 * 2 * 7 * 9),
    "addr": (torch.addr, [(8, 9), (8,), (9,)], 2 * 8 * 9, 2 * 2 * 8 * 9),
    "outers": (torch.bmm, [(3, 8, 1), (3, 1, 9)], 2 * 3 * 8 * 9, 2 * 2 * 3 * 8 * 9),
    "rows": (torch.bmm, [(3, 1, 7), (3, 7, 9)], 2 * 3 * 7 * 9, 2 * 2 * 3 * 7 * 9),
    "numbers": (torch.bmm, [(3, 1, 7), (3, 7, 1)], 2 * 3 * 7, 2 * 2 * 3 * 7),
}
TWINS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "dot": (lambda a, b: (a * b).sum(), [(15,), (15,)]),
    "mv": (lambda a, b: (a * b).sum(1), [(8, 15), (15,)]),
    "outer": (lambda a, b: a * b, [(7, 1), (1, 9)]),
    "vectors": (lambda a, b: a[:, None] * b[None, :], [(7,), (11,)]),
    "outers": (lambda a, b: a * b, [(3, 7, 1), (3, 1, 9)]),
    "torch.outer": (torch.outer, [(7,), (13,)]),
}


@pytest.mark.parametrize(
    ("dtype", "spread", "dynamic"),
    [
        (torch.float32, False, False),
        (torch.float32, True, True),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
    ],
)
def test_all_in_one_graph(dtype: torch.dtype, spread: bool, dynamic: bool) -> None:
    """Products and what looks like them, side by side: each node is told by the operator that it came of."""
    cases = [(fn, shapes) for fn, shapes, _, _ in PRODUCTS.values()] + list(TWINS.values())
    args = [leaf for _, shapes in cases for leaf in leaves(*shapes, dtype=dtype, spread=spread)]

    def all_of_them(*args: Tensor) -> tuple[Tensor, ...]:
        given = iter(args)
        return tuple(fn(*(next(given) for _ in shapes)) for fn, shapes in cases)

    counted = mfu.count(train(torch.compile(all_of_them, dynamic=dynamic, fullgraph=True), args))
    forward, backward = (sum(flops) for flops in zip(*(case[2:] for case in PRODUCTS.values()), strict=True))
    assert parts(counted) == (forward, backward, 0)
    eager = mfu.count(train(all_of_them, args))
    assert (parts(eager), eager.by_dtype) == (parts(counted), counted.by_dtype)
    assert (counted.coverage, counted.uncounted) == (1.0, ())


@pytest.mark.parametrize("name", PRODUCTS)
def test_compiled_before_counting(name: str) -> None:
    """Where nobody saw it compiled, the names of its kernels tell that it was a product."""
    fn, shapes, forward, backward = PRODUCTS[name]
    step = train(torch.compile(fn), leaves(*shapes))
    step()
    counted = mfu.count(step)
    assert parts(counted) == parts(mfu.count(train(fn, leaves(*shapes)))) == (forward, backward, 0)
    assert (counted.coverage, counted.uncounted) == (1.0, ())


@pytest.mark.parametrize("name", TWINS)
def test_elementwise_stays_free(name: str) -> None:
    """What a program writes with a multiplication is no product, whether it was seen compiled or not."""
    fn, shapes = TWINS[name]
    step = train(torch.compile(fn), leaves(*shapes))
    step()
    counted = mfu.count(step)
    assert (counted.model_flops, counted.uncounted) == (0, ())


def test_one_graph_of_two_programs() -> None:
    """Inductor's cache gives two programs the same code: who saw each of them compiled tells them apart."""
    for _ in range(2):
        torch.compiler.reset()
        for fn, flops in ((torch.dot, 2 * 19), (lambda a, b: (a * b).sum(), 0)):
            assert mfu.count(torch.compile(fn), *leaves((19,), (19,))).model_flops == flops


def test_not_decided() -> None:
    """One of either in a graph that nobody saw compiled: both are listed, and neither is counted."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.dot(a, b) + (a * b.sin()).sum()

    args = [leaf.detach() for leaf in leaves((17,), (17,))]
    fast = torch.compile(both)
    fast(*args)
    counted = mfu.count(fast, *args)
    assert counted.model_flops == 0
    assert [(entry.op, entry.calls) for entry in counted.uncounted] == [("aten::dot", 2)]
    assert counted.coverage < 1


class Valued(nn.Module):
    """A trunk with a policy and a value head, whose advantage is spread over the actions by a multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16))
        self.policy, self.value = nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return cast("Tensor", (self.policy(h).log_softmax(-1) * self.value(h)).sum())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_value_head(dynamic: bool, seen: bool) -> None:
    """A net with a head of one output, trained under torch.compile with an optimizer, is what a pencil gives."""
    model, x = Valued(), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    fast = torch.compile(model, dynamic=dynamic)

    def step(net: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            net(x).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    if not seen:
        step(fast)()
    counted = mfu.count(step(fast))
    first, heads = 2 * 4 * 6 * 16, 2 * 4 * 16 * (5 + 1)
    assert parts(counted) == (first + heads, first + 2 * heads, 0)
    assert parts(mfu.count(step(model))) == parts(counted)
    assert counted.uncounted == ()


GPU = """
triton_poi_fused_{names}_0 = async_compile.triton('triton_poi_fused_{names}_0', '''
''')
triton_tem_fused_mm_1 = async_compile.triton('triton_tem_fused_mm_1', '''
''')
def call(self, args):
    triton_poi_fused_{names}_0.run(arg0_1, arg1_1, buf0, 128, stream=stream0)
    {call}
"""


def test_code_for_gpus() -> None:
    """In code for a GPU the kernels' names decide alike; a product in a kernel of its own explains its name once."""
    of = provenance._of_code
    extern = "extern_kernels.mm(arg0_1, arg1_1, out=buf1)"
    plain = of(GPU.format(names="mul_relu", call=extern))
    assert plain.is_product("mul", _OUTER) is False
    taken = of(GPU.format(names="mm_mul_relu", call=extern))
    assert taken.is_product("mul", _OUTER) is None
    assert taken.are_products(_OUTER, only=True, undivided={"mm": 1})
    # Two that may be it, and one of them a multiplication; or the product that ran in a kernel, merged with others.
    assert not taken.are_products(_OUTER, only=False, undivided={"mm": 1})
    assert not taken.are_products(_OUTER, only=True, undivided={"mm": 2})
    twice = of(GPU.format(names="mm_relu", call="triton_poi_fused_mm_relu_0.run(buf0, arg1_1, buf2, 128)"))
    assert not twice.are_products(_OUTER, only=False, undivided={})
    assert of(GPU.format(names="mm_relu", call="")).are_products(_OUTER, only=False, undivided={})
    assert of("def call(self, args): pass") == of("") == Provenance()


def test_products_with_a_size_of_one() -> None:
    """What Inductor's decompositions take apart counts: decoding one token, mv, (1, K) × (K, 1), an outer bmm."""

    def decode(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        row, column = w[:1], w[:, :1]
        attended = (q @ k.transpose(-1, -2)).softmax(-1) @ k
        small = torch.addmm(row[:, :1], row, column)
        return attended, w @ w[0], row @ column, small, k[0, :, :, :1] @ q[0, :, :, :5], k[:, 0, :1] @ k[:, 0, :1].mT

    args = (torch.randn(2, 4, 1, 8), torch.randn(2, 4, 8, 8), torch.randn(8, 8))
    counted = mfu.count(torch.compile(decode), *args)
    by_hand = 2 * (2 * 2 * 4 * 8 * 8 + 8 * 8 + 8 + 8 + 4 * 8 * 5 + 2 * 8)
    assert counted.model_flops == by_hand == mfu.count(decode, *args).model_flops


def operations(body: str, *given: Tensor) -> list[tuple[Any, tuple[int, ...]]]:
    """Each operator but the elementwise of a graph in the form that Inductor keeps, with the sizes of its result."""
    names = ", ".join(f"arg{i}_1" for i in range(len(given)))
    lines = [
        f"    def forward(self, {names}):",
        *(f"        {line}" for line in body.splitlines()),
        "        return (out,)",
    ]
    text = graph_text.read("\n".join(["class Repro(torch.nn.Module):", *lines, "", "def load_args(reader):"]), "")
    ran = graph_run.run(text, given).operations
    return [(o.func, tuple(o.result.shape)) for o in ran if registry.rule(o.func).kind == "priced"]


def test_decompositions_for_gpus() -> None:
    """What only a GPU's compiler takes apart or pads (max-autotune with one row, sizes made even) counts undivided."""
    row = """
a = torch.ops.aten.unsqueeze.default(arg0_1, 2)
b = torch.ops.aten.unsqueeze.default(arg1_1, 0)
mul = torch.ops.aten.mul.Tensor(a, b);  a = b = None
out = torch.ops.aten.sum.dim_IntList(mul, [1])"""
    assert operations(row.strip(), torch.ones(1, 8), torch.ones(8, 5)) == [(torch.ops.aten.mm.default, (1, 5))]
    # With two rows and columns nothing of Inductor's looks like this: it is the program's own.
    assert operations(row.strip(), torch.ones(2, 8), torch.ones(8, 5)) == []
    padded = """
constant_pad_nd_default = torch.ops.aten.constant_pad_nd.default(arg0_1, [0, 1, 0, 1])
constant_pad_nd_default_1 = torch.ops.aten.constant_pad_nd.default(arg1_1, [0, 3, 0, 1])
out = torch.ops.aten.mm.default(constant_pad_nd_default, constant_pad_nd_default_1)"""
    given = torch.ones(7, 7), torch.ones(7, 5)
    assert operations(padded.strip(), *given) == [(torch.ops.aten.mm.default, (7, 5))]
    own = padded.replace("constant_pad_nd_default", "constant_pad_nd")
    assert operations(own.strip(), *given) == [(torch.ops.aten.mm.default, (8, 8))]


SECOND = """
import sys, torch, mfu_sdk as mfu
from torch._dynamo.utils import counters
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
fast = torch.compile(model)
x = torch.randn(4, 8)
count = mfu.count(lambda: fast(x).square().sum().backward())
hits = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
print(count.forward_flops, count.backward_flops, count.coverage, int(hits > 0))
"""


@pytest.mark.slow
def test_warm_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process takes its graphs from the cache on disk, and counts the same, its head of one output too."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    said = [
        subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    forward = 2 * 4 * (8 * 16 + 16 * 1)
    backward = forward + 2 * 4 * 16 * 1
    assert said == [[str(forward), str(backward), "1.0", hit] for hit in "01"]
