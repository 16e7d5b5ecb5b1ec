"""`load_data`: labelled images from a folder, a file or a name, by whichever reader understands it; or some classes.

only:horse,deer:cifar10        two classes, horse with label 0 and deer with label 1, of whatever `load_data` takes
restricted-imagenet:FOLDER     nine kinds of animals, of ImageNet's 1,000 class folders or of its parquet files
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustsynth.data.cache import decoded, decoded_folder
from robustsynth.data.folders import find_class_folders, find_domains, find_listed_folders, listed_folders
from robustsynth.data.rows import Contents, ImageData, Place, Row, Source, Undecoded, plan
from robustsynth.data.specs import DATASETS, IMAGENET_CLASSES, RESTRICTED_IMAGENET, described
from robustsynth.data.streaming import ImageStream, stream_of
from robustsynth.data.tables import find_on_hub, find_parquet
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.names import name_key, name_position

ONLY, RESTRICTED = "only:", "restricted-imagenet:"

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
    before any of these the images of these classes, labelled in this order.

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


def is_subset(text: str) -> bool:
    """Whether a text asks for a subset, as ``only:horse,deer:cifar10`` does, and is no path."""
    return text.startswith((ONLY, RESTRICTED)) and not Path(text).expanduser().exists()


def parse_subset(text: str) -> tuple[str, str, Callable[[Source], Source]]:
    """The prefix, the data set behind it, and what takes the subset out of that.

    Example:
        >>> parse_subset("only:horse, deer:cifar10")[:2]
        ('only:horse,deer:', 'cifar10')
    """
    if text.startswith(RESTRICTED):
        return RESTRICTED, text.removeprefix(RESTRICTED), restricted_imagenet
    names, _, rest = text.removeprefix(ONLY).partition(":")
    classes = tuple(name.strip() for name in names.split(","))
    if not rest:
        raise UserError(f"expected classes and a data set, as {ONLY}horse,deer:cifar10, got {text!r}")
    if len(classes) < 2 or not all(classes) or len({*map(name_key, classes)}) < len(classes):
        raise UserError(f"expected two different classes or more, with commas between them, got {names!r} in {text!r}")
    return f"{ONLY}{','.join(classes)}:", rest, lambda source: only_classes(source, classes)


def only_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """The images of `source` that are of these classes, whatever their capitals, labelled in the order given."""

    def opened() -> Contents:
        contents = source.open()
        positions: dict[str, Sequence[int]] = {}
        for name in classes:
            position = name_position(name, contents.classes)
            if position is None:
                raise UnknownNameError("class", name, contents.classes, f"(in {source.label})")
            positions[contents.classes[position]] = [position]
        return replace(_relabelled(contents, positions), part_of=contents.classes)

    return Source(f"{source.label} ({', '.join(classes)})", [ONLY, list(classes), source.identity], opened, source.spec)


def restricted_imagenet(source: Source) -> Source:
    """The nine kinds of animals of a source that has ImageNet's 1,000 classes (Santurkar et al. 2019, Table 3)."""

    def opened() -> Contents:
        contents = source.open()
        _check_order(contents.classes, source.label)
        return _relabelled(contents, {name: range(a, b + 1) for name, (a, b) in RESTRICTED_IMAGENET.items()})

    ranges = [[name, *bounds] for name, bounds in RESTRICTED_IMAGENET.items()]
    return Source(RESTRICTED.removesuffix(":"), [RESTRICTED, ranges, source.identity], opened)


def _relabelled(contents: Contents, positions: Mapping[str, Sequence[int]]) -> Contents:
    """The rows of some classes: `positions` has, by each new class's name, the labels that it is made of."""
    labels = {old: new for new, every in enumerate(positions.values()) for old in every}

    def rows() -> Iterator[Row]:
        return (replace(row, label=labels[row.label]) for row in contents.rows() if row.label in labels)

    return Contents(tuple(positions), sum(1 for _ in rows()), rows)


def _check_order(classes: Sequence[str], where: str) -> None:
    """A class's position means what it does in ImageNet only where all are there, in the order of WordNet's numbers."""
    if len(classes) != IMAGENET_CLASSES:
        raise UserError(
            f"{where}: expected ImageNet's {IMAGENET_CLASSES} classes, whose positions make up restricted ImageNet, "
            f"got {len(classes)}. Give the whole of ImageNet; class folders of your own need no {RESTRICTED!r} before."
        )
    numbers = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    plain = list(classes) == [str(index) for index in range(IMAGENET_CLASSES)]
    in_words = re.match(r"tench\b", classes[0]) and re.search(r"\btabby\b", classes[RESTRICTED_IMAGENET["Cat"][0]])
    if not ((numbers and list(classes) == sorted(classes)) or plain or in_words):
        raise UserError(
            f"{where}: expected ImageNet's classes in its own order, called by WordNet's numbers (n01440764, …), "
            f"got {', '.join(classes[:3])}, … Rename the class folders."
        )
