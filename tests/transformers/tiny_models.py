"""Small random models of transformers, from configurations alone: nothing is downloaded."""

from __future__ import annotations

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

# The sizes that configurations name, under all the names they use.
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 32, "ffn_dim": 32, "d_ff": 32, "n_inner": 32, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32,
    "ffn_hidden_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "feed_forward_size": 32,
    "intermediate_size_mlp": 32, "moe_shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_num_experts": 4, "moe_k": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "state_size": 8, "mamba_d_state": 8,
    "lru_width": 32, "time_step_rank": 4, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8,
}  # fmt: skip
LAYERS = 2
MOST_PARAMETERS = 30_000_000
TOKENS = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def model_types() -> list[str]:
    return sorted({config.model_type: None for config in MODEL_FOR_CAUSAL_LM_MAPPING})


# Groups of sizes that some configuration derives itself or ties to another: left out one after the other.
_GROUPS = (
    (),
    ("head_dim",),
    ("layer_types", "layers_block_type", "mlp_layer_types"),
    ("head_dim", "layer_types", "layers_block_type", "mlp_layer_types"),
    ("head_dim", "layer_types", "layers_block_type", "mlp_layer_types", "num_hidden_layers", "num_layers"),
)


def tiny_config(model_type: str, left_out: tuple[str, ...] = ()):
    config_class = next(c for c in MODEL_FOR_CAUSAL_LM_MAPPING if c.model_type == model_type)
    default = config_class()
    known = _known_sizes(default, left_out)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(getattr(default, name, None), (int, list)):
            known[name] = 0
    if getattr(default, "text_config", None) not in (None, default):
        known = {"text_config": _known_sizes(default.text_config, left_out)}
    config = config_class(**known)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def _known_sizes(default, left_out: tuple[str, ...]) -> dict[str, object]:
    known: dict[str, object] = {}
    for name in SIZES.keys() - set(left_out):
        try:
            value = getattr(default, name, None)
        except Exception:  # a size of each layer, which the configuration won't give as one
            continue
        if isinstance(value, int):
            known[name] = SIZES[name]
    for name in {"layer_types", "layers_block_type", "mlp_layer_types"} - set(left_out):
        kinds = getattr(default, name, None)
        if isinstance(kinds, list) and len(kinds) >= LAYERS:
            known[name] = [kinds[0], kinds[-1]]
    return known


def tiny_model(model_type: str) -> torch.nn.Module:
    """A model with two layers or so, in evaluation mode, that runs on a few tokens."""
    for left_out in _GROUPS:
        try:
            return _built(tiny_config(model_type, left_out))
        except Exception as error:  # noqa: PERF203
            if isinstance(error, TimeoutError) or left_out == _GROUPS[-1]:
                raise
    raise AssertionError("no group of sizes")


def _built(config) -> torch.nn.Module:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"the smallest of these configurations has {parameters / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    with torch.no_grad():
        model(input_ids=TOKENS)
    return model
