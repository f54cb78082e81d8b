"""What moves in compiled code and in one-kernel attention: bytes by hand, and FLOPs as in eager code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfu_sdk as mfu
from mfu_sdk import errors as mfu_errors
from mfu_sdk.counting.fused_mode import FusedMode, one_kernel_attention
from mfu_sdk.records import Count

# torch warns of itself when Inductor is first loaded, transformers of what it has no use for.
pytestmark = pytest.mark.filterwarnings("default")
N = 1000


def chain(x: Tensor) -> Tensor:
    return (x * 2 + 1).sin()


def fused(fn: Callable[..., object], *args: Any) -> Count:
    with FusedMode() as mode:
        fn(*args)
    return mode.result()


def compiled(fn: Callable[..., Any], *args: Any) -> Count:
    run = torch.compile(fn)
    run(*args)
    return mfu.count(run, *args)


@pytest.mark.parametrize("counted", [fused, compiled])
def test_a_chain_moves_its_ends(counted: Callable[..., Count]) -> None:
    """Three operators on 4,000 bytes: eagerly each reads and writes them, fused they are read and written once."""
    x = torch.randn(N)
    assert mfu.count(chain, x).bytes_moved == 3 * 2 * 4 * N
    assert counted(chain, x).bytes_moved == 2 * 4 * N


def products(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(torch.relu(x @ w + 1) @ w)


@pytest.mark.parametrize("counted", [fused, compiled])
def test_products_move_their_operands(counted: Callable[..., Count]) -> None:
    """(32, 64) times (64, 64) twice; the chain after each reads its product and writes what comes next."""
    x, w = torch.randn(32, 64), torch.randn(64, 64)
    found = counted(products, x, w)
    tile, weight = 4 * 32 * 64, 4 * 64 * 64
    assert found.bytes_moved == 2 * (2 * tile + weight) + 2 * (tile + tile)
    assert found.model_flops == mfu.count(products, x, w).model_flops == 2 * 2 * 32 * 64 * 64
    assert (found.coverage, found.uncounted) == (1.0, ())


def halves(x: Tensor, w: Tensor) -> Tensor:
    gate, up = (x @ w).chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("counted", [fused, compiled])
def test_views_of_one_tensor_are_read_once(counted: Callable[..., Count]) -> None:
    """Both halves of a product are read, no more than the whole of it, and half of it is written."""
    x, w = torch.randn(32, 64), torch.randn(64, 64)
    tile, weight = 4 * 32 * 64, 4 * 64 * 64
    assert counted(halves, x, w).bytes_moved == (2 * tile + weight) + tile + tile // 2


def test_a_table_is_read_where_it_is_asked() -> None:
    """Of 1,000 rows the 8 that are looked up: 8 indices and 8 rows in, 8 rows out."""
    table, at = torch.randn(1000, 16), torch.arange(8)
    assert fused(lambda: F.embedding(at, table) * 2).bytes_moved == 8 * 8 + 2 * 8 * 16 * 4


def test_in_place_work_reads_and_writes() -> None:
    """An update of what came from outside reads the gradient and the parameter, and writes the parameter."""
    weight, grad = torch.randn(N), torch.randn(N)
    assert fused(lambda: weight.add_(grad * 0.1)).bytes_moved == 3 * 4 * N


def test_a_copy_does_not_read_what_it_overwrites() -> None:
    """What is copied is read, where it goes is written."""
    old, new = torch.randn(N), torch.randn(N)
    assert fused(lambda: old.copy_(new)).bytes_moved == 2 * 4 * N


def test_no_more_is_read_than_there_is() -> None:
    """Views that overlap are read once: all of it, and one number written."""
    x = torch.randn(N)
    assert fused(lambda: x[: N // 2].sum() + x[10:].sum() + x.sum()).bytes_moved == 4 * N + 4


def test_a_backward_reads_what_was_kept() -> None:
    """Of x·w under relu: a chain reads the gradient, and what the forward kept, and writes what two products read."""
    x, w = torch.randn(32, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    grad = torch.randn(32, 64)
    tile, weight = 4 * 32 * 64, 4 * 64 * 64
    found = fused(lambda: torch.relu(x @ w).backward(grad))
    # A product, and relu reads it; its derivative reads the gradient (relu's result is the chain's own) and writes it
    # for two products, whose results become gradients as they are.
    product = 2 * tile + weight
    assert found.bytes_moved == (product + tile) + (tile + tile) + 2 * product
    assert found.model_flops == 3 * 2 * 32 * 64 * 64


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_one_kernel(masked: bool) -> None:
    """Queries, keys, values and results move, and no scores; FLOPs are those of every other backend."""
    with torch.device("meta"):
        q, k, v = (torch.empty(2, heads, 64, 32, dtype=torch.bfloat16) for heads in (8, 2, 2))

        def run() -> None:
            mask = torch.ones(64, 64, dtype=torch.bool).tril() if masked else None
            F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=True)

        with one_kernel_attention():
            found = fused(run)
    moved, log_sums = 2 * (2 * 2 * 8 + 2 * 2 * 2) * 64 * 32, 4 * 2 * 8 * 64
    extra = found.bytes_moved - moved - log_sums
    # The state of the random numbers, and the mask itself.
    assert 0 <= extra <= 64 + (2 * 64 * 64 if masked else 0)
    assert found.attention_flops_full == 4 * 2 * 8 * 64 * 64 * 32
    assert found.attention_flops_exact == 4 * 2 * 8 * (64 * 65 // 2) * 32
    assert found.by_dtype.keys() == {"bfloat16"}
    assert F.scaled_dot_product_attention.__module__ != "mfu_sdk.counting.fused_mode"


# --- configurations and modules ----------------------------------------------------------------------------------

SHAPE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1024,
         "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
         "tie_word_embeddings": False}  # fmt: skip
WEIGHTS = 6 * (512 * 512 * 2 + 2 * 512 * 128 + 3 * 512 * 1024) + 512 * 1000


@pytest.fixture
def config(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE))
    return path


def test_a_configuration_decodes(config: Path) -> None:
    """Every weight once, and 6 layers' keys and values of 2 · 64 numbers for 4 × 300 tokens; by hand to a percent."""
    from mfu_sdk.counting.huggingface import count_config

    found = count_config(config, 4, 300, backward=False, decode=True, fused=True).count
    cache = 6 * 2 * 4 * 300 * 128
    assert found.model_flops == 2 * 4 * WEIGHTS + 6 * 4 * 4 * 300 * 512
    assert found.bytes_moved == pytest.approx(2 * (WEIGHTS + cache), rel=0.03)
    assert found.bytes_moved > 2 * (WEIGHTS + cache)


