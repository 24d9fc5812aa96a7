"""The waveform stem: seven convolutions from samples to frames of 20 ms.

Two thirds of Slim's FLOPs and, written plainly, nine tenths of its memory
traffic: the first layer alone makes 102 numbers of a sample. What keeps that
low changes no result:

- The first convolution is linear in windows of ten samples, so the mean and
  variance that the norm after it takes over a clip follow from the windows'
  own. The norm becomes part of the kernel, one a clip.
- GELU and the norms keep only their inputs for the backward pass; on TPUs, GELU
  and all of the first layer are computed again.
- TPUs take eight short rows at a time through the first two layers, so that the
  largest array stays in the cores' own memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ssl_jax import FRAME_HOP, FRAME_WINDOW, num_frames
from ssl_jax.knobs import Knob
from ssl_jax.models import placement, whole_clip
from ssl_jax.models.frontends import frontend
from ssl_jax.models.gelu import gelu
from ssl_jax.models.hf import HfNames
from ssl_jax.models.norm import EPSILON, Norm, clip_moments, layer_norm

# paper.md, "Architectures": (channels, kernel, stride). Total stride 320.
_LAYERS = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
_WINDOW, _HOP = _LAYERS[0][1:]  # Samples, of the first convolution.
_OVERLAP = FRAME_WINDOW - FRAME_HOP
_EXACT = jax.lax.Precision.HIGHEST

Parameters = tuple[jax.Array, jax.Array | None]

KNOBS = {
  "norm": Knob(
    "group",
    "waveform: `group` normalises the first convolution's channels over time; "
    "`layer` normalises each convolution over channels.",
    role="architecture",
    choices=("group", "layer"),
  ),
  "conv_bias": Knob(
    False,
    "waveform: convolutions have a bias, as in large models.",
    role="architecture",
  ),
  "grad_mult": Knob(0.1, "waveform: factor of the stem's gradient."),
}


class Frontend(frontend.Frontend):
  """Waveform -> 7 x (convolution, norm, GELU) -> frames.

  [B, S] -> [B, T, 512]. `norm` is "group" (after the first convolution, a mean
  and variance per channel over the clip's own frames) or "layer" (after each
  convolution, over channels).
  """

  knobs = KNOBS
  is_learned = True
  hf = HfNames(
    modules={
      f"{ours}{i}": f"feature_extractor.conv_layers.{i}.{theirs}"
      for ours, theirs in (("conv", "conv"), ("norm", "layer_norm"))
      for i in range(len(_LAYERS))
    },
    keys={
      "feat_extract_norm": ("norm", "group"),
      "conv_bias": ("conv_bias", False),
    },
    fixed={
      "conv_dim": [channels for channels, _, _ in _LAYERS],
      "conv_kernel": [kernel for _, kernel, _ in _LAYERS],
      "conv_stride": [stride for _, _, stride in _LAYERS],
      "feat_extract_activation": "gelu",
      "num_feat_extract_layers": len(_LAYERS),
    },
  )

  @nn.compact
  def __call__(self, waveform: jax.Array, length: jax.Array) -> jax.Array:
    convs, norms, inputs = [], [], 1
    for i, (channels, width, _) in enumerate(_LAYERS):
      shape = (width, inputs, channels)
      conv = _Convolution(shape, self.config.conv_bias, name=f"conv{i}")
      has_norm = i == 0 or self.config.norm == "layer"
      convs.append(conv())
      norms.append(Norm(channels, name=f"norm{i}")() if has_norm else None)
      inputs = channels
    place = placement.current()
    waveform, length = place.spread(waveform), place.spread(length)
    # The result of the first convolution is the largest array.
    size = waveform.shape[1] // _HOP * _LAYERS[0][0]
    size *= jnp.dtype(self.dtype).itemsize
    segments = place.segments(waveform.shape[0], size)
    if self.config.norm == "group":
      features = self._group_norm(waveform, length, convs, norms[0], segments)
    else:
      features = self._layer_norm(waveform, convs, norms, segments)
    if segments > 1:
      features = features.reshape(
        -1, segments * features.shape[1], features.shape[2]
      )
      features = features[:, : num_frames(waveform.shape[1])]
    return _scale_gradient(place.spread(features), self.config.grad_mult)

  def _group_norm(
    self,
    waveform: jax.Array,
    length: jax.Array,
    convs: list[Parameters],
    norm: Parameters,
    segments: int,
  ) -> jax.Array:
    """The stem with one norm, which becomes part of the first kernel."""
    # The mean is subtracted in float32: the norm would cancel it exactly, but
    # bfloat16 has rounded it before.
    real = jnp.arange(waveform.shape[1]) < length[:, None]
    mean, _ = clip_moments(waveform[..., None], real, hop=1)
    waveform = waveform - mean[..., 0]
    # The first convolution's bias would go with the mean that the norm takes
    # away.
    kernel = fold_norm(waveform, length, convs[0][0], *norm)
    kernel = jnp.repeat(kernel, segments, axis=0).astype(self.dtype)
    windows = _windows(_segments(waveform, segments)).astype(self.dtype)
    x = placement.by_rows(_again(_first_two), convs[1], windows, kernel)
    for i in range(2, len(_LAYERS)):
      x = _again(_next)(x, None, convs[i], i)
    return _activate(x, None)

  def _layer_norm(
    self,
    waveform: jax.Array,
    convs: list[Parameters],
    norms: list[Parameters],
    segments: int,
  ) -> jax.Array:
    """The stem with a norm after each convolution."""
    x = _segments(waveform, segments)[..., None].astype(self.dtype)
    first = convs[0], norms[0], convs[1]
    x = placement.by_rows(_again(_first_two_with_norm), first, x)
    for i in range(2, len(_LAYERS)):
      x = _again(_next)(x, norms[i - 1], convs[i], i)
    return _activate(x, norms[-1])

  @property
  def channels(self) -> int:
    return _LAYERS[-1][0]

  def flops(self, num_samples: int) -> int:
    flops, length, inputs = 0, num_samples, 1
    for channels, kernel, stride in _LAYERS:
      length = (length - kernel) // stride + 1
      flops += 2 * length * kernel * inputs * channels
      inputs = channels
    return flops


def _scale_gradient(x: jax.Array, factor: float) -> jax.Array:
  """The identity, whose gradient is multiplied by `factor`."""
  constant = jax.lax.stop_gradient(x)
  return constant + factor * (x - constant)


def fold_norm(
  waveform: jax.Array,
  length: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
) -> jax.Array:
  """The first convolution and a GroupNorm of a group a channel, as one.

  The norm's mean and variance are over the clip's own frames: torch's pool over
  padding too, which leaks it into every frame. With windows x of a clip, of
  mean m and covariance C, a channel's output k x has mean k m and variance
  k C k.

  Args:
    waveform: [B, S].
    length: [B], in samples.
    kernel: [10, 1, C].
    scale: [C], of the norm.
    bias: [C], of the norm.

  Returns:
    kernel [B, 11, C], float32, of windows with a 1 after their samples.
  """
  kernel = kernel[:, 0]
  windows = _windows(waveform)
  count = (length - _WINDOW) // _HOP + 1
  real = jnp.arange(windows.shape[1]) < count[:, None]
  real = whole_clip.counted(real, _HOP)[..., None]
  count = jnp.maximum(1, real.sum(axis=1))
  mean = jnp.where(real, windows, 0).sum(axis=1) / count  # [B, 10]
  # In the basis of the cosine transform speech's covariance is nearly diagonal;
  # in another, what is far below the low frequencies drowns in their rounding.
  cosines = _cosines()
  centred = jnp.matmul(windows - mean[:, None], cosines, precision=_EXACT)
  centred = jnp.where(real, centred, 0)
  covariance = jnp.einsum("bti,btj->bij", centred, centred, precision=_EXACT)
  covariance /= count[..., None]
  own = whole_clip.Moments(mean, covariance)
  mean, covariance = whole_clip.settle(real.sum(axis=(1, 2)), own, cosines)
  rotated = jnp.matmul(cosines.T, kernel, precision=_EXACT)  # [10, C]
  variance = jnp.einsum(
    "ic,bij,jc->bc", rotated, covariance, rotated, precision=_EXACT
  )
  gain = jax.lax.rsqrt(variance + EPSILON) * scale
  kernel = kernel * gain[:, None]
  offset = bias - jnp.einsum("bi,bic->bc", mean, kernel, precision=_EXACT)
  return jnp.concatenate([kernel, offset[:, None]], axis=1)


def _first_layer(windows: jax.Array, kernel: jax.Array) -> jax.Array:
  """gelu(windows kernel). [B, T, W], [B, W, C] -> [B, T, C]."""
  place = placement.current()
  if place.kernels == "gpu":
    # Imported where it runs: elsewhere Pallas is 0.2 s of imports.
    from ssl_jax.models.kernels import stem_gpu

    return place.kernel(
      lambda *arrays: stem_gpu.first_layer(*arrays),
      *(windows, kernel),
      axes=(("all_rows",), ("all_rows",)),
      out=("all_rows",),
    )
  return gelu(jnp.einsum("bti,bic->btc", windows, kernel))


def _first_two(
  conv: Parameters, windows: jax.Array, kernel: jax.Array
) -> jax.Array:
  """The first layer, its norm part of `kernel`, and the second convolution."""
  windows = jnp.pad(windows, ((0, 0), (0, 0), (0, 1)), constant_values=1)
  return _convolve(_first_layer(windows, kernel), conv, 1)


def _first_two_with_norm(
  params: tuple[Parameters, Parameters, Parameters], x: jax.Array
) -> jax.Array:
  """The first convolution, its norm and the second one."""
  first, norm, second = params
  return _next(_convolve(x, first, 0), norm, second, 1)


def _again(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Has the backward pass compute it again on TPUs, whose memory is slowest.

  Elsewhere it would only take time.
  """
  if placement.current().platform != "tpu":
    return function
  return jax.checkpoint(
    function, static_argnums=(3,) if function is _next else ()
  )


