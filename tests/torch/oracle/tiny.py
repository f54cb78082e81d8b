"""Hugging Face architectures small enough to run many: a table of what differs from one common shape."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import nn

BATCH, TOKENS = 2, 16

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 67,
    "max_position_embeddings": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_ctx": 64,
    "rotary_dim": 4,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "head_dim": 4,
}  # fmt: skip
_TWO: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
}  # fmt: skip
_SOUND: dict[str, Any] = {
    "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (3, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
}  # fmt: skip
_TOWERS: dict[str, Any] = {
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "vocab_size": 67, "max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1,
                    "pad_token_id": 0, "projection_size": 32},
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "image_size": 16, "patch_size": 4},
}  # fmt: skip
_DUAL: dict[str, Any] = {"state_size": 8, "n_groups": 2, "num_heads": 8, "chunk_size": 8, "expand": 2, "head_dim": 8}
_SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 2,
    "patch_size": 2,
    "image_size": 16,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Decoders.
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 6},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen3ForCausalLM": {},
    "GemmaForCausalLM": {},
    "Gemma2ForCausalLM": {"sliding_window": 6},
    "Gemma3ForCausalLM": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {"sliding_window": 6},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {"new_decoder_architecture": False, "alibi": False},
    "StableLmForCausalLM": {},
    "Starcoder2ForCausalLM": {"sliding_window": 6},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "CohereForCausalLM": {},
    "Cohere2ForCausalLM": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "GlmForCausalLM": {},
    "MptForCausalLM": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "NemotronForCausalLM": {},
    "GraniteForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "GPTBigCodeForCausalLM": {},
    # Mixtures of experts.
    "MixtralForCausalLM": {"sliding_window": 6},
    "Qwen2MoeForCausalLM": {},
    "Qwen3MoeForCausalLM": {},
    "DeepseekV2ForCausalLM": {**_LATENT, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": _LATENT,
    "OlmoeForCausalLM": {},
    "GptOssForCausalLM": {"sliding_window": 6},
    "Llama4ForCausalLM": {"attention_chunk_size": 6, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 40,
                          "no_rope_layers": [1, 0]},
    "GraniteMoeForCausalLM": {},
    "PhimoeForCausalLM": {},
    "Glm4MoeForCausalLM": {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "MiniMaxM2ForCausalLM": {"rotary_dim": 4},
    "Olmo3ForCausalLM": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    # Encoders.
    "BertForMaskedLM": {},
    "RobertaForMaskedLM": {},
    "DistilBertForMaskedLM": {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 2},
    "AlbertForMaskedLM": {"embedding_size": 16, "num_hidden_layers": 3},
    "ElectraForMaskedLM": {"embedding_size": 16},
    "DebertaV2ForMaskedLM": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "ModernBertForMaskedLM": {"local_attention": 6, "global_attn_every_n_layers": 2},
    # Encoder and decoder.
    "T5ForConditionalGeneration": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                                   "decoder_start_token_id": 0},
    "BartForConditionalGeneration": _TWO,
    "MarianMTModel": _TWO,
    "MBartForConditionalGeneration": _TWO,
    "WhisperForConditionalGeneration": {**_TWO, "max_source_positions": 12, "max_target_positions": 32,
                                        "num_mel_bins": 10},
    # Images, text with images, sound.
    "ViTForImageClassification": {},
    "Dinov2ForImageClassification": {},
    "SwinForImageClassification": _SWIN,
    "ConvNextForImageClassification": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "CLIPModel": _TOWERS,
    "SiglipModel": _TOWERS,
    "Wav2Vec2ForCTC": _SOUND,
    "HubertForCTC": _SOUND,
    # State spaces, recurrences and hybrids.
    "MambaForCausalLM": {"state_size": 4},
    "FalconMambaForCausalLM": {"state_size": 4},
    "Mamba2ForCausalLM": _DUAL,
    "JambaForCausalLM": {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                         "expert_layer_offset": 1},
    "BambaForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8,
                         "attn_layer_indices": [1]},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
                            "mamba_chunk_size": 8},
    "Zamba2ForCausalLM": {"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 8,
                          "num_mem_blocks": 1, "layers_block_type": ["mamba", "hybrid"], "num_key_value_heads": 4,
                          "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 8},
    "NemotronHForCausalLM": {"layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8,
                             "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8,
                             "moe_shared_expert_intermediate_size": 24, "n_group": 1, "topk_group": 1},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
                                    "mamba_d_state": 8, "mamba_chunk_size": 8, "shared_intermediate_size": 24},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "RecurrentGemmaForCausalLM": {"lru_width": 32, "attention_window_size": 6, "num_hidden_layers": 3},
    "RwkvForCausalLM": {"attention_hidden_size": 32, "context_length": 64},
    "xLSTMForCausalLM": {"num_heads": 4, "num_blocks": 2, "chunk_size": 8, "autocast_kernel_dtype": "float32"},
}  # fmt: skip


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_blocks")
_LAYER_BY_LAYER = ("layer_types", "layers_block_type", "no_rope_layers")


def config(name: str, times: int = 1) -> Any:
    """The configuration of an architecture at the common shape, as far as it has such a setting.

    `times` repeats its layers: a pattern of kinds comes so many times over.
    """
    kind = getattr(transformers, name).config_class
    names = getattr(kind, "attribute_map", {})
    own = ARCHITECTURES[name]
    settings = {*vars(kind()), *names} - {key for key, value in names.items() if value in own}
    fields = {key: value for key, value in _COMMON.items() if key in settings} | own
    for key in {*_DEPTHS, *_LAYER_BY_LAYER} & set(fields):
        fields[key] = fields[key] * times
    if "attn_layer_indices" in fields:
        fields["attn_layer_indices"] = [2 * i + 1 for i in range(times)]
    return kind(**fields)


def model(name: str, times: int = 1) -> nn.Module:
    """An architecture with random weights, not in training mode: some then drop layers at random."""
    torch.manual_seed(0)
    return getattr(transformers, name)(config(name, times)).eval()


def inputs(model: Any) -> dict[str, Any]:
    """Real data for a model: random tokens without padding, noise for images and sound."""
    torch.manual_seed(1)
    accepted = inspect.signature(model.forward).parameters
    tokens = torch.randint(3, 60, (BATCH, TOKENS))
    given: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    match model.main_input_name:
        case "input_ids":
            given["input_ids"] = tokens
        case "pixel_values":
            given["pixel_values"] = torch.randn(BATCH, 3, 16, 16)
        case "input_features":
            given["input_features"] = torch.randn(BATCH, 10, 24)
        case "input_values":
            given["input_values"] = torch.randn(BATCH, 200)
    if "text_config" in model.config.sub_configs and "pixel_values" in accepted:
        given["pixel_values"] = torch.randn(BATCH, 3, 16, 16)
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens
    return given


def outputs(result: Any) -> torch.Tensor:
    """The sum of all results that gradients can come from: a loss that every part of the model takes part in."""
    return sum(value.sum() for value in result.values() if isinstance(value, torch.Tensor) and value.requires_grad)
