"""Tiny models, made once a session: random weights, but folders as complete as `robustsynth train` writes them."""

from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustsynth.data import ImageData, load_data
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import build_network
from robustsynth.models.store import load_model, save_model
from robustsynth.seeds import fit_class_seeds
from robustsynth.training.trainer import Trainer

# One thread, here and in what the tests start: tiny networks gain nothing by more, lose much on a busy machine, and
# bytes are promised to be equal for equal numbers of threads.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(session_cache, monkeypatch) -> Path:
    """Nothing that a test measures or decodes reaches the user's own cache."""
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(session_cache))
    return session_cache


def random_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: neither their statistics nor their factors are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                if tensor is not None:
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.data.copy_(low + (high - low) * drawn)
    return network


def pictures_of_classes(classes: int, each: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures, each class of its own brightness, and their labels."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    level = 60 + 120 * labels / classes
    noise = random.normal(0, 30, (len(labels), size, size, channels))
    return (level[:, None, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def make_model_folder(
    folder: Path, *, architecture: str, classes: tuple[str, ...], image_size: int, channels: int
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(architecture, classes=len(classes), width=4, channels=channels, image_size=image_size)
    random_statistics(network)
    mean, std = (0.5,) * channels, (0.25,) * channels
    card = ModelCard(
        name=folder.name,
        architecture=architecture,
        width=4,
        channels=channels,
        image_size=image_size,
        classes=classes,
        mean=mean,
        std=std,
        threat_model={"norm": "l2", "eps": 0.5},
        tasks={"generate": {"eps": 2.0, "step_size": 0.25, "steps": 4}},
    )
    fit_class_seeds(
        *pictures_of_classes(len(classes), 12, image_size, channels),
        classes=len(classes),
        image_size=image_size,
        rank=8,
    ).save(folder)
    save_model(folder, Classifier(network, classes=classes, mean=mean, std=std, image_size=image_size), card)
    return folder


TINY_CLASSES = ("cat", "ship", "t-shirt")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A residual network for 16×16 pictures in colour."""
    return make_model_folder(
        tmp_path_factory.mktemp("models") / "tiny",
        architecture="resnet18",
        classes=TINY_CLASSES,
        image_size=16,
        channels=3,
    )


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The small network for 28×28 digits in grey."""
    return make_model_folder(
        tmp_path_factory.mktemp("models") / "digits",
        architecture="small-cnn",
        classes=tuple("0123456789"),
        image_size=28,
        channels=1,
    )


@pytest.fixture
def tiny(tiny_folder) -> Classifier:
    return load_model(tiny_folder, device="cpu")


@pytest.fixture
def tiny_copy(tiny_folder, tmp_path) -> Path:
    """A folder of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny-copy"))


def quiet(path_or_name, split="train", **settings) -> ImageData:
    """`load_data` without announcements."""
    return load_data(path_or_name, split, announce=lambda line: None, **settings)


def pixels(seed: int, side: int = 8, channels: int = 3) -> np.ndarray:
    shape = (side, side) if channels == 1 else (side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


WITHOUT_RELU = (
    *("preact-resnet18-plain", "preact-resnet18-early", "preact-resnet18-silu"),
    *("wide-resnet28-10-silu", "wide-resnet34-10-silu", "wide-resnet70-16-silu"),
)
"""Architectures whose representation does not come from a ReLU, so that no gradient can pass straight through it."""

VERY_DEEP = ("resnet101", "resnet152", "wide-resnet50-2", "wide-resnet50-4")
"""Untrained and narrow, with statistics at random, their numbers grow beyond what float32 tells apart. Their blocks are
those of a resnet50, and import's tests compare their logits."""


def train_until(trainer: Trainer, stop: int | None = None) -> list[float]:
    """Train to the end, or leave after step `stop`; each step's loss."""
    losses = []
    for step in trainer.steps():
        losses.append(step.loss)
        if trainer.state.step == stop:
            break
    return losses
