"""Two domains: the published layout, a folder each, and the preset that trains on them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import pixels, png, quiet
from robustsynth.cli import main
from robustsynth.data import located
from robustsynth.data.folders import domain_names
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.training.settings import resolve_train_settings


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def write_images(folder: Path, count: int, *, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(png(pixels(seed + index)))
    return folder


def write_halves(root: Path, **counts: int) -> Path:
    for seed, (name, count) in enumerate(counts.items()):
        write_images(root / name, count, seed=100 * seed)
    return root


# ROOT/trainA, trainB, testA, testB


@pytest.mark.parametrize(
    ("split", "labels"),
    [("train", [0, 0, 0, 1, 1]), ("test", [0, 1, 1]), ("validation", [0, 1, 1]), ("all", [0, 0, 0, 1, 1, 0, 1, 1])],
)
def test_the_published_layout(tmp_path, split, labels):
    root = write_halves(tmp_path / "horse2zebra", trainA=3, trainB=2, testA=1, testB=2)
    data = quiet(root, split)
    assert data.classes == ("horse", "zebra")
    assert data.labels.tolist() == labels
    assert (data.name, data.source) == ("horse2zebra", "horse2zebra")
    first = {"train": 0, "all": 0}.get(split, 200)  # the seed of the split's first image
    assert np.array_equal(data.images[0], pixels(first))


def test_other_folders_beside_the_halves_are_no_classes(tmp_path):
    root = write_halves(tmp_path / "mine", trainA=1, trainB=1, results=2)
    data = quiet(root)
    assert data.classes == ("A", "B")
    assert len(data) == 2


def test_split_folders_with_classes_go_first(tmp_path):
    root = write_halves(tmp_path / "pets", trainA=1, trainB=1)
    for name in ("cat", "dog"):
        write_images(root / "train" / name, 1)
    assert quiet(root).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "halves"),
    [
        ("horse2zebra", ("horse", "zebra")),
        ("apple2orange", ("apple", "orange")),
        ("summer2winter_yosemite", ("summer", "winter")),
        ("iphone2dslr_flower", ("iphone", "dslr")),
        ("monet2photo", ("monet", "photo")),
        ("maps", ("A", "B")),
        ("part2", ("A", "B")),
        ("2zebra", ("A", "B")),
        ("cat2cat", ("A", "B")),
        ("a2b2c", ("A", "B")),
        ("run_2024", ("A", "B")),
    ],
)
def test_the_domains_names(name, halves):
    assert domain_names(name) == halves


@pytest.mark.parametrize(
    ("counts", "split", "says"),
    [
        ({"trainA": 2}, "train", r"expected trainA and trainB.*got only trainA.*into trainB"),
        ({"trainB": 2}, "train", r"expected trainA and trainB.*got only trainB.*into trainA"),
        ({"trainA": 2, "trainB": 0}, "train", r"trainB: expected the images of a class, got none"),
        ({"trainA": 0, "trainB": 0}, "train", r"trainA: expected the images of a class, got none"),
        ({"trainA": 1, "trainB": 1}, "test", r"has no split 'test'; it has: 'train'"),
        ({"testA": 1, "testB": 1}, "train", r"has no split 'train'; it has: 'test'"),
        ({"trainA": 1, "trainB": 1, "testB": 1}, "test", r"expected testA and testB.*got only testB"),
    ],
)
def test_a_missing_or_empty_half_is_named(tmp_path, counts, split, says):
    root = write_halves(tmp_path / "horse2zebra", **counts)
    with pytest.raises(UserError, match=says):
        quiet(root, split)


def test_a_half_that_is_not_asked_for_may_be_missing(tmp_path):
    root = write_halves(tmp_path / "horse2zebra", trainA=1, trainB=1, testA=1)
    assert len(quiet(root)) == 2


# Two folders


@pytest.mark.parametrize("how", ["list", "commas", "spaces", "home"])
def test_two_folders_are_two_classes(tmp_path, monkeypatch, how):
    zebras, horses = write_images(tmp_path / "zebras", 2, seed=100), write_images(tmp_path / "horses", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = {
        "list": [str(zebras), horses],
        "commas": f"{zebras},{horses}",
        "spaces": f"{zebras}, {horses}",
        "home": "~/zebras,~/horses",
    }[how]
    data = quiet(asked)
    assert data.classes == ("zebras", "horses")  # in the order given
    assert data.labels.tolist() == [0, 0, 1]
    assert np.array_equal(data.images[0], pixels(100))
    assert data.name == data.source == "zebras,horses"
    assert len(quiet(asked, "all")) == 3
    with pytest.raises(UserError, match=r"zebras has no split 'test'.*split='all'.*zebras/train"):
        quiet(asked, "test")


def test_the_order_of_two_folders_is_remembered(tmp_path):
    a, b = write_images(tmp_path / "a", 1), write_images(tmp_path / "b", 1, seed=100)
    assert np.array_equal(quiet([a, b]).images[0], quiet([b, a]).images[1])
    assert quiet([b, a]).classes == ("b", "a")


def test_three_folders_are_three_classes(tmp_path):
    folders = [write_images(tmp_path / name, 1) for name in ("horses", "zebras", "donkeys")]
    assert quiet(folders).labels.tolist() == [0, 1, 2]


def test_folders_may_hold_their_splits(tmp_path):
    for name in ("horses", "zebras"):
        write_images(tmp_path / name / "train", 2)
        write_images(tmp_path / name / "test", 1)
    asked = f"{tmp_path / 'horses'},{tmp_path / 'zebras'}"
    assert quiet(asked).labels.tolist() == [0, 0, 1, 1]
    assert quiet(asked, "test").labels.tolist() == [0, 1]
    assert len(quiet(asked, "all")) == 6
    one_level_down = [tmp_path / "horses" / "train", tmp_path / "zebras" / "train"]
    assert quiet(one_level_down).classes == ("horses", "zebras")


def test_a_folder_whose_name_has_a_comma_goes_first(tmp_path, monkeypatch):
    for name in ("cats,dogs/cat", "cats,dogs/dog", "cats", "dogs", "a,b"):
        write_images(tmp_path / name, 1)
    monkeypatch.chdir(tmp_path)
    assert quiet("cats,dogs").classes == ("cat", "dog")
    assert quiet("a,b,dogs").classes == ("a,b", "dogs")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("here,nowhere", r"no folder 'nowhere'"),
        ("here,", r"no folder ''"),
        ("here,file.txt", r"no folder 'file.txt'"),
        ("here,here", r"lie apart"),
        ("here,here/inside", r"lie apart.*inside lies in"),
        ("here,empty", r"empty: expected the images of a class, got none"),
        (["here"], r"two folders or more.*got 1"),
        ([], r"two folders or more.*got 0"),
        (["here", "nowhere"], r"there is no folder nowhere"),
    ],
)
def test_what_is_no_two_folders_is_named(tmp_path, monkeypatch, asked, says):
    write_images(tmp_path / "here", 1)
    write_images(tmp_path / "here" / "inside", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        quiet(asked)


def test_a_path_with_a_comma_is_one_path(tmp_path):
    with pytest.raises(UnknownNameError):
        quiet(tmp_path / "a,b")


def test_a_changed_folder_is_decoded_anew(tmp_path):
    folders = [write_images(tmp_path / name, 1) for name in ("horses", "zebras")]
    quiet(folders)
    (folders[1] / "new.png").write_bytes(png(pixels(7)))
    assert quiet(folders).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("text", ["cifar10", "owner/name"])
def test_names_are_no_places(text):
    assert located(text) == text


def test_places_are_found_from_anywhere(tmp_path, monkeypatch):
    for name in ("old,new/horses", "old,new/zebras"):
        write_images(tmp_path / name, 1)
    monkeypatch.chdir(tmp_path / "old,new")
    both, one = located("horses,zebras"), located("horses")
    monkeypatch.chdir(os.sep)
    assert quiet(both).classes == ("horses", "zebras")
    assert one == str(tmp_path / "old,new" / "horses")


# Training on them


def test_the_preset_is_the_papers_row() -> None:
    """FACTS.md section 2, row Horse↔Zebra (Santurkar et al. 2019, Tables 3 and 4)."""
    resolved = dataclasses.asdict(resolve_train_settings("two-domain"))
    table = {
        "architecture": "resnet50",
        "width": None,
        "image_size": 224,
        "norm": "l2",
        "eps": 5.0,
        "attack_steps": 7,
        "attack_step_size": 0.9,
        "epochs": 350,
        "learning_rate": 0.01,
        "batch_size": 64,
        "schedule": "step",
        "milestones": (50, 100),
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        # What the paper does not speak of is not done.
        "warmup": 0.0,
        "eps_warmup": 0.0,
        "average": 0.0,
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
    }
    assert {name: resolved[name] for name in table} == table


def test_the_command_trains_on_two_folders(tmp_path, monkeypatch):
    for seed, name in enumerate(("horses", "zebras")):
        write_images(tmp_path / name, 12, seed=100 * seed)
    monkeypatch.chdir(tmp_path)
    small = "--architecture small-cnn --width 4 --crop none --epochs 1 --batch-size 8 --held-out 4 --attack-steps 1"
    arguments = ["train", "--data", "horses,zebras", "--out", "out", "--precision", "float32", *small.split()]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("out/card.json").read_text())["classes"] == ["horses", "zebras"]
    assert json.loads(Path("out/run.json").read_text())["data"] == f"{tmp_path}/horses,{tmp_path}/zebras"
