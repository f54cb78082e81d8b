"""Products, convolutions and recurrent layers on quantised numbers.

A weight that is only stored in few bits is widened first, so the arithmetic is at the activations' dtype. Where the
activations are quantised too, before or inside of the operator, it is that of eight-bit integers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.pricing.convolutions import ORDINARY, TRANSPOSED
from mfu_sdk.counting.pricing.price import DEFINITION, Price, plain
from mfu_sdk.counting.pricing.products import product
from mfu_sdk.counting.pricing.recurrences import WORDS, rows

_EIGHT_BITS: Final = frozenset({torch.int8, torch.uint8, torch.qint8, torch.quint8})


def _of(x: str) -> Callable[[Call], str]:
    """The arithmetic of the operand `x`: one name for every integer of eight bits."""

    def dtype(call: Call) -> str:
        found = call[x].dtype
        return "int8" if found in _EIGHT_BITS else str(found).removeprefix("torch.")

    return dtype


def _packed_convolution(x: str, weight: str, *, transposed: bool = False, dtype: str = "") -> Price:
    """A convolution whose weight is a packed object: it can unpack itself."""

    def flops(call: Call) -> int:
        shape = call[weight].unpack()[0].shape
        return formulas.convolution(call.shape(x), shape, call.out.shape, transposed=transposed)

    price = plain(flops, x, TRANSPOSED if transposed else ORDINARY, dtype=dtype)
    return price if dtype else replace(price, dtype=_of(x))


def _open_convolution(call: Call) -> int:
    return formulas.convolution(call.shape("qx"), call.shape("qw"), call.out.shape, transposed=False)


def _product(x: str, right: str) -> Price:
    return replace(product(x, right), dtype=_of(x))


def _layers(gates: int) -> Price:
    """Layers whose weights are packed objects: their sizes follow from the input's and the state's."""

    def flops(call: Call) -> int:
        # A packed batch is called data.
        x = "input" if call.get("input") is not None else "data"
        hidden = _state(call).shape[-1]
        directions = 2 if call["bidirectional"] else 1
        inputs = [call.shape(x)[-1], *[directions * hidden] * (call["num_layers"] - 1)]
        matrices = [(gates * hidden, size + hidden) for size in inputs] * directions
        return formulas.recurrent(rows(call, x), matrices)

    def dtype(call: Call) -> str:
        packed = call["params"][0]
        state: Any = packed.__getstate__() if isinstance(packed, torch.ScriptObject) else None
        kind = state[0][0] if state else ""
        # Half-precision weights are widened to the activations' single precision.
        return "int8" if kind == "quantized_dynamic" else "float32"

    return Price(lambda call, _: formulas.Cost.plain(flops(call)), "hx", words=WORDS, source=DEFINITION, dtype=dtype)


def _cell(gates: int) -> Price:
    def flops(call: Call) -> int:
        hidden = _state(call).shape[-1]
        return formulas.recurrent(rows(call), [(gates * hidden, call.shape("input")[-1] + hidden)])

    return plain(flops, "input", WORDS, dtype="int8")


def _state(call: Call) -> Any:
    state = call["hx"]
    return state if isinstance(state, torch.Tensor) else state[0]


def _in(namespace: str, names: str, price: Price) -> dict[str, Price]:
    return {f"{namespace}::{name}": price for name in names.split()}


_INTEGER_LINEAR: Final = "linear linear_relu linear_leaky_relu linear_tanh"
_DYNAMIC_LINEAR: Final = "linear_dynamic linear_relu_dynamic"
_FLOAT_LINEAR: Final = "linear_dynamic_fp16 linear_relu_dynamic_fp16"
_CONVOLUTION: Final = "conv1d conv1d_relu conv2d conv2d_relu conv3d conv3d_relu"
_TRANSPOSED: Final = "conv_transpose1d conv_transpose2d conv_transpose3d"

PRICES: Final[Mapping[str, Price]] = {
    "aten::_int_mm": product("self", "mat2"),
    "aten::_scaled_mm": product("self", "mat2"),
    "aten::_scaled_mm_v2": product("self", "mat2"),
    "aten::_weight_int8pack_mm": product("self", "mat2"),
    "aten::_weight_int4pack_mm": product("self", "mat2"),
    "aten::_weight_int4pack_mm_for_cpu": product("self", "mat2"),
    "aten::_weight_int4pack_mm_with_scales_and_zeros": product("self", "mat2"),
    "aten::_mixed_dtypes_linear": product("input", "weight"),
    # Quantises its activations to eight bits inside.
    "aten::_dyn_quant_matmul_4bit": product("inp", "packed_weights", dtype="int8"),
    "quantized::int4mm_packed_weight_cpu": product("self", "mat2"),
    "quantized::matmul": _product("qa", "qb"),
    **_in("quantized", _INTEGER_LINEAR, _product("X", "W_prepack")),
    **_in("quantized", _DYNAMIC_LINEAR, product("X", "W_prepack", dtype="int8")),
    **_in("quantized", _FLOAT_LINEAR, product("X", "W_prepack")),
    "quantized::linear_dynamic_fp16_unpacked_weight": product("X", "weight"),
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32": product("X", "W_prepack", dtype="int8"),
    "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32": product("X", "W_prepack", dtype="int8"),
    **_in("quantized", _CONVOLUTION, _packed_convolution("qx", "packed_weight")),
    **_in("quantized", "conv2d_add conv2d_add_relu", _packed_convolution("qx", "packed_weight")),
    **_in("quantized", _TRANSPOSED, _packed_convolution("qx", "packed_weight", transposed=True)),
    **_in(
        "quantized",
        "conv1d_dynamic conv2d_dynamic conv3d_dynamic",
        _packed_convolution("qx", "packed_weight", dtype="int8"),
    ),
    **_in(
        "quantized",
        " ".join(f"{name}_dynamic" for name in _TRANSPOSED.split()),
        _packed_convolution("qx", "packed_weight", transposed=True, dtype="int8"),
    ),
    "_quantized::linear": _product("X", "W_prepack"),
    "_quantized::linear_dynamic": product("X", "W_prepack", dtype="int8"),
    **_in("_quantized", "conv2d conv2d_relu conv3d conv3d_relu", _packed_convolution("qx", "packed_weight")),
    **_in(
        "_quantized",
        "conv_transpose1d conv_transpose2d",
        _packed_convolution("qx", "packed_weight", transposed=True),
    ),
    "_quantized::wrapped_quantized_linear": product("X", "W", dtype="int8"),
    "_quantized::_wrapped_quantized_linear_prepacked": product("X", "W_prepack", dtype="int8"),
    "_quantized::wrapped_fbgemm_linear_fp16_weight": product("X", "W"),
    "onednn::qlinear_pointwise": _product("qx", "qw"),
    **_in(
        "onednn",
        "qconv_pointwise qconv1d_pointwise qconv2d_pointwise qconv3d_pointwise",
        replace(plain(_open_convolution, "qx", ORDINARY), dtype=_of("qx")),
    ),
    **_in("onednn", _FLOAT_LINEAR, product("x", "w")),
    "aten::quantized_lstm": _layers(4),
    "aten::quantized_gru": _layers(3),
    "quantized::quantized_lstm_cell_dynamic": _cell(4),
    "quantized::quantized_gru_cell_dynamic": _cell(3),
    **_in("quantized", "quantized_rnn_relu_cell_dynamic quantized_rnn_tanh_cell_dynamic", _cell(1)),
}
