"""Readers of image files in folders, of which each folder is a class.

ROOT/class/*.png                      class folders
ROOT/train/class/*.png, ROOT/test/…   the same in split folders
ROOT/trainA, trainB, testA, testB     two domains to translate between (Zhu et al. 2017, CycleGAN)
HORSES,ZEBRAS                         a folder for each class, wherever it lies
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

from PIL import Image

from robustsynth.data.rows import SPLIT_NAMES, Contents, Place, Row, Source, choose_splits, stamps
from robustsynth.errors import UserError

DOMAINS = ("A", "B")


def find_class_folders(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """The class folders of one split, numbered by the sorted names of all splits, so that a label means one class."""
    if not isinstance(place, Path) or not place.is_dir():
        return None
    splits = _split_folders(place)
    if not splits and not _folders(place):
        return None
    classes = tuple(sorted({path.name for folder in splits.values() or [place] for path in _folders(folder)}))
    chosen = _of_split(place, splits, split, layout="ROOT/SPLIT/class")
    groups = [(path, classes.index(path.name)) for folder in chosen for path in _folders(folder)]
    if not any(images_under(path) for path, _ in groups):
        raise UserError(
            f"{place} holds no images for split {split!r}. Expected class folders (ROOT/class/*.png), with or without "
            "split folders above (ROOT/train/class/*.png, ROOT/test/class/*.png)."
        )
    return _source(groups, classes, label=place.resolve().name)


def find_domains(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """The two domains of one split of the published layout, A with label 0 and B with label 1."""
    if not isinstance(place, Path) or not place.is_dir() or _split_folders(place):
        return None
    available = [name for name in SPLIT_NAMES if any((place / f"{name}{domain}").is_dir() for domain in DOMAINS)]
    if not available:
        return None
    chosen = choose_splits(available, split, where=str(place))
    groups = [(place / f"{name}{domain}", label) for name in chosen for label, domain in enumerate(DOMAINS)]
    for folder, label in groups:
        if not folder.is_dir():
            name = folder.name[:-1]
            raise UserError(
                f"{place}: expected {name}A and {name}B, one for each domain, got only {name}{DOMAINS[1 - label]}. "
                f"Put the other domain's images into {folder.name}."
            )
    return _source(groups, domain_names(place.resolve().name), label=place.resolve().name)


def find_listed_folders(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """Folders of images, each of them a class that is called as its folder is, in the order given.

    A folder may hold its splits, as HORSES/train and HORSES/test; one that does not is all ``"train"``.
    """
    if isinstance(place, Path) or (isinstance(place, str) and "," not in place):
        return None
    folders = listed_folders(place) if isinstance(place, str) else place
    if len(folders) < 2:
        raise UserError(f"expected two folders or more, one for each class, got {len(folders)}")
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise UserError(f"expected folders of images, one for each class, but there is no folder {missing}")
    resolved = [folder.resolve() for folder in folders]
    for inner, outer in permutations(resolved, 2):
        if inner.is_relative_to(outer):
            raise UserError(f"expected folders that lie apart, one for each class, but {inner} lies in {outer}")
    names, groups = _distinct_names(resolved), []
    for label, folder in enumerate(folders):
        splits = {name: folder / name for name in SPLIT_NAMES if images_under(folder / name)}
        groups += [(part, label) for part in _of_split(folder, splits, split, layout=f"{folder.name}/SPLIT")]
    return _source(groups, names, label=",".join(names))


def listed_folders(text: str) -> list[Path]:
    """The folders that ``HORSES,ZEBRAS`` lists; their own names may hold commas too."""

    def is_folder(name: str) -> bool:
        return bool(name) and Path(name).expanduser().is_dir()

    def read(parts: Sequence[str]) -> list[Path] | None:
        for end in range(1, len(parts) + 1):
            name = ",".join(parts[:end]).strip()
            rest = read(parts[end:]) if is_folder(name) else None
            if rest is not None:
                return [Path(name).expanduser(), *rest]
        return None if parts else []

    found = read(text.split(","))
    if found is None:
        missing = next((part.strip() for part in text.split(",") if not is_folder(part.strip())), text)
        raise UserError(
            f"expected a folder, or folders with commas between them, in {text!r}, but there is no folder {missing!r}"
        )
    return found


def domain_names(name: str) -> tuple[str, str]:
    """What the domains of a published set are called, by its folder's name; A and B if that does not say.

    Example:
        >>> domain_names("horse2zebra"), domain_names("summer2winter_yosemite"), domain_names("mine")
        (('horse', 'zebra'), ('summer', 'winter'), ('A', 'B'))
    """
    # The place and the subject in two published names belong to both domains.
    found = re.fullmatch(r"([^\W\d]+)2([^\W\d]+?)(?:_yosemite|_flower)?", name)
    return (found[1], found[2]) if found and found[1] != found[2] else DOMAINS


def images_under(folder: Path) -> list[Path]:
    """The files in a folder that Pillow reads by their names, at any depth: some sets use CLASS/images."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _openable() and not file.name.startswith(".") and file.is_file()
    )


