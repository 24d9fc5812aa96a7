"""Every knob of a probe, once, with its default and its unit."""

from ml_collections import ConfigDict

from ssl_jax import FRAME_WINDOW, SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.knobs import flatten


def base() -> ConfigDict:
  """Keyword spotting on the packaged clips, by SUPERB's recipe."""
  config = ConfigDict()
  config.seed = 0
  config.task = "ks"  # pr, asr, ks, sid, asv, er or ic.
  config.profile = "full"  # Of what follows; stated with every score.
  config.data = config_lib.base().data
  config.data.source = "embedded"
  config.data.min_seconds = 0.1
  # Clips whose metadata are so: ("text", "language=en|en-US"): have a text, and
  # are in one of these languages.
  config.where = ("",)
  # Of ks, sid, er: metadata key of the class; "": the task's.
  config.label = ""
  config.within = ""  # Of asv: trials are pairs alike in this metadata key.
  # Of asv: a list of test's trials, as Vox1-O's: `1 ONE OTHER` (one speaker) or
  # `0 ONE OTHER` a line; "": every pair.
  config.trials = ""

  config.features = ConfigDict()
  config.features.normalize = False  # LayerNorm without parameters, a layer.
  config.features.cache_gb = 50.0  # Older caches make room.

  config.head = ConfigDict()
  config.head.projector = 256  # Width the layers' sum is projected to.
  config.head.recurrent_layers = 2  # Of asr.
  config.head.recurrent_size = 1024  # A direction.
  config.head.dropout = 0.2  # After each recurrent layer.

  config.fit = ConfigDict()
  config.fit.updates = 200_000
  config.fit.batch_size = 32  # Clips.
  config.fit.learning_rates = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
  config.fit.num_seeds = 1  # Of heads and their batches.
  config.fit.clip_norm = 1.0
  config.fit.eval_every = 5_000  # Updates; the best on dev is tested.
  config.fit.chunk_size = 10  # Updates a call of the compiled program.

  config.eval = ConfigDict()
  config.eval.batch_seconds = 60.0  # Audio a batch of features (memory only).
  config.loader = config_lib.base().loader
  return config.lock()


def validate(config: ConfigDict) -> None:
  """Checks what would fail late, or quietly.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  counts = (
    *("fit.updates", "fit.batch_size", "fit.num_seeds", "fit.eval_every"),
    *("fit.chunk_size", "head.projector", "head.recurrent_size"),
  )
  values = flatten(config)
  for key in counts:
    if values[key] < 1:
      raise UserError(f"config.{key}={values[key]!r}: expected 1 or more")
  rates = config.fit.learning_rates
  if not rates or min(rates) <= 0:
    raise UserError(
      f"config.fit.learning_rates={rates!r}: expected rates above 0"
    )
  shortest = FRAME_WINDOW / SAMPLE_RATE
  if config.data.min_seconds < shortest:
    raise UserError(
      f"config.data.min_seconds={config.data.min_seconds!r}: expected at least "
      f"a frame, {shortest:g}"
    )
