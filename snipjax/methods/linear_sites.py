"""The linear layers of any loss, found in its jaxpr.

A linear layer is a matrix product or a convolution of something with a parameter, and
the sum with another parameter as its bias. A method can look at the inputs of every
layer and replace its outputs, whatever library the loss is written with.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from snipjax import ops
from snipjax._src import trees
from snipjax.methods.problem import Problem

# Primitives that move the entries of their only operand, or change their dtype.
_MOVES = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "reshape",
    "squeeze",
    "transpose",
)
# Primitives that call a function, and the parameter that has its jaxpr.
_CALLS: Mapping[str, str] = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


class Site(NamedTuple):
    """A call of a layer, while the loss is computed.

    Attributes:
      number: number of the call, in order, over all layers.
      layer: the layer called.
      repeat: number of earlier calls of that layer.
      inputs: the array that the kernel is applied to.
      outputs: the result, bias included.
      apply: ``(inputs, kernel, bias) -> outputs``, the same layer with other arrays;
        kernel and bias have the shapes of the parameters, the bias may be None.
    """

    number: int
    layer: "Layer"
    repeat: int
    inputs: chex.Array
    outputs: chex.Array
    apply: Callable[..., chex.Array]


@dataclasses.dataclass
class Layer:
    """A linear layer, as matrices ``[inputs, units]``.

    Attributes:
      name: name of the parameters, as far as it is common to them.
      kernel: number of the kernel among the leaves of the parameters.
      bias: number of the bias, or None.
      groups: number of groups of a convolution, else 1.
      overlap: number of outputs of a unit that an input is part of, at most: 1 but
        for a convolution.
    """

    name: str
    kernel: int
    bias: int | None
    groups: int
    overlap: int
    _product: "_Product"

    def matrix(self, params: chex.ArrayTree) -> chex.Array:
        """Returns the parameters ``[inputs, units]``, the bias as the last input."""
        leaves = jax.tree.leaves(params)
        kernel = self._product.matrix(leaves[self.kernel])
        if self.bias is None:
            return kernel
        return jnp.concatenate([kernel, leaves[self.bias].reshape(1, -1)])

    def with_matrix(self, params: chex.ArrayTree, matrix: chex.Array) -> chex.ArrayTree:
        """Returns the parameters with the given ones for this layer."""
        leaves, treedef = jax.tree.flatten(params)
        before = leaves[self.kernel]
        # The entries are only moved, so that the transpose is the inverse.
        move_back = jax.linear_transpose(self._product.matrix, before)
        rows = before.size // matrix.shape[1]
        (leaves[self.kernel],) = move_back(matrix[:rows])
        if self.bias is not None:
            leaves[self.bias] = matrix[rows].reshape(leaves[self.bias].shape)
        return treedef.unflatten(leaves)

    def rows(self, inputs: chex.Array) -> chex.Array:
        """Returns the vectors that the matrix is multiplied with.

        Args:
          inputs: the layer's inputs at a site.

        Returns:
          Float32 ``[positions, inputs]``, over all examples; the last input is a
          constant 1 if the layer has a bias. The positions of a convolution are the
          pixels of its output, and its inputs are the patches there.
        """
        x = self._product.rows(inputs).astype(jnp.float32)
        has_bias = int(self.bias is not None)
        return jnp.pad(x, ((0, 0), (0, has_bias)), constant_values=1.0)


class Network:
    """A loss whose linear layers are known.

    Attributes:
      layers: the layers, in the order of their first calls.
      others: for each parameter with another use than in one layer, the name of the
        primitive that uses it.
      outputs: numbers of the sites that no other site follows.
      shapes: shapes and dtypes of the outputs of the sites.
    """

    def __init__(
        self, function: Callable[..., Any], params: chex.ArrayTree, batch: Any
    ) -> None:
        """Traces ``function(params, batch)``; params and batch may be abstract."""
        closed, shape = jax.make_jaxpr(function, return_shape=True)(params, batch)
        self._treedef = jax.tree.structure(shape)
        names = [name for name, _ in trees.named_leaves(params)]
        reader = _Reader(len(names))
        num_inputs = len(closed.jaxpr.invars)
        self._inputs = [reader.new() for _ in range(num_inputs)]
        for leaf, value in enumerate(self._inputs[: len(names)]):
            reader.views[value] = _View(leaf, ())
        self._results = reader.read(closed.jaxpr, closed.consts, self._inputs)
        self._ops, self._constants = reader.ops, reader.constants
        self._calls = reader.calls
        others = dict(reader.others)
        self.layers, self._layers = _layers(reader.calls, names, others)
        self.others = {names[leaf]: primitive for leaf, primitive in others.items()}
        self.outputs = [
            number
            for number in range(len(self._calls))
            if number not in reader.followed
        ]
        self.shapes = [call.shape for call in self._calls]

    def __call__(
        self,
        params: chex.ArrayTree,
        batch: Any,
        at: Callable[[Site], chex.Array] = lambda site: site.outputs,
    ) -> Any:
        """Returns the function's result, with ``at(site)`` for the outputs of sites."""
        leaves = jax.tree.leaves((params, batch))
        values = self._constants | dict(zip(self._inputs, leaves))
        last = {call.last: number for number, call in enumerate(self._calls)}
        repeats = [0] * len(self.layers)
        for position, (eqn, inputs, outputs) in enumerate(self._ops):
            results = _bind(eqn, [values[i] for i in inputs])
            if position in last:
                call, layer = self._calls[last[position]], self._layers[last[position]]
                site = Site(
                    number=last[position],
                    layer=self.layers[layer],
                    repeat=repeats[layer],
                    inputs=values[call.inputs],
                    outputs=results[0],
                    apply=call.bound(values),
                )
                repeats[layer] += 1
                results = [at(site)]
            values.update(zip(outputs, results))
        return self._treedef.unflatten([values[i] for i in self._results])


