"""Encoders that see visible frames only, against transformers and torch."""

import functools

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_backbone import run, speech
from tiny import finished_run, reproducible, tiny

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.budget import updates
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.decoder import Decoder
from ssl_jax.models.encoders import positions
from ssl_jax.models.norm import layer_norm
from ssl_jax.pretrained import heads
from ssl_jax.signal import masking
from ssl_jax.training import loop

SHARE, SPAN = 0.6, 4


def one_by_one(order, frames, share):
  """Spans masked one after the other until the share is reached."""
  mask, left = np.zeros(frames, bool), masking.masked_of(share, frames)
  for start in order:
    for frame in range(max(0, start), min(frames, start + SPAN)):
      if not mask[frame] and left:
        mask[frame], left = True, left - 1
  return mask


@pytest.mark.parametrize("frames", [1, 2, 3, 37, 90, 100])
def test_spans_are_masked_until_the_share_is_reached(frames):
  keys = jax.random.split(jax.random.key(1), 50)
  draw = jax.jit(
    functools.partial(
      masking.sample_share, max_frames=100, share=SHARE, mask_length=SPAN
    )
  )
  masks = np.asarray(draw(keys, jnp.full(50, frames)))
  assert not masks[:, frames:].any()
  assert {*masks.sum(axis=1)} == {max(1, int(0.6 * frames + 1e-9))}
  for mask, key in zip(masks, keys):
    # The draws it is made of, a start each from 1 - SPAN on.
    noise = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(103)]
    order = np.argsort(np.array(noise), kind="stable") - (SPAN - 1)
    np.testing.assert_array_equal(mask[:frames], one_by_one(order, frames, 0.6))
    if frames > 50:
      break  # One of the long ones.


def test_frames_are_masked_equally_often_and_rows_by_themselves():
  keys = jax.random.split(jax.random.key(0), 4_000)
  masks = masking.sample_share(keys, jnp.full(4_000, 50), 64, SHARE, SPAN)
  often = np.asarray(masks).mean(axis=0)[:50]
  assert np.abs(often - 0.6).max() < 0.04
  few = masking.sample_share(keys[:3], jnp.array([50, 0, 7]), 64, SHARE, SPAN)
  np.testing.assert_array_equal(few[0], masks[0])
  assert few.sum(axis=1).tolist() == [30, 0, 4]


def visible_pair():
  reference, config, params = hf.tiny_pair("layer")
  config.encoder.visible_only, config.masking.share = True, SHARE
  return reference, config, params


def test_layers_see_what_transformers_layers_see_of_visible_frames():
  reference, config, params = visible_pair()
  waveform, length = speech(16_000, 9_999)
  frames = num_frames(length)
  mask = masking.sample_share(
    jax.random.split(jax.random.key(2), 2), jnp.asarray(frames), 49, SHARE, SPAN
  )
  mask = np.array(mask)
  states = run(
    Backbone(config), params, waveform, length, mask, all_states=True
  ).hidden
  assert states.shape[2] == 49 - 29  # Of 49 frames 29 are masked.
  encoder, seen = reference.encoder, torch.from_numpy(~mask)
  with torch.no_grad():
    for row, count in enumerate(frames):
      clip = torch.from_numpy(waveform[row : row + 1, : length[row]])
      features = reference.feature_extractor(clip).transpose(1, 2)
      x = reference.feature_projection(features)
      hidden = torch.from_numpy(mask[row : row + 1, :count])
      x[hidden] = reference.masked_spec_embed
      x = encoder.layer_norm(x + encoder.pos_conv_embed(x))
      x = x[:, seen[row, :count]]
      expected = [x]
      for layer in encoder.layers:
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
        expected.append(x)
      for ours, theirs in zip(states[:, row], expected):
        np.testing.assert_allclose(
          ours[: theirs.shape[1]], theirs[0].numpy(), atol=1e-4, rtol=0
        )


