"""Some classes of a data set, as a data set of their own.

only:horse,deer:cifar10        two classes, horse with label 0 and deer with label 1, of whatever `load_data` takes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from robustsynth.data.restricted import PREFIX as RESTRICTED
from robustsynth.data.sources import Contents, Row, Source
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.names import name_key

PREFIX = "only:"


def parsed(text: str) -> tuple[tuple[str, ...], str]:
    """The classes that are asked for, in their order, and the data set that they are of.

    Raises:
        UserError: there is no data set behind them, fewer than two classes, or one twice.

    Example:
        >>> parsed("only:horse,deer:cifar10")
        (('horse', 'deer'), 'cifar10')
    """
    names, colon, rest = text.removeprefix(PREFIX).partition(":")
    classes = tuple(name.strip() for name in names.split(","))
    if not colon or not rest:
        raise UserError(f"expected classes and a data set, as {PREFIX}horse,deer:cifar10, got {text!r}")
    if len(classes) < 2 or not all(classes) or len({name_key(name) for name in classes}) < len(classes):
        raise UserError(f"expected two different classes or more, with commas between them, got {names!r} in {text!r}")
    return classes, rest


def selected(source: Source, classes: tuple[str, ...]) -> Source:
    """The pictures of `source` that are of these classes, labelled in the order given; the others stay undecoded.

    Raises:
        UnknownNameError: on opening, if it has no class of such a name; capitals do not matter.
    """

    def opened() -> Contents:
        whole = source.open()
        by_name = {name_key(name): index for index, name in enumerate(whole.classes)}
        missing = [name for name in classes if name_key(name) not in by_name]
        if missing:
            raise UnknownNameError("class", missing[0], whole.classes, f"(in {source.label})")
        labels = {by_name[name_key(name)]: label for label, name in enumerate(classes)}

        def rows() -> Iterator[Row]:
            for row in whole.rows():
                if row.label in labels:
                    yield replace(row, label=labels[row.label])

        names = tuple(whole.classes[index] for index in labels)
        return Contents(names, sum(1 for _ in rows()), rows, part_of=whole.classes)

    label = f"{source.label} ({', '.join(classes)})"
    return Source(label, [PREFIX, list(classes), source.identity], opened, source.spec)


def is_part(path_or_name: str) -> bool:
    """Whether a data set is asked for in part, by what stands in front of it.

    Example:
        >>> is_part("only:horse,deer:cifar10"), is_part("cifar10")
        (True, False)
    """
    return not Path(path_or_name).expanduser().exists() and path_or_name.startswith((PREFIX, RESTRICTED))
