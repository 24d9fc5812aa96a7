"""HuBERT's loss against float64 NumPy, and what its targets are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.objectives import hubert
from ssl_jax.signal import fbank

CLUSTERS = (11, 6)


@pytest.fixture(scope="module")
def case():
  """A tiny model with two stored label sets, and a padded batch."""
  config = config_lib.base()
  config.hubert.labels, config.hubert.clusters = "one,two", CLUSTERS
  config.hubert.unmasked_weight = 0.3
  config.hubert.final_dim = 8
  config.encoder.num_layers = 1
  config.encoder.hidden_size = 16
  config.encoder.num_heads = 2
  config.encoder.ffn_size = 32
  rng = np.random.default_rng(0)
  length = np.array([9_600, 6_000])
  waveform = 0.1 * rng.normal(size=(2, 9_600)).astype(np.float32)
  waveform *= np.arange(9_600) < length[:, None]
  frame_mask = np.arange(29) < np.array([29, 18])[:, None]
  labels = rng.integers(0, CLUSTERS, (2, 29, 2)).astype(np.uint16)
  labels[0, 3] = 0xFFFF  # A frame without label.
  inputs = {
    "waveform": jnp.asarray(waveform),
    "length": jnp.asarray(length),
    "draw_id": jnp.arange(2),
    "frame_mask": jnp.asarray(frame_mask),
    "mask": jnp.asarray(frame_mask & (rng.random((2, 29)) < 0.5)),
    "labels": jnp.asarray(labels),
  }
  objective = hubert.Hubert(config, jnp.float32)
  inputs["targets"] = objective.targets(inputs, None)
  params = objective.init(jax.random.key(0), inputs, None, 0)["params"]
  return objective, params, inputs


def values(objective, params, inputs):
  totals = objective.apply({"params": params}, inputs, None, 0)
  counts = objective.counts(inputs)
  return objective.values({n: totals[n] / counts[n] for n in counts})


def test_loss_equals_float64_numpy(case):
  objective, params, inputs = case
  found = jax.jit(lambda p: values(objective, p, inputs))(params)

  from ssl_jax.models.backbone import Backbone

  encoded = Backbone(objective.config, jnp.float32).apply(
    {"params": params["backbone"]},
    inputs["waveform"],
    inputs["length"],
    inputs["mask"],
  )
  hidden = np.asarray(encoded.hidden, np.float64)
  head = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  projected = hidden @ head["final_proj"]["kernel"] + head["final_proj"]["bias"]
  labels = np.asarray(inputs["labels"]).astype(int)
  known = np.asarray(inputs["frame_mask"]) & (labels[..., 0] != 0xFFFF)
  masked = np.asarray(inputs["mask"]) & known
  unmasked = ~np.asarray(inputs["mask"]) & known
  expected = {"cross_entropy": 0, "unmasked_cross_entropy": 0, "chance": 0}
  accuracy = 0
  for i, clusters in enumerate(CLUSTERS):
    x = projected[..., 8 * i : 8 * i + 8]
    e = head[f"label_embeddings_{i}"]
    cosine = np.einsum("btd,kd->btk", x, e) / (
      np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(e, axis=-1)
    )
    p = np.exp(cosine / 0.1)
    p /= p.sum(axis=-1, keepdims=True)
    for name, where in {
      "cross_entropy": masked,
      "unmasked_cross_entropy": unmasked,
    }.items():
      chosen = [p[b, t, labels[b, t, i]] for b, t in np.argwhere(where)]
      expected[name] += -np.log(chosen).mean()
    accuracy += (p.argmax(-1) == labels[..., i])[masked].mean() / 2
    share = np.bincount(labels[masked][:, i], minlength=clusters)
    share = share / share.sum()
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
    expected["chance"] += entropy
    assert found[f"label_perplexity_{i}"] == pytest.approx(
      np.exp(entropy), rel=1e-4
    )
    assert found[f"unused_labels_{i}"] == (share == 0).sum()
  real = np.asarray(inputs["frame_mask"])
  expected["feature_penalty"] = np.square(
    np.asarray(encoded.features, np.float64)
  )[real].mean()
  expected["accuracy"] = accuracy
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-4), name
  loss = sum(w * found[name] for name, w in objective.weights.items())
  assert float(loss) == pytest.approx(
    expected["cross_entropy"]
    + 0.3 * expected["unmasked_cross_entropy"]
    + 10 * expected["feature_penalty"],
    rel=1e-4,
  )


def reference_frames(name, inputs):
  """A label set's 10 ms frames, from SciPy and NumPy in float64."""
  count = fbank.num_fbank_frames(np.asarray(inputs["length"]))

  def standardised(frames):
    frames = np.asarray(frames, np.float64)
    return [
      (clip[:n] - clip[:n].mean(axis=0)) / clip[:n].std(axis=0)
      for clip, n in zip(frames, count)
    ]

  if name == "dct_clip":
    clips = standardised(fbank.log_mel(inputs["waveform"], 80))
    padded = [np.pad(clip, ((3, 4), (0, 0))) for clip in clips]
    return [
      np.stack(
        [
          scipy.fft.dctn(clip[i : i + 8], norm="ortho")[:3, :13].T.ravel()
          for i in range(len(clip) - 7)
        ]
      )
      for clip in padded
    ]
  frames = fbank.mfcc_with_deltas(inputs["waveform"], inputs["length"])
  if name == "mfcc_clip":
    return standardised(frames)
  return [np.asarray(x, np.float64)[:n] for x, n in zip(frames, count)]


