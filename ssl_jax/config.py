"""Every knob of a run, once, with its default, its unit and its limits.

Experiments in `configs/` start from `base()` and state what differs. Code reads
`config.x.y`; there are no defaults elsewhere.
"""

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError

# paper.md, "Architectures": (num_layers, hidden_size, ffn_size, num_heads).
SIZES = {
  "small": (3, 640, 2048, 8),
  "30": (4, 192, 320, 4),
  "40": (5, 256, 640, 8),
  "50": (5, 320, 768, 8),
  "60": (7, 320, 768, 8),
  "70": (7, 384, 768, 8),
  "80": (12, 320, 768, 8),
  "90": (12, 352, 768, 8),
  "100": (12, 384, 768, 8),
  "130": (13, 416, 1024, 8),
  "160": (13, 496, 1024, 16),
  "190": (15, 512, 1024, 16),
  "200": (15, 528, 1024, 12),
  "base": (12, 768, 3072, 12),
  "large": (24, 1024, 4096, 16),
}


def base() -> ConfigDict:
  """The Slim (100 %) recipe of the paper, with HuBERT as objective."""
  config = ConfigDict()
  config.seed = 0  # Of everything random: data order, crops, masks, dropout.
  # float32, bfloat16, or auto: bfloat16 on accelerators, float32 on CPU.
  # Parameters, optimizer, norms, softmax and losses are float32 always.
  config.compute_dtype = "auto"

  # An encoder to start from, whose architecture replaces this config's: hf:DIR
  # (HuBERT or wav2vec 2.0 of transformers), or a run's workdir; "": none.
  config.init_from = ""

  config.data = ConfigDict()
  # embedded: the packaged clips; folder: a tree of wav/flac/ogg/mp3 files, any
  # rate; manifest: files that a .jsonl, .csv or .tsv names; records: what
  # ssl_jax.prepare made of these; tfds: a dataset of TensorFlow Datasets;
  # mixture: several, as "records:ls960,folder:/my/audio,tfds:librispeech".
  config.data.source = "folder"
  config.data.dir = (
    ""  # Of tfds, where datasets are; "" is where TFDS has them.
  )
  config.data.weights = ()  # Of a mixture: shares of the audio; (): alike.
  config.data.name = ""  # Of tfds: "librispeech:2.1.1", or a folder.
  # Of tfds: "train_clean100+dev_other[:50%]"; "" is what is named so.
  config.data.train_split = config.data.valid_split = config.data.test_split = (
    ""
  )
  config.data.sample_rate = 0  # Of tfds: Hz, where the dataset does not say.
  config.data.split_key = ""  # Of manifest, records: metadata key of the split.
  config.data.valid_dir = ""  # Validation tree; "" holds out clips of `dir`.
  config.data.valid_fraction = 0.01  # Of the clips, when they are held out.
  # Of training audio, taken alike from its speakers; 0: all there is. The hours
  # of a smaller number are among those of a larger.
  config.data.hours = 0.0
  config.data.min_seconds = 2.0  # Shorter clips are skipped.
  # Clips are padded to the nearest bucket above; longer ones than the last are
  # cropped to it at random. Each bucket is one compiled shape.
  config.data.bucket_seconds = (5.0, 9.0, 12.5, 14.0, 15.625)

  # Devices: (data, fsdp, tensor); -1: what the others leave. `data` shares out
  # clips; `fsdp` also parameters and optimizer state, to fit large models;
  # `tensor` each layer's heads and units. Batches do not depend on it.
  config.mesh = (-1, 1, 1)

  config.batch = ConfigDict()
  config.batch.seconds = 156.0  # Of audio per update, over all devices.
  config.batch.microbatches = 1  # Gradient accumulation: same run, less memory.

  config.loader = ConfigDict()  # Speed only; never changes what is seen.
  config.loader.num_threads = 4
  config.loader.num_workers = 0  # Worker processes; 0: threads only.
  config.loader.prefetch = 4  # Batches read ahead.

  config.frontend = ConfigDict()
  # waveform: 7 convolutions; logmel: Kaldi filterbanks, 10 ms, stacked to 20.
  config.frontend.name = "waveform"
  # waveform: "group" (after the first convolution, statistics over time) or
  # "layer" (after each, over channels).
  config.frontend.norm = "group"
  config.frontend.conv_bias = False  # Of the convolutions, as in large models.
  config.frontend.normalize_waveform = False  # Zero mean, unit variance a clip.
  config.frontend.grad_mult = 0.1  # Scales the waveform stem's gradient.
  config.frontend.num_mel_bins = 80  # logmel only.
  config.frontend.mel_norm = "clip"  # clip or fixed: the mean and variance.

  config.encoder = ConfigDict()
  config.encoder.num_layers = 12
  config.encoder.hidden_size = 384
  config.encoder.ffn_size = 768
  config.encoder.num_heads = 8
  config.encoder.position_kernel = 128  # Convolutional positions, in frames.
  config.encoder.position_groups = 16
  # Norms before attention and feed-forward, and one after the last layer.
  config.encoder.norm_first = False
  config.encoder.input_dropout = 0.1  # After the projection.
  config.encoder.dropout = 0.1
  config.encoder.attention_dropout = 0.1
  config.encoder.activation_dropout = 0.0
  config.encoder.layerdrop = 0.05
  config.encoder.scan_layers = False  # Compiles faster; same parameters.
  # What the backward pass computes again, to save memory: none; dots: all but
  # matrix products; full: all within a layer.
  config.encoder.remat = "none"

  # Of the training audio that the encoder hears; targets are of the clean one.
  config.augment = ConfigDict()
  config.augment.mix_prob = 0.0  # Share of clips with a part of another one.
  config.augment.mix_snr_db = (-5.0, 5.0)  # The clip over it, drawn between.
  config.augment.noise_prob = 0.0  # Share of clips with noise in a part.
  config.augment.noise_snr_db = (-5.0, 20.0)
  config.augment.reverb_prob = 0.0  # Share of clips in a synthetic room.
  config.augment.reverb_seconds = (0.2, 0.8)  # Its T60, drawn between.
  config.augment.gain_db = 0.0  # Louder or softer by up to this.
  config.augment.drop_prob = 0.0  # Share of clips that fall silent for ...
  config.augment.drop_seconds = 0.5  # ... up to this.
  config.augment.band_prob = 0.0  # Share of clips without a band that is ...
  config.augment.band_hz = 1000.0  # ... up to this wide.
  # Share of clips played faster or slower, pitch and all; targets follow, being
  # of the clip at its new speed.
  config.augment.speed_prob = 0.0
  config.augment.speeds = (0.9, 1.1)

  config.masking = ConfigDict()
  config.masking.mask_prob = 0.8  # Expected spans: mask_prob * T / mask_length.
  config.masking.mask_length = 10  # Frames of 20 ms.
  config.masking.min_masks = 2  # Spans a clip.

  config.objective = ConfigDict()
  config.objective.name = "hubert"  # hubert, wav2vec2 or tera.
  config.objective.feature_penalty = 10.0  # x mean square of the stem's output.

  config.hubert = ConfigDict()
  # Label sets, separated by commas: "mfcc" (k-means fitted at start on MFCC,
  # labels made in the step), or a folder that ssl_jax.label wrote.
  config.hubert.labels = "mfcc"
  config.hubert.clusters = (100,)  # Of each label set.
  config.hubert.final_dim = 256  # Of the space of labels.
  config.hubert.logit_temperature = 0.1
  config.hubert.unmasked_weight = 0.0  # x mean loss over unmasked frames.
  # The config of the run whose encoder made the labels, to count its FLOPs.
  config.hubert.earlier = ""

  config.wav2vec2 = ConfigDict()
  config.wav2vec2.num_groups = 2  # Of the product quantizer.
  config.wav2vec2.num_codes = 320  # A group.
  config.wav2vec2.code_dim = 256  # Of all groups together.
  config.wav2vec2.final_dim = 256  # Of the space of comparisons.
  config.wav2vec2.temperature_start = 2.0  # Of the Gumbel softmax ...
  config.wav2vec2.temperature_end = 0.5  # ... never below this ...
  config.wav2vec2.temperature_decay = 0.999995  # ... times this an update.
  config.wav2vec2.num_negatives = 100  # Masked frames of the same clip.
  config.wav2vec2.logit_temperature = 0.1
  config.wav2vec2.diversity_weight = 0.1
  config.wav2vec2.feature_dropout = 0.1  # Before the quantizer.

  # The original TERA's further alterations of the input, in training only.
  config.tera = ConfigDict()
  # Share of the clips whose masked frames are other frames of the clip ...
  config.tera.time_swap = 0.0
  config.tera.time_keep = 0.0  # ... and whose masked frames are left in place.
  config.tera.channel_alteration = 0.0  # Zeroed block: at most this share.

  config.kmeans = ConfigDict()  # Of the MFCC codebook and of ssl_jax.label.
  config.kmeans.num_frames = 1_000_000  # Sampled from the training audio.
  config.kmeans.batch_frames = 10_000
  config.kmeans.max_iterations = 100
  config.kmeans.num_restarts = 20

  config.optimizer = ConfigDict()  # AdamW.
  config.optimizer.learning_rate = 5e-4  # Peak; linear warm-up, linear decay.
  config.optimizer.warmup_fraction = 0.08  # Of the updates ...
  config.optimizer.warmup_updates = 0  # ... or a fixed count, if not 0.
  # Of the updates after the warm-up; the others before it are at the peak.
  config.optimizer.decay_fraction = 1.0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-6
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 10.0  # Of the global gradient.
  # Updates in a row that are skipped, as their loss or gradient is not finite;
  # one more ends the run.
  config.optimizer.max_skipped_updates = 10

  # One of the three, the others 0 or "". Setting one on the command line
  # clears the others.
  config.budget = ConfigDict()
  config.budget.updates = 400_000
  config.budget.flops = 0.0  # Of training, as logged: padding counts.
  # A config, as of --config: as many FLOPs as its run, with its batch.seconds.
  config.budget.match = ""
  # Workdir of a run of this config but a larger budget: this one goes on from
  # its checkpoint where the decay begins. Needs warmup_updates and
  # decay_fraction below 1; the trunk saves there by checkpoint.at.
  config.budget.trunk = ""

  config.log = ConfigDict()
  config.log.every = 100  # Updates between lines of metrics.
  # Beside the workdir: "wandb", "mlflow" or "wandb,mlflow", where installed.
  config.log.to = ""
  config.log.stop_on_alarm = False  # Or only warn of a run that learns nothing.

  config.eval = ConfigDict()
  config.eval.every = 5_000  # Updates; also before the first and at the end.
  config.eval.batch_seconds = 60.0  # Audio a validation batch (memory only).

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 5_000  # Updates; also at the end.
  config.checkpoint.keep = 2  # The last so many, beside the best.
  config.checkpoint.at = ()  # Updates that are saved and kept as well.
  return config.lock()


