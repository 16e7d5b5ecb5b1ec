"""Errors for people: what was expected, what was got, what to do.

Everything a user can get wrong is a `UserError`; the command line prints its message alone and exits with
code 2, the library raises it as the `ValueError` that it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for. The message says what was expected, what was got, and the remedy."""


class UnknownNameError(UserError):
    """A name that does not exist among `choices`, which the message lists with the closest match first.

    Args:
        kind: what the name should have named, such as ``"class"`` or ``"model"``.
        name: what was given.
        choices: what exists.
        remedy: an additional sentence on what to do.

    Example:
        >>> str(UnknownNameError("class", "shp", ["cat", "ship"]))
        "unknown class 'shp': did you mean 'ship'? Available: ship, cat."
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], remedy: str = "") -> None:
        ordered = closest_first(name, choices)
        near = difflib.get_close_matches(name.lower(), [c.lower() for c in ordered], n=1, cutoff=0.6)
        hint = f"did you mean {ordered[0]!r}? " if near else ""
        listed = ", ".join(ordered) or "none"
        super().__init__(f"unknown {kind} {name!r}: {hint}Available: {listed}.{' ' + remedy if remedy else ''}")
        self.kind, self.name, self.choices = kind, name, ordered


def closest_first(name: str, choices: Iterable[str]) -> list[str]:
    """`choices` ordered by likeness to `name`, most alike first; equally alike ones keep their order.

    Example:
        >>> closest_first("chips", ["cat", "ship"])
        ['ship', 'cat']
    """
    wanted = name.lower()
    return sorted(choices, key=lambda c: -difflib.SequenceMatcher(None, wanted, c.lower()).ratio())