def test_rotary_places_are_those_in_the_clip():
  config = config_lib.base().encoder
  config.update(name="rope", hidden_size=48, num_heads=4, ffn_size=96)
  config.update(num_layers=1, position_kernel=3, position_groups=4)
  encoder, block = encoders.make(config), encoders.make_block(config)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 12, 48)).astype(np.float32)
  places = np.array([[0, 3, 4, 9, 11]])
  seen = np.isin(np.arange(12), places)[None]
  whole, ids = np.ones((1, 12), bool), jnp.arange(1)
  params = encoder.init(jax.random.key(0), x, whole, None, ids)["params"]
  passed = encoder.apply(
    {"params": params}, x, whole, None, ids, False, seen, 5
  )

  moved = positions.Positions(config).apply({"params": params["positions"]}, x)
  own = {"params": jax.tree.map(lambda leaf: leaf[0], params["layers"])}
  some, frames = (x + moved)[:, places[0]], jnp.array([5])

  def by_hand(*places):
    y = block.apply(own, some, frames, None, *places)
    return layer_norm(y, params["norm"]["scale"], params["norm"]["bias"])

  np.testing.assert_allclose(passed, by_hand(places), atol=1e-5)
  # Distances count: not where a clip begins, but what was left out.
  np.testing.assert_allclose(passed, by_hand(places + 7), atol=1e-5)
  assert np.abs(passed - by_hand()).max() > 1e-3


def test_the_decoder_equals_torch():
  config = config_lib.base().encoder
  config.hidden_size, config.position_groups = 48, 16
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 48)).astype(np.float32)
  frames = np.arange(20) < np.array([[20], [13]])
  seen = np.zeros((2, 20), bool)
  places = np.zeros((2, 9), int)
  for row, most in enumerate((20, 13)):
    places[row] = np.sort(rng.permutation(most)[:9])
    seen[row, places[row]] = True
  decoder = Decoder(config)
  params = jax.tree.map(
    lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
    decoder.init(jax.random.key(0), x, seen, frames)["params"],
  )
  found = jax.jit(decoder.apply)({"params": params}, x, seen, frames)

  tensors = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
  for row, count in enumerate((20, 13)):
    y = tensors["mask_vector"].repeat(count, 1)
    dense = tensors["projection"]
    y[places[row]] = torch.tensor(x[row]) @ dense["kernel"] + dense["bias"]
    for i in range(4):
      kernel = tensors[f"kernel_{i}"].permute(2, 1, 0)  # [out, in, taps]
      z = torch.nn.functional.conv1d(
        y.T[None], kernel, tensors[f"bias_{i}"], padding=3, groups=16
      )[0].T
      y = y + torch.nn.functional.gelu(torch.nn.functional.layer_norm(z, (48,)))
    np.testing.assert_allclose(
      found[row, :count], y.numpy(), atol=2e-4, rtol=1e-4
    )


def test_it_trains_costs_less_and_is_used_whole():
  config = tiny()
  config.hubert.loss, config.masking.share = "linear", SHARE
  whole = updates.clip_flops(config, 32_000)
  config.encoder.visible_only = True
  ours = updates.clip_flops(config, 32_000)
  # 40 of 99 frames pass the layers; all get positions.
  assert ours.positions == whole.positions and ours.head == whole.head
  assert ours.ffn * 99 == whole.ffn * 40 and ours.decoder > 0
  encoder = ssl_jax.load(finished_run(config))
  assert "decoder" not in encoder.params
  assert encoder(np.zeros(16_000, np.float32)).shape[-2] == num_frames(16_000)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({}, "set config.masking.share"),
    ({"masking.share": 0.5, "objective.name": "tera"}, "TERA"),
    (
      {"masking.share": 0.5, "hubert.layers": (1,)},
      "leave layers empty",
    ),
  ],
)
def test_what_it_cannot_be_used_with_is_refused(given, said):
  config = tiny()
  config.encoder.visible_only = True
  config.update_from_flattened_dict(given)
  with pytest.raises(UserError, match=said):
    config_lib.validate(config)


def visible(updates=3, objective="hubert"):
  config = tiny(updates, objective)
  config.encoder.visible_only, config.masking.share = True, SHARE
  return config


def test_however_it_is_computed_it_is_the_same_run():
  plain = reproducible(finished_run(visible()))
  config = visible()
  config.encoder.scan_layers, config.encoder.remat = True, "full"
  config.batch.microbatches = 2
  for ours, theirs in zip(
    plain, reproducible(finished_run(config)), strict=True
  ):
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_head_of_the_decoder_is_none_of_the_encoder(tmp_path):
  first = finished_run(visible(objective="wav2vec2"))
  assert heads.load_heads(ssl_jax.load(first)) is None
  config = visible(objective="wav2vec2")
  config.init_from = str(first)
  result = loop.train(config, tmp_path / "second")
  assert result["updates"] == 3


def test_an_encoder_that_cannot_leave_frames_out_is_refused(tmp_path):
  config = tiny(2)
  config.encoder.name = "conformer"
  other = visible()
  other.init_from = str(finished_run(config))
  with pytest.raises(UserError, match="'conformer' needs all frames"):
    loop.train(other, tmp_path / "second")
