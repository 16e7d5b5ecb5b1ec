"""What the bundled models draw, judged by one another: no data needed."""

from __future__ import annotations

import pytest
import torch

import robustsynth as rs
from robustsynth.tasks.table import TASKS


def recognised(judge: rs.Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((judge(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_the_standard_one_recognises_what_the_robust_one_draws(name: str) -> None:
    drawing, standard = rs.load_model(name, device="cpu"), rs.load_model(f"{name}-standard", device="cpu")
    labels = torch.arange(10).repeat(4)
    assert recognised(standard, rs.generate(drawing, labels, precision="float32"), labels) >= 0.9


def test_the_robust_one_does_not_recognise_what_the_standard_one_draws() -> None:
    # Not on MNIST, whose class normals alone are already digits.
    drawing, standard = rs.load_model("cifar10", device="cpu"), rs.load_model("cifar10-standard", device="cpu")
    labels = torch.arange(10).repeat(4)
    settings = TASKS["generate"].resolve(drawing)
    shared = {"eps": settings.eps, "step_size": settings.step_size, "steps": settings.steps}
    # The standard classifier convinces itself, but not the robust one.
    fooled = rs.generate(standard, labels, seed=0, precision="float32", **shared)
    assert recognised(standard, fooled, labels) >= 0.9
    assert recognised(drawing, fooled, labels) <= 0.6


def test_precisions_draw_the_same_images() -> None:
    model = rs.load_model("cifar10", device="cpu")
    labels = torch.arange(10)
    exact = rs.generate(model, labels, precision="float32", batch_size=10)
    reduced = rs.generate(model, labels, precision="bfloat16", batch_size=10)
    assert (exact - reduced).abs().mean() < 2 / 255
    assert not torch.equal(exact, reduced)


def test_every_image_stays_in_its_ball() -> None:
    model = rs.load_model("cifar10", device="cpu")
    labels = torch.tensor([3, 8])
    start = rs.generate(model, labels, steps=0)
    moved = rs.generate(model, labels, start=start, eps=1.5, precision="float32") - start
    assert moved.flatten(1).norm(dim=1).max() <= 1.5 + 1e-4
    assert moved.flatten(1).norm(dim=1).min() > 1.0