def check_covered(network: Network, mask: chex.ArrayTree, reason: str) -> None:
    """Raises a ``ValueError`` for a prunable parameter outside of linear layers.

    Args:
      network: the loss with its layers.
      mask: mask of the parameters; a scalar is not prunable.
      reason: the words for the need of a layer.
    """
    in_layers = {
        leaf for layer in network.layers for leaf in (layer.kernel, layer.bias)
    }
    for leaf, (name, keep) in enumerate(trees.named_leaves(mask)):
        if not jnp.ndim(keep) or (leaf in in_layers and name not in network.others):
            continue
        use = network.others.get(name)
        raise ValueError(
            f"parameter '{name}' is prunable, but "
            + (f"'{use}' uses it" if use else "the loss does not use it")
            + f", so that {reason}; it must be the kernel of one matrix product or "
            "convolution, or the bias added to that: rewrite the loss so, or exclude "
            f"it, e.g. masks.excluding(prunable, '{name}')"
        )


def trace(problem: Problem) -> Network:
    """Returns the network of a problem's loss."""
    return Network(problem.loss, problem.params, problem.example_batch())


class _View(NamedTuple):
    """A parameter with its entries moved."""

    leaf: int
    eqns: tuple[JaxprEqn, ...]

    def __call__(self, leaf: chex.Array, *, convert: bool = True) -> chex.Array:
        for eqn in self.eqns:
            if convert or eqn.primitive.name != "convert_element_type":
                (leaf,) = _bind(eqn, [leaf])
        return leaf