@pytest.mark.parametrize(("tokens", "experts"), [(1, 2), (3, 6), (100, 8)])
def test_experts_that_no_token_chose_are_not_read(tokens: int, experts: int) -> None:
    """Of 8 experts each token reads two, until all are read; the rest of a step by hand to a few percent."""
    pytest.importorskip("transformers")
    from mfu_sdk.counting.huggingface import count_config

    shape = {"model_type": "mixtral", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2,
             "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
             "vocab_size": 64, "sliding_window": None}  # fmt: skip
    found = count_config(shape, tokens, 1, backward=False, decode=True, fused=True).count
    weights = 2 * (512 * 512 * 2 + 2 * 512 * 128 + experts * 3 * 512 * 2048 + 8 * 512) + 512 * 64
    assert found.bytes_moved == pytest.approx(2 * weights, rel=0.002 * tokens + 0.01)
    assert found.bytes_moved > 2 * weights


def test_sliding_layers_keep_their_window() -> None:
    """Of six layers five hold 16 of 300 keys and values: 4 · 2 · 300 + 5 · 4 · 2 · 16 times 128 numbers."""
    pytest.importorskip("transformers")
    from mfu_sdk.counting.huggingface import count_config

    shape = {"model_type": "gemma3_text", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6,
             "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 16,
             "vocab_size": 1000}  # fmt: skip
    found = count_config(shape, 4, 300, backward=False, decode=True, fused=True).count
    assert found.attention_flops_exact == 4 * 4 * 512 * (300 + 5 * 16)
    # Every second layer of this model slides, beginning with the first, and each kind has a mask of its own.
    mixed = {**shape, "model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1}
    other = count_config(mixed, 4, 300, backward=False, decode=True, fused=True).count
    assert other.attention_flops_exact == 4 * 4 * 512 * 3 * (300 + 16)
    cache = 4 * 2 * (300 + 5 * 16) * 128
    weights = 6 * (512 * 512 * 2 + 2 * 512 * 128 + 3 * 512 * 1024) + 512 * 1000
    assert found.bytes_moved == pytest.approx(2 * (weights + cache), rel=0.05)


def test_fusing_changes_no_flops(config: Path) -> None:
    """The same FLOPs, by every split, from less than a third of the bytes."""
    from mfu_sdk.counting.huggingface import count_config

    eager, once = count_config(config, 2, 128).count, count_config(config, 2, 128, fused=True).count
    for name in ("model_flops", "forward_flops", "backward_flops", "attention_flops_exact", "by_module"):
        assert getattr(once, name) == getattr(eager, name)
    assert once.bytes_moved < eager.bytes_moved / 3
    assert all(op.calls > 0 for op in once.ops)


def test_expect_from_a_configuration(config: Path) -> None:
    """A file, its content and the object agree; decode is bound by memory, and reads what was counted above."""
    import transformers

    given = {"device": "H100 SXM", "batch": 4, "seq": 300, "phase": "decode"}
    found = [mfu.expect(model, **given) for model in (config, str(config), SHAPE, transformers.LlamaConfig(**SHAPE))]
    assert len({e.time_s for e in found}) == 1
    assert found[0].bound == "memory"
    with pytest.raises(mfu_errors.ConfigurationError, match="has no cache of a known length"):
        mfu.expect({"model_type": "bert"}, **given)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 64)
        self.head = nn.Linear(64, 100, bias=False)
        self.register_buffer("scale", torch.ones(64))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens) * self.scale)


def test_expect_of_a_module() -> None:
    """Counted on a copy without data: the module keeps its data, its gradients and its mode; twice the forward back."""
    model = Tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    e = mfu.expect(model, device="H100 SXM", batch=2, seq=10)
    assert e.mfu * e.time_s * 989.4e12 == pytest.approx(3 * 2 * 20 * 64 * 100, rel=1e-3)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(mfu_errors.ConfigurationError, match="Linear: does not run on tokens without data"):
        mfu.expect(nn.Linear(2, 2), device="H100 SXM", batch=2, seq=10)
    with pytest.raises(mfu_errors.ConfigurationError, match="the cache of a module cannot be known"):
        mfu.expect(model, device="H100 SXM", batch=2, seq=10, phase="decode")
