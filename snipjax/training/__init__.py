"""Training: state, step, loop, placement, checkpoints and run directory."""

from snipjax.training.augment import flip_and_translate
from snipjax.training.losses import (
    Loss,
    batch_loss,
    batch_statistics,
    cross_entropy,
    inference_loss,
)
from snipjax.training.optimizers import sgd
from snipjax.training.state import Batch, Metrics, TrainState, init_state
from snipjax.training.step import (
    Augment,
    Prepare,
    Preprocess,
    Transform,
    epoch_length,
    evaluate,
    metric_sums,
    over_batches,
    preparation,
    train_step,
)

__all__ = [
    "Augment",
    "Batch",
    "Loss",
    "Metrics",
    "Prepare",
    "Preprocess",
    "TrainState",
    "Transform",
    "batch_loss",
    "batch_statistics",
    "cross_entropy",
    "epoch_length",
    "evaluate",
    "flip_and_translate",
    "inference_loss",
    "init_state",
    "metric_sums",
    "over_batches",
    "preparation",
    "sgd",
    "train_step",
]
