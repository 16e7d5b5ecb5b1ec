"""Pictures in class folders: ROOT/class/*.png, or ROOT/train/class/*.png beside ROOT/test/class/*.png."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from robustsynth.data.sources import LAYOUTS, Contents, Row, Source, stamps
from robustsynth.data.splits import SPLIT_NAMES, choose_splits
from robustsynth.errors import UserError


@dataclass(frozen=True)
class Group:
    """A folder whose pictures, at any depth, all have one label."""

    folder: Path
    label: int
    pictures: tuple[Path, ...]

    @classmethod
    def read(cls, folder: Path, label: int) -> Group:
        """The pictures that are in the folder now."""
        return cls(folder, label, tuple(pictures_under(folder)))


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
    groups = [Group.read(path, classes.index(path.name)) for name in chosen for path in _folders(splits[name])]
    if not any(group.pictures for group in groups):
        raise UserError(f"{root} holds no pictures for split {split!r}. Expected {LAYOUTS}.")
    return grouped(groups, classes, label=root.resolve().name)


def grouped(groups: Sequence[Group], classes: tuple[str, ...], *, label: str) -> Source:
    """The pictures of some folders as a source that is called `label`.

    Raises:
        UserError: one of the folders holds no pictures.
    """
    for group in groups:
        if not group.pictures:
            raise UserError(
                f"{group.folder}: expected the pictures of a class, got none. Add some or remove the folder."
            )

    def rows() -> Iterator[Row]:
        return (Row(str(picture), picture, group.label) for group in groups for picture in group.pictures)

    files = [[str(g.folder.resolve()), g.label, stamps(g.pictures, g.folder)] for g in groups]
    count = sum(len(group.pictures) for group in groups)
    return Source(label, ["folders", list(classes), files], lambda: Contents(classes, count, rows))


def split_folders(root: Path) -> dict[str, Path]:
    """The split folders in `root`, by their names.

    Only those that hold folders: a *class* that happens to be called "train" holds pictures instead.
    """
    return {name: root / name for name in SPLIT_NAMES if (root / name).is_dir() and _folders(root / name)}


def pictures_under(folder: Path) -> list[Path]:
    """The files in a folder that Pillow reads by their names, at any depth: some sets use CLASS/images."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _openable() and not file.name.startswith(".") and file.is_file()
    )


def _folders(path: Path) -> list[Path]:
    hidden = (".", "__")  # what version control, editors and zip archives leave behind
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(hidden))


@functools.cache
def _openable() -> frozenset[str]:
    """The file endings of the formats that Pillow reads (it knows further ones that it only writes)."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)
