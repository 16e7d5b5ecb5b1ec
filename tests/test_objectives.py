"""Objectives: their values, their sums, their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsynth.errors import UserError
from robustsynth.objectives import (
    CrossEntropy,
    Distance,
    Ensemble,
    Objective,
    Reordered,
    Untargeted,
    checked_weights,
)

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2, 1, 2])


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :5] * 3


def test_cross_entropy_is_minus_log_probability():
    expected = [-float(torch.log_softmax(flat(IMAGES), 1)[i, y]) for i, y in enumerate(LABELS.tolist())]
    torch.testing.assert_close(CrossEntropy(flat, LABELS)(IMAGES), torch.tensor(expected))
    torch.testing.assert_close(Untargeted(flat, LABELS)(IMAGES), -torch.tensor(expected))


def test_cross_entropy_of_a_classifier_is_of_it_frozen(tiny):
    objective = CrossEntropy(tiny, LABELS)
    assert objective.network is tiny.frozen()
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


# ---- mixes and ensembles ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_a_mix_is_the_weighted_sum_of_its_classes(weights):
    row = torch.tensor(weights) / sum(weights)
    got = CrossEntropy(flat, row.expand(4, -1))(IMAGES)
    each = [CrossEntropy(flat, torch.full((4,), k))(IMAGES) for k in range(5)]
    torch.testing.assert_close(got, sum(w * c for w, c in zip(row.tolist(), each, strict=True)))


def test_a_mix_of_one_class_is_that_class():
    alone = CrossEntropy(flat, F.one_hot(LABELS, 5).float())(IMAGES)
    torch.testing.assert_close(alone, CrossEntropy(flat, LABELS)(IMAGES))


def test_a_mix_is_least_where_probabilities_are_its_weights():
    weights = torch.tensor([[0.7, 0.0, 0.3, 0.0, 0.0]])
    image = torch.zeros(1, 5, 1, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(CrossEntropy(lambda x: x.flatten(1), weights)(image).sum(), image)
    torch.testing.assert_close(grad.flatten(1), torch.full((1, 5), 0.2) - weights)


def test_a_mix_by_a_classifier_is_of_it_frozen(tiny):
    objective = CrossEntropy(tiny, torch.full((4, 3), 1 / 3))
    assert objective.network is tiny.frozen()
    assert objective(IMAGES).shape == (4,)


BAD_WEIGHTS = {
    "integers": (torch.tensor([[1, 0, 0]]), r"floating tensor \(N, 3\), got torch.int64 \(1, 3\)"),
    "one row": (torch.tensor([1.0, 0.0, 0.0]), r"got torch.float32 \(3,\)"),
    "another number of classes": (torch.tensor([[0.5, 0.5]]), r"floating tensor \(N, 3\), got .* \(1, 2\)"),
    "too much": (torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]), "sum to 1 for each image, got .* for image 1"),
    "below 0": (torch.tensor([[1.5, -0.5, 0.0]]), "weights of 0 or more"),
    "no number": (torch.tensor([[float("nan"), 0.5, 0.5]]), "sum to 1 for each image, got .nan"),
    "infinite": (torch.tensor([[float("inf"), 0.0, 0.0]]), "sum to 1"),
}


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights(tiny, weights, message):
    with pytest.raises(UserError, match=message):
        CrossEntropy(tiny, weights)


def test_weights_of_no_images():
    assert checked_weights(torch.empty(0, 3), 3).shape == (0, 3)


def test_as_many_weights_as_images():
    with pytest.raises(UserError, match="one row of weights an image, got 1 for 4 images"):
        CrossEntropy(flat, torch.full((1, 5), 0.2))(IMAGES)


def test_an_ensemble_is_the_mean():
    parts = [CrossEntropy(flat, LABELS), Distance(OTHERS), CrossEntropy(lambda x: -flat(x), LABELS)]
    torch.testing.assert_close(Ensemble(parts)(IMAGES), sum(part(IMAGES) for part in parts) / 3)
    assert torch.equal(Ensemble(parts[:1])(IMAGES), parts[0](IMAGES))
    with pytest.raises(UserError, match="one or more objectives, got none"):
        Ensemble([])


@settings(deadline=None)
@given(st.permutations(["cat", "dog", "ship", "deer", "frog"]))
def test_classes_are_brought_into_order_by_name(names):
    wanted = ["cat", "dog", "ship", "deer", "frog"]
    logits = Reordered(flat, names, wanted)(IMAGES)
    for place, name in enumerate(wanted):
        assert torch.equal(logits[:, place], flat(IMAGES)[:, names.index(name)])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog"], "one with dog and without ship"),
        (["cat"], "one with none other and without ship"),
        (["cat", "ship", "dog"], "one with dog and without none"),
    ],
)
def test_other_classes_are_no_ensemble(classes, message):
    with pytest.raises(UserError, match=message):
        Reordered(flat, classes, ["cat", "ship"])
