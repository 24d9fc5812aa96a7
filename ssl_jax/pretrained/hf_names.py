"""Names in transformers of what is here: config keys, and arrays.

Arrays there have our axes in the opposite order; layers are not stacked.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.models import encoders, frontends

MODELS = ("hubert", "wav2vec2")
WEIGHTS = "model.safetensors"
MASK = "masked_spec_embed"  # Absent from models trained without masks.

# Parts of the backbone that are the same for all frontends and blocks.
_FIXED = {
  "adapter_attn_dim": None,
  "conv_pos_batch_norm": False,
  "feat_proj_layer_norm": True,
  "layer_norm_eps": 1e-5,
}
_KEYS = {
  "num_hidden_layers": ("encoder.num_layers", 12),
  "hidden_size": ("encoder.hidden_size", 768),
  "num_conv_pos_embeddings": ("encoder.position_kernel", 128),
  "num_conv_pos_embedding_groups": ("encoder.position_groups", 16),
  "do_stable_layer_norm": ("encoder.norm_first", False),
  "feat_proj_dropout": ("encoder.input_dropout", 0.0),
  "hidden_dropout": ("encoder.dropout", 0.1),
  "layerdrop": ("encoder.layerdrop", 0.1),
}
_MODULES = {
  "encoder": "encoder.layer_norm",
  "feature_norm": "feature_projection.layer_norm",
  "projection": "feature_projection.projection",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_POSITIONS = "encoder.pos_conv_embed.conv"
_POSITION_LEAVES = {
  "bias": ("bias",),
  "direction": ("parametrizations.weight.original1", "weight_v"),
  "scale": ("parametrizations.weight.original0", "weight_g"),
}

# Wav2Vec2ForPreTraining's heads, as `Layout.keys`.
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
  """Returns the name of a leaf of a Wav2Vec2ForPreTraining's heads."""
  *_, module, leaf = path
  return _VECTORS if leaf == "vectors" else f"{_HEADS[module]}.{_LEAVES[leaf]}"


class Layout:
  """Names of a backbone's config keys and arrays.

  Attributes:
    keys: {key there: (key of the config here, default there)}: files there may
      hold only what differs.
    fixed: {key there: the value that it always has here}.
  """

  def __init__(self, config: ConfigDict):
    """Makes it for the frontend and block of a config.

    Raises:
      UserError: transformers has no such frontend or block.
    """
    frontend = frontends.make(config.frontend).hf
    block = encoders.make_block(config.encoder).hf
    for kind, name, names in (
      ("frontend", config.frontend.name, frontend),
      ("encoder", config.encoder.name, block),
    ):
      if names is None:
        raise UserError(
          f"transformers has no config.{kind}.name={name}: export the encoder "
          "with --format=stablehlo, or extract its features"
        )
    if config.encoder.half_rate:
      raise UserError(
        f"transformers has no config.encoder.half_rate="
        f"{config.encoder.half_rate}: export the encoder with "
        "--format=stablehlo, or extract its features"
      )
    self._stem, self._layer = frontend.modules, block.modules
    self.fixed: dict[str, Any] = _FIXED | frontend.fixed | block.fixed
    self.keys = dict(_KEYS)
    for section, names in (("frontend", frontend), ("encoder", block)):
      for key, (knob, default) in names.keys.items():
        self.keys[key] = f"{section}.{knob}", default

  def layer_name(self, module: str, leaf: str, layer: int) -> str:
    """Returns the name of a leaf of an encoder's layer."""
    return f"encoder.layers.{layer}.{self._layer[module]}.{_LEAVES[leaf]}"

  def names(self, modules: Sequence[str], leaf: str) -> tuple[str, ...]:
    """Returns the names of a leaf outside the layers: now, in older files."""
    if not modules:
      return (MASK,)
    if modules == ["encoder", "positions"]:
      return tuple(f"{_POSITIONS}.{name}" for name in _POSITION_LEAVES[leaf])
    in_stem = modules[0] == "stem"
    module = self._stem[modules[1]] if in_stem else _MODULES[modules[0]]
    return (f"{module}.{_LEAVES[leaf]}",)
