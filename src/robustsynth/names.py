"""How names of classes are compared, everywhere: two spellings of one name, and names from another vocabulary."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

Aliases = Mapping[str, Sequence[str]]


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


def matching_class(name: str, classes: Sequence[str], aliases: Aliases | None = None) -> int | None:
    """The position of the class that `name` means, or None if it has no certain relation to exactly one of them.

    The first of these that finds any decides: the name as it is written; whatever its capitals, spaces, hyphens and
    underscores; one of several names between commas, as ImageNet has them, or beside a slash; without a plural's ending
    or a number behind it (``dog2``); an alias (``dog`` → ``English springer``).

    Args:
        name: from whatever vocabulary.
        classes: of the model, in the order of its logits.
        aliases: other names of its classes, as `ModelCard.aliases`; where there are none, what the bundled models'
            cards say of classes of these names.

    Example:
        >>> imagenette = ["tench", "English springer", "garbage truck", "golf ball"]
        >>> [matching_class(name, imagenette) for name in ("Golf_Ball", "dog2", "trucks", "tench, Tinca tinca")]
        [3, 1, 2, 0]
        >>> matching_class("horse", imagenette) is None
        True
    """
    if name in classes:
        return list(classes).index(name)
    for meanings in _READINGS:
        wanted = meanings(name)
        found = [place for place, other in enumerate(classes) if wanted & meanings(other)]
        if found:
            return found[0] if len(found) == 1 else None
    # What the name is an alias of, or has as aliases; and all names of the same things, itself among them.
    forms = _forms(name)
    meant, alike = set[str](), set(forms)
    for own, others in (aliases or _bundled_aliases()).items():
        names = set[str]().union(*map(_forms, others))
        if forms & names:
            meant |= _forms(own)
            alike |= names
        if forms & _forms(own):
            meant |= names
    found = [place for place, other in enumerate(classes) if meant & _forms(other)]
    # Beside a tow truck, the garbage truck is not what "truck" means. But a hot dog is no dog: no such class is taken.
    rivals = {place for place, other in enumerate(classes) if _last_words(other) & alike}
    return found[0] if len(found) == 1 and rivals <= set(found) else None


@functools.cache
def _bundled_aliases() -> Aliases:
    found: dict[str, list[str]] = {}
    for path in sorted((Path(__file__).parent / "weights").glob("*/card.json")):
        # A damaged model is no reason not to use another one.
        with contextlib.suppress(OSError, LookupError, ValueError, TypeError, AttributeError):
            for own, others in json.loads(path.read_text(encoding="utf-8"))["aliases"].items():
                found.setdefault(own, []).extend(others)
    return found


def _key(name: str) -> str:
    return name_key(re.sub(r"[\s_-]+", "", name))


@functools.cache
def _names(name: str) -> frozenset[str]:
    return frozenset(_key(part) for part in re.split("[,/]", name)) - {""}


@functools.cache
def _forms(name: str) -> frozenset[str]:
    """Singular, and without a number behind it: ``dog2`` is a second dog, ``2`` is a digit."""
    numbered = {re.sub(r"(?<=[^\W\d])\d{1,3}$", "", key) for key in _names(name)}
    return frozenset(form for key in numbered | _names(name) for form in _singular(key))


def _singular(key: str) -> set[str]:
    """What a name may be the plural of, and itself."""
    forms = {key}
    if len(key) > 3 and key.endswith("s") and not key.endswith(("ss", "us", "is")):
        forms.add(key[:-1])
        if key.endswith(("ches", "shes", "sses", "xes", "oes")):
            forms.add(key[:-2])
        if key.endswith("ies"):
            forms.add(key[:-3] + "y")
    return forms


@functools.cache
def _last_words(name: str) -> frozenset[str]:
    """Of names of several words."""
    words = (re.split(r"[\s_-]+", part.strip()) for part in re.split("[,/]", name))
    return frozenset(form for part in words if len(part) > 1 for form in _singular(_key(part[-1])))


_READINGS: tuple[Callable[[str], Set[str]], ...] = (lambda name: {_key(name)}, _names, _forms)
