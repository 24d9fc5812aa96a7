"""The rival that is timed: the same work by transformers' modules, in torch.

On a GPU with bfloat16 autocast and torch.compile; attention is torch's fused
one (SDPA) everywhere. Clips fill their batch, so that no mask of padding keeps
the fused attention from its fastest path, and the head sees masked frames only:
what a careful user of transformers would write. Nothing of JAX is imported.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from ml_collections import ConfigDict
from torch.nn import functional

from ssl_jax.measure.sides import Subject

_PEAK_REPEATS = 5
_REPEATS = 10  # On a GPU.


class Pretraining(torch.nn.Module):
  """HuBERT around a HubertModel: (waveform, mask, labels) -> loss."""

  def __init__(self, config: ConfigDict, architecture: dict[str, Any]):
    super().__init__()
    self.config = config
    self.model = hubert(architecture)
    width, final = config.encoder.hidden_size, config.hubert.final_dim
    self.final_proj = torch.nn.Linear(width, final)
    (clusters,) = config.hubert.clusters
    self.embeddings = torch.nn.Parameter(torch.rand(clusters, final))

  def forward(
    self, waveform: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
  ) -> torch.Tensor:
    """[B, S], indices of the masked of B T frames [M], their labels [M]."""
    config, model = self.config, self.model
    features = model.feature_extractor(waveform)  # [B, C, T]
    factor = config.frontend.grad_mult
    features = factor * features + (1 - factor) * features.detach()
    penalty = features.float().square().mean()
    hidden = model.feature_projection(features.transpose(1, 2))
    shape = hidden.shape
    vector = model.masked_spec_embed.to(hidden.dtype)
    hidden = hidden.reshape(-1, shape[-1]).index_copy(
      0, mask, vector.expand(len(mask), -1)
    )
    hidden = model.encoder(hidden.reshape(shape)).last_hidden_state
    chosen = self.final_proj(hidden.reshape(-1, shape[-1])[mask])
    logits = functional.normalize(chosen.float(), dim=-1)
    logits = logits @ functional.normalize(self.embeddings, dim=-1).T
    logits = logits / config.hubert.logit_temperature
    loss = functional.cross_entropy(logits.float(), labels)
    return loss + config.objective.feature_penalty * penalty


def hubert(architecture: dict[str, Any]) -> transformers.HubertModel:
  """With fresh weights, of the arguments of a HubertConfig."""
  return transformers.HubertModel(
    transformers.HubertConfig(**architecture, attn_implementation="sdpa")
  )


def step(
  config: ConfigDict,
  architecture: dict[str, Any],
  rows: int,
  length: int,
  masked: np.ndarray,
  cache: str | None = None,
) -> Subject:
  """One update: forward, backward, clipping, AdamW.

  `masked` [M] are indices of the masked of B T frames; `cache` is a folder for
  what torch.compile makes.
  """
  if cache:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
    os.environ["TRITON_CACHE_DIR"] = f"{cache}/triton"
  device = _device()
  model = Pretraining(config, architecture).to(device).train()
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=config.optimizer.learning_rate,
    betas=(config.optimizer.b1, config.optimizer.b2),
    eps=config.optimizer.eps,
    weight_decay=config.optimizer.weight_decay,
    fused=True,
  )
  mask = torch.from_numpy(masked).to(device)
  (clusters,) = config.hubert.clusters
  labels = torch.randint(clusters, mask.shape, device=device)
  waveform = _noise(rows, length, device)
  compute = _compiled(model)

  def update() -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    with _autocast():
      loss = compute(waveform, mask, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      model.parameters(), config.optimizer.clip_norm
    )
    optimizer.step()
    return loss

  return _subject(update)


def stem(
  config: ConfigDict, architecture: dict[str, Any], rows: int, length: int
) -> Subject:
  """The stem, forwards and backwards to its parameters."""
  device = _device()
  model = hubert(architecture).feature_extractor.to(device).train()
  waveform = _noise(rows, length, device)
  compute = _compiled(model)

  def gradient() -> None:
    for parameter in model.parameters():
      parameter.grad = None
    with _autocast():
      out = compute(waveform)
    out.float().square().mean().backward()

  return _subject(gradient)


def probe(
  config: ConfigDict, architecture: dict[str, Any], rows: int, length: int
) -> Subject:
  """All hidden states of a frozen encoder."""
  device = _device()
  model = hubert(architecture).to(device).eval()
  waveform = _noise(rows, length, device)
  compute = _compiled(model)

  def states() -> torch.Tensor:
    with torch.inference_mode(), _autocast():
      hidden = compute(waveform, output_hidden_states=True).hidden_states
    return torch.stack(hidden)

  return _subject(states)


def _device() -> torch.device:
  if torch.cuda.is_available():
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")
  return torch.device("cpu")


def _compiled(module: torch.nn.Module) -> Callable[..., Any]:
  return torch.compile(module) if torch.cuda.is_available() else module


def _autocast() -> contextlib.AbstractContextManager:
  if torch.cuda.is_available():
    return torch.autocast("cuda", torch.bfloat16)
  return contextlib.nullcontext()


def _wait() -> None:
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def _noise(rows: int, length: int, device: torch.device) -> torch.Tensor:
  return 0.1 * torch.randn(rows, length, device=device)


def _subject(work: Callable[[], Any]) -> Subject:
  cuda = torch.cuda.is_available()

  def run(times: int) -> None:
    for _ in range(times):
      work()
    _wait()

  def facts() -> dict[str, Any]:
    return {
      "device": torch.cuda.get_device_name() if cuda else "cpu",
      "library": f"torch {torch.__version__}, "
      f"transformers {transformers.__version__}"
      + (", torch.compile" if cuda else ""),
      "dtype": "bfloat16" if cuda else "float32",
      "matmul_flops_per_second": _matmul_peak(),
    }

  memory = torch.cuda.max_memory_allocated if cuda else None
  return Subject(run, memory, facts, _REPEATS if cuda else 1)


def _matmul_peak() -> float:
  device = _device()
  size = 8192 if device.type == "cuda" else 2048
  dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
  x = torch.randn((size, size), dtype=dtype, device=device)
  torch.matmul(x, x)
  taken = []
  for _ in range(_PEAK_REPEATS):
    _wait()
    before = time.monotonic()
    torch.matmul(x, x)
    _wait()
    taken.append(time.monotonic() - before)
  return 2 * size**3 / min(taken)
