"""Who prices an operator, and proof that every operator of torch is priced, declared free, or known to be neither."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.utils import flop_counter

import mfu_sdk as mfu
from mfu_sdk.counting import registry
from mfu_sdk.counting.pricing import PRICES
from mfu_sdk.counting.pricing.unpriced import UNPRICED
from mfu_sdk.errors import ConfigurationError

# What a fresh process must import for torch to define every operator that it has.
SWEEP = """
import importlib, json, torch
for name in (
    "torch._dynamo", "torch._inductor.compile_fx", "torch._inductor.inductor_prims", "torch.ao.nn.quantized",
    "torch.ao.quantization.fx._decomposed", "torch.distributed._symmetric_memory", "torch.distributed.fsdp",
    "torch.distributed.tensor.experimental._attention", "torch.nested._internal.ops",
    "torch.nn.attention.flex_attention", "torch.nn.attention.varlen", "torch.onnx.ops",
):
    importlib.import_module(name)
from mfu_sdk.counting import registry
kinds = {}
for qualified in torch._C._dispatch_get_all_op_names():
    namespace, _, name = qualified.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.partition(".")[0], None)
    overload = getattr(packet, name.partition(".")[2] or "default", None)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CompositeImplicitAutograd")
    # What is made of others never arrives whole, but in inference mode, where it is taken apart.
    if overload is not None and "Tensor" in str(overload._schema) and not composite:
        kinds.setdefault(overload._schema.name, registry.rule(overload).kind)
print(json.dumps(kinds))
"""


@pytest.fixture(scope="module")
def kinds() -> dict[str, str]:
    """Every operator of torch that takes a tensor and reaches a dispatch mode whole, and what prices it."""
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", SWEEP], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


def test_every_operator_of_torch_is_accounted_for(kinds: dict[str, str]) -> None:
    """An operator without price must be declared free by a rule, or be in UNPRICED with a reason; none is forgotten."""
    assert len(kinds) > 1500
    unknown = {name for name, kind in kinds.items() if kind == "unknown"}
    assert unknown - set(UNPRICED) == set(), (
        "new operators: price them, declare them free, or give a reason in UNPRICED"
    )


def test_the_list_of_unpriced_operators_is_no_longer_than_it_must(kinds: dict[str, str]) -> None:
    """A name that has got a price, or that torch does not know, is not on the list."""
    assert {name for name in UNPRICED if kinds.get(name) != "unknown"} == set()


WORDS = """
    mm mv dot conv convolution attention attn linear matmul bilinear rnn lstm gru addr bmm addmm baddbmm addmv gemm fft
    svd lu qr eig eigh cholesky inv det solve lstsq einsum cdist pdist outer product combination
