"""HuBERT's loss against float64 NumPy, and what its targets are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as config_lib
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


def test_mfcc_labels_are_every_second_frames_nearest_centroid(case):
  _, _, inputs = case
  config = config_lib.base()
  config.hubert.clusters = (7,)
  rng = np.random.default_rng(1)
  frames = np.asarray(
    fbank.mfcc_with_deltas(inputs["waveform"], inputs["length"])
  )
  codebook = frames[0, rng.choice(40, 7, replace=False)]
  objective = hubert.Hubert(config, jnp.float32, (codebook,))
  labels = objective.targets(inputs, None)[..., 0]
  distance = np.square(frames[:, :, None] - codebook).sum(axis=-1)
  for row, count in enumerate([29, 18]):
    expected = distance[row].argmin(axis=-1)[0 : 2 * count : 2]
    np.testing.assert_array_equal(labels[row, :count], expected)
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
