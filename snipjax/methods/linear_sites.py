"""The linear layers of any loss, found in its jaxpr.

A linear layer is a matrix product or a convolution of something with a parameter, and
the sum with another parameter as its bias. A method can look at the inputs of every
layer and replace its outputs, whatever library the loss is written with.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from snipjax._src import jaxprs, trees
from snipjax.methods.linear_layers import (
    Eqns,
    Layer,
    abstract,
    moved,
    relabeled,
)
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


class Site(NamedTuple):
    """A call of a layer, while the loss is computed.

    ``repeat`` is the number of earlier calls of that layer. ``outputs`` have the bias
    included. ``apply`` is ``(inputs, kernel[, bias]) -> outputs``, the layer with other
    arrays; kernel and bias have the shapes of the parameters.
    """

    number: int
    layer: Layer
    repeat: int
    inputs: chex.Array
    outputs: chex.Array
    apply: Callable[..., chex.Array]


class Network:
    """A function of parameters and a batch whose linear layers are known.

    ``layers`` are in the order of their first calls. ``others`` has the primitive for
    each parameter with a use that is not in one layer. ``outputs`` are the numbers of
    the sites that no other site follows.
    """

    def __init__(
        self, function: Callable[..., Any], params: chex.ArrayTree, batch: Any
    ) -> None:
        """Traces ``function(params, batch)``; params and batch may be abstract."""
        closed, shape = jax.make_jaxpr(function, return_shape=True)(params, batch)
        self._treedef = jax.tree.structure(shape)
        names = [name for name, _ in trees.named_leaves(params)]
        reader = _Reader()
        self._inputs = [reader.new() for _ in closed.jaxpr.invars]
        reader.moved = {
            value: (leaf, ()) for leaf, value in enumerate(self._inputs[: len(names)])
        }
        self._results = reader.read(closed.jaxpr, closed.consts, self._inputs)
        self._ops, self._constants = reader.ops, reader.constants
        self._calls = reader.calls
        self.layers = reader.layers(names)
        self.others = {names[leaf]: name for leaf, name in reader.others.items()}
        self.outputs = sorted(set(range(len(self._calls))) - reader.followed)
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
        ends = {call.end: number for number, call in enumerate(self._calls)}
        repeats = {layer.kernel: 0 for layer in self.layers}
        for position, (eqn, operands, outputs) in enumerate(self._ops):
            results = jaxprs.bind(eqn, [values[i] for i in operands])
            if position in ends:
                call = self._calls[ends[position]]
                apply = call.bound([values[i] for i in call.operands])
                repeat = repeats[call.layer.kernel]
                repeats[call.layer.kernel] += 1
                inputs = values[call.operands[call.inputs]]
                site = (ends[position], call.layer, repeat, inputs, results[0], apply)
                results = [at(Site(*site))]
            values.update(zip(outputs, results))
        return jax.tree.unflatten(self._treedef, [values[i] for i in self._results])


def trace(problem: Problem) -> Network:
    return Network(problem.loss, problem.params, problem.example_batch())


def check_covered(network: Network, mask: chex.ArrayTree, reason: str) -> None:
    """Raises a ``ValueError`` for a prunable parameter outside of linear layers."""
    covered = {leaf for layer in network.layers for leaf in (layer.kernel, layer.bias)}
    for leaf, (name, keep) in enumerate(trees.named_leaves(mask)):
        use = network.others.get(name, "" if leaf in covered else "nothing")
        if jnp.ndim(keep) and use:
            raise ValueError(
                f"parameter '{name}' is prunable, but used by {use}, so that {reason}; "
                "it must be the kernel of one matrix product or convolution, or the "
                "bias added to it: write the loss so, or exclude it, e.g. by "
                f"masks.excluding(prunable, '{name}')"
            )


class _Call:
    """A product in the loss, up to the equation after which outputs are complete.

    ``operands`` are the values of the product's operands, perhaps with more before
    them. ``end`` is the position of the last equation.
    """

    def __init__(
        self, layer: Layer, eqn: JaxprEqn, operands: Sequence[int], end: int
    ) -> None:
        self.layer, self.operands = layer, operands
        self.inputs = len(operands) - 1 - layer.side
        self._eqn = eqn
        self._moves: Eqns = ()
        self._add: tuple[JaxprEqn, int, Eqns] | None = None
        self.finish(eqn, end)

    @property
    def has_bias(self) -> bool:
        return self._add is not None

    def finish(self, eqn: JaxprEqn, end: int) -> None:
        self.end, self.shape = end, abstract(eqn.outvars[0])

    def add(
        self, eqn: JaxprEqn, side: int, bias_moves: Eqns, moves: Eqns, end: int
    ) -> None:
        self._add, self._moves = (eqn, side, bias_moves), moves
        self.finish(eqn, end)

    def bound(self, operands: list[Any]) -> Callable[..., chex.Array]:
        """Returns the layer as a function of inputs, kernel and bias."""

        def apply(
            x: chex.Array, kernel: chex.Array, bias: chex.Array | None = None
        ) -> chex.Array:
            operands[self.inputs] = x
            kernel_at = len(operands) - 2 + self.layer.side
            operands[kernel_at] = moved(kernel, self.layer.moves)
            y = moved(jaxprs.bind(self._eqn, operands)[0], self._moves)
            if self._add is None:
                return y
            eqn, side, moves = self._add
            pair = [y, moved(bias, moves)]
            return jaxprs.bind(eqn, pair if side else pair[::-1])[0]

        return apply


class _Reader:
    """Reads a jaxpr into one list of equations between numbered values.

    Functions that are called with a parameter are read into the same list.
    """

    def __init__(self) -> None:
        self.ops: list[tuple[JaxprEqn, list[int], list[int]]] = []
        self.constants: dict[int, Any] = {}
        self.moved: dict[int, tuple[int, Eqns]] = {}  # parameters, and moves of them
        self.calls: list[_Call] = []
        self.others: dict[int, str] = {}
        self.followed: set[int] = set()  # calls that another call depends on
        self._products: dict[int, tuple[int, Eqns]] = {}  # calls, and moves of them
        self._depends: dict[int, frozenset[int]] = {}
        self._platforms: set[int] = set()
        self._count = 0

    def new(self) -> int:
        self._count += 1
        return self._count - 1

    def read(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: list[int]) -> list[int]:
        def constant(value: Any) -> int:
            number = self.new()
            self.constants[number] = value
            return number

        def number(atom: Any) -> int:
            return constant(atom.val) if isinstance(atom, Literal) else env[atom]

        env = dict(zip(jaxpr.constvars, map(constant, consts)))
        env |= dict(zip(jaxpr.invars, inputs))
        for eqn in jaxpr.eqns:
            operands, name = [number(atom) for atom in eqn.invars], eqn.primitive.name
            is_call = name in jaxprs.CALLS
            if is_call and not self.moved.keys().isdisjoint(operands):
                outputs = self.read(*jaxprs.opened(jaxprs.inner(eqn)), operands)
            else:
                outputs = [self.new() for _ in eqn.outvars]
                self._emit(eqn, operands, outputs)
            env.update(zip(eqn.outvars, outputs))
        return [number(atom) for atom in jaxpr.outvars]

    def layers(self, names: Sequence[str]) -> list[Layer]:
        """Returns each layer once, and notes a parameter of two different ones."""
        layers: dict[str, Layer] = {}
        for call in self.calls:
            new = call.layer
            moves = [(eqn.primitive.name, eqn.params) for eqn in new.moves]
            kind = (new.eqn.primitive.name, new.kernel_dimensions(), moves)
            call.layer = layers.setdefault(repr((new.kernel, new.bias, kind)), new)
        pairs = [(layer.kernel, layer.bias) for layer in layers.values()]
        uses = collections.Counter(leaf for pair in pairs for leaf in pair)
        for leaf, number in uses.items():
            if number > 1 and leaf is not None:
                self.others.setdefault(leaf, "two different layers")
        for layer in layers.values():
            name = names[layer.kernel]
            parent = name.rpartition("/")[0]
            own = [n for n in names if parent and n.startswith(parent + "/")]
            is_alone = len(own) == 1 + (layer.bias is not None)
            layer.name = parent if is_alone else name
        return list(layers.values())

    def _emit(self, eqn: JaxprEqn, operands: list[int], outputs: list[int]) -> None:
        name, end = eqn.primitive.name, len(self.ops)
        self.ops.append((eqn, operands, outputs))
        depends: frozenset[int] = frozenset().union(
            *(self._depends.get(i, frozenset()) for i in operands)
        )
        if name == "platform_index":
            self._platforms.update(outputs)
        if self.moved.keys().isdisjoint(operands):
            if name in _MOVES and operands[0] in self._products:
                call, eqns = self._products[operands[0]]
                self._products[outputs[0]] = (call, (*eqns, eqn))
        elif name in _MOVES:
            leaf, eqns = self.moved[operands[0]]
            self.moved[outputs[0]] = (leaf, (*eqns, eqn))
        elif layer := self._layer(eqn, operands):
            self.followed |= depends
            depends = frozenset([len(self.calls)])
            self._products[outputs[0]] = (len(self.calls), ())
            self.calls.append(_Call(layer, eqn, operands, end))
        elif not self._is_bias_added(eqn, operands, end):
            for i in operands:
                if i in self.moved:
                    self.others.setdefault(self.moved[i][0], f"'{name}'")
        self._depends.update((i, depends) for i in outputs)

    def _layer(self, eqn: JaxprEqn, operands: list[int]) -> Layer | None:
        name = eqn.primitive.name
        if name == "cond" and operands[0] in self._platforms:
            # A function for each platform, one of which is the product as it is.
            for branch in (branch.jaxpr for branch in eqn.params["branches"]):
                first = branch.eqns[0]
                is_whole = (first.invars, first.outvars) == (
                    branch.invars,
                    branch.outvars,
                )
                if is_whole and (layer := self._layer(first, operands[1:])):
                    return layer
            return None
        sides = [side for side, i in enumerate(operands) if i in self.moved]
        is_product = (
            name == "dot_general" and not any(eqn.params["dimension_numbers"][1])
        ) or (
            name == "conv_general_dilated"
            and sides == [1]
            and eqn.params["batch_group_count"] == 1
        )
        if not is_product or len(sides) != 1:
            return None
        leaf, moves = self.moved[operands[sides[0]]]
        size = abstract(eqn.invars[sides[0]]).size
        is_repeated = moves and abstract(moves[0].invars[0]).size != size
        return None if is_repeated else Layer(eqn, leaf, moves, sides[0])

    def _is_bias_added(self, eqn: JaxprEqn, operands: list[int], end: int) -> bool:
        """Returns whether it adds a bias, which is then part of the product."""
        if eqn.primitive.name not in ("add", "add_any"):
            return False
        for side, i in enumerate(operands):
            if i not in self.moved or operands[1 - side] not in self._products:
                continue
            leaf, bias_moves = self.moved[i]
            number, moves = self._products[operands[1 - side]]
            call, (first, *_) = self.calls[number], (*bias_moves, eqn)
            source = abstract(first.invars[0 if bias_moves else side])
            units = call.layer.unit_numbers()
            if call.has_bias or source.size != units.max() + 1:
                continue
            own = np.arange(source.size).reshape(source.shape)
            shape = abstract(eqn.outvars[0]).shape
            added, expected = (
                np.broadcast_to(relabeled(x, eqns), shape)
                for x, eqns in ((own, bias_moves), (units, moves))
            )
            if np.array_equal(added, expected):
                call.layer.bias = leaf
                call.add(eqn, side, bias_moves, moves, end)
                return True
        return False
