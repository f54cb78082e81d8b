"""What single operators cost, run for real and compared with hand-derived numbers."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.records import Count


def rand(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=grad)


def onednn_weight() -> torch.Tensor:
    """The weight of a transposed convolution from 4 channels to 6 in two groups, in a layout of oneDNN's own."""
    reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
    weight: torch.Tensor = reorder(rand(4, 3, 3, 3), [0, 0], [0, 0], [1, 1], [1, 1], 2, [2, 4, 8, 8])
    return weight


PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "mm": (lambda: rand(2, 3) @ rand(3, 5), 60),
    "addmm": (lambda: torch.addmm(rand(5), rand(2, 3), rand(3, 5)), 60),
    "addmm_": (lambda: rand(2, 5).addmm_(rand(2, 3), rand(3, 5)), 60),
    "bmm": (lambda: torch.bmm(rand(4, 2, 3), rand(4, 3, 5)), 240),
    "baddbmm": (lambda: torch.baddbmm(rand(4, 2, 5), rand(4, 2, 3), rand(4, 3, 5)), 240),
    "addbmm": (lambda: torch.addbmm(rand(2, 5), rand(4, 2, 3), rand(4, 3, 5)), 240),
    "mv": (lambda: torch.mv(rand(2, 3), rand(3)), 12),
    "addmv": (lambda: torch.addmv(rand(2), rand(2, 3), rand(3)), 12),
    "dot": (lambda: torch.dot(rand(7), rand(7)), 14),
    "vdot": (lambda: torch.vdot(rand(7), rand(7)), 14),
    "addr": (lambda: torch.addr(rand(2, 3), rand(2), rand(3)), 12),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", rand(4, 2, 3), rand(4, 3, 5)), 240),
    "linear": (lambda: F.linear(rand(2, 4, 3), rand(5, 3)), 2 * 8 * 3 * 5),
    "out": (lambda: torch.mm(rand(2, 3), rand(3, 5), out=torch.empty(2, 5)), 60),
    "empty": (lambda: rand(0, 3) @ rand(3, 5), 0),
    "complex": (lambda: rand(2, 3, dtype=torch.complex64) @ rand(3, 5, dtype=torch.complex64), 240),
    "int8": (
        lambda: torch.ops.aten._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
        2 * 32 * 16 * 8,
    ),
    "bilinear complex": (
        lambda: F.bilinear(*(rand(*size, dtype=torch.complex64) for size in ((2, 3), (2, 4), (5, 3, 4)))),
        4 * (2 * 2 * 5 * 3 * 4 + 2 * 2 * 5 * 4),
    ),
    "bilinear": (lambda: F.bilinear(rand(2, 3), rand(2, 4), rand(5, 3, 4)), 2 * 2 * 5 * 3 * 4 + 2 * 2 * 5 * 4),
    "conv": (lambda: F.conv2d(rand(2, 4, 8, 8), rand(6, 4, 3, 3), padding=1), 2 * 2 * 6 * 64 * 36),
    "conv dilated": (lambda: F.conv2d(rand(2, 4, 8, 8), rand(6, 4, 3, 3), dilation=2), 2 * 2 * 6 * 16 * 36),
    "conv strided": (lambda: F.conv1d(rand(1, 4, 9), rand(6, 4, 3), stride=2), 2 * 6 * 4 * 12),
    "conv depthwise": (lambda: F.conv2d(rand(2, 4, 8, 8), rand(4, 1, 3, 3), padding=1, groups=4), 2 * 2 * 4 * 64 * 9),
    "conv transposed": (lambda: F.conv_transpose2d(rand(2, 4, 8, 8), rand(4, 6, 3, 3)), 2 * 2 * 4 * 64 * 6 * 9),
    "lstm": (lambda: nn.LSTM(8, 16)(rand(5, 3, 8)), 15 * 8 * 16 * (8 + 16)),
    "lstm both ways": (lambda: nn.LSTM(8, 16, bidirectional=True)(rand(5, 3, 8)), 2 * 15 * 8 * 16 * (8 + 16)),
    "gru": (lambda: nn.GRU(8, 16)(rand(5, 3, 8)), 15 * 6 * 16 * (8 + 16)),
    "rnn": (lambda: nn.RNN(8, 16)(rand(5, 3, 8)), 15 * 2 * 16 * (8 + 16)),
    "lstm projected": (lambda: nn.LSTM(8, 16, proj_size=4)(rand(5, 3, 8)), 15 * 2 * (64 * (8 + 4) + 16 * 4)),
    "lstm packed": (
        lambda: nn.LSTM(8, 16)(nn.utils.rnn.pack_sequence([rand(5, 8), rand(3, 8)])),
        8 * 8 * 16 * (8 + 16),
    ),
    "lstm cell": (lambda: nn.LSTMCell(8, 16)(rand(3, 8)), 3 * 8 * 16 * (8 + 16)),
    "gru cell": (lambda: nn.GRUCell(8, 16)(rand(3, 8)), 3 * 6 * 16 * (8 + 16)),
    "tensordot": (lambda: torch.tensordot(rand(2, 3, 4), rand(3, 4, 5), dims=2), 2 * 2 * 12 * 5),
    "conv complex": (
        lambda: F.conv1d(rand(1, 2, 5, dtype=torch.complex64), rand(3, 2, 1, dtype=torch.complex64)),
        3 * 2 * (3 * 5 * 2),
    ),
    "conv by time": (lambda: torch.conv_tbc(rand(7, 2, 4), rand(3, 4, 6), rand(6)), 2 * 5 * 2 * 6 * 12),
    "conv transposed by oneDNN": (
        lambda: torch.ops.mkldnn._convolution_transpose_pointwise(
            rand(2, 4, 8, 8), onednn_weight(), None, [0, 0], [0, 0], [1, 1], [1, 1], 2, "none", [], ""
        ),
        2 * 2 * 4 * 64 * 3 * 9,
    ),
    "linear mkldnn": (lambda: F.linear(rand(4, 6).to_mkldnn(), rand(5, 6).to_mkldnn()), 2 * 4 * 6 * 5),
    "two products": (
        lambda: torch.ops.inductor._mm_plus_mm(rand(2, 3), rand(3, 4), rand(2, 5), rand(5, 4), torch.empty(2, 4)),
        2 * 2 * 3 * 4 + 2 * 2 * 5 * 4,
    ),
    "outer": (lambda: torch.kron(rand(2, 2), rand(3, 3)), 0),
    "distances one by one": (lambda: torch.cdist(rand(4, 3), rand(5, 3)), 2 * 4 * 5 * 3),
    "distances by a product": (lambda: torch.cdist(rand(40, 3), rand(50, 3)), 2 * 40 * 50 * 3),
    "distances of a batch": (lambda: torch.cdist(rand(2, 4, 3), rand(5, 3), p=1.0), 2 * 2 * 4 * 5 * 3),
    "distances to a batch": (lambda: torch.cdist(rand(4, 3), rand(2, 5, 3), p=1.0), 2 * 2 * 4 * 5 * 3),
    "own distances": (lambda: F.pdist(rand(4, 3)), 2 * 6 * 3),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", PRODUCTS)
