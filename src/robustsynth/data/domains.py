"""Domains to translate between, such as horses and zebras: a folder each, or ROOT/trainA, trainB, testA and testB.

The latter is how the unpaired sets of Zhu et al. 2017 (CycleGAN) are published; Santurkar et al. 2019, Appendix A.2,
train on three of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from robustsynth.data.folders import Group, grouped, pictures_under
from robustsynth.data.sources import Source
from robustsynth.data.splits import SPLIT_NAMES, choose_splits
from robustsynth.errors import UserError

HALVES = ("A", "B")


def has_halves(root: Path) -> bool:
    """Whether any of ROOT/trainA, trainB, testA and so on is there."""
    return any((root / f"{split}{half}").is_dir() for split in SPLIT_NAMES for half in HALVES)


def find_halves(root: Path, split: str) -> Source:
    """The two domains of one split of the published layout, A with label 0 and B with label 1.

    Raises:
        UserError: no such split, or only one half of it, or an empty half.
    """
    there = {name: [half for half in HALVES if (root / f"{name}{half}").is_dir()] for name in SPLIT_NAMES}
    chosen = choose_splits([name for name in SPLIT_NAMES if there[name]], split, where=str(root))
    for name in chosen:
        if len(there[name]) == 1:
            missing = "B" if there[name] == ["A"] else "A"
            raise UserError(
                f"{root}: expected {name}A and {name}B, one for each domain, got only {name}{there[name][0]}. "
                f"Put the other domain's pictures into {name}{missing}."
            )
    groups = [Group.read(root / f"{name}{half}", label) for name in chosen for label, half in enumerate(HALVES)]
    return grouped(groups, half_names(root.resolve().name), label=root.resolve().name)


def half_names(name: str) -> tuple[str, str]:
    """What the domains of a published set are called, by its folder's name; A and B if that does not say.

    Example:
        >>> half_names("horse2zebra"), half_names("summer2winter_yosemite"), half_names("mine")
        (('horse', 'zebra'), ('summer', 'winter'), ('A', 'B'))
    """
    # The place and the subject in two published names belong to both domains.
    found = re.fullmatch(r"([^\W\d]+)2([^\W\d]+?)(?:_yosemite|_flower)?", name)
    return (found[1], found[2]) if found and found[1] != found[2] else HALVES


def find_domain_folders(folders: Sequence[Path], split: str) -> Source:
    """Folders of pictures, each of them a class that is called as its folder is, in the order given.

    A folder may hold its splits, as HORSES/train and HORSES/test; one that does not is all ``"train"``.

    Raises:
        UserError: fewer than two, one that is missing, empty or within another, or no such split in one.
    """
    if len(folders) < 2:
        raise UserError(f"expected two folders or more, one for each class, got {len(folders)}")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"expected folders of pictures, one for each class, but there is no folder {folder}")
    for inner, outer in permutations([folder.resolve() for folder in folders], 2):
        if inner.is_relative_to(outer):
            raise UserError(f"expected folders that lie apart, one for each class, but {inner} lies in {outer}")
    names = _telling_names([folder.resolve() for folder in folders])
    groups = [Group.read(part, i) for i, folder in enumerate(folders) for part in _parts(folder, split)]
    return grouped(groups, names, label=",".join(names))


def _parts(folder: Path, split: str) -> list[Path]:
    splits = [name for name in SPLIT_NAMES if (folder / name).is_dir() and pictures_under(folder / name)]
    if splits:
        return [folder / name for name in choose_splits(splits, split, where=str(folder))]
    if split in ("train", "all"):
        return [folder]
    raise UserError(
        f"{folder} has no split {split!r}: it has no split folders, so that all of it is 'train'. "
        f"Ask for split='train' or split='all', or arrange it as {folder.name}/train and {folder.name}/test."
    )


def _telling_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders' names; those of the folders above, for ``horses/train`` and ``zebras/train``."""
    if published := _published_names(folders):
        return published
    for depth in range(1, min(len(folder.parts) for folder in folders)):
        names = tuple(folder.parts[-depth] for folder in folders)
        if len(set(names)) == len(names):
            return names
    raise UserError(f"expected folders of different names, which name the classes, got {', '.join(map(str, folders))}")


def _published_names(folders: Sequence[Path]) -> tuple[str, ...] | None:
    """The domains of ``horse2zebra/trainA`` and ``horse2zebra/trainB``, in whichever order; None for other folders."""
    names = half_names(folders[0].parent.name)
    halves = [re.fullmatch(f"(?:{'|'.join(SPLIT_NAMES)})([AB])", folder.name) for folder in folders]
    if names == HALVES or len({folder.parent for folder in folders}) > 1:
        return None
    told = tuple(names[HALVES.index(half[1])] for half in halves if half)
    return told if len(set(told)) == len(folders) else None