def _next(
  x: jax.Array, norm: Parameters | None, conv: Parameters, layer: int
) -> jax.Array:
  """From what a convolution made to what the next one, `layer`, makes."""
  return _convolve(_activate(x, norm), conv, layer)


def _activate(x: jax.Array, norm: Parameters | None) -> jax.Array:
  return gelu(x if norm is None else layer_norm(x, *norm))


def _convolve(x: jax.Array, conv: Parameters, layer: int) -> jax.Array:
  kernel, bias = conv
  x = jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(_LAYERS[layer][2],),
    padding="VALID",
    dimension_numbers=("NWC", "WIO", "NWC"),
  )  # [B, T_i, C]
  return x if bias is None else x + bias.astype(x.dtype)


def _windows(waveform: jax.Array) -> jax.Array:
  """Cuts out what the first convolution sees. [B, S] -> [B, T_0, 10]."""
  count = (waveform.shape[1] - _WINDOW) // _HOP + 1
  # A window is two hops.
  hops = waveform[:, : (count + 1) * _HOP].reshape(-1, count + 1, _HOP)
  return jnp.concatenate([hops[:, :-1], hops[:, 1:]], axis=-1)


@functools.lru_cache
def _cosines() -> np.ndarray:
  """The orthonormal DCT-II of a window. [10, 10]: samples, frequencies."""
  n, k = np.mgrid[:_WINDOW, :_WINDOW]
  basis = np.cos(np.pi / _WINDOW * (n + 0.5) * k) * (2 / _WINDOW) ** 0.5
  basis[:, 0] *= 0.5**0.5
  return basis.astype(np.float32)


def _segments(waveform: jax.Array, segments: int) -> jax.Array:
  """Cuts clips into runs of frames. [B, S] -> [B segments, S'].

  The result of the stem is the same: TPUs want a multiple of 8 rows, or move
  ten times the memory.
  """
  if segments == 1:
    return waveform
  rows, size = waveform.shape
  hop = -(-(size - _OVERLAP) // (segments * FRAME_HOP)) * FRAME_HOP
  padded = jnp.pad(waveform, ((0, 0), (0, (segments + 1) * hop - size)))
  runs = padded.reshape(rows, segments + 1, hop)
  runs = jnp.concatenate([runs[:, :-1], runs[:, 1:, :_OVERLAP]], axis=-1)
  return runs.reshape(rows * segments, hop + _OVERLAP)


class _Convolution(nn.Module):
  """The parameters (kernel, bias or None)."""

  shape: tuple[int, ...]
  use_bias: bool

  @nn.compact
  def __call__(self) -> Parameters:
    kernel = self.param("kernel", nn.initializers.he_normal(), self.shape)
    if not self.use_bias:
      return kernel, None
    return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])
