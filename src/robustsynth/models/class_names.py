"""The class of a model that a name from another vocabulary means: CIFAR-10's ``dog`` for a model of photographs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence, Set

from robustsynth.errors import UnknownNameError

_SAME = (
    ("airplane", "aeroplane", "plane"),
    ("automobile", "car", "motorcar"),
    ("truck", "lorry"),
    ("garbage truck", "dustcart", "refuse truck", "bin lorry"),
    ("gas pump", "petrol pump", "gasoline pump", "fuel pump"),
    ("English springer", "English springer spaniel", "springer spaniel", "springer"),
    ("church", "church building"),
    # WordNet's numbers, which name the class folders of Imagenette as it is published.
    ("tench", "n01440764"),
    ("English springer", "n02102040"),
    ("cassette player", "n02979186"),
    ("chain saw", "n03000684"),
    ("church", "n03028079"),
    ("French horn", "n03394916"),
    ("garbage truck", "n03417042"),
    ("gas pump", "n03425413"),
    ("golf ball", "n03445777"),
    ("parachute", "n03888257"),
)
"""Other names of one thing; the first is what they all mean."""

_KINDS = {
    "English springer": ("dog", "spaniel"),
    "garbage truck": ("truck",),
    "tench": ("fish",),
    "chain saw": ("saw",),
    "French horn": ("horn",),
    "puppy": ("dog",),
    "kitten": ("cat",),
    "monkey": ("primate",),
    "ape": ("primate",),
    "tortoise": ("turtle",),
    "beetle": ("insect",),
    "butterfly": ("insect",),
    "bee": ("insect",),
}
"""Narrow names and what they are kinds of. A narrow name means the broader class; a broad one means the only kind of it
that the model has."""


def matching_class(name: str, classes: Sequence[str]) -> int | None:
    """The position of the class that `name` means, or None if it has no certain relation to exactly one of them.

    The first of these that finds any decides: the name as it is written; whatever its capitals, spaces, hyphens and
    underscores; one of several names between commas, as ImageNet has them, or beside a slash; without a plural's ending
    or a number behind it (``dog2``); another name of the same thing; a kind of it (``dog`` → ``English springer``) or
    what it is a kind of.

    Args:
        name: from whatever vocabulary.
        classes: of the model, in the order of its logits.

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
        found = [index for index, other in enumerate(classes) if wanted & meanings(other)]
        if found:
            return found[0] if len(found) == 1 else None
    broader, narrower = _broader(name), _narrower(name)
    kinds = {i for i, other in enumerate(classes) if (things := _things(other)) & broader or things & narrower}
    # Beside a tow truck, the garbage truck is not what "truck" means. But a hot dog is no dog: no such class is taken.
    rivals = {i for i, other in enumerate(classes) if _last_words(other) & _things(name)}
    return kinds.pop() if len(kinds) == 1 and rivals <= kinds else None


def require_class(name: str, classes: Sequence[str]) -> int:
    """The same as `matching_class`, for a name that must mean something.

    Raises:
        UnknownNameError: it means none of the classes, or more than one; they are listed.

    Example:
        >>> require_class("zebra", ["horse", "cat"])
        Traceback (most recent call last):
        robustsynth.errors.UnknownNameError: unknown class 'zebra': Available: cat, horse. Name one of these.
    """
    found = matching_class(name, classes)
    if found is None:
        raise UnknownNameError("class", name, classes, "Name one of these.")
    return found


def class_map(from_classes: Iterable[str], to_classes: Sequence[str]) -> dict[str, str]:
    """Each of `from_classes` that means one of `to_classes`, and which; the others are left out.

    Example:
        >>> class_map(["bird", "dog", "ship"], ["Bird", "Dog", "Fish"])
        {'bird': 'Bird', 'dog': 'Dog'}
    """
    found = {name: matching_class(name, to_classes) for name in from_classes}
    return {name: to_classes[index] for name, index in found.items() if index is not None}


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


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
def _things(name: str) -> frozenset[str]:
    forms = _forms(name)
    return forms.union(*(same for same in _SAME_KEYS if same & forms))


_SAME_KEYS = [{_key(name) for name in names} for names in _SAME]
_KIND_KEYS = {_key(narrow): {_key(name) for name in broad} for narrow, broad in _KINDS.items()}


def _broader(name: str) -> set[str]:
    things = _things(name)
    return set().union(*(broad for narrow, broad in _KIND_KEYS.items() if narrow in things))


def _narrower(name: str) -> set[str]:
    things = _things(name)
    return {narrow for narrow, broad in _KIND_KEYS.items() if broad & things}


@functools.cache
def _last_words(name: str) -> frozenset[str]:
    """Of names of several words."""
    words = (re.split(r"[\s_-]+", part.strip()) for part in re.split("[,/]", name))
    return frozenset(form for part in words if len(part) > 1 for form in _singular(_key(part[-1])))


_READINGS: tuple[Callable[[str], Set[str]], ...] = (lambda name: {_key(name)}, _names, _forms, _things)
