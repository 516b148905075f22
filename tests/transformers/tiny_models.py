"""Small random models of transformers, from configurations alone: nothing is downloaded."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from tiny_overrides import INPUTS, OVERRIDES
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

# Whole numbers of a configuration by what their names end in or are; the first that fits counts. Every number of heads
# times its head dim is the hidden size, so that a configuration may derive one of them itself.
_SIZES = {
    r"(image|video|audio|boi|eoi|boa|eoa)_token_(id|index)": 95,
    r"(pad|bos|eos|sep|cls|unk|mask)_(token_id|index)": 0,
    r".*vocab_size(_per_layer_input|_base)?|vocab_offset|.*_byte_group_vocab|bigram_vocab": 96,
    r"(linear_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_key_heads)|swa_num_key_value_heads": 2,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": 8,
    r"(\w+_)?(num_|n_)?(attention_|value_)?heads|n_head|attention_heads|linear_num_heads|num_query_groups": 4,
    r"qk_head_dim": 16,
    r"(?!attention_head_dim).*head_?dim|d_head|dim_head|d_kv|attention_head_size|kv_channels|mamba_d_head": 8,
    r".*(lora_|dt_|adapter_|hc_low|laurel_|time_step_)rank|hidden_size_per_layer_input|state_size|.*d_state": 8,
    r"mamba_d_ssm|mamba_intermediate": 64,
    r".*num_(hidden_|encoder_|decoder_)?layers|n_layers?|(en|de)coder_layers|depth|num_blocks|num_global_layers": 2,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_centroids": 4,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k": 2,
    r"n_group|topk_group|num_expert_group|n_groups|mamba_n_?groups|o_groups": 1,
    r"(num|n|moe_num)_shared_experts|first_k_dense_replace|num_dense_layers": 1,
    r"num_kv_shared_layers|num_nextn_predict_layers": 0,
    r"(moe_|shared_expert_|moe_shared_expert_|expert_ffn_|shared_experts?_|shared_)(intermediate|hidden)_size": 16,
    r".*(hidden|embedding|intermediate|feed_forward)_size(_mlp|_global)?|(word_)?emb(ed)?(_proj)?_dim(s|_size)?": 32,
    r"adapter_(in_dim|out_dim|input_size)": 32,
    r"d_model|n_embd|dim|dim_ff|dff|d_ff|d_inner|n_inner|.*ffn_dim|lru_width|ple_embed_dim|mlp_dim": 32,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length": 64,
    r"rotary_dim": 4,
    r"(mamba_)?chunk_size": 16,
}  # fmt: skip
# Those that mean the usual value where they are not set, and those of whole numbers that few configurations leave out.
_UNSET = {"head_dim": 8, "num_key_value_heads": 4}
_UNSET |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
MOST_PARAMETERS = 30_000_000
TOKENS = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def model_types() -> list[str]:
    return sorted({config.model_type: None for config in MODEL_FOR_CAUSAL_LM_MAPPING})


def tiny_model(model_type: str, **changes: Any) -> torch.nn.Module:
    """A model with a layer of each kind, in evaluation mode, that runs on a few tokens."""
    config_class = next(c for c in MODEL_FOR_CAUSAL_LM_MAPPING if c.model_type == model_type)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    if "labels" not in inspect.signature(model_class.forward).parameters:
        raise ValueError("its forward takes no labels")
    config = tiny_config(config_class, {**OVERRIDES.get(model_type, {}), **changes})
    if not isinstance(config, model_class.config_class):
        config = next((c for c in _parts(config).values() if isinstance(c, model_class.config_class)), config)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"the smallest of these configurations has {parameters / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    with torch.no_grad():
        model(**model_inputs(model_type))
    return model


def model_inputs(model_type: str) -> dict[str, torch.Tensor]:
    return {"input_ids": TOKENS, "labels": TOKENS, **INPUTS.get(model_type, {})}


def tiny_config(config_class: type, overrides: dict[str, Any] | None = None) -> PretrainedConfig:
    """A configuration of small sizes; that of a part is overridden by ``{part: {name: value}}``."""
    overrides = dict(overrides or {})
    default = config_class(**{name: overrides[name] for name in overrides.pop("first", ())})
    parts = _parts(default)
    known = _layers(default)
    for name, value in _values(default):
        size = _UNSET.get(name) if value is None else _size(name) if type(value) is int else None
        if size is not None and name not in parts:
            known.setdefault(name, size)
        if name == "output_router_logits":  # and with them the auxiliary loss
            known[name] = True
        if name == "eos_token_id" and isinstance(value, list):
            known[name] = 0
    if _value(default, "num_key_value_heads") == _value(default, "num_attention_heads"):
        known.update({name: 4 for name in ("num_key_value_heads",) if name in known})
    for name, part in parts.items():
        known[name] = tiny_config(type(part), overrides.pop(name, None))
    return config_class(**{**known, **overrides})


def _parts(config: PretrainedConfig) -> dict[str, PretrainedConfig]:
    return {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}


def _values(config: PretrainedConfig) -> list[tuple[str, Any]]:
    """What a configuration may be given: no private names, and no properties that it derives itself."""
    names = vars(config).keys() - {"id2label", "label2id"}
    settable = (n for n in sorted(names) if not n.startswith("_") and not _is_derived(config, n))
    return [(name, _value(config, name)) for name in settable]


def _value(config: PretrainedConfig, name: str) -> Any:
    # Not by getattr, which refuses a size that is another in each layer.
    return vars(config).get(config.attribute_map.get(name, name))


def _is_derived(config: PretrainedConfig, name: str) -> bool:
    return isinstance(getattr(type(config), name, None), property)


def _size(name: str) -> int | None:
    return next((size for pattern, size in _SIZES.items() if re.fullmatch(pattern, name)), None)


def _layers(default: PretrainedConfig) -> dict[str, Any]:
    """Lists with an entry for each layer, cut to one layer of each kind, and the number of those."""
    name = next((n for n in ("num_hidden_layers", "num_layers") if not _is_derived(default, n)), "")
    count = _value(default, name)
    if type(count) is not int:
        return {}
    lists = {n: v for n, v in _values(default) if isinstance(v, list | tuple) and len(v) == count and count > 1}
    first_of_kind: dict[str, int] = {}
    for layer, kinds in enumerate(zip(*lists.values(), strict=True)):
        first_of_kind.setdefault(str(kinds), layer)
    chosen = sorted(first_of_kind.values())
    if len(chosen) < 2:
        chosen = [0, 1]
    cut: dict[str, Any] = {name: [_small(values[layer]) for layer in chosen] for name, values in lists.items()}
    return cut | {default.attribute_map.get(name, name): len(chosen)}


def _small(value: Any) -> Any:
    return min(value, 32) if type(value) is int else value
