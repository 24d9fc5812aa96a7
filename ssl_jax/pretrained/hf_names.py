"""How transformers names what is here: config keys, and arrays.

Arrays there have our axes in the opposite order; layers are not stacked.
"""

from collections.abc import Sequence

from ssl_jax.models.frontends.waveform import STEM_LAYERS

MODELS = ("hubert", "wav2vec2")

# What encoders here always have, by its name there.
FIXED = {
  "adapter_attn_dim": None,
  "conv_dim": [channels for channels, _, _ in STEM_LAYERS],
  "conv_kernel": [kernel for _, kernel, _ in STEM_LAYERS],
  "conv_pos_batch_norm": False,
  "conv_stride": [stride for _, _, stride in STEM_LAYERS],
  "feat_extract_activation": "gelu",
  "feat_proj_layer_norm": True,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-5,
}

# Keys of the config, by their names there, and the defaults there: files may
# hold only what differs.
KEYS = {
  "feat_extract_norm": ("frontend.norm", "group"),
  "conv_bias": ("frontend.conv_bias", False),
  "num_hidden_layers": ("encoder.num_layers", 12),
  "hidden_size": ("encoder.hidden_size", 768),
  "intermediate_size": ("encoder.ffn_size", 3072),
  "num_attention_heads": ("encoder.num_heads", 12),
  "num_conv_pos_embeddings": ("encoder.position_kernel", 128),
  "num_conv_pos_embedding_groups": ("encoder.position_groups", 16),
  "do_stable_layer_norm": ("encoder.norm_first", False),
  "feat_proj_dropout": ("encoder.input_dropout", 0.0),
  "hidden_dropout": ("encoder.dropout", 0.1),
  "attention_dropout": ("encoder.attention_dropout", 0.1),
  "activation_dropout": ("encoder.activation_dropout", 0.1),
  "layerdrop": ("encoder.layerdrop", 0.1),
}

WEIGHTS = "model.safetensors"
MASK = "masked_spec_embed"  # Not there in models trained without masks.

_MODULES = {
  "attention_norm": "layer_norm",
  "down": "feed_forward.output_dense",
  "ffn_norm": "final_layer_norm",
  "key": "attention.k_proj",
  "output": "attention.out_proj",
  "query": "attention.q_proj",
  "up": "feed_forward.intermediate_dense",
  "value": "attention.v_proj",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_POSITIONS = "encoder.pos_conv_embed.conv"
_POSITION_LEAVES = {
  "bias": ("bias",),
  "direction": ("parametrizations.weight.original1", "weight_v"),
  "scale": ("parametrizations.weight.original0", "weight_g"),
}

# Of Wav2Vec2ForPreTraining's heads, as KEYS.
HEAD_KEYS = {
  "num_codevector_groups": ("wav2vec2.num_groups", 2),
  "num_codevectors_per_group": ("wav2vec2.num_codes", 320),
  "codevector_dim": ("wav2vec2.code_dim", 256),
  "proj_codevector_dim": ("wav2vec2.final_dim", 256),
  "num_negatives": ("wav2vec2.num_negatives", 100),
  "contrastive_logits_temperature": ("wav2vec2.logit_temperature", 0.1),
  "diversity_loss_weight": ("wav2vec2.diversity_weight", 0.1),
  "feat_quantizer_dropout": ("wav2vec2.feature_dropout", 0.0),
}
_HEADS = {
  "final_proj": "project_hid",
  "logits": "quantizer.weight_proj",
  "quantizer_proj": "project_q",
}
_VECTORS = "quantizer.codevectors"  # [1, G V, D / G] there.


def head_name(path: Sequence[str]) -> str:
  """What a leaf of a Wav2Vec2ForPreTraining's heads is called there."""
  *_, module, leaf = path
  return _VECTORS if leaf == "vectors" else f"{_HEADS[module]}.{_LEAVES[leaf]}"


def layer_name(module: str, leaf: str, layer: int) -> str:
  """What a leaf of an encoder's layer is called there."""
  return f"encoder.layers.{layer}.{_MODULES[module]}.{_LEAVES[leaf]}"


def names(modules: Sequence[str], name: str) -> tuple[str, ...]:
  """What a leaf outside the layers is called there, and was in older files."""
  if not modules:
    return (MASK,)
  if modules == ["encoder", "positions"]:
    return tuple(f"{_POSITIONS}.{leaf}" for leaf in _POSITION_LEAVES[name])
  if modules[0] == "stem":
    kind, index = modules[1][:4], modules[1][4:]
    part = "conv" if kind == "conv" else "layer_norm"
    module = f"feature_extractor.conv_layers.{index}.{part}"
  else:
    module = {
      "encoder": "encoder.layer_norm",
      "feature_norm": "feature_projection.layer_norm",
      "projection": "feature_projection.projection",
    }[modules[0]]
  return (f"{module}.{_LEAVES[name]}",)
