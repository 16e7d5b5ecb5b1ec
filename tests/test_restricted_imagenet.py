"""ImageNet as class folders, restricted ImageNet, and the domains' names of the published two-domain sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import pixels, png, quiet
from robustsynth.data import located
from robustsynth.data.load import restricted_imagenet
from robustsynth.data.rows import Contents, Row, Source
from robustsynth.data.specs import RESTRICTED_IMAGENET
from robustsynth.errors import UserError

NUMBERS = [f"n{10_000_000 + 7 * index}" for index in range(1000)]
"""Names like WordNet's numbers, in order."""


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """1,000 class folders with an image each for training, and in the layout of ILSVRC's for validation."""
    root = tmp_path_factory.mktemp("made") / "ilsvrc"
    for index, number in enumerate(NUMBERS):
        folder = root / "train" / number
        folder.mkdir(parents=True)
        (folder / f"{number}_1.JPEG").write_bytes(png(np.full((4, 4, 3), index % 251, np.uint8)))
    # As it is published: validation images lie in one folder, without classes.
    (root / "val").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(png(pixels(0, 4)))
    return root


def source_of(classes, labels=()) -> Source:
    rows = [Row(f"row {i}", b"", label) for i, label in enumerate(labels)]
    return Source("made", ["made"], lambda: Contents(tuple(classes), len(rows), lambda: iter(rows)))


def test_imagenets_class_folders_are_a_thousand_classes(imagenet):
    data = quiet(imagenet)
    assert data.classes == tuple(NUMBERS)
    assert data.labels.tolist() == list(range(1000))
    with pytest.raises(UserError, match="no split 'test'; it has: 'train'"):
        quiet(imagenet, "test")


def test_restricted_imagenet_is_nine_ranges_of_it(imagenet):
    data = quiet(f"restricted-imagenet:{imagenet}")
    assert data.classes == ("Dog", "Cat", "Frog", "Turtle", "Bird", "Primate", "Fish", "Crab", "Insect")
    assert (data.name, data.source) == ("restricted-imagenet", "restricted-imagenet")
    # FACTS: first and last class index, both included.
    counts = np.bincount(data.labels).tolist()
    assert counts == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    shown = [(int(image[0, 0, 0]), label) for image, label in zip(data.images, data.labels.tolist(), strict=True)]
    ranges = [(151, 268), (281, 285), (30, 32), (33, 37), (80, 100), (365, 382), (389, 397), (118, 121), (300, 319)]
    expected = {(index % 251, label) for label, (a, b) in enumerate(ranges) for index in range(a, b + 1)}
    assert set(shown) == expected


def test_both_are_kept_apart_and_found_again(imagenet, monkeypatch):
    assert len(quiet(f"restricted-imagenet:{imagenet}")) == 203
    assert len(quiet(imagenet)) == 1000
    assert len(quiet(f"restricted-imagenet:{imagenet}")) == 203
    monkeypatch.chdir(imagenet.parent)
    assert located("restricted-imagenet:ilsvrc") == f"restricted-imagenet:{imagenet.resolve()}"
    assert len(quiet("restricted-imagenet:ilsvrc")) == 203


def test_without_split_folders_all_of_it_is_for_training(imagenet):
    assert len(quiet(f"restricted-imagenet:{imagenet / 'train'}")) == 203


@pytest.mark.parametrize("count", [9, 999, 1001])
def test_another_number_of_classes_is_refused(count):
    names = [f"n{10_000_000 + index}" for index in range(count)]
    with pytest.raises(UserError, match=rf"expected ImageNet's 1000 classes.*got {count}\. Give the whole"):
        restricted_imagenet(source_of(names)).open()


def test_a_folder_with_another_number_of_classes_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(png(pixels(0)))
    with pytest.raises(UserError, match=r"pets: expected ImageNet's 1000 classes.*got 2"):
        quiet(f"restricted-imagenet:{tmp_path / 'pets'}")
    with pytest.raises(UserError, match="unknown data set 'nowhere'"):
        quiet("restricted-imagenet:nowhere")


WORDS = ["tench, Tinca tinca", *(f"animal {i}" for i in range(280)), "tabby, tabby cat", *map(str, range(718))]


@pytest.mark.parametrize(
    "classes", [NUMBERS, [str(i) for i in range(1000)], WORDS], ids=["WordNet's", "bare", "in words"]
)
def test_orders_that_are_imagenets(classes):
    contents = restricted_imagenet(source_of(classes, [150, 151, 397, 398, None, 30])).open()
    assert contents.count == 3
    assert [row.label for row in contents.rows()] == [0, 6, 2]
    assert [row.where for row in contents.rows()] == ["row 1", "row 2", "row 5"]


@pytest.mark.parametrize(
    "classes",
    [sorted(str(i) for i in range(1000)), [*NUMBERS[1:], NUMBERS[0]], sorted(WORDS), [*NUMBERS[:-1], "zebra"]],
    ids=["sorted as text", "WordNet's out of order", "sorted by name", "one by name"],
)
def test_other_orders_are_refused_rather_than_mislabelled(classes):
    with pytest.raises(UserError, match=r"expected ImageNet's classes in its own order.*Rename the class folders"):
        restricted_imagenet(source_of(classes)).open()


def test_a_class_is_of_one_kind_or_of_none():
    rows = list(restricted_imagenet(source_of(NUMBERS, range(1000))).open().rows())
    found = {int(row.where.removeprefix("row ")): row.label for row in rows}
    assert len(found) == len(rows)
    for index in range(1000):
        ranges = enumerate(RESTRICTED_IMAGENET.values())
        kinds = [label for label, (first, last) in ranges if first <= index <= last]
        assert len(kinds) <= 1, "the ranges do not overlap"
        assert found.get(index) == (kinds[0] if kinds else None)


# ---- two domains --------------------------------------------------------------------------------------------------


def write_halves(root: Path) -> Path:
    for seed, name in enumerate(("trainA", "trainB", "testA", "testB")):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(png(pixels(seed)))
    return root


@pytest.mark.parametrize(
    ("name", "domains"),
    [
        ("horse2zebra", ("horse", "zebra")),
        ("apple2orange", ("apple", "orange")),
        ("summer2winter_yosemite", ("summer", "winter")),
    ],
)
def test_published_sets_say_their_domains(tmp_path, name, domains):
    root = write_halves(tmp_path / name)
    assert quiet(root).classes == domains
    assert quiet(root, "test").classes == domains
    assert quiet(f"{root}/trainA,{root}/trainB").classes == domains
    assert quiet([root / "testB", root / "testA"]).classes == domains[::-1], "labels in the order given"
    assert np.array_equal(quiet([root / "testB", root / "testA"]).images[0], pixels(3))


def test_other_sets_keep_the_names_that_they_have(tmp_path):
    root = write_halves(tmp_path / "mine")
    assert quiet(root).classes == ("A", "B")
    assert quiet([root / "trainA", root / "trainB"]).classes == ("trainA", "trainB")
    known = write_halves(tmp_path / "horse2zebra")
    # Not the two halves of one split: the folders' own names tell them apart.
    assert quiet([known / "trainA", known / "testA"]).classes == ("trainA", "testA")
    assert quiet([known / "trainA", root / "trainB"]).classes == ("trainA", "trainB")
