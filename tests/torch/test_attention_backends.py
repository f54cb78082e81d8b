"""The same attention costs the model the same, whatever mask kind meets whatever backend: against brute force."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

import mfu_sdk as mfu
from mfu_sdk.counting import registry
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.flex import price_flex
from mfu_sdk.counting.fused_attention import FORMULAS
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import PRICES
from mfu_sdk.records import Count

B, H, D = 2, 4, 16
Sees = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Kind:
    """A mask over (batch, head, query, key), for ints and tensors alike, and the sizes that it is tried with."""

    sees: Sees | None
    q_len: int = 8
    k_len: int = 8
    kv_heads: int = H
    v_dim: int = D
    causal: bool = False
    # What the flash and efficient kernels are told instead of a mask.
    flash: dict[str, Any] | None = None
    efficient: dict[str, Any] | None = None

    def pairs(self) -> int:
        grid = ((b, h, q, k) for b in range(B) for h in range(H) for q in range(self.q_len) for k in range(self.k_len))
        return sum(1 for at in grid if self.sees is None or self.sees(*at))

    def forward_flops(self) -> int:
        return 2 * self.pairs() * (D + self.v_dim)


def owner(position: Any) -> Any:
    return 1 * (position >= 3) + 1 * (position >= 7)


DOCUMENTS = [3, 4, 1] * B
KINDS: dict[str, Kind] = {
    "none": Kind(None, flash={}, efficient={}),
    "causal": Kind(
        lambda b, h, q, k: k <= q, causal=True, flash={"is_causal": True}, efficient={"custom_mask_type": 1}
    ),
    "bottom-right": Kind(
        lambda b, h, q, k: k <= q + 3, q_len=5, flash={"is_causal": True}, efficient={"custom_mask_type": 2}
    ),
    "window": Kind(
        lambda b, h, q, k: (k <= q) & (k > q - 3),
        flash={"window_size_left": 2, "window_size_right": 0},
    ),
    "chunk": Kind(lambda b, h, q, k: (k <= q) & (k // 3 == q // 3)),
    "prefix": Kind(lambda b, h, q, k: (k <= q) | (k < 3)),
    "documents": Kind(
        lambda b, h, q, k: (k <= q) & (owner(k) == owner(q)),
        flash={"is_causal": True, "packed": True},
        efficient={"custom_mask_type": 1, "packed": True},
    ),
    "padding": Kind(lambda b, h, q, k: k < 8 - 3 * b),
    "grouped": Kind(
        lambda b, h, q, k: k <= q, kv_heads=2, causal=True, flash={"is_causal": True}, efficient={"custom_mask_type": 1}
    ),
    "latent": Kind(lambda b, h, q, k: k <= q, v_dim=8, causal=True, efficient={"custom_mask_type": 1}),
    "cross": Kind(None, q_len=5, flash={}, efficient={}),
    "decode": Kind(
        lambda b, h, q, k: k <= q + 7, q_len=1, flash={"is_causal": True}, efficient={"custom_mask_type": 2}
    ),
}


def operands(kind: Kind, device: str, *, length_first: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = ((H, kind.q_len, D), (kind.kv_heads, kind.k_len, D), (kind.kv_heads, kind.k_len, kind.v_dim))
    q, k, v = (
        torch.randn(B, *((n, h, d) if length_first else (h, n, d)), device=device, requires_grad=True)
        for h, n, d in shapes
    )
    return q, k, v


def drawn(kind: Kind, device: str) -> torch.Tensor | None:
    """The mask as models make it: from indices."""
    if kind.sees is None:
        return None
    b, q, k = (torch.arange(n, device=device) for n in (B, kind.q_len, kind.k_len))
    return kind.sees(b[:, None, None, None], 0, q[:, None], k).expand(B, 1, kind.q_len, kind.k_len)  # type: ignore[no-any-return]


def written_out(masking: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device: str) -> Callable[[Kind], Count]:
    def run(kind: Kind) -> None:
        q, k, v = operands(kind, device)
        k, v = (t.repeat_interleave(H // kind.kv_heads, dim=1) for t in (k, v))
        scores, mask = q @ k.mT / D**0.5, drawn(kind, device)
        if mask is not None:
            scores = masking(scores, mask)
        (scores.softmax(-1) @ v).sum().backward()

    return lambda kind: mfu.count(lambda: run(kind))


def added(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros((), dtype=scores.dtype, device=scores.device)
    return scores + torch.where(mask, zero, torch.finfo(scores.dtype).min)


def filled(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(mask.logical_not(), float("-inf"))


def inverted(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores + (1.0 - mask.to(scores.dtype)) * torch.finfo(scores.dtype).min


def sdpa(backend: SDPBackend, device: str) -> Callable[[Kind], Count]:
    def run(kind: Kind) -> None:
        q, k, v = operands(kind, device)
        mask = None if kind.causal else drawn(kind, device)
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=kind.causal, enable_gqa=kind.kv_heads != H
            ).sum().backward()

    return lambda kind: mfu.count(lambda: run(kind))


def operator(name: str, given: tuple[Any, ...], *, biased: bool = True) -> Callable[[Kind], Count]:
    """An operator behind SDPA on a GPU, on tensors without data: is_causal, or a bias."""

    def run(kind: Kind) -> None:
        q, k, v = operands(kind, "meta")
        mask = None if kind.causal else drawn(kind, "meta")
        if mask is not None:
            mask = torch.where(mask, 0.0, float("-inf")).expand(B, H, -1, -1)
        bias = (mask,) if biased else ()
        getattr(torch.ops.aten, name)(q, k, v, *bias, *given, kind.causal)[0].sum().backward()

    return lambda kind: mfu.count(lambda: run(kind))


def ends(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def flash_kernel(kind: Kind) -> Count:
    """The flash kernel, told by is_causal, a window or packed lengths."""

    def run() -> None:
        told = dict(kind.flash or {})
        q, k, v = operands(kind, "meta", length_first=True)
        packed = ends(DOCUMENTS) if told.pop("packed", False) else None
        if packed is not None:
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        given = {"cum_seq_q": packed, "cum_seq_k": packed, "max_q": kind.q_len, "max_k": kind.k_len, "dropout_p": 0.0}
        options = {"is_causal": False, "return_debug_mask": False} | told
        torch.ops.aten._flash_attention_forward(q, k, v, **given, **options)[0].sum().backward()

    return mfu.count(run)


def efficient_kernel(kind: Kind) -> Count:
    """The efficient kernel, told by a mask type, a window or packed lengths."""

    def run() -> None:
        told = {"custom_mask_type": 0} | (kind.efficient or {})
        q, k, v = operands(kind, "meta", length_first=True)
        packed = ends(DOCUMENTS) if told.pop("packed", False) else None
        if packed is not None:
            q, k, v = (t.flatten(0, 1)[None] for t in (q, k, v))
        given = (None, packed, packed, kind.q_len, kind.k_len, 0.0, told.pop("custom_mask_type"), True)
        torch.ops.aten._efficient_attention_forward(q, k, v, *given, **told)[0].sum().backward()

    return mfu.count(run)


BACKENDS: dict[str, Callable[[Kind], Count]] = {
    "math": sdpa(SDPBackend.MATH, "cpu"),
    "flash on a CPU": sdpa(SDPBackend.FLASH_ATTENTION, "cpu"),
    "math without data": sdpa(SDPBackend.MATH, "meta"),
    "written out, added": written_out(added, "cpu"),
    "written out, filled": written_out(filled, "cpu"),
    "written out, inverted": written_out(inverted, "cpu"),
    "written out, added, without data": written_out(added, "meta"),
    "written out, filled, without data": written_out(filled, "meta"),
    "written out, inverted, without data": written_out(inverted, "meta"),
    "flash": operator("_scaled_dot_product_flash_attention", (0.0,), biased=False),
    "efficient": operator("_scaled_dot_product_efficient_attention", (True, 0.0)),
    "cudnn": operator("_scaled_dot_product_cudnn_attention", (True, 0.0)),
    "flash kernel": flash_kernel,
    "efficient kernel": efficient_kernel,
}


def exists(kind: str, backend: str) -> bool:
    """Whether the backend can compute the mask at all."""
    given = KINDS[kind]
    if backend == "flash":
        # It has no mask, and wants one size and one number of heads.
        return (given.causal or given.sees is None) and given.kv_heads == H and given.v_dim == D
    if backend == "flash kernel":
        return given.flash is not None
    if backend == "efficient kernel":
        return given.efficient is not None and given.kv_heads == H
    if backend in ("efficient", "cudnn"):
        return given.kv_heads == H
    # The CPU's fused kernel wants one size; others go to math.
    return not (backend == "flash on a CPU" and kind == "latent")


CELLS = [(kind, backend) for kind in KINDS for backend in BACKENDS if exists(kind, backend)]


@pytest.mark.parametrize(("kind", "backend"), CELLS)
def test_a_backend_does_not_change_what_the_model_needs(kind: str, backend: str) -> None:
    """Forward by the pairs of the brute-force mask, backward twice that, and nothing uncounted."""
    count, expected = BACKENDS[backend](KINDS[kind]), KINDS[kind].forward_flops()
    assert count.uncounted == ()
    assert (count.forward_flops, count.backward_flops) == (expected, 2 * expected)
    given = KINDS[kind]
    pairs = B * given.q_len * given.k_len
    if kind == "documents" and backend.endswith("kernel"):
        # What is packed apart was never one sequence.
        pairs = sum(n * n for n in DOCUMENTS)
    full = 2 * H * pairs * (D + given.v_dim)
    assert (count.attention_flops_exact, count.attention_flops_full) == (3 * expected, 3 * full)


def test_the_efficient_kernels_window() -> None:
    """A window of 3 is the query's own key and two before it, forward and backward; without causality there is none.

    It is apart from the table because torch's autograd does not hand the window to the backward: that runs causal.
    """
    q, k, v = (t.detach() for t in operands(KINDS["window"], "meta", length_first=True))
    forward, backward = (getattr(torch.ops.aten, f"_efficient_attention_{way}") for way in ("forward", "backward"))
    given = (None, None, None, 8, 8)
    causal, open_to_all = (0.0, 1, True), (0.0, 0, True)
    out = forward(q, k, v, *given, *causal, window_size=3)
    expected = KINDS["window"].forward_flops()
    count = mfu.count(lambda: forward(q, k, v, *given, *causal, window_size=3))
    assert (count.model_flops, count.hardware_flops) == (expected, expected)
    # Its meta kernel does not take the window either, so the formula is asked itself.
    args = (out[0], q, k, v, None, out[0], *given[1:], out[1], 0.0, out[2], out[3], 1, False)
    call = Call(backward.default, args, {"window_size": 3}, (q, k, v, None))
    assert FORMULAS["aten::_efficient_attention_backward"].formula(call, Masks()).exact == 2 * expected
    count = mfu.count(lambda: forward(q, k, v, *given, *open_to_all, window_size=3))
    assert [entry.op for entry in count.uncounted] == ["aten::_efficient_attention_forward"]


def test_a_paged_cache() -> None:
    """Two sequences of 2 and 1 new tokens over caches filled to 7 and 5 of 16, in pages of 4, causal at the end."""
    q, pages = torch.empty(3, H, D, device="meta"), torch.empty(8, 4, 2, D, device="meta")
    table, filled = torch.arange(8).view(2, 4).int(), torch.tensor([7, 5], dtype=torch.int32)
    given = (ends([2, 1]), None, 2, 16, 0.0, True, False)
    for options in ({}, {"window_size_left": 2, "window_size_right": 0}):
        count = mfu.count(
            lambda options=options: torch.ops.aten._flash_attention_forward(
                q, pages, pages, *given, seqused_k=filled, block_table=table, **options
            )
        )
        pairs = 3 + 3 + 3 if options else 6 + 7 + 5
        assert (count.model_flops, count.uncounted) == (4 * H * D * pairs, ())
    unknown = mfu.count(lambda: torch.ops.aten._flash_attention_forward(q, pages, pages, *given, block_table=table))
    assert [entry.op for entry in unknown.uncounted] == ["aten::_flash_attention_forward"]


def test_attention_of_varying_lengths() -> None:
    """torch.nn.attention.varlen: its own operators, forward, in place and backward, causal and within a window."""
    from torch.nn.attention import varlen

    lengths = ends([3, 5])
    for window, pairs in (((-1, -1), 9 + 25), ((-1, 0), 6 + 15), ((1, 0), 1 + 2 + 2 + 1 + 2 + 2 + 2 + 2)):

        def run(window: tuple[int, int] = window) -> None:
            q, k, v = (torch.empty(8, H, D, device="meta", requires_grad=True) for _ in range(3))
            varlen.varlen_attn(q, k, v, lengths, lengths, 5, 5, window_size=window).sum().backward()

        def run_in_place(window: tuple[int, int] = window) -> None:
            q, out = (torch.empty(8, H, D, device="meta") for _ in range(2))
            varlen.varlen_attn_out(out, q, q, q, lengths, lengths, 5, 5, window_size=window)

        count, forward = mfu.count(run), 4 * H * D * pairs
        assert (count.uncounted, count.forward_flops, count.backward_flops) == ((), forward, 2 * forward)
        assert mfu.count(run_in_place).forward_flops == forward


def test_the_other_operators() -> None:
    """MPS's math runs all pairs; the flash kernel that writes in place; ONNX's attention over a cache, scores twice."""
    import torch.onnx.ops  # registers them

    q, k = torch.empty(B, H, 5, D, device="meta"), torch.empty(B, H, 8, D, device="meta")
    pair = 4 * B * H * D
    count = mfu.count(lambda: torch.ops.aten._scaled_dot_product_attention_math_for_mps(q, k, k, is_causal=True))
    assert (count.model_flops, count.hardware_flops, count.uncounted) == (pair * 15, pair * 40, ())
    kernel = torch.ops.aten._flash_attention_forward_no_dropout_inplace
    x = torch.empty(B, 5, H, D, device="meta")
    given = (None, None, 5, 5, 0.0, True, False)
    count = mfu.count(lambda: kernel(x, x, x, x, *given))
    assert (count.model_flops, count.hardware_flops, count.uncounted) == (pair * 15, pair * 15, ())
    attend = torch.ops.onnx.Attention.opset23
    for new in (torch.randn(B, H, 5, D), torch.randn(B, 5, H * D)):
        heads = {"q_num_heads": H, "kv_num_heads": H} if new.dim() == 3 else {}
        past = torch.randn(B, H, 3, D)
        count = mfu.count(lambda: attend(new, new, new, None, past, past, is_causal=True, **heads))  # noqa: B023
        assert (count.model_flops, count.hardware_flops) == (pair * 15, pair * 40 + pair * 40 // 2)
    call = Call(torch.ops.aten._triton_scaled_dot_attention.default, (q, k, k), {}, q)
    assert FORMULAS["aten::_triton_scaled_dot_attention"].formula(call, Masks()).exact == pair * 40


def test_every_attention_operator_of_torch_has_a_price() -> None:
    """Whatever torch names attention is priced, made of what is priced, or only asks."""
    import torch.nn.attention.varlen
    import torch.onnx.ops  # these register more

    found = set()
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if not any(word in name.lower() for word in ("attention", "attn", "sdpa", "sdp_")):
            continue
        packet = getattr(getattr(torch.ops, namespace), name.partition(".")[0])
        overload = getattr(packet, schema.overload_name or "default", None)
        if schema.name not in PRICES and overload is not None:
            rule = registry.rule(overload)
            assert rule.kind == "free" or rule.decomposes, schema
        found.add(schema.name)
    assert len(found) >= 28


class _Seen(TorchDispatchMode):
    """Keeps the arguments of flex attention."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "_name", "") == "flex_attention":
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
def test_flex_needs_what_the_others_need(kind: str) -> None:
    """Forward; its backward exists only compiled, and is priced from the same mask."""
    given = KINDS[kind]
    q, k, v = (t.detach() for t in operands(given, "cpu"))
    mask = None
    if given.sees is not None:
        mask = create_block_mask(given.sees, B, H, given.q_len, given.k_len, device="cpu", BLOCK_SIZE=4)
    with _Seen() as seen:
        flex_attention(q, k, v, block_mask=mask, enable_gqa=given.kv_heads != H)
    cost = price_flex("flex_attention", seen.calls[0], {}, Masks())
    assert cost.model("exact") == given.forward_flops()


def test_hardware_differs() -> None:
    """Causal: math runs all pairs in 2 + 4 products; kernels skip the hidden pairs but make the scores again, 2 + 5."""
    pair, causal = 2 * B * H * D, KINDS["causal"]
    for backend in ("math", "math without data", "written out, added", "written out, filled, without data"):
        assert BACKENDS[backend](causal).hardware_flops == 6 * pair * 64, backend
    for backend in ("flash on a CPU", "flash", "efficient", "cudnn", "flash kernel", "efficient kernel"):
        assert BACKENDS[backend](causal).hardware_flops == 7 * pair * 36, backend


def test_hardware_runs_what_a_tensor_mask_hides() -> None:
    """A chunked mask is given as a tensor, so every kernel computes all pairs."""
    pair, chunk = 2 * B * H * D, KINDS["chunk"]
    for backend in ("flash on a CPU", "efficient", "cudnn"):
        assert BACKENDS[backend](chunk).hardware_flops == 7 * pair * 64, backend
