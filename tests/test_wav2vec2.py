"""wav2vec 2.0's quantizer and losses against transformers'."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ssl_jax import config as config_lib
from ssl_jax.objectives import wav2vec2

GROUPS, CODES, NEGATIVES, TEMPERATURE = 2, 12, 7, 1.7


def without_noise(logits, tau=1, hard=False, eps=None, dim=-1):
  """torch's gumbel_softmax, its noise left out."""
  soft = (logits / tau).softmax(dim)
  chosen = torch.zeros_like(logits).scatter_(
    dim, soft.argmax(dim, keepdim=True), 1.0
  )
  return chosen - soft.detach() + soft


@pytest.fixture(scope="module")
def pair():
  """The reference in training mode, our objective, and one batch for both."""
  torch.manual_seed(0)
  reference = transformers.Wav2Vec2ForPreTraining(
    transformers.Wav2Vec2Config(
      hidden_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=96,
      num_conv_pos_embeddings=128,
      num_conv_pos_embedding_groups=16,
      num_codevectors_per_group=CODES,
      num_codevector_groups=GROUPS,
      codevector_dim=16,
      proj_codevector_dim=16,
      num_negatives=NEGATIVES,
      diversity_loss_weight=0.1,
      layerdrop=0.0,
      hidden_dropout=0.0,
      attention_dropout=0.0,
      activation_dropout=0.0,
      feat_proj_dropout=0.0,
      feat_quantizer_dropout=0.0,
      attn_implementation="eager",
    )
  ).train()
  reference.set_gumbel_temperature(TEMPERATURE)

  config = config_lib.base()
  config.objective.name = "wav2vec2"
  config.encoder.num_layers = 2
  config.encoder.hidden_size = 48
  config.encoder.num_heads = 4
  config.encoder.ffn_size = 96
  config.frontend.grad_mult = 1.0
  for name in ("input_dropout", "dropout", "attention_dropout", "layerdrop"):
    config.encoder[name] = 0.0
  config.wav2vec2.feature_dropout = 0.0
  config.wav2vec2.num_groups, config.wav2vec2.num_codes = GROUPS, CODES
  config.wav2vec2.code_dim = config.wav2vec2.final_dim = 16
  config.wav2vec2.temperature_start = TEMPERATURE
  config.wav2vec2.num_negatives = NEGATIVES

  weights = {n: p.detach().numpy() for n, p in reference.named_parameters()}

  def dense(name):
    return {
      "kernel": weights[f"{name}.weight"].T,
      "bias": weights[f"{name}.bias"],
    }

  params = {
    "backbone": hf.imported(reference)[1],
    "quantizer": {
      "logits": dense("quantizer.weight_proj"),
      "vectors": weights["quantizer.codevectors"].reshape(GROUPS, CODES, -1),
    },
    "quantizer_proj": dense("project_q"),
    "final_proj": dense("project_hid"),
  }

  rng = np.random.default_rng(0)
  waveform = (0.1 * rng.normal(size=(3, 9_600))).astype(np.float32)
  frames = 29
  mask = rng.random((3, frames)) < 0.5
  negatives = np.stack(
    [
      np.stack(
        [
          rng.choice(np.setdiff1d(np.flatnonzero(row), [t]), NEGATIVES)
          for t in range(frames)
        ]
      )
      for row in mask
    ]
  )
  inputs = {
    "waveform": jnp.asarray(waveform),
    "length": jnp.full(3, 9_600),
    "draw_id": jnp.arange(3),
    "mask": jnp.asarray(mask),
    "frame_mask": jnp.ones(mask.shape, bool),
    "targets": jnp.asarray(negatives),
  }
  return reference, wav2vec2.Wav2Vec2(config, jnp.float32), params, inputs


def run_reference(reference, inputs):
  offset = np.arange(3)[:, None, None] * inputs["mask"].shape[1]
  return reference(
    torch.tensor(np.asarray(inputs["waveform"])),
    mask_time_indices=torch.tensor(np.asarray(inputs["mask"])),
    sampled_negative_indices=torch.tensor(
      np.asarray(inputs["targets"]) + offset
    ),
  )


def loss(objective, params, inputs):
  totals = objective.apply(
    {"params": params}, inputs, jax.random.key(0), jnp.zeros((), jnp.int32)
  )
  counts = objective.counts(inputs)
  values = objective.values({n: totals[n] / counts[n] for n in counts})
  return values["contrastive"] + 0.1 * values["diversity"], values


def test_losses_and_gradients_equal_transformers(pair, monkeypatch):
  reference, objective, params, inputs = pair
  monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", without_noise)
  monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape))
  theirs = run_reference(reference, inputs)
  (ours, values), gradients = jax.jit(
    jax.value_and_grad(
      lambda params: loss(objective, params, inputs), has_aux=True
    )
  )(params)

  masked = int(inputs["mask"].sum())
  for name, term in {
    "contrastive": theirs.contrastive_loss,
    "diversity": theirs.diversity_loss,
  }.items():
    assert values[name] == pytest.approx(term.item() / masked, abs=1e-4), name
  assert ours == pytest.approx(theirs.loss.item() / masked, abs=1e-4)

  reference.zero_grad()
  (theirs.loss / masked).backward()
  named = dict(reference.named_parameters())
  encoder = gradients["backbone"]["encoder"]
  for name, ours in {
    "quantizer.weight_proj.weight": gradients["quantizer"]["logits"][
      "kernel"
    ].T,
    "quantizer.codevectors": gradients["quantizer"]["vectors"].reshape(
      1, GROUPS * CODES, -1
    ),
    "project_q.weight": gradients["quantizer_proj"]["kernel"].T,
    "project_hid.bias": gradients["final_proj"]["bias"],
    "wav2vec2.masked_spec_embed": gradients["backbone"]["mask_vector"],
    "wav2vec2.encoder.layers.1.attention.q_proj.weight": encoder["layers"][
      "query"
    ]["kernel"][1].T,
    "wav2vec2.feature_extractor.conv_layers.3.conv.weight": gradients[
      "backbone"
    ]["stem"]["conv3"]["kernel"].transpose(2, 1, 0),
  }.items():
    expected = named[name].grad.numpy()
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < 1e-3, name


