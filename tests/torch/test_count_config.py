"""Configurations counted without data: closed forms derived by hand, up to the sizes that nobody can run here."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")

import mfu_sdk as mfu
from mfu_sdk.counting.huggingface import ConfigCount, RoutedExperts, count_config, describe
from mfu_sdk.counting.layers import count_layers_once
from mfu_sdk.counting.routing import EvenRouting
from mfu_sdk.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("default")


def counted(tmp_path: Path, seq: int | None, backward: bool = True, **fields: Any) -> ConfigCount:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    return count_config(path, 2, seq, backward=backward)


def dense(width: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Weights of grouped-query attention."""
    return width * head_dim * (2 * heads + 2 * kv_heads)


def test_llama_of_405_billion(tmp_path: Path) -> None:
    """126 layers by hand, in the seconds that a person waits."""
    shape = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384,
             "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
             "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    counted(tmp_path, 8, **(shape | {"num_hidden_layers": 1}))
    start = time.process_time()
    found = counted(tmp_path, 8192, **shape)
    assert time.process_time() - start < 5
    weights = 126 * (dense(16384, 128, 8, 128) + 3 * 16384 * 53248) + 16384 * 128256
    pairs = 126 * 8192 * 8193 // 2
    assert found.count.model_flops == 3 * 2 * (2 * weights * 8192 + 4 * 16384 * pairs)
    assert found.count.attention_flops_exact == 3 * 2 * 4 * 16384 * pairs
    assert found.count.attention_flops_full == 3 * 2 * 4 * 16384 * 126 * 8192**2
    assert found.count.by_module["LlamaForCausalLM.model.layers.125.mlp.up_proj"] == 6 * 2 * 8192 * 16384 * 53248
    assert found.parameters == 405_853_388_800


