"""The order of a network's layers from input to output."""

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax

from snipjax._src import jaxprs, trees


def layer_order(
    apply_fn: Callable[[chex.ArrayTree, Any], Any], params: chex.ArrayTree, inputs: Any
) -> tuple[str, ...]:
    """Returns the names of the parameters in the order in which a network uses them.

    A parameter is used where it first meets something that depends on the inputs. The
    order of a pytree's leaves is alphabetical, and of no use for that.

    Args:
      apply_fn: ``(params, inputs) -> outputs``, a traceable function.
      params: pytree of arrays, of which shapes and dtypes matter.
      inputs: pytree of arrays, of which shapes and dtypes matter.

    Returns:
      Names such as ``Conv_0/kernel``; parameters that are not used are left out.

    Example:
      >>> params = {"body": jnp.ones((4, 3)), "a_head": jnp.ones((3, 2))}
      >>> layer_order(lambda params, x: x @ params["body"] @ params["a_head"],
      ...             params, jnp.ones((1, 4)))
      ('body', 'a_head')
    """
    closed = jax.make_jaxpr(apply_fn)(params, inputs)
    names = [name for name, _ in trees.named_leaves(params)]
    number = len(names)
    order: dict[str, None] = {}

    def use(sources: Iterable[frozenset[str]]) -> None:
        for source in sources:
            order.update(dict.fromkeys(sorted(source, key=names.index)))

    def visit(jaxpr: Any, operands: list[frozenset[str] | None]) -> list[Any]:
        """Returns the parameters behind each result; None if inputs are behind it."""
        return jaxprs.outputs(jaxpr, operands, step, lambda x: frozenset())

    def step(equation: Any, found: list[frozenset[str] | None]) -> list[Any]:
        inner = jaxprs.inner(equation)
        if inner is not None and len(jaxprs.opened(inner)[0].invars) == len(found):
            return visit(inner, found)
        if any(source is None for source in found):
            use(source for source in found if source)
            return [None] * len(equation.outvars)
        together = frozenset().union(*(source or () for source in found))
        return [together] * len(equation.outvars)

    operands: list[frozenset[str] | None] = [frozenset([name]) for name in names]
    operands += [None] * (len(closed.jaxpr.invars) - number)
    visit(closed, operands)
    return tuple(order)
