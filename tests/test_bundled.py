"""What the bundled models draw, judged by one another: no data needed."""

from __future__ import annotations

import pytest
import torch

import robustsynth as rs
from robustsynth.models.files import model_names

PAIRS = [(robust, standard) for robust, standard in (("cifar10", "cifar10-standard"), ("mnist", "mnist-standard"))]


def recognised(judge: rs.Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((judge(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("robust", "standard"), PAIRS)
def test_the_robust_one_draws_its_classes_and_its_twin_does_not(robust: str, standard: str) -> None:
    assert {robust, standard} <= set(model_names())
    drawing, twin = rs.load_model(robust, device="cpu"), rs.load_model(standard, device="cpu")
    labels = torch.arange(10).repeat(4)
    settings = rs.resolve_generate(drawing)
    shared = {"eps": settings.eps, "step_size": settings.step_size, "steps": settings.steps, "norm": settings.norm}
    images = rs.generate(drawing, labels, seed=0, precision="float32")
    assert recognised(twin, images, labels) >= 0.9
    # The twin convinces itself, but not the robust one.
    fooled = rs.generate(twin, labels, seed=0, precision="float32", **shared)
    assert recognised(twin, fooled, labels) >= 0.9
    assert recognised(drawing, fooled, labels) <= recognised(drawing, images, labels) - 0.3


def test_precisions_draw_the_same_pictures() -> None:
    model = rs.load_model("cifar10", device="cpu")
    labels = torch.arange(10)
    exact = rs.generate(model, labels, precision="float32", batch_size=10)
    reduced = rs.generate(model, labels, precision="bfloat16", batch_size=10)
    assert (exact - reduced).abs().mean() < 2 / 255
    assert not torch.equal(exact, reduced)


def test_every_picture_stays_in_its_ball() -> None:
    model = rs.load_model("cifar10", device="cpu")
    labels = torch.tensor([3, 8])
    start = rs.generate(model, labels, steps=0)
    moved = rs.generate(model, labels, start=start, eps=1.5, precision="float32") - start
    assert moved.flatten(1).norm(dim=1).max() <= 1.5 + 1e-4
    assert moved.flatten(1).norm(dim=1).min() > 1.0
