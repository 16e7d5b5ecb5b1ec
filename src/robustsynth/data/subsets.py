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
from robustsynth.data.specs import IMAGENET_CLASSES, RESTRICTED_IMAGENET, positions_of
from robustsynth.errors import UnknownNameError, UserError

ONLY, RESTRICTED = "only:", "restricted-imagenet:"


def is_subset(text: str) -> bool:
    """Whether a text asks for a subset, and is no path.

    Example:
        >>> is_subset("only:horse,deer:cifar10"), is_subset("cifar10")
        (True, False)
    """
    return text.startswith((ONLY, RESTRICTED)) and not Path(text).expanduser().exists()


def parse_subset(text: str) -> tuple[str, str, Callable[[Source], Source]]:
    """The prefix, the data set behind it, and what takes the subset out of that.

    Raises:
        UserError: there is no data set behind ``only:``, or fewer than two classes, or one twice.

    Example:
        >>> parse_subset("only:horse, deer:cifar10")[:2]
        ('only:horse,deer:', 'cifar10')
    """
    if text.startswith(RESTRICTED):
        return RESTRICTED, text.removeprefix(RESTRICTED), restricted_imagenet
    names, colon, rest = text.removeprefix(ONLY).partition(":")
    classes = tuple(name.strip() for name in names.split(","))
    if not colon or not rest:
        raise UserError(f"expected classes and a data set, as {ONLY}horse,deer:cifar10, got {text!r}")
    if len(classes) < 2 or not all(classes) or len({*positions_of(classes, classes)}) < len(classes):
        raise UserError(f"expected two different classes or more, with commas between them, got {names!r} in {text!r}")
    return f"{ONLY}{','.join(classes)}:", rest, lambda source: only_classes(source, classes)


def only_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """The images of `source` that are of these classes, labelled in the order given.

    Raises:
        UnknownNameError: on opening, if it has no class of such a name; capitals do not matter.
    """

    def opened() -> Contents:
        whole = source.open()
        labels: dict[int, int] = {}
        for label, (name, position) in enumerate(zip(classes, positions_of(classes, whole.classes), strict=True)):
            if position is None:
                raise UnknownNameError("class", name, whole.classes, f"(in {source.label})")
            labels[position] = label
        names = tuple(whole.classes[position] for position in labels)
        return replace(_relabelled(whole, labels, names), part_of=whole.classes)

    return Source(f"{source.label} ({', '.join(classes)})", [ONLY, list(classes), source.identity], opened, source.spec)


def restricted_imagenet(source: Source) -> Source:
    """The nine kinds of animals of a source that is ImageNet (Santurkar et al. 2019, Table 3).

    Raises:
        UserError: on opening, if it has not ImageNet's 1,000 classes in their order.
    """

    def opened() -> Contents:
        whole = source.open()
        _check_order(whole.classes, source.label)
        ranges = enumerate(RESTRICTED_IMAGENET.values())
        labels = {index: label for label, (first, last) in ranges for index in range(first, last + 1)}
        return _relabelled(whole, labels, tuple(RESTRICTED_IMAGENET))

    ranges = [[name, *bounds] for name, bounds in RESTRICTED_IMAGENET.items()]
    return Source(RESTRICTED.removesuffix(":"), [RESTRICTED, ranges, source.identity], opened)


def _relabelled(whole: Contents, labels: Mapping[int, int], classes: tuple[str, ...]) -> Contents:
    """The rows whose labels are among the keys of `labels`, with the labels that these stand for."""

    def rows() -> Iterator[Row]:
        for row in whole.rows():
            label = None if row.label is None else labels.get(row.label)
            if label is not None:
                yield replace(row, label=label)

    return Contents(classes, sum(1 for _ in rows()), rows)


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
            f"got {', '.join(classes[:3])}, …, by which they cannot be told. Rename the class folders."
        )
