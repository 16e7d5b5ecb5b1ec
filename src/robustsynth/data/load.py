"""`load_data`: labelled images from a folder, a file or a name, by whichever reader understands it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustsynth.data.cache import decoded, decoded_folder
from robustsynth.data.folders import find_class_folders, find_domains, find_listed_folders, listed_folders
from robustsynth.data.rows import ImageData, Place, Source, Undecoded, plan
from robustsynth.data.specs import DATASETS, described
from robustsynth.data.streaming import ImageStream, stream_of
from robustsynth.data.subsets import is_subset, parse_subset
from robustsynth.data.tables import find_on_hub, find_parquet
from robustsynth.errors import UnknownNameError, UserError

READERS: dict[str, Callable[[Place, str, Callable[[str], object]], Source | None]] = {
    "a folder of parquet files (train-00000-of-00001.parquet, test-…) or one parquet file": find_parquet,
    "two domains (ROOT/trainA, ROOT/trainB, ROOT/testA, ROOT/testB)": find_domains,
    "class folders (ROOT/class/*.png), or split and class folders (ROOT/train/class/*.png, …)": find_class_folders,
    "a folder for each class (HORSES,ZEBRAS)": find_listed_folders,
    "an owner/name of the Hugging Face Hub": find_on_hub,
}
"""The readers by the layouts that they understand, in the order in which they are asked. Of another layout a reader
gives None. A new one is a function and an entry here."""


def find_source(place: str | Path | Sequence[str | Path], split: str, *, announce: Callable[[str], object]) -> Source:
    """The data of a file, folder, list of folders or name, or a subset of them; nothing is decoded."""
    if isinstance(place, str | Path):
        path = Path(place).expanduser()
        if isinstance(place, str) and is_subset(place):
            _, rest, taken_from = parse_subset(place)
            return taken_from(find_source(rest, split, announce=announce))
        # A path object was meant as a path: a misspelt folder must not become a download.
        asked = path if path.exists() or isinstance(place, Path) else place
    else:
        asked = [Path(folder).expanduser() for folder in place]
    for find in READERS.values():
        source = find(asked, split, announce)
        if source is not None:
            return source
    if isinstance(asked, Path) and asked.is_dir():
        raise UserError(f"{asked} holds neither parquet files nor class folders. Expected {', '.join(READERS)}.")
    if isinstance(asked, Path) and asked.exists():
        raise UserError(f"{asked}: expected a parquet file or a folder, got another file. Give {', '.join(READERS)}.")
    remedy = "No file or folder of that name exists either: give one, or an owner/name of the Hugging Face Hub."
    raise UnknownNameError("data set", str(place), DATASETS, remedy)


def located(path_or_name: str) -> str:
    """The same data, named so that it is found from any other folder: paths become absolute.

    Example:
        >>> located("owner/name"), located(".") == str(Path.cwd())
        ('owner/name', True)
    """
    path = Path(path_or_name).expanduser()
    if path.exists():
        return str(path.resolve())
    if is_subset(path_or_name):
        prefix, rest, _ = parse_subset(path_or_name)
        return prefix + located(rest)
    if "," in path_or_name:
        return ",".join(str(folder.resolve()) for folder in listed_folders(path_or_name))
    return path_or_name


def load_data(
    path_or_name: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    announce: Callable[[str], object] = print,
) -> ImageData:
    """Load labelled images, decoding them on the first call and memory-mapping the result ever after.

    `path_or_name` is, in this order: a parquet file or a folder of them as `datasets` writes them; a folder of class
    folders, with or without ``train`` and ``test`` folders above; two domains as ``ROOT/trainA``, ``trainB``, ``testA``
    and ``testB``; several folders with commas between them, one for each class; a name in `DATASETS`; an
    ``owner/name`` of the Hugging Face Hub. Class folders are labelled in the order of their sorted names, folders of a
    list in its order. The domains of a folder named like ``horse2zebra`` are ``horse`` and ``zebra``.
    ``restricted-imagenet:`` before a folder of ImageNet takes nine kinds of animals out of it, ``only:horse,deer:``
    before any of these the images of these classes, labelled in this order (`robustsynth.data.subsets`).

    Args:
        path_or_name: a folder, a file, or a name; or a list of folders.
        split: ``"train"``, ``"test"`` (or ``"validation"``; each stands in for the other where it is missing), another
            name that the files use, or ``"all"``. A folder without split folders, also one of a list, is ``"train"``.
        image_size: the side to store. By default the known data set's; else that of the images, if they are squares of
            one size; else the largest of 224, 128, 64 and 32 that the median image fills.
        channels: 1 or 3. By default the known data set's; else 1 if all images are grey.
        announce: called with one line before anything is downloaded, or many images are decoded.

    Raises:
        UnknownNameError: there is no such folder, file or known name.
        UserError: an image is missing or damaged, a class is empty, a split is absent, the layout is not understood,
            there are fewer than two classes, or the Hub cannot be reached.

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
    return decoded(source, image_size=image_size, channels=channels, announce=announce)


def open_stream(
    path_or_name: str | Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    announce: Callable[[str], object] = print,
) -> ImageStream:
    """As `load_data`, to be decoded while a run goes on; a `UserError` where it is not kept as parquet files."""
    return stream_of(find_source(path_or_name, split, announce=announce), image_size=image_size)


def describe_data(
    path_or_name: str | Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    announce: Callable[[str], object] = print,
) -> tuple[ImageData, bool]:
    """The data set as `load_data` would give it, but not decoded, and whether it is decoded in the cache already.

    Nothing is written, of the Hub only footers and labels are read, and damaged images are not found. Of the images
    only the shape can be used; the labels are 0, 1, 2, … over and over.
    """
    source = find_source(path_or_name, split, announce=announce)
    cached = decoded_folder(source, image_size=image_size, channels=None).exists()
    if source.identity[0] == "hub" and not cached:
        return stream_of(source, image_size=image_size), False
    contents = source.open()
    spec, side, channels = plan(contents, source.spec, image_size, None)
    images: Any = Undecoded((contents.count, side, side, channels))
    labels = np.arange(contents.count) % len(contents.classes)
    facts = described(spec, source=source.label, channels=channels, part=bool(contents.part_of))
    return ImageData(images, labels, tuple(contents.classes), **facts), cached
