"""Programs that people write: each counted, and held against a calculation by hand."""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as hop_map
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import mfu_sdk as mfu
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.records import Count, Peaks, Rate, StepRecord

ROWS, WIDE = 4, 8
PRODUCT = 2 * ROWS * WIDE * WIDE
"""FLOPs of the product of a (4, 8) by an (8, 8)."""
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


def x() -> torch.Tensor:
    return torch.randn(ROWS, WIDE)


def linear() -> nn.Linear:
    return nn.Linear(WIDE, WIDE, bias=False)


def stages(count: Count) -> tuple[int, int, int, int]:
    """Forward, backward, recomputation and optimizer, in products; what is priced is all, and splits add up."""
    assert (count.uncounted, count.coverage) == ((), 1.0)
    for split in (count.by_dtype, count.by_module, count.by_op):
        assert sum(split.values()) == count.model_flops
    found = count.forward_flops, count.backward_flops, count.recompute_flops, count.optimizer_flops
    assert not any(flops % PRODUCT for flops in found)
    return tuple(flops // PRODUCT for flops in found)  # type: ignore[return-value]


# --- functional transforms -------------------------------------------------------------------------------------------


def test_vjp_and_its_pullback() -> None:
    """x @ w forward, and the two products that give the gradients of both."""

    def run() -> None:
        _, pullback = vjp(torch.matmul, x(), torch.randn(WIDE, WIDE))
        pullback(torch.ones(ROWS, WIDE))

    assert stages(mfu.count(run)) == (1, 2, 0, 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jvp_runs_forward() -> None:
    """Of x @ w with tangents for both: x @ w, dx @ w and x @ dw, all forward."""

    def run() -> None:
        w = torch.randn(WIDE, WIDE)
        jvp(torch.matmul, (x(), w), (x(), w))

    assert stages(mfu.count(run)) == (3, 0, 0, 0)


def test_per_sample_gradients() -> None:
    """vmap(grad) over 4 rows: each one's forward product with w, and its outer product for w's gradient."""
    w, rows = torch.randn(WIDE, WIDE), x()
    each = vmap(grad(lambda w, row: (row @ w).sin().sum()), in_dims=(None, 0))
    assert stages(mfu.count(lambda: each(w, rows))) == (1, 1, 0, 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jacobians() -> None:
    """Of row @ w by its 8 entries: 8 products with wᵀ backward, or 8 with w forward, where torch runs row @ w twice."""
    row, w = torch.randn(WIDE), torch.randn(WIDE, WIDE)
    one = 2 * WIDE * WIDE
    reverse = mfu.count(lambda: jacrev(lambda row: row @ w)(row))
    forward = mfu.count(lambda: jacfwd(lambda row: row @ w)(row))
    assert (reverse.forward_flops, reverse.backward_flops) == (one, WIDE * one)
    assert (forward.forward_flops, forward.backward_flops) == (2 * one + WIDE * one, 0)


def test_gradient_of_a_gradient() -> None:
    """grad(grad(f)) of sum((x w)²): both levels' backward is backward, and none of it recomputation."""
    rows = x()

    def loss(scale: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return ((rows @ (scale * w)) ** 2).sum()

    count = mfu.count(lambda: grad(grad(loss))(torch.tensor(2.0), torch.randn(WIDE, WIDE)))
    forward, backward, recompute, optimizer = stages(count)
    # Backward: xᵀ·g for the first gradient; its own derivative x·d by g, then xᵀ·g again for the scale.
    assert (forward, backward, recompute, optimizer) == (1, 3, 0, 0)


def test_functional_call_keeps_the_modules() -> None:
    """A model called with other weights: its products are its modules'."""
    model = nn.Sequential(linear(), linear())
    weights = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    count = mfu.count(lambda: grad(lambda w: functional_call(model, w, (x(),)).sum())(weights))
    # The first layer's input wants no gradient.
    assert stages(count) == (2, 3, 0, 0)
    mode = CountingMode(model)
    with mode:
        functional_call(model, weights, (x(),))
    assert mode.result().by_module == {"Sequential.0": PRODUCT, "Sequential.1": PRODUCT}


def test_an_ensemble_under_vmap() -> None:
    """Three models stacked and mapped over: three times one model's product."""
    stacked = torch.randn(3, WIDE, WIDE)
    rows = x()
    assert stages(mfu.count(lambda: vmap(lambda w: rows @ w)(stacked))) == (3, 0, 0, 0)


# --- control flow ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_while_loop_counts_the_rounds_that_ran() -> None:
    """Five rounds of one product."""
    w = torch.eye(WIDE)

    def run() -> None:
        while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y @ w), (torch.tensor(0), x()))

    assert stages(mfu.count(run)) == (5, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_map_counts_every_element() -> None:
    """Three elements, one product each."""
    w = torch.eye(WIDE)
    assert stages(mfu.count(lambda: hop_map(lambda y: y @ w, torch.randn(3, ROWS, WIDE)))) == (3, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_scan_counts_every_round() -> None:
    """A recurrence over six inputs with a product a round."""
    w = torch.eye(WIDE)

    def run() -> None:
        scan(lambda carry, new: (carry @ w + new, carry.clone()), x(), torch.randn(6, ROWS, WIDE))

    assert stages(mfu.count(run)) == (6, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(("taken", "products"), [(True, (1, 2)), (False, (2, 4))])
def test_the_backward_of_the_branch_that_ran(taken: bool, products: tuple[int, int]) -> None:
    """Of torch.cond, the branch taken counts forward and backward."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        rows = x().requires_grad_()
        torch.cond(torch.tensor(taken), lambda y, w: y @ w, lambda y, w: (y @ w).sin() @ w, (rows, w)).sum().backward()

    count = mfu.count(run)
    assert (count.forward_flops, count.backward_flops) == tuple(PRODUCT * each for each in products)
    assert count.uncounted == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_what_control_flow_computes_again_in_its_backward() -> None:
    """A round of two products, and their four gradients; keeping nothing, the backward runs each round's two again."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def rounds() -> None:
        start = (torch.tensor(0), x().requires_grad_())
        while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, block(y, w)), start)[1].sum().backward()

    def elements() -> None:
        hop_map(block, torch.randn(3, ROWS, WIDE, requires_grad=True), w).sum().backward()

    assert stages(mfu.count(rounds)) == (6, 12, 6, 0)
    assert stages(mfu.count(elements)) == (6, 12, 6, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_scan_keeps_what_its_backward_needs() -> None:
    """Its products are saved, as torch's partition of its joint graph has it: nothing of them runs again."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        last, _ = scan(lambda y, new: (block(y, w) + new, y.clone()), x().requires_grad_(), torch.randn(3, ROWS, WIDE))
        last.sum().backward()

    assert stages(mfu.count(run)) == (6, 12, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_an_associative_scan_is_a_program_like_any() -> None:
    """Two elements are combined once: a product, and the two of its backward; nothing runs again."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        rows = torch.randn(2, ROWS, WIDE, requires_grad=True)
        associative_scan(lambda a, b: a @ w + b, rows, 0, combine_mode="generic").sum().backward()

    assert stages(mfu.count(run)) == (1, 2, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_branch_in_a_branch_is_computed_again_twice() -> None:
    """A product around a branch of two: the outer backward runs all three again, the inner one its two once more."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def inner(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.cond(y.sum() > -1e9, block, lambda y, w: y @ w, (y @ w, w))  # type: ignore[no-any-return]

    def run() -> None:
        rows = x().requires_grad_()
        torch.cond(torch.tensor(1) > 0, inner, lambda y, w: y @ w, (rows, w)).sum().backward()

    assert stages(mfu.count(run)) == (3, 6, 5, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("compiled_anew")
def test_a_region_that_is_compiled_once_keeps_its_products() -> None:
    """Of `nested_compile_region`, called twice: the partitioner of the whole saves what is dear."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)
    region = torch.compiler.nested_compile_region(block)
    twice = torch.compile(lambda rows: region(region(rows, w), w), backend="aot_eager", fullgraph=True)
    assert stages(mfu.count(lambda: twice(x().requires_grad_()).sum().backward())) == (4, 8, 0, 0)


# --- functions and hooks of one's own ---------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    """Two products forward; three backward, where mathematics needs fewer: what ran is what counts."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, w)
        return rows @ w @ w

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        _, w = ctx.saved_tensors
        return gradients[0] @ w.T @ w.T @ torch.eye(WIDE), None


def test_an_autograd_function_counts_as_written() -> None:
    """Its forward is forward, its backward is backward, and both are the module's that called it."""

    class Caller(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return Doubled.apply(rows, torch.eye(WIDE))  # type: ignore[no-any-return]

    caller = Caller()
    count = mfu.count(lambda: caller(x().requires_grad_()).sum().backward())
    assert stages(count) == (2, 3, 0, 0)
    assert count.by_module == {"Caller": 5 * PRODUCT}


def test_products_in_hooks() -> None:
    """A forward hook's are forward; those of tensor hooks and full backward hooks run in the engine: backward."""
    model, eye = linear(), torch.eye(WIDE)
    model.register_forward_pre_hook(lambda module, args: (args[0] @ eye,))
    model.register_forward_hook(lambda module, args, output: output @ eye)
    model.register_full_backward_hook(lambda module, into, out: (out[0] @ eye,))
    model.weight.register_hook(lambda gradient: gradient @ eye)

    def run() -> None:
        rows = x().requires_grad_()
        y = model(rows)
        y.register_hook(lambda gradient: gradient @ eye)
        y.sum().backward()

    count = mfu.count(run)
    # Forward: both hooks and the linear. Backward: the derivatives of the three, of which the linear has two; the
    # hooks on y and around the module; and that of the square weight, of twice a product's size.
    assert stages(count) == (3, 1 + 2 + 1 + 1 + 1 + 2, 0, 0)


# --- checkpointing --------------------------------------------------------------------------------------------------


def block(rows: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Two products, the first of which a checkpoint runs again; non-reentrant ones stop before the second."""
    return (rows @ w).sin() @ w


@pytest.mark.parametrize("reentrant", [True, False])
def test_nested_checkpoints(reentrant: bool) -> None:
    """A checkpoint in a checkpoint runs again twice: hardware's, with the model's FLOPs as without any."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def inner(rows: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, rows.sin(), w, use_reentrant=reentrant)  # type: ignore[no-any-return]

    def saved() -> None:
        checkpoint(inner, x().requires_grad_(), use_reentrant=reentrant).sum().backward()  # type: ignore[union-attr]

    plain = mfu.count(lambda: block(x().requires_grad_().sin(), w).sum().backward())
    count = mfu.count(saved)
    assert stages(plain) == (2, 4, 0, 0)
    assert stages(count)[:2] == (2, 4)
    # Reentrant: all of the block in the outer, and again in the inner. Otherwise each stops at its last saved tensor.
    assert stages(count)[2:] == ((4, 0) if reentrant else (1, 0))


class Offloaded(torch.autograd.Function):
    """Checkpoints by itself, as Unsloth's does: keeps the rows only, and differentiates what it runs once more.

    It goes through the rows in so many tiles, as those for long sequences do.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, tiles: int, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.tiles, ctx.run = tiles, run
        with torch.no_grad():
            return run(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        found = []
        for part, gradient in zip(rows.chunk(ctx.tiles), gradients[0].chunk(ctx.tiles), strict=True):
            tile = part.detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.run(tile)
            torch.autograd.backward(output, gradient)
            found.append(tile.grad)
        return torch.cat(found), None, None


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_checkpoint_of_ones_own(tiles: int) -> None:
    """Of two products both run again, whole or in tiles; the gradients are those of their modules, as without it."""
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    plain = mfu.count(lambda: model(x().requires_grad_()).sum().backward())
    saved = mfu.count(lambda: Offloaded.apply(x().requires_grad_(), tiles, model).sum().backward())  # type: ignore[no-untyped-call]
    assert (stages(plain), stages(saved)) == ((2, 4, 0, 0), (2, 4, 2, 0))
    assert plain.by_module == saved.by_module == {"Sequential.0": 3 * PRODUCT, "Sequential.2": 3 * PRODUCT}


def test_a_checkpoint_of_ones_own_in_another() -> None:
    """The outer one runs both products again, the inner one, around the second, that one once more."""
    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def outer(rows: torch.Tensor) -> torch.Tensor:
        return Offloaded.apply((rows @ w).sin(), 1, lambda y: y @ w)  # type: ignore[no-any-return,no-untyped-call]

    count = mfu.count(lambda: Offloaded.apply(x().requires_grad_(), 1, outer).sum().backward())  # type: ignore[no-untyped-call]
    assert stages(count) == (2, 4, 3, 0)


def test_causal_attention_under_a_checkpoint_of_ones_own() -> None:
    """Scores that a mask hides are taken off in the forward that runs again too: forward and backward are as ever."""
    mask = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()

    def attend(rows: torch.Tensor) -> torch.Tensor:
        scores = (rows @ rows.mT).masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, -1) @ rows

    def rows() -> torch.Tensor:
        return torch.randn(2, ROWS, WIDE, requires_grad=True)

    plain = mfu.count(lambda: attend(rows()).sum().backward())
    saved = mfu.count(lambda: Offloaded.apply(rows(), 1, attend).sum().backward())  # type: ignore[no-untyped-call]
    pairs = ROWS * (ROWS + 1) // 2
    assert plain.forward_flops == saved.forward_flops == 2 * 2 * 2 * WIDE * pairs
    assert plain.backward_flops == saved.backward_flops == 2 * plain.forward_flops
    assert plain.recompute_flops == 0
    # What ran again is all pairs, as the mask is applied after the product.
    assert saved.recompute_flops == 2 * 2 * 2 * WIDE * ROWS**2


class Twice(torch.autograd.Function):
    """A product by 2·w whose gradient can be differentiated again; `through` runs the forward for it once more."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, w: torch.Tensor, through: bool) -> torch.Tensor:
        ctx.save_for_backward(rows, w)
        ctx.through = through
        return 2 * (rows @ w)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, w = ctx.saved_tensors
        if not ctx.through:
            return 2 * (gradients[0] @ w.T), None, None
        with torch.enable_grad():
            output = 2 * (rows @ w)
        (found,) = torch.autograd.grad(output, rows, gradients[0], create_graph=True)
        return found, None, None


@pytest.mark.parametrize("through", [False, True])
def test_a_gradient_penalty_is_no_checkpoint(through: bool) -> None:
    """With create_graph a function's gradient runs with gradients on, and is backward; what it runs again is not.

    Backward: the gradient; and of the penalty, the derivatives of that by w and by the gradient that came in, which is
    a function of the loss's own weights.
    """
    w, v = torch.randn(WIDE, WIDE), torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        rows = x().requires_grad_()
        output = Twice.apply(rows, w, through)  # type: ignore[no-untyped-call]
        (gradient,) = torch.autograd.grad((output @ v).sum(), rows, create_graph=True)
        (gradient**2).sum().backward()

    # Forward: by w and by v. Backward: by vᵀ and by wᵀ; then those two's own derivatives, by w and for v, where the
    # sum's gradient, all ones, wants none. The penalty's graph reaches neither forward.
    forward, backward, recompute, _ = stages(mfu.count(run))
    assert (forward, backward, recompute) == (2, 4, 1 if through else 0)


def test_gradients_on_is_not_enough() -> None:
    """A function that takes its gradient under enable_grad, and differentiates nothing there, runs it as backward."""

    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(w)
            return rows @ w

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
            with torch.enable_grad():
                return gradients[0] @ ctx.saved_tensors[0].T, None

    w = torch.randn(WIDE, WIDE, requires_grad=True)
    count = mfu.count(lambda: (Careless.apply(x().requires_grad_(), w) @ w).sum().backward())  # type: ignore[no-untyped-call]
    assert stages(count) == (2, 3, 0, 0)


def test_selective_checkpointing() -> None:
    """Saving the products leaves nothing of them to run again; saving nothing runs the first again."""

    def policy(save: bool) -> Callable[[], Any]:
        def choose(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            keep = save and operator is torch.ops.aten.mm.default
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

        return lambda: create_selective_checkpoint_contexts(choose)

    w = torch.randn(WIDE, WIDE, requires_grad=True)

    def run(save: bool) -> Count:
        def step() -> None:
            rows = x().requires_grad_()
            checkpoint(block, rows, w, use_reentrant=False, context_fn=policy(save)).sum().backward()  # type: ignore[union-attr]

        return mfu.count(step)

    assert stages(run(save=True)) == (2, 4, 0, 0)
    assert stages(run(save=False)) == (2, 4, 1, 0)


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_copy_is_a_model_of_its_own() -> None:
    """A deep copy counts like its original, alone and beside it."""
    model = nn.Sequential(linear(), linear())
    twin = copy.deepcopy(model)
    assert stages(mfu.count(lambda: twin(model(x())).sum().backward())) == (4, 7, 0, 0)


def test_shared_weights_count_each_use() -> None:
    """One layer called three times: three products forward, three for the weight, two for the inputs between."""
    layer = linear()
    count = mfu.count(nn.Sequential(layer, layer, layer), x())
    assert stages(count) == (3, 0, 0, 0)
    assert stages(mfu.count(lambda: layer(layer(layer(x()))).sum().backward())) == (3, 5, 0, 0)


def test_tied_embeddings() -> None:
    """Looking up is free; the head that shares its table is a product, with two backward."""
    table = nn.Embedding(WIDE, WIDE)
    ids = torch.zeros(ROWS, dtype=torch.long)
    assert stages(mfu.count(lambda: F.linear(table(ids), table.weight).sum().backward())) == (1, 2, 0, 0)


def test_autocast_counts_at_the_dtype_that_ran() -> None:
    """Under autocast the layers inside run in bfloat16, the one where it is off in float32."""
    first, second = linear(), linear()

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = first(x())
            with torch.autocast("cpu", enabled=False):
                z = second(y.float())
        z.sum().backward()

    count = mfu.count(run)
    assert stages(count) == (2, 3, 0, 0)
    assert count.by_dtype == {"bfloat16": 2 * PRODUCT, "float32": 3 * PRODUCT}


def test_three_dtypes_side_by_side() -> None:
    """Each product goes by its own dtype; complex ones cost four times as much."""
    dtypes = (torch.float64, torch.float16, torch.complex64)
    count = mfu.count(lambda: [torch.ones(ROWS, WIDE, dtype=d) @ torch.ones(WIDE, WIDE, dtype=d) for d in dtypes])
    assert count.by_dtype == {"float64": PRODUCT, "float16": PRODUCT, "complex64": 4 * PRODUCT}


def test_backward_through_earlier_steps() -> None:
    """A hidden state that is not detached: the second step's backward goes through both steps' graphs, and counts."""
    cell = linear()
    state = cell(x())
    count = mfu.count(lambda: cell(state.sin()).sum().backward())
    # The second call and its two products; the weight's alone in the first, whose input wants no gradient.
    assert stages(count) == (1, 3, 0, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_attention_without_a_kernel() -> None:
    """Where torch falls back to products of strided nested tensors: by each length, and the result is what it was."""
    lengths = [3, 5, 8]
    offsets = torch.tensor([0, 3, 8, 16])
    heads = [torch.nested.nested_tensor_from_jagged(torch.randn(16, 2, WIDE), offsets).transpose(1, 2) for _ in "qkv"]
    found: list[torch.Tensor] = []
    count = mfu.count(lambda: found.append(F.scaled_dot_product_attention(*heads).transpose(1, 2).values()))
    by_hand = sum(4 * 2 * WIDE * length**2 for length in lengths)
    assert torch.equal(found[0], F.scaled_dot_product_attention(*heads).transpose(1, 2).values())
    assert (count.model_flops, count.uncounted, count.coverage) == (by_hand, (), 1.0)


# --- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
def test_muon(shape: tuple[int, int]) -> None:
    """Five rounds of G·Gᵀ, its square and their product with G, on the narrow side of 4: all the optimizer's."""
    w = nn.Parameter(torch.randn(shape))
    w.grad = torch.randn(shape)
    optimizer = torch.optim.Muon([w])
    count = mfu.count(optimizer.step)
    round_flops = 2 * 4 * 8 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 8
    assert (count.optimizer_flops, count.model_flops, count.hardware_flops) == (5 * round_flops, 0, 5 * round_flops)


def test_adafactor() -> None:
    """Its second moment is an outer product of rows and columns: 2 · 8 · 8 FLOPs, the optimizer's."""
    w = nn.Parameter(torch.randn(WIDE, WIDE))
    w.grad = torch.randn(WIDE, WIDE)
    count = mfu.count(torch.optim.Adafactor([w]).step)
    assert (count.optimizer_flops, count.model_flops) == (2 * WIDE * WIDE, 0)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam"])
def test_ordinary_optimizers_are_free(kind: str) -> None:
    """What they do is elementwise: no FLOP, and nothing uncounted."""
    model = linear()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)

    def step() -> None:
        model(x()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    assert stages(mfu.count(step)) == (1, 1, 0, 0)


def test_a_differentiable_step() -> None:
    """One step of gradient descent inside of a loss: both losses' products, and the way back through the step."""
    start = torch.randn(WIDE, WIDE, requires_grad=True)

    def run() -> None:
        w = start.clone()
        optimizer = torch.optim.SGD([w], lr=0.1, differentiable=True)
        (w.grad,) = torch.autograd.grad(((x() @ w) ** 2).sum(), w, create_graph=True)
        optimizer.step()
        (x() @ w).sum().backward()

    # Inner: xw; xᵀg. Outer: xw'; xᵀ·1, then through the inner gradient: x·d by g, and xᵀ·d by w.
    assert stages(mfu.count(run)) == (2, 1 + 1 + 2, 0, 0)


def test_lbfgs_and_its_closure() -> None:
    """Each evaluation is forward and backward, the model's; the products of vectors between are the optimizer's."""
    model = linear()
    rows, calls = x(), []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, lr=0.01)

    def closure() -> torch.Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = model(rows).square().sum()
        loss.backward()
        return loss

    count = mfu.count(lambda: optimizer.step(closure))
    assert len(calls) == 4
    assert (count.forward_flops, count.backward_flops) == (4 * PRODUCT, 4 * PRODUCT)
    dot = 2 * WIDE * WIDE
    assert count.optimizer_flops > 0
    assert count.optimizer_flops % dot == 0
    assert count.uncounted == ()


def test_a_gradient_scaler() -> None:
    """Scaling, unscaling and the check for infinities are free."""
    model = linear()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")

    def step() -> None:
        scaler.scale(model(x()).sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    assert stages(mfu.count(step)) == (1, 1, 0, 0)


def test_averaged_weights() -> None:
    """Averaging is free; evaluating the average is what it runs."""
    model = linear()
    average = torch.optim.swa_utils.AveragedModel(model)

    def step() -> None:
        model(x()).sum().backward()
        average.update_parameters(model)
        with torch.no_grad():
            average(x())

    assert stages(mfu.count(step)) == (2, 1, 0, 0)


# --- threads and errors ---------------------------------------------------------------------------------------------


def test_a_thread_that_counts_beside_one_that_does_not() -> None:
    """Only the counting thread's work counts, its backward in the engine included."""
    model, other = linear(), linear()
    inside, done = threading.Barrier(2), threading.Barrier(2)

    def elsewhere() -> None:
        inside.wait(timeout=120)
        other(x().requires_grad_()).sum().backward()
        done.wait(timeout=120)

    thread = threading.Thread(target=elsewhere)
    thread.start()

    def run() -> None:
        inside.wait(timeout=120)
        model(x()).sum().backward()
        done.wait(timeout=120)

    count = mfu.count(run)
    thread.join(timeout=120)
    assert stages(count) == (1, 1, 0, 0)


def test_an_exception_in_forward_leaves_the_next_step_alone() -> None:
    """A batch that fails in the second layer, caught by the loop: the next steps count as if it had not been."""
    model = nn.Sequential(linear(), nn.Linear(WIDE, WIDE, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    fails = [True]

    def fail(module: nn.Module, args: Any) -> None:
        if fails[0]:
            raise ValueError("a bad batch")

    hook = model[1].register_forward_pre_hook(fail)
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for bad in (False, True, False, True, False, False):
            fails[0] = bad
            try:
                with run.step():
                    model(x()).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
            except ValueError:
                pass
    hook.remove()
    assert [r.error_type for r in records] == [None, "ValueError", None, "ValueError", None, None]
    assert [r.model_flops for r in records if r.error_type is None] == [5 * PRODUCT] * 4
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


# --- loops with several models ---------------------------------------------------------------------------------------


def losses(records: list[StepRecord]) -> list[int | None]:
    return [record.model_flops for record in records]


def test_a_gan_with_two_monitors() -> None:
    """Generator and discriminator, each under its own monitor: each its modules' work, and together the whole."""
    generator = nn.Sequential(linear(), nn.ReLU(), linear())
    discriminator = nn.Sequential(linear(), nn.ReLU(), nn.Linear(WIDE, 1, bias=False))
    g_optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    d_optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)

    def step() -> None:
        fake = generator(x())
        (discriminator(x()).mean() - discriminator(fake.detach()).mean()).backward()
        d_optimizer.step()
        discriminator(fake).mean().backward()
        g_optimizer.step()
        for model in (generator, discriminator):
            model.zero_grad()

    g_records: list[StepRecord] = []
    d_records: list[StepRecord] = []
    with (
        mfu.monitor(generator, name="g", peaks=PEAKS, on_step=g_records.append) as g_run,
        mfu.monitor(discriminator, name="d", peaks=PEAKS, on_step=d_records.append) as d_run,
    ):
        for _ in range(4):
            with g_run.step(), d_run.step():
                step()
    head = 2 * ROWS * WIDE
    # The generator: two layers forward, three products back. The discriminator: three calls forward; two that train
    # it alone, with no gradient for their input, and one whose input and weights all have one.
    g_flops = 5 * PRODUCT
    d_flops = 3 * (PRODUCT + head) + 2 * (PRODUCT + 2 * head) + 2 * (PRODUCT + head)
    assert losses(g_records) == [g_flops] * 4
    # Its calls of two kinds are known from the steps that were counted, so no more of these are.
    assert [r.count_source for r in d_records] == ["measured"] * 3 + ["cached"]
    assert losses(d_records) == [d_flops] * 4
    assert mfu.count(step).model_flops == g_flops + d_flops


def test_distillation_with_one_monitor() -> None:
    """A frozen teacher of the student's own class counts as it ran: forward."""
    teacher, student = linear().requires_grad_(requires_grad=False), linear()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    records: list[StepRecord] = []
    with mfu.monitor(student, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(4):
            with run.step():
                rows = x()
                F.mse_loss(student(rows), teacher(rows)).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert losses(records) == [3 * PRODUCT] * 4


def test_actor_and_critic() -> None:
    """Two heads over one body, monitored as one model and as two: the shared body is part of both."""

    class Agent(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.head = body, nn.Linear(WIDE, 1, bias=False)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(rows))  # type: ignore[no-any-return]

    body = linear()
    actor, critic = Agent(body), Agent(body)
    records: dict[str, list[StepRecord]] = {"actor": [], "critic": []}
    with (
        mfu.monitor(actor, name="actor", peaks=PEAKS, on_step=records["actor"].append) as a_run,
        mfu.monitor(critic, name="critic", peaks=PEAKS, on_step=records["critic"].append) as c_run,
    ):
        for _ in range(4):
            with a_run.step():
                actor(x()).sum().backward()
            with c_run.step():
                critic(x()).sum().backward()
    head = 2 * ROWS * WIDE
    # Body and head forward, both weights' gradients, and that of the head's input.
    one = 2 * PRODUCT + 3 * head
    assert losses(records["actor"]) == [one] * 4
    assert losses(records["critic"]) == [one] * 4


def test_work_of_no_monitored_model_is_every_monitors() -> None:
    """A loss with a product of its own, in a step that two monitors share, counts for both; their models do not mix."""
    first, second = linear(), linear()
    w = torch.randn(WIDE, WIDE)
    records: dict[str, list[StepRecord]] = {"first": [], "second": []}
    with (
        mfu.monitor(first, name="first", peaks=PEAKS, on_step=records["first"].append) as f_run,
        mfu.monitor(second, name="second", peaks=PEAKS, on_step=records["second"].append) as s_run,
        torch.no_grad(),
    ):
        for _ in range(2):
            with f_run.step(), s_run.step():
                second(first(x())) @ w
    assert losses(records["first"]) == losses(records["second"]) == [2 * PRODUCT] * 2


def test_an_unmarked_gan_loop() -> None:
    """The generator's backward, through a forward of the discriminator's step before, is the generator's alone."""
    generator, critic = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    theirs, its = torch.optim.SGD(generator.parameters(), 0.1), torch.optim.SGD(critic.parameters(), 0.1)
    made: list[StepRecord] = []
    judged: list[StepRecord] = []
    with (
        mfu.monitor(generator, optimizer=theirs, peaks=PEAKS, on_step=made.append),
        mfu.monitor(critic, optimizer=its, peaks=PEAKS, on_step=judged.append),
    ):
        for _ in range(10):
            fake = generator(torch.randn(4, 8))
            its.zero_grad()
            (critic(torch.randn(4, 8)).sum() + critic(fake.detach()).sum()).backward()
            its.step()
            theirs.zero_grad()
            critic(fake).sum().backward()
            theirs.step()
    product = 2 * 4 * 8 * 8
    assert {r.model_flops for r in made} == {2 * product}
    # Three forwards, a gradient of the weight for each, and the gradient of the fakes.
    assert {r.model_flops for r in judged[1:]} == {7 * product}


class Squares(torch.optim.Optimizer):
    """An optimizer with products of its own that leaves gradients on, as hand-written ones do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad.data @ parameter.grad.data)


def test_an_optimizer_that_leaves_gradients_on() -> None:
    """Its products are the optimizer's; those of a closure that it is given are the model's."""
    model = nn.Linear(8, 8, bias=False)
    optimizer = Squares(model.parameters())

    def loss() -> torch.Tensor:
        return (model(torch.ones(4, 8)) @ torch.ones(8, 8)).sum()

    count = mfu.count(lambda: (loss().backward(), optimizer.step()))
    assert (count.forward_flops, count.backward_flops, count.optimizer_flops) == (1024, 1024, 1024)
    closed = mfu.count(lambda: optimizer.step(lambda: loss().backward()))  # type: ignore[arg-type,return-value]
    assert (closed.forward_flops, closed.backward_flops) == (1024, 1024)


def test_a_counted_step_has_its_own_count() -> None:
    """Where counts of one signature differ, the mean stands for steps that were not counted only."""
    model = nn.Linear(8, 8, bias=False)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(9):
            with run.step():
                model(torch.randn(4, 8)).sum().backward()
                for _ in range(index):
                    torch.ones(4, 8) @ torch.ones(8, 8)
    measured = [(r.index, r.model_flops) for r in records if r.count_source == "measured"]
    assert measured == [(index, 1024 + 512 * index) for index in (0, 1, 2, 4, 8)]


def test_numbers_that_drift_are_no_shapes() -> None:
    """A time that is another float in each step leaves the signature as it is."""

    class Timed(nn.Linear):
        def forward(self, rows: torch.Tensor, t: float = 0.0) -> torch.Tensor:
            return super().forward(rows) * t

    model = Timed(8, 8, bias=False)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(20):
            with run.step():
                model(torch.randn(4, 8), t=0.001 * index).sum().backward()
    assert [r.model_flops for r in records] == [1024] * 20


def test_numbers_that_count_are_no_shapes() -> None:
    """The index of a batch, as Lightning hands it through DDP: three counts show that it does not matter."""

    class Indexed(nn.Linear):
        def forward(self, rows: torch.Tensor, index: int = 0) -> torch.Tensor:
            return super().forward(rows)

    model = Indexed(8, 8, bias=False)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(20):
            with run.step():
                model(torch.randn(4, 8), index).sum().backward()
    assert [r.model_flops for r in records] == [1024] * 20
    # None is counted out of turn: the fourth is predicted.
    assert [r.index for r in records if r.count_source == "measured"] == [0, 1, 2, 4, 8, 16]


def test_a_finaliser_that_runs_operators_while_a_count_is_read() -> None:
    """The lock is entered again by the thread that holds it: nothing hangs."""

    class Last:
        def __del__(self) -> None:
            torch.ones(2, 2) @ torch.ones(2, 2)

    mode = CountingMode()
    with mode:
        held = Last()
        with mode._books._lock:
            del held
    assert mode.result().model_flops == 16


def test_weights_that_are_replaced_are_let_go() -> None:
    """After load_state_dict(assign=True) the new weights are looked at, and the old ones are gone."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for index in range(12):
            if index == 5:
                gone = weakref.ref(model[0].weight)
                model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
                model[0].weight.requires_grad = False
            with run.step():
                model(torch.randn(4, 8)).sum().backward()
                model.zero_grad(set_to_none=True)
    assert gone() is None
    # Two forwards and, of three gradients, the one of the frozen weight and the one beneath it are gone.
    assert [r.model_flops for r in records] == [5 * 512] * 5 + [3 * 512] * 7
