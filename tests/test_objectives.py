"""Objectives: their values, their sums, their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustsynth.errors import UserError
from robustsynth.objectives import CrossEntropy, Distance, Objective, Untargeted

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2, 1, 2])


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :5] * 3


def test_cross_entropy_is_minus_log_probability():
    expected = [-float(torch.log_softmax(flat(IMAGES), 1)[i, y]) for i, y in enumerate(LABELS.tolist())]
    torch.testing.assert_close(CrossEntropy(flat, LABELS)(IMAGES), torch.tensor(expected))
    torch.testing.assert_close(Untargeted(flat, LABELS)(IMAGES), -torch.tensor(expected))


def test_cross_entropy_of_a_classifier_runs_its_fast_twin(tiny):
    objective = CrossEntropy(tiny, LABELS)
    assert objective.network is tiny.synthesizer()
    got = objective(IMAGES)
    assert got.shape == (4,)
    expected = F.cross_entropy(objective.network(IMAGES), LABELS, reduction="none")
    assert torch.equal(got, expected)


def test_distance_is_the_mean_squared_difference():
    got = Distance(OTHERS)(IMAGES)
    torch.testing.assert_close(got, ((OTHERS - IMAGES) ** 2).mean((1, 2, 3)))
    mask = torch.zeros(4, 1, 16, 16)
    mask[:, :, :4] = 1
    weighted = Distance(OTHERS, 1 - mask)(IMAGES)
    # The authors' form: the mean is over all pixels, not over those that count.
    expected = ((OTHERS - IMAGES)[:, :, 4:] ** 2).sum((1, 2, 3)) / (3 * 16 * 16)
    torch.testing.assert_close(weighted, expected)


def test_objectives_add_and_scale():
    a, b = CrossEntropy(flat, LABELS), Distance(OTHERS)
    torch.testing.assert_close((a + 10 * b)(IMAGES), a(IMAGES) + 10 * b(IMAGES))
    torch.testing.assert_close((a * 2 + 0.5 * (b + a))(IMAGES), 2.5 * a(IMAGES) + 0.5 * b(IMAGES))
    assert isinstance(a + 10 * b, Objective)


def test_gradients_add_and_scale():
    def gradient(objective):
        x = IMAGES.double().requires_grad_(True)
        return torch.autograd.grad(objective(x).sum(), x)[0]

    a, b = CrossEntropy(flat, LABELS), Distance(OTHERS.double())
    torch.testing.assert_close(gradient(a + 10 * b), gradient(a) + 10 * gradient(b))
    torch.testing.assert_close(gradient(b), 2 * (IMAGES - OTHERS).double() / (3 * 16 * 16))


def test_an_images_gradient_is_its_own():
    x = IMAGES.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((CrossEntropy(flat, LABELS) + 3 * Distance(OTHERS))(x)[2], x)
    assert bool((grad[2] != 0).any())
    assert bool((grad[[0, 1, 3]] == 0).all())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), "labels as .N,. integers, got torch.float32"),
        (torch.tensor([[0, 1]]), r"got torch.int64 \(1, 2\)"),
        (torch.tensor([0, 3]), "labels from 0 to 2, got"),
        (torch.tensor([-1]), "labels from 0 to 2, got"),
    ],
)
def test_bad_labels(tiny, labels, message):
    with pytest.raises(UserError, match=message):
        CrossEntropy(tiny, labels)


def test_as_many_labels_as_images():
    with pytest.raises(UserError, match="one label an image, got 4 for 2 images"):
        CrossEntropy(flat, LABELS)(IMAGES[:2])
