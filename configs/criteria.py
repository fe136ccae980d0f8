"""The criteria at six densities, with random masks to beat.

LeNet-300-100 on MNIST; ``--config.model.name=lenet_5_caffe`` makes the study of a
convolutional network. The networks that are scored are trained, as in the papers of
these criteria.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out
_CRITERIA = (
    *("snip", "grasp", "grasp_magnitude", "synflow", "synflow_l2", "force", "prospr"),
    *("prospr_first_order", "ntk_sap", "fisher", "taylor", "taylor_fisher"),
    *("hessian_diagonal", "magnitude"),
)
# ProsPr takes a batch for each of three steps, and one for the loss after them.
_NUM_BATCHES = {"prospr": 4, "prospr_first_order": 4}
_FIELDS = "prune.method&prune.select&prune.num_batches"


def arm(method: str, select: str = "global") -> str:
    """Returns the values of a method and its selection, in the order of the fields."""
    return f"{method}&{select}&{_NUM_BATCHES.get(method, 1)}"


_ARMS = (
    *(arm(name) for name in _CRITERIA),
    *(arm("random", select) for select in ("global", "uniform", "erk")),
)


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.seeds = 5
    config.vary = (
        f"{_FIELDS}={','.join(_ARMS)}",
        "prune.sparsity=0.9,0.95,0.98,0.99,0.995,0.999",
    )
    config.prune.prunable = "kernels"
    config.prune.fresh_init = False
    config.prune.effective = True
    config.train.steps = 20 * _STEPS_PER_EPOCH
    config.optimizer.decay_every = 10 * _STEPS_PER_EPOCH
    config.train.eval_every = 2 * _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