class _Product(NamedTuple):
    """A matrix product or a convolution with a kernel.

    Attributes:
      eqn: it, as a ``dot_general`` or ``conv_general_dilated``.
      view: from the parameter to the kernel.
      side: position of the kernel among the two operands.
    """

    eqn: JaxprEqn
    view: _View
    side: int

    @property
    def is_convolution(self) -> bool:
        return self.eqn.primitive.name == "conv_general_dilated"

    @property
    def kernel_dimensions(self) -> tuple[list[int], list[int]]:
        """Dimensions of the kernel for its inputs, and those for its units."""
        ndim = self.eqn.invars[self.side].aval.ndim
        if self.is_convolution:
            units, inputs, *window = self.eqn.params["dimension_numbers"].rhs_spec
            return [*window, inputs], [units]
        return _contracted_and_free(self.eqn, self.side, ndim)

    def matrix(self, leaf: chex.Array) -> chex.Array:
        inputs, units = self.kernel_dimensions
        kernel = self.view(leaf, convert=False).transpose(*inputs, *units)
        return kernel.reshape(math.prod(kernel.shape[: len(inputs)]), -1)

    def rows(self, x: chex.Array) -> chex.Array:
        if not self.is_convolution:
            inputs, free = _contracted_and_free(self.eqn, 1 - self.side, x.ndim)
            size = math.prod(x.shape[d] for d in inputs)
            return x.transpose(*free, *inputs).reshape(-1, size)
        # A convolution with the identity for its kernel returns its patches, whatever
        # its strides, dilations and padding.
        params = self.eqn.params
        kernel = self.eqn.invars[1].aval
        inputs, _ = self.kernel_dimensions
        shape = [kernel.shape[d] for d in inputs]
        identity = jnp.eye(math.prod(shape), dtype=x.dtype).reshape(*shape, -1)
        spec = params["dimension_numbers"]
        window = range(2, x.ndim)
        numbers = jax.lax.ConvDimensionNumbers(
            spec.lhs_spec,
            (x.ndim - 1, x.ndim - 2, *(d - 2 for d in window)),
            (0, x.ndim - 1, *(d - 1 for d in window)),
        )
        patches = ops.conv_general_dilated(
            x,
            identity,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=numbers,
            precision=jax.lax.Precision.HIGHEST,
        )
        return patches.reshape(-1, patches.shape[-1])

    def unit_labels(self) -> np.ndarray:
        """The number of the unit of every output."""
        (out,) = self.eqn.outvars
        _, units = self.kernel_dimensions
        if self.is_convolution:
            axes = [self.eqn.params["dimension_numbers"].out_spec[1]]
        else:
            others = out.aval.ndim - len(units)
            first = 0 if self.side == 0 else others
            axes = list(range(first, first + len(units)))
        shape = [1] * out.aval.ndim
        for axis in axes:
            shape[axis] = out.aval.shape[axis]
        labels = np.arange(math.prod(shape)).reshape(shape)
        return np.broadcast_to(labels, out.aval.shape)


@dataclasses.dataclass
class _Call:
    """A product in a loss, and what follows until its outputs are complete.

    Attributes:
      product: the product.
      eqn: the equation to compute it by, perhaps a choice among platforms.
      operands: its operands in the loss; inputs and kernel are replaced.
      inputs: the value that the kernel is applied to.
      position: position of the inputs among the operands.
      after: equations that move the outputs before the bias is added.
      add: the addition of the bias, or None.
      bias: the bias, and its position in the addition.
      last: number of the equation after which outputs are complete.
      shape: shape and dtype of the outputs.
    """

    product: _Product
    eqn: JaxprEqn
    operands: Sequence[int]
    inputs: int
    position: int
    last: int
    shape: jax.ShapeDtypeStruct
    after: tuple[JaxprEqn, ...] = ()
    add: JaxprEqn | None = None
    bias: tuple[_View, int] | None = None

    @property
    def kernel_position(self) -> int:
        # Those of the product are the last two operands.
        return len(self.operands) - 2 + self.product.side

    def bound(self, values: Mapping[int, Any]) -> Callable[..., chex.Array]:
        operands = [values[i] for i in self.operands]

        def apply(
            inputs: chex.Array, kernel: chex.Array, bias: chex.Array | None = None
        ) -> chex.Array:
            arrays = list(operands)
            arrays[self.position] = inputs
            arrays[self.kernel_position] = self.product.view(kernel)
            (y,) = _bind(self.eqn, arrays)
            if bias is None or self.add is None or self.bias is None:
                return _View(0, self.after)(y)
            view, position = self.bias
            pair = [_View(0, self.after)(y), view(bias)]
            (y,) = _bind(self.add, pair if position else pair[::-1])
            return y

        return apply


