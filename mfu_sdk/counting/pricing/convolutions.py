"""Convolutions and their gradients, of every backend."""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.pricing.price import DEFINITION, Price, per_multiply_add, plain

ORDINARY: Final = "2·output elements·input channels a group·taps"
TRANSPOSED: Final = "2·input elements·output channels a group·taps"
_BOTH: Final = f"{ORDINARY}; transposed: {TRANSPOSED}"
_TORCHVISION: Final = "pytorch/vision, torchvision/csrc/ops/deform_conv2d.cpp"


def _convolution(
    x: str = "input", weight: str = "weight", *, transposed: bool | None = None, source: str = DEFINITION
) -> Price:
    def flops(call: Call) -> int:
        return formulas.convolution(
            call.shape(x),
            call.shape(weight),
            call.out.shape,
            transposed=bool(call.get("transposed", False)) if transposed is None else transposed,
            per_multiply_add=per_multiply_add(call[x], call[weight]),
        )

    return plain(flops, x, _BOTH if transposed is None else TRANSPOSED if transposed else ORDINARY, source)


def _backward(
    x: str = "input", grad: str = "grad_output", *, transposed: bool | None = None, source: str = DEFINITION
) -> Price:
    """Each gradient that is wanted; overloads without a mask write both."""

    def flops(call: Call) -> int:
        forward = formulas.convolution(
            call.shape(x),
            call.shape("weight"),
            call.shape(grad),
            transposed=call.get("transposed", False) if transposed is None else transposed,
            per_multiply_add=per_multiply_add(call[x], call["weight"]),
        )
        mask: Any = call.get("output_mask") or (True, True)
        return formulas.convolution_backward(forward, input_grad=mask[0], weight_grad=mask[1])

    return plain(flops, x, "one forward for each of the gradients of input and weight that is wanted", source)


def _time_first(call: Call) -> int:
    taps, channels, _ = call.shape("weight")
    return formulas.product(call.out.shape, taps * channels, per_multiply_add(call["self"], call["weight"]))


def _packed(call: Call) -> int:
    # A packed object for mobile devices; the weight comes first in its state.
    weight = call["W_prepack"].__getstate__()[0][0]
    return formulas.convolution(call.shape("X"), weight.shape, call.out.shape, transposed=False)


def _onednn_transposed(call: Call) -> int:
    # A weight in oneDNN's own layout says its channels the other way round; its kernel comes last either way.
    channels = call.out.shape[1] // call["groups"]
    return formulas.convolution(call.shape("X"), (1, channels, *call.shape("W")[2:]), call.out.shape, transposed=True)


PRICES: Final[Mapping[str, Price]] = {
    "aten::convolution": _convolution(),
    "aten::_convolution": _convolution(),
    "aten::convolution_overrideable": _convolution(),
    "aten::convolution_backward": _backward(),
    "aten::convolution_backward_overrideable": _backward(),
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
    "mkldnn::_convolution_transpose_pointwise": plain(_onednn_transposed, "X", TRANSPOSED),
    "mkldnn_prepacked::conv2d_run": plain(_packed, "X", ORDINARY),
    "aten::_conv_depthwise2d": _convolution("self"),
    "aten::conv_depthwise3d": _convolution("self"),
    "aten::_slow_conv2d_forward": _convolution("self"),
    "aten::_slow_conv2d_backward": _backward("self"),
    "aten::slow_conv3d_forward": _convolution("self"),
    "aten::slow_conv_dilated2d": _convolution("self"),
    "aten::slow_conv_dilated3d": _convolution("self"),
    "aten::slow_conv_transpose2d": _convolution("self", transposed=True),
    "aten::slow_conv_transpose3d": _convolution("self", transposed=True),
    "aten::_nnpack_spatial_convolution": _convolution(),
    "aten::conv_tbc": plain(_time_first, "self", ORDINARY),
    "aten::_mps_convolution": _convolution("self"),
    "aten::_mps_convolution_transpose": _convolution("self", transposed=True),
    "aten::mps_convolution_backward": _backward("self", transposed=False),
    "aten::mps_convolution_transpose_backward": _backward("self", transposed=True),
    # Where its taps lie is interpolated, which is free as all resampling is.
    "torchvision::deform_conv2d": _convolution(transposed=False, source=_TORCHVISION),
    "torchvision::_deform_conv2d_backward": _backward(grad="grad", transposed=False, source=_TORCHVISION),
}
