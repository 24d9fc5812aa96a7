"""Hidden states in files, and in three lines of Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from doors import door
from tiny import CORPUS, clips, finished_run, tiny

import ssl_jax
from ssl_jax import num_frames
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import extract, feature_files
from ssl_jax.pretrained import load as encoder_lib

ROOT = Path(ssl_jax.__file__).parents[1]


@pytest.fixture(scope="module")
def workdir():
  return finished_run(tiny(2))


@pytest.fixture(scope="module")
def encoder(workdir):
  return ssl_jax.load(workdir)


@pytest.fixture
def audio(tmp_path):
  """A tree of real clips, one of them long, one too short, one no audio."""
  files = sorted((CORPUS / "clips").rglob("*.opus"))
  files = [file for file in files if file.stat().st_size < 12_000][::110][:12]
  clips = [soundfile.read(file)[0] for file in files]
  for i, (file, clip) in enumerate(zip(files, clips)):
    folder = tmp_path / "audio" / f"s{i % 3}"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{file.stem}.flac", clip, 16_000)
  long = np.concatenate(clips * 9)
  soundfile.write(tmp_path / "audio" / "long.wav", long, 16_000)
  soundfile.write(tmp_path / "audio" / "short.wav", long[:399], 16_000)
  (tmp_path / "audio" / "damaged.flac").write_bytes(b"fLaC, or not")
  return tmp_path / "audio"


def run(encoder, layer, inputs, out, kind="npz", probe=None):
  states, identity = extract.states_of(encoder, layer, probe)
  source = extract.open_inputs([str(x) for x in inputs])
  by_row = sharding.by_row(sharding.make_mesh())
  return extract.extract(source, states, identity, kind, out, by_row)


def samples(path):
  return soundfile.read(path, dtype="int16")[0]


def alone(encoder, path):
  """[L + 1, T, D] of a clip without padding."""
  clip = (samples(path).astype(np.float32) / 2**15)[None]
  backbone = Backbone(encoder.config, jnp.float32)
  length = np.full(1, clip.shape[1])
  return backbone.apply(
    {"params": encoder.params}, clip, length, all_states=True
  ).hidden[:, 0]


def test_features_are_those_of_each_clip_alone(encoder, audio, tmp_path):
  result = run(encoder, "all", [audio], tmp_path / "out")
  assert result["files"] == 13 and result["skipped"] == 2
  index = [json.loads(x) for x in (tmp_path / "out" / "index.jsonl").open()]
  assert len(index) == 13
  for i, line in enumerate(index):
    found = np.load(tmp_path / "out" / line["file"])
    assert found["features"].shape[:2] == (3, line["frames"])
    np.testing.assert_allclose(
      found["times"], 0.0125 + 0.02 * np.arange(line["frames"])
    )
    if line["id"] != "long.wav" and i % 3 == 0:  # Each is compiled alone.
      expected = alone(encoder, audio / line["id"])
      np.testing.assert_allclose(found["features"], expected, atol=5e-5, rtol=0)
  # Cut into pieces: attention does not see the others. But norms are of the
  # whole clip, so that the first layer's input is but near the cuts.
  long = next(line for line in index if line["id"] == "long.wav")
  assert long["seconds"] > 60
  assert long["frames"] == num_frames(len(samples(audio / "long.wav")))
  found = np.load(tmp_path / "out" / "long.npz")["features"]
  whole = encoder(samples(audio / "long.wav"), "all")
  cut = num_frames(encoder_lib.PADDED[-1])
  place = np.arange(long["frames"])
  near = abs(place - cut * np.maximum(1, np.rint(place / cut)))
  far = near > encoder.config.encoder.position_kernel
  assert 0.99 < far.mean() < 1
  np.testing.assert_allclose(found[0, far], whole[0, far], atol=1e-4, rtol=0)


def test_layers_and_their_sums(encoder, audio, tmp_path):
  one = sorted((audio / "s0").iterdir())[0]
  everything = alone(encoder, one)
  run(encoder, "1", [one], tmp_path / "one", "npy")
  found = np.load(tmp_path / "one" / f"{one.stem}.npy")
  np.testing.assert_allclose(found, everything[1], atol=5e-5, rtol=0)
  weights = [0.5, 0.2, 0.3]
  for normalized in (False, True):
    probe = tmp_path / f"{normalized}.json"
    origin = {"params": encoder.origin["params"]}
    probe.write_text(
      json.dumps(
        {"layer_weights": weights, "normalized": normalized, "origin": origin}
      )
    )
    out = tmp_path / f"sum-{normalized}"
    run(encoder, "weighted", [one], out, "parquet", probe)
    table = pyarrow.parquet.read_table(out / f"{one.stem}.parquet")
    states = np.asarray(everything)
    if normalized:
      states = states - states.mean(-1, keepdims=True)
      states = states / np.sqrt(states.var(-1, keepdims=True) + 1e-5)
    expected = np.einsum("l,ltd->td", weights, states)
    found = np.stack(table["features"].to_numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert table["frame"].to_pylist() == list(range(len(expected)))
    assert table["time"][1].as_py() == pytest.approx(0.0325)


def test_finished_files_are_kept_and_others_made(encoder, audio, tmp_path):
  out = tmp_path / "out"
  first = run(encoder, "2", [audio], out)
  files = sorted(out.rglob("*.npz"))
  before = {file: file.stat().st_mtime_ns for file in files}
  expected = np.load(files[0])["features"]
  files[0].unlink()
  assert run(encoder, "2", [audio], out) == first
  after = {file: file.stat().st_mtime_ns for file in sorted(out.rglob("*.npz"))}
  changed = [file for file in files if before[file] != after[file]]
  assert changed == files[:1]
  np.testing.assert_allclose(np.load(files[0])["features"], expected, atol=5e-5)
  with pytest.raises(UserError, match="features of another encoder, layer"):
    run(encoder, "1", [audio], out)
  assert not [*out.rglob("*tmp")]


def test_a_changed_file_is_extracted_anew_and_another_refused(
  encoder, audio, tmp_path
):
  out, other = tmp_path / "out", shutil.copytree(audio, tmp_path / "other")
  run(encoder, "2", [audio], out)
  file = sorted((audio / "s0").iterdir())[0]
  made = out / "s0" / f"{file.stem}.npz"
  features = np.load(made)["features"]
  with pytest.raises(UserError, match=r"of .*audio/.*, not of .*other/"):
    run(encoder, "2", [other], out)
  np.testing.assert_array_equal(np.load(made)["features"], features)
  heard = samples(file)[::-1]
  soundfile.write(file, heard, 16_000)
  assert run(encoder, "2", [audio], out)["files"] == 13
  found = np.load(made)["features"]
  np.testing.assert_allclose(found, encoder(heard, 2), atol=5e-5)
  # What can no longer be read has no features; nor has what is gone.
  whole = file.read_bytes()
  file.write_bytes(whole[:-2000] + bytes(2000))
  assert run(encoder, "2", [audio], out)["files"] == 12
  assert f"s0/{made.name}" not in (out / "index.jsonl").read_text()
  file.write_bytes(whole)
  assert run(encoder, "2", [audio], out)["files"] == 13
  assert feature_files.audio_facts(str(tmp_path / "gone"))["size"] is None
  # Of clips by other names the lines stay; a torn one is forgotten.
  index = out / "index.jsonl"
  *whole, last = index.read_text().splitlines()
  index.write_text("\n".join([*whole, last[:9]]))
  soundfile.write(other / "new.wav", heard, 16_000)
  run(encoder, "2", [other / "new.wav"], out)
  lines = [json.loads(line) for line in index.open()]
  assert len(lines) == 13 and "new.npz" in [line["file"] for line in lines]
  assert run(encoder, "2", [audio], out)["files"] == 13
  lines = [json.loads(line) for line in index.open()]
  assert len({line["file"] for line in lines}) == len(lines) == 14


def test_clips_that_end_a_little_early_have_features(encoder, audio, tmp_path):
  whole = samples(audio / "long.wav")[: 61 * 16_000]
  for name, seconds in (("one", 2), ("pieces", 61)):
    clip = tmp_path / f"{name}.mp3"
    soundfile.write(clip, whole[: seconds * 16_000], 16_000)
    clip.write_bytes(clip.read_bytes()[:-300])
  result = run(encoder, "1", [*tmp_path.glob("*.mp3")], tmp_path / "out")
  assert (result["files"], result["skipped"]) == (2, 0)
  index = [json.loads(x) for x in (tmp_path / "out" / "index.jsonl").open()]
  for line in index:
    found = len(np.load(tmp_path / "out" / line["file"])["features"])
    short = num_frames(round(16_000 * line["seconds"])) - found
    assert line["frames"] == found and 0 < short < 5


def test_three_lines_of_python(encoder, workdir):
  some = clips(4)
  last = encoder(some)
  assert isinstance(last, list)
  for clip, found in zip(some, last):
    assert found.shape == (num_frames(len(clip)), 32)
    assert found.dtype == np.float32
    everything = encoder(clip, layer="all")
    np.testing.assert_allclose(everything[-1], found, atol=5e-5)
    np.testing.assert_allclose(everything[1], encoder(clip, 1), atol=5e-5)
    whole = np.rint(clip * 2**15).astype(np.int16)
    np.testing.assert_array_equal(encoder(whole), found)
  # Lengths of one padded length are one program.
  compiled = encoder._compiled(None)
  count = compiled._cache_size()
  for n in (9_000, 10_000, 11_111):
    encoder(np.zeros(n, np.float32))
  assert compiled._cache_size() <= count + 1
  loads = "import sys, ssl_jax; assert 'jax' not in sys.modules; ssl_jax.load"
  subprocess.run([sys.executable, "-c", loads], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  ("clip", "said"),
  [
    (np.zeros((2, 9_000), np.float32), r"float32 of shape \(2, 9000\)"),
    (np.zeros(9_000, np.int32), "is int32"),
    (np.zeros(399, np.float32), "shorter than a frame"),
  ],
)
def test_what_is_no_clip_is_named(encoder, clip, said):
  with pytest.raises(UserError, match=said):
    encoder(clip)
  with pytest.raises(UserError, match=r"layer 3: .* has layers 0 to 2"):
    encoder(np.zeros(9_000, np.float32), 3)


def test_wrong_input_is_one_line(encoder, audio, tmp_path):
  (tmp_path / "b").mkdir()
  one = sorted((audio / "s0").iterdir())[0]
  twin = tmp_path / "b" / one.name
  shutil.copy(one, twin)
  outside = tmp_path / "m.jsonl"
  line = {"id": "../../x", "file": str(one)}
  outside.write_text(json.dumps(line) + "\n")
  empty = tmp_path / "empty.wav"
  empty.touch()
  probe = tmp_path / "probe.json"
  probe.write_text(
    json.dumps(
      {
        "layer_weights": [1.0],
        "normalized": False,
        "origin": {"params": "another"},
      }
    )
  )
  for layer, inputs, said, more in (
    ("x", [audio], "expected all, weighted or a number", None),
    ("7", [audio], "has layers 0 to 2", None),
    ("weighted", [audio], "give --probe=FILE", None),
    ("weighted", [audio], "is of another encoder", probe),
    ("weighted", [audio], "is no probe's result", one),
    ("all", [tmp_path / "none"], "does not exist", None),
    (
      "all",
      [one, tmp_path / "b" / one.name],
      "are both",
      None,
    ),
    ("all", [outside], "would leave --out", None),
    ("all", [empty], "no usable audio", None),
  ):
    with pytest.raises(UserError, match=said) as error:
      run(encoder, layer, inputs, tmp_path / "out", probe=more)
    assert "\n" not in str(error.value)
  assert not (tmp_path / "out").exists()


def test_names_lose_the_ending_of_audio_alone():
  source = SimpleNamespace(ids=["utt.1", "utt.2", "a/b.wav", "c.wav", "c.flac"])
  files = [file.as_posix() for file in extract.files_of(source, "npz")]
  assert files == "utt.1.npz utt.2.npz a/b.npz c.wav.npz c.flac.npz".split()


def test_parts_of_a_file_have_features_of_their_own(encoder, audio, tmp_path):
  path = tmp_path / "m.jsonl"

  def extracted(*starts):
    lines = [
      json.dumps({"file": str(audio / "long.wav"), "start": s, "end": s + 2})
      for s in starts
    ]
    path.write_text("\n".join(lines))
    run(encoder, "1", [path], tmp_path / "out", "npy")
    index = (tmp_path / "out" / "index.jsonl").read_text().splitlines()
    return {x["part"][0]: x["file"] for x in map(json.loads, index)}

  files = extracted(1, 4)
  assert sorted(files) == [16_000, 64_000] and len({*files.values()}) == 2
  whole = samples(audio / "long.wav")
  found = np.load(tmp_path / "out" / files[64_000])
  expected = encoder(whole[64_000:96_000], 1)
  np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


@pytest.mark.slow
def test_the_door(workdir, audio, tmp_path):
  args = [f"--checkpoint={workdir}", f"--out={tmp_path}/out", "--layer=2"]
  dry = door("extract", *args, "--dry_run", audio)
  assert dry.returncode == 0, dry.stderr
  assert not (tmp_path / "out").exists()
  done = door("extract", *args, audio)
  assert done.returncode == 0, done.stderr
  said, real = json.loads(dry.stdout), json.loads(done.stdout)
  assert said.keys() == real.keys()
  assert said["files"] == real["files"] == 13
  assert said["skipped"] == real["skipped"] == 2
  assert said["bytes"] == pytest.approx(real["bytes"], rel=0.1)
  assert "shorter than a frame" in done.stderr
  for wrong in (args, [audio], [*args, "--format=csv", audio]):
    failed = door("extract", *wrong)
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
