"""The fields of a configuration: types, defaults, choices, bounds and help, once."""

from collections.abc import Collection
from typing import Any, NamedTuple

from snipjax import build

SEEDS = 2**32  # beyond, JAX takes the remainder
LARGEST = 1e18  # of a float: the product of any two is finite in float32


class Field(NamedTuple):
    """A field of a configuration; its default gives its type.

    A number is at least ``least``, which is 0 where nothing is said, and less than
    ``below``, by default 2**31 for an integer and 10**18 for a float.
    """

    name: str  # dotted, e.g. "prune.sparsity"
    default: Any
    help: str
    choices: Collection[str] = ()
    least: float = 0
    below: float | None = None
    own: bool = False  # whether an import path may stand for a choice


def section(name: str, *fields: Field) -> list[Field]:
    """Returns fields with the name of their section in front, as ``train.steps``."""
    return [field._replace(name=f"{name}.{field.name}") for field in fields]


def _per_step(name: str, default: float, what: str) -> Field:
    return Field(name, default, f"{what}, per step of dense training", below=1001.0)


_ROUNDS = Field("rounds", 4, "rounds of pruning and retraining", least=1, below=1001)
_RETRAINING = _per_step("retraining", 0.25, "steps of a round")
_DECAYS = Field("decays", 2, "decays of the learning rate in a round", below=1001)
_BATCHES = Field(
    "num_batches", 500, "batches that the curvature is taken over", least=1
)
_RATE = Field("learning_rate", 0.1, "learning rate, per unit of dense training's")
_PROSPECT = (
    Field("steps", 3, "steps of training before the loss that is scored", least=1),
    Field("learning_rate", 0.5, "learning rate of these steps"),
    Field("momentum", 0.9, "momentum of these steps", below=1.0),
)