@pytest.mark.parametrize("name", ["mfcc", "mfcc_clip", "dct_clip"])
def test_labels_are_every_second_frames_nearest_centroid(case, name):
  _, _, inputs = case
  config = config_lib.base()
  config.hubert.clusters, config.hubert.labels = (7,), name
  rng = np.random.default_rng(1)
  frames = reference_frames(name, inputs)
  codebook = frames[0][rng.choice(40, 7, replace=False)]
  codebook = codebook.astype(np.float32)
  objective = hubert.Hubert(config, jnp.float32, (codebook,))
  assert objective.fitted_codebooks() == [(name, 7)]
  labels = objective.targets(inputs, None)[..., 0]
  for row, count in enumerate([29, 18]):
    every = frames[row][0 : 2 * count : 2, None]
    expected = np.square(every - codebook).sum(axis=-1).argmin(axis=-1)
    # The last encoder frame may begin where no whole 10 ms frame does.
    np.testing.assert_array_equal(labels[row, : len(expected)], expected)
    assert count - len(expected) <= 0
    assert (labels[row, count:] == -1).all()


def test_frames_without_a_label_do_not_count(case):
  objective, _, inputs = case
  masked = inputs | {"mask": inputs["mask"].at[0, 3].set(True)}
  labelled = masked | {"labels": masked["labels"].at[0, 3].set(0)}
  labelled["targets"] = objective.targets(labelled, None)
  count = objective.counts(masked)["cross_entropy"]
  assert objective.counts(labelled)["cross_entropy"] == count + 1


def test_symptoms_name_what_to_change():
  objective = hubert.Hubert(config_lib.base(), jnp.float32)
  healthy = {"label_perplexity": 60.0, "unused_labels": 3.0}
  assert objective.symptoms(healthy) == {}
  collapsed = {"label_perplexity": 2.0, "unused_labels": 97.0}
  found = objective.symptoms(collapsed)
  assert "2.0 of 100 clusters" in found["label_perplexity"]
  assert "config.kmeans.num_frames" in found["label_perplexity"]
  assert "config.hubert.clusters" in found["unused_labels"]


# Several heads, and linear ones.


@pytest.fixture(
  scope="module", params=["cosine", "linear"], ids=["cosine", "linear"]
)
def headed(request, case):
  """Three heads, two of the same labels, on a pre-norm encoder."""
  config = case[0].config.copy_and_resolve_references()
  config.hubert.labels, config.hubert.clusters = "one,two,one", (11, 6, 11)
  config.hubert.layers, config.hubert.label_weights = (1, 0, 2), (0.5, 1, 2.0)
  config.hubert.loss, config.hubert.unmasked_weight = request.param, 0.0
  config.encoder.num_layers, config.encoder.norm_first = 2, True
  config.frontend.name = "logmel"
  objective = hubert.Hubert(config, jnp.float32)
  objective.check()
  inputs = dict(case[2])
  inputs["targets"] = objective.targets(inputs, None)
  params = objective.init(jax.random.key(0), inputs, None, 0)["params"]
  return objective, params, inputs


def test_heads_after_layers_equal_float64_numpy(headed):
  objective, params, inputs = headed
  assert objective.stored_labels() == [("one", 11), ("two", 6)]
  assert inputs["targets"].shape == (2, 29, 2)  # The set named twice is one.
  found = jax.jit(lambda p: values(objective, p, inputs))(params)

  from ssl_jax.models.backbone import Backbone

  states = Backbone(objective.config, jnp.float32).apply(
    {"params": params["backbone"]},
    inputs["waveform"],
    inputs["length"],
    inputs["mask"],
    all_states=True,
  )
  states = np.asarray(states.hidden, np.float64)
  head = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  # The first layer's state has no norm yet; the last one's is the encoder's.
  first = states[1] - states[1].mean(axis=-1, keepdims=True)
  first /= np.sqrt(np.square(first).mean(axis=-1, keepdims=True) + 1e-5)
  first = first * head["norm_1"]["scale"] + head["norm_1"]["bias"]
  labels = np.asarray(inputs["labels"]).astype(int)
  masked = np.asarray(inputs["mask"]) & (labels[..., 0] != 0xFFFF)
  total = 0
  heads = [(first, 0, 0.5, "_1", 0), (states[2], 1, 1, "", 0)]
  heads += [(states[2], 0, 2, "", 1)]
  for i, (state, which, weight, after, place) in enumerate(heads):
    if objective.config.hubert.loss == "linear":
      dense = head[f"label_logits_{i}"]
      logits = state @ dense["kernel"] + dense["bias"]
      assert "final_proj" not in head
    else:
      x = state @ head[f"final_proj{after}"]["kernel"]
      x = (x + head[f"final_proj{after}"]["bias"])[..., 8 * place :][..., :8]
      e = head[f"label_embeddings_{i}"]
      norms = np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(e, axis=-1)
      logits = np.einsum("btd,kd->btk", x, e) / norms / 0.1
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    chosen = [p[b, t, labels[b, t, which]] for b, t in np.argwhere(masked)]
    surprise = -np.log(chosen).mean()
    total += weight * surprise
    assert float(found[f"cross_entropy_{i}"]) == pytest.approx(
      surprise, rel=1e-4
    )
    hits = (p.argmax(-1) == labels[..., which])[masked].mean()
    assert float(found[f"accuracy_{i}"]) == pytest.approx(hits, rel=1e-4)
  assert float(found["cross_entropy"]) == pytest.approx(total, rel=1e-4)
  assert ("unmasked_accuracy" in found) == (
    objective.config.hubert.loss == "cosine"
  )
  entropy = 0.5 + 2.0, 1.0
  perplexities = [np.log(found[f"label_perplexity_{i}"]) for i in range(2)]
  assert float(found["chance"]) == pytest.approx(
    np.dot(entropy, perplexities), rel=1e-4
  )


