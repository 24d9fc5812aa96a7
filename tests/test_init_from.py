"""Training that starts from an encoder somebody trained."""

import json

import jax
import numpy as np
import pytest
from hf import saved
from tiny import tiny

from ssl_jax.errors import UserError
from ssl_jax.pretrained import heads as heads_lib
from ssl_jax.pretrained.load import load_encoder
from ssl_jax.training import loop


def unchanged(objective, init_from, workdir, **keys):
  """A run of two updates that move nothing. -> its encoder, its result."""
  config = tiny(2, objective)
  config.init_from = init_from
  config.optimizer.learning_rate = 0.0
  config.data.bucket_seconds, config.batch.seconds = (0.6,), 1.2
  config.update_from_flattened_dict(keys)
  result = loop.train(config, workdir)
  return load_encoder(workdir), result


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["base", "large"])
def test_wav2vec2_goes_on_with_its_quantizer(layout, tmp_path):
  source = saved(tmp_path / "hf", "wav2vec2", layout)
  found, _ = unchanged("wav2vec2", source, tmp_path / "run")
  expected = load_encoder(source)
  assert_same(found.params, expected.params)
  (ours, heads), (theirs, expected) = map(
    heads_lib.load_heads, (found, expected)
  )
  assert_same(heads, expected)
  for name in ("num_groups", "num_codes", "code_dim", "final_dim"):
    assert ours[name] == theirs[name]
  assert found.config.encoder.norm_first == (layout == "large")
  # Dropout is the run's, not the directory's.
  assert found.config.encoder.dropout == tiny().encoder.dropout


@pytest.mark.slow
def test_hubert_starts_with_a_fresh_head(tmp_path, caplog):
  source = saved(tmp_path / "hf", "hubert", "base")
  with caplog.at_level("INFO", "ssl_jax"):
    found, result = unchanged("hubert", source, tmp_path / "run")
  assert_same(found.params, load_encoder(source).params)
  assert result["params"] > sum(x.size for x in jax.tree.leaves(found.params))
  assert "hidden_size=48" in caplog.text and "fresh ones of" in caplog.text
  assert found.config.frontend.name == "waveform"
  # The same command finds the run complete.
  again, _ = unchanged("hubert", source, tmp_path / "run")
  assert_same(again.params, found.params)


def test_a_run_of_ours_is_a_start_for_another_objective(tmp_path):
  first = tiny(2)
  first.encoder.num_layers = 1
  loop.train(first, tmp_path / "first")
  expected = load_encoder(tmp_path / "first")
  found, _ = unchanged("tera", str(tmp_path / "first"), tmp_path / "second")
  assert_same(found.params, expected.params)


def test_what_it_cannot_start_from_is_one_line(tmp_path):
  whisper = tmp_path / "whisper"
  whisper.mkdir()
  (whisper / "config.json").write_text(json.dumps({"model_type": "whisper"}))
  none = tmp_path / "none"
  for source, said, keys in (
    (f"hf:{whisper}", "model of type 'whisper'", {}),
    (f"hf:{none}", "cannot be read", {}),
    (str(none), "holds no checkpoint", {}),
    (str(none), "give one", {"budget.trunk": "runs/x"}),
  ):
    with pytest.raises(UserError, match=said) as error:
      unchanged("hubert", source, tmp_path / "run", **keys)
    assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_quantizer_that_does_not_fit_is_named(tmp_path):
  source = saved(tmp_path / "hf", "wav2vec2", "base")
  path = tmp_path / "hf" / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {"num_codevectors_per_group": 13}))
  with pytest.raises(UserError, match=r"'quantizer\.\w+(\.\w+)?' is of shape"):
    unchanged("wav2vec2", source, tmp_path / "run")
