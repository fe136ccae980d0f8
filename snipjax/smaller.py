"""Experiments on smaller networks: only the units of the largest scores are trained."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import assembly, build, io, masks, pruning, saliency, shrink
from snipjax._src import trees
from snipjax.assembly import Setup
from snipjax.training import console
from snipjax.training.sessions import Session
from snipjax.training.state import Batch

UNITS = "units.npz"  # the mask of the whole network, in the directory of each network


class SmallModel(NamedTuple):
    """A Flax module without some of its units, called as the module is."""

    model: nn.Module
    removed: shrink.Removed
    units: dict[str, list[int]]  # the number kept and of all, by layer

    def apply(
        self,
        variables: Mapping[str, chex.ArrayTree],
        images: chex.Array,
        *,
        train: bool = False,
        mutable: Any = False,
    ) -> Any:
        call = functools.partial(self.model.apply, train=train, mutable=mutable)
        return self.removed.function(call)(_both(variables), images)


def without_units(setup: Setup, seeds: range, session: Session) -> Setup:
    """Returns the setup of a network without the units of the smallest scores.

    It is the setup itself unless the configuration selects units. The network keeps as
    many units as may have ``prune.keep_flops`` of the operations.
    """
    config = setup.config.copy_and_resolve_references()
    if not build.removes_units(config):
        return setup
    (seed,) = seeds
    found = units(setup)
    scores = unit_scores(setup, found, seed)
    if config.prune.select == "units_layerwise":
        scores = shrink.layerwise(scores)
    mask = shrink.keep(scores, found, config.prune.keep_flops, budget="operations")
    removed = shrink.removed(found, mask)
    kept = {
        layer.name.removeprefix("params/"): [_kept(layer, mask), layer.size]
        for layer in found.layers
    }
    directory = session.output / f"seed-{seed}"
    directory.mkdir(exist_ok=True)
    io.save_arrays(mask, directory / UNITS)
    model = SmallModel(setup.task.model, removed, kept)
    config.prune.update(method="none", select="global")

    @functools.partial(jax.jit, static_argnames="initializer")
    def init(key: chex.PRNGKey, initializer: str) -> chex.ArrayTree:
        whole = setup.init(key, initializer)
        variables = removed.params(_both(whole))
        return {name: variables[name] for name in whole}

    console.say(
        f"kept {sum(n for n, _ in kept.values()):,} of "
        f"{sum(n for _, n in kept.values()):,} units "
        f"({config.prune.keep_flops:.0%} of the operations)"
    )
    task = setup.task._replace(model=model)  # type: ignore[arg-type]
    return setup._replace(config=config, task=task, init=init, whole=setup)


def units(setup: Setup) -> shrink.Units:
    """Returns the units of the network of an experiment."""
    name = setup.config.init.scored
    variables = jax.eval_shape(lambda key: setup.init(key, name), jax.random.key(0))
    return shrink.units(
        lambda variables, x: setup.task.model.apply(variables, x, train=False),
        _both(variables),
        jax.ShapeDtypeStruct((1, *setup.facts["image_shape"]), jnp.float32),
    )


def unit_scores(setup: Setup, units: shrink.Units, seed: int) -> dict[str, chex.Array]:
    """Returns the scores of units by the criterion of an experiment.

    For SNIP they are the derivatives in gates. Random scores are drawn for units, not
    for their connections, of which some have more than others.
    """
    config, keys = setup.config.prune, assembly.make_keys(seed)
    if config.method == "random":
        return {
            layer.name: jax.random.uniform(
                jax.random.fold_in(keys.criterion, i), (layer.size,)
            )
            for i, layer in enumerate(units.layers)
        }
    variables = setup.init(keys.scored_init, setup.config.init.scored)
    stats = variables.get("batch_stats", {})
    is_signed = config.method == "snip"
    criterion = (
        saliency.sensitivity
        if is_signed
        else assembly.scoring_criterion(setup, variables)
    )
    scores, _ = pruning.score_and_mask(
        assembly.scored_loss(setup, variables),
        variables["params"],
        assembly.saliency_batch(setup, seed),
        0.0,
        criterion=criterion,
        prunable=lambda path, leaf: True,
        num_batches=None if config.num_batches == 1 else config.num_batches,
        key=keys.criterion,
    )
    zeros = jax.tree.map(jnp.zeros_like, stats)
    return shrink.unit_scores({"params": scores, "batch_stats": zeros}, units)


def described(setup: Setup, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the entries of networks in a result, with what they are smaller by.

    Counts are of the whole network, of which the units removed are pruned. Times are
    of a training step, measured in turns with the whole network's.
    """
    if setup.whole is None:
        return list(entries)
    whole_shapes = setup.task.model.removed.like["params"]
    totals = {name: leaf.size for name, leaf in trees.named_leaves(whole_shapes)}
    seconds = step_seconds(setup)
    console.say(
        f"a training step takes {1e3 * seconds['smaller']:.3g} ms, of the whole "
        f"network {1e3 * seconds['dense']:.3g} ms"
    )
    more = {"units": setup.task.model.units, "step_seconds": seconds}
    result = []
    for entry in entries:
        layers = [layer | {"total": totals[layer["path"]]} for layer in entry["layers"]]
        sparsity = 1 - entry["kept"] / sum(totals[layer["path"]] for layer in layers)
        result.append(entry | {"layers": layers, "sparsity": sparsity} | more)
    return result


def step_seconds(setup: Setup, repeats: int = 5) -> dict[str, float]:
    """Returns the time of a training step of the whole network and the smaller one."""
    size, shape = setup.config.train.batch_size, setup.facts["image_shape"]
    images = jax.random.normal(jax.random.key(0), (size, *shape))
    batch = Batch(images, jnp.zeros(size, jnp.int32))
    calls = []
    for part in (setup.whole, setup):
        params = assembly.abstract_state(part).params
        ones = masks.ones(params, build.prunable(part.config))
        state = assembly.start(part, 0, ones)
        calls.append(functools.partial(jax.jit(part.task.step), state, batch))
    return dict(zip(("dense", "smaller"), shrink.seconds_in_turns(calls, repeats)))


def _both(variables: Mapping[str, chex.ArrayTree]) -> dict[str, chex.ArrayTree]:
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}


def _kept(layer: shrink.Layer, mask: chex.ArrayTree) -> int:
    """Returns how many units of a layer a mask of units keeps."""
    member = layer.members[0]
    leaf = np.asarray(jax.tree.leaves(mask)[member.leaf])
    rest = tuple(i for i in range(leaf.ndim) if i != member.axis)
    has_any = np.asarray(leaf.any(axis=rest))
    return int(has_any[member.positions[:, 0]].sum())
