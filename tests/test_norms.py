"""A norm is one class in one file: it is registered, and then used to draw, to train and to evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import robustsynth as rs
from robustsynth.cli import main
from robustsynth.constraints import NORMS, Ball, ball, norm_named, register_norm
from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import evaluate_accuracy
from robustsynth.evaluation.attacks import apgd, random_squares
from robustsynth.evaluation.auto_attack import AutoAttack
from robustsynth.evaluation.masking import check_masking
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.randomness import image_generators


class ChannelBall(Ball):
    """Each channel of an image within Euclidean distance `eps` of its centre's."""

    name = "channel"
    growth = 0.5

    def length(self, offset: Tensor) -> Tensor:
        return offset.flatten(2).norm(dim=2).amax(1)

    def direction(self, grad: Tensor) -> Tensor:
        return grad / (grad.flatten(2).norm(dim=2)[:, :, None, None] + 1e-10)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        offset = images - center
        length = offset.flatten(2).norm(dim=2)[:, :, None, None]
        return (center + offset * (self.eps / (length + 1e-10)).clamp(max=1)).clamp(0, 1)


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))
    register_norm(ChannelBall)
    yield
    del NORMS["channel"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders of 16×16 images, as the tiny model of the tests sees them."""
    draw = np.random.default_rng(0)
    for index in range(36):
        for part in ("train", "test"):
            path = tmp_path / "data" / part / ("cat", "ship", "t-shirt")[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, said: str) -> None:
    assert (result.exit_code, said in " ".join(result.output.split())) == (2, True), result.output


def tiny_images(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), np.arange(count) % 3


# Facts


def test_a_registered_norm_is_known_by_its_name() -> None:
    assert ball("channel", 0.5) == ChannelBall(0.5)
    assert (repr(ChannelBall(0.5)), norm_named("channel")) == ("ChannelBall(eps=0.5)", ChannelBall)
    starts = ChannelBall(0.5).random_start(torch.full((4, 3, 8, 8), 0.5), image_generators(0, range(4)))
    assert 0.4 < float(ChannelBall(0.5).length(starts - 0.5).max()) <= 0.5 + 1e-6


@pytest.mark.parametrize("missing", ["name", "growth"])
def test_a_norm_without_its_facts_is_refused(missing: str) -> None:
    facts = {"name": "half", "growth": 1.0}
    del facts[missing]
    with pytest.raises(UserError, match=f"without {missing}"):
        register_norm(type("Half", (Ball,), facts))


@pytest.mark.parametrize(("name", "ratio"), [("l2", 2.0), ("linf", 1.0), ("channel", 2.0)])
def test_radii_grow_with_the_side_as_the_norm_says(name: str, ratio: float) -> None:
    kind = norm_named(name)
    assert kind.scale(64 * 64) / kind.scale(32 * 32) == ratio
    small, large = torch.full((1, 1, 32, 32), 0.1), torch.full((1, 1, 64, 64), 0.1)
    assert float(kind(1.0).length(large) / kind(1.0).length(small)) == pytest.approx(ratio, rel=1e-5)


# Uses


def test_it_draws(tiny: Classifier) -> None:
    start = torch.full((2, 3, 16, 16), 0.5)
    images = rs.generate(tiny, [0, 1], start=start, norm="channel", eps=0.3, step_size=0.1, steps=4)
    length = ChannelBall(0.3).length(images - start)
    assert 0.05 < float(length.min()) <= float(length.max()) <= 0.3 + 1e-5
    with pytest.raises(UserError, match="expected norm of l2, linf, channel, got 'l1'"):
        rs.generate(tiny, [0], norm="l1")


def test_it_draws_at_the_command_line(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    result = call(
        *("generate", "--model", tiny_folder, "--classes", "cat", "--num", 2, "--out", out, "--device", "cpu"),
        *("--norm", "channel", "--eps", "0.5", "--step-size", "0.2", "--steps", 2),
    )
    assert result.exit_code == 0, result.output
    assert "norm=channel" in result.output
    assert len(list(out.glob("0*.png"))) == 2


def test_it_trains_and_the_model_is_evaluated_by_it(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    training = ("train", "--data", data, "--out", out, "--norm", "channel", "--device", "cpu", "--precision", "float32")
    training += ("--architecture", "small-cnn", "--width", 2, "--epochs", 1, "--batch-size", 12, "--held-out", 6)
    refused(call(*training), "expected --eps beside --norm channel, which has no usual radius")
    result = call(*training, "--eps", "0.2")
    assert result.exit_code == 0, result.output
    assert ModelCard.load(out).threat_model == {"norm": "channel", "eps": 0.2}
    evaluation = ("evaluate", "--model", out, "--data", data, "--device", "cpu", "--num", 12)
    result = call(*evaluation)
    assert result.exit_code == 0, result.output
    assert "PGD-20 channel at eps 0.2" in result.stdout
    refused(call(*evaluation, "--attack", "apgd"), "expected a norm of l2, linf for the attack apgd, got channel")
    refused(call(*evaluation, "--attack", "auto"), "expected a norm of l2, linf for the attack auto, got channel")
    refused(call(*evaluation, "--norm", "l1", "--eps", 1), "expected a norm of l2, linf, channel, got 'l1'")


def test_it_is_evaluated(tiny: Classifier) -> None:
    images, _ = tiny_images()
    with torch.no_grad():
        labels = tiny(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    given: dict[str, Any] = {"norm": "channel", "precision": "float32", "batch_size": 6}
    rows = evaluate_accuracy(tiny, images, labels, eps=[1e-4, 8.0], **given)
    assert [row.correct for row in rows[:2]] == [6, 6]
    assert rows[2].correct < 6
    assert len(check_masking(tiny, images, labels, norm="channel", eps=0.1, queries=5)) == 6


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, x, y: apgd(model, x, y, constraint=ChannelBall(0.1)),
        lambda model, x, y: AutoAttack(model, norm="channel", eps=0.1),
        lambda model, x, y: evaluate_accuracy(model, *tiny_images(), norm="channel", eps=[0.1], attack="apgd"),
    ],
    ids=["apgd", "auto", "evaluate_accuracy"],
)
def test_attacks_that_cannot_use_it_say_so(tiny: Classifier, attack: Any) -> None:
    with pytest.raises(UserError, match=r"expected a norm of l2, linf for the attack (apgd|auto), got channel; use "):
        attack(tiny, torch.full((1, 3, 16, 16), 0.5), torch.tensor([0]))


def test_the_random_search_stays_in_its_ball(tiny: Classifier) -> None:
    x, y = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0, 1])
    found = random_squares(tiny, x, y, constraint=ChannelBall(0.4), numbers=range(2), queries=10)
    assert float(ChannelBall(0.4).length(found - x).max()) <= 0.4 + 1e-5
