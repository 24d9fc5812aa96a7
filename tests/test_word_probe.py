"""Word retrieval while a run goes on, against the encoder it leaves."""

import json

import numpy as np
import pytest
from tiny import CORPUS, tiny

import ssl_jax
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.probes import words
from ssl_jax.tally import choose
from ssl_jax.training import loop, word_probe


def test_a_run_measures_its_encoder(tmp_path):
  """The last measure is that of the checkpoint, heard clip by clip."""
  config = tiny(4)
  config.eval.probe, config.eval.probe_words = 3, 24
  config.eval.every = 100
  loop.train(config, tmp_path)
  lines = read_jsonl(tmp_path / "metrics.jsonl")
  found = {x["update"]: x["word_map"] for x in lines if x["split"] == "probe"}
  assert sorted(found) == [0, 3, 4]
  clips, asked = word_probe._words(config)
  assert 24 <= len(clips) < 40
  encoder = ssl_jax.load(str(tmp_path))
  vectors = [
    np.stack(
      [words._vector(states, word) for states, word in zip(layer, asked)]
    )
    for layer in zip(*(encoder(clip, "all") for clip in clips))
  ]
  retrieval = words.Retrieval(asked)
  chosen = choose([retrieval.tally(x) for x in vectors], True, 1)
  # Ranks may differ where two cosines are all but equal.
  assert found[4] == pytest.approx(chosen.scores["map"], abs=0.03)


def test_words_may_be_ones_own(tmp_path):
  config = tiny(4)
  config.eval.probe = 2
  config.eval.probe_dir = str(tmp_path / "metadata.jsonl")
  mesh = sharding.make_mesh()
  lines = (CORPUS / "metadata.jsonl").read_text("utf-8").splitlines()
  clips = [json.loads(line) for line in lines]
  for clip in clips:
    clip["file"] = str(CORPUS / clip["file"])
  own = [clip for clip in clips if clip.get("word")][:200]
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, own)))
  assert word_probe.WordProbe(config, mesh).due(2, 4)
  alone = [clip | {"speaker": "one"} for clip in own]
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, alone)))
  with pytest.raises(UserError, match="fewer than 4 words are said by two"):
    word_probe.WordProbe(config, mesh)
  config.eval.probe = 0
  assert not word_probe.WordProbe(config, mesh).due(2, 4)
