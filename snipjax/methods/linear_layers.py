"""Matrix products and convolutions with a parameter, as equations of a jaxpr."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from snipjax import ops
from snipjax._src import jaxprs

Eqns = tuple[JaxprEqn, ...]


class Layer:
    """A linear layer, as matrices ``[inputs, units]``.

    ``kernel`` and ``bias`` are numbers of leaves of the parameters, ``moves`` the
    equations that make the kernel of its leaf, and ``side`` is the position of the
    kernel among the operands of the product ``eqn``.
    """

    def __init__(self, eqn: JaxprEqn, kernel: int, moves: Eqns, side: int) -> None:
        self.name, self.kernel = "", kernel
        self.bias: int | None = None
        self.eqn, self.moves, self.side = eqn, moves, side

    @property
    def is_convolution(self) -> bool:
        return self.eqn.primitive.name == "conv_general_dilated"

    @property
    def groups(self) -> int:
        """Returns the number of groups of a convolution, else 1."""
        return self.eqn.params.get("feature_group_count", 1)

    @property
    def overlap(self) -> int:
        """Returns the number of patches an input can be in, 1 but for a convolution."""
        if not self.is_convolution:
            return 1
        (*window, _), _ = self.kernel_dimensions()
        shape = abstract(self.eqn.invars[1]).shape
        return math.prod(shape[d] for d in window)

    def matrix(self, params: chex.ArrayTree) -> chex.Array:
        """Returns the layer's parameters, with the bias as the last input."""
        leaves = jax.tree.leaves(params)
        kernel = self._kernel_matrix(leaves[self.kernel])
        if self.bias is None:
            return kernel
        return jnp.concatenate([kernel, leaves[self.bias].reshape(1, -1)])

    def with_matrix(self, params: chex.ArrayTree, matrix: chex.Array) -> chex.ArrayTree:
        """Returns all parameters, with the given ones for this layer."""
        leaves, treedef = jax.tree.flatten(params)
        # Entries are only moved, so that the transpose is the inverse.
        back = jax.linear_transpose(self._kernel_matrix, leaves[self.kernel])
        inputs = leaves[self.kernel].size // matrix.shape[1]
        (leaves[self.kernel],) = back(matrix[:inputs])
        if self.bias is not None:
            leaves[self.bias] = matrix[inputs].reshape(leaves[self.bias].shape)
        return jax.tree.unflatten(treedef, leaves)

    def rows(self, x: chex.Array) -> chex.Array:
        """Returns the vectors that the matrix is multiplied with, over all examples.

        They are float32 ``[positions, inputs]``; the last input is a constant 1 if the
        layer has a bias. The positions of a convolution are the pixels of its output,
        and its inputs are the patches there.
        """
        if self.is_convolution:
            x = self._patches(x)
        else:
            inputs, free = _contracted_and_free(self.eqn, 1 - self.side, x.ndim)
            x = x.transpose(*free, *inputs)
            x = x.reshape(math.prod(x.shape[: len(free)]), -1)
        has_bias = int(self.bias is not None)
        x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return jnp.pad(x, ((0, 0), (0, has_bias)), constant_values=1.0)

    def kernel_dimensions(self) -> tuple[list[int], list[int]]:
        """Dimensions of the kernel for its inputs, and those for its units."""
        if self.is_convolution:
            units, inputs, *window = self.eqn.params["dimension_numbers"].rhs_spec
            return [*window, inputs], [units]
        ndim = abstract(self.eqn.invars[self.side]).ndim
        return _contracted_and_free(self.eqn, self.side, ndim)

    def _kernel_matrix(self, leaf: chex.Array) -> chex.Array:
        inputs, units = self.kernel_dimensions()
        kernel = moved(leaf, self.moves, convert=False).transpose(*inputs, *units)
        return kernel.reshape(math.prod(kernel.shape[: len(inputs)]), -1)

    def _patches(self, x: chex.Array) -> chex.Array:
        # A convolution with the identity for its kernel returns its patches, whatever
        # its strides, dilations and padding.
        params, rank = self.eqn.params, x.ndim - 2
        inputs, _ = self.kernel_dimensions()
        shape = [abstract(self.eqn.invars[1]).shape[d] for d in inputs]
        identity = jnp.eye(math.prod(shape), dtype=x.dtype).reshape(*shape, -1)
        window = tuple(range(rank))
        return ops.conv_general_dilated(
            x,
            identity,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            dimension_numbers=jax.lax.ConvDimensionNumbers(
                params["dimension_numbers"].lhs_spec,
                (rank + 1, rank, *window),
                (0, rank + 1, *(d + 1 for d in window)),
            ),
            precision=jax.lax.Precision.HIGHEST,
        )

    def unit_numbers(self) -> np.ndarray:
        """Returns the number of every output's unit."""
        shape = abstract(self.eqn.outvars[0]).shape
        if self.is_convolution:
            dimensions = [self.eqn.params["dimension_numbers"].out_spec[1]]
        else:
            units = len(self.kernel_dimensions()[1])
            first = 0 if self.side == 0 else len(shape) - units
            dimensions = [*range(first, first + units)]
        ones = [n if d in dimensions else 1 for d, n in enumerate(shape)]
        return np.broadcast_to(np.arange(math.prod(ones)).reshape(ones), shape)


def abstract(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def moved(x: Any, eqns: Eqns, *, convert: bool = True) -> Any:
    """Moves the entries of an array, and converts its dtype unless told not to."""
    for eqn in eqns:
        if convert or eqn.primitive.name != "convert_element_type":
            (x,) = jaxprs.bind(eqn, [x])
    return x


def relabeled(x: np.ndarray, eqns: Eqns) -> np.ndarray:
    """Moves numbers in NumPy, which compiles nothing."""
    for eqn in eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "reshape":
            x = x.reshape(params["new_sizes"])
        elif name == "transpose":
            x = x.transpose(params["permutation"])
        elif name == "squeeze":
            x = x.squeeze(tuple(params["dimensions"]))
        elif name == "broadcast_in_dim":
            shape = [1] * len(params["shape"])
            for size, d in zip(x.shape, params["broadcast_dimensions"]):
                shape[d] = size
            x = np.broadcast_to(x.reshape(shape), params["shape"])
    return x


def _contracted_and_free(
    eqn: JaxprEqn, side: int, ndim: int
) -> tuple[list[int], list[int]]:
    contracted = list(eqn.params["dimension_numbers"][0][side])
    return contracted, [d for d in range(ndim) if d not in contracted]
