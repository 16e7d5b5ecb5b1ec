"""Numbered images in a folder, and `robustsynth generate` into it: complete at every moment, and resumed where it
stopped."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from robustsynth import run_folder
from robustsynth.cli import main
from robustsynth.cli.generate import spread_labels
from robustsynth.cli.progress import Animations
from robustsynth.errors import UserError
from robustsynth.images import png_text, read_image, to_uint8
from robustsynth.models.store import load_model, save_model
from robustsynth.run_folder import NpzSamples, PngSamples
from robustsynth.sheet import GAP, MARGIN
from robustsynth.tasks.functions import generate
from robustsynth.tasks.generate import GENERATE

SHAPE = (4, 4, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8)
LABELS = np.arange(10) % 3
NAMES = [f"{i:06d}-{('cat', 'ship', 't-shirt')[label]}" for i, label in enumerate(LABELS)]
TEXTS = [{"number": str(i)} for i in range(10)]
KINDS = {"png": PngSamples, "npz": NpzSamples}
FIXED = ("--precision", "float32", "--batch-size", "2")

FIVE = ["000000-cat", "000001-cat", "000002-ship", "000003-ship", "000004-t-shirt"]
"""What five images of the tiny model are called."""


def draw(model, out, *arguments: object, fixed: tuple[str, ...] = FIXED, code: int = 0) -> str:
    """Draw five images of the tiny model; what the command says, in one line a message."""
    line = ["generate", "--model", model, "--out", out, "--num", "5", "--device", "cpu", *fixed, *arguments]
    result = CliRunner().invoke(main, [str(a) for a in line], env={"COLUMNS": "2000"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def record_of(out) -> dict:
    return json.loads((out / "settings.json").read_text(encoding="utf-8"))


def content(out) -> np.ndarray:
    if (out / "samples.npz").exists():
        with np.load(out / "samples.npz") as opened:
            return opened["arr_0"]
    return np.stack([read_image(p).pixels for p in sorted(out.glob("0*.png"))])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_samples_go_in_by_parts(tmp_path, kind):
    out = tmp_path / "out"
    samples = kind(out, NAMES)
    assert samples.missing() == list(range(10))
    assert not samples.present()
    for chosen in ([0, 1, 2], [7, 9], []):
        write(samples, chosen)
    assert samples.present()
    assert kind(out, NAMES).missing() == [3, 4, 5, 6, 8], "another process sees the same"
    write(kind(out, NAMES), [3, 4, 5, 6, 8])
    samples.finish()
    samples.finish()
    assert samples.missing() == []
    assert np.array_equal(content(out), IMAGES)
    assert sorted(samples.present()) == sorted(os.listdir(out)), "all that it wrote is named, and so can be replaced"


def write(samples, chosen) -> None:
    chosen = list(chosen)
    samples.write(chosen, IMAGES[chosen], LABELS[chosen], [TEXTS[i] for i in chosen])


def test_a_file_has_its_class_in_its_name_and_its_text_in_it(tmp_path):
    write(PngSamples(tmp_path, NAMES), [4])
    assert os.listdir(tmp_path) == ["000004-ship.png"]
    assert png_text(tmp_path / "000004-ship.png") == {"number": "4"}


def test_npz_files_are_plain_arrays(tmp_path):
    samples = NpzSamples(tmp_path, NAMES)
    write(samples, range(10))
    samples.finish()
    assert os.listdir(tmp_path) == ["samples.npz"]
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as opened:
        assert opened.files == ["arr_0", "arr_1"]
        assert opened["arr_0"].dtype == np.uint8
        assert np.array_equal(opened["arr_0"], IMAGES)
        assert np.array_equal(opened["arr_1"], LABELS)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system takes no blocks ahead")
def test_a_disk_without_room_for_all_is_found_before_the_first(tmp_path, monkeypatch):
    """A mapped file with holes would kill the process when the disk fills."""
    monkeypatch.setattr(run_folder.os, "posix_fallocate", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(NpzSamples(tmp_path, NAMES), [0])
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    samples = NpzSamples(tmp_path, NAMES)
    write(samples, range(10))
    samples.finish()
    assert np.array_equal(content(tmp_path), IMAGES)


def test_an_unfinished_array_takes_its_room(tmp_path):
    write(NpzSamples(tmp_path, [f"{i:06d}" for i in range(5000)]), [0])
    assert (tmp_path / "samples-images.partial.npy").stat().st_blocks * 512 >= 5000 * 48


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_full_disk_damages_nothing_written(tmp_path, monkeypatch, kind):
    samples = kind(tmp_path, NAMES)
    write(samples, [0, 1])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(samples, [2, 3])
    monkeypatch.undo()
    again = kind(tmp_path, NAMES)
    assert again.missing() == list(range(2, 10))
    write(again, range(2, 10))
    again.finish()
    assert np.array_equal(content(tmp_path), IMAGES)


# ---- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "num", "expected"),
    [([3, 8], 5, [3, 3, 3, 8, 8]), ([1], 2, [1, 1]), ([2, 0, 1], 2, [2, 0]), ([5, 4], 4, [5, 5, 4, 4])],
)
def test_images_are_spread_evenly(classes, num, expected):
    assert spread_labels(classes, num).tolist() == expected


@pytest.mark.parametrize("num", [0, -3])
def test_no_images_are_no_job(num):
    with pytest.raises(UserError, match=f"1 or more images, got {num}"):
        spread_labels([0], num)


@pytest.mark.parametrize("file_format", KINDS)
def test_the_command_writes_what_generate_draws(tiny, tiny_folder, tmp_path, file_format):
    draw(tiny_folder, tmp_path, "--seed", 5, "--format", file_format)
    expected = to_uint8(generate(tiny, [0, 0, 1, 1, 2], seed=5, precision="float32", batch_size=2))
    assert np.array_equal(content(tmp_path), expected)
    files = ["grid.png", *(f"{name}.png" for name in FIVE)] if file_format == "png" else ["samples.npz"]
    assert sorted(os.listdir(tmp_path)) == sorted(["settings.json", *files])


def test_settings_say_all_that_a_repetition_needs(tiny, tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--seed", 5)
    record = record_of(tmp_path)
    assert record["task"] == "generate"
    assert record["seed"] == 5
    assert record["num"] == 5
    assert record["classes"] == ["cat", "ship", "t-shirt"]
    assert record["labels"] == ["cat", "cat", "ship", "ship", "t-shirt"]
    assert record["settings"] == dataclasses.asdict(GENERATE.resolve(tiny))
    assert record["execution"] == {"precision": "float32", "batch_size": 2, "measured": False}
    assert record["model"] == {"name": "tiny", "sha256": tiny.card.sha256["model.safetensors"]}
    assert record["versions"]["torch"] == torch.__version__
    assert "threads" in record["machine"]


def test_what_was_measured_is_written_down_and_kept(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, fixed=())
    execution = record_of(tmp_path)["execution"]
    assert execution["measured"] is True
    assert execution["precision"] in ("float32", "bfloat16")
    assert execution["batch_size"] >= 1


def test_each_png_says_what_it_is(tiny, tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--seed", 5)
    text = png_text(tmp_path / f"{FIVE[3]}.png")
    assert text["Software"].startswith("robustsynth ")
    told = json.loads(text["robustsynth"])
    assert (told["task"], told["class"], told["number"], told["seed"]) == ("generate", "ship", 3, 5)
    assert told["model"]["sha256"] == tiny.card.sha256["model.safetensors"]
    assert told["settings"] == dataclasses.asdict(GENERATE.resolve(tiny))


def test_the_grid_has_a_row_for_each_class(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path)
    sheet = read_image(tmp_path / "grid.png").pixels
    scale, step = 96 // 16, 96 + GAP
    first = sheet.shape[1] - MARGIN - 2 * step + GAP  # the classes' names stand before the images
    assert sheet.shape[0] == 3 * step - GAP + 2 * MARGIN
    for row, (left, right) in enumerate([(0, 1), (2, 3), (4, None)]):
        for column, index in enumerate((left, right)):
            top, start = MARGIN + row * step, first + column * step
            tile = sheet[top : top + 16 * scale : scale, start : start + 16 * scale : scale]
            if index is None:
                assert bool((tile == 255).all()), "a class with an image fewer leaves white"
            else:
                assert np.array_equal(tile, read_image(tmp_path / f"{FIVE[index]}.png").pixels)


def test_grids_of_grey_images(digits_folder, tmp_path):
    draw(digits_folder, tmp_path, "--classes", "3,8", "--num", "2")
    with Image.open(tmp_path / "000001-8.png") as opened:
        assert (opened.mode, opened.size) == ("L", (28, 28))
    assert read_image(tmp_path / "grid.png").pixels.shape[0] > 28


class Killed(BaseException):
    pass


@pytest.fixture
def at_step(monkeypatch):
    """Do something at a step: called with the indices of the batch and the step, before anything is kept of it."""

    def install(act) -> None:
        plain = Animations.add

        def add(self, progress) -> None:
            act(progress.indices, progress.step)
            plain(self, progress)

        monkeypatch.setattr(Animations, "add", add)

    return install


@pytest.mark.parametrize("stop", [(0, 1), (2, 0), (2, 3), (4, 2)])
@pytest.mark.parametrize("file_format", KINDS)
def test_a_killed_run_goes_on(tiny_folder, tmp_path, file_format, stop, at_step, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    draw(tiny_folder, whole, "--format", file_format)

    def kill(indices, step):
        if (indices[0], step) == stop:
            raise Killed

    at_step(kill)
    with pytest.raises(Killed):
        draw(tiny_folder, parts, "--format", file_format)
    monkeypatch.undo()
    drawn = []
    at_step(lambda indices, step: drawn.extend(indices) if step == 0 else None)
    # Precision and batch size are not said again: the folder knows them.
    said = draw(tiny_folder, parts, "--format", file_format, fixed=())
    assert (f"{stop[0]} of 5 images are there already" in said) == (stop[0] > 0), "whole batches are kept"
    assert "float32, 2 images a batch" in said
    assert sorted(drawn) == list(range(stop[0], 5)), "nothing is drawn twice"
    assert np.array_equal(content(parts), content(whole))
    if file_format == "png":
        for name in os.listdir(whole):
            if name.endswith(".png"):
                assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("file_format", KINDS)
def test_a_finished_folder_draws_nothing(tiny_folder, tmp_path, file_format, at_step):
    draw(tiny_folder, tmp_path, "--format", file_format)
    before = content(tmp_path)
    at_step(lambda *_: pytest.fail("it drew again"))
    assert "5 of 5 images are there already" in draw(tiny_folder, tmp_path, "--format", file_format)
    assert np.array_equal(content(tmp_path), before)


OTHERS = {
    "seed": ("--seed", 1),
    "num": ("--num", 6),
    "classes": ("--classes", "cat,ship"),
    "format": ("--format", "npz"),
    "settings": ("--eps", "1.0"),
}


@pytest.mark.parametrize(("name", "other"), OTHERS.items(), ids=OTHERS)
def test_other_settings_are_not_mixed_in(tiny_folder, tmp_path, name, other):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    draw(tiny_folder, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    said = draw(tiny_folder, out, *other, code=2)
    assert re.search(rf"other ones \(.*{name}.*\); choose another --out, or .*--overwrite", said), said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    draw(tiny_folder, out, *other, "--overwrite")
    draw(tiny_folder, fresh, *other)
    assert np.array_equal(content(out), content(fresh))
    assert sorted(os.listdir(out)) == sorted(os.listdir(fresh)), "nothing old is left"


@pytest.mark.parametrize(("option", "value"), [("--precision", "bfloat16"), ("--batch-size", "4")])
def test_another_precision_or_batch_size_is_not_mixed_in(tiny_folder, tmp_path, option, value):
    """An image depends on both, so that a folder has images of one kind."""
    draw(tiny_folder, tmp_path)
    said = draw(tiny_folder, tmp_path, fixed=(option, value), code=2)
    assert "precision or batch size" in said
    assert "--overwrite" in said


def test_another_models_images_are_not_mixed_in(tiny_folder, tiny_copy, tmp_path):
    draw(tiny_folder, tmp_path / "out")
    other = load_model(tiny_copy, device="cpu")
    with torch.no_grad():
        other.network.fc.weight.mul_(1.5)
    save_model(tiny_copy, other, other.card)
    assert "other ones (model)" in draw(tiny_copy, tmp_path / "out", code=2)


def test_overwriting_the_same_draws_it_again(tiny_folder, tmp_path, at_step):
    draw(tiny_folder, tmp_path)
    before, drawn = content(tmp_path), []
    at_step(lambda indices, step: drawn.extend(indices) if step == 0 else None)
    draw(tiny_folder, tmp_path, "--overwrite")
    assert drawn == [0, 1, 2, 3, 4]
    assert np.array_equal(content(tmp_path), before)


@pytest.mark.parametrize("name", ["000000-cat.png", "000007-dog.png", "000000.png"])
def test_images_of_unknown_origin_are_left_alone(tiny_folder, tmp_path, name):
    write(PngSamples(tmp_path, [name.removesuffix(".png")] * 10), [0])
    before = (tmp_path / name).read_bytes()
    said = draw(tiny_folder, tmp_path, code=2)
    assert f"holds {name} without settings.json" in said
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("task", ["inpaint", "features", "compare", None])
def test_results_of_another_command_are_never_replaced(tiny_folder, tmp_path, task):
    (tmp_path / "settings.json").write_text(json.dumps({"task": task}))
    for more in ([], ["--overwrite"]):
        assert "never replaced; choose another --out" in draw(tiny_folder, tmp_path, *more, code=2)
    assert os.listdir(tmp_path) == ["settings.json"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '"x"', ""])
def test_damaged_settings_are_named(tiny_folder, tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    assert "settings.json, but it is damaged" in draw(tiny_folder, tmp_path, code=2)


@pytest.mark.parametrize("key", ["settings", "execution", "labels", "classes", "model"])
@pytest.mark.parametrize("value", [None, 3, [], "x", {"precision": 7}, {"batch_size": "many"}])
def test_settings_that_hold_something_else_are_refused_in_words(tiny_folder, tmp_path, key, value):
    draw(tiny_folder, tmp_path)
    record = record_of(tmp_path) | {key: value}
    (tmp_path / "settings.json").write_text(json.dumps(record))
    line = ["generate", "--model", tiny_folder, "--out", tmp_path, "--num", "5", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(a) for a in line])
    assert result.exit_code in (0, 2), result.output
    assert result.exit_code == 2 or key == "labels", "labels follow from the classes and decide nothing"


def test_out_may_not_be_a_file(tiny_folder, tmp_path):
    (tmp_path / "file").touch()
    assert "file is a file; choose another --out" in draw(tiny_folder, tmp_path / "file", code=2)


@pytest.mark.parametrize("file_format", KINDS)
def test_images_that_meet_nan_are_named_and_the_others_written(tiny, tiny_folder, tmp_path, file_format, monkeypatch):
    from robustsynth import objectives

    plain = objectives.CrossEntropy.__call__

    def spoilt(self, images):
        return plain(self, images) * torch.where(self.labels == 1, math.nan, 1.0)

    monkeypatch.setattr(objectives.CrossEntropy, "__call__", spoilt)
    said = draw(tiny_folder, tmp_path, "--format", file_format, code=2)
    assert "image 2 at step 0, image 3 at step 0; the other 3 images are in" in said
    assert KINDS[file_format](tmp_path, FIVE).missing() == [2, 3]
    monkeypatch.undo()
    draw(tiny_folder, tmp_path, "--format", file_format)
    expected = to_uint8(generate(tiny, [0, 0, 1, 1, 2], precision="float32", batch_size=2))
    assert np.array_equal(content(tmp_path), expected)


# ---- folders of version 0.1.0 -------------------------------------------------------------------------------------


def as_of_010(out) -> None:
    """Make of a folder of this version what 0.1.0 wrote: files with numbers alone, and no labels in the settings."""
    record = record_of(out)
    del record["labels"]
    (out / "settings.json").write_text(json.dumps(record))
    for path in out.glob("0*.png"):
        pixels = read_image(path).pixels
        path.unlink()
        Image.fromarray(pixels).save(out / f"{path.name[:6]}.png")


@pytest.mark.parametrize("file_format", KINDS)
def test_a_folder_of_010_is_continued(tiny_folder, tmp_path, file_format):
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        draw(tiny_folder, folder, "--format", file_format)
    as_of_010(out)
    numbers = [f"{i:06d}.png" for i in range(5)]
    for lost in (numbers[1:3], numbers[4:], []) if file_format == "png" else ([],):
        for name in lost:
            (out / name).unlink()
        said = draw(tiny_folder, out, "--format", file_format)
        assert f"{5 - len(lost)} of 5 images are there already" in said
        if file_format == "png":
            assert sorted(p.name for p in out.glob("0*.png")) == numbers, "names stay, however often it is continued"
    assert np.array_equal(content(out), content(whole))
    assert "other ones (seed)" in draw(tiny_folder, out, "--format", file_format, "--seed", 9, code=2)
    draw(tiny_folder, out, "--seed", 9, "--overwrite", "--format", file_format)
    files = ["grid.png", *(f"{name}.png" for name in FIVE)] if file_format == "png" else ["samples.npz"]
    assert sorted(os.listdir(out)) == sorted(["settings.json", *files]), "replaced, it has the new names"


def test_a_folder_of_010_that_had_no_image_yet_gets_the_new_names(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path)
    as_of_010(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    draw(tiny_folder, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("0*.png")) == [f"{name}.png" for name in FIVE]
    assert record_of(tmp_path)["labels"] == ["cat", "cat", "ship", "ship", "t-shirt"]
