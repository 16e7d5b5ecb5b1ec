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
from robustsynth.training.defaults import LEAST_STEPS, attack_for, default_preset, fitted
from robustsynth.training.settings import resolve_train_settings

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
    ],
)
def test_the_attack_follows_what_is_said_of_it(options, expected):
    assert attack_for("small-images", options) == pytest.approx(expected)


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
    assert ", held out 4, evaluate every 37, attack step size 1.0" in said or preset == "small-images"


def test_a_preset_or_a_model_to_begin_from_is_taken_as_it_is(tmp_path):
    data = str(pictures(tmp_path / "pets", 32, 20))
    for chosen in (("--preset", "cifar10-quick"), ("--fine-tune", "cifar10-standard")):
        options = ["--data", data, "--out", str(tmp_path / "run"), "--held-out", "4", "--batch-size", "8", *chosen]
        result = CliRunner().invoke(main, ["train", *options, "--dry-run", "--precision", "float32"])
        assert result.exit_code == 0, result.output
        assert "no --preset" not in result.output


def test_a_run_remembers_what_it_took(tmp_path):
    data = str(pictures(tmp_path / "pets", 32, 10))
    small = ["--width", "2", "--epochs", "1", "--evaluate-every", "1", "--precision", "float32"]
    result = CliRunner().invoke(main, ["train", "--data", data, "--out", str(tmp_path / "run"), *small])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["random_start"], settings["held_out"], settings["batch_size"]) == (False, 2, 4)
