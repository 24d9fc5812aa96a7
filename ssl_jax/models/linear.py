"""Parameters of linear maps, and their initial values."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

_bert_init = nn.initializers.normal(0.02)


class Linear(nn.Module):
  """The parameters (kernel [I, O], bias [O]) of a linear map, as BERT's.

  Attributes:
    shape: (I, O), the widths of its input and output.
    dtype: of the returned arrays.
  """

  shape: tuple[int, int]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", _bert_init, self.shape)
    bias = self.param("bias", nn.initializers.zeros, self.shape[1:])
    return kernel.astype(self.dtype), bias.astype(self.dtype)


def torch_linear_init(
  key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of torch's Linear."""
  bound = 1 / math.sqrt(shape[0])
  return jax.random.uniform(key, shape, dtype, -bound, bound)
