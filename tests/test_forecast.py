"""What a run says of itself before it starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import robustsynth.training.forecast as forecast_module
from robustsynth.cli import main
from robustsynth.data import ImageData
from robustsynth.data.load import describe_data, load_data
from robustsynth.training.forecast import CHECKPOINTS, forecast
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def settings(**changed: Any) -> TrainSettings:
    given: dict[str, Any] = {
        "architecture": "small-cnn",
        "width": 2,
        "attack_steps": 1,
        "epochs": 5,
        "batch_size": 12,
        "held_out": 12,
        "evaluate_every": 2,
    }
    return TrainSettings(**(given | changed))


def pictures(count: int = 60, side: int = 8) -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    return ImageData(images, labels, ("red", "green"), "toys", "CC0-1.0", "toys", (0.5,) * 3, (0.25,) * 3)


def trainer(out: Path, **changed: Any) -> Trainer:
    return Trainer(settings(**changed), pictures(), out, device="cpu", precision="float32")


@pytest.mark.parametrize("recipe", ["pgd", "free", "trades", "fast"])
def test_a_forecast_changes_nothing_and_writes_nothing(tmp_path: Path, recipe: str) -> None:
    run = trainer(tmp_path / "run", recipe=recipe, cutmix=0.5)
    before = {k: copy.deepcopy(v) for k, v in run.state.network.state_dict().items()}
    stream = torch.random.get_rng_state()
    expected = forecast(run)
    assert torch.equal(stream, torch.random.get_rng_state())
    for name, value in run.state.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert run.state.step == 0
    assert not run.state.optimizer.state
    assert not (tmp_path / "run").exists()
    assert (expected.steps, expected.epochs, expected.cache) == (20, 5.0, 60 * 8 * 8 * 3)


def test_time_is_that_of_each_size_and_of_what_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {8: 0.5, 4: 0.125}
    met: list[int] = []

    def measured(run: Any, state: Any, images: Any, labels: Any) -> float:
        side = state.settings.side(state.step, run.steps_per_epoch, run.size)
        met.append(side)
        return seconds[side]

    monkeypatch.setattr(forecast_module, "_step_seconds", measured)
    monkeypatch.setattr(forecast_module, "_seconds", lambda work, device: 1.2)
    changed = {"architecture": "resnet18", "crop": "resized", "early_size": 4, "early_share": 0.5, "attack_steps": 2}
    expected = forecast(trainer(tmp_path, **changed))
    assert met == [4, 8]
    assert expected.training_seconds == 10 * 0.125 + 10 * 0.5
    # 12 images after the second, the fourth and the last epoch, at 1.2 s for as many.
    assert expected.selecting_seconds == pytest.approx(3 * 1.2)
    assert "0.12 s a step at 4 pixels, 0.50 s a step at 8 pixels" in expected.lines()[0]
    guarded = forecast(trainer(tmp_path / "guarded", guard_every=10))
    assert guarded.selecting_seconds == pytest.approx((3 + 2) * 1.2)


@pytest.mark.parametrize("changed", [{}, {"recipe": "free"}, {"attack_steps": 3}])
def test_the_disk_that_checkpoints_take(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = trainer(tmp_path, epochs=1, width=24, **changed)
    expected = forecast(run)
    run.run()
    size = (tmp_path / "checkpoint.pt").stat().st_size
    # The guard's copy is of before the first step here, and lacks momentum.
    assert 0.7 * size < expected.checkpoints / CHECKPOINTS < 1.25 * size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = pictures()
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "toys" / data.classes[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "toys"


def test_a_description_is_of_the_data_as_it_would_be_loaded(folder: Path) -> None:
    described, there = describe_data(folder, announce=list)
    assert not there
    loaded = load_data(folder, announce=list)
    for name in ("classes", "name", "licence", "source", "mean", "std"):
        assert getattr(described, name) == getattr(loaded, name)
    assert described.images.shape == loaded.images.shape
    assert len(described) == len(loaded)
    assert describe_data(folder, announce=list)[1]


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Path, folder: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "--data", folder, "--out", tmp_path / "run", "--dry-run", "--architecture", "small-cnn"]
    arguments += ["--width", 2, "--epochs", 3, "--batch-size", 12, "--held-out", 12, "--precision", "float32"]
    result = CliRunner().invoke(main, [str(a) for a in [*arguments, "--device", "cpu"]])
    assert result.exit_code == 0, result.output
    assert "to go: 12 steps, 3 epochs; " in result.output
    assert "memory: " in result.output
    assert "11.5 kB of decoded images in the cache" in result.output
    assert "a dry run: nothing was written" in result.output
    written = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()]
    assert not written