def test_a_head_in_the_middle_trains_no_layer_above_it(headed):
  objective, params, inputs = headed

  @jax.jit
  @jax.grad
  def gradient(params):
    totals = objective.apply({"params": params}, inputs, None, 0)
    return totals["cross_entropy_0"]

  layers = gradient(params)["backbone"]["encoder"]["layers"]
  sizes = [np.abs(np.asarray(x)) for x in jax.tree.leaves(layers)]
  assert max(x[0].max() for x in sizes) > 0
  assert max(x[1].max() for x in sizes) == 0


def test_a_linear_loss_sees_as_many_frames_as_are_masked(case):
  _, _, inputs = case
  config = config_lib.base()
  config.hubert.labels, config.hubert.loss = "one,two", "linear"
  config.hubert.clusters = CLUSTERS
  config.masking.mask_prob, config.masking.mask_length = 0.1, 1
  objective = hubert.Hubert(config, jnp.float32)
  every = inputs | {"mask": inputs["frame_mask"]}
  every["targets"] = objective.targets(every, None)
  # ceil(1.05 (1 - exp(-0.1)) 29) + 1 = 4 frames of each clip.
  assert objective.counts(every)["cross_entropy"] == 8


# Random projections.


def test_random_projections_are_the_nearest_codes(case):
  """BEST-RQ's equation 1, by distances of unit vectors, in float64."""
  from ssl_jax.objectives import rq

  _, _, inputs = case
  config = config_lib.base()
  config.hubert.labels, config.hubert.clusters = "rq,rq:1,rq:0", (50, 50, 50)
  objective = hubert.Hubert(config, jnp.float32)
  assert not objective.stored_labels() and not objective.fitted_codebooks()
  found = objective.targets(inputs, None)
  assert found.shape == (2, 29, 3)
  np.testing.assert_array_equal(found[..., 0], found[..., 2])
  assert (found[..., 0] != found[..., 1]).mean() > 0.5
  mels = np.asarray(fbank.log_mel(inputs["waveform"]), np.float64)
  for row, samples in enumerate(inputs["length"].tolist()):
    count = fbank.num_fbank_frames(samples)
    clip = mels[row, :count]
    clip = (clip - clip.mean(axis=0)) / clip.std(axis=0)
    clip = np.concatenate([np.zeros((1, 80)), clip, np.zeros((4, 80))])
    for frame in range(int(inputs["frame_mask"][row].sum())):
      x = clip[2 * frame : 2 * frame + 4].ravel()  # From one frame before.
      for seed in range(2):
        projection, codes = rq.projection_and_codes(50, seed)
        y = x @ projection.astype(np.float64)
        distance = np.linalg.norm(codes - y / np.linalg.norm(y), axis=1)
        assert found[row, frame, seed] == distance.argmin()
  assert (found[1, 18:] == -1).all()


def test_codes_are_xaviers_and_of_unit_length():
  from ssl_jax.objectives import rq

  projection, codes = rq.projection_and_codes(4_000, 3)
  assert np.abs(projection).max() <= np.sqrt(6 / 336)
  assert projection.var() == pytest.approx(2 / 336, rel=0.05)
  np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
  assert np.abs(codes.mean(axis=0)).max() < 0.02


@pytest.mark.parametrize(
  ("knobs", "message"),
  [
    ({"layers": (1, 2)}, "as many"),
    ({"label_weights": (1.0, 2.0)}, "as many"),
    ({"layers": (13,)}, "has 12 layers"),
    ({"layers": (1.5,)}, "whole"),
    ({"labels": "rq:x"}, "should be rq:N"),
    ({"loss": "linear", "unmasked_weight": 0.1}, "masked frames only"),
  ],
)
def test_heads_that_cannot_be_are_named(knobs, message):
  config = config_lib.base()
  config.hubert.update(knobs)
  with pytest.raises(UserError, match=message) as error:
    config_lib.validate(config)
  assert f"config.hubert.{next(reversed(knobs))}" in str(error.value)
