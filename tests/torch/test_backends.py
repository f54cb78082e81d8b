"""What operators cost that this machine cannot run: called with their schema's arguments, on tensors without data."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed._symmetric_memory  # defines the operators of symm_mem

import mfu_sdk as mfu
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import PRICES
from mfu_sdk.errors import FormulaError

aten = torch.ops.aten


def on(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def flops(operator: Any, result: Any, *args: Any, **kwargs: Any) -> int:
    """The FLOPs that the price of an overload gives for a call with this result."""
    cost = PRICES[operator._schema.name].formula(Call(operator, args, kwargs, result), cast(Masks, None))
    assert cost.hardware == cost.dense
    return cost.dense


def test_linear_gradients() -> None:
    """Each wanted gradient of a 4 × 6 by 6 × 5 product costs what the product does."""
    x, grad, weight = on(4, 6), on(4, 5), on(5, 6)
    for operator in (aten.linear_backward.default, aten.mkldnn_linear_backward.default):
        assert flops(operator, (), x, grad, weight, [True, True, True]) == 480
        assert flops(operator, (), x, grad, weight, [False, True, True]) == 240
    assert flops(aten.mkldnn_linear_backward_input.default, x, [4, 6], grad, weight) == 240
    assert flops(aten.mkldnn_linear_backward_weights.default, weight, grad, x, weight, bias_defined=False) == 240
    grad, left, right = on(3, 4, 5), on(3, 4, 6), on(3, 6, 5)
    assert flops(aten.matmul_backward.default, (), grad, left, right, [True, True]) == 2 * 3 * 240


def test_convolution_gradients() -> None:
    """A 3 × 3 over 8 × 8 pixels, 4 channels to 6: 36 multiply-adds an output, as often as gradients are wanted."""
    x, weight, grad = on(2, 4, 8, 8), on(6, 4, 3, 3), on(2, 6, 6, 6)
    forward = 2 * 2 * 6 * 36 * 36
    both, one = [True, True, True], [False, True, True]
    places = ([0, 0], [1, 1], [1, 1], 1)
    assert flops(aten.mps_convolution_backward.default, (), x, grad, weight, *places, both) == 2 * forward
    assert flops(aten.mps_convolution_backward.default, (), x, grad, weight, *places, one) == forward
    slow = ([3, 3], [1, 1], [0, 0])
    assert flops(aten._slow_conv2d_backward.output_mask, (), grad, x, weight, *slow, one) == forward
    assert flops(aten._slow_conv2d_backward.grad_input, (), grad, x, weight, *slow) == 2 * forward
    narrow, wide = on(2, 6, 6, 6), on(2, 4, 8, 8)
    transposed = ([0, 0], [0, 0], [1, 1], [1, 1], 1, both[:2])
    assert flops(aten.mps_convolution_transpose_backward.default, (), narrow, wide, weight, *transposed) == 2 * forward


def test_convolutions_of_other_backends() -> None:
    """MPS, NNPACK, MIOpen and oneDNN multiply the same."""
    x, weight, out = on(2, 4, 8, 8), on(6, 4, 3, 3), on(2, 6, 6, 6)
    forward = 2 * 2 * 6 * 36 * 36
    assert flops(aten._mps_convolution.default, out, x, weight, None, [0, 0], [1, 1], [1, 1], 1) == forward
    assert flops(aten._nnpack_spatial_convolution.default, out, x, weight, None, [0, 0]) == forward
    miopen = ([0, 0], [1, 1], [1, 1], 1, False, False)
    assert flops(aten.miopen_convolution.default, out, x, weight, None, *miopen) == forward
    up = on(2, 4, 8, 8)
    places = ([0, 0], [0, 0], [1, 1], [1, 1], 1)
    assert flops(aten._mps_convolution_transpose.default, up, out, weight, *places) == forward


@pytest.mark.parametrize(("operator", "passes"), [(aten.miopen_rnn, 1), (aten.miopen_rnn_backward, 2)])
def test_recurrent_layers_of_miopen(operator: Any, passes: int) -> None:
    """An LSTM of 8 inputs and 16 units is 8·16·24 a row; its gradients are two forwards."""
    weights = [on(64, 8), on(64, 16), on(64), on(64)]
    named = dict.fromkeys((each.name for each in operator.default._schema.arguments), None)
    named |= {"input": on(5, 3, 8), "weight": weights, "output_mask": [True] * 4}
    assert flops(operator.default, (), **named) == passes * 15 * 8 * 16 * 24


def test_recurrent_layers_of_mps() -> None:
    """The same, and both passes of its backward."""
    params = [on(64, 8), on(64, 16), on(64), on(64)]
    for operator, passes in ((aten._lstm_mps.default, 1), (aten.lstm_mps_backward.default, 2)):
        named = dict.fromkeys((each.name for each in operator._schema.arguments), None)
        assert flops(operator, (), **{**named, "input": on(5, 3, 8), "params": params}) == passes * 15 * 8 * 16 * 24


def test_products_between_ranks() -> None:
    """Four ranks hold 2 of 8 rows each: every rank multiplies all 8 by its own columns; or by its own inner size."""
    symm = torch.ops.symm_mem
    shard, rights = on(2, 6), [on(6, 5), on(6, 3)]
    products = (None, [on(8, 5), on(8, 3)])
    assert flops(symm.fused_all_gather_matmul.default, products, shard, rights, 0, "group") == 2 * 8 * 6 * (5 + 3)
    part = on(2, 5)
    assert flops(symm.fused_matmul_reduce_scatter.default, part, on(8, 6), on(6, 5), "sum", 0, "g") == 2 * 8 * 6 * 5
    assert flops(symm._async_input_mm.default, on(8, 5), on(8, 6), on(6, 5), on(4), 0) == 2 * 8 * 6 * 5


def test_grouped_products_of_four_bits() -> None:
    """Two numbers share an element, so the inner size is twice what the shape says."""
    left, right = (on(*size, dtype=torch.float4_e2m1fn_x2) for size in ((10, 16), (2, 16, 5)))
    offsets = torch.tensor([3, 7], dtype=torch.int32)
    named = {"offs": offsets, "scale_a": [], "recipe_a": [], "swizzle_a": []}
    named |= {"scale_b": [], "recipe_b": [], "swizzle_b": []}
    assert flops(aten._scaled_grouped_mm_v2.default, (), left, right, **named) == 2 * 7 * 32 * 5
    with pytest.raises(FormulaError, match="four-bit"):
        flops(aten._scaled_grouped_mm_v2.default, (), left, right[0], **named)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors() -> None:
    """Sequences of 3 and 5 rows of 8 count as 8 rows: a layer to 4, its gradients, and products one by one."""
    x = torch.nested.nested_tensor([torch.ones(3, 8), torch.ones(5, 8)])
    y = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)])
    weight = torch.ones(4, 8)
    assert flops(aten.linear.default, y, x, weight) == 2 * 8 * 8 * 4
    assert flops(aten.linear_backward.default, (), x, y, weight, [True, True, True]) == 2 * 2 * 8 * 8 * 4
    square = torch.nested.nested_tensor([torch.ones(3, 3), torch.ones(5, 5)])
    transposed = x.transpose(1, 2)
    assert flops(aten.bmm.default, square, x, transposed) == 2 * 8 * (3 * 3 + 5 * 5)
    assert flops(aten.matmul_backward.default, (), square, x, transposed, [True, True]) == 2 * 2 * 8 * (3 * 3 + 5 * 5)


def test_a_mixed_product() -> None:
    """A weight of four or eight bits is widened: as many multiply-adds as ever."""
    x, weight = on(4, 6, dtype=torch.float16), on(6, 5, dtype=torch.int8)
    assert flops(aten._mixed_dtypes_linear.default, on(4, 5, dtype=torch.float16), x, weight, on(5)) == 240


@pytest.fixture
def stand_in() -> Iterator[Callable[[str, Callable[..., Any]], Any]]:
    """Operators of libraries that are not here, with the schemas that they have there and no arithmetic."""
    libraries = []

    def define(schema: str, runs: Callable[..., Any]) -> Any:
        namespace, _, rest = schema.partition("::")
        name = rest.partition("(")[0]
        library = torch.library.Library(namespace, "FRAGMENT")
        libraries.append(library)
        library.define(rest)
        library.impl(name, runs, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops, namespace), name)

    yield define
    for library in libraries:
        library._destroy()


def test_deformable_convolution(stand_in: Callable[..., Any]) -> None:
    """As dear as an ordinary one, for its taps are interpolated for free; its backward has two gradients."""
    rest = (
        "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
        "SymInt groups, SymInt offset_groups, bool use_mask)"
    )
    forward = stand_in(
        f"torchvision::deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {rest} "
        "-> Tensor",
        lambda *args: torch.ones(2, 6, 6, 6),
    )
    backward = stand_in(
        "torchvision::_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, "
        f"Tensor bias, {rest} -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        lambda *args: tuple(torch.ones(1) for _ in range(5)),
    )
    x, weight, other = torch.ones(2, 4, 8, 8), torch.ones(6, 2, 3, 3), torch.ones(2, 18, 6, 6)
    numbers = (1, 1, 0, 0, 1, 1, 2, 1, False)
    cost = 2 * 2 * 6 * 36 * 18
    assert mfu.count(forward, x, weight, other, other, torch.ones(6), *numbers).model_flops == cost
    grad = torch.ones(2, 6, 6, 6)
    assert mfu.count(backward, grad, x, weight, other, other, torch.ones(6), *numbers).model_flops == 2 * cost


def test_a_recursive_filter(stand_in: Callable[..., Any]) -> None:
    """Each of 2 × 100 samples takes three coefficients."""
    loop = stand_in(
        "torchaudio::_lfilter_core_loop(Tensor input_signal_windows, Tensor a_coeff_flipped, "
        "Tensor(a!) padded_output_waveform) -> ()",
        lambda *args: None,
    )
    count = mfu.count(loop, torch.ones(1, 2, 100), torch.ones(1, 3), torch.ones(1, 2, 102))
    assert (count.model_flops, count.uncounted) == (2 * 200 * 3, ())
