"""Class folders: layouts, splits, sizes, known data sets, and what is said when one cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import pixels, png, quiet
from robustsynth.data import DATASETS
from robustsynth.data.load import READERS
from robustsynth.data.rows import Contents, Row, Source
from robustsynth.data.specs import IMAGENET_MEAN, IMAGENET_STD
from robustsynth.errors import UserError


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def write_classes(folder: Path, counts: dict[str, int], *, side: int = 8, channels: int = 3) -> None:
    for kind, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index}.png").write_bytes(png(pixels(100 * kind + index, side, channels)))


def test_class_folders_without_splits_are_all_train(tmp_path):
    write_classes(tmp_path / "pets", {"dog": 2, "cat": 3})
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / "pets" / "__MACOSX").mkdir()
    data = quiet(tmp_path / "pets")
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data) == 5
    assert data.labels.dtype == np.int64
    assert data.images.shape == (5, 8, 8, 3)
    assert data.images.dtype == np.uint8
    assert np.array_equal(data.images[3], pixels(0))  # the first dog, exactly
    assert (data.name, data.source, data.licence) == ("pets", "pets", "not stated")
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert len(quiet(tmp_path / "pets", "all")) == 5


def test_the_images_are_a_memory_map_that_cannot_be_written(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 1, "dog": 1})
    data = quiet(tmp_path / "pets")
    assert isinstance(data.images, np.memmap)
    for array in (data.images, data.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_test_of_a_folder_without_splits_is_refused_with_the_way_out(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"no split folders.*split='all'"):
        quiet(tmp_path / "pets", "test")


@pytest.mark.parametrize("there", ["test", "val", "validation"])
@pytest.mark.parametrize("asked", ["test", "validation", "val"])
def test_evaluation_splits_stand_in_for_each_other(tmp_path, there, asked):
    write_classes(tmp_path / "pets" / "train", {"ant": 1, "cat": 2, "dog": 1})
    write_classes(tmp_path / "pets" / there, {"cat": 1, "dog": 2})
    (tmp_path / "pets" / "notes").mkdir()
    data = quiet(tmp_path / "pets", asked)
    assert data.classes == ("ant", "cat", "dog")  # of all splits, so that labels agree between them
    assert data.labels.tolist() == [1, 2, 2]
    assert quiet(tmp_path / "pets").labels.tolist() == [0, 1, 1, 2]
    assert len(quiet(tmp_path / "pets", "all")) == 7


def test_a_test_folder_is_preferred_to_a_validation_folder(tmp_path):
    for name, count in (("train", 1), ("val", 2), ("test", 3)):
        write_classes(tmp_path / "pets" / name, {"cat": count, "dog": 1})
    assert len(quiet(tmp_path / "pets", "test")) == 4
    assert len(quiet(tmp_path / "pets", "validation")) == 3


def test_an_absent_split_names_those_that_exist(tmp_path):
    write_classes(tmp_path / "pets" / "train", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match="no split 'test'; it has: 'train'"):
        quiet(tmp_path / "pets", "test")


def test_a_class_called_train_is_a_class(tmp_path):
    write_classes(tmp_path / "vehicles", {"bus": 1, "train": 1})
    assert quiet(tmp_path / "vehicles").classes == ("bus", "train")


def test_images_may_lie_deeper_in_a_class_folder(tmp_path):
    write_classes(tmp_path / "pets" / "cat", {"images": 2})
    write_classes(tmp_path / "pets" / "dog", {"images": 1})
    assert quiet(tmp_path / "pets").labels.tolist() == [0, 0, 1]


def test_an_empty_class_folder_is_named(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 1, "dog": 1, "emu": 0})
    with pytest.raises(UserError, match=r"emu: expected the images of a class"):
        quiet(tmp_path / "pets")


def test_a_folder_without_data_says_what_is_understood(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"neither parquet files nor class folders.*ROOT/class"):
        quiet(tmp_path / "nothing")
    (tmp_path / "nothing" / "cat").mkdir()
    with pytest.raises(UserError, match=r"no images.*ROOT/class"):
        quiet(tmp_path / "nothing")


def test_one_class_is_not_enough(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 2})
    with pytest.raises(UserError, match=r"at least two classes, got 1 \(cat\)"):
        quiet(tmp_path / "pets")


@pytest.mark.parametrize("content", [b"", b"no image", png(pixels(0, 30))[:500]])
def test_a_damaged_file_is_named_and_leaves_no_cache(tmp_path, content):
    write_classes(tmp_path / "pets", {"cat": 2, "dog": 40})
    (tmp_path / "pets" / "dog" / "37.png").write_bytes(content)
    with pytest.raises(UserError, match=r"37\.png: expected an image"):
        quiet(tmp_path / "pets", image_size=8, channels=3)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_grey_images_stay_grey_unless_one_has_colour(tmp_path):
    write_classes(tmp_path / "digits", {"a": 40, "b": 1}, channels=1)
    data = quiet(tmp_path / "digits")
    assert data.images.shape == (41, 8, 8, 1)
    assert (data.mean, data.std) == ((0.5,), (0.5,))
    assert quiet(tmp_path / "digits", channels=3).images.shape == (41, 8, 8, 3)
    (tmp_path / "digits" / "b" / "colour.png").write_bytes(png(pixels(5)))
    assert quiet(tmp_path / "digits").images.shape == (42, 8, 8, 3)


def test_sizes_are_the_argument_or_a_usual_one(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 1}, side=80)
    write_classes(tmp_path / "pets", {"dog": 1}, side=70)
    assert quiet(tmp_path / "pets").images.shape[1:] == (64, 64, 3)
    assert quiet(tmp_path / "pets", image_size=20).images.shape[1:] == (20, 20, 3)


@pytest.mark.parametrize(("setting", "value"), [("image_size", 0), ("channels", 2)])
def test_impossible_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(UserError, match=str(value)):
        quiet(tmp_path, **{setting: value})


@pytest.mark.parametrize("spec", DATASETS.values(), ids=lambda spec: spec.name)
def test_a_known_data_set_is_recognised_whatever_its_folder_is_called(tmp_path, spec):
    write_classes(tmp_path / "x", dict.fromkeys(spec.classes, 1), side=spec.image_size, channels=spec.channels)
    data = quiet(tmp_path / "x", image_size=16)
    assert (data.name, data.mean, data.std, data.licence) == (spec.name, spec.mean, spec.std, spec.licence)
    assert data.source == "x"


@pytest.mark.parametrize("spec", DATASETS.values(), ids=lambda spec: spec.name)
def test_the_table_is_consistent(spec):
    assert DATASETS[spec.name] is spec
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert len(set(spec.classes)) == len(spec.classes) == 10
    assert set(spec.splits) == {"train", "test"}
    assert "/" in spec.hub_id


def test_other_images_with_the_same_class_names_are_not_taken_for_it(tmp_path):
    write_classes(tmp_path / "houses", dict.fromkeys("0123456789", 1), side=32, channels=3)
    data = quiet(tmp_path / "houses")
    assert data.name == "houses"
    assert data.mean == IMAGENET_MEAN
    assert data.images.shape[1:] == (32, 32, 3)


def test_a_reader_is_a_function_and_an_entry(tmp_path, monkeypatch):
    """A new layout: a text file that lists images and their classes."""

    def find_list(place, split, announce):
        if not isinstance(place, Path) or place.suffix != ".txt":
            return None
        lines = [line.split() for line in place.read_text().splitlines()]
        classes = tuple(sorted({kind for _, kind in lines}))
        rows = [Row(name, place.parent / name, classes.index(kind)) for name, kind in lines]
        return Source(place.name, ["list", lines], lambda: Contents(classes, len(rows), lambda: iter(rows)))

    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(pixels(index)))
    (tmp_path / "list.txt").write_text("0.png dog\n1.png cat\n2.png dog\n")
    with pytest.raises(UserError, match="expected a parquet file or a folder, got another file"):
        quiet(tmp_path / "list.txt")
    monkeypatch.setitem(READERS, "a list of images", find_list)
    data = quiet(tmp_path / "list.txt")
    assert (data.classes, data.labels.tolist(), data.name) == (("cat", "dog"), [1, 0, 1], "list.txt")
    assert quiet(f"only:dog,cat:{tmp_path / 'list.txt'}").labels.tolist() == [0, 1, 0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Expected .*a list of images"):
        quiet(tmp_path / "empty")
