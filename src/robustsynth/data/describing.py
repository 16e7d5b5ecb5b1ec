"""What a data set is, without decoding it: for a run that is only to be forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from robustsynth.data.cache import decoded_folder, plan
from robustsynth.data.loading import ImageData
from robustsynth.data.sources import find_source
from robustsynth.data.specs import statistics
from robustsynth.data.streaming import Undecoded, open_stream


def describe_data(
    path_or_name: str | Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    announce: Callable[[str], object] = print,
) -> tuple[ImageData, bool]:
    """The data set as `load_data` would give it, of which only the shape, the classes and the names can be used.

    Labels go round. Nothing is written, and of the Hub only footers and labels are read.

    Args:
        path_or_name: as for `load_data`.
        split: likewise.
        image_size: likewise.
        announce: likewise.

    Returns:
        The data set, and whether it is decoded in the cache already.

    Raises:
        UserError: as `load_data` does, but for pictures that are damaged.
    """
    source = find_source(path_or_name, split, announce=announce)
    there = decoded_folder(source, image_size=image_size, channels=None).exists()
    if source.identity[0] == "hub" and not there:
        return open_stream(path_or_name, split, image_size=image_size, announce=announce).data(), False
    contents = source.open()
    spec, side, channels = plan(contents, source.spec, image_size, None)
    mean, std = statistics(spec, channels)
    images = Undecoded((contents.count, side, side, channels))
    labels = np.arange(contents.count) % len(contents.classes)
    name = spec.name if spec and not contents.part_of else source.label.rsplit("/")[-1]
    licence = spec.licence if spec else "not stated"
    data = ImageData(
        images,  # pyright: ignore[reportArgumentType]
        labels,
        tuple(contents.classes),
        name,
        licence,
        source.label,
        mean,
        std,
    )
    return data, there
