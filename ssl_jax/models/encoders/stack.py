"""The encoder: positions, then a stack of blocks.

Axes: B clips, T frames, D width, L layers.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models import placement
from ssl_jax.models.dropout import dropout, fold_in_all, key_words, row_keys
from ssl_jax.models.encoders import half_rate
from ssl_jax.models.encoders.block import Block
from ssl_jax.models.encoders.positions import Positions
from ssl_jax.models.norm import Norm, layer_norm
from ssl_jax.signal import masking

_MULTIPLE = 8  # Frames.

# Values that the backward pass finds saved, by config.encoder.remat.
_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}

_DROPOUT = {"low": 0.0, "high": 0.9}

KNOBS = {
  "num_layers": Knob(12, "Layers.", role="architecture", low=1, high=1_000),
  "hidden_size": Knob(
    384, "Width of the hidden states.", role="architecture", low=1, high=1 << 17
  ),
  "norm_first": Knob(
    False,
    "Norms come before attention and feed-forward, and one after the last "
    "layer (pre-norm); `rope` always has them so.",
    role="architecture",
  ),
  "input_dropout": Knob(0.1, "Dropout of the projected frames.", **_DROPOUT),
  "dropout": Knob(
    0.1, "Dropout of the first layer's input and of each part.", **_DROPOUT
  ),
  "layerdrop": Knob(
    0.05, "Chance of a layer to be skipped in an update.", **_DROPOUT
  ),
  "visible_only": Knob(
    False,
    "In training only the frames that are not masked pass the layers, and a "
    "light decoder fills in the others. Needs masking.share.",
  ),
  "scan_layers": Knob(
    False,
    "Layers are compiled once, as a loop: compiles faster, with the same "
    "parameters.",
    role="speed",
  ),
  "remat": Knob(
    "none",
    "What the backward pass computes again to save memory: `none`; `dots`: all "
    "but matrix products; `full`: all within a layer.",
    role="speed",
    choices=("none", "dots", "full"),
  ),
}


class Stack(nn.Module):
  """Positions, norm, dropout, layers; of pre-norm layers the norm comes last.

  Parameters of the layers are stacked on a leading axis L whether the layers
  are unrolled or scanned, so that the switch changes no checkpoint.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype
  block: type[Block]

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    frame_mask: jax.Array,
    key: jax.Array | None,
    draw_ids: jax.Array,
    all_states: bool = False,
    seen: jax.Array | None = None,
    most: int = 0,
  ) -> jax.Array:
    """Computes hidden states.

    Args:
      x: [B, T, D].
      frame_mask: bool [B, T], True on real frames.
      key: of dropouts and layerdrop; None turns them off.
      draw_ids: int32 [B], which tell the clips' random draws apart.
      all_states: return every layer's input, then the last state.
      seen: bool [B, T], which frames pass the layers; None: all do.
      most: V, how many of a clip that may be.

    Returns:
      The last state [B, T, D], or all states [L + 1, B, T, D]; where some are
      not `seen`, those V frames of each that are, then what may be ignored.
    """
    config = self.config
    time, frames = x.shape[1], frame_mask.sum(axis=1)
    # Zeroed, or the convolution would carry padding into real frames.
    x = jnp.where(frame_mask[..., None], x, 0)
    # Padded to what matrix units take whole; otherwise each product would pad
    # for itself.
    multiple = 2 * _MULTIPLE if config.half_rate else _MULTIPLE
    # Written so that a symbolic length is seen to be a multiple.
    padded = -(-time // multiple) * multiple
    x = jnp.pad(x, ((0, 0), (0, padded - time), (0, 0)))
    x = x + Positions(config, self.dtype, name="positions")(x)
    norm = Norm(x.shape[-1], name="norm")()
    layer = self.block(config, self.dtype, parent=None)
    x = x if layer.norm_first else layer_norm(x, *norm)
    places = None
    if seen is not None:
      time, frames = most, seen.sum(axis=1)
      places, _ = masking.first_true(seen, most)  # [B, V]
      places = jnp.pad(places, ((0, 0), (0, -most % _MULTIPLE)), "edge")
      x = jnp.take_along_axis(x, places[..., None], axis=1)
    params = self.param("layers", _stacked_init(layer, config.num_layers), x)
    params = _cast(params, self.dtype, layer.float32)

    words, keep = None, jnp.ones(config.num_layers, bool)
    if key is not None:
      words = _dropout_words(key, draw_ids, config.num_layers + 1)
      x = dropout(x, config.dropout, words[-1])
      words = words[:-1]  # [L, B, 2]
      # All clips share one draw a layer and update, which makes skipping
      # possible.
      keep = jax.random.bernoulli(key, 1 - config.layerdrop, keep.shape)

    # The layers' inputs [L, B, T, D], where they are asked for, and the last
    # state.
    inputs = []
    for begin, end, halved in half_rate.spans(config):
      one = _cut(params, begin, end), _cut(words, begin, end), keep[begin:end]
      if not halved:
        run = _traced_once(config, layer, frames, places)
        x, before = _through(run, config, x, one, all_states)
      else:
        low = half_rate.halve(x, frames)
        at = 2 * jnp.arange(low.shape[1])[None]
        run = _traced_once(config, layer, (frames + 1) // 2, at)
        after, before = _through(run, config, low, one, all_states)
        before = x + half_rate.double(before - low) if all_states else None
        x = x + half_rate.double(after - low)
      inputs.append(before)
    x = layer_norm(x, *norm) if layer.norm_first else x
    x = jnp.concatenate([*inputs, x[None]]) if all_states else x
    return x[..., :time, :]

  def flops(self, frames: int, passing: int) -> dict[str, int]:
    """Counts a clip's forward pass by part, a multiply-add as 2.

    Args:
      frames: of the clip.
      passing: those of them that pass the layers.
    """
    block = self.block(self.config, self.dtype, parent=None)
    positions = Positions(self.config, parent=None).flops(frames)
    layers = collections.Counter()
    for begin, end, halved in half_rate.spans(self.config):
      one = block.flops(-(-passing // 2) if halved else passing)
      for _ in range(begin, end):
        layers.update(one._asdict())
    return {"positions": positions} | layers


def check(config: ConfigDict, block: type[Block]) -> None:
  """Checks the knobs of the stack against each other.

  Args:
    config: of the run.
    block: of the stack.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  encoder = config.encoder
  half_rate.check(encoder)
  if encoder.visible_only and not block.takes_places:
    raise UserError(
      f"config.encoder.visible_only: config.encoder.name={encoder.name!r} "
      "needs all frames, as its layers mix neighbours; take 'transformer' or "
      "'rope'"
    )
  if encoder.visible_only and not config.masking.share:
    raise UserError(
      "config.encoder.visible_only needs as many masked frames in each clip: "
      "set config.masking.share, as in 0.5"
    )
  if encoder.visible_only and encoder.half_rate:
    raise UserError(
      "config.encoder.visible_only and config.encoder.half_rate: give one; "
      "frames that are left out make no pairs"
    )


def _cut(tree: Any, begin: int, end: int) -> Any:
  return jax.tree.map(
    lambda x: x if (begin, end) == (0, len(x)) else x[begin:end], tree
  )


def _through(
  run: Callable[..., jax.Array],
  config: ConfigDict,
  x: jax.Array,
  each: Any,
  all_states: bool,
) -> tuple[jax.Array, jax.Array | None]:
  """Passes frames through layers.

  Args:
    run: as `_traced_once` returns it.
    config: config.encoder.
    x: [B, T, D].
    each: parameters, words and whether it is kept, of each layer.
    all_states: return the layers' inputs as well.

  Returns:
    [B, T, D], and the inputs [layers, B, T, D] or None.
  """
  if config.scan_layers:

    def body(x: jax.Array, one: Any) -> tuple[jax.Array, jax.Array | None]:
      return run(x, *one), x if all_states else None

    return jax.lax.scan(body, x, each)
  inputs = []
  for one in _unstack(each, len(each[2])):
    inputs.append(x)
    x = run(x, *one)
  return x, jnp.stack(inputs) if all_states else None


def _traced_once(
  config: ConfigDict,
  layer: Block,
  frames: jax.Array,
  places: jax.Array | None,
) -> Callable[..., jax.Array]:
  """Returns a layer as a function (x, params, words, keep) -> x.

  Traced once for all layers: tracing takes longer than loading what was
  compiled.
  """

  takes = layer.takes_places and places is not None
  where = (places,) if takes else ()

  @jax.jit
  def apply_layer(
    x: jax.Array, params: Any, words: jax.Array | None, keep: jax.Array
  ) -> jax.Array:
    def run(x: jax.Array) -> jax.Array:
      return layer.apply({"params": params}, x, frames, words, *where)

    if config.remat != "none":
      run = jax.checkpoint(
        run,
        # Inside a scan XLA cannot undo it.
        prevent_cse=not config.scan_layers,
        policy=_REMAT_POLICIES[config.remat],
      )
    if words is None or config.layerdrop == 0:
      return run(x)
    if placement.current().platform == "gpu":
      # A branch would have the host wait for the draw.
      return jnp.where(keep, run(x), x)
    return jax.lax.cond(keep, run, lambda x: x, x)

  return apply_layer


def _dropout_words(
  key: jax.Array, draw_ids: jax.Array, count: int
) -> jax.Array:
  """Words of `count` dropout keys of each clip. -> uint32 [count, B, 2]."""
  keys = row_keys(key, draw_ids)
  return jax.vmap(lambda i: key_words(fold_in_all(keys, i)))(jnp.arange(count))


def _stacked_init(layer: Block, num_layers: int) -> Callable[..., Any]:
  def init(key: jax.Array, x: jax.Array) -> Any:
    frames = jnp.full(x.shape[0], x.shape[1])

    def init_one(key: jax.Array) -> Any:
      return layer.init(key, x, frames, None)["params"]

    return jax.vmap(init_one)(jax.random.split(key, num_layers))

  return init


def _cast(params: Any, dtype: jnp.dtype, float32: tuple[str, ...]) -> Any:
  """Casts all layers at once, but the submodules used in float32."""
  return {
    name: part
    if name in float32
    else jax.tree.map(lambda x: x.astype(dtype), part)
    for name, part in params.items()
  }


def _unstack(tree: Any, num_layers: int) -> list[Any]:
  # Split rather than index: its transpose is one concatenation, not a sum of
  # num_layers zero-padded stacks.
  leaves, treedef = jax.tree.flatten(tree)
  split = [
    [p[0] for p in jax.lax.split(leaf, (1,) * num_layers)] for leaf in leaves
  ]
  return [treedef.unflatten(layer) for layer in zip(*split)]
