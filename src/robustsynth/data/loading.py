"""`load_data`: pictures from a folder, a file or a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustsynth.data.cache import decoded
from robustsynth.data.sources import find_source
from robustsynth.data.specs import DATASETS, statistics
from robustsynth.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled pictures.

    Args:
        images: uint8, shape (N,H,W,C), a memory map that cannot be written to: copy a batch before handing it
            to `torch.from_numpy`.
        labels: int64, shape (N,).
        classes: names in label order.
        name: the known data set's name, otherwise that of the folder, file or Hub data set.
        licence: of the known data set, otherwise "not stated".
        source: where it came from: the name of the folder or file, or the Hub id; never an absolute path.
        mean, std: per channel, in units of [0, 1].
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    licence: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_data(
    path_or_name: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    announce: Callable[[str], object] = print,
) -> ImageData:
    """Load labelled pictures, decoding them on the first call and memory-mapping the result ever after.

    `path_or_name` is, in this order: a parquet file or a folder of them as `datasets` writes them; a folder
    of class folders, with or without ``train`` and ``test`` folders above; two domains as ``ROOT/trainA``,
    ``trainB``, ``testA`` and ``testB``; several folders with commas between them, one for each class; a name
    in `DATASETS`; an ``owner/name`` of the Hugging Face Hub. Class folders are labelled in the order of their
    sorted names, folders of a list in its order. Domains A and B of a folder that is called as ``horse2zebra``
    is are ``horse`` and ``zebra``. ``restricted-imagenet:`` in front of a folder of the whole ImageNet takes the
    nine kinds of animals of `robustsynth.data.restricted.RANGES` out of it; ``only:horse,deer:`` in front of any of
    these takes the pictures of these classes, labelled in this order.

    Args:
        path_or_name: a folder, a file, or a name; or a list of folders.
        split: ``"train"``, ``"test"`` (or ``"validation"``; each stands in for the other where it is
            missing), another name that the files use, or ``"all"``. A folder without split folders, also one
            of a list, is all ``"train"``.
        image_size: the side to store. By default the known data set's; else the pictures' own, if they are
            squares of one size; else the largest of 224, 128, 64 and 32 that the median picture fills.
        channels: 1 or 3. By default the known data set's; else 1 if all pictures are grey.
        announce: called with one line before anything is downloaded, or many pictures are decoded.

    Raises:
        UnknownNameError: there is no such folder, file or known name.
        UserError: a picture is missing or damaged, a class is empty, a split is absent, the layout is not
            understood, there are fewer than two classes, or the Hub cannot be reached.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as home:
        ...     for name in ("cat", "dog"):
        ...         folder = Path(home, "pets", name)
        ...         folder.mkdir(parents=True)
        ...         Image.new("RGB", (8, 8)).save(folder / "1.png")
        ...     with mock.patch.dict(os.environ, ROBUSTSYNTH_CACHE=home):
        ...         data = load_data(Path(home, "pets"))
        >>> data.images.shape, data.labels.tolist(), data.classes, data.name
        ((2, 8, 8, 3), [0, 1], ('cat', 'dog'), 'pets')
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"expected an image_size of at least 1, got {image_size}.")
    if channels not in (None, 1, 3):
        raise UserError(f"expected 1 channel (grey) or 3 (RGB), got {channels}.")
    source = find_source(path_or_name, split, announce=announce)
    images, labels, meta = decoded(source, image_size=image_size, channels=channels, announce=announce)
    spec = DATASETS.get(meta["spec"])
    mean, std = statistics(spec, images.shape[-1])
    return ImageData(
        images=images,
        labels=labels,
        classes=tuple(meta["classes"]),
        name=spec.name if spec and not meta.get("part") else meta["source"].rsplit("/")[-1],
        licence=spec.licence if spec else "not stated",
        source=meta["source"],
        mean=mean,
        std=std,
    )
