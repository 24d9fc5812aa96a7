"""The model card of an exported encoder: what it is, and what it cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.objectives import make_objective

# The packaged clips keep their own licences.
_EMBEDDED = (
  "It was trained on the clips packaged with ssl_jax (CC BY, CC BY-SA and BSD "
  "recordings; see ATTRIBUTION.md there)."
)


def text(
  name: str,
  architecture: str,
  params: int,
  config: dict[str, Any] | None,
  spent: dict[str, Any] | None,
  scores: Sequence[dict[str, Any]],
  license: str,
) -> str:
  """A README.md, with the metadata that model hubs read.

  Args:
    name: of the model.
    architecture: the class of transformers that loads it.
    params: their number.
    config: of the run, as its config.json; None where it is not known.
    spent: {updates, flops, audio_samples, train_seconds} of the run.
    scores: of probes, as their JSON files.
    license: of the weights, by its identifier on model hubs.
  """
  kind = "wav2vec2" if architecture.startswith("Wav2Vec2") else "hubert"
  lines = [
    "---",
    "library_name: transformers",
    "pipeline_tag: feature-extraction",
    f"license: {license}",
    "tags:",
    *(f"- {tag}" for tag in ("speech", "self-supervised", kind, "ssl_jax")),
    "---",
    "",
    f"# {name}",
    "",
    "A speech encoder for 16 kHz audio, pretrained without labels by ssl_jax: "
    f"{params / 1e6:.4g} M parameters, a frame every 20 ms.",
    "",
    "```python",
    "from transformers import AutoFeatureExtractor, AutoModel",
    "",
    f'extractor = AutoFeatureExtractor.from_pretrained("{name}")',
    f'model = AutoModel.from_pretrained("{name}")',
    'inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")',
    "states = model(**inputs, output_hidden_states=True).hidden_states",
    "```",
  ]
  if architecture.endswith("ForPreTraining"):
    lines += ["", f"`{architecture}` loads its quantizer and heads as well."]
  lines += _training(config, spent)
  lines += _scores(scores)
  lines += ["", "## Licence", "", f"Of the weights: {license}."]
  if config and config["data"]["source"] == "embedded":
    lines[-1] += f" {_EMBEDDED}"
  return "\n".join(lines) + "\n"


def _training(
  config: dict[str, Any] | None, spent: dict[str, Any] | None
) -> list[str]:
  if config is None or spent is None:
    return []
  data, encoder = config["data"], config["encoder"]
  # Paths give their last part: the rest is of somebody's machine.
  corpus = data["name"] or Path(data["dir"]).name
  rows = {
    "objective": config["objective"]["name"],
    "encoder": f"{encoder['num_layers']} layers of {encoder['hidden_size']}, "
    f"FFN {encoder['ffn_size']}, {encoder['num_heads']} heads",
    "data": f"{data['source']} {corpus}".strip(),
    "updates": f"{spent['updates']:,}",
    "batch": f"{config['batch']['seconds']:g} s of audio",
    "audio": f"{spent['audio_samples'] / 16_000 / 3600:.4g} h seen",
    "training FLOPs": f"{spent['flops']:.3g}",
    "training time": f"{spent['train_seconds'] / 3600:.3g} h",
    "peak learning rate": f"{config['optimizer']['learning_rate']:g}",
    "seed": config["seed"],
  }
  objective = make_objective(ConfigDict(config))
  if setting := objective.setting():
    # Folders are given by their names alone.
    rows["labels"] = ", ".join(Path(x).name for x in setting.split(", "))
  if config.get("init_from"):
    rows["started from"] = Path(config["init_from"]).name
  table = [f"| {key} | {value} |" for key, value in rows.items()]
  return ["", "## Training", "", "| | |", "|---|---|", *table]


def _scores(scores: Sequence[dict[str, Any]]) -> list[str]:
  if not scores:
    return []
  lines = [
    "",
    "## Scores",
    "",
    "Probes of the frozen encoder on test data, beside the same probe of other "
    "encoders: mean and standard deviation over seeds of the head, or, of "
    "measures without one, the standard error over speakers.",
    "",
    "| task | profile | metric | this model | others |",
    "|---|---|---|---|---|",
  ]
  for score in scores:
    others = "; ".join(
      f"{name} {_percent(found)}" for name, found in score["baselines"].items()
    )
    lines.append(
      f"| {score['task']} | {score['profile']} | {score['metric']}, % | "
      f"{_percent(score)} | {others} |"
    )
  return lines


def _percent(score: dict[str, Any]) -> str:
  return f"{100 * score['test']:.1f} ± {100 * score['std']:.1f}"
