"""Image-classification data that does not fit in memory, as a stream of batches.

    from snipjax.data import streams

    sources = streams.open("folder:/data/photos")
    views = streams.VIEWS["imagenet"]
    batches = streams.batches(
        sources.train, batch_size=256, seed=0, image_size=224, view=views.train
    )
    with streams.to_device(batches) as batches:
        for images, labels in batches:
            ...

A stream is a function of its seed and of the global step alone: batch ``i`` has the
same examples, seen the same way, on any number of processes and workers. To resume a
run, store its step and pass it as ``start_step``.
"""

from snipjax.data.streams.batching import (
    Counted,
    batches,
    evaluation_batches,
    mean_and_std,
    num_evaluation_batches,
)
from snipjax.data.streams.device import to_device
from snipjax.data.streams.sources import (
    Source,
    Sources,
    digest_of,
    facts,
    in_memory,
    open,
)
from snipjax.data.streams.views import (
    VIEWS,
    Crop,
    View,
    Views,
    center_crop,
    random_resized_crop,
    translated,
    translated_and_flipped,
    whole,
)

__all__ = [
    "VIEWS",
    "Counted",
    "Crop",
    "Source",
    "Sources",
    "View",
    "Views",
    "batches",
    "center_crop",
    "digest_of",
    "evaluation_batches",
    "facts",
    "in_memory",
    "mean_and_std",
    "num_evaluation_batches",
    "open",
    "random_resized_crop",
    "to_device",
    "translated",
    "translated_and_flipped",
    "whole",
]
