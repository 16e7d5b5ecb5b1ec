"""Jobs to disk: complete at every moment, and resumed where they stopped."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from robustsynth.tasks.job import GenerateJob, spread_labels
from robustsynth.tasks.samples import NpzSamples, PngSamples

from robustsynth.errors import UserError
from robustsynth.images import read_image, to_uint8
from robustsynth.models.files import load_model
from robustsynth.sheet import GAP, MARGIN
from robustsynth.tasks import samples as samples_module
from robustsynth.tasks.generate import generate, resolve_generate

SHAPE = (4, 4, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8)
LABELS = np.arange(10) % 3
KINDS = {"png": PngSamples, "npz": NpzSamples}


def job(model, out, labels=(0, 0, 1, 1, 2), **given) -> GenerateJob:
    settings = resolve_generate(model, given=given.pop("settings", None))
    options = {"precision": "float32", "batch_size": 2} | given
    return GenerateJob(model, torch.tensor(labels), settings, out, **options)


def content(out) -> np.ndarray:
    if (out / "samples.npz").exists():
        with np.load(out / "samples.npz") as opened:
            return opened["arr_0"]
    return np.stack([read_image(p).pixels for p in sorted(out.glob("0*.png"))])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_samples_go_in_by_parts(tmp_path, kind):
    out = tmp_path / "out"
    samples = kind(out, 10)
    assert samples.missing() == list(range(10))
    assert not samples.present()
    for chosen in ([0, 1, 2], [7, 9], []):
        samples.write(chosen, IMAGES[chosen], LABELS[chosen])
    assert samples.present()
    assert kind(out, 10).missing() == [3, 4, 5, 6, 8], "another process sees the same"
    rest = [3, 4, 5, 6, 8]
    kind(out, 10).write(rest, IMAGES[rest], LABELS[rest])
    samples.finish()
    samples.finish()
    assert samples.missing() == []
    assert np.array_equal(content(out), IMAGES)
    samples.clear()
    assert not samples.present()
    assert os.listdir(out) == []


def test_npz_files_are_plain_arrays(tmp_path):
    samples = NpzSamples(tmp_path, 10)
    samples.write(range(10), IMAGES, LABELS)
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
    monkeypatch.setattr(samples_module.os, "posix_fallocate", full_disk)
    with pytest.raises(OSError, match="No space left"):
        NpzSamples(tmp_path, 10).write([0], IMAGES[:1], LABELS[:1])
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    samples = NpzSamples(tmp_path, 10)
    samples.write(range(10), IMAGES, LABELS)
    samples.finish()
    assert np.array_equal(content(tmp_path), IMAGES)


def test_an_unfinished_array_takes_its_room(tmp_path):
    NpzSamples(tmp_path, 5000).write([0], IMAGES[:1], LABELS[:1])
    assert (tmp_path / "samples-images.partial.npy").stat().st_blocks * 512 >= 5000 * 48


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_full_disk_damages_nothing_written(tmp_path, monkeypatch, kind):
    samples = kind(tmp_path, 10)
    samples.write([0, 1], IMAGES[:2], LABELS[:2])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        samples.write([2, 3], IMAGES[2:4], LABELS[2:4])
    monkeypatch.undo()
    again = kind(tmp_path, 10)
    assert again.missing() == list(range(2, 10))
    again.write(range(2, 10), IMAGES[2:], LABELS[2:])
    again.finish()
    assert np.array_equal(content(tmp_path), IMAGES)


# ---- jobs ---------------------------------------------------------------------------------------------------------


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
def test_a_job_writes_what_generate_draws(tiny, tmp_path, file_format):
    out = tmp_path / "out"
    begun = job(tiny, out, seed=5, file_format=file_format)
    assert (begun.done, begun.missing) == (0, [0, 1, 2, 3, 4])
    begun.run()
    expected = to_uint8(generate(tiny, [0, 0, 1, 1, 2], seed=5, precision="float32", batch_size=2))
    assert np.array_equal(content(out), expected)
    files = ["grid.png", *(f"{i:06d}.png" for i in range(5))] if file_format == "png" else ["samples.npz"]
    assert sorted(os.listdir(out)) == sorted(["settings.json", *files])


def test_settings_say_all_that_a_repetition_needs(tiny, tiny_folder, tmp_path):
    job(tiny, tmp_path, seed=5).run()
    record = json.loads((tmp_path / "settings.json").read_text())
    assert record["task"] == "generate"
    assert record["seed"] == 5
    assert record["num"] == 5
    assert record["classes"] == ["cat", "ship", "t-shirt"]
    assert record["settings"] == dataclasses.asdict(resolve_generate(tiny))
    assert record["execution"] == {"precision": "float32", "batch_size": 2, "measured": False}
    assert record["model"] == {"name": "tiny", "sha256": tiny.card.sha256["model.safetensors"]}
    assert record["versions"]["torch"] == torch.__version__
    assert "threads" in record["machine"]


def test_the_grid_has_a_row_for_each_class(tiny, tmp_path):
    job(tiny, tmp_path).run()
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
                assert np.array_equal(tile, read_image(tmp_path / f"{index:06d}.png").pixels)


def test_grids_of_grey_pictures(digits_folder, tmp_path):
    job(load_model(digits_folder, device="cpu"), tmp_path, labels=(3, 8)).run()
    assert read_image(tmp_path / "000001.png", channels=1).pixels.shape == (28, 28, 1)
    assert read_image(tmp_path / "grid.png", channels=1).pixels.shape[2] == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop", [(0, 1), (2, 0), (2, 3), (4, 2)])
@pytest.mark.parametrize("file_format", KINDS)
def test_a_stopped_job_goes_on(tiny, tiny_folder, tmp_path, file_format, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job(tiny, whole, file_format=file_format).run()

    def killed(indices, step):
        if (indices[0], step.index) == stop:
            raise Killed

    with pytest.raises(Killed):
        job(tiny, parts, file_format=file_format).run(on_step=killed)
    drawn = []
    # Precision and batch size are not said again: the folder knows them.
    again = job(load_model(tiny_folder, device="cpu"), parts, file_format=file_format, precision=None, batch_size=None)
    assert again.done == stop[0], "whole batches are kept"
    assert (again.execution.precision, again.execution.batch_size) == ("float32", 2)
    again.run(on_step=lambda indices, step: drawn.extend(indices) if step.index == 0 else None)
    assert sorted(drawn) == list(range(stop[0], 5)), "nothing is drawn twice"
    assert np.array_equal(content(parts), content(whole))
    if file_format == "png":
        for name in os.listdir(whole):
            if name.endswith(".png"):
                assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("file_format", KINDS)
def test_a_finished_job_draws_nothing(tiny, tmp_path, file_format):
    job(tiny, tmp_path, file_format=file_format).run()
    before = content(tmp_path)
    again = job(tiny, tmp_path, file_format=file_format)
    assert again.done == 5
    again.run(on_step=lambda *_: pytest.fail("it drew again"))
    assert np.array_equal(content(tmp_path), before)


OTHERS = {
    "seed": {"seed": 1},
    "num": {"labels": (0, 0, 1, 1, 2, 2)},
    "classes": {"labels": (0, 0, 1, 1, 1)},
    "format": {"file_format": "npz"},
    "settings": {"settings": {"eps": 1.0}},
}


@pytest.mark.parametrize(("name", "other"), OTHERS.items(), ids=OTHERS)
def test_other_settings_are_not_mixed_in(tiny, tmp_path, name, other):
    job(tiny, tmp_path).run()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=rf"other settings \(.*{name}.*\); choose another --out, or .*--overwrite"):
        job(tiny, tmp_path, **other)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    job(tiny, tmp_path, overwrite=True, **other).run()
    fresh = tmp_path / "fresh"
    job(tiny, fresh, **other).run()
    assert np.array_equal(content(tmp_path), content(fresh))
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(os.listdir(fresh)), "nothing old is left"


def test_another_models_pictures_are_not_mixed_in(tiny, tiny_copy, tmp_path):
    job(tiny, tmp_path / "out").run()
    other = load_model(tiny_copy, device="cpu")
    with torch.no_grad():
        other.network.fc.weight.mul_(1.5)
    from robustsynth.models.files import save_model

    save_model(tiny_copy, other, other.card)
    with pytest.raises(UserError, match=r"other settings \(model\)"):
        job(load_model(tiny_copy, device="cpu"), tmp_path / "out")


def test_overwriting_the_same_job_draws_it_again_or_keeps_it(tiny, tmp_path):
    job(tiny, tmp_path).run()
    before = content(tmp_path)
    job(tiny, tmp_path, overwrite=True).run()
    assert np.array_equal(content(tmp_path), before)


def test_pictures_of_unknown_origin_are_left_alone(tiny, tmp_path):
    shutil.copy(_some_png(tmp_path / "a"), tmp_path / "000000.png")
    with pytest.raises(UserError, match=r"holds pictures without settings\.json"):
        job(tiny, tmp_path)


def _some_png(folder):
    PngSamples(folder, 1).write([0], IMAGES[:1], LABELS[:1])
    return folder / "000000.png"


@pytest.mark.parametrize("text", ["{", "[]", "null", '"x"'])
def test_damaged_settings_are_named(tiny, tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json, but it is damaged"):
        job(tiny, tmp_path)


def test_out_may_not_be_a_file(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; choose another --out"):
        job(tiny, tmp_path / "file")


@pytest.mark.parametrize("file_format", KINDS)
def test_images_that_meet_nan_are_named_and_the_others_written(tiny, tmp_path, file_format, monkeypatch):
    from robustsynth import objectives

    plain = objectives.CrossEntropy.__call__

    def spoilt(self, images):
        return plain(self, images) * torch.where(self.labels == 1, math.nan, 1.0)

    monkeypatch.setattr(objectives.CrossEntropy, "__call__", spoilt)
    with pytest.raises(UserError, match="image 2 at step 0, image 3 at step 0; the other 3 images are in"):
        job(tiny, tmp_path, file_format=file_format).run()
    assert KINDS[file_format](tmp_path, 5).missing() == [2, 3]
    monkeypatch.undo()
    job(tiny, tmp_path, file_format=file_format).run()
    expected = to_uint8(generate(tiny, [0, 0, 1, 1, 2], precision="float32", batch_size=2))
    assert np.array_equal(content(tmp_path), expected)
