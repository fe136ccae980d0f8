"""Initializers of weights: functions ``(key, shape, dtype) -> array``.

They are called as the ones of ``jax.nn.initializers``. With :math:`n_\\mathrm{in}` and
:math:`n_\\mathrm{out}` the fans of a kernel of shape ``[..., inputs, outputs]``: inputs
and outputs, each times the receptive field (the product of the leading dimensions, 1 of
a dense layer). Variance scaling makes the variance of weights fall with the fans, so
that activations and gradients have the variance of the layer before or after;
:func:`snipjax.initializers.signal` measures whether they have. Initializers that
depend on a fan raise a ``ValueError`` for shapes of fewer than two dimensions.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import chex
import jax
import jax.numpy as jnp

Initializer = Callable[..., chex.Array]  # (key, shape, dtype=float32)
"""The type of an initializer, ``(key, shape, dtype=float32) -> array``.

``key`` is a PRNG key, and the array has the shape and dtype that are asked for.
Initializers of ``jax.nn.initializers`` are of this type too.

Example:
  >>> def tenth(key, shape, dtype=jnp.float32):
  ...     return jnp.full(shape, 0.1, dtype)
  >>> model = snipjax.models.create("lenet_300_100", 10, kernel_init=tenth)
  >>> model.kernel_init(jax.random.key(0), (1, 2))
  Array([[0.1, 0.1]], dtype=float32)
"""

# The paper states no standard deviation for its random and truncated normal, and its
# published code has neither. This is the default of tf.keras.initializers; with the
# 1.0 of TensorFlow 1, the logits of an untrained LeNet are in the thousands.
NORMAL_STDDEV = 0.05


def random_normal(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns normal weights of one variance, whatever the shape: the paper's RN.

    .. math:: w \sim N(0, 0.05^2)

    Args:
      key: PRNG key.
      shape: shape of the array.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> bool(jnp.std(random_normal(jax.random.key(0), (100, 100))) < 0.06)
      True

    Lee, Ajanthan, Torr, ICLR 2019, table 3.
    """
    return jax.nn.initializers.normal(NORMAL_STDDEV)(key, shape, dtype)


def truncated_normal(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns a normal cut at two standard deviations: the paper's TN.

    .. math:: w \sim N(0, 0.05^2) \;\big|\; |w| \le 0.1

    The standard deviation before cutting is 0.05, as in TensorFlow; after it, 0.044.

    Args:
      key: PRNG key.
      shape: shape of the array.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = truncated_normal(jax.random.key(0), (100, 100))
      >>> bool(jnp.max(jnp.abs(w)) <= 0.1)
      True

    Lee, Ajanthan, Torr, ICLR 2019, table 3.
    """
    return jax.nn.initializers.truncated_normal(NORMAL_STDDEV)(key, shape, dtype)


def xavier(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns weights of a variance that falls with both fans: the paper's VS-X.

    .. math:: \mathrm{Var}[w] = \frac{2}{n_\mathrm{in} + n_\mathrm{out}}

    They are normal, cut at two standard deviations, with a variance that makes up for
    the cut.

    Args:
      key: PRNG key.
      shape: shape of the array, of two dimensions or more.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = xavier(jax.random.key(0), (100, 300))  # of variance 1/200
      >>> bool(0.004 < jnp.var(w) < 0.006)
      True

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", AISTATS 2010.
    """
    return jax.nn.initializers.glorot_normal()(key, shape, dtype)


def he(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns weights of a variance that makes up for ReLU: the paper's VS-H.

    .. math:: \mathrm{Var}[w] = \frac{2}{n_\mathrm{in}}

    ReLU halves the second moment. The normal is cut at
    two standard deviations, with a variance that makes up for the cut.

    Args:
      key: PRNG key.
      shape: shape of the array, of two dimensions or more.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = he(jax.random.key(0), (100, 300))  # of variance 1/50
      >>> bool(0.015 < jnp.var(w) < 0.025)
      True

    He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    return jax.nn.initializers.he_normal()(key, shape, dtype)


def fan_in(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns weights of a variance that falls with the number of inputs.

    .. math:: \mathrm{Var}[w] = \frac{1}{n_\mathrm{in}}

    This is the default of the library and of the authors' code. The weights are normal,
    cut at two standard deviations, with a variance that makes up for the cut.

    Args:
      key: PRNG key.
      shape: shape of the array, of two dimensions or more.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = fan_in(jax.random.key(0), (100, 300))  # of variance 1/100
      >>> bool(0.008 < jnp.var(w) < 0.012)
      True

    LeCun et al., "Efficient BackProp", 1998.
    """
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def heuristic_uniform(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns uniform weights by the common heuristic.

    .. math:: w \sim U[-a, a], \qquad a = \frac{1}{\sqrt{n_\mathrm{in}}}

    The variance :math:`1 / (3 n_\mathrm{in})` is a third of the
    variance that keeps the signal of a linear network, so gradients shrink backward: by
    three with every layer where widths are equal.

    Args:
      key: PRNG key.
      shape: shape of the array, of two dimensions or more.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = heuristic_uniform(jax.random.key(0), (100, 300))
      >>> bool(0.09 < jnp.max(jnp.abs(w)) <= 0.1)
      True

    Glorot and Bengio, AISTATS 2010, equation 1.
    """
    one_third = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return one_third(key, shape, dtype)


def glorot_uniform(
    key: chex.PRNGKey, shape: chex.Shape, dtype: chex.ArrayDType = jnp.float32
) -> chex.Array:
    r"""Returns uniform weights of Glorot's normalized initialization.

    .. math:: w \sim U[-a, a], \qquad a = \sqrt{6 / (n_\mathrm{in} + n_\mathrm{out})}

    The variance is
    :math:`2 / (n_\mathrm{in} + n_\mathrm{out})`.

    Args:
      key: PRNG key.
      shape: shape of the array, of two dimensions or more.
      dtype: dtype of the array.

    Returns:
      An array of that shape and dtype.

    Example:
      >>> w = glorot_uniform(jax.random.key(0), (200, 400))
      >>> bool(0.09 < jnp.max(jnp.abs(w)) <= 0.1)
      True

    Glorot and Bengio, AISTATS 2010, equation 16.
    """
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


INITIALIZERS: Mapping[str, Initializer] = MappingProxyType(
    {
        "random_normal": random_normal,
        "truncated_normal": truncated_normal,
        "xavier": xavier,
        "he": he,
        "fan_in": fan_in,
        "heuristic_uniform": heuristic_uniform,
        "glorot_uniform": glorot_uniform,
    }
)
r"""The initializers of kernels by name, the choices of ``config.init``.

.. math:: \mathrm{Var}[w] = 0.05^2, \quad \frac{1}{n_\mathrm{in}}, \quad
          \frac{2}{n_\mathrm{in}}, \quad \frac{2}{n_\mathrm{in} + n_\mathrm{out}} \quad
          \text{or} \quad \frac{1}{3 n_\mathrm{in}}

for :func:`random_normal` (and before its cut :func:`truncated_normal`), :func:`fan_in`,
:func:`he`, :func:`xavier` and :func:`glorot_uniform`, and :func:`heuristic_uniform`.

Example:
  >>> INITIALIZERS["he"](jax.random.key(0), (3, 3, 16, 32)).shape
  (3, 3, 16, 32)
"""