class _Reader:
    """Reads a jaxpr into one list of equations between numbered values.

    Functions that are called with a parameter are read into the same list.
    """

    def __init__(self, num_leaves: int) -> None:
        self.ops: list[tuple[JaxprEqn, list[int], list[int]]] = []
        self.constants: dict[int, Any] = {}
        self.views: dict[int, _View] = {}
        self.calls: list[_Call] = []
        self.others: dict[int, str] = {}  # parameters, and what else uses them
        self.followed: set[int] = set()  # calls that another call depends on
        self._products: dict[int, tuple[int, tuple[JaxprEqn, ...]]] = {}
        self._depends: dict[int, frozenset[int]] = {}
        self._platforms: set[int] = set()
        self._count = 0

    def new(self) -> int:
        self._count += 1
        return self._count - 1

    def constant(self, value: Any) -> int:
        number = self.new()
        self.constants[number] = value
        return number

    def read(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: list[int]) -> list[int]:
        env = dict(zip(jaxpr.constvars, map(self.constant, consts)))
        env |= dict(zip(jaxpr.invars, inputs))

        def number(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            operands = [number(atom) for atom in eqn.invars]
            has_views = any(i in self.views for i in operands)
            if has_views and eqn.primitive.name in _CALLS:
                body = eqn.params[_CALLS[eqn.primitive.name]]
                if not isinstance(body, ClosedJaxpr):
                    body = ClosedJaxpr(body, ())
                outputs = self.read(body.jaxpr, body.consts, operands)
            else:
                outputs = self._emit(eqn, operands)
            env.update(zip(eqn.outvars, outputs))
        return [number(atom) for atom in jaxpr.outvars]

    def _emit(self, eqn: JaxprEqn, operands: list[int]) -> list[int]:
        name, position = eqn.primitive.name, len(self.ops)
        outputs = [self.new() for _ in eqn.outvars]
        self.ops.append((eqn, operands, outputs))
        depends: frozenset[int] = frozenset().union(
            *(self._depends.get(i, frozenset()) for i in operands)
        )
        if name == "platform_index":
            self._platforms.update(outputs)
        elif not any(i in self.views for i in operands):
            if name in _MOVES and operands[0] in self._products:
                call, after = self._products[operands[0]]
                self._products[outputs[0]] = (call, (*after, eqn))
        elif name in _MOVES:
            leaf, eqns = self.views[operands[0]]
            self.views[outputs[0]] = _View(leaf, (*eqns, eqn))
        elif product := self._product(eqn, operands):
            self.followed |= depends
            depends = frozenset([len(self.calls)])
            self._products[outputs[0]] = (len(self.calls), ())
            where = len(operands) - 1 - product.side
            self.calls.append(
                _Call(
                    product=product,
                    eqn=eqn,
                    operands=operands,
                    inputs=operands[where],
                    position=where,
                    last=position,
                    shape=_abstract(eqn.outvars[0]),
                )
            )
        elif not self._adds_bias(eqn, operands, position):
            for i in operands:
                if i in self.views:
                    self.others.setdefault(self.views[i].leaf, name)
        self._depends.update((i, depends) for i in outputs)
        return outputs

    def _product(self, eqn: JaxprEqn, operands: list[int]) -> _Product | None:
        name = eqn.primitive.name
        if name == "cond" and operands[0] in self._platforms:
            # A function for each platform, one of which is the product as it is.
            for branch in eqn.params["branches"]:
                is_single = (
                    len(branch.eqns) == 1
                    and branch.eqns[0].invars == branch.jaxpr.invars
                    and branch.eqns[0].outvars == branch.jaxpr.outvars
                )
                if is_single:
                    product = self._product(branch.eqns[0], operands[1:])
                    if product is not None:
                        return product
            return None
        sides = [side for side, i in enumerate(operands) if i in self.views]
        if len(sides) != 1:
            return None
        (side,) = sides
        view = self.views[operands[side]]
        if any(eqn.primitive.name == "broadcast_in_dim" for eqn in view.eqns):
            source = view.eqns[0].invars[0].aval.size
            if view.eqns[-1].outvars[0].aval.size != source:
                return None
        is_product = (
            name == "dot_general" and not any(eqn.params["dimension_numbers"][1])
        ) or (
            name == "conv_general_dilated"
            and side == 1
            and eqn.params["batch_group_count"] == 1
        )
        return _Product(eqn, view, side) if is_product else None

    def _adds_bias(self, eqn: JaxprEqn, operands: list[int], position: int) -> bool:
        """Whether it adds a bias to a product, which is then part of the product."""
        if eqn.primitive.name not in ("add", "add_any"):
            return False
        for side, i in enumerate(operands):
            other = operands[1 - side]
            if i not in self.views or other not in self._products:
                continue
            number, after = self._products[other]
            call, view = self.calls[number], self.views[i]
            labels = call.product.unit_labels()
            source = eqn.invars[side] if not view.eqns else view.eqns[0].invars[0]
            if call.add is not None or source.aval.size != labels.max() + 1:
                continue
            own = np.arange(source.aval.size).reshape(source.aval.shape)
            found, expected = _moved(own, view.eqns), _moved(labels, after)
            shape = eqn.outvars[0].aval.shape
            if not np.array_equal(
                np.broadcast_to(found, shape), np.broadcast_to(expected, shape)
            ):
                continue
            call.after, call.add, call.bias = after, eqn, (view, side)
            call.last, call.shape = position, _abstract(eqn.outvars[0])
            return True
        return False


def _layers(
    calls: Sequence[_Call], names: Sequence[str], others: dict[int, str]
) -> tuple[list[Layer], list[int]]:
    """The layers, and the layer of each call; notes what is in two different ones."""
    layers: list[Layer] = []
    known: dict[str, int] = {}
    numbers = []
    for call in calls:
        product = call.product
        bias = None if call.bias is None else call.bias[0].leaf
        moves = [(eqn.primitive.name, eqn.params) for eqn in product.view.eqns]
        kind = (product.eqn.primitive.name, product.kernel_dimensions, moves)
        key = repr((product.view.leaf, bias, kind))
        if key not in known:
            known[key] = len(layers)
            for layer in layers:
                shared = {layer.kernel, layer.bias} & {product.view.leaf, bias}
                for leaf in shared - {None}:
                    others.setdefault(leaf, "another layer")
            groups = product.eqn.params.get("feature_group_count", 1)
            overlap = 1
            if product.is_convolution:
                shape = product.eqn.invars[1].aval.shape
                _, _, *window = product.eqn.params["dimension_numbers"].rhs_spec
                overlap = math.prod(shape[d] for d in window)
            leaf = product.view.leaf
            layers.append(Layer(names[leaf], leaf, bias, groups, overlap, product))
        numbers.append(known[key])
    parents = [layer.name.rpartition("/")[0] for layer in layers]
    for layer, parent in zip(layers, parents):
        if parent and parents.count(parent) == 1:
            layer.name = parent
    return layers, numbers


def _bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    # Before JAX 0.9 functions among the parameters came apart from them.
    subfuns, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*subfuns, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _moved(x: np.ndarray, eqns: Sequence[JaxprEqn]) -> np.ndarray:
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


def _abstract(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)
