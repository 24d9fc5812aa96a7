"""What values the config may have."""

from ml_collections import ConfigDict

from ssl_jax.config import base, flatten, label_sets, nearest
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

_MOST = 1e30
# Inclusive limits; what is not listed must be from 0 to _MOST. The upper ones
# are beyond what anybody trains: they keep slips from eating all memory.
_LIMITS = dict.fromkeys(
  (
    "encoder.ffn_size",
    "encoder.hidden_size",
    "hubert.final_dim",
    "wav2vec2.code_dim",
    "wav2vec2.final_dim",
  ),
  (1, 1 << 17),
)
_LIMITS |= dict.fromkeys(
  (
    "batch.microbatches",
    "checkpoint.keep",
    "encoder.num_heads",
    "encoder.position_groups",
    "encoder.position_kernel",
    "kmeans.num_restarts",
    "loader.num_threads",
    "loader.prefetch",
    "masking.mask_length",
    "masking.min_masks",
    "wav2vec2.num_groups",
    "wav2vec2.num_negatives",
  ),
  (1, 10_000),
)
_LIMITS |= dict.fromkeys(
  (
    "checkpoint.every",
    "eval.every",
    "kmeans.batch_frames",
    "kmeans.max_iterations",
    "kmeans.num_frames",
    "log.every",
  ),
  (1, 10**12),
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
  "encoder.num_layers": (1, 1_000),  # Each is traced where a file is read.
  "augment.band_hz": (0.0, 8_000.0),
  "augment.drop_seconds": (0.0, 3_600.0),
  "augment.gain_db": (0.0, 100.0),
  "batch.seconds": (0.1, 1e7),
  "budget.updates": (0, 10**12),
  "data.hours": (0.0, 1e9),
  "data.min_seconds": (0.025, 3_600.0),
  "data.sample_rate": (0, 1_000_000),
  "eval.batch_seconds": (0.1, 1e7),
  "frontend.num_mel_bins": (4, 128),
  "hubert.logit_temperature": (1e-3, 1e3),
  "loader.num_workers": (0, 10_000),
  "masking.mask_prob": (0.0, 1.0),
  "optimizer.b1": (0.0, 0.9999999),
  "optimizer.b2": (0.0, 0.9999999),
  "optimizer.clip_norm": (1e-6, _MOST),
  "optimizer.decay_fraction": (0.0, 1.0),
  "optimizer.eps": (1e-20, 1.0),
  "optimizer.learning_rate": (0.0, 1.0),
  "optimizer.warmup_fraction": (0.0, 1.0),
  "optimizer.warmup_updates": (0, 10**12),
  "seed": (0, 2**63 - 1),
  "tera.channel_alteration": (0.0, 1.0),
  "tera.time_keep": (0.0, 1.0),
  "tera.time_swap": (0.0, 1.0),
  "wav2vec2.logit_temperature": (1e-3, 1e3),
  "wav2vec2.num_codes": (2, 1 << 17),
  "wav2vec2.temperature_decay": (1e-6, 1.0),
  "wav2vec2.temperature_end": (1e-3, 1e3),
  "wav2vec2.temperature_start": (1e-3, 1e3),
}


_LONGEST = 1_000  # Of tuples.


def validate(config: ConfigDict) -> None:
  """Checks every value.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  kinds = {key: type(value) for key, value in flatten(base()).items()}
  for key, value in flatten(config).items():
    said = f"config.{key}={_short(value)}"
    if not _is(value, kinds.get(key, type(value))):
      raise UserError(f"{said}: expected a {kinds[key].__name__}")
    if isinstance(value, tuple | list) and not (
      len(value) <= _LONGEST
      and all(_is(x, float) and abs(x) <= 10**12 for x in value)
    ):
      raise UserError(f"{said}: expected at most {_LONGEST} numbers")
    if key in _CHOICES and value not in _CHOICES[key]:
      raise UserError(f"{said}: {nearest(str(value), _CHOICES[key])}")
    if isinstance(value, int | float) and not isinstance(value, bool):
      low, high = _LIMITS.get(key, (0, _MOST))
      if not low <= value <= high:  # Nor is what is not a number.
        raise UserError(f"{said} is outside [{low}, {high}]")
  mesh = config.mesh
  sizes = [n for n in mesh if isinstance(n, int) and (n == -1 or n >= 1)]
  if len(mesh) != 3 or len(sizes) != 3 or sizes.count(-1) > 1:
    raise UserError(
      f"config.mesh={mesh!r}: expected (data, fsdp, tensor), counts of devices "
      "of which one may be -1"
    )
  buckets = config.data.bucket_seconds
  if (
    not buckets
    or min(buckets) < 0.025
    or max(buckets) > 3_600
    or list(buckets) != sorted({*buckets})
  ):
    raise UserError(
      f"config.data.bucket_seconds={buckets!r}: expected increasing lengths in "
      "seconds, each above 0.025 and up to 3600"
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
  least, most = config.augment.reverb_seconds
  if least <= 0 or most > 60:
    raise UserError(
      f"config.augment.reverb_seconds={config.augment.reverb_seconds!r}: "
      "expected times above 0, up to 60"
    )
  if len(label_sets(config)) != len(config.hubert.clusters):
    raise UserError(
      f"config.hubert.clusters={config.hubert.clusters!r} must name as many "
      f"numbers as config.hubert.labels={config.hubert.labels!r} label sets"
    )
  if not all(
    _is(clusters, int) and 2 <= clusters < 2**16 - 1
    for clusters in config.hubert.clusters
  ):
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
  layers, width = config.encoder.num_layers, config.encoder.hidden_size
  params = layers * (4 * width**2 + 2 * width * config.encoder.ffn_size)
  if params > 10**12:
    raise UserError(
      f"config.encoder: {layers} layers of {width} have {params:.3g} "
      "parameters, above 1e12"
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


def _is(value: object, kind: type) -> bool:
  """Whether it is of a kind; ints are floats, but no bool is an int."""
  if kind is float:
    return type(value) in (int, float)
  if kind in (tuple, list):
    return isinstance(value, tuple | list)
  return type(value) is kind


def _short(value: object) -> str:
  try:
    return f"{value!r}"[:200]
  except ValueError:  # Of too many digits.
    return "..."
