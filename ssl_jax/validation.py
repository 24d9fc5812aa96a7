"""What values the config may have."""

import math

from ml_collections import ConfigDict

from ssl_jax.config import flatten, label_sets, nearest
from ssl_jax.errors import UserError

_CHOICES = {
  "compute_dtype": ("auto", "float32", "bfloat16"),
  "data.source": (
    "embedded",
    "folder",
    "manifest",
    "records",
    "tfds",
    "mixture",
  ),
  "encoder.remat": ("none", "dots", "full"),
  "frontend.name": ("waveform", "logmel"),
  "frontend.norm": ("group", "layer"),
  "frontend.mel_norm": ("clip", "fixed"),
  "objective.name": ("hubert", "wav2vec2", "tera"),
}

# Inclusive limits; what is not listed must be 0 or above.
_LIMITS = dict.fromkeys(
  (
    "batch.microbatches",
    "checkpoint.every",
    "checkpoint.keep",
    "encoder.ffn_size",
    "encoder.hidden_size",
    "encoder.num_heads",
    "encoder.num_layers",
    "encoder.position_groups",
    "encoder.position_kernel",
    "eval.every",
    "hubert.final_dim",
    "kmeans.batch_frames",
    "kmeans.max_iterations",
    "kmeans.num_frames",
    "kmeans.num_restarts",
    "loader.num_threads",
    "loader.prefetch",
    "log.every",
    "masking.mask_length",
    "masking.min_masks",
    "wav2vec2.code_dim",
    "wav2vec2.final_dim",
    "wav2vec2.num_groups",
    "wav2vec2.num_negatives",
  ),
  (1, math.inf),
)
_LIMITS |= dict.fromkeys(
  (
    "data.valid_fraction",
    "encoder.activation_dropout",
    "encoder.attention_dropout",
    "encoder.dropout",
    "encoder.input_dropout",
    "encoder.layerdrop",
    "wav2vec2.feature_dropout",
  ),
  (0.0, 0.9),
)
_LIMITS |= dict.fromkeys(
  (
    "augment.band_prob",
    "augment.drop_prob",
    "augment.mix_prob",
    "augment.noise_prob",
    "augment.reverb_prob",
    "augment.speed_prob",
  ),
  (0.0, 1.0),
)
_LIMITS |= {
  "augment.band_hz": (0.0, 8_000.0),
  "batch.seconds": (0.1, math.inf),
  "data.min_seconds": (0.025, math.inf),
  "eval.batch_seconds": (0.1, math.inf),
  "frontend.num_mel_bins": (4, 128),
  "hubert.logit_temperature": (1e-3, math.inf),
  "masking.mask_prob": (0.0, 1.0),
  "optimizer.b1": (0.0, 0.9999999),
  "optimizer.b2": (0.0, 0.9999999),
  "optimizer.clip_norm": (1e-6, math.inf),
  "optimizer.decay_fraction": (0.0, 1.0),
  "optimizer.eps": (1e-20, 1.0),
  "optimizer.learning_rate": (0.0, 1.0),
  "optimizer.warmup_fraction": (0.0, 1.0),
  "tera.channel_alteration": (0.0, 1.0),
  "tera.time_keep": (0.0, 1.0),
  "tera.time_swap": (0.0, 1.0),
  "wav2vec2.logit_temperature": (1e-3, math.inf),
  "wav2vec2.num_codes": (2, math.inf),
  "wav2vec2.temperature_decay": (1e-6, 1.0),
  "wav2vec2.temperature_end": (1e-3, math.inf),
  "wav2vec2.temperature_start": (1e-3, math.inf),
}


