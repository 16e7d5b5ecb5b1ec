"""Pictures in class folders: ROOT/class/*.png, or ROOT/train/class/*.png beside ROOT/test/class/*.png."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from robustsynth.data.sources import LAYOUTS, Contents, Row, Source, stamps
from robustsynth.data.splits import SPLIT_NAMES, choose_splits
from robustsynth.errors import UserError


def find_class_folders(root: Path, split: str) -> Source:
    """The class folders of one split under `root`.

    The class order is the sorted names of all splits together, so that a label means the same class in each.

    Raises:
        UserError: no pictures, an empty class folder, or no such split.
    """
    splits = split_folders(root)
    if splits:
        chosen = choose_splits(list(splits), split, where=str(root))
    elif split in ("train", "all"):
        splits, chosen = {"train": root}, ("train",)
    else:
        raise UserError(
            f"{root} has no split {split!r}: it has no split folders, so that all of it is 'train'. "
            "Ask for split='train' or split='all', or arrange it as ROOT/train/class and ROOT/test/class."
        )
    if not any(_folders(folder) for folder in splits.values()):
        raise UserError(f"{root} holds neither parquet files nor class folders. Expected {LAYOUTS}.")

    classes = tuple(sorted({folder.name for path in splits.values() for folder in _folders(path)}))
    labelled = [(folder, classes.index(folder.name)) for name in chosen for folder in _folders(splits[name])]
    if not any(pictures_under(folder) for folder, _ in labelled):
        raise UserError(f"{root} holds no pictures for split {split!r}. Expected {LAYOUTS}.")
    return labelled_folders(labelled, classes, label=root.resolve().name, identity=["folders", *chosen], root=root)


def labelled_folders(
    labelled: Sequence[tuple[Path, int]], classes: tuple[str, ...], *, label: str, identity: list[Any], root: Path
) -> Source:
    """The pictures in some folders, all of one folder with one label.

    Args:
        labelled: folders with their labels.
        classes: in label order.
        label: what to call the source.
        identity: what tells it from others, beside its files and classes.
        root: a folder that all lie in.

    Raises:
        UserError: one of the folders holds no pictures.
    """
    pictures = [(picture, index) for folder, index in labelled for picture in pictures_under(folder)]
    for folder, _ in labelled:
        if not pictures_under(folder):
            raise UserError(f"{folder}: expected the pictures of a class, got none. Add some or remove the folder.")

    def rows() -> Iterator[Row]:
        return (Row(str(picture), picture, index) for picture, index in pictures)

    files = stamps([picture for picture, _ in pictures], root)
    identity = [*identity, str(root.resolve()), list(classes), files]
    return Source(label, identity, lambda: Contents(classes, len(pictures), rows))
