"""Some classes of a data set as one of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conftest import pixels, png, quiet
from robustsynth.cli.train import command
from robustsynth.data import located
from robustsynth.data.load import describe_data, parse_subset
from robustsynth.data.rows import Contents, Row, Source
from robustsynth.data.specs import DATASETS
from robustsynth.errors import UnknownNameError, UserError

CLASSES = DATASETS["cifar10"].classes


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """Two images of each of CIFAR-10's classes, by which it is recognised."""
    root = tmp_path_factory.mktemp("made") / "cifar"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"{number}.png").write_bytes(png(pixels(10 * label + number, 32)))
    return root


def test_its_classes_are_labelled_in_the_order_given(cifar):
    data = quiet(f"only:horse,deer:{cifar}")
    assert (data.classes, data.labels.tolist()) == (("horse", "deer"), [1, 1, 0, 0])
    expected = [pixels(10 * CLASSES.index(name) + number, 32) for name in ("deer", "horse") for number in range(2)]
    assert np.array_equal(data.images, np.stack(expected))


def test_what_is_known_of_the_whole_holds_for_the_part_but_the_name(cifar):
    data = quiet(f"only:HORSE, deer:{cifar}")
    whole = quiet(cifar)
    assert (data.mean, data.std, data.licence) == (whole.mean, whole.std, whole.licence)
    assert (whole.name, data.name) == ("cifar10", "cifar (HORSE, deer)")
    assert data.classes == ("horse", "deer"), "called as the data set calls them"
    described, there = describe_data(f"only:HORSE, deer:{cifar}")
    assert there
    assert (described.name, described.classes, len(described)) == (data.name, data.classes, 4)


def test_parts_are_kept_apart_and_found_again(cifar, monkeypatch):
    assert quiet(f"only:cat,dog:{cifar}").classes == ("cat", "dog")
    assert quiet(f"only:dog,cat:{cifar}").classes == ("dog", "cat")
    assert len(quiet(f"only:dog,cat,ship:{cifar}")) == 6
    monkeypatch.chdir(cifar.parent)
    assert located("only:dog, cat:cifar") == f"only:dog,cat:{cifar.resolve()}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("only:cat,dog", "expected classes and a data set"),
        ("only:cat,dog:", "expected classes and a data set"),
        ("only:cat:somewhere", "two different classes or more"),
        ("only:cat,Cat:somewhere", "two different classes or more"),
        ("only:cat,,dog:somewhere", "two different classes or more"),
    ],
)
def test_what_makes_no_part_is_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        quiet(text)


def test_unknown_classes_and_data_sets_are_named(cifar):
    with pytest.raises(UnknownNameError, match=r"unknown class 'zebra'.*horse"):
        quiet(f"only:horse,zebra:{cifar}")
    with pytest.raises(UnknownNameError, match="unknown data set 'nowhere'"):
        quiet("only:horse,deer:nowhere")


@pytest.mark.parametrize("text", ["only:horse,deer:somewhere", "restricted-imagenet:somewhere"])
def test_a_part_is_not_streamed(text, tmp_path):
    result = CliRunner().invoke(command, ["--data", text, "--out", str(tmp_path / "run"), "--stream"])
    assert "expected the whole of a data set to stream" in str(result.exception)
    assert isinstance(result.exception, UserError)


@given(
    labels=st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=20),
    chosen=st.lists(st.integers(0, 4), min_size=2, max_size=5, unique=True),
)
def test_every_row_of_the_classes_comes_once_and_in_order(labels, chosen):
    names = ("a", "b", "c", "d", "e")
    rows = [Row(f"row {i}", b"", label) for i, label in enumerate(labels)]
    whole = Source("made", ["made"], lambda: Contents(names, len(rows), lambda: iter(rows)))
    classes = tuple(names[i] for i in chosen)
    contents = parse_subset(f"only:{','.join(classes)}:made")[2](whole).open()
    kept = list(contents.rows())
    assert contents.count == len(kept)
    assert [row.where for row in kept] == [f"row {i}" for i, label in enumerate(labels) if label in chosen]
    assert all(names[labels[int(row.where[4:])]] == classes[row.label] for row in kept if row.label is not None)
