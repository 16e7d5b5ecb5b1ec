"""What a name from another vocabulary means to a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustsynth.data import DATASETS
from robustsynth.names import matching_class, name_key, name_position

CIFAR10, IMAGENETTE = DATASETS["cifar10"].classes, DATASETS["imagenette"].classes
RESTRICTED = ("Dog", "Cat", "Frog", "Turtle", "Bird", "Primate", "Fish", "Crab", "Insect")
"""Santurkar et al. 2019, Table 2."""
SKETCHES = ("bird", "cat", "crab", "dog", "dog2", "fish", "frog", "insect", "primate", "turtle")
TRUCKS = ("garbage truck, dustcart", "tow truck, tow car, wrecker", "trailer truck, tractor trailer")


@pytest.mark.parametrize(
    ("name", "classes", "meant"),
    [
        ("cat", CIFAR10, "cat"),
        ("CAT", CIFAR10, "cat"),
        ("bird", RESTRICTED, "Bird"),
        ("Bird", CIFAR10, "bird"),
        ("golf_ball", IMAGENETTE, "golf ball"),
        ("Golf-Ball", IMAGENETTE, "golf ball"),
        ("chainsaw", IMAGENETTE, "chain saw"),
        ("dogs", CIFAR10, "dog"),
        ("churches", IMAGENETTE, "church"),
        ("butterflies", ("butterfly", "bee"), "butterfly"),
        ("horse", ("horses", "zebras"), "horses"),
        ("dog2", RESTRICTED, "Dog"),
        ("dog_2", CIFAR10, "dog"),
        ("tench, Tinca tinca", IMAGENETTE, "tench"),
        ("tench", ("tench, Tinca tinca", "goldfish, Carassius auratus"), "tench, Tinca tinca"),
        ("T-shirt", ("T-shirt/top", "Trouser"), "T-shirt/top"),
        ("dog", IMAGENETTE, "English springer"),
        ("dog2", IMAGENETTE, "English springer"),
        ("dogs", IMAGENETTE, "English springer"),
        ("truck", IMAGENETTE, "garbage truck"),
        ("lorry", IMAGENETTE, "garbage truck"),
        ("fish", IMAGENETTE, "tench"),
        ("n01440764", IMAGENETTE, "tench"),
        ("n02102040", CIFAR10, "dog"),
        ("English springer, English springer spaniel", IMAGENETTE, "English springer"),
        ("English springer", CIFAR10, "dog"),
        ("garbage truck", CIFAR10, "truck"),
        ("tench", RESTRICTED, "Fish"),
        ("car", CIFAR10, "automobile"),
        ("plane", CIFAR10, "airplane"),
        ("truck", TRUCKS[:1], TRUCKS[0]),
        ("3", DATASETS["mnist"].classes, "3"),
    ],
)
def test_what_a_name_means(name, classes, meant):
    assert classes[matching_class(name, classes)] == meant


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cat", IMAGENETTE),
        ("horse", IMAGENETTE),
        ("horse", RESTRICTED),
        ("catfish", CIFAR10),  # Neither a cat
        ("sea horse", CIFAR10),  # … nor a horse,
        ("dog", ("hot dog", "pizza")),  # … nor a dog.
        ("hot dog", CIFAR10),
        ("dog", ("hot dog", "English springer")),  # Nobody knows which.
        ("puppy", IMAGENETTE),  # Another dog than a springer, perhaps.
        ("truck", TRUCKS),
        ("dog", ("Dog", "DOG")),
        ("dog3", ("dog1", "dog2")),
        ("12", DATASETS["mnist"].classes),
        ("dog3", DATASETS["mnist"].classes),
        ("gas", ("ga", "gb")),
        ("", CIFAR10),
        (",", CIFAR10),
    ],
)
def test_nothing_is_guessed(name, classes):
    assert matching_class(name, classes) is None


def test_the_name_as_it_is_written_goes_first():
    assert matching_class("Dog", ("dog", "Dog")) == 1
    assert matching_class("dogs", ("dog", "dogs")) == 1
    assert matching_class("truck", ("garbage truck", "truck")) == 1
    assert matching_class("dog2", ("dog", "dog2")) == 1


def class_map(source, target) -> dict[str, str]:
    """Each name of one vocabulary that means one of another, and which."""
    found = {name: matching_class(name, target) for name in source}
    return {name: target[place] for name, place in found.items() if place is not None}


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (CIFAR10, RESTRICTED, {"bird": "Bird", "cat": "Cat", "dog": "Dog", "frog": "Frog"}),
        (RESTRICTED, CIFAR10, {"Bird": "bird", "Cat": "cat", "Dog": "dog", "Frog": "frog"}),
        (CIFAR10, IMAGENETTE, {"dog": "English springer", "truck": "garbage truck"}),
        (IMAGENETTE, CIFAR10, {"English springer": "dog", "garbage truck": "truck"}),
        (IMAGENETTE, RESTRICTED, {"English springer": "Dog", "tench": "Fish"}),
        (SKETCHES, IMAGENETTE, {"dog": "English springer", "dog2": "English springer", "fish": "tench"}),
        (SKETCHES, CIFAR10, {"bird": "bird", "cat": "cat", "dog": "dog", "dog2": "dog", "frog": "frog"}),
        (SKETCHES, RESTRICTED, {name: name.removesuffix("2").capitalize() for name in SKETCHES}),
        (DATASETS["mnist"].classes, IMAGENETTE, {}),
    ],
)
def test_whole_vocabularies(source, target, expected):
    assert class_map(source, target) == expected


@pytest.mark.parametrize("classes", [CIFAR10, IMAGENETTE, RESTRICTED, DATASETS["mnist"].classes])
def test_every_class_means_itself(classes):
    assert class_map(classes, classes) == {name: name for name in classes}


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=5, unique=True))
def test_any_text_is_a_position_or_nothing(name, classes):
    found = matching_class(name, classes)
    assert found is None or 0 <= found < len(classes)
    if name in classes:
        assert classes[found] == name


def test_a_cards_aliases_are_taken_in_place_of_the_bundled_ones():
    aliases = {"English springer": ["Spürhund", "hound"], "tench": ["hound"]}
    assert matching_class("SPU\u0308RHUNDE", IMAGENETTE, {"English springer": ["Spürhunde"]}) == 1
    assert matching_class("spürhund2", IMAGENETTE, aliases) == 1
    assert matching_class("hounds", IMAGENETTE, aliases) is None, "of two classes"
    assert matching_class("dog", IMAGENETTE, aliases) is None


def test_names_are_compared_in_one_way():
    assert name_key(" E\u0301te\u0301 ") == name_key("ÉTÉ") == "été"
    assert name_key("STRASSE") == name_key("straße")
    assert name_position("Ship", ("ship", "Ship")) == 1
    assert name_position(" SHIP ", ("cat", "ship")) == 1
    assert name_position("shi", ("cat", "ship")) is None