def test_deepseek_v3(tmp_path: Path) -> None:
    """671 billion parameters: three dense layers, 58 of 256 experts and a shared one, latent attention throughout."""
    found = counted(tmp_path, 4096, model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"])
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * (512 + 64) + 512 * 128 * (128 + 128) + 128 * 128 * 7168
    sparse = 7168 * 256 + (8 + 1) * 3 * 7168 * 2048
    weights = 61 * attention + 3 * 3 * 7168 * 18432 + 58 * sparse + 7168 * 129280
    pairs = 61 * 128 * 4096 * 4097 // 2
    assert found.count.model_flops == 3 * 2 * (2 * weights * 4096 + 2 * (192 + 128) * pairs)
    # 671,026,419,200 are published; transformers keeps 58 · 256 of them, the router's corrections, as buffers.
    assert (found.parameters, found.count.uncounted) == (671_026_419_200 - 58 * 256, ())


def test_a_published_mixture(tmp_path: Path) -> None:
    """Mixtral 8x22B: every token takes two of the eight experts, wherever the router sends it."""
    found = counted(tmp_path, 4096, model_type="mixtral", hidden_size=6144, intermediate_size=16384,
                    num_hidden_layers=56, num_attention_heads=48, num_key_value_heads=8, num_local_experts=8,
                    num_experts_per_tok=2, vocab_size=32768, sliding_window=None)  # fmt: skip
    weights = 56 * (dense(6144, 48, 8, 128) + 6144 * 8 + 2 * 3 * 6144 * 16384) + 6144 * 32768
    assert found.count.model_flops - found.count.attention_flops_exact == 3 * 2 * 2 * weights * 4096
    assert found.count.uncounted == ()


def test_sliding_windows(tmp_path: Path) -> None:
    """Gemma 3 27B beyond its window: 52 layers see 1,024 keys at most, ten see all before them."""
    found = counted(tmp_path, 4096, model_type="gemma3_text", hidden_size=5376, intermediate_size=21504,
                    num_hidden_layers=62, num_attention_heads=32, num_key_value_heads=16, head_dim=128,
                    sliding_window=1024)  # fmt: skip
    near = 1024 * 1025 // 2 + (4096 - 1024) * 1024
    pairs = 52 * near + 10 * 4096 * 4097 // 2
    assert found.count.attention_flops_exact == 3 * 2 * 4 * 32 * 128 * pairs
    assert found.count.attention_flops_full == 3 * 2 * 4 * 32 * 128 * 62 * 4096**2


def test_chunks_and_chosen_experts(tmp_path: Path) -> None:
    """Llama 4 beyond its chunk: three layers in four attend within 1,024 tokens; experts run on who chose them."""
    found = counted(tmp_path, 4096, model_type="llama4_text", architectures=["Llama4ForCausalLM"], hidden_size=5120,
                    intermediate_size=8192, intermediate_size_mlp=16384, num_hidden_layers=48,
                    num_attention_heads=40, num_key_value_heads=8, head_dim=128, num_local_experts=128,
                    num_experts_per_tok=1, interleave_moe_layer_step=2, vocab_size=202048,
                    attention_chunk_size=1024)  # fmt: skip
    pairs = 36 * 4 * 1024 * 1025 // 2 + 12 * 4096 * 4097 // 2
    assert found.count.attention_flops_exact == 3 * 2 * 4 * 40 * 128 * pairs
    sparse = 5120 * 128 + 2 * 3 * 5120 * 8192
    weights = 48 * dense(5120, 40, 8, 128) + 24 * (3 * 5120 * 16384 + sparse) + 5120 * 202048
    assert found.count.model_flops - found.count.attention_flops_exact == 3 * 2 * 2 * weights * 4096


def test_attention_sinks(tmp_path: Path) -> None:
    """gpt-oss-120b: every second layer sees 128 keys; the sink beside the scores is no pair."""
    found = counted(tmp_path, 1024, model_type="gpt_oss", hidden_size=2880, intermediate_size=2880,
                    num_hidden_layers=36, num_local_experts=128, num_experts_per_tok=4, num_attention_heads=64,
                    num_key_value_heads=8, head_dim=64, sliding_window=128, vocab_size=201088)  # fmt: skip
    pairs = 18 * (128 * 129 // 2 + (1024 - 128) * 128) + 18 * 1024 * 1025 // 2
    assert found.count.attention_flops_exact == 3 * 2 * 4 * 64 * 64 * pairs
    assert found.count.attention_flops_full == 3 * 2 * 4 * 64 * 64 * 36 * 1024**2


def test_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    """A T5 of one layer each: the decoder also attends to the encoder, and only its own attention is causal."""
    found = counted(tmp_path, 8, backward=False, model_type="t5", d_model=32, d_kv=8, num_heads=4, d_ff=48,
                    num_layers=1, num_decoder_layers=1, vocab_size=60, decoder_start_token_id=0)  # fmt: skip
    tokens, attention, mlp = 2 * 8, 4 * 32 * 32, 2 * 32 * 48
    pairs = 2 * (8 * 8 + 8 * 8 + 8 * 9 // 2)
    assert found.count.model_flops == 2 * tokens * (3 * attention + 2 * mlp + 32 * 60) + 4 * 32 * pairs
    assert found.inputs == {"input_ids": (2, 8), "decoder_input_ids": (2, 8)}


def test_images_need_no_length(tmp_path: Path) -> None:
    """A vision transformer sees 4 × 4 patches and the class token, by its configuration's own image size."""
    found = counted(tmp_path, None, backward=False, model_type="vit", hidden_size=32, intermediate_size=48,
                    num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4,
                    id2label={str(i): str(i) for i in range(5)})  # fmt: skip
    patches = 2 * 16 * 32 * (3 * 4 * 4)
    layers = 3 * (2 * 17 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 32 * 17 * 17)
    assert found.count.model_flops == 2 * (patches + layers + 2 * 32 * 5)
    assert (found.seq, found.inputs) == (None, {"pixel_values": (2, 3, 16, 16)})
    assert "FLOP a sample" in describe(found)


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}


def test_a_publishers_own_type(tmp_path: Path) -> None:
    """A model_type that transformers lacks counts by the class that the configuration names."""
    own = counted(tmp_path, 8, model_type="house_llama", architectures=["LlamaForCausalLM"], **SMALL)
    assert own == counted(tmp_path, 8, model_type="llama", **SMALL)


@pytest.mark.parametrize(
    ("fields", "seq", "words"),
    [
        ({"model_type": "llama", **SMALL}, None, "takes a sequence; give its length with --seq"),
        ({"model_type": "resnet"}, None, "takes pixel_values, whose size no image_size gives; add one"),
        ({"model_type": "switch_transformers", "d_model": 32, "num_layers": 2, "num_sparse_encoder_layers": 2}, 8,
         "does not run without data"),
        ({"model_type": "house_llama", **SMALL}, 8, "no model can be built from it"),
    ],
    ids=["no length", "no size", "branches on values", "unknown"],
)  # fmt: skip
def test_what_cannot_be_counted(fields: dict[str, Any], seq: int | None, words: str, tmp_path: Path) -> None:
    """The file, what is missing and what to do, in one line."""
    with pytest.raises(ConfigurationError, match=words) as raised:
        counted(tmp_path, seq, **fields)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert len(str(raised.value).splitlines()) == 1


class Alike(nn.Module):
    """Six layers built alike, of which every second one gets another mask, or looks its window up by its number."""

    class Layer(nn.Module):
        def __init__(self, number: int, config: Any) -> None:
            super().__init__()
            self.layer_idx, self.config, self.qkv = number, config, nn.Linear(16, 48)

        def forward(self, x: torch.Tensor, masks: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
            mask = masks[self.config.windows[self.layer_idx]] if mask is None else mask
            return x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1), attn_mask=mask)

    def __init__(self, by_number: bool) -> None:
        super().__init__()
        self.by_number = by_number
        self.config = SimpleNamespace(sub_configs={}, **({"windows": [0, 1, 0, 1, 0, 1]} if by_number else {}))
        self.layers = nn.ModuleList(Alike.Layer(i, self.config) for i in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[1], device=x.device)
        masks = [(at <= at[:, None]) & (at > at[:, None] - window) for window in (3, 9)]
        for i, layer in enumerate(self.layers):
            x = layer(x, masks, None if self.by_number else masks[i % 2])
        return x


@pytest.mark.parametrize("by_number", [False, True], ids=["handed", "looked up"])
def test_layers_are_alike_only_if_called_alike(by_number: bool) -> None:
    """Equal layers with unequal masks are two kinds: three see 3 keys, three see 9, of 20 queries."""
    with torch.device("meta"):
        model, x = Alike(by_number), torch.empty(2, 20, 16)
    found = count_layers_once(model, lambda: model(x).sum().backward())
    pairs = 3 * (3 * 4 // 2 + 17 * 3) + 3 * (9 * 10 // 2 + 11 * 9)
    assert found.attention_flops_exact == 3 * 2 * 4 * 16 * pairs
    assert found.attention_flops_full == 3 * 2 * 4 * 16 * 6 * 20**2
    # The first layer's input wants no gradient.
    assert found.model_flops - found.attention_flops_exact == (6 * 3 - 1) * 2 * 2 * 20 * 16 * 48
    assert not any("forward" in vars(layer) for layer in model.layers)


def test_layers_are_as_they_were_after_an_error() -> None:
    """What the step raises passes, and the layers' forward is theirs again."""
    with torch.device("meta"):
        model = Alike(by_number=False)
    with pytest.raises(AttributeError, match="shape"):
        count_layers_once(model, lambda: model(None))
    assert not any("forward" in vars(layer) for layer in model.layers)


WEIGHTS, ROWS, COLUMNS, INNER = (3, 16, 32), (12, 16), (32, 40), (16, 8)


@pytest.mark.parametrize(
    ("left", "right", "ends", "flops"),
    [
        (ROWS, WEIGHTS, None, 2 * 12 * 16 * 32),
        (ROWS, WEIGHTS, [2, 4, 8], 2 * 8 * 16 * 32),
        (WEIGHTS, COLUMNS, None, 2 * 40 * 16 * 32),
        (INNER, (8, 32), None, 2 * 8 * 16 * 32),
    ],
    ids=["rows", "values stay", "columns", "inner"],
)
def test_even_routing(left: tuple[int, ...], right: tuple[int, ...], ends: list[int] | None, flops: int) -> None:
    """Offsets without values: all that is grouped is in some group; offsets with values stay as they are."""
    a, b = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in (left, right))
    # The inner dimension of two matrices is laid out so that both read along it.
    a = a.mT.contiguous().mT if len(left) == len(right) else a
    device = "meta" if ends is None else "cpu"
    offsets = torch.tensor(ends or [0, 0, 0], dtype=torch.int32, device=device)
    with EvenRouting():
        count = mfu.count(lambda: F.grouped_mm(a, b, offs=offsets))
    assert (count.model_flops, count.uncounted) == (flops, ())


MIXTURE = {
    "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 100,
}  # fmt: skip


def test_the_experts_of_a_mixture() -> None:
    """Two layers of eight experts of three products of 64 × 128, of which a token takes two."""
    found = count_config(dict(MIXTURE), 1, 16)
    assert found.experts == RoutedExperts(params=2 * 8 * 3 * 64 * 128, layers=2, number=8, top_k=2)
    dense = {**MIXTURE, "model_type": "mistral"}
    assert count_config(dense, 1, 16).experts is None


def test_shared_experts_are_expected_to_be_read_less() -> None:
    """Decoding 64 tokens, each GPU of eight reads an eighth of the experts: their bytes, and none of the FLOPs, go."""
    options = {"device": "H100 SXM", "batch": 64, "seq": 128, "phase": "decode", "dp": 8}
    whole, shared = (mfu.expect(dict(MIXTURE), ep=ep, **options) for ep in (1, 8))
    times = [sum(op.seconds for op in each.ops if op.op == "aten::_grouped_mm") for each in (whole, shared)]
    weights = 2 * 8 * 3 * 64 * 128 * 2
    # Rows of two choices a token come in and go out of either product: 64 and 256, then 128 and 64 wide.
    rows = 2 * 2 * 64 * 2 * (64 + 256 + 128 + 64)
    assert times[0] / times[1] == pytest.approx((weights + rows) / (weights / 8 + rows), rel=0.01)
    assert any(op.op == "all_to_all between 8 GPUs" for op in shared.ops)
    assert any("8 experts, 1 on a GPU" in said for said in shared.assumptions)
    with pytest.raises(ConfigurationError, match="ep=16: must divide the 8 experts"):
        mfu.expect(dict(MIXTURE), ep=16, **{**options, "dp": 16})