def test_forward_by_hand(name: str) -> None:
    """Each product costs its closed form, all of it model and hardware FLOPs, and nothing is uncounted."""
    run, flops = PRODUCTS[name]
    count = mfu.count(run)
    assert (count.model_flops, count.hardware_flops, count.uncounted, count.coverage) == (flops, flops, (), 1.0)


def test_inference_mode_counts_the_same() -> None:
    """In inference mode composite operators arrive whole; a linear, a matmul and attention cost what they cost."""
    linear, x, q = nn.Linear(3, 5), rand(2, 4, 3), rand(2, 4, 8, 16)

    def run() -> None:
        linear(x)
        x @ rand(2, 3, 5)
        F.scaled_dot_product_attention(q, q, q, is_causal=True).softmax(-1)

    outside = mfu.count(run)
    with torch.inference_mode():
        inside = mfu.count(run)
    assert outside.model_flops == 2 * 8 * 15 + 2 * 2 * 4 * 3 * 5 + 2 * 8 * 36 * 32
    assert (inside.model_flops, inside.uncounted) == (outside.model_flops, ())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_backward_by_hand(groups: int, transposed: bool) -> None:
    """Both gradients together are two forwards, however many groups there are."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    x, weight = rand(2, 4, 8, 8, grad=True), rand(4, 4 // groups, 3, 3, grad=True)
    count = mfu.count(lambda: convolve(x, weight, groups=groups).sum().backward())
    pixels = 64 if transposed else 36
    assert count.forward_flops == 2 * 2 * 4 * pixels * (4 // groups) * 9
    assert count.backward_flops == 2 * count.forward_flops


def test_convolution_backward_of_a_frozen_weight() -> None:
    """With only the input's gradient wanted the backward is one forward."""
    x, weight = rand(1, 4, 8, 8, grad=True), rand(4, 4, 3, 3)
    count = mfu.count(lambda: F.conv2d(x, weight).sum().backward())
    assert count.backward_flops == count.forward_flops


@pytest.mark.parametrize(("left", "right"), [(4, 5), (40, 50)])
def test_distances_backward(left: int, right: int) -> None:
    """The gradients of both sets of points are a forward each, whichever way the distances were computed."""
    x, y = rand(left, 3, grad=True), rand(right, 3, grad=True)
    count = mfu.count(lambda: torch.cdist(x, y).sum().backward())
    assert (count.backward_flops, count.uncounted) == (2 * count.forward_flops, ())


def test_own_distances_backward() -> None:
    """Each pair moves both of its points."""
    points = rand(4, 3, grad=True)
    count = mfu.count(lambda: F.pdist(points).sum().backward())
    assert count.backward_flops == 2 * count.forward_flops


