"""Image-classification data through one door, in memory or as a stream of batches.

::

    from snipjax import data

    mnist = data.load("mnist")
    mean, std = data.mean_and_std(mnist.train)
    batch = data.standardize(mnist.train.images[:100], mean, std)

Images that do not fit in memory, or differ in size, come as a stream::

    photos = data.load("folder:/data/photos", stream=True)
    views = data.VIEWS["imagenet"]
    batches = data.batches(
        photos.train, batch_size=256, seed=0, image_size=224, view=views.train
    )
    with data.to_device(batches) as batches:
        for images, labels in batches:
            ...

A stream is a function of its seed and of the global step alone: batch ``i`` has the
same examples, seen the same way, on any number of processes and workers. To resume a
run, store its step and pass it as ``start_step``.
"""

from snipjax.data.batching import (
    Examples,
    WeightedExamples,
    batches,
    evaluation_batches,
)
from snipjax.data.dataset import Dataset, facts, load, with_random_labels
from snipjax.data.device import OnDevice, to_device
from snipjax.data.preprocessing import mean_and_std, standardize
from snipjax.data.sources import Arrays, DatasetError, Source, hold_out
from snipjax.data.views import VIEWS, Crop, View, Views

__all__ = [
    "VIEWS",
    "Arrays",
    "Crop",
    "Dataset",
    "DatasetError",
    "Examples",
    "OnDevice",
    "Source",
    "View",
    "Views",
    "WeightedExamples",
    "batches",
    "evaluation_batches",
    "facts",
    "hold_out",
    "load",
    "mean_and_std",
    "standardize",
    "to_device",
    "with_random_labels",
]
