"""Signs of masked gradients: seen on classifiers made to mask them, and not on honest ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustsynth.constraints import L2Ball, LinfBall
from robustsynth.errors import UserError
from robustsynth.evaluation import masking
from robustsynth.evaluation.accuracy import Accuracy
from robustsynth.evaluation.attacks import random_squares
from robustsynth.evaluation.masking import Sign, check_masking, rising
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model

SIDE = 8
EPS = 0.6


@pytest.fixture(scope="module")
def honest() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A small smooth network, and images of which about half are nearer than `EPS` to another class."""
    draw = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = draw.normal(110, 30, (48, SIDE, SIDE, 3))
    images[np.arange(48), :, :, labels] += 25
    images = images.clip(0, 255).astype(np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 12), nn.Tanh(), nn.Linear(12, 3))
        x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network, images, labels


class Changed(nn.Module):
    """A network between two functions, of its images and of its logits."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
        after: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.network(self.before(x)))


def looked_at(network: nn.Module, images: np.ndarray, labels: np.ndarray, **more: Any) -> dict[str, Sign]:
    model = Classifier.wrap(network, classes=3, mean=[0.0] * 3, std=[1.0] * 3, image_size=SIDE)
    signs = check_masking(model, images, labels, **({"norm": "l2", "eps": EPS, "queries": 60} | more))
    assert len(signs) == 6
    return {sign.name: sign for sign in signs}


MASKS: dict[str, dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "saturated softmax": {"after": lambda logits: 1e4 * logits},
    "rounded images": {"before": lambda x: (x * 16).round() / 16},
}


@pytest.mark.parametrize("package", [True, False], ids=["Square", "random search"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_classifier_is_noticed(
    honest: tuple[nn.Module, np.ndarray, np.ndarray], mask: str, package: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        pytest.importorskip("pyautoattack")
    else:
        monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    network, images, labels = honest
    found = looked_at(Changed(network, **MASKS[mask]), images, labels, norm="linf", eps=0.2)
    for name in ("gradients of zero", "not 0 % without a limit", "black box beats white box"):
        assert found[name].seen, found[name]
    assert ("Square" if package else "random search") in found["black box beats white box"].figures


def test_ripples_are_noticed(honest: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    """A fine ripple on the images turns gradients about: then large steps, which step over it, do better."""
    network, images, labels = honest
    rippled = Changed(network, before=lambda x: x + 0.02 * torch.sin(150 * x))
    found = looked_at(rippled, images, labels)
    assert found["one step beats many"].seen or found["another step size does better"].seen, found


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_honest_classifier_is_not_accused(honest: tuple[nn.Module, np.ndarray, np.ndarray], norm: str) -> None:
    network, images, labels = honest
    found = looked_at(network, images, labels, norm=norm, eps=EPS if norm == "l2" else 0.05)
    assert not [sign for sign in found.values() if sign.seen]


def test_a_gradient_that_is_no_number_is_a_sign(honest: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    network, images, labels = honest
    broken = Changed(network, before=lambda x: x + 0 * (x - x.detach()).clamp(min=0).sqrt())
    found = looked_at(broken, images, labels)["gradients of zero"]
    assert found.seen
    assert "NaN" in found.figures


def test_a_classifier_that_is_always_wrong_shows_nothing(honest: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    network, images, _ = honest
    with torch.no_grad():
        said = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    found = looked_at(network, images, (said + 1) % 3)
    assert not [sign for sign in found.values() if sign.seen]


def test_the_signs_do_not_depend_on_the_batch_size_without_the_package(
    honest: tuple[nn.Module, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "_square_attack", lambda *given: None)
    network, images, labels = honest
    assert looked_at(network, images, labels, batch_size=7) == looked_at(network, images, labels, batch_size=48)


@pytest.mark.parametrize(
    ("shares", "seen"),
    [((90, 60, 30), False), ((90, 20, 40), True), ((90, 20, 24), False), ((20, 90), True), ((50,), False)],
)
def test_rising(shares: tuple[int, ...], seen: bool) -> None:
    rows = [Accuracy(0.25 * i, right, 100) for i, right in enumerate(shares)]
    assert rising(rows).seen == rising(rows[::-1]).seen == seen


@pytest.mark.parametrize("constraint", [L2Ball(0.5), LinfBall(0.05)])
def test_random_squares_stay_in_the_ball_and_lower_the_margin(
    honest: tuple[nn.Module, np.ndarray, np.ndarray], constraint: L2Ball | LinfBall
) -> None:
    network, images, labels = honest
    x, y = (torch.from_numpy(images[:12]).permute(0, 3, 1, 2) / 255).contiguous(), torch.from_numpy(labels[:12])
    found = random_squares(network, x, y, constraint=constraint, numbers=range(12), queries=60)
    assert torch.allclose(constraint.project(found, x), found, atol=1e-6)
    own = [network(images).detach().gather(1, y[:, None]).squeeze(1) for images in (x, found)]
    assert own[1].mean() < own[0].mean()
    alone = random_squares(network, x[5:6], y[5:6], constraint=constraint, numbers=[5], queries=60)
    assert torch.allclose(alone, found[5:6], atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_a_radius_is_needed(honest: tuple[nn.Module, np.ndarray, np.ndarray], eps: float) -> None:
    with pytest.raises(UserError, match="eps"):
        looked_at(*honest, eps=eps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "eps"), [("cifar10-small", "l2", 0.5)])
def test_bundled_classifiers_are_not_accused(name: str, norm: str, eps: float) -> None:
    """On draws of their own seeds, which look enough like their classes to be held. Digits so drawn are not like
    digits, and there another step size does tell; docs/guide/evaluation.md has real ones."""
    model = load_model(name, device="cpu")
    from robustsynth.tasks.generate import generate

    labels = torch.arange(20) % 10
    images = (generate(model, labels, seed=0).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    signs = check_masking(model, images, labels.numpy(), norm=norm, eps=eps, queries=100, batch_size=20)
    assert not [sign for sign in signs if sign.seen]
