"""What `robustsynth train` takes where no preset is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conftest import pixels, png
from robustsynth.cli import main
from robustsynth.training.settings import (
    FINE_TUNE_STEPS,
    LEAST_STEPS,
    attack_for,
    default_preset,
    fitted,
    resolve_train_settings,
    sizes_for,
)

DEFAULTS = ("small-images", "photographs")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def pictures(root: Path, side: int, count: int) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(pixels(100 * label + number, side)))
    return root


@pytest.mark.parametrize(("side", "preset"), [(28, 0), (32, 0), (64, 0), (65, 1), (224, 1)])
def test_the_images_side_chooses(side, preset):
    assert default_preset(side) == DEFAULTS[preset]


@pytest.mark.parametrize("preset", DEFAULTS)
def test_both_attack_from_the_image_by_one_step_of_the_radius(preset):
    made = resolve_train_settings(preset)
    assert (made.recipe, made.norm, made.attack_steps, made.random_start) == ("pgd", "l2", 1, False)
    assert made.attack_step_size == made.eps
    assert made.guarded


@given(st.integers(4, 2_000_000), st.sampled_from(DEFAULTS))
def test_any_number_of_images_has_a_batch_and_enough_steps(images, preset):
    made = resolve_train_settings(preset, fitted(preset, images))
    kept = images - made.held_out
    assert made.held_out <= max(1, images / 10)
    assert kept >= made.batch_size >= 1
    assert made.epochs * (kept // made.batch_size) >= LEAST_STEPS
    assert 1 <= made.evaluate_every <= made.epochs
    usual = resolve_train_settings(preset)
    assert made.epochs >= usual.epochs
    assert made.batch_size <= usual.batch_size


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"eps": 0.5}, {}),
        ({"eps": 1.0}, {"attack_step_size": 1.0}),
        ({"eps": 1.0, "attack_step_size": 0.4}, {}),
        ({"eps": 1.0, "attack_steps": 5}, {}),
        ({"eps": 1.2, "attack_steps": 3}, {"attack_step_size": 1.0}),
        ({"norm": "linf", "eps": 0.02, "attack_steps": 5}, {"random_start": True, "attack_step_size": 0.01}),
        ({"eps": 0.0}, {}),
        ({"norm": "linf"}, {"eps": 8 / 255, "random_start": True, "attack_step_size": 10 / 255}),
        ({"norm": "linf", "eps": 0.1, "random_start": False}, {"attack_step_size": 0.125}),
        ({"recipe": "trades"}, {"attack_steps": 7, "attack_step_size": 0.1}),
        ({"recipe": "mart", "eps": 1.0, "attack_steps": 2}, {"attack_step_size": 0.2}),
        ({"recipe": "trades", "eps": 0.0}, {}),
    ],
)
def test_the_attack_follows_what_is_said_of_it(options, expected):
    assert attack_for("small-images", options) == pytest.approx(expected)


def test_marts_labels_are_certain():
    assert attack_for("photographs", {"recipe": "mart"})["label_smoothing"] == 0
    assert resolve_train_settings("photographs", {"recipe": "mart"} | attack_for("photographs", {"recipe": "mart"}))


@given(st.integers(4, 100_000), st.integers(1, 512), st.sampled_from(DEFAULTS), st.booleans())
def test_what_is_said_is_counted_with(images, batch_size, preset, tuned):
    said = {"batch_size": batch_size} | ({"fine_tune": "imagenette"} if tuned else {})
    made = resolve_train_settings(preset, said | fitted(preset, images, said))
    steps = max(1, (images - made.held_out) // batch_size)
    assert made.batch_size == batch_size
    least = FINE_TUNE_STEPS if tuned else LEAST_STEPS
    assert made.epochs * steps >= least
    assert 1 <= made.evaluate_every <= made.epochs
    if tuned:
        assert (made.epochs - 1) * steps < least


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (160, 96)),
        ({"image_size": 64}, (80, 48)),
        ({"image_size": 224}, (280, 168)),
        ({"image_size": 224, "stored_size": 256}, (256, 168)),
        ({"crop": "pad"}, (128, 128)),
        ({"crop": "none", "image_size": 96}, (96, 96)),
        ({"architecture": "small-cnn"}, (160, 128)),
        ({"fine_tune": "imagenette", "image_size": 128}, (160, 128)),
    ],
)
def test_sizes_follow_the_images_the_crop_and_the_network(options, expected):
    made = resolve_train_settings("photographs", options | sizes_for("photographs", options))
    assert (made.stored_size, made.early_size) == expected
    assert sizes_for("small-images", options) == {}


def said_of(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["train", *arguments, "--dry-run", "--precision", "float32", "--width", "2"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("side", "preset"), [(32, "small-images"), (96, "photographs")])
def test_a_new_folder_needs_no_options(tmp_path, side, preset):
    data = str(pictures(tmp_path / "pets", side, 20))
    said = said_of("--data", data, "--out", str(tmp_path / "run"))
    assert f"no --preset: taking {preset}, held out 4, batch size 8, epochs 750, evaluate every 37" in said
    assert "to go: 3000 steps, 750 epochs" in said
    said = said_of("--data", data, "--out", str(tmp_path / "run"), "--epochs", "2", "--eps", "1", "--batch-size", "4")
    assert "to go: 18 steps, 2 epochs" in said
    assert f"taking {preset}, held out 4, evaluate every 1, attack step size 1.0\n" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--recipe", "mart"),
        ("--crop", "pad", "--jitter", "0.1"),
        ("--architecture", "small-cnn"),
        ("--norm", "linf", "--recipe", "fast"),
        ("--image-size", "64"),
    ],
)
def test_options_go_with_what_is_taken_for_photographs(tmp_path, options):
    data = str(pictures(tmp_path / "pets", 96, 20))
    assert "to go" in said_of("--data", data, "--out", str(tmp_path / "run"), *options)


def test_a_preset_is_taken_as_it_is(tmp_path):
    data = str(pictures(tmp_path / "pets", 32, 20))
    options = ["--data", data, "--out", str(tmp_path / "run"), "--held-out", "4", "--batch-size", "8"]
    options += ["--preset", "cifar10-quick", "--dry-run", "--precision", "float32"]
    result = CliRunner().invoke(main, ["train", *options])
    assert result.exit_code == 0, result.output
    assert "no --preset" not in result.output


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("cifar10", "small-images, held out 4, batch size 8, epochs 75, learning rate 0.05, evaluate every 3"),
        ("cifar10-standard", "held out 4, batch size 8, epochs 75, learning rate 0.05, evaluate every 3"),
        ("mnist", "learning rate 0.05, evaluate every 3, random start True, attack step size 0.375"),
    ],
)
def test_a_model_to_begin_from_brings_its_attack_and_fewer_steps(tmp_path, model, expected):
    side = 28 if model == "mnist" else 32
    data = pictures(tmp_path / "pets", side, 20)
    if model == "mnist":
        from PIL import Image

        for path in data.rglob("*.png"):
            Image.open(path).convert("L").save(path)
    options = ["--data", str(data), "--out", str(tmp_path / "run"), "--fine-tune", model]
    result = CliRunner().invoke(main, ["train", *options, "--dry-run", "--precision", "float32"])
    assert result.exit_code == 0, result.output
    assert expected in result.output
    assert "to go: 300 steps, 75 epochs" in result.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--architecture", "small-cnn", "--crop", "resized", "--early-size", "16"), "got 16 pixels (--early-size)"),
        (("--architecture", "small-cnn", "--image-size", "3"), "image_size of 4 or more pixels, got 3"),
        (("--image-size", "8", "--batch-size", "4", "--accumulate", "4"), "raise --batch-size"),
        (("--early-size", "40", "--crop", "resized"), "early_size of at most the images' side, got 40 and 32"),
        (("--seed", str(2**63)), "expected seed of 0 or more and below 2^63"),
    ],
)
def test_what_a_network_cannot_take_is_refused_before_it_is_met(tmp_path, options, told):
    data = str(pictures(tmp_path / "pets", 32, 20))
    given = ["--data", data, "--out", str(tmp_path / "run"), "--width", "2", *options]
    result = CliRunner().invoke(main, ["train", *given, "--precision", "float32"])
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_file_where_the_run_should_be_is_told_first(tmp_path):
    (tmp_path / "taken").write_text("a note", encoding="utf-8")
    for out in (tmp_path / "taken", tmp_path / "taken" / "run"):
        result = CliRunner().invoke(main, ["train", "--data", "nothing", "--out", str(out)])
        assert result.exit_code == 2
        assert "choose another --out" in " ".join(result.output.split())


def test_a_dry_run_leaves_a_damaged_checkpoint_where_it_is(tmp_path):
    data, out = str(pictures(tmp_path / "pets", 32, 10)), tmp_path / "run"
    small = ["--width", "2", "--epochs", "2", "--evaluate-every", "1", "--precision", "float32"]
    result = CliRunner().invoke(main, ["train", "--data", data, "--out", str(out), *small])
    assert result.exit_code == 0, result.output
    newest = out / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-500])
    files = {path: path.read_bytes() for path in out.iterdir()}
    result = CliRunner().invoke(main, ["train", "--resume", "--out", str(out), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "checkpoint.pt is damaged" in " ".join(result.output.split())
    assert {path: path.read_bytes() for path in out.iterdir()} == files


def test_a_run_remembers_what_it_took(tmp_path):
    data = str(pictures(tmp_path / "pets", 32, 10))
    small = ["--width", "2", "--epochs", "1", "--evaluate-every", "1", "--precision", "float32"]
    result = CliRunner().invoke(main, ["train", "--data", data, "--out", str(tmp_path / "run"), *small])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["random_start"], settings["held_out"], settings["batch_size"]) == (False, 2, 4)
