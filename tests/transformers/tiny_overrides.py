"""What the general sizes of `tiny_models` don't fit: by the type of the model, and of a part of it."""

from __future__ import annotations

from typing import Any

import torch

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA_AND_ATTENTION = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
_SHARED_ATTENTION = {
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 4,
    "attention_hidden_size": 64, "attention_head_dim": 16,
}  # fmt: skip
_INDEXER = {
    "indexer_budget": 16, "indexer_compress_ratio": 2,
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8,
}  # fmt: skip
_SLIDING = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8,
    "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
}  # fmt: skip
# Their seeds are drawn anew in each process.
_REFORMER_DROPOUTS = ("hidden_dropout_prob", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob")

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "blt": {"use_cache": False},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note": {"text_config": _SLIDING},
    "dots3_note_text": _SLIDING,
    "flint": {"mlp_only_layers": [0]},
    "git": {"vision_config": {"image_size": 8, "patch_size": 4}},
    "granitemoehybrid": _MAMBA_AND_ATTENTION,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "hash_seed": 0, **dict.fromkeys(_REFORMER_DROPOUTS, 0.0)},
    "xlstm": {"hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED_ATTENTION,
    "zamba2": _SHARED_ATTENTION,
    "zaya": {"num_experts_per_tok": 1},
}

# What a model takes beside input_ids and labels, or as labels.
_CODEBOOKS = {"labels": torch.full((2, 9, 1), 3)}
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "git": {"pixel_values": torch.ones(2, 3, 8, 8)},
    "musicgen": _CODEBOOKS,
    "musicgen_melody": _CODEBOOKS,
}
