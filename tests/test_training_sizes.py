"""Training on crops of larger stored pictures, at fewer pixels first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conftest import pictures_of_classes
from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.models.store import load_model
from robustsynth.randomness import image_generators
from robustsynth.training.data import augment
from robustsynth.training.settings import TrainSettings, resolve_train_settings, training_presets
from robustsynth.training.trainer import Trainer

SETTINGS = TrainSettings(
    architecture="small-cnn",
    width=4,
    image_size=16,
    stored_size=20,
    early_size=12,
    early_share=0.5,
    crop="resized",
    epochs=2,
    batch_size=8,
    held_out=6,
    eps=0.3,
    attack_steps=1,
    attack_step_size=0.3,
)


def stored(side: int = 20) -> ImageData:
    images, labels = pictures_of_classes(2, 19, side, 3)
    return ImageData(
        images=images,
        labels=labels.astype(np.int64),
        classes=("a", "b"),
        name="made",
        licence="none",
        source="made",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def test_the_side_changes_once_and_ends_at_the_full_one():
    sides = [SETTINGS.side(step, 4, 16) for step in range(8)]
    assert sides == [12] * 4 + [16] * 4
    assert dataclasses.replace(SETTINGS, early_size=None).side(0, 4, 16) == 16


def test_a_run_trains_at_both_sides_and_makes_a_model_of_the_full_one(tmp_path, monkeypatch):
    # The network of the presets takes any size; the small one has a fixed last layer.
    settings = dataclasses.replace(SETTINGS, architecture="resnet18-even")
    seen: list[int] = []

    def noted(images, settings, generators, *, side):
        views = augment(images, settings, generators, side=side)
        seen.append(views.shape[-1])
        return views

    monkeypatch.setattr("robustsynth.training.step.augment", noted)
    trainer = Trainer(settings, stored(), tmp_path / "run", device="cpu", precision="float32")
    trainer.run()
    assert seen == [12] * 4 + [16] * 4
    model = load_model(tmp_path / "run", device="cpu")
    assert model.image_size == 16
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 2)


@pytest.mark.parametrize("area", [0.1, 1.0])
def test_crops_are_of_the_side_asked_for_and_show_that_much(area):
    # A slope: the range of values that a crop shows is its share of the side.
    slope = torch.linspace(0, 1, 40).expand(64, 3, 40, 40)
    settings = dataclasses.replace(SETTINGS, crop_area=area, flip=False)
    views = augment(slope, settings, image_generators(0, range(64)), side=24)
    assert views.shape == (64, 3, 24, 24)
    shown = (views.amax((1, 2, 3)) - views.amin((1, 2, 3))).min().item()
    assert (shown > 0.8) == (area == 1.0)


WRONG = [
    ({"stored_size": 20, "image_size": None}, "image_size"),
    ({"stored_size": 20, "crop": "pad"}, "crop"),
    ({"early_size": 12, "stored_size": None, "crop": "none"}, "early_size"),
    ({"early_share": 1.0}, "early_share"),
    ({"crop_area": 0.0}, "crop_area"),
    ({"crop_area": 1.5}, "crop_area"),
    ({"early_size": 0}, "early_size"),
    ({"early_size": 3}, "early_size of 4 or more pixels, got 3"),
    ({"early_size": 18}, "early_size of at most image_size, got 18 and 16"),
    ({"stored_size": 14}, "image_size of at most stored_size, got 16 and 14"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG, ids=str)
def test_sizes_that_make_no_sense_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SETTINGS, **changed)


@pytest.mark.parametrize("preset", training_presets())
def test_every_preset_resolves(preset):
    resolved = resolve_train_settings(preset)
    assert resolved.epochs > 0
    assert resolved.stored_size is None or resolved.stored_size >= (resolved.image_size or 0)
