"""Which formula prices which operator of torch, and which of its arguments the formula reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from mfu_sdk.counting import formulas, fused_attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.errors import FormulaError


@dataclass(frozen=True, slots=True)
class Price:
    """A formula for an operator, and the operand whose dtype is the dtype of its arithmetic.

    `dense` says that the operator is a batched product, of which eager attention is made (`masks`). `words` is the
    formula for people and `source` where it comes from; both go into the reference page.
    """

    formula: Callable[[Call, Masks], Cost]
    operand: str
    dense: bool = False
    words: str = ""
    source: str = ""


def _per_multiply_add(left: Any, right: Any) -> int:
    return formulas.multiply_add(
        left_complex=isinstance(left, torch.Tensor) and left.is_complex(),
        right_complex=isinstance(right, torch.Tensor) and right.is_complex(),
    )


def _product(left: str, right: str) -> Price:
    """out[..., n] = Σ_k left[..., k] · right: the inner size is the last one of `left`."""

    def formula(call: Call, _: Masks) -> Cost:
        # Two four-bit numbers share an element.
        inner = call.shape(left)[-1] * (2 if "float4" in str(call[left].dtype) else 1)
        return Cost.plain(formulas.product(call.out.shape, inner, _per_multiply_add(call[left], call[right])))

    return Price(formula, left)


def _batched(left: str, right: str) -> Price:
    def formula(call: Call, masks: Masks) -> Cost:
        each = _per_multiply_add(call[left], call[right])
        inner = call.shape(left)[-1]
        full = formulas.product(call.out.shape, inner, each)
        # Where an operand holds attention probabilities, or their gradient, only the pairs let through multiply.
        for name, width in ((left, call.shape(right)[-1]), (right, call.shape(left)[-2])):
            pairs = masks.pairs_in(call[name])
            if pairs is not None:
                return Cost(dense=0, hardware=full, exact=each * pairs * width, full=full)
        return Cost.plain(full)

    return Price(formula, left, dense=True)


def _summed_batches(call: Call, _: Masks) -> Cost:
    batch, _rows, inner = call.shape("batch1")
    return Cost.plain(
        formulas.product(call.out.shape, batch * inner, _per_multiply_add(call["batch1"], call["batch2"]))
    )


def _dot(other: str) -> Price:
    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(formulas.product((), call["self"].numel(), _per_multiply_add(call["self"], call[other])))

    return Price(formula, "self")


def _outer(call: Call, _: Masks) -> Cost:
    return Cost.plain(formulas.product(call.out.shape, 1, _per_multiply_add(call["vec1"], call["vec2"])))


def _products(call: Call, _: Masks) -> Cost:
    pairs = zip(call["self"], call["mat2"], strict=True)
    return Cost.plain(
        sum(formulas.product((a.shape[0], b.shape[1]), a.shape[1], _per_multiply_add(a, b)) for a, b in pairs)
    )


def _grouped(call: Call, _: Masks) -> Cost:
    offsets = call["offs"]
    if offsets is None:
        used = None
    elif type(offsets) is torch.Tensor and not offsets.is_meta:
        used = int(offsets[-1])
    else:
        raise FormulaError("grouped product on tensors without data: its rows are in `offs`; count it on a device")
    return Cost.plain(formulas.grouped_product(call.shape("self"), call.shape("mat2"), used))


def _convolution(x: str = "input", weight: str = "weight", *, transposed: bool | None = None) -> Price:
    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(
            formulas.convolution(
                call.shape(x),
                call.shape(weight),
                call.out.shape,
                transposed=bool(call.get("transposed", False)) if transposed is None else transposed,
                per_multiply_add=_per_multiply_add(call[x], call[weight]),
            )
        )

    return Price(formula, x)


def _convolution_backward(call: Call, _: Masks) -> Cost:
    forward = formulas.convolution(
        call.shape("input"),
        call.shape("weight"),
        call.shape("grad_output"),
        transposed=call["transposed"],
        per_multiply_add=_per_multiply_add(call["input"], call["weight"]),
    )
    input_grad, weight_grad, _bias = call["output_mask"]
    return Cost.plain(formulas.convolution_backward(forward, input_grad=input_grad, weight_grad=weight_grad))


def _rows(call: Call) -> int:
    return math.prod(call.shape("input")[:-1])


def _mkldnn_rnn(first_weight: int, passes: int) -> Price:
    # The weights are four arguments: weight0 … weight3 forward, weight1 … weight4 backward.
    names = [f"weight{first_weight + i}" for i in range(4)]

    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(passes * formulas.recurrent(_rows(call), [call.shape(name) for name in names]))

    return Price(formula, "input")


def _cudnn_rnn(call: Call, _: Masks) -> Cost:
    return Cost.plain(formulas.recurrent(_rows(call), [weight.shape for weight in call["weight"]]))


def _cudnn_rnn_backward(call: Call, _: Masks) -> Cost:
    # The gradient of the input and state is one pass over the weights, that of the weights another.
    passes = 1 + bool(call["output_mask"][3])
    return Cost.plain(passes * formulas.recurrent(_rows(call), [weight.shape for weight in call["weight"]]))


def _trilinear(call: Call, _: Masks) -> Cost:
    return Cost.plain(
        formulas.trilinear(
            (call.shape("i1"), call.shape("i2"), call.shape("i3")),
            (call["expand1"], call["expand2"], call["expand3"]),
            call["sumdim"],
        )
    )


PRICES: Final[Mapping[str, Price]] = {
    "aten::mm": _product("self", "mat2"),
    "aten::addmm": _product("mat1", "mat2"),
    "aten::_addmm_activation": _product("mat1", "mat2"),
    "aten::bmm": _batched("self", "mat2"),
    "aten::baddbmm": _batched("batch1", "batch2"),
    "aten::addbmm": Price(_summed_batches, "batch1"),
    "aten::mv": _product("self", "vec"),
    "aten::addmv": _product("mat", "vec"),
    "aten::dot": _dot("tensor"),
    "aten::vdot": _dot("other"),
    "aten::addr": Price(_outer, "vec1"),
    "aten::linear": _product("input", "weight"),
    "aten::mkldnn_linear": _product("self", "weight"),
    "mkldnn::_linear_pointwise": _product("X", "W"),
    "aten::_foreach_mm": Price(_products, "self"),
    "aten::_int_mm": _product("self", "mat2"),
    "aten::_scaled_mm": _product("self", "mat2"),
    "aten::_scaled_mm_v2": _product("self", "mat2"),
    "aten::_weight_int8pack_mm": _product("self", "mat2"),
    "aten::_weight_int4pack_mm": _product("self", "mat2"),
    "aten::_weight_int4pack_mm_for_cpu": _product("self", "mat2"),
    "aten::_weight_int4pack_mm_with_scales_and_zeros": _product("self", "mat2"),
    "aten::_dyn_quant_matmul_4bit": _product("inp", "packed_weights"),
    "aten::_grouped_mm": Price(_grouped, "self"),
    "aten::_scaled_grouped_mm": Price(_grouped, "self"),
    "aten::_scaled_grouped_mm_v2": Price(_grouped, "self"),
    "aten::convolution": _convolution(),
    "aten::_convolution": _convolution(),
    "aten::convolution_overrideable": _convolution(),
    "aten::convolution_backward": Price(_convolution_backward, "input"),
    "aten::convolution_backward_overrideable": Price(_convolution_backward, "input"),
    "aten::cudnn_convolution": _convolution("self"),
    "aten::cudnn_convolution_relu": _convolution("self"),
    "aten::cudnn_convolution_add_relu": _convolution("self"),
    "aten::cudnn_convolution_transpose": _convolution("self", transposed=True),
    "aten::miopen_convolution": _convolution("self"),
    "aten::miopen_convolution_relu": _convolution("self"),
    "aten::miopen_convolution_add_relu": _convolution("self"),
    "aten::miopen_convolution_transpose": _convolution("self", transposed=True),
    "aten::miopen_depthwise_convolution": _convolution("self"),
    "aten::mkldnn_convolution": _convolution("self"),
    "mkldnn::_convolution_pointwise": _convolution("X", "W"),
    "aten::_conv_depthwise2d": _convolution("self"),
    "aten::conv_depthwise3d": _convolution("self"),
    "aten::_slow_conv2d_forward": _convolution("self"),
    "aten::slow_conv3d_forward": _convolution("self"),
    "aten::slow_conv_dilated2d": _convolution("self"),
    "aten::slow_conv_dilated3d": _convolution("self"),
    "aten::slow_conv_transpose2d": _convolution("self", transposed=True),
    "aten::slow_conv_transpose3d": _convolution("self", transposed=True),
    "aten::mkldnn_rnn_layer": _mkldnn_rnn(0, passes=1),
    "aten::mkldnn_rnn_layer_backward": _mkldnn_rnn(1, passes=2),
    "aten::_cudnn_rnn": Price(_cudnn_rnn, "input"),
    "aten::_cudnn_rnn_backward": Price(_cudnn_rnn_backward, "input"),
    "aten::_trilinear": Price(_trilinear, "i1"),
    **{name: Price(formula, operand) for name, (formula, operand) in fused_attention.FORMULAS.items()},
}
"""Prices by qualified name, without overload and without the trailing underscore of in-place forms."""
