"""The rival that is timed: the same work by transformers' modules, in torch.

On a GPU with bfloat16 autocast and torch.compile; attention is torch's fused
one (SDPA) everywhere. Clips fill their batch, so that no mask of padding keeps
the fused attention from its fastest path, and HuBERT's head sees masked frames
only: what a careful user of transformers would write. Nothing of JAX is
imported.
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

from ssl_jax.measure import rival_models
from ssl_jax.measure.sides import Subject

_PEAK_REPEATS = 5
_REPEATS = 10  # On a GPU.


def step(
  config: ConfigDict,
  architecture: dict[str, Any],
  rows: int,
  length: int,
  masked: np.ndarray,
  cache: str | None = None,
) -> Subject:
  """One update: forward, backward, clipping, AdamW.

  `masked` is bool [B, T]; `cache` is a folder for what torch.compile makes.
  """
  if cache:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
    os.environ["TRITON_CACHE_DIR"] = f"{cache}/triton"
  device = _device()
  model, inputs = rival_models.make(config, architecture, masked)
  model = model.to(device).train()
  inputs = [each.to(device) for each in inputs]
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=config.optimizer.learning_rate,
    betas=(config.optimizer.b1, config.optimizer.b2),
    eps=config.optimizer.eps,
    weight_decay=config.optimizer.weight_decay,
    fused=True,
  )
  waveform = _noise(rows, length, device)
  compute = _compiled(model)

  def update() -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    with _autocast():
      loss = compute(waveform, *inputs)
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
  model = rival_models.hubert(architecture).feature_extractor.to(device).train()
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
  model = rival_models.hubert(architecture).to(device).eval()
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

  def run(times: int) -> Any:
    for _ in range(times):
      made = work()
    _wait()
    return made

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