def _source(groups: Sequence[tuple[Path, int]], classes: tuple[str, ...], *, label: str) -> Source:
    """The images of some folders, each with its label, as a source that is called `label`."""
    found = [(folder, number, images_under(folder)) for folder, number in groups]
    for folder, _, images in found:
        if not images:
            raise UserError(f"{folder}: expected the images of a class, got none. Add some or remove the folder.")

    def rows() -> Iterator[Row]:
        return (Row(str(image), image, number) for _, number, images in found for image in images)

    files = [[str(folder.resolve()), number, stamps(images, folder)] for folder, number, images in found]
    count = sum(len(images) for _, _, images in found)
    return Source(label, ["folders", list(classes), files], lambda: Contents(classes, count, rows))


def _split_folders(root: Path) -> dict[str, Path]:
    """The split folders in `root`, by name. They hold folders: a *class* called "train" holds images instead."""
    return {name: root / name for name in SPLIT_NAMES if (root / name).is_dir() and _folders(root / name)}


def _of_split(folder: Path, splits: Mapping[str, Path], split: str, *, layout: str) -> list[Path]:
    """The split folders that are asked for; `folder` itself, where it has none and the images are for training."""
    if splits:
        return [splits[name] for name in choose_splits(list(splits), split, where=str(folder))]
    if split in ("train", "all"):
        return [folder]
    train, test = (layout.replace("SPLIT", name) for name in ("train", "test"))
    raise UserError(
        f"{folder} has no split {split!r}: it has no split folders, so that all of it is 'train'. Ask for "
        f"split='train' or split='all', or arrange it as {train} and {test}."
    )


def _distinct_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders' names; those of the folders above, for ``horses/train`` and ``zebras/train``.

    ``horse2zebra/trainA`` and ``horse2zebra/trainB``, in whichever order, have the names of their domains.
    """
    domains = domain_names(folders[0].parent.name)
    halves = [re.fullmatch(f"(?:{'|'.join(SPLIT_NAMES)})([AB])", folder.name) for folder in folders]
    if domains != DOMAINS and len({folder.parent for folder in folders}) == 1:
        own = tuple(domains[DOMAINS.index(half[1])] for half in halves if half)
        if len(set(own)) == len(folders):
            return own
    for depth in range(1, min(len(folder.parts) for folder in folders)):
        names = tuple(folder.parts[-depth] for folder in folders)
        if len(set(names)) == len(names):
            return names
    raise UserError(f"expected folders of different names, which name the classes, got {', '.join(map(str, folders))}")


def _folders(path: Path) -> list[Path]:
    hidden = (".", "__")  # what version control, editors and zip archives leave behind
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(hidden))


@functools.cache
def _openable() -> frozenset[str]:
    """The file endings of the formats that Pillow reads (it knows further ones that it only writes)."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)
