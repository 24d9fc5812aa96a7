"""transformers' HuBERT as an independent reference, with weights moved here."""

import numpy as np
import torch
import transformers

from ssl_jax import config as config_lib


def tiny_pair(norm: str, num_layers: int = 3):
  """A random HubertModel, and our (config, parameters) of the same weights."""
  torch.manual_seed(0)
  hf = transformers.HubertModel(
    transformers.HubertConfig(
      hidden_size=48,
      num_hidden_layers=num_layers,
      num_attention_heads=4,
      intermediate_size=96,
      feat_extract_norm=norm,
      conv_bias=False,
      num_conv_pos_embeddings=128,
      num_conv_pos_embedding_groups=16,
      attn_implementation="eager",
    )
  ).eval()
  with torch.no_grad():  # Fresh norms are the identity: hide no mistake in it.
    for name, parameter in hf.named_parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
      if "original0" in name:
        parameter.mul_(1.3)
  config = config_lib.base()
  config.frontend.norm = norm
  config.encoder.num_layers = num_layers
  config.encoder.hidden_size = 48
  config.encoder.num_heads = 4
  config.encoder.ffn_size = 96
  return hf, config, backbone_params(hf)


def backbone_params(hf) -> dict:
  """Our `Backbone` parameters with the weights of a HubertModel."""
  weights = {name: p.detach().numpy() for name, p in hf.named_parameters()}

  def dense(name):
    return {
      "kernel": weights[f"{name}.weight"].T,
      "bias": weights[f"{name}.bias"],
    }

  def norm(name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

  stem = {}
  for i in range(7):
    name = f"feature_extractor.conv_layers.{i}"
    stem[f"conv{i}"] = {
      "kernel": weights[f"{name}.conv.weight"].transpose(2, 1, 0)
    }
    if f"{name}.layer_norm.weight" in weights:
      stem[f"norm{i}"] = norm(f"{name}.layer_norm")

  def layer(i):
    name = f"encoder.layers.{i}"
    return {
      "query": dense(f"{name}.attention.q_proj"),
      "key": dense(f"{name}.attention.k_proj"),
      "value": dense(f"{name}.attention.v_proj"),
      "output": dense(f"{name}.attention.out_proj"),
      "attention_norm": norm(f"{name}.layer_norm"),
      "up": dense(f"{name}.feed_forward.intermediate_dense"),
      "down": dense(f"{name}.feed_forward.output_dense"),
      "ffn_norm": norm(f"{name}.final_layer_norm"),
    }

  layers = [layer(i) for i in range(hf.config.num_hidden_layers)]
  conv = "encoder.pos_conv_embed.conv"
  return {
    "stem": stem,
    "feature_norm": norm("feature_projection.layer_norm"),
    "projection": dense("feature_projection.projection"),
    "mask_vector": weights["masked_spec_embed"],
    "encoder": {
      "positions": {
        "direction": weights[
          f"{conv}.parametrizations.weight.original1"
        ].transpose(2, 1, 0),
        "scale": weights[f"{conv}.parametrizations.weight.original0"].transpose(
          2, 1, 0
        ),
        "bias": weights[f"{conv}.bias"],
      },
      "norm": norm("encoder.layer_norm"),
      "layers": stack(layers),
    },
  }


def stack(trees: list[dict]) -> dict:
  """Stacks equal dicts of arrays on a new leading axis."""
  first = trees[0]
  if isinstance(first, dict):
    return {key: stack([tree[key] for tree in trees]) for key in first}
  return np.stack(trees)
