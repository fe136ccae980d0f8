"""Every name of a configuration becomes a function, and so does an import path."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from snipjax import build, data, initializers, masks, models, saliency, training
from snipjax import config as configs
from snipjax._src import imports

MINE = """
import flax.linen as nn
import jax.numpy as jnp
import optax
from snipjax import data, masks

class Net(nn.Module):
    num_classes: int
    dtype: object = jnp.float32
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)

def small(data_dir=None):
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)
    source = data.Arrays(images, jnp.arange(4))
    return data.Dataset(str(data_dir), source, source, source, 4, ("a", "b", "c", "d"))

def nothing():
    return None

def net(num_classes):
    return Net(num_classes)

def not_a_net(num_classes):
    return num_classes

def of_two(a, b):
    return a

def without_key(loss_fn, params, batch):
    return params

def loss(logits, labels):
    return jnp.mean(logits)

def is_wide(key_path, leaf):
    return leaf.ndim == 2

def everything(scores, sparsity, prunable):
    return masks.ones(scores, prunable)

def plain(learning_rate, weight_decay):
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate))
"""
PARAMS = {
    "dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
}
DECAYED = {
    "dense": {"kernel": True, "bias": True},
    "norm": {"scale": False, "bias": False},
}
ADAPTIVE = {"schedule": "constant", "momentum": 0.8, "weight_decay": 0.1}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user, in the directory that a command is run from."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import nonesuch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "mine"
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def config_with(**values: Any) -> ConfigDict:
    config = configs.default()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in values.items()}
    )
    configs.validate(config)
    return config


def after_steps(optimizer: optax.GradientTransformation, steps: int) -> chex.ArrayTree:
    """Parameters after steps down the half of the squared norm."""

    @jax.jit
    def step(params: chex.ArrayTree, state: Any) -> Any:
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params


class TestNames:
    @pytest.mark.parametrize(
        "table",
        ["CRITERIA", "PRUNABLE", "SELECTIONS", "ALLOCATIONS", "OPTIMIZERS", "LOSSES"],
    )
    def test_each_stands_for_a_function(self, table: str) -> None:
        for path in getattr(build, table).values():
            assert callable(imports.load(path, "any"))

    def test_are_those_of_the_rooms(self) -> None:
        assert {*build.INITIALIZERS} == {*initializers.INITIALIZERS}
        assert {*build.VIEWS} == {"none", *data.VIEWS}

    @pytest.mark.parametrize("name", build.RIVALS)
    def test_settings_of_a_method_are_its_own_defaults(self, name: str) -> None:
        method = build.method(config_with(prune__method=name))
        assert method is not None
        function, settings = method
        assert function.__name__ == name
        assert settings == type(settings)()
        assert {*configs.default()[name]} == {
            field.name for field in dataclasses.fields(settings)
        }
        assert build.criterion(config_with(prune__method=name)) is None

    def test_settings_that_a_method_refuses_are_told_with_its_name(self) -> None:
        config = config_with(prune__method="lobs", lobs__block=2.0)
        with pytest.raises(ValueError, match=r"config\.lobs: block is 2\.0"):
            build.method(config)

    def test_a_criterion(self) -> None:
        assert build.criterion(config_with()) is saliency.snip
        none = config_with(prune__method="none")
        assert build.criterion(none) is saliency.magnitude
        assert build.method(none) is None

    def test_a_model(self) -> None:
        config = config_with(model__name="lenet_5_caffe", model__dtype="bfloat16")
        expected = models.create("lenet_5_caffe", 3, dtype=jnp.dtype("bfloat16"))
        assert build.model(config, 3) == expected

    def test_a_prunable_predicate_leaves_patterns_out(self) -> None:
        config = config_with(prune__prunable="kernels", prune__exclude=("head/*",))
        params = {"head": {"kernel": jnp.ones((2, 2))}, **PARAMS}
        # dense/bias, dense/kernel, head/kernel, norm/bias, norm/scale
        found = masks.are_prunable(params, build.prunable(config))
        assert found == [False, True, False, False, False]

    def test_a_selection(self) -> None:
        assert build.select(config_with()) is masks.global_topk
        layerwise = config_with(prune__select="layerwise")
        assert build.select(layerwise) is masks.layerwise_topk
        scores = {"a": jnp.ones((2, 5)), "b": 2 * jnp.ones((2, 5))}
        select = build.select(config_with(prune__min_density=0.1, prune__sparsity=0.5))
        mask = select(scores, 0.5, masks.kernels)
        assert int(mask["a"].sum()) == 1 and int(mask["b"].sum()) == 9

    def test_data_in_memory_or_as_a_stream(self) -> None:
        digits = build.dataset(config_with())
        assert digits.num_classes == 10 and len(digits.train.labels) == len(
            digits.train
        )
        shuffled = build.dataset(config_with(dataset__random_labels=True))
        expected = data.with_random_labels(digits).train.labels
        np.testing.assert_array_equal(shuffled.train.labels, expected)
        name = "synthetic:100x8x8x3/5"
        stream = config_with(dataset__name=name, dataset__stream=True)
        assert not hasattr(build.dataset(stream).train, "images")
        assert hasattr(build.dataset(config_with(dataset__name=name)).train, "images")

    def test_an_augmentation(self) -> None:
        assert build.augment(config_with()) is None
        augment = build.augment(config_with(train__translate=1, train__flip=True))
        assert augment.func is training.flip_and_translate
        assert augment.keywords == {"flip": True, "translate": 1}

    def test_names_are_checked_without_data(self) -> None:
        build.check_names(config_with(dataset__name="nonesuch"))
        with pytest.raises(ValueError, match="did you mean 'lenet_300_100'"):
            build.check_names(config_with(model__name="lenet_300"))
        for field in ("prune.method", "prune.select", "prune.prunable", "train.loss",
                      "optimizer.name"):  # fmt: skip
            config = config_with(**{field.replace(".", "__"): "math:pi"})
            with pytest.raises(ValueError, match=f"config.{field} is 'math:pi', a flo"):
                build.check_names(config)


class TestInitializers:
    def test_of_a_network_with_a_kernel_init(self) -> None:
        network = build.model(config_with(), 10)
        he = build.with_initializer(network, "he")
        assert he == network.clone(kernel_init=initializers.he)

    def test_a_network_without_one_keeps_its_own(self) -> None:
        network = nn.Dense(3)
        assert build.with_initializer(network, "xavier").kernel_init is (
            initializers.xavier
        )
        network = nn.BatchNorm(True)
        assert build.with_initializer(network, "fan_in") is network
        with pytest.raises(ValueError, match="BatchNorm has no field kernel_init"):
            build.with_initializer(network, "he")


class TestOptimizer:
    @pytest.mark.parametrize(
        ("settings", "optimizer"),
        [
            # The paper's, by default.
            ({"decay_every": 2}, optax.chain(
                optax.add_decayed_weights(5e-4, DECAYED),
                optax.sgd(optax.exponential_decay(0.1, 2, 0.1, staircase=True), 0.9),
            )),
            ({"learning_rate": 0.2, "decay_factor": 0.5, "decay_every": 3,
              "momentum": 0.7, "weight_decay": 0.01}, optax.chain(
                optax.add_decayed_weights(0.01, DECAYED),
                optax.sgd(optax.exponential_decay(0.2, 3, 0.5, staircase=True), 0.7),
            )),
            (ADAPTIVE | {"name": "adam"}, optax.chain(
                optax.add_decayed_weights(0.1, DECAYED), optax.adam(0.1, b1=0.8))),
            (ADAPTIVE | {"name": "adamw"}, optax.adamw(
                0.1, b1=0.8, weight_decay=0.1, mask=DECAYED)),
            (ADAPTIVE | {"name": "lamb"}, optax.lamb(
                0.1, b1=0.8, weight_decay=0.1, mask=DECAYED)),
        ],
    )  # fmt: skip
    def test_each_is_the_one_of_optax_and_decays_weights_and_biases_alone(
        self, settings: dict[str, Any], optimizer: optax.GradientTransformation
    ) -> None:
        config = config_with(**{f"optimizer__{k}": v for k, v in settings.items()})
        found, expected = (
            after_steps(one, 5) for one in (build.optimizer(config), optimizer)
        )
        chex.assert_trees_all_equal(found, expected)

    def test_a_learning_rate_stands_for_the_schedule(self) -> None:
        optimizer = build.optimizer(config_with(optimizer__weight_decay=0.0), 1.0)
        updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
        np.testing.assert_array_equal(updates["dense"]["bias"], -np.ones(3))

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("step", [1.0, 1.0, 0.1, 0.1, 0.01]),
            ("cosine", [1.0, 0.8536, 0.5, 0.1464, 0.0]),
            ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ],
    )
    def test_schedules_with_and_without_a_warm_up(
        self, schedule: str, rates: list[float]
    ) -> None:
        config = config_with(
            optimizer__schedule=schedule,
            optimizer__learning_rate=1.0,
            optimizer__decay_every=2,
            train__steps=4,
        )
        steps = jnp.arange(5)
        np.testing.assert_allclose(build.schedule(config)(steps), rates, atol=1e-4)
        config.optimizer.warmup_steps = 4
        found = build.schedule(config)(steps)
        ramp = np.array([0.25, 0.5, 0.75, 1.0, 1.0])
        np.testing.assert_allclose(found, ramp * rates, atol=1e-4)


class TestImportPaths:
    def test_a_model_is_called_with_what_it_takes(self, mine: str) -> None:
        wide = config_with(model__name="mine:Net", model__dtype="bfloat16")
        assert build.model(wide, 7).dtype == jnp.bfloat16
        assert build.model(config_with(model__name="mine:net"), 7).num_classes == 7
        with pytest.raises(ValueError, match="unexpected keyword argument 'dtype'"):
            build.model(config_with(model__name="mine:net", model__dtype="bfloat16"), 7)

    def test_data_get_the_directory_they_take(self, mine: str) -> None:
        config = config_with(dataset__name="mine:small")
        assert build.dataset(config).name == "None"
        assert build.dataset(config, "/data").name == "/data"
        with pytest.raises(ValueError, match="keyword argument 'data_dir'"):
            build.dataset(config_with(dataset__name="mine:nothing"), "/data")

    def test_functions(self, mine: str) -> None:
        config = config_with(
            train__loss="mine:loss",
            prune__prunable="mine:is_wide",
            prune__select="mine:everything",
        )
        assert build.loss(config)(jnp.ones(3), jnp.zeros(3)) == 1.0
        prunable = masks.are_prunable(PARAMS, build.prunable(config))
        assert prunable == [False, True, False, False]
        mask = build.select(config)(PARAMS, 0.5, build.prunable(config))
        assert bool(mask["dense"]["kernel"].all())

    def test_an_optimizer_gets_the_settings_it_takes(self, mine: str) -> None:
        config = config_with(optimizer__name="mine:plain", optimizer__weight_decay=1.0)
        optimizer = build.optimizer(config, 1.0)
        updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
        chex.assert_trees_all_equal(updates, jax.tree.map(lambda x: -2 * x, PARAMS))
        optax_own = build.optimizer(config_with(optimizer__name="optax:rmsprop"), 1.0)
        assert isinstance(optax_own, optax.GradientTransformation)

    @pytest.mark.parametrize(
        ("field", "path", "message"),
        [
            ("model.name", "nonesuch:Net", "there is no module 'nonesuch' in /"),
            ("model.name", "mine:Nett", "'mine' has no 'Nett'; did you mean 'Net'"),
            ("model.name", "mine:not_a_net", "makes a int; it must make a flax"),
            ("model.name", "mine:of_two", r"does not take \(num_classes=\.\.\.\)"),
            ("model.name", "broken:Net", "failed: .*No module named 'nonesuch'"),
            ("prune.method", "math:pi", r"a float; it must be a function of \(loss_fn"),
            ("prune.method", "mine:without_key", "unexpected keyword argument 'key'"),
            ("train.loss", "mine:nothing", r"does not take \(logits, labels\)"),
            ("optimizer.name", "mine:net", r"does not take \(learning_rate"),
            ("dataset.name", "mine:nothing", "makes a NoneType; it must make a .*Data"),
        ],
    )
    def test_a_wrong_one_is_told_in_one_line(
        self, field: str, path: str, message: str, mine: str
    ) -> None:
        config = config_with(**{field.replace(".", "__"): path})
        pattern = rf"^config\.{field} is '{path}'[^\n]*({message})[^\n]*$"
        builders = {
            "model.name": lambda config: build.model(config, 10),
            "dataset.name": build.dataset,
            "prune.method": build.criterion,
            "train.loss": build.loss,
            "optimizer.name": build.optimizer,
        }
        with pytest.raises(ValueError, match=pattern):
            builders[field](config)