"""


@pytest.mark.parametrize("word", WORDS.split())
def test_no_contraction_is_declared_free(kinds: dict[str, str], word: str) -> None:
    """No operator with a product in its name costs nothing, but what packs, questions or unpacks."""
    free = {name for name, kind in kinds.items() if kind in ("free", "view")}
    inside = word in ("conv", "attention", "matmul")
    suspects = {name for name in free if word in name.partition("::")[2].strip("_").split("_")}
    suspects |= {name for name in free if inside and word in name}
    packs = {name for name in suspects if "pack" in name or "reorder" in name or "_flatten_weight" in name}
    # A fused cell is the gates' pointwise half; its products are operators of their own.
    other = {name for name in suspects if "_cell" in name or "convert" in name or "fftfreq" in name}
    assert suspects - packs - other - {"prims::erf_inv"} == set()


def test_prices_name_operators_that_exist(kinds: dict[str, str]) -> None:
    """A misspelt name would price nothing."""
    ours = {name for name in PRICES if not name.startswith(("torchvision::", "torchaudio::"))}
    # What others are made of is taken apart, but of nested tensors.
    nested = {name for name in ours if PRICES[name].nested}
    assert all(hasattr(torch.ops.aten, name.removeprefix("aten::")) for name in nested)
    assert ours - nested - set(kinds) == set()


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    """A library with one operator that torch has never heard of, and a clean registry afterwards."""
    lib = torch.library.Library("mfu_tests", "DEF")
    lib.define("twice(Tensor x, int times=2) -> Tensor")
    lib.impl("twice", lambda x, times=2: (x @ x) * times, "CompositeExplicitAutograd")
    try:
        yield lib
    finally:
        lib._destroy()
        registry._users.clear()
        registry.RULES.clear()


def twice() -> torch.Tensor:
    return torch.ops.mfu_tests.twice(torch.randn(4, 4), times=3)


def test_an_unknown_library_is_uncounted(library: torch.library.Library) -> None:
    """A custom operator costs coverage until it has a formula."""
    count = mfu.count(twice)
    assert [u.op for u in count.uncounted] == ["mfu_tests::twice"]
    assert (count.model_flops, count.coverage < 1.0) == (0, True)


@pytest.mark.parametrize("form", ["packet", "overload", "name", "overload's name"])
def test_registering_by_shapes(library: torch.library.Library, form: str) -> None:
    """The formula gets shapes for tensors, the result as `out`, and other arguments as they are."""
    operator = torch.ops.mfu_tests.twice
    targets = {
        "packet": operator,
        "overload": operator.default,
        "name": "mfu_tests::twice",
        "overload's name": "mfu_tests::twice.default",
    }
    seen = []

    def formula(x: tuple[int, ...], times: int = 2, *, out: tuple[int, ...]) -> int:
        seen.append((x, times, out))
        return 2 * x[0] ** 3

    mfu.register_flops(targets[form], formula)
    count = mfu.count(twice)
    assert (count.model_flops, count.uncounted, seen) == (128, (), [((4, 4), 3, (4, 4))])


def test_registering_with_tensors(library: torch.library.Library) -> None:
    """With raw=True the formula may read the tensors themselves."""
    mfu.register_flops("mfu_tests::twice", lambda x, times, out: int(torch.ones_like(x).sum()) * times, raw=True)
    assert mfu.count(twice).model_flops == 48


def test_a_users_formula_comes_first(library: torch.library.Library) -> None:
    """Even an operator of torch's can be priced by its user, and priced again."""
    mfu.register_flops(torch.ops.aten.mm, lambda a, b, out: 1)
    assert mfu.count(lambda: torch.randn(4, 4) @ torch.randn(4, 4)).model_flops == 1
    mfu.register_flops(torch.ops.aten.mm, lambda a, b, out: 2)
    assert mfu.count(lambda: torch.randn(4, 4) @ torch.randn(4, 4)).model_flops == 2


@pytest.mark.parametrize("wrong", [lambda *_, out: 1 / 0, lambda *_, out: 1.5, lambda *_, out: -1, lambda: 0])
def test_a_formula_that_fails_costs_coverage(library: torch.library.Library, wrong: object) -> None:
    """A formula that raises, or returns no whole number, leaves its operator uncounted and the program running."""
    mfu.register_flops("mfu_tests::twice", wrong)  # type: ignore[arg-type]
    count = mfu.count(twice)
    assert (count.model_flops, [u.op for u in count.uncounted]) == (0, ["mfu_tests::twice"])


def test_torchs_own_registry_is_honoured(library: torch.library.Library) -> None:
    """What a library registered with torch's counter counts here too."""
    operator = torch.ops.mfu_tests.twice

    @flop_counter.register_flop_formula(operator)
    def formula(x: tuple[int, ...], times: int = 2, *, out_shape: tuple[int, ...]) -> int:
        return 2 * x[0] ** 3 + times * out_shape[0]

    try:
        count = mfu.count(twice)
    finally:
        del flop_counter.flop_registry[operator]
    assert (count.model_flops, count.uncounted) == (128 + 12, ())


@pytest.mark.parametrize("target", ["no colons", "::mm", "lib::", print, 3])
def test_targets_that_are_no_operators(target: object) -> None:
    """They are refused, with the way out."""
    with pytest.raises(ConfigurationError, match="must be an operator"):
        mfu.register_flops(target, lambda *_: 0)


def test_a_formula_must_be_callable() -> None:
    """A number is no formula."""
    with pytest.raises(ConfigurationError, match="formula=3: must be callable"):
        mfu.register_flops("lib::op", 3)  # type: ignore[arg-type]