def test_convolution_differentiated_twice() -> None:
    """The gradient of the input's gradient is a convolution with the weight, and one with the gradient for a kernel."""
    x, weight = rand(2, 4, 8, 8, grad=True), rand(6, 4, 3, 3, grad=True)
    once = mfu.count(lambda: torch.autograd.grad(F.conv2d(x, weight).sum(), x)).forward_flops

    def twice() -> None:
        (grad,) = torch.autograd.grad(F.conv2d(x, weight).sum(), x, create_graph=True)
        grad.square().sum().backward()

    count = mfu.count(twice)
    assert count.forward_flops == once
    assert (count.backward_flops, count.uncounted) == (3 * once, ())


def test_lstm_backward() -> None:
    """The gradients of inputs and weights are a forward each."""
    model = nn.LSTM(8, 16, num_layers=2)
    count = mfu.count(lambda: model(rand(5, 3, 8, grad=True))[0].sum().backward())
    assert count.backward_flops == 2 * count.forward_flops


def test_grouped_product_up_to_its_last_offset() -> None:
    """Of 10 rows, 7 belong to a group: the others are not multiplied."""
    a, b = rand(16, 16, dtype=torch.bfloat16), rand(2, 16, 16, dtype=torch.bfloat16)
    count = mfu.count(lambda: torch.ops.aten._grouped_mm(a, b, offs=torch.tensor([4, 11], dtype=torch.int32)))
    assert (count.model_flops, count.by_dtype) == (2 * 11 * 16 * 16, {"bfloat16": 2 * 11 * 16 * 16})


def test_grouped_product_without_data() -> None:
    """Offsets that cannot be read let all rows count, as dropless experts have them."""
    a = torch.empty(16, 16, dtype=torch.bfloat16, device="meta")
    b = torch.empty(2, 16, 16, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(2, dtype=torch.int32, device="meta")
    count = mfu.count(lambda: torch._grouped_mm(a, b, offs=offsets))
    assert (count.model_flops, count.uncounted) == (2 * 16 * 16 * 16, ())


def test_transformer_encoder_with_padding_by_hand() -> None:
    """Given a padding mask, an encoder drops the padding and runs its layers over sequences of 3 and 5 tokens."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    padding = torch.arange(5) >= torch.tensor([[3], [5]])
    with torch.inference_mode(), warnings.catch_warnings():
        # torch says that nested tensors are a prototype.
        warnings.simplefilter("ignore")
        count = mfu.count(encoder, rand(2, 5, 16), src_key_padding_mask=padding)
    layer = 2 * 8 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * (3 * 3 + 5 * 5) * 16
    assert (count.model_flops, count.uncounted) == (2 * layer, ())


def test_transformer_fast_path_equals_the_slow_one() -> None:
    """The fused encoder layer of inference costs what its parts cost, with a padding mask too."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = rand(2, 8, 16)
    with torch.no_grad():
        fused = mfu.count(layer, x)
    parts = mfu.count(layer, x)
    assert set(fused.by_op) == {"aten::_transformer_encoder_layer_fwd"}
    assert fused.model_flops == parts.model_flops == 2 * 16 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 2 * 64 * 16


def test_dtypes_split_the_model_flops() -> None:
    """A bf16 product and an fp32 one of half its size are kept apart."""
    count = mfu.count(
        lambda: (rand(2, 3, dtype=torch.bfloat16) @ rand(3, 4, dtype=torch.bfloat16), rand(2, 3) @ rand(3, 2))
    )
    assert count.by_dtype == {"bfloat16": 48, "float32": 24}


def test_bytes_by_hand() -> None:
    """A product reads 24 + 60 and writes 40 bytes; its transposed view moves nothing; a broadcast row is read once."""
    a, b, row = rand(2, 3), rand(5, 3), rand(1, 5)

    def run() -> torch.Tensor:
        return a @ b.t() + row.expand(2, 5)

    count = mfu.count(run)
    assert count.bytes_moved == (24 + 60 + 40) + (40 + 20 + 40)
    assert [(op.op, op.flops, op.bytes_moved, op.calls) for op in count.ops] == [
        ("aten::mm", 60, 124, 1),
        ("aten::add", 0, 100, 1),
    ]


def test_a_lookup_reads_what_it_returns() -> None:
    """Embedding 3 of 1000 rows of 4 floats reads 48 + 24 bytes and writes 48."""
    table, index = rand(1000, 4), torch.tensor([1, 5, 1])
    assert mfu.count(lambda: F.embedding(index, table)).bytes_moved == 48 + 24 + 48


def test_an_unknown_operator_is_listed() -> None:
    """The exponential of no finite matrix has no price: it is listed with its module, and lowers coverage."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(x * torch.inf) + (x @ x).sum(0)

    x = torch.ones(4, 4)
    count = mfu.count(Model(), x)
    (unknown,) = count.uncounted
    assert (unknown.op, unknown.calls, unknown.module) == ("aten::linalg_matrix_exp", 1, "Model")
    assert count.model_flops == 2 * 4 * 4 * 4
    assert 0.0 < count.coverage < 1.0


def test_integers_are_never_uncounted() -> None:
    """An operator without formula that touches no floating-point data costs no coverage."""
    count: Count = mfu.count(lambda: torch.tensor([1, 2]).unique(return_counts=True))
    assert count.uncounted == ()
