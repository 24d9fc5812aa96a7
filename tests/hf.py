"""transformers' HuBERT as an independent reference, with weights moved here."""

import tempfile
from pathlib import Path

import pytest
import transformers

from ssl_jax.pretrained import hf_read as importer

# Where torch is not installed, a file that imports this one is skipped.
torch = pytest.importorskip("torch")

TINY = {
  "hidden_size": 48,
  "num_attention_heads": 4,
  "intermediate_size": 96,
  "attn_implementation": "eager",
}
LAYOUTS = {
  "base": {},
  "large": {
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
  },
}


def saved(folder, kind, layout):
  """Saves a random model of transformers; -> its name as an encoder."""
  torch.manual_seed(0)
  make, model, more = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel, {}),
    "wav2vec2": (
      transformers.Wav2Vec2Config,
      transformers.Wav2Vec2ForPreTraining,
      {
        "num_codevectors_per_group": 12,
        "codevector_dim": 16,
        "proj_codevector_dim": 24,
      },
    ),
  }[kind]
  config = make(**TINY, num_hidden_layers=2, **LAYOUTS[layout], **more)
  perturbed(model(config)).save_pretrained(folder)
  return f"hf:{folder}"


def tiny_pair(norm: str, num_layers: int = 3):
  """A random HubertModel, and our (config, parameters) of the same weights."""
  torch.manual_seed(0)
  model = transformers.HubertModel(
    transformers.HubertConfig(
      **TINY, num_hidden_layers=num_layers, feat_extract_norm=norm
    )
  )
  config, params = imported(perturbed(model))
  config.frontend.normalize_waveform = False  # As the model itself.
  return model, config, params


def perturbed(model):
  """Moves what is the identity or 0 at first: it would hide mistakes."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
      if "original0" in name:
        parameter.mul_(1.3)
  return model.eval()


def imported(model):
  """Our (config, parameters) of a model of transformers."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return importer.read(Path(folder))