def test_quantizer_equals_transformers(pair):
  reference, objective, params, _ = pair
  features = np.random.default_rng(1).normal(size=(2, 20, 512))
  features = features.astype(np.float32)
  reference.eval()  # The likeliest code, as ours without keys.
  with torch.no_grad():
    theirs, _ = reference.quantizer(torch.tensor(features))
  reference.train()
  quantized = wav2vec2.Quantizer(objective.config.wav2vec2).apply(
    {"params": params["quantizer"]}, features, TEMPERATURE, None
  )
  np.testing.assert_allclose(quantized.vectors, theirs.numpy(), atol=1e-6)
  logits = features @ params["quantizer"]["logits"]["kernel"]
  logits = logits.reshape(2, 20, GROUPS, CODES)
  np.testing.assert_array_equal(quantized.codes, logits.argmax(-1))
  np.testing.assert_allclose(quantized.probabilities.sum(-1), 1, atol=1e-5)


def test_noise_draws_codes_in_proportion_to_their_probability(pair):
  _, objective, params, _ = pair
  # At temperature 1 a Gumbel softmax is a draw from the softmax, and its
  # argmax at any temperature.
  small = {
    "logits": {
      "kernel": params["quantizer"]["logits"]["kernel"] * 0.03,
      "bias": params["quantizer"]["logits"]["bias"],
    },
    "vectors": np.eye(CODES, dtype=np.float32)[None].repeat(GROUPS, 0),
  }
  config = objective.config.wav2vec2.copy_and_resolve_references()
  config.code_dim = GROUPS * CODES
  frame = np.random.default_rng(2).normal(size=(1, 1, 512))
  features = np.repeat(frame.astype(np.float32), 20_000, axis=1)
  drawn = wav2vec2.Quantizer(config).apply(
    {"params": small}, features, 0.7, jax.random.split(jax.random.key(0), 1)
  )
  shares = drawn.vectors.reshape(-1, GROUPS, CODES).mean(axis=0)
  np.testing.assert_allclose(shares, drawn.probabilities[0, 0], atol=0.015)


def test_negatives_are_other_masked_frames_drawn_uniformly(pair):
  mask = jnp.asarray(np.random.default_rng(3).random(40) < 0.4)
  drawn = wav2vec2._sample_negatives(jax.random.key(0), mask, 20_000)
  masked = np.flatnonzero(mask)
  for frame in masked:
    counts = np.bincount(drawn[frame], minlength=40)
    assert counts[frame] == 0
    assert counts[~np.asarray(mask)].sum() == 0
    expected = 20_000 / (len(masked) - 1)
    others = counts[np.setdiff1d(masked, [frame])]
    assert np.abs(others - expected).max() < 6 * expected**0.5


def test_the_only_masked_frame_is_not_its_own_negative():
  mask = jnp.arange(9) == 4
  drawn = wav2vec2._sample_negatives(jax.random.key(0), mask, 50)
  assert not (drawn[4] == 4).any()


def test_a_negative_of_the_same_code_does_not_count():
  targets = jnp.asarray(np.random.default_rng(4).normal(size=(1, 6, 8)))
  codes = jnp.array([[[0, 1], [0, 1], [2, 1], [0, 3], [4, 4], [0, 1]]])
  negatives = jnp.array([[[1, 2, 3]] * 6])
  loss, correct, chance = wav2vec2.info_nce(
    targets, targets, codes, negatives, 0.1
  )
  cosine = np.asarray(targets[0] / np.linalg.norm(targets[0], axis=1)[:, None])
  cosine = 10 * cosine @ cosine.T
  # Frame 0 shares both codes with frame 1.
  others = np.exp(cosine[0, [2, 3]]).sum()
  expected = np.log(np.exp(cosine[0, 0]) + others) - cosine[0, 0]
  assert loss[0, 0] == pytest.approx(expected, rel=1e-4)
  np.testing.assert_allclose(chance[0, [0, 4]], np.log([3, 4]), rtol=1e-6)
  assert correct[0, 0]
  collapsed, *_ = wav2vec2.info_nce(
    targets, targets, jnp.zeros_like(codes), negatives, 0.1
  )
  np.testing.assert_array_equal(collapsed, 0)


def test_temperature_falls_to_its_end(pair):
  config = config_lib.base()
  config.objective.name = "wav2vec2"
  objective = wav2vec2.Wav2Vec2(config, jnp.float32)
  for update in (0, 1, 1_000, 100_000, 250_000, 400_000):
    expected = max(2.0 * 0.999995**update, 0.5)
    value = objective.schedules(update)["temperature"]
    assert value == pytest.approx(expected, rel=1e-4)


def test_chance_is_the_loss_of_context_without_content(pair):
  _, objective, params, inputs = pair
  blind = jax.tree.map(jnp.asarray, params)
  blind["final_proj"] = jax.tree.map(jnp.zeros_like, blind["final_proj"])
  _, values = jax.jit(lambda params: loss(objective, params, inputs))(blind)
  expected = pytest.approx(float(values["chance"]), rel=1e-5)
  assert float(values["contrastive"]) == expected
