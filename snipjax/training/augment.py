"""Random transformations of images."""

import chex
import jax
import jax.numpy as jnp


def flip_and_translate(
    key: chex.PRNGKey, images: chex.Array, *, flip: bool, translate: int
) -> chex.Array:
    r"""Returns images flipped left to right or not, and shifted, each at random.

    .. math:: y_{ijc} = x_{i + a,\, \sigma(j + b),\, c}, \qquad
              a, b \sim \mathrm{Uniform}\{-t, \dots, t\}

    for each image :math:`x`, where :math:`\sigma` mirrors the columns or not.

    Args:
      key: PRNG key.
      images: ``[n, height, width, channels]``, standardized.
      flip: whether to flip each image with probability one half.
      translate: the largest shift in pixels, in each direction; pixels from outside
        are 0, the mean color.

    Returns:
      Images of the same shape and dtype.

    Example:
      >>> images = jnp.ones((2, 4, 4, 3))
      >>> moved = flip_and_translate(jax.random.key(0), images, flip=True, translate=1)
      >>> moved.shape
      (2, 4, 4, 3)
    """
    flip_key, shift_key = jax.random.split(key)
    if flip:
        flipped = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if translate:
        pad = ((translate, translate), (translate, translate), (0, 0))
        corners = jax.random.randint(
            shift_key, (images.shape[0], 2), 0, 2 * translate + 1
        )

        def shifted(image: chex.Array, corner: chex.Array) -> chex.Array:
            return jax.lax.dynamic_slice(
                jnp.pad(image, pad), (corner[0], corner[1], 0), image.shape
            )

        images = jax.vmap(shifted)(images, corners)
    return images