def validate(config: ConfigDict) -> None:
  """Checks every value.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  for key, value in flatten(config).items():
    said = f"config.{key}={value!r}"
    if key in _CHOICES and value not in _CHOICES[key]:
      raise UserError(f"{said}: {nearest(str(value), _CHOICES[key])}")
    if isinstance(value, int | float) and not isinstance(value, bool):
      low, high = _LIMITS.get(key, (0, math.inf))
      if not low <= value <= high or math.isinf(value):
        raise UserError(f"{said} is outside [{low}, {high}]")
  mesh = config.mesh
  sizes = [n for n in mesh if isinstance(n, int) and (n == -1 or n >= 1)]
  if len(mesh) != 3 or len(sizes) != 3 or sizes.count(-1) > 1:
    raise UserError(
      f"config.mesh={mesh!r}: expected (data, fsdp, tensor), counts of devices "
      "of which one may be -1"
    )
  buckets = config.data.bucket_seconds
  if not buckets or min(buckets) < 0.025 or list(buckets) != sorted({*buckets}):
    raise UserError(
      f"config.data.bucket_seconds={buckets!r}: expected increasing lengths in "
      "seconds, each above 0.025"
    )
  if config.data.min_seconds > buckets[-1]:
    raise UserError(
      f"config.data.min_seconds={config.data.min_seconds} is longer than the "
      f"last bucket ({buckets[-1]} s): every clip would be skipped or cut"
    )
  for key in ("mix_snr_db", "noise_snr_db", "reverb_seconds"):
    value = config.augment[key]
    if len(value) != 2 or value[0] > value[1]:
      raise UserError(
        f"config.augment.{key}={value!r}: expected a least and a most"
      )
  if not all(0.5 <= speed <= 2 for speed in config.augment.speeds):
    raise UserError(
      f"config.augment.speeds={config.augment.speeds!r}: expected speeds from "
      "0.5 to 2"
    )
  if config.augment.reverb_seconds[0] <= 0:
    raise UserError(
      f"config.augment.reverb_seconds={config.augment.reverb_seconds!r}: "
      "expected times above 0"
    )
  if len(label_sets(config)) != len(config.hubert.clusters):
    raise UserError(
      f"config.hubert.clusters={config.hubert.clusters!r} must name as many "
      f"numbers as config.hubert.labels={config.hubert.labels!r} label sets"
    )
  if not all(2 <= clusters < 2**16 - 1 for clusters in config.hubert.clusters):
    raise UserError(
      f"config.hubert.clusters={config.hubert.clusters!r}: expected numbers "
      f"from 2 to {2**16 - 2}"
    )
  if config.wav2vec2.code_dim % config.wav2vec2.num_groups:
    raise UserError(
      f"config.wav2vec2.code_dim={config.wav2vec2.code_dim} is not divisible "
      f"by config.wav2vec2.num_groups={config.wav2vec2.num_groups}"
    )
  if config.tera.time_swap + config.tera.time_keep > 1:
    raise UserError(
      f"config.tera.time_swap={config.tera.time_swap} and "
      f"config.tera.time_keep={config.tera.time_keep} are shares of the same "
      "clips: lower one"
    )
  for divisor in ("num_heads", "position_groups"):
    if config.encoder.hidden_size % config.encoder[divisor]:
      raise UserError(
        f"config.encoder.hidden_size={config.encoder.hidden_size} is not "
        f"divisible by config.encoder.{divisor}={config.encoder[divisor]}"
      )
  if config.budget.trunk and config.init_from:
    raise UserError("config.budget.trunk and config.init_from: give one")
  if config.budget.trunk and not (
    config.optimizer.warmup_updates and config.optimizer.decay_fraction < 1
  ):
    raise UserError(
      f"config.budget.trunk={config.budget.trunk!r} needs a schedule that runs "
      "of several budgets share: set config.optimizer.warmup_updates, and "
      "config.optimizer.decay_fraction below 1"
    )
  stated = [k for k in ("updates", "flops", "match") if config.budget[k]]
  if len(stated) != 1:
    raise UserError(
      "config.budget: set one of updates, flops and match, not "
      + (" and ".join(stated) or "none")
    )