def set_size(config: ConfigDict, size: str) -> None:
  """Sets the encoder's shape to a row of the published table, or any other.

  Args:
    config: changed in place.
    size: a key of SIZES, or its four numbers with an x between.

  Raises:
    UserError: it is neither.
  """
  size = str(size).removesuffix("%")
  shape = SIZES.get(size, ())
  if re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){3}", size):
    shape = tuple(map(int, size.split("x")))
  if not shape:
    size = size[:80]
    raise UserError(
      f"unknown size {size!r}; {nearest(size, SIZES)}, or layers, width, FFN "
      "and heads as in 3x96x192x4"
    )
  encoder = config.encoder
  (
    encoder.num_layers,
    encoder.hidden_size,
    encoder.ffn_size,
    encoder.num_heads,
  ) = shape


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """Parses `size=200,objective=tera` of `configs/slim.py:size=200,...`.

  Raises:
    UserError: for a key that is not in `defaults`.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    key, _, value = part.partition("=")
    if key not in defaults or not value:
      raise UserError(
        f"config argument {part[:80]!r}: expected key=value; "
        + nearest(key[:80], defaults)
      )
    values[key] = value
  return values


def load(path: str) -> ConfigDict:
  """The config of `FILE.py:ARGUMENT`, as --config takes it.

  Raises:
    UserError: there is no such file, or no such argument.
  """
  file, _, arg = path.partition(":")
  if not os.path.isfile(file) or not file.endswith(".py"):
    raise UserError(f"no config file {file!r} (of {path!r})")
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(arg or None)
  except UserError:
    raise
  except Exception as error:  # Whatever is wrong with its code.
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise UserError(f"config {path!r} fails ({said})") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"config {path!r} is a {type(config).__name__}")
  return config


def nearest(name: str, names: Iterable[str]) -> str:
  """Says which of `names` is meant by `name`, and what there is."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  meant = f"did you mean {close[0]!r}? " if close else ""
  return f"{meant}(have: {', '.join(names)})"


def flatten(config: ConfigDict) -> dict[str, Any]:
  """`{'encoder.num_layers': 12, ...}` in sorted order."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= {f"{key}.{name}": v for name, v in flatten(value).items()}
    else:
      flat[key] = value
  return dict(sorted(flat.items()))


def warmup_updates(config: ConfigDict) -> int:
  """Warm-up of the learning rate, in updates."""
  return config.optimizer.warmup_updates or round(
    config.optimizer.warmup_fraction * config.budget.updates
  )


def decay_updates(config: ConfigDict) -> int:
  """Updates of the learning rate's decay, which ends the run."""
  after_warmup = config.budget.updates - warmup_updates(config)
  return round(config.optimizer.decay_fraction * after_warmup)


def label_sets(config: ConfigDict) -> list[str]:
  """The entries of `hubert.labels`: "mfcc" or a folder."""
  return [entry.strip() for entry in config.hubert.labels.split(",")]


def stored_label_sets(config: ConfigDict) -> list[str]:
  """The folders whose labels come with the batches."""
  if config.objective.name != "hubert":
    return []
  return [entry for entry in label_sets(config) if entry != "mfcc"]


def to_json(config: ConfigDict) -> str:
  """The resolved config, as saved in a workdir."""
  return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)
