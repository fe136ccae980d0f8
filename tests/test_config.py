"""Every mistake in a configuration is an error that names the field."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax.schema import FIELDS, LARGEST

CONFIGS = Path(__file__).parents[1] / "configs"
MNIST_EPOCH, CIFAR_EPOCH = 54_000 // 100, 45_000 // 128

# The protocol of Lee et al., ICLR 2019, appendix A, and of their implementation.
PAPER = {
    "prune.method": "snip",
    "prune.num_batches": 1,
    "prune.rounds": 0,
    "prune.prunable": "weights_and_biases",
    "prune.select": "global",
    "prune.batch_norm": "inference",
    "prune.fresh_init": True,
    "optimizer.name": "sgd",
    "optimizer.schedule": "step",
    "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 0.1,
    "optimizer.decay_factor": 0.1,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5e-4,
    "train.loss": "cross_entropy",
}
MNIST = {
    "dataset.name": "mnist",
    "prune.batch_size": 100,
    "train.batch_size": 100,
    "train.steps": 250 * MNIST_EPOCH,
    "optimizer.decay_every": 25_000,
    "train.flip": False,
    "train.translate": 0,
}
CIFAR = {
    "dataset.name": "cifar10",
    "prune.batch_size": 128,
    "train.batch_size": 128,
    "train.steps": 250 * CIFAR_EPOCH,
    "optimizer.decay_every": 30_000,
    "train.flip": True,
    "train.translate": 4,
}
EXPECTED = {
    "digits_lenet300": {"dataset.name": "digits", "model.name": "lenet_300_100"},
    "mnist_lenet300": {**MNIST, "model.name": "lenet_300_100", "prune.sparsity": 0.95},
    "mnist_lenet5": {**MNIST, "model.name": "lenet_5_caffe", "prune.sparsity": 0.98},
    "mnist_recurrent": {**MNIST, "model.name": "lstm_s", "prune.sparsity": 0.95},
    "cifar_vgg": {**CIFAR, "model.name": "vgg_d", "prune.sparsity": 0.95},
    "cifar_alexnet": {**CIFAR, "model.name": "alexnet_s", "prune.sparsity": 0.9},
    "cifar_wrn": {**CIFAR, "model.name": "wrn_16_8", "prune.sparsity": 0.95},
    "mnist_rigl": {
        **MNIST,
        "prune.sparsity": 0.98,
        "optimizer.sparse.name": "rigl",
        "optimizer.sparse.every": 100,
        "optimizer.sparse.stop": 0.75,
        "optimizer.sparse.fraction": 0.0,
    },
    # The settings of RigL's paper, appendix.
    "cifar_rigl": {
        **CIFAR,
        "model.name": "wrn_22_2",
        "prune.method": "random",
        "prune.prunable": "kernels",
        "prune.select": "erk",
        "prune.sparsity": 0.8,
        "optimizer.decay_factor": 0.2,
        "optimizer.sparse.name": "rigl",
    },
}
# Studies, which depart from the protocol in their subject, and their combinations.
STUDIES = {
    "criteria": 102,
    "criteria_sanity": 12,
    "init_study": 7,
    "mnist_batch_sizes": 5,
    "mnist_classes": 30,
    "mnist_random_labels": 3,
    "mnist_units": 10,
}
# On meshes and from streams, in schedules of their own.
LARGE = {
    "digits_mesh": {"mesh": "data=4,model=2", "dataset.name": "digits"},
    "imagenet_resnet50": {
        "dataset.stream": True,
        "dataset.view": "imagenet",
        "dataset.image_size": 224,
        "model.name": "resnet_50",
        "train.steps": 90 * (round(0.9 * 1_281_167) // 1024),
        "optimizer.decay_every": 30 * (round(0.9 * 1_281_167) // 1024),
        "optimizer.learning_rate": 0.4,
    },
}
TABLES = {"table1"}  # whose fields are others: tests/studies


def load(name: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def config_with(values: dict[str, Any]) -> ConfigDict:
    """The default configuration with other values, of any type and name."""
    config = configs.default().unlock()
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        with config.ignore_type():
            setattr(config[section] if section else config, last, value)
    return config


class TestConfigFiles:
    def test_there_are_no_others(self) -> None:
        files = {path.stem for path in CONFIGS.glob("*.py")}
        assert files == EXPECTED.keys() | STUDIES.keys() | LARGE.keys() | TABLES

    @pytest.mark.parametrize("name", [*EXPECTED, *LARGE])
    def test_follow_the_paper_or_their_own_schedule(self, name: str) -> None:
        config = load(name)
        configs.validate(config)
        expected = LARGE[name] if name in LARGE else {**PAPER, **EXPECTED[name]}
        fields = dict(configs.fields(config))
        assert {field: fields[field] for field in expected} == expected
        assert configs.is_large(config) == (name in LARGE)

    @pytest.mark.parametrize("name", STUDIES)
    def test_studies_are_of_so_many_settings(self, name: str) -> None:
        assert len(configs.cells(load(name))) == STUDIES[name]

    @pytest.mark.parametrize("name", [*EXPECTED, *STUDIES, *LARGE])
    def test_evaluate_at_whole_dispatches(self, name: str) -> None:
        train = load(name).train
        assert train.eval_every % train.steps_per_dispatch == 0
        assert train.checkpoint_every % train.eval_every == 0
        assert train.steps % train.eval_every == 0


class TestSchema:
    def test_each_field_is_there_once_with_a_help(self) -> None:
        names = [field.name for field in FIELDS]
        assert len({*names}) == len(names)
        assert {*names} == {name for name, _ in configs.fields(configs.default())}
        assert all(field.help for field in FIELDS)

    def test_a_field_takes_its_default_and_nothing_beyond_its_bounds(self) -> None:
        configs.check(configs.default(), FIELDS)
        for field in FIELDS:
            wrong: list[Any] = []
            if field.choices:
                wrong = ["", "nonesuch"]
            elif isinstance(field.default, bool):
                wrong = [1, "True"]
            elif isinstance(field.default, int):
                wrong = [field.least - 1, 2**32, 2**63, 1.0, True, "1"]
            elif isinstance(field.default, float):
                wrong = [math.nan, field.below or LARGEST, -1e308, "1.0"]
            for value in wrong:
                with pytest.raises(ValueError, match=rf"config\.{field.name} is "):
                    configs.check(config_with({field.name: value}), FIELDS)

    def test_import_paths_stand_for_names_of_functions_alone(self) -> None:
        path = "mine.parts:thing"
        own = ("prune.method", "prune.prunable", "prune.select", "optimizer.name",
               "train.loss", "model.name", "dataset.name")  # fmt: skip
        configs.validate(config_with(dict.fromkeys(own, path)))
        with pytest.raises(ValueError, match="schedule is 'mine"):
            configs.validate(config_with({"optimizer.schedule": path}))

    def test_loading_and_checking_imports_no_jax(self) -> None:
        code = (
            "import sys; from snipjax import cli, config; "
            "config.validate(config.default()); sys.exit('jax' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestValidate:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("prune.sparsity", -0.1, r"is -0\.1; it must be >= 0"),
            ("prune.method", "obdd", r"did you mean 'obd'\?.*or an import path like"),
            ("prune.exclude", "head/*", r"exclude is 'head/\*', .*of type tuple"),
            ("prune.min_density", 0.2, r"at most the density .* which is 0\.1"),
            ("prune.pretrained", "runs/dense", r"method 'snip' starts from no trained"),
            ("train.steps", 2**31, r"is 2147483648; it must be <= 2147483647"),
            ("lwc.retraining", 1e12, "it must be < 1001: steps of a round, per step"),
            ("prune.keep_flops", 0.3, "select=global does not take; leave it at 0.5"),
            ("mesh", "data", r"mesh is 'data'; it must be axes and their sizes"),
            ("mesh", "data=0", "it must be axes and their sizes"),
            ("mesh", "data=99999999999", "it must be axes and their sizes"),
            ("mesh", "rows=2", "has an axis 'rows'; the axes are data and model"),
            ("mesh", "data=2,data=2", "has an axis twice"),
            ("train.remat", True, "which is for runs with config.mesh or"),
            ("vary", ("prune.sparsty=0.5",), r"no field .*'prune\.sparsity'"),
            ("vary", ("seeds_at_once=1,",), "an entry is <field>=<value>,<value>"),
            ("vary", ("prune.sparsity=a,b",), r"'prune\.sparsity' cannot be a"),
            ("vary", ("prune.sparsity=0.9,0.90",), "a value twice"),
            ("vary", ("seed=1,2",), r"seed cannot be varied; config\.seeds takes"),
            ("vary", ("prune.exclude=a,b",), r"prune\.exclude cannot be varied"),
            ("vary", ("lwc.rounds=2,3", "lwc.rounds=4,5"), r"a field twice: lwc\.rou"),
            ("train.sparsity", 0.5, r"no field 'train\.sparsity'; .*'prune\.sparsity'"),
        ],
    )
    def test_names_the_field(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            configs.validate(config_with({name: value}))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"prune.min_density": 0.01, "prune.select": "layerwise"},
                r"min_density is 0\.01, but .*'layerwise'",
            ),
            ({"prune.fresh_init": False, "init.trained": "he"}, "make them equal"),
            ({"seed": 2**32 - 1, "seeds": 2}, "seeds is 4294967297; it must be <="),
            ({"mesh": "data=2", "prune.method": "lwc"}, "trains on data in memory"),
            (
                {"prune.method": "dns", "dns.recovery": 900.0, "train.steps": 2**30},
                r"recovery is 900, which makes 2\*\*31 steps or more",
            ),
            ({"prune.method": "lwc", "wandb": "p"}, "wandb is for .*leave it at ''"),
            ({"mesh": "data=2", "seeds": 2}, "are for one network at a time"),
            (
                {"dataset.stream": True, "vary": ("prune.rounds=1,2",)},
                "are for one network at a time",
            ),
            (
                {"dataset.stream": True, "prune.batch_class": 1},
                r"batch_class is 1, which is not for runs with",
            ),
        ],
    )
    def test_fields_that_contradict_each_other(
        self, values: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            configs.validate(config_with(values))

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"prune.sparsity": 0},  # an integer is a number
            {"prune.min_density": 0.01},
            {"prune.method": "none", "prune.min_density": 0.5},
            {"prune.method": "lwc", "prune.pretrained": "runs/dense"},
            {"mesh": "model=2", "train.remat": True},
            {"sparse_vd.initial_log_variance": -20.0},
        ],
    )
    def test_passes(self, values: dict[str, Any]) -> None:
        configs.validate(config_with(values))

    def test_names_a_field_that_is_missing(self) -> None:
        config = configs.default().unlock()
        del config.optimizer.momentum
        message = r"config has no field 'optimizer\.momentum'"
        with pytest.raises(ValueError, match=message):
            configs.validate(config)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("stesp", "train.steps"),
        ("trian", "train"),
        ("train.sparsity", "prune.sparsity"),
        ("prune.batchsize", "prune.batch_size"),
        ("dataset.nmae", "dataset.name"),
        ("models.name", "model.name"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("obd.damping", "lobs.damping"),
    ],
)
def test_unknown_field_gives_the_nearest(name: str, nearest: str) -> None:
    assert configs.unknown_field(name) == (
        f"config has no field '{name}'; did you mean '{nearest}'?"
    )


def test_differences_are_those_of_the_fields() -> None:
    here = {"seed": 1, "train": {"steps": 10, "flip": True}, "vary": ("a",)}
    there = {"seed": 2, "train": {"steps": 10}, "vary": ["a"]}
    assert configs.differences(here, there) == [
        "seed: 1 here, 2 there",
        "train.flip: True here, absent there",
    ]


class TestCells:
    def test_every_combination_in_order(self) -> None:
        entries = ("prune.sparsity=0.9,0.5", "init.scored&init.trained=he,xavier")
        found = {
            name: (cell.prune.sparsity, cell.init.scored, cell.init.trained, cell.vary)
            for name, cell in configs.cells(config_with({"vary": entries})).items()
        }
        assert found == {
            f"prune.sparsity={sparsity} init.scored&init.trained={initializer}": (
                sparsity, initializer, initializer, ())
            for sparsity in (0.9, 0.5)
            for initializer in ("he", "xavier")
        }  # fmt: skip
        assert list(found)[1] == "prune.sparsity=0.9 init.scored&init.trained=xavier"

    def test_fields_together_may_have_a_value_each(self) -> None:
        entry = "prune.method&prune.rounds&prune.fresh_init=random&1&True,snip&3&False"
        cells = configs.cells(config_with({"vary": (entry,)}))
        found = [
            (c.prune.method, c.prune.rounds, c.prune.fresh_init) for c in cells.values()
        ]
        assert found == [("random", 1, True), ("snip", 3, False)]
        with pytest.raises(ValueError, match="one value for all, or one for each"):
            configs.cells(config_with({"vary": (entry + ",snip&3",)}))

    @pytest.mark.parametrize(
        ("entry", "values"),
        [
            ("prune.fresh_init=true,False", (True, False)),
            ("train.steps=1, 20", (1, 20)),
            ("prune.sparsity=0,0.5", (0.0, 0.5)),
            ("model.name=lenet_5_caffe,mine:Net", ("lenet_5_caffe", "mine:Net")),
        ],
    )
    def test_values_have_the_type_of_the_field(
        self, entry: str, values: tuple[Any, ...]
    ) -> None:
        vary = config_with({"vary": (entry,)})
        name = entry.split("=")[0]
        found = [
            dict(configs.fields(cell))[name] for cell in configs.cells(vary).values()
        ]
        assert [(type(v), v) for v in found] == [(type(v), v) for v in values]
