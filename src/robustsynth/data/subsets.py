"""Some classes of a data set as a data set of their own; the images of the others are left out, undecoded.

only:horse,deer:cifar10        two classes, horse with label 0 and deer with label 1, of whatever `load_data` takes
restricted-imagenet:FOLDER     nine kinds of animals, of ImageNet's 1,000 class folders or of its parquet files
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from robustsynth.data.rows import Contents, Row, Source
from robustsynth.data.specs import IMAGENET_CLASSES, RESTRICTED_IMAGENET
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.names import name_key, name_position

ONLY, RESTRICTED = "only:", "restricted-imagenet:"


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