FIELDS: tuple[Field, ...] = (
    Field("seed", 0, "seed of the first network", below=SEEDS),
    Field("seeds", 1, "networks, of seeds from `seed` on", least=1, below=10_001),
    Field("seeds_at_once", 0, "networks side by side; 0: what fits", below=10_001),
    Field("signal_seeds", 0, "samples to measure an initializer with", below=10_001),
    Field("mesh", "", "devices of one network, e.g. data=4,model=2"),
    Field("vary", (), "a run for each value, e.g. ('prune.sparsity=0.9,0.95',)"),
    Field("wandb", "", "project of Weights & Biases to send scalars to"),
    *section(
        "dataset",
        Field("name", "digits", "digits, TFDS's name, folder:..., or an import path"),
        Field("random_labels", False, "random labels of the training examples"),
        Field("stream", False, "read batch by batch, for data beyond the memory"),
        Field("image_size", 0, "pixels of streamed images; 0: as stored", below=16_385),
        Field("view", "none", "augmentation of streamed images", choices=build.VIEWS),
        Field("workers", 0, "processes that read streamed images", below=1025),
    ),
    *section(
        "init",
        Field(
            "scored", "fan_in", "initializer of the sample scored", build.INITIALIZERS
        ),
        Field(
            "trained", "fan_in", "initializer of the fresh sample", build.INITIALIZERS
        ),
    ),
    *section(
        "model",
        Field("name", "lenet_300_100", "a name in snipjax.models, or an import path"),
        Field("dtype", "float32", "dtype of the computation", ("float32", "bfloat16")),
    ),
    *section(
        "prune",
        Field("method", "snip", "criterion or method", build.METHODS, own=True),
        Field("sparsity", 0.9, "the share of connections to prune", below=1.0),
        Field("batch_size", 100, "examples in a batch that is scored", least=1),
        Field("batch_class", -1, "class of the scored examples; -1: all", least=-1),
        Field("per_class", 0, "scored examples of each class; 0: batch_size of any"),
        Field("num_batches", 1, "batches that scores are taken over", least=1),
        Field("rounds", 0, "rounds of scoring; 0: the method's own", below=10_001),
        Field(
            "prunable", "weights_and_biases", "what to prune", build.PRUNABLE, own=True
        ),
        Field("exclude", (), "patterns of leaves that stay dense, e.g. ('head/*',)"),
        Field(
            "select",
            "global",
            "selection by scores",
            (*build.SELECTIONS, *build.ALLOCATIONS, *build.UNITS),
            own=True,
        ),
        Field("keep_flops", 0.5, "share of the operations that units may have"),
        Field("min_density", 0.0, "least density of a leaf, in a global selection"),
        Field("batch_norm", "inference", "mode while scoring", ("inference", "batch")),
        Field("temperature", 0.0, "divisor of scored logits; 0: the method's own"),
        Field("invert", False, "keep the connections of the lowest scores"),
        Field("shuffle", False, "shuffle the mask within each leaf"),
        Field("effective", False, "count the connections on a path to an output"),
        Field("fresh_init", True, "train a fresh sample, not the one scored"),
        Field("pretrained", "", "run directory of the dense network to start from"),
    ),
    *section(
        "optimizer",
        Field("name", "sgd", "optimizer", build.OPTIMIZERS, own=True),
        Field("learning_rate", 0.1, "learning rate before any decay"),
        Field("schedule", "step", "decay of the learning rate", build.SCHEDULES),
        Field("warmup_steps", 0, "steps of a linear warm-up"),
        Field("decay_factor", 0.1, "factor of a step decay", least=1e-9),
        Field("decay_every", 25_000, "steps between two step decays", least=1),
        Field("momentum", 0.9, "momentum of sgd, b1 of the others", below=1.0),
        Field("weight_decay", 5e-4, "weight decay of weights and biases"),
    ),
    *section(
        "optimizer.sparse",
        Field("name", "static", "how the mask moves", build.SPARSE, own=True),
        Field("every", 100, "steps from one move to the next", least=1),
        Field("stop", 0.75, "share of the steps after which the mask stays"),
        Field(
            "fraction",
            0.0,
            "share of connections that a first move drops; 0 for the optimizer's own",
            below=1.0,
        ),
        Field("layerwise", True, "whether each layer keeps its number of connections"),
        Field("start", 0.0, "share of the steps before gradual_magnitude prunes"),
        Field(
            "sparsity",
            0.9,
            "sparsity that gradual_magnitude and straight_through come to",
            below=1.0,
        ),
    ),
    *section(
        "train",
        Field("steps", 1000, "steps of training"),
        Field("batch_size", 100, "examples in a mini-batch", least=1),
        Field("loss", "cross_entropy", "loss of logits", build.LOSSES, own=True),
        Field("remat", False, "compute blocks again backward, for less memory"),
        Field("flip", False, "flip images left to right with probability one half"),
        Field("translate", 0, "largest random shift in pixels", below=16_385),
        Field("eval_every", 100, "steps between two evaluations", least=1),
        Field("checkpoint_every", 1000, "steps between two checkpoints", least=1),
        Field("steps_per_dispatch", 100, "steps of one program, at most", least=1),
    ),
    *section("lwc", _ROUNDS, _RETRAINING, _RATE, _DECAYS),
    *section(
        "dns",
        _per_step("surgery", 0.75, "steps of surgery"),
        _per_step("recovery", 0.5, "steps with the last mask"),
        Field("gamma", 10.0, "how fast updates of the mask become rare"),
        Field("power", 1.0, "exponent of the probability of an update"),
        Field("lower", 0.9, "factor of the threshold of pruning"),
        Field("upper", 1.1, "factor of the threshold of splicing"),
        _RATE._replace(default=0.3),
        _DECAYS._replace(default=1),
    ),
    *section(
        "lc",
        Field("iterations", 40, "alternations of the two steps", least=1, below=10_001),
        _per_step("learning", 0.03, "steps of one learning"),
        Field("pull", 0.16, "distance that the first learning is drawn"),
        Field("growth", 1.1, "growth of the penalty in an iteration"),
        _RATE._replace(default=0.5),
        _DECAYS._replace(default=1),
    ),
    *section(
        "sws",
        _per_step("share", 0.5, "steps of retraining"),
        Field("num_components", 17, "components, one at zero", least=3, below=1001),
        Field("zero_proportion", 0.99, "proportion of the zero component", below=1.0),
        Field("strength", 0.1, "factor of the log prior"),
        Field("initial_std", 0.05, "standard deviation of every component at first"),
        Field("zero_shape", 5000.0, "shape of the prior on the zero precision"),
        Field("zero_rate", 2.0, "rate of the prior on the zero precision"),
        Field("shape", 250.0, "shape of the prior on the other precisions"),
        Field("rate", 0.1, "rate of the prior on the other precisions"),
        Field("learning_rate", 5e-4, "learning rate of the weights"),
        Field("means_learning_rate", 1e-4, "learning rate of the means"),
        Field("mixture_learning_rate", 3e-3, "learning rate of the other parameters"),
    ),
    *section(
        "sparse_vd",
        _per_step("share", 0.5, "steps of the posterior"),
        Field("warm_up", 0.3, "share of these with a growing KL term"),
        Field("learning_rate", 2e-3, "learning rate of Adam at first"),
        Field("initial_log_variance", -10.0, "log variance at first", least=-LARGEST),
        Field("threshold", 3.0, "log alpha of pruned weights", least=-LARGEST),
    ),
    *section("obd", _ROUNDS, _RETRAINING, _RATE, _DECAYS, _BATCHES),
    *section(
        "lobs",
        _ROUNDS,
        _RETRAINING,
        _RATE._replace(default=1.0),
        _DECAYS,
        Field("block", 0.3, "share of the connections left to remove at a time"),
        Field(
            "damping", 1e-3, "addition to a Hessian's diagonal, per unit of its mean"
        ),
        _BATCHES._replace(default=50),
    ),
    *section(
        "hessian_diagonal",
        Field("num_samples", 16, "products with the Hessian", least=1, below=1_000_001),
    ),
    *section(
        "hessian_inverse",
        Field("damping", 1e-4, "addition to the Hessian's diagonal", least=1e-12),
        Field("per_leaf", False, "one Hessian for each leaf"),
        Field("max_size", 2048, "parameters that a Hessian may have", least=1),
    ),
    *section("prospr", *_PROSPECT),
    *section("prospr_first_order", *_PROSPECT),
    *section(
        "ntk_sap",
        Field(
            *("num_samples", 5, "samples of weights, inputs and changes"),
            least=1,
            below=1_000_001,
        ),
        Field("epsilon", 1e-2, "deviation of a change of the weights", least=1e-9),
    ),
)
