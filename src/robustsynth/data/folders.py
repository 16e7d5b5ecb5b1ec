"""Pictures in class folders: ROOT/class/*.png, or ROOT/train/class/*.png beside ROOT/test/class/*.png."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

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
    label = root.resolve().name
    splits = {name: root / name for name in SPLIT_NAMES if _has_folders(root / name)}
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
    labelled: list[tuple[Path, int]] = []
    empty: list[Path] = []
    for name in chosen:
        for folder in _folders(splits[name]):
            pictures = _pictures(folder)
            labelled += [(picture, classes.index(folder.name)) for picture in pictures]
            empty += [] if pictures else [folder]
    if not labelled:
        raise UserError(f"{root} holds no pictures for split {split!r}. Expected {LAYOUTS}.")
    if empty:
        raise UserError(f"{empty[0]}: expected the pictures of a class, got none. Add some or remove the folder.")

    def rows() -> Iterator[Row]:
        return (Row(str(picture), picture, index) for picture, index in labelled)

    files = stamps([picture for picture, _ in labelled], root)
    identity = ["folders", str(root.resolve()), list(chosen), list(classes), files]
    return Source(label, identity, lambda: Contents(classes, len(labelled), rows))


def _has_folders(path: Path) -> bool:
    """Whether it is a split's folder: a *class* that happens to be called "train" holds pictures instead."""
    return path.is_dir() and bool(_folders(path))


def _folders(path: Path) -> list[Path]:
    hidden = (".", "__")  # what version control, editors and zip archives leave behind
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(hidden))


def _pictures(folder: Path) -> list[Path]:
    # At any depth: some data sets put a class's pictures into CLASS/images.
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _openable() and not file.name.startswith(".") and file.is_file()
    )


@functools.cache
def _openable() -> frozenset[str]:
    """The file endings of the formats that Pillow reads (it knows further ones that it only writes)."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)
