"""transformers' models as a careful user pretrains them, in torch.

A model takes a waveform [B, S] and what its method needs beside it, and returns
the loss. `make` returns both. Nothing of JAX is imported.
"""

from typing import Any

import numpy as np
import torch
import transformers
from ml_collections import ConfigDict
from torch.nn import functional
from transformers import audio_utils
from transformers.models.wav2vec2 import modeling_wav2vec2

from ssl_jax import SAMPLE_RATE

_WINDOW, _HOP, _FFT = 400, 160, 512  # Samples: 25 ms, 10 ms, a power of two.


def make(
  config: ConfigDict, architecture: dict[str, Any], mask: np.ndarray
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
  """Makes the rival of a config's objective.

  Args:
    config: of HuBERT or wav2vec 2.0.
    architecture: arguments of the HubertConfig or Wav2Vec2Config.
    mask: bool [B, T], the masked frames.

  Returns:
    The model, and its inputs after the waveform.
  """
  if config.objective.name == "wav2vec2":
    # On the host and before, as the model asks for them.
    negatives = modeling_wav2vec2._sample_negative_indices(
      mask.shape, config.wav2vec2.num_negatives, mask
    )
    inputs = torch.from_numpy(mask), torch.from_numpy(negatives).long()
    return Wav2Vec2(config, architecture), inputs
  masked = torch.from_numpy(np.flatnonzero(mask))
  (clusters,) = config.hubert.clusters
  labels = torch.randint(clusters, masked.shape)
  return Hubert(config, architecture), (masked, labels)


class Hubert(torch.nn.Module):
  """HuBERT around a HubertModel, on waveforms or on log-mel frames."""

  def __init__(self, config: ConfigDict, architecture: dict[str, Any]):
    super().__init__()
    self.config = config
    self.model = hubert(architecture)
    width, final = config.encoder.hidden_size, config.hubert.final_dim
    if config.frontend.name == "logmel":
      bins = config.frontend.num_mel_bins
      self.model.feature_extractor = LogMel(bins)
      self.model.feature_projection = torch.nn.Sequential(
        torch.nn.Linear(2 * bins, width),
        torch.nn.Dropout(config.encoder.input_dropout),
      )
    else:
      stem = self.model.feature_extractor
      self.model.feature_extractor = Stem(stem, config.frontend.grad_mult)
    self.final_proj = torch.nn.Linear(width, final)
    (clusters,) = config.hubert.clusters
    self.embeddings = torch.nn.Parameter(torch.rand(clusters, final))

  def forward(
    self, waveform: torch.Tensor, masked: torch.Tensor, labels: torch.Tensor
  ) -> torch.Tensor:
    """[B, S], indices of the masked of B T frames [M], their labels [M]."""
    config, model = self.config, self.model
    features = model.feature_extractor(waveform)  # [B, C, T]
    hidden = model.feature_projection(features.transpose(1, 2))
    shape = hidden.shape
    vector = model.masked_spec_embed.to(hidden.dtype)
    hidden = hidden.reshape(-1, shape[-1]).index_copy(
      0, masked, vector.expand(len(masked), -1)
    )
    hidden = model.encoder(hidden.reshape(shape)).last_hidden_state
    chosen = self.final_proj(hidden.reshape(-1, shape[-1])[masked])
    logits = functional.normalize(chosen.float(), dim=-1)
    logits = logits @ functional.normalize(self.embeddings, dim=-1).T
    logits = logits / config.hubert.logit_temperature
    loss = functional.cross_entropy(logits.float(), labels)
    penalty = model.feature_extractor.penalty
    return loss + config.objective.feature_penalty * penalty


class Wav2Vec2(torch.nn.Module):
  """Wav2Vec2ForPreTraining with its own losses, a mean over masked frames."""

  def __init__(self, config: ConfigDict, architecture: dict[str, Any]):
    super().__init__()
    self.config = config
    self.model = transformers.Wav2Vec2ForPreTraining(
      transformers.Wav2Vec2Config(**architecture, attn_implementation="sdpa")
    )
    self.model.set_gumbel_temperature(config.wav2vec2.temperature_start)
    # With the paper's first logits, noise soon leaves codes of probability 0,
    # where the gradient of transformers' perplexity is not a number.
    self.model.quantizer.weight_proj.weight.data.mul_(0.05)
    backbone = self.model.wav2vec2
    backbone.feature_extractor = Stem(
      backbone.feature_extractor, config.frontend.grad_mult
    )

  def forward(
    self, waveform: torch.Tensor, mask: torch.Tensor, negatives: torch.Tensor
  ) -> torch.Tensor:
    """[B, S], bool [B, T], int [B, T, N] of B T frames -> the loss."""
    loss = self.model(
      waveform, mask_time_indices=mask, sampled_negative_indices=negatives
    ).loss
    penalty = self.model.wav2vec2.feature_extractor.penalty
    return loss / mask.sum() + self.config.objective.feature_penalty * penalty


class Stem(torch.nn.Module):
  """A stem [B, S] -> [B, C, T] whose gradient is scaled.

  Attributes:
    penalty: the mean square of the last output.
  """

  def __init__(self, stem: torch.nn.Module, grad_mult: float):
    super().__init__()
    self.stem, self.grad_mult = stem, grad_mult

  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    """[B, S] -> [B, C, T]."""
    features, factor = self.stem(waveform), self.grad_mult
    features = factor * features + (1 - factor) * features.detach()
    self.penalty = features.float().square().mean()
    return features


class LogMel(torch.nn.Module):
  """Kaldi's log-mel frames, normed by clip, in pairs: [B, S] -> [B, 2 F, T]."""

  penalty = 0.0  # Nothing is learned here.

  def __init__(self, num_mel_bins: int):
    super().__init__()
    window = audio_utils.window_function(_WINDOW, "povey", periodic=False)
    filters = audio_utils.mel_filter_bank(
      _FFT // 2 + 1,
      num_mel_bins,
      *(20.0, SAMPLE_RATE / 2, SAMPLE_RATE),
      mel_scale="kaldi",
      triangularize_in_mel_space=True,
    )
    self.register_buffer("window", torch.tensor(window, dtype=torch.float32))
    self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32))

  @torch.no_grad()
  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    """[B, S] -> [B, 2 F, T]."""
    # The logarithm would show the rounding of bfloat16.
    with torch.autocast(waveform.device.type, enabled=False):
      frames = waveform.unfold(-1, _WINDOW, _HOP)  # [B, 10 ms frames, 400]
      frames = frames - frames.mean(-1, keepdim=True)
      before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
      spectrum = torch.fft.rfft((frames - 0.97 * before) * self.window, _FFT)
      power = spectrum.real.square() + spectrum.imag.square()
      mels = power @ self.filters
      mels = mels.clamp_min(torch.finfo(torch.float32).eps).log()
      variance, mean = torch.var_mean(mels, 1, correction=0, keepdim=True)
      mels = (mels - mean) * torch.rsqrt(variance + 1e-5)
      if mels.shape[1] % 2:  # The last frame stands in for its missing half.
        mels = torch.cat([mels, mels[:, -1:]], dim=1)
      return mels.reshape(len(mels), mels.shape[1] // 2, -1).transpose(1, 2)


def hubert(architecture: dict[str, Any]) -> transformers.HubertModel:
  """Makes one with fresh weights, of the arguments of a HubertConfig."""
  return transformers.HubertModel(
    transformers.HubertConfig(**architecture, attn_implementation="sdpa")
  )
