"""Errors of users: messages say what was expected, what was got and what to do.

The command line prints the message of a `UserError` alone and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was asked for cannot be done."""


class UnknownNameError(UserError):
    """A name that is not among `choices`, which the message lists, the most alike first.

    Example:
        >>> str(UnknownNameError("class", "shp", ["cat", "ship"]))
        "unknown class 'shp': did you mean 'ship'? Available: ship, cat."
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], remedy: str = "") -> None:
        ordered = closest_first(name, choices)
        near = difflib.get_close_matches(name.lower(), [c.lower() for c in ordered], n=1, cutoff=0.6)
        hint = f"did you mean {ordered[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}Available: {', '.join(ordered) or 'none'}. {remedy}".rstrip())
        self.kind, self.name, self.choices = kind, name, ordered


def closest_first(name: str, choices: Iterable[str]) -> list[str]:
    """`choices` ordered by likeness to `name`, most alike first; equally alike ones keep their order.

    Example:
        >>> closest_first("chips", ["cat", "ship"])
        ['ship', 'cat']
    """
    wanted = name.lower()
    return sorted(choices, key=lambda c: -difflib.SequenceMatcher(None, wanted, c.lower()).ratio())
