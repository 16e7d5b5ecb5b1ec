"""The commands that take images, as people use them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from robustsynth.cli import main
from robustsynth.cli.progress import Animations
from robustsynth.images import png_text, read_image
from robustsynth.tasks.table import TASKS
from robustsynth.tasks.task import attribute_help

IMAGE_TASKS = {name: task for name, task in TASKS.items() if task.images}
FIXED = ["--precision", "float32", "--batch-size", "2", "--device", "cpu"]
NEEDS = {
    "inpaint": ["--mask", "4,4,8,6"],
    "translate": ["--to", "ship"],
    "upscale": ["--factor", "2"],
    "paint": ["--unit", "3", "--mask", "4,4,8,6"],
    "sketch": ["--label", "cat"],
    "refine": ["--label", "cat"],
}


def image_file(path: Path, width: int = 24, height: int = 20, mode: str = "RGB", seed: int = 0, **saved) -> Path:
    values = np.random.default_rng(seed).integers(40, 215, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path, **saved)
    return path


@pytest.fixture
def two(tmp_path) -> list[Path]:
    """Two images of different sizes."""
    folder = tmp_path / "given"
    folder.mkdir()
    return [image_file(folder / "one.png"), image_file(folder / "two.jpg", 30, 22, seed=1)]


def run(task: str, model: Path, out: Path, *arguments: object):
    needs = (
        [] if any(str(a) in ("--mask", "--to", "--factor", "--label", "--patch") for a in arguments) else NEEDS[task]
    )
    if task == "paint" and "--unit" not in arguments and not needs:
        needs = ["--unit", "3"]
    line = [task, "--model", model, "--out", out, "--steps", "2", *FIXED, *needs, *arguments]
    return CliRunner().invoke(main, [str(a) for a in line])


def refused(result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for words in said:
        assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_each_command_writes_images_a_figure_and_settings(task, tiny_folder, two, tmp_path):
    out = tmp_path / "new" / "out"
    result = run(task, tiny_folder, out, *two)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(out)) == ["figure.png", "one.png", "settings.json", "two.png"]
    factor = 2 if task == "upscale" else 1
    assert read_image(out / "one.png").pixels.shape == (20 * factor, 24 * factor, 3)
    assert read_image(out / "two.png").pixels.shape == (22 * factor, 30 * factor, 3)
    record = json.loads((out / "settings.json").read_text())
    assert record["task"] == task
    assert record["settings"]["steps"] == 2
    assert set(record["images"]) == {"one", "two"}
    assert record["images"]["two"]["size"] == [30, 22]
    assert str(tmp_path) not in json.dumps(record), "no absolute path belongs into what people share"
    for said in ("model tiny", "steps=2", "on cpu", "wrote 2 images"):
        assert said in result.output


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_a_folder_gives_the_same_bytes_as_its_files(task, tiny_folder, two, tmp_path):
    run(task, tiny_folder, tmp_path / "a", two[0].parent)
    run(task, tiny_folder, tmp_path / "b", two[1])
    assert (tmp_path / "a" / "two.png").read_bytes() == (tmp_path / "b" / "two.png").read_bytes()


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_every_setting_is_an_option_with_help(task):
    shown = CliRunner().invoke(main, [task, "--help"])
    assert shown.exit_code == 0
    described = attribute_help(IMAGE_TASKS[task].settings)
    for field in dataclasses.fields(IMAGE_TASKS[task].settings):
        assert f"--{field.name.replace('_', '-')}" in shown.output
        assert field.name in described


def test_a_second_run_makes_nothing_anew_and_takes_more_images(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    run("refine", tiny_folder, out, two[0])
    before = (out / "one.png").stat().st_mtime_ns
    result = run("refine", tiny_folder, out, *two)
    assert "1 of 2 images are there already" in result.output
    assert (out / "one.png").stat().st_mtime_ns == before
    assert set(json.loads((out / "settings.json").read_text())["images"]) == {"one", "two"}


def test_other_settings_need_overwrite(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    run("refine", tiny_folder, out, two[0])
    before = (out / "one.png").read_bytes()
    refused(run("refine", tiny_folder, out, two[0], "--eps", "9"), "settings", "--overwrite")
    image_file(two[0], seed=5)
    refused(run("refine", tiny_folder, out, two[0]), "image one", "--overwrite")
    assert (out / "one.png").read_bytes() == before
    assert run("refine", tiny_folder, out, two[0], "--overwrite").exit_code == 0
    assert (out / "one.png").read_bytes() != before


def test_an_image_that_is_there_is_not_replaced_unasked(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    image_file(out / "one.png")
    refused(run("refine", tiny_folder, out, two[0]), "one.png", "--overwrite")


def test_images_of_one_name_get_two(tiny_folder, tmp_path):
    (tmp_path / "b").mkdir()
    first, second = image_file(tmp_path / "cat.png"), image_file(tmp_path / "b" / "cat.png", seed=2)
    run("refine", tiny_folder, tmp_path / "out", first, second)
    assert (tmp_path / "out" / "cat.png").exists()
    assert (tmp_path / "out" / "cat-2.png").exists()


def test_several_targets_give_a_row_each(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    result = run("translate", tiny_folder, out, two[0], "--to", "ship,t-shirt")
    assert result.exit_code == 0, result.output
    assert {"one-ship.png", "one-t-shirt.png"} < set(os.listdir(out))
    wide = read_image(out / "figure.png").pixels.shape[1]
    run("translate", tiny_folder, tmp_path / "single", two[0], "--to", "ship")
    assert wide > read_image(tmp_path / "single" / "figure.png").pixels.shape[1]


@pytest.mark.parametrize("task", ["inpaint", "upscale", "refine"])
def test_predicted_labels_are_said(task, tiny_folder, two, tmp_path):
    needs = [n for n in NEEDS[task] if task != "refine"]
    line = [task, *map(str, two), "--model", tiny_folder, "--out", tmp_path / "out", "--steps", "1", *FIXED, *needs]
    result = CliRunner().invoke(main, [str(a) for a in line])
    assert result.exit_code == 0, result.output
    for made in json.loads((tmp_path / "out" / "settings.json").read_text())["images"].values():
        assert made["predicted"] is True
        assert made["label"] in ("cat", "ship", "t-shirt")


def test_names_of_other_vocabularies_are_said(tiny_folder, two, tmp_path):
    result = run("refine", tiny_folder, tmp_path / "out", two[0], "--label", "cats")
    assert result.exit_code == 0, result.output
    assert "'cats' is taken as the class 'cat'" in result.output


def test_a_mask_file_and_a_hole_in_the_image_itself(tiny_folder, tmp_path):
    source = image_file(tmp_path / "photo.png")
    mask = np.zeros((20, 24), dtype=np.uint8)
    mask[5:12, 6:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with Image.open(source) as opened:
        holed = opened.convert("RGBA")
        holed.putalpha(Image.fromarray(255 - mask))
    holed.save(tmp_path / "holed.png")
    by_file = run("inpaint", tiny_folder, tmp_path / "a", source, "--mask", tmp_path / "mask.png", "--label", "cat")
    line = ["inpaint", tmp_path / "holed.png", "--model", tiny_folder, "--out", tmp_path / "b", "--label", "cat"]
    by_alpha = CliRunner().invoke(main, [str(a) for a in [*line, "--steps", "2", *FIXED]])
    assert by_file.exit_code == by_alpha.exit_code == 0, by_file.output + by_alpha.output
    a, b = read_image(tmp_path / "a" / "photo.png").pixels, read_image(tmp_path / "b" / "holed.png").pixels
    assert (a == b).all()
    given = read_image(source).pixels
    assert (a[mask == 0] == given[mask == 0]).all()
    assert (a[mask > 0] != given[mask > 0]).any()


def test_random_patches_depend_on_the_seed_and_the_image_alone(tiny_folder, two, tmp_path):
    for out, files, seed in (("a", two, 0), ("b", two[1:], 0), ("c", two[1:], 1)):
        result = run("inpaint", tiny_folder, tmp_path / out, *files, "--patch", "7", "--seed", seed, "--label", "cat")
        assert result.exit_code == 0, result.output
    first, same, other = ((tmp_path / out / "two.png").read_bytes() for out in "abc")
    assert first == same != other


@pytest.mark.parametrize("task", ["translate", "upscale"])
def test_a_trajectory_is_an_animation(task, tiny_folder, two, tmp_path):
    result = run(task, tiny_folder, tmp_path / "out", two[0], "--trajectory", "gif")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "one.gif") as opened:
        assert getattr(opened, "n_frames", 1) == 3
        assert opened.size == ((48, 40) if task == "upscale" else (24, 20))


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_mistakes_are_named(task, tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    refused(run(task, tiny_folder, out, tmp_path / "none.png"), "none.png")
    refused(run(task, tmp_path / "no-model", out, two[0]), "no-model")
    (tmp_path / "text.png").write_text("hello")
    refused(run(task, tiny_folder, out, tmp_path / "text.png"), "text.png")
    (tmp_path / "empty").mkdir()
    refused(run(task, tiny_folder, out, tmp_path / "empty"), "empty")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(image_file(tmp_path / "whole.jpg", 200, 200).read_bytes()[:900])
    refused(run(task, tiny_folder, out, cut), "cut.jpg")
    refused(
        run(task, tiny_folder, out, image_file(tmp_path / "dot.png", 1, 1)),
        "1×1" if "mask" in str(NEEDS[task]) else "at least 8×8",
    )
    refused(run(task, tiny_folder, out, two[0], "--eps", "-3"), "eps")
    refused(run(task, tiny_folder, two[0], two[1]), "is a file")
    assert not out.exists() or not any(out.iterdir())


WRONG = [
    ("inpaint", ["--mask", "0,0,24,20"], "leaves"),
    ("inpaint", ["--mask", "30,30,4,4"], "30"),
    ("inpaint", ["--mask", "1,2,3"], "1,2,3"),
    ("inpaint", ["--mask", "nothing.png"], "nothing.png"),
    ("inpaint", ["--mask", "1,1,4,4", "--patch", "3"], "--patch"),
    ("paint", ["--unit", "3", "--label", "x"], "label"),
    ("paint", ["--mask", "1,1,4,4", "--unit", "9999"], "9999"),
    ("paint", ["--mask", "1,1,4,4", "--unit", "eye"], "eye"),
    ("translate", ["--to", "zebra"], "zebra"),
    ("refine", ["--label", "zebra"], "zebra"),
    ("upscale", ["--factor", "0.5"], "factor"),
    ("upscale", ["--factor", "nan"], "factor"),
    ("upscale", ["--factor", "many"], "many"),
    ("inpaint", ["--patch", "0"], "--patch"),
    ("inpaint", ["--patch", "500"], "500"),
    ("inpaint", ["--patch", "5", "--seed", "-1"], "seed of 0 or more"),
    ("sketch", ["--label", "cat", "--texture", "0.3", "--seed", "-1"], "seed of 0 or more"),
    ("translate", ["--to", ","], "one or more classes"),
    ("paint", ["--unit", "3,5", "--mask", "1,1,4,4", "--mask", "2,2,4,4", "--mask", "3,3,4,4"], "each of 2 units"),
    ("paint", ["--unit", ",", "--mask", "1,1,4,4"], "units"),
]


@pytest.mark.parametrize(("task", "arguments", "said"), WRONG, ids=lambda v: str(v)[:30])
def test_wrong_arguments_are_named(task, arguments, said, tiny_folder, two, tmp_path):
    refused(run(task, tiny_folder, tmp_path / "out", two[0], *arguments), said)


def test_what_was_done_to_an_image_is_said(tiny_folder, tmp_path):
    grey = image_file(tmp_path / "grey.png", mode="L")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image_file(tmp_path / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (20, 20), (10 * i, 90, 50)) for i in range(4)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    result = run("refine", tiny_folder, tmp_path / "out", grey, turned, tmp_path / "moving.gif")
    assert result.exit_code == 0, result.output
    for said in ("grey as RGB", "turned upright", "first of 4 frames"):
        assert said in result.output
    assert read_image(tmp_path / "out" / "turned.png").pixels.shape == (24, 20, 3)


def test_ctrl_c_keeps_what_there_is(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "robustsynth", "refine", *map(str, two), "--model", str(tiny_folder)]
    command += ["--out", str(out), "--steps", "100000", "--step-size", "0.001", *FIXED]
    command += ["--label", "cat"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "settings:" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert "stopped; 0 of 2 images" in said
    assert "Traceback" not in said
    record = json.loads((out / "settings.json").read_text())
    assert record["images"] == {}, "what was under way is no result"
    assert list(record["unfinished"]) == ["one"], "the second image had not begun"
    assert 0 < record["unfinished"]["one"] < 100000
    assert sorted(os.listdir(out)) == ["settings.json", "unfinished"]
    assert os.listdir(out / "unfinished") == ["one.png"]
    assert read_image(out / "unfinished" / "one.png").pixels.shape == (20, 24, 3)


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_a_stopped_run_goes_on_to_the_same_bytes(task, tiny_folder, two, tmp_path, monkeypatch):
    more = image_file(two[0].parent / "three.png", seed=3)
    files, out, whole = [*two, more], tmp_path / "out", tmp_path / "whole"
    assert run(task, tiny_folder, whole, *files, "--batch-size", "1").exit_code == 0
    began, plain = [], Animations.add

    def stop(self, progress):
        began.extend(progress.indices if not progress.step and not progress.run else ())
        if len(began) == 2 and progress.taken == 1:
            signal.raise_signal(signal.SIGINT)
        plain(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Animations, "add", stop)
        stopped = run(task, tiny_folder, out, *files, "--batch-size", "1")
    assert stopped.exit_code == 130, stopped.output
    assert "stopped; 1 of 3 images" in stopped.output
    record = json.loads((out / "settings.json").read_text())
    assert list(record["images"]) == ["one"]
    assert record["unfinished"] == {"three": 1}, "images of one size go together"
    assert json.loads(png_text(out / "unfinished" / "three.png")["robustsynth"])["stopped_at_step"] == 1
    assert (out / "figure.png").exists(), "of the one that is finished"
    again = run(task, tiny_folder, out, *files, "--batch-size", "1")
    assert again.exit_code == 0, again.output
    assert "1 of 3 images are there already" in again.output
    assert not (out / "unfinished").exists()
    assert "unfinished" not in json.loads((out / "settings.json").read_text())
    for name in ("one", "two", "three"):
        assert (out / f"{name}.png").read_bytes() == (whole / f"{name}.png").read_bytes()


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_sources_are_never_replaced(overwrite, tiny_folder, two):
    before = [path.read_bytes() for path in two]
    refused(run("refine", tiny_folder, two[0].parent, *two, *overwrite), "another --out")
    assert [path.read_bytes() for path in two] == before
    assert len(os.listdir(two[0].parent)) == 2


def test_overwriting_removes_what_the_earlier_run_wrote(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    run("translate", tiny_folder, out, *two, "--to", "cat,ship")
    run("translate", tiny_folder, out, two[0], "--to", "t-shirt", "--overwrite")
    assert sorted(os.listdir(out)) == ["figure.png", "one.png", "settings.json"]
    refused(run("refine", tiny_folder, out, two[0], "--overwrite"), "translate", "never replaced")


def test_a_figure_shows_earlier_results_too(tiny_folder, two, tmp_path):
    run("refine", tiny_folder, tmp_path / "whole", *two)
    run("refine", tiny_folder, tmp_path / "parts", two[0])
    run("refine", tiny_folder, tmp_path / "parts", *two)
    whole, parts = (read_image(tmp_path / name / "figure.png").pixels for name in ("whole", "parts"))
    assert (whole == parts).all()


def test_a_factor_beyond_all_memory_is_refused_at_once(tiny_folder, two, tmp_path):
    refused(run("upscale", tiny_folder, tmp_path / "out", two[0], "--factor", "1e6"), "megapixels")


def test_masks_are_checked_before_anything_is_made(tiny_folder, two, tmp_path):
    mask = np.zeros((20, 24), dtype=np.uint8)
    mask[5:12, 6:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    refused(run("inpaint", tiny_folder, tmp_path / "out", *two, "--mask", tmp_path / "mask.png"), "30×22")
    assert not (tmp_path / "out").exists()


def test_invert_takes_the_other_part_of_a_rectangle(tiny_folder, two, tmp_path):
    run("inpaint", tiny_folder, tmp_path / "out", two[0], "--mask", "0,0,24,10", "--invert", "--label", "cat")
    made, given = read_image(tmp_path / "out" / "one.png").pixels, read_image(two[0]).pixels
    assert (made[:10] == given[:10]).all()
    assert (made[10:] != given[10:]).any()


def test_sheets_of_earlier_runs_are_no_images(tiny_folder, two, tmp_path):
    run("refine", tiny_folder, tmp_path / "first", *two)
    result = run("refine", tiny_folder, tmp_path / "second", tmp_path / "first")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "second")) == ["figure.png", "one.png", "settings.json", "two.png"]


def test_what_was_run_and_seen_is_recorded(tiny_folder, two, tmp_path):
    long = image_file(tmp_path / "long.png", 90, 20)
    result = run("refine", tiny_folder, tmp_path / "out", two[0], long)
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert record["execution"] == {"precision": "float32", "batch_size": 2, "measured": False}
    assert record["images"]["one"]["seen"] == "whole, as 16×16"
    assert "squares of 20 pixels" in record["images"]["long"]["seen"]
    assert "float32, 2 images a batch" in result.output


def test_an_animation_that_is_missing_is_made(tiny_folder, two, tmp_path):
    run("refine", tiny_folder, tmp_path / "out", two[0])
    run("refine", tiny_folder, tmp_path / "out", two[0], "--trajectory", "gif")
    assert (tmp_path / "out" / "one.gif").exists()


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_each_png_says_what_it_is(task, tiny_folder, two, tmp_path):
    result = run(task, tiny_folder, tmp_path / "out", two[0])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    text = png_text(tmp_path / "out" / "one.png")
    assert text["Software"].startswith("robustsynth ")
    told = json.loads(text["robustsynth"])
    assert {key: told[key] for key in ("task", "model", "settings")} == {
        key: record[key] for key in ("task", "model", "settings")
    }
    expected = {"translate": "ship", "paint": None}.get(task, record["images"]["one"].get("label"))
    assert told.get("class") == expected
    assert task == "paint" or expected in ("cat", "ship", "t-shirt")
    assert str(tmp_path) not in json.dumps(text)


def test_each_of_several_targets_says_which_it_is(tiny_folder, two, tmp_path):
    result = run("translate", tiny_folder, tmp_path / "out", two[0], "--to", "ship,t-shirt")
    assert result.exit_code == 0, result.output
    for name in ("ship", "t-shirt"):
        assert json.loads(png_text(tmp_path / "out" / f"one-{name}.png")["robustsynth"])["class"] == name


# Folders of other versions, and folders that somebody else wrote.


def as_of_010(out: Path, *, stopped: str | None = None) -> None:
    """Make of a folder of this version what 0.1.0 wrote; one image may have been stopped at a step, in its place."""
    record = json.loads((out / "settings.json").read_text())
    del record["execution"]["measured"]
    record["pictures"] = record.pop("images")
    if stopped is not None:
        record["pictures"][stopped]["stopped_at_step"] = 1
        image_file(out / f"{stopped}.png", seed=9)
    (out / "settings.json").write_text(json.dumps(record))


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("stopped", [None, "one"])
def test_a_folder_of_010_is_continued(task, stopped, tiny_folder, two, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(task, tiny_folder, whole, *two)
    run(task, tiny_folder, out, two[0])
    as_of_010(out, stopped=stopped)
    written = (out / "one.png").stat().st_mtime_ns
    result = run(task, tiny_folder, out, *two)
    assert result.exit_code == 0, result.output
    assert ("1 of 2 images are there already" in result.output) == (stopped is None)
    assert ((out / "one.png").stat().st_mtime_ns == written) == (stopped is None)
    for name in ("one.png", "two.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    record = json.loads((out / "settings.json").read_text())
    assert "pictures" not in record
    assert set(record["images"]) == {"one", "two"}
    refused(run(task, tiny_folder, out, *two, "--eps", "9"), "settings", "--overwrite")


def test_a_folder_of_010_is_replaced_when_asked(tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    run("refine", tiny_folder, out, *two)
    as_of_010(out)
    assert run("refine", tiny_folder, out, two[0], "--eps", "9", "--overwrite").exit_code == 0
    assert sorted(os.listdir(out)) == ["figure.png", "one.png", "settings.json"]


DAMAGE = {
    "images": [None, 3, ["one"], {"one": None}, {"one": {"results": "one.png"}}, {"one": {"results": [3]}}],
    "pictures": [3, {"one": []}],
    "execution": [None, 3, "x", {"batch_size": "many"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
@pytest.mark.parametrize("overwrite", [False, True])
def test_damaged_records_are_refused_in_words(key, value, overwrite, tiny_folder, two, tmp_path):
    out = tmp_path / "out"
    run("refine", tiny_folder, out, two[0])
    record = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(record | {key: value}))
    result = run("refine", tiny_folder, out, two[0], *(["--overwrite"] if overwrite else []))
    if overwrite and key == "execution":
        assert result.exit_code == 0, "what it was computed in does not matter where it is replaced"
    else:
        refused(result, "settings.json, but it is damaged")


@pytest.mark.parametrize("name", ["../mine.png", "../../mine.png", "{tmp}/mine.png", "sub/mine.png"])
def test_a_record_names_no_files_of_other_folders(name, tiny_folder, two, tmp_path):
    """Replacing a folder's results removes what its record names, and a record may come from anywhere."""
    out = tmp_path / "a" / "out"
    run("refine", tiny_folder, out, two[0])
    record = json.loads((out / "settings.json").read_text())
    mine = out / name.replace("{tmp}", str(tmp_path))
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    record["images"]["one"]["results"] = [str(mine) if name.startswith("{") else name]
    (out / "settings.json").write_text(json.dumps(record))
    assert run("refine", tiny_folder, out, two[0], "--eps", "9", "--overwrite").exit_code == 0
    assert mine.read_text() == "mine"


def test_two_commands_begun_at_once_do_not_mix(tiny_folder, two, tmp_path, monkeypatch):
    from robustsynth.files import only_writer

    monkeypatch.setattr(only_writer.__wrapped__, "__kwdefaults__", {"patience": 0.1})
    with only_writer(tmp_path / "out"):
        refused(run("refine", tiny_folder, tmp_path / "out", two[0]), "only one that writes to")
    assert not (tmp_path / "out").exists()
