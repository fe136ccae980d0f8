"""One network on a mesh of devices, with batches from a stream."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from snipjax import data
from snipjax.training import loop, sharding
from snipjax.training.placement import Placement, Task, snapshot
from snipjax.training.state import Batch, Metrics, TrainState
from snipjax.training.step import metric_sums, preparation


class Stream(NamedTuple):
    """A data set that is read batch by batch while a network trains.

    ``image_size`` is in pixels. ``views`` are the parts of an image that training and
    evaluation see. ``seed`` is the seed of the order.
    """

    dataset: data.Dataset
    image_size: int
    views: data.Views
    seed: int
    workers: int = 0

    def batches(self, part: int, batch_size: int, **settings: Any) -> Iterator[Any]:
        """Returns this process's share of the batches for one of a run's purposes.

        Each purpose has its own ``part``, and with it an order of its own. A batch has
        ``batch_size`` examples of all processes.
        """
        seed = np.random.SeedSequence((self.seed, part)).generate_state(1)
        return data.batches(
            self.dataset.train,
            batch_size=batch_size,
            seed=int(seed[0]),
            image_size=self.image_size,
            view=self.views.train,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **settings,
        )

    def first(self, mesh: Mesh, batch_size: int, num_batches: int) -> Batch:
        """Returns the first batches for saliency on a mesh, stacked if several."""
        batches = list(self.batches(SALIENCY, batch_size, num_steps=num_batches))
        if num_batches == 1:
            arrays, placed = batches[0], sharding.batch_sharding(mesh)
        else:
            arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
            placed = sharding.batch_sharding(mesh, leading=1)
        put = functools.partial(jax.make_array_from_process_local_data, placed)
        return Batch(*map(put, arrays))


TRAINING, SALIENCY = range(2)  # the purposes of a run's batches


def on_mesh(
    task: Task, stream: Stream, mesh: Mesh, like: TrainState, seeds: range, steps: int
) -> Placement:
    """Returns the placement of one network that is split over a mesh.

    Each step is a program of its own, which holds few whole parameters at a time.
    """
    (seed,) = seeds
    placed = sharding.batch_sharding(mesh)
    evaluation = compiled_evaluation(task, mesh, like, stream)

    def evaluated(state: TrainState, source: data.Source) -> Metrics:
        batches = data.evaluation_batches(
            source,
            batch_size=task.batch_size,
            image_size=stream.image_size,
            view=stream.views.evaluation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=stream.workers,
        )
        total = Metrics(0.0, 0)
        with data.to_device(batches, placed) as batches:
            for images, labels, counted in batches:
                sums = evaluation(state, Batch(images, labels), counted)
                total = jax.tree.map(jnp.add, total, sums)
        return jax.tree.map(lambda x: x / len(source), total)

    @contextlib.contextmanager
    def training(first: int) -> Iterator[loop.Programs]:
        step = compiled_train_step(task, mesh, like, stream)
        batches = stream.batches(
            TRAINING,
            task.batch_size,
            start_step=first,
            num_steps=steps,
            workers=stream.workers,
        )
        with data.to_device(batches, placed) as batches:

            def train_steps(
                state: TrainState, _: int, num_steps: int
            ) -> tuple[TrainState, Metrics]:
                total = Metrics(0.0, 0.0)
                for batch in itertools.islice(batches, num_steps):
                    state, metrics = step(state, Batch(*batch))
                    total = jax.tree.map(jnp.add, total, metrics)
                return state, jax.tree.map(lambda x: x / num_steps, total)

            yield loop.Programs(
                train_steps,
                evaluate=lambda state: {
                    "val": evaluated(state, stream.dataset.validation),
                    "test": evaluated(state, stream.dataset.test),
                },
                snapshot=snapshot,
            )

    def score(function: Callable[..., Any], batch: Callable[..., Any]) -> Any:
        with jax.set_mesh(mesh):
            jit = functools.partial(sharding.jit, mesh)
            return function(seed, batch(seed), jit=jit)

    def start(function: Callable[..., TrainState], mask: chex.ArrayTree) -> TrainState:
        program = sharding.jit(
            mesh, functools.partial(function, seed), donate_argnums=0
        )
        with jax.set_mesh(mesh):
            return program(mask)

    return Placement(
        seeds=seeds,
        like=like,
        score=score,
        start=start,
        training=training,
        networks=lambda tree: iter([tree]),
        put=lambda state: state,
        portable=lambda tree: tree,
    )


def compiled_train_step(
    task: Task, mesh: Mesh, like: TrainState, stream: Stream
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns ``(state, batch of uint8 images) -> (state, metrics)`` for a mesh.

    The state is donated.
    """
    prepare = preparation(task.preprocess, task.augment)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _, augment_key = jax.random.split(state.key)
        key = jax.random.fold_in(augment_key, state.step)
        return task.step(state, prepare(key, batch))

    out = sharding.tree_shardings(mesh, like), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, out_shardings=out, donate_argnums=0)
        lowered = jitted.lower(like, abstract_batch(mesh, stream, task.batch_size))
        return sharding.compiled(mesh, lowered)


def compiled_evaluation(
    task: Task, mesh: Mesh, like: TrainState, stream: Stream
) -> Callable[[TrainState, Batch, chex.Array], Metrics]:
    """Returns ``(state, batch, counted) -> sums over the examples that count``.

    The batch has uint8 images; ``counted`` is float32, 0 for padding.
    """
    batch = abstract_batch(mesh, stream, task.batch_size)
    counted = jax.ShapeDtypeStruct(
        batch.labels.shape, "float32", sharding=batch.labels.sharding
    )

    def sums(state: TrainState, batch: Batch, counted: chex.Array) -> Metrics:
        return metric_sums(
            sharding.gathered(mesh, state.params),
            state.batch_stats,
            Batch(task.preprocess(batch.images), batch.labels),
            counted > 0,
            model=task.model,
            loss=task.loss,
        )

    with jax.set_mesh(mesh):
        jitted = jax.jit(sums, out_shardings=sharding.replicated(mesh))
        return sharding.compiled(mesh, jitted.lower(like, batch, counted))


def abstract_batch(mesh: Mesh, stream: Stream, batch_size: int) -> Batch:
    """Returns shapes, dtypes and shardings of a batch of uint8 images on a mesh."""
    size, channels = stream.image_size, stream.dataset.train.channels
    placed = sharding.batch_sharding(mesh)
    return Batch(
        jax.ShapeDtypeStruct(
            (batch_size, size, size, channels), "uint8", sharding=placed
        ),
        jax.ShapeDtypeStruct((batch_size,), "int32", sharding=placed),
    )
