"""Every mistake in a configuration is an error that names the field."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from snipjax import config as configs

CONFIGS = Path(__file__).parents[1] / "configs"
MNIST_EPOCH, CIFAR_EPOCH = 54_000 // 100, 45_000 // 128

# The protocol of Lee et al., ICLR 2019, appendix A, and of their implementation.
PAPER = {
    "prune.method": "snip",
    "prune.num_batches": 1,
    "prune.rounds": 1,
    "prune.prunable": "weights_and_biases",
    "prune.select": "global",
    "prune.batch_norm": "inference",
    "prune.fresh_init": True,
    "train.learning_rate": 0.1,
    "train.decay_factor": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
}
MNIST = {
    "dataset.name": "mnist",
    "prune.batch_size": 100,
    "train.batch_size": 100,
    "train.steps": 250 * MNIST_EPOCH,
    "train.decay_every": 25_000,
    "train.flip": False,
    "train.translate": 0,
}
CIFAR = {
    "dataset.name": "cifar10",
    "prune.batch_size": 128,
    "train.batch_size": 128,
    "train.steps": 250 * CIFAR_EPOCH,
    "train.decay_every": 30_000,
    "train.flip": True,
    "train.translate": 4,
}
EXPECTED = {
    "digits_lenet300": {"dataset.name": "digits", "model.name": "lenet_300_100"},
    "mnist_lenet300": {
        **MNIST,
        "model.name": "lenet_300_100",
        "prune.sparsity": 0.95,
    },
    "mnist_lenet5": {**MNIST, "model.name": "lenet_5_caffe", "prune.sparsity": 0.98},
    "mnist_recurrent": {**MNIST, "model.name": "lstm_s", "prune.sparsity": 0.95},
    "cifar_vgg": {**CIFAR, "model.name": "vgg_d", "prune.sparsity": 0.95},
    "cifar_alexnet": {**CIFAR, "model.name": "alexnet_s", "prune.sparsity": 0.9},
    "cifar_wrn": {**CIFAR, "model.name": "wrn_16_8", "prune.sparsity": 0.95},
}
# Studies, which depart from the protocol in what they are studies of.
STUDIES = {
    "init_study": 7,
    "mnist_batch_sizes": 5,
    "mnist_classes": 30,
    "mnist_random_labels": 3,
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
        "train.decay_every": 30 * (round(0.9 * 1_281_167) // 1024),
        "train.learning_rate": 0.4,
    },
}

TABLES = {"table1"}  # whose fields are others: tests/test_table1.py


def load(name: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def with_field(name: str, value: Any) -> ConfigDict:
    config = configs.default().unlock()
    section, _, last = name.rpartition(".")
    with config.ignore_type():
        setattr(config[section] if section else config, last, value)
    return config


class TestConfigFiles:
    def test_there_are_no_others(self) -> None:
        files = {path.stem for path in CONFIGS.glob("*.py")}
        assert files == EXPECTED.keys() | STUDIES.keys() | LARGE.keys() | TABLES

    @pytest.mark.parametrize("name", LARGE)
    def test_large_ones_are_of_meshes_or_streams(self, name: str) -> None:
        config = load(name)
        configs.validate(config)
        assert configs.is_large(config)
        fields = dict(configs.fields(config))
        assert {field: fields[field] for field in LARGE[name]} == LARGE[name]

    @pytest.mark.parametrize("name", STUDIES)
    def test_studies_are_of_so_many_settings(self, name: str) -> None:
        assert len(configs.cells(load(name))) == STUDIES[name]

    @pytest.mark.parametrize("name", EXPECTED)
    def test_follow_the_paper(self, name: str) -> None:
        config = load(name)
        configs.validate(config)
        fields = dict(configs.fields(config))
        assert {field: fields[field] for field in PAPER} == PAPER
        assert {field: fields[field] for field in EXPECTED[name]} == EXPECTED[name]

    @pytest.mark.parametrize("name", [*EXPECTED, *STUDIES, *LARGE])
    def test_evaluate_at_whole_dispatches(self, name: str) -> None:
        train = load(name).train
        assert train.eval_every % train.steps_per_dispatch == 0
        assert train.checkpoint_every % train.eval_every == 0
        assert train.steps % train.eval_every == 0

    @pytest.mark.parametrize("name", [*EXPECTED, *STUDIES, *LARGE])
    def test_are_new_at_each_call_and_locked(self, name: str) -> None:
        config = load(name)
        config.seed = 5
        assert load(name).seed == 0
        with pytest.raises(AttributeError, match="stepz"):
            config.train.stepz = 3


class TestValidate:
    def test_the_default_is_valid(self) -> None:
        configs.validate(configs.default())

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("prune.sparsity", 1.0, r"prune\.sparsity is 1\.0, outside \[0, 1\)"),
            ("prune.sparsity", -0.1, r"prune\.sparsity is -0\.1, outside \[0, 1\)"),
            ("prune.sparsity", math.nan, r"prune\.sparsity is nan, outside \[0, 1\)"),
            ("prune.sparsity", "0.9", r"prune\.sparsity is '0\.9', of type str"),
            ("prune.method", "snp", r"prune\.method is 'snp'; did you mean 'snip'\?"),
            ("prune.prunable", "biases", r"weights_and_biases, kernels"),
            ("prune.select", "locally", r"global, layerwise"),
            ("prune.exclude", "head/*", r"exclude is 'head/\*', .*of type tuple"),
            ("prune.min_density", -0.1, r"min_density is -0\.1; it must be >= 0"),
            ("prune.min_density", 0.2, r"at most the density .* which is 0\.1"),
            ("prune.batch_norm", "train", r"inference, batch"),
            ("prune.rounds", 0, r"prune\.rounds is 0; it must be >= 1"),
            ("prune.fresh_init", 1, r"prune\.fresh_init is 1, of type int"),
            ("model.dtype", "float64", r"float32, bfloat16"),
            ("train.steps", -1, r"train\.steps is -1; it must be >= 0"),
            ("train.steps", 10.0, r"train\.steps is 10\.0, of type float"),
            ("train.steps", True, r"train\.steps is True, of type bool"),
            ("train.steps", 2**31, r"train\.steps is 2147483648; it must be <"),
            ("train.batch_size", 0, r"train\.batch_size is 0; it must be >= 1"),
            ("train.learning_rate", math.nan, r"train\.learning_rate is nan"),
            ("train.decay_every", 0, r"train\.decay_every is 0; it must be >= 1"),
            ("seed", -1, r"seed is -1; it must be >= 0"),
            ("seed", 2**32, r"seed is 4294967296; it must be < 4294967296"),
            ("seeds", 0, r"seeds is 0; it must be >= 1"),
            ("init.scored", "hee", r"init\.scored is 'hee'; did you mean 'he'\?"),
            ("vary", ("prune.sparsty=0.5",), r"no field .*'prune\.sparsity'"),
            ("vary", ("prune.sparsity",), r"an entry is <field>=<value>,<value>"),
            ("vary", ("prune.sparsity=a,b",), r"'prune\.sparsity' cannot be a"),
            ("vary", ("prune.sparsity=0.9,0.90",), "a value twice"),
            ("vary", ("seeds_at_once=1,",), "an entry is <field>=<value>,<value>"),
            (
                "vary",
                ("prune.sparsity=0.9,0.5", "prune.sparsity=0.8,0.7"),
                r"a field twice: prune\.sparsity",
            ),
            (
                "vary",
                ("prune.sparsity&train.steps=0.5,0.6",),
                r"'train\.steps' cannot be 0\.5",
            ),
            ("vary", ("seed=1,2",), r"seed cannot be varied; config\.seeds takes"),
            ("vary", ("prune.exclude=a,b",), r"prune\.exclude cannot be varied"),
            ("train.sparsity", 0.5, r"no field 'train\.sparsity'; .*'prune\.sparsity'"),
        ],
    )
    def test_names_the_field(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            configs.validate(with_field(name, value))

    def test_names_a_field_that_is_missing(self) -> None:
        config = configs.default().unlock()
        del config.train.momentum
        with pytest.raises(ValueError, match=r"config has no field 'train\.momentum'"):
            configs.validate(config)

    def test_a_minimum_density_is_for_a_global_selection(self) -> None:
        config = configs.default()
        config.prune.min_density = 0.01
        configs.validate(config)
        config.prune.select = "layerwise"
        with pytest.raises(
            ValueError, match=r"min_density is 0\.01, but .*'layerwise'"
        ):
            configs.validate(config)

    def test_an_integer_is_a_number(self) -> None:
        configs.validate(with_field("prune.sparsity", 0))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("stesp", "train.steps"),
        ("trian", "train"),
        ("sparsity", "prune.sparsity"),
        ("train.sparsity", "prune.sparsity"),
        ("prune.batchsize", "prune.batch_size"),
        ("train.batchsize", "train.batch_size"),
        ("dataset.nmae", "dataset.name"),
        ("model.nmae", "model.name"),
        ("optimizer.learning_rate", "train.learning_rate"),
        ("sede", "seed"),
    ],
)
def test_unknown_field_gives_the_nearest(name: str, nearest: str) -> None:
    assert configs.unknown_field(name) == (
        f"config has no field '{name}'; did you mean '{nearest}'?"
    )


def test_differences_are_those_of_the_fields() -> None:
    here = {"seed": 1, "train": {"steps": 10, "flip": True}}
    there = {"seed": 2, "train": {"steps": 10}}
    assert configs.differences(here, there) == [
        "seed: 1 here, 2 there",
        "train.flip: True here, absent there",
    ]
    assert configs.differences(here, here) == []


class TestCells:
    def test_every_combination_in_order(self) -> None:
        config = configs.default()
        config.vary = ("prune.sparsity=0.9,0.5", "init.scored&init.trained=he,xavier")
        found = [
            (cell.prune.sparsity, cell.init.scored, cell.init.trained)
            for cell in configs.cells(config).values()
        ]
        assert found == [
            (0.9, "he", "he"),
            (0.9, "xavier", "xavier"),
            (0.5, "he", "he"),
            (0.5, "xavier", "xavier"),
        ]

    def test_nothing_varied_is_one_run(self) -> None:
        config = configs.default()
        assert configs.cells(config) == {"": config}

    def test_each_is_checked(self) -> None:
        config = configs.default()
        config.vary = ("prune.sparsity=0.9,1.5",)
        with pytest.raises(ValueError, match=r"sparsity is 1\.5, outside \[0, 1\)"):
            configs.cells(config)

    def test_values_have_the_type_of_the_field(self) -> None:
        assert configs.varied("prune.fresh_init=true,False")[1] == (True, False)
        assert configs.varied("train.steps=1,20")[1] == (1, 20)

    def test_samples_that_contradict_are_refused(self) -> None:
        config = configs.default()
        config.prune.fresh_init = False
        config.init.trained = "he"
        with pytest.raises(ValueError, match="make them equal"):
            configs.validate(config)
