"""Restricted ImageNet: nine kinds of animals, each a range of ImageNet's classes (Santurkar et al. 2019, Table 3).

restricted-imagenet:FOLDER     of ImageNet's 1,000 class folders, or of its parquet files
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from robustsynth.data.sources import Contents, Row, Source
from robustsynth.errors import UserError

PREFIX = "restricted-imagenet:"

RANGES: dict[str, tuple[int, int]] = {
    "Dog": (151, 268),
    "Cat": (281, 285),
    "Frog": (30, 32),
    "Turtle": (33, 37),
    "Bird": (80, 100),
    "Primate": (365, 382),
    "Fish": (389, 397),
    "Crab": (118, 121),
    "Insect": (300, 319),
}
"""First and last of ImageNet's class indices, both included, in the order of the labels."""

IMAGENET_CLASSES = 1000


def kind_of(index: int) -> int | None:
    """The label in restricted ImageNet of one of ImageNet's class indices; None for what is left out.

    Example:
        >>> kind_of(151), kind_of(268), kind_of(269), kind_of(281)
        (0, 0, None, 1)
    """
    return next((label for label, (first, last) in enumerate(RANGES.values()) if first <= index <= last), None)


def restricted(source: Source) -> Source:
    """The nine kinds of animals of a source that is ImageNet; its other pictures are left out, undecoded.

    Raises:
        UserError: on opening, if it has not ImageNet's 1,000 classes in their order.
    """

    def opened() -> Contents:
        whole = source.open()
        _check_order(whole.classes, source.label)

        def rows() -> Iterator[Row]:
            for row in whole.rows():
                kind = None if row.label is None else kind_of(row.label)
                if kind is not None:
                    yield replace(row, label=kind)

        return Contents(tuple(RANGES), sum(1 for _ in rows()), rows)

    ranges = [[name, *bounds] for name, bounds in RANGES.items()]
    return Source(PREFIX.removesuffix(":"), [PREFIX, ranges, source.identity], opened)


def _check_order(classes: Sequence[str], where: str) -> None:
    """A class's position means what it does in ImageNet only where all are there, in the order of WordNet's numbers."""
    if len(classes) != IMAGENET_CLASSES:
        raise UserError(
            f"{where}: expected ImageNet's {IMAGENET_CLASSES} classes, whose positions make up restricted ImageNet, "
            f"got {len(classes)}. Give the whole of ImageNet; class folders of your own need no {PREFIX!r} in front."
        )
    numbers = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    plain = list(classes) == [str(index) for index in range(IMAGENET_CLASSES)]
    in_words = re.match(r"tench\b", classes[0]) and re.search(r"\btabby\b", classes[RANGES["Cat"][0]])
    if not ((numbers and list(classes) == sorted(classes)) or plain or in_words):
        raise UserError(
            f"{where}: expected ImageNet's classes in its own order, called by WordNet's numbers (n01440764, …), "
            f"got {', '.join(classes[:3])}, …, by which they cannot be told. Rename the class folders."
        )
