"""The encoder against transformers, and what padding must not change."""

import functools

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.models import frontends, placement
from ssl_jax.models.backbone import Backbone, frame_mask
from ssl_jax.models.encoders.positions import grouped_conv

TOLERANCE = 1e-4


def run(backbone, params, *arguments, **options):
  """The backbone applied, as one program. -> Encoded."""
  apply = jax.jit(functools.partial(backbone.apply, **options))
  return apply({"params": params}, *arguments)


def speech(
  *lengths: int, to: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Coloured noise with pauses. -> waveform [B, S], length [B]."""
  rng = np.random.default_rng(0)
  waveform = np.zeros((len(lengths), to or max(lengths)), np.float32)
  for row, n in zip(waveform, lengths):
    x = np.cumsum(rng.normal(size=n)) * 0.01
    row[:n] = (x - x.mean()) * (np.sin(np.arange(n) / 900) > -0.3)
  return waveform, np.array(lengths, np.int32)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_hidden_states_equal_transformers_without_padding(norm):
  reference, config, params = hf.tiny_pair(norm)
  waveform, length = speech(16_000, 16_000)
  with torch.no_grad():
    expected = reference(
      torch.from_numpy(waveform), output_hidden_states=True
    ).hidden_states
  backbone = Backbone(config, jnp.float32)
  states = run(backbone, params, waveform, length, all_states=True).hidden
  assert len(states) == len(expected) == config.encoder.num_layers + 1
  for ours, theirs in zip(states, expected):
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_hidden_states_equal_transformers_with_padding_and_mask():
  reference, config, params = hf.tiny_pair("layer")
  waveform, length = speech(16_000, 9_999)
  attention_mask = torch.arange(16_000) < torch.from_numpy(length)[:, None]
  mask = np.zeros((2, 49), bool)
  mask[0, 5:25] = mask[1, 3:17] = True
  with torch.no_grad():
    expected = reference(
      torch.from_numpy(waveform),
      attention_mask=attention_mask.long(),
      mask_time_indices=torch.from_numpy(mask),
      output_hidden_states=True,
    ).hidden_states
  backbone = Backbone(config, jnp.float32)
  states = run(backbone, params, waveform, length, mask, all_states=True).hidden
  real = np.asarray(frame_mask(length, 49))
  for ours, theirs in zip(states, expected):
    np.testing.assert_allclose(
      ours[real], theirs.numpy()[real], atol=TOLERANCE, rtol=0
    )


def test_number_of_frames_equals_transformers():
  reference, _, _ = hf.tiny_pair("group")
  for n in [400, 719, 720, 721, 16_000, 32_000, 224_000, 249_999, 250_000]:
    assert num_frames(n) == int(reference._get_feat_extract_output_lengths(n))
    assert int(num_frames(jnp.array(n))) == num_frames(n)
  assert num_frames(399) == num_frames(0) == 0


@pytest.mark.parametrize(
  ("name", "norm", "normalize"),
  [
    ("waveform", "group", False),
    ("waveform", "layer", True),
    ("logmel", "group", False),
  ],
)
def test_padding_never_changes_features(name, norm, normalize):
  _, config, params = hf.tiny_pair(norm)
  config.frontend.name = name
  config.frontend.normalize_waveform = normalize
  backbone = Backbone(config, jnp.float32)
  lengths = (400, 5_120, 8_000)
  waveform, length = speech(*lengths)
  if name == "logmel":
    init = jax.jit(backbone.init)
    params = init(jax.random.key(0), waveform, length)["params"]
  rng = np.random.default_rng(1)
  alone = [
    run(backbone, params, waveform[i : i + 1, :n], length[i : i + 1]).hidden[0]
    for i, n in enumerate(lengths)
  ]
  for bucket in (8_000, 8_321, 16_000):
    # Garbage rather than zeros: nothing after a clip's end may be read.
    padded = rng.normal(size=(3, bucket)).astype(np.float32)
    for row, clip, n in zip(padded, waveform, lengths):
      row[:n] = clip[:n]
    hidden = run(backbone, params, padded, length).hidden
    for ours, expected, n in zip(hidden, alone, lengths):
      frames = num_frames(n)
      np.testing.assert_allclose(
        ours[:frames], expected[:frames], atol=2e-5, rtol=0
      )


def test_scanned_layers_equal_unrolled_with_the_same_parameters():
  _, config, params = hf.tiny_pair("group")
  waveform, length = speech(8_000, 6_000)
  key = jax.random.key(3)
  outputs = []
  for scan in (False, True):
    config.encoder.scan_layers = scan
    backbone = Backbone(config, jnp.float32)
    options = {"key": key, "all_states": True}
    outputs.append(run(backbone, params, waveform, length, **options).hidden)
    shapes = jax.eval_shape(backbone.init, key, waveform, length)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scan", [False, True])
def test_layerdrop_skips_the_layer_and_its_compute(scan):
  _, config, params = hf.tiny_pair("group", num_layers=8)
  config.encoder.layerdrop = 0.5
  config.encoder.scan_layers = scan
  config.encoder.dropout = config.encoder.attention_dropout = 0.0
  waveform, length = speech(4_000)
  backbone = Backbone(config, jnp.float32)

  def states(key):
    return backbone.apply(
      {"params": params}, waveform, length, key=key, all_states=True
    ).hidden

  kept = []
  for seed in range(40):
    hidden = jax.jit(states)(jax.random.key(seed))
    kept += [
      bool(jnp.any(before != after))
      for before, after in zip(hidden, hidden[1:])
    ]
  assert 0.4 < np.mean(kept) < 0.6  # 320 draws: 3.6 standard deviations.
  # A branch of the program, not a select: the skipped layer is never run.
  program = jax.make_jaxpr(states)(jax.random.key(0)).pretty_print()
  # Unrolled layers call one program.
  assert program.count("cond[") == 1
  assert program.count("name=apply_layer") == (1 if scan else 8)


def test_stem_gradient_is_scaled():
  _, config, params = hf.tiny_pair("group")
  waveform, length = speech(4_000)

  # The factor is traced: two programs would round each its own way.
  @jax.jit
  @jax.grad
  def gradient(params, factor):
    with config.ignore_type():
      config.frontend.grad_mult = factor
    backbone = Backbone(config, jnp.float32)
    hidden = backbone.apply({"params": params}, waveform, length).hidden
    return jnp.square(hidden - 1).sum()

  full, scaled = gradient(params, 1.0), gradient(params, 0.1)
  for a, b in zip(
    jax.tree.leaves(full["stem"]), jax.tree.leaves(scaled["stem"])
  ):
    scale = float(np.abs(a).max())
    np.testing.assert_allclose(b, 0.1 * a, atol=1e-5 * scale, rtol=0)
  np.testing.assert_array_equal(
    scaled["projection"]["kernel"], full["projection"]["kernel"]
  )


@pytest.mark.parametrize(
  ("taps", "width", "groups", "frames"),
  [
    (128, 48, 2, 99),
    (128, 48, 2, 20),
    (5, 8, 2, 3),
    (8, 8, 1, 16),
    (1, 4, 4, 9),
  ],
)
def test_grouped_convolution_equals_xlas_and_so_do_gradients(
  taps, width, groups, frames
):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, frames, width))
  kernel = jax.random.normal(keys[1], (taps, width // groups, width))
  dy = jax.random.normal(keys[2], x.shape)

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1,),
      [(taps // 2, (taps - 1) // 2)],
      dimension_numbers=("NWC", "WIO", "NWC"),
      feature_group_count=groups,
    )

  expected, expected_grads = jax.vjp(jax.jit(plain), x, kernel)
  found, found_grads = jax.vjp(jax.jit(grouped_conv), x, kernel)
  for a, b in zip(
    (found, *found_grads(dy)), (expected, *expected_grads(dy)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def make_stem(norm, dtype):
  config = config_lib.base().frontend
  config.norm, config.conv_bias, config.grad_mult = norm, norm == "layer", 1.0
  return frontends.make(config, dtype)


class Segments(placement.Placement):
  """A TPU that has each clip computed as several segments."""

  def __init__(self, count):
    super().__init__("tpu")
    self._count = count

  def segments(self, rows, size):
    return self._count


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
  ("segments", "size"),
  [
    (2, 16_001),  # In one go.
    (8, 4_001),  # Eight rows at a time.
    *(pytest.param(2, x, marks=pytest.mark.slow) for x in (16_000, 12_345)),
    pytest.param(8, 16_001, marks=pytest.mark.slow),
  ],
)
def test_stem_in_segments_equals_whole(norm, segments, size):
  waveform, length = speech(size, size * 3 // 4, to=size)
  stem = make_stem(norm, jnp.float32)
  params = jax.jit(stem.init)(jax.random.key(0), waveform[:, :800], length)

  @jax.jit
  def whole(params):
    return stem.apply(params, waveform, length)

  @jax.jit
  def cut(params):
    with placement.use(Segments(segments)):
      return stem.apply(params, waveform, length)

  expected, expected_transpose = jax.vjp(whole, params)
  found, transpose = jax.vjp(cut, params)
  np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
  dy = jax.random.normal(jax.random.key(1), expected.shape)
  for a, b in zip(
    jax.tree.leaves(transpose(dy)), jax.tree.leaves(expected_transpose(dy))
  ):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)


def test_an_offset_of_the_microphone_changes_nothing_in_bfloat16():
  waveform, length = speech(8_000, 6_000)
  stem = make_stem("group", jnp.bfloat16)
  params = jax.jit(stem.init)(jax.random.key(0), waveform, length)
  found, expected = (
    np.asarray(jax.jit(stem.apply)(params, x, length), np.float32)[0]
    for x in (waveform + 0.3 * waveform.std() + 0.1, waveform)
  )
  assert np.abs(found - expected).max() < 0.04 * expected.std()
