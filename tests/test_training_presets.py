"""The training presets: the documents' rows, networks at their size, and a step of each that is small enough."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch

from conftest import train_until
from robustsynth.data import ImageData
from robustsynth.models.networks import build_network
from robustsynth.models.store import load_model
from robustsynth.training.settings import TrainSettings, resolve_train_settings, training_presets
from robustsynth.training.trainer import Trainer

# What santurkar2019 prints in its Tables 4 and 5, by the documents' row.
ROWS = {
    "cifar10-l2": (350, 0.01, 256, (150, 250), 0.5, 7, 0.1),
    "restricted-imagenet": (110, 0.1, 128, (30, 60), 3.5, 7, 0.1),
    "imagenet": (110, 0.1, 256, (100,), 3.0, 7, 0.5),
    "two-domain": (350, 0.01, 64, (50, 100), 5.0, 7, 0.9),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_papers_rows(name):
    made = resolve_train_settings(name)
    row = (made.epochs, made.learning_rate, made.batch_size, made.milestones)
    attack = (made.eps, made.attack_steps, made.attack_step_size)
    assert row + attack == ROWS[name]
    assert (made.architecture, made.width, made.norm, made.schedule) == ("resnet50", None, "l2", "step")
    assert (made.momentum, made.nesterov, made.weight_decay) == (0.9, False, 5e-4)
    # What the paper does not speak of is not done.
    assert (made.random_start, made.warmup, made.average, made.clip_norm, made.label_smoothing) == (False, 0, 0, 0, 0)
    assert made.image_size == (None if name.startswith("cifar") else 224)


def test_the_row_of_mcgill():
    made = resolve_train_settings("cifar10-mcgill2019-vgg13")
    assert (made.architecture, made.norm, made.eps, made.epochs) == ("vgg13-bn", "l2", 1.0, 100)
    digits = resolve_train_settings("mnist-linf")
    assert (digits.architecture, digits.norm, digits.eps, digits.epochs) == ("small-cnn", "linf", 0.3, 20)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet-v2"])
def test_the_rows_of_hse(architecture):
    name = f"cifar10-hse2025-{architecture}"
    made = resolve_train_settings(name)
    assert (made.architecture, made.width, made.norm) == (architecture, None, "l2")
    assert (made.epochs, made.schedule, made.batch_size, made.learning_rate) == (100, "cosine", 128, 0.1)
    assert made.clip_norm > 0
    assert made.eps == pytest.approx(128 / 255, abs=1e-5)
    if architecture == "resnet18":
        assert "likely a slip" in text_of(name)
        printed = resolve_train_settings(name, {"eps": 0.0314, "attack_step_size": 0.0063})
        assert printed.eps == pytest.approx(8 / 255, abs=1e-4)


def text_of(preset: str) -> str:
    file = resources.files("robustsynth.training") / "presets" / f"{preset}.toml"
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", training_presets())
def test_every_preset_says_where_it_comes_from(name):
    assert text_of(name).startswith("# ")


def shape_of(made: TrainSettings, name: str) -> tuple[int, int]:
    """Side and channels of the images."""
    digits = name.startswith("mnist")
    return made.image_size or (28 if digits else 32), 1 if digits else 3


@pytest.mark.parametrize("name", training_presets())
def test_every_preset_builds_its_network_at_its_size(name):
    made = resolve_train_settings(name)
    assert all(milestone < made.epochs for milestone in made.milestones)
    side, channels = shape_of(made, name)
    with torch.device("meta"):
        network = build_network(
            made.architecture, classes=9, width=made.width, channels=channels, image_size=side
        ).eval()
        assert network(torch.empty(2, channels, side, side)).shape == (2, 9)


CHEAP = [name for name in training_presets() if resolve_train_settings(name).image_size is None]


@pytest.mark.parametrize("name", CHEAP)
def test_a_step_of_every_cheap_preset(name, tmp_path):
    small = {"width": 2, "batch_size": 8, "held_out": 4, "epochs": 1, "attack_steps": 1, "milestones": ()}
    made = resolve_train_settings(name, small)
    side, channels = shape_of(made, name)
    random = np.random.default_rng(0)
    data = ImageData(
        images=random.integers(0, 256, (12, side, side, channels), dtype=np.uint8),
        labels=np.arange(12) % 3,
        classes=("a", "b", "c"),
        name="made",
        licence="not stated",
        source="made",
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    trainer = Trainer(made, data, tmp_path / "run", device="cpu", precision="float32")
    losses = train_until(trainer)
    assert len(losses) == 1
    assert np.isfinite(losses[0])
    model = load_model(tmp_path / "run", device="cpu")
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.rand(2, channels, side, side))).all())
