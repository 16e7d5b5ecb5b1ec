"""How names of classes are compared, everywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def name_key(name: str) -> str:
    """What two spellings of one name have in common: Unicode's composed form, no capitals, no blanks around it.

    Example:
        >>> name_key(" Cafe\\u0301 ") == name_key("CAFÉ")
        True
    """
    # Folding can take a composed letter apart, so that it is composed last.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def name_position(name: str, names: Sequence[str]) -> int | None:
    """The position of `name` among `names`: as it is written if it is there, else the first of the same key.

    Example:
        >>> name_position("SHIP", ["cat", "ship"]), name_position("shp", ["cat", "ship"])
        (1, None)
    """
    if name in names:
        return list(names).index(name)
    wanted = name_key(name)
    return next((place for place, other in enumerate(names) if name_key(other) == wanted), None)
