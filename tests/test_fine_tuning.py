"""Beginning from a model that is there: of the same classes, of others, of another network, or gone by now."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from conftest import TINY_CLASSES, pictures_of_classes, train_until
from robustsynth.cli import main
from robustsynth.data import ImageData
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.store import load_model
from robustsynth.training.checkpoints import read_checkpoint
from robustsynth.training.fine_tuning import settings_of_model
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer


def pictures(classes: tuple[str, ...], *, channels: int = 3) -> ImageData:
    images, labels = pictures_of_classes(len(classes), 12, 16, channels)
    return ImageData(
        images, labels.astype(np.int64), classes, "made", "none", "made", (0.4,) * channels, (0.2,) * channels
    )


def begun(folder: Path, out: Path, data: ImageData, said: list[str] | None = None, **changed: Any) -> Trainer:
    given: dict[str, Any] = {
        **{"architecture": "resnet18", "width": 4, "eps": 0.5, "attack_steps": 1, "attack_step_size": 0.5},
        **{"epochs": 2, "batch_size": 8, "held_out": 6, "learning_rate": 0.01, "fine_tune": str(folder)},
    }
    resume = changed.pop("resume", False)
    return Trainer(
        TrainSettings(**(given | changed)),
        data,
        out,
        device="cpu",
        precision=None if resume else "float32",
        resume=resume,
        announce=lambda line: None if said is None else said.append(line),
    )


def test_the_same_classes_give_the_model_itself(tiny_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = begun(tiny_folder, tmp_path, pictures(TINY_CLASSES), said)
    model = load_model(tiny_folder, device="cpu")
    for part in (trainer.state.network, trainer.state.average):
        for name, value in model.network.state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(trainer.predict(trainer.state.average)(images), model(images), atol=1e-5)
    assert said == [
        "beginning from tiny, which knows 3 of the 3 classes",
        "its mean and deviation are used in the place of the data's",
    ]


def test_known_classes_keep_their_rows_and_new_ones_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = begun(tiny_folder, tmp_path, pictures(("ship", "yak", "cat", "zebra")), said)
    assert "knows 2 of the 4 classes; new: yak, zebra" in said[0]
    old, new = (n.state_dict() for n in (load_model(tiny_folder, device="cpu").network, trainer.state.network))
    for part in ("fc.weight", "fc.bias"):
        assert torch.equal(new[part][0], old[part][TINY_CLASSES.index("ship")])
        assert torch.equal(new[part][2], old[part][TINY_CLASSES.index("cat")])
        assert not any(torch.equal(new[part][1], row) for row in old[part])


def test_what_differs_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    data = pictures(TINY_CLASSES)
    data = dataclasses.replace(data, mean=(0.5,) * 3, std=(0.25,) * 3)
    said: list[str] = []
    begun(tiny_folder, tmp_path / "a", data, said, norm="linf", eps=0.1, image_size=20, crop="resized")
    assert said[1:] == [
        "it was trained against l2 eps 0.5, this run trains against linf eps 0.1",
        "it was trained at 16 pixels, this run trains at 20",
    ]
    said.clear()
    begun(tiny_folder, tmp_path / "b", data, said)
    assert len(said) == 1


def test_a_run_goes_on_exactly_where_the_model_is_gone(tiny_copy: Path, tmp_path: Path) -> None:
    data = pictures(("ship", "yak"))
    begun(tiny_copy, tmp_path / "whole", data).run()
    train_until(begun(tiny_copy, tmp_path / "parts", data), 3)
    shutil.rmtree(tiny_copy)
    begun(tiny_copy, tmp_path / "parts", data, resume=True).run()
    for part in ("network", "average"):
        whole, parts = (read_checkpoint(tmp_path / name)[part] for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    model = load_model(tmp_path / "parts", device="cpu")
    assert model.card is not None
    assert model.card.mean == pytest.approx((0.5,) * 3)  # The model's that it began from, not the data's.
    assert model.classes == ("ship", "yak")
    with pytest.raises(UserError, match="does not exist"):
        begun(tiny_copy, tmp_path / "new", data)


@pytest.mark.parametrize(
    ("changed", "channels", "said"),
    [
        ({"width": 8}, 3, "a resnet18 of width 4.*--width"),
        ({"architecture": "small-cnn"}, 3, "same network.*--architecture"),
        ({"image_size": 128}, 3, "--image-size"),
        ({}, 1, "images of 3 channels.*got 1"),
        ({"fine_tune": "nothing"}, 3, "nothing"),
    ],
    ids=str,
)
def test_another_network_is_refused(
    tiny_folder: Path, tmp_path: Path, changed: dict[str, Any], channels: int, said: str
) -> None:
    with pytest.raises((UserError, UnknownNameError), match=said):
        begun(tiny_folder, tmp_path / "out", pictures(TINY_CLASSES, channels=channels), **changed)
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_the_network_from_the_models_card(tiny_folder: Path, tmp_path: Path) -> None:
    assert settings_of_model(str(tiny_folder))[0] == {"architecture": "resnet18", "width": 4, "image_size": 16}
    for label in ("cat", "yak"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    arguments = [
        *("train", "--fine-tune", tiny_folder, "--data", tmp_path / "data", "--out", tmp_path / "out"),
        *("--epochs", 1, "--batch-size", 8, "--held-out", 4, "--attack-steps", 1, "--attack-step-size", 0.5),
        *("--precision", "float32", "--device", "cpu"),
    ]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "knows 1 of the 2 classes; new: yak" in result.output
    assert load_model(tmp_path / "out", device="cpu").classes == ("cat", "yak")
    result = CliRunner().invoke(
        main, [str(a) for a in [*arguments[:6], tmp_path / "other", *arguments[7:], "--width", 8]]
    )
    assert result.exit_code == 2
    assert "of width 4" in result.output
