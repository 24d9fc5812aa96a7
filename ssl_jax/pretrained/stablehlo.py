"""Encoders as programs of their own, which JAX alone runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ssl_jax.models import placement

_PROGRAM = "encoder.jaxexport"
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(
  folder: Path,
  states: Callable[[jax.Array, jax.Array], jax.Array],
  facts: dict[str, Any],
) -> None:
  """Writes encoder.jaxexport, encoder.json and README.md.

  Args:
    folder: to write into.
    states: (waveform float32 [B, S], length int32 [B]) -> [L + 1, B, T, D];
      its parameters become constants of the program.
    facts: about the encoder, as JSON.
  """
  rows, samples = jax.export.symbolic_shape(
    "rows, samples", constraints=["samples >= 400"]
  )

  @jax.jit
  def encode(waveform: jax.Array, length: jax.Array) -> jax.Array:
    return states(waveform, length).astype(jnp.float32)

  # A CPU has no kernels, which are for one platform and of fixed shapes.
  with placement.use(placement.Placement("cpu")):
    exported = jax.export.export(encode, platforms=_PLATFORMS)(
      jax.ShapeDtypeStruct((rows, samples), jnp.float32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
  (folder / _PROGRAM).write_bytes(exported.serialize())
  (folder / "encoder.json").write_text(json.dumps(facts, indent=2) + "\n")
  (folder / "README.md").write_text(_README)


_README = f"""# A speech encoder, as a program

16 kHz audio to hidden states, a frame every 20 ms. Needs JAX and flatbuffers,
and nothing else; runs on {", ".join(_PLATFORMS)}.

```python
from pathlib import Path

import jax
import numpy as np

encode = jax.export.deserialize(Path("{_PROGRAM}").read_bytes()).call
waveform = np.zeros((2, 32_000), np.float32)  # [B, S] in [-1, 1], S >= 400
length = np.array([32_000, 20_000], np.int32)  # Samples that are not padding.
states = encode(waveform, length)  # [L + 1, B, T, D]
frames = (length - 400) // 320 + 1  # Real ones of each clip.
```

`states[0]` is the first layer's input, `states[-1]` the last state. What the
encoder is, and where it comes from: `encoder.json`.
"""
