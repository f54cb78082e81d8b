"""What quantised operators cost, and at which dtype, run for real where torch has a CPU kernel."""

import warnings
from collections.abc import Callable

import pytest
import torch

import mfu_sdk as mfu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao.nn import quantized as nnq
    from torch.ao.nn.quantized import dynamic as nnqd

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
ops = torch.ops.quantized


def quantised(*shape: int) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.rand(*shape), 0.1, 10, torch.quint8)


def onednn_linear() -> object:
    weight = torch.ops.onednn.qlinear_prepack(torch.ones(5, 6, dtype=torch.int8), [4, 6])
    x, ones, zeros = torch.ones(4, 6, dtype=torch.uint8), torch.ones(5), torch.zeros(5, dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def onednn_convolution() -> object:
    places = ([1, 1], [0, 0], [1, 1], 2)
    ones, zeros = torch.ones(6), torch.zeros(6, dtype=torch.int64)
    weight = torch.ops.onednn.qconv_prepack(
        torch.ones(6, 2, 3, 3, dtype=torch.int8), ones, 1.0, 0, *places, [2, 4, 8, 8]
    )
    x = torch.ones(2, 4, 8, 8, dtype=torch.uint8)
    return torch.ops.onednn.qconv_pointwise(
        x, 1.0, 0, weight, ones, zeros, None, *places, 1.0, 0, torch.float32, "none", [], ""
    )


LSTM = 8 * 16 * (8 + 16)
# Calls, their FLOPs, and the dtype of the arithmetic.
EXPECTED: dict[str, tuple[Callable[[], object], int, str]] = {
    "linear": (lambda: nnq.Linear(6, 5)(quantised(4, 6)), 2 * 4 * 6 * 5, "int8"),
    "linear dynamic": (lambda: nnqd.Linear(6, 5)(torch.rand(2, 4, 6)), 2 * 8 * 6 * 5, "int8"),
    "linear fp16 weight": (lambda: nnqd.Linear(6, 5, dtype=torch.float16)(torch.rand(4, 6)), 240, "float32"),
    "matmul": (lambda: ops.matmul(quantised(4, 6), quantised(6, 5), 0.1, 0), 240, "int8"),
    "conv1d": (lambda: nnq.Conv1d(4, 6, 3)(quantised(2, 4, 8)), 2 * 2 * 6 * 6 * 12, "int8"),
    "conv2d groups": (lambda: nnq.Conv2d(4, 6, 3, groups=2)(quantised(2, 4, 8, 8)), 2 * 2 * 6 * 36 * 18, "int8"),
    "conv3d": (lambda: nnq.Conv3d(4, 6, 1)(quantised(1, 4, 2, 2, 2)), 2 * 6 * 8 * 4, "int8"),
    "conv dynamic": (lambda: nnqd.Conv2d(4, 6, 3)(torch.rand(2, 4, 8, 8)), 2 * 2 * 6 * 36 * 36, "int8"),
    "conv transposed": (lambda: nnq.ConvTranspose2d(4, 6, 3)(quantised(2, 4, 8, 8)), 2 * 2 * 4 * 64 * 54, "int8"),
    "lstm": (lambda: nnqd.LSTM(8, 16)(torch.rand(5, 3, 8)), 15 * LSTM, "int8"),
    "lstm fp16 weight": (lambda: nnqd.LSTM(8, 16, dtype=torch.float16)(torch.rand(5, 3, 8)), 15 * LSTM, "float32"),
    "lstm two layers both ways": (
        lambda: nnqd.LSTM(8, 16, num_layers=2, bidirectional=True)(torch.rand(5, 3, 8)),
        2 * 15 * (LSTM + 8 * 16 * (32 + 16)),
        "int8",
    ),
    "gru": (lambda: nnqd.GRU(8, 16)(torch.rand(5, 3, 8)), 15 * 6 * 16 * (8 + 16), "int8"),
    "gru packed": (
        lambda: nnqd.GRU(8, 16)(torch.nn.utils.rnn.pack_sequence([torch.rand(5, 8), torch.rand(3, 8)])),
        8 * 6 * 16 * (8 + 16),
        "int8",
    ),
    "lstm cell": (lambda: nnqd.LSTMCell(8, 16)(torch.rand(3, 8)), 3 * LSTM, "int8"),
    "gru cell": (lambda: nnqd.GRUCell(8, 16)(torch.rand(3, 8)), 3 * 6 * 16 * (8 + 16), "int8"),
    "rnn cell": (lambda: nnqd.RNNCell(8, 16)(torch.rand(3, 8)), 3 * 2 * 16 * (8 + 16), "int8"),
    "onednn linear": (onednn_linear, 240, "int8"),
    "onednn convolution": (onednn_convolution, 2 * 2 * 6 * 36 * 18, "int8"),
    "int8 weight": (
        lambda: torch.ops.aten._weight_int8pack_mm(
            torch.ones(4, 32, dtype=torch.bfloat16), torch.ones(8, 32, dtype=torch.int8), torch.ones(8).bfloat16()
        ),
        2 * 4 * 32 * 8,
        "bfloat16",
    ),
    "int8 both": (
        lambda: torch.ops.aten._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
        2 * 32 * 16 * 8,
        "int8",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_forward_by_hand(name: str) -> None:
    """Each costs what it would in floating point, at eight bits where both operands are quantised, if only inside."""
    run, flops, dtype = EXPECTED[name]
    count = mfu.count(run)
    assert (count.by_dtype, count.hardware_flops, count.uncounted) == ({dtype: flops}, flops, ())
