"""Models that nobody has tuned settings for, and presets that do not know a task."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.fills import fill
from robustsynth.images import save_png
from robustsynth.presets import preset_files, read_preset
from robustsynth.resampling import resample
from robustsynth.tasks.functions import inpaint, upscale
from robustsynth.tasks.settings import BEST
from robustsynth.tasks.table import TASKS

FIXED = {"precision": "float32", "batch_size": 2}


IMAGE_TASKS = [name for name, task in TASKS.items() if task.images]


def untuned(size: int = 32, tasks: dict | None = None) -> SimpleNamespace:
    card = None if tasks is None else SimpleNamespace(tasks=tasks)
    return SimpleNamespace(image_size=size, card=card, folder=None, classes=tuple("abcdefghij"))


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("preset", [None, BEST])
def test_an_untuned_model_gets_the_papers_steps_from_a_better_start(task, preset):
    found = TASKS[task].resolve(untuned(), preset=preset)
    if task in read_preset("robustsynth.tasks", "paper"):
        paper = TASKS[task].resolve(untuned(), preset="paper")
        assert (found.eps, found.step_size, found.steps) == (paper.eps, paper.step_size, paper.steps)
    for name, value in TASKS[task].untuned.items():
        assert getattr(found, name) == value


def test_better_starts_are_of_inpainting_and_of_enlarging():
    assert {name: dict(task.untuned) for name, task in TASKS.items() if task.untuned} == {
        "inpaint": {"fill": "edges"},
        "upscale": {"start": "bicubic", "consistency": 10},
    }


def photographs(size: int = 128, *, flip: bool = True) -> SimpleNamespace:
    card = SimpleNamespace(tasks={}, training={"settings": {"flip": flip}})
    return SimpleNamespace(image_size=size, card=card, folder=None, classes=tuple("abcdefghij"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("flip", [False, True])
def test_an_untuned_model_of_photographs_sees_views_that_shift(task, flip):
    resolve = TASKS[task].resolve
    found = resolve(photographs(flip=flip))
    assert found.shift == 8
    # A classifier that was never shown mirrored images may tell a class by its handedness.
    assert found.mirror == (flip and task != "paint")
    if task == "generate":
        assert found.seed_upsampling == "bicubic"
    for model in (untuned(), photographs(32)):
        assert resolve(model).shift == 0
    assert resolve(untuned(128)).mirror is False
    asked = resolve(photographs(), given={"shift": 3, "mirror": False})
    assert (asked.shift, asked.mirror) == (3, False)
    if task in read_preset("robustsynth.tasks", "paper"):
        assert resolve(photographs(), preset="paper").shift == 0


def test_tuned_settings_are_not_improved():
    model = untuned(tasks={"upscale": {"eps": 1.0}})
    assert TASKS["upscale"].resolve(model).consistency == 0


def test_an_untuned_models_larger_image_averages_to_the_given_one(tiny_copy):
    from robustsynth.models.store import load_model

    model = load_model(tiny_copy, device="cpu")
    assert model.card is not None
    model.card.tasks.pop("upscale", None)
    low = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    high = upscale(model, low, [0, 1], factor=2, steps=3, **FIXED)
    assert float((resample(high, (8, 8), "area") - low).abs().mean()) < 1 / 255


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("preset", preset_files("robustsynth.tasks"))
def test_a_preset_that_does_not_know_a_task_leaves_it_to_the_model(task, preset):
    model = untuned(tasks={task: {"eps": 1.25, "steps": 7}})
    found = TASKS[task].resolve(model, preset=preset)
    own = TASKS[task].resolve(model)
    assert (found == own) is (task not in read_preset("robustsynth.tasks", preset))
    assert own.steps == 7


def test_the_command_says_so(tiny_folder, tmp_path):
    save_png(tmp_path / "cat.png", np.full((20, 20, 3), 120, np.uint8))
    line = ["refine", tmp_path / "cat.png", "--model", tiny_folder, "--label", "cat", "--preset", "paper"]
    result = CliRunner().invoke(main, [str(a) for a in (*line, "--steps", "1", "--out", tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "preset 'paper' says nothing of refine: these are the model's own settings" in result.output


# ---- a hole that starts as what the caller gives ------------------------------------------------------------------


@pytest.fixture
def holed() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    hole = torch.zeros(1, 16, 16)
    hole[:, 4:9, 5:12] = 1
    return images, hole


def test_a_given_start_is_what_a_fill_would_be(tiny, holed):
    images, hole = holed
    given = fill(images, hole.expand(2, 1, 16, 16), "laplace")
    options = {"mask": hole, "steps": 3, **FIXED}
    there = inpaint(tiny, images, [0, 1], start=given, **options)
    assert torch.equal(there, inpaint(tiny, images, [0, 1], fill="laplace", **options))
    other = inpaint(tiny, images, [0, 1], start=torch.zeros_like(images), **options)
    assert not torch.equal(there, other)
    assert torch.equal(torch.where(hole > 0, 0.0, other), torch.where(hole > 0, 0.0, images)), "known pixels stay"


def test_a_start_of_another_size_is_refused(tiny, holed):
    images, hole = holed
    with pytest.raises(UserError, match="start like the images"):
        inpaint(tiny, images, [0, 1], mask=hole, start=images[:, :, :8], **FIXED)
