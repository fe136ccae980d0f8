"""The networks and precisions that are measured on an accelerator."""

from typing import NamedTuple


class Case(NamedTuple):
    """A network with the shape of an example and the size of its mini-batches."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    batch_size: int


CASES = (
    Case("vgg_d", (32, 32, 3), 10, 128),
    Case("wrn_16_8", (32, 32, 3), 10, 128),
    Case("resnet_50", (224, 224, 3), 1000, 128),
    Case("vit_b_16", (224, 224, 3), 1000, 128),
    # Attention's logits of a batch of 8 in float32 would not fit in 80 GB.
    Case("gpt2_medium", (1024,), 50257, 4),
)
SMALL = (Case("lenet_300_100", (28, 28, 1), 10, 4),)
TRANSFORMERS = ("vit_b_16", "gpt2_medium")


class Precision(NamedTuple):
    """The dtype of a computation and the precision of its products, by both names."""

    name: str
    dtype: str
    products: str
    torch_products: str


PRECISIONS = (
    Precision("bfloat16", "bfloat16", "default", "high"),
    Precision("tf32", "float32", "tensorfloat32", "high"),
    Precision("float32", "float32", "highest", "highest"),
)
