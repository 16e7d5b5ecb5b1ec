"""Every constraint: feasible, idempotent, and random inside."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustsynth.constraints import NORMS, Box, ball, l2_norm
from robustsynth.errors import UserError
from robustsynth.randomness import image_generators

KINDS = {name: (lambda eps, kind=kind: kind(eps)) for name, kind in NORMS.items()} | {"box": lambda eps: Box()}


def size(name: str, difference: Tensor) -> Tensor:
    """How far images are from their centres, in each constraint's own measure."""
    if name == "box":
        return torch.zeros(len(difference), dtype=difference.dtype)
    return {"l2": difference.flatten(1).norm(dim=1), "linf": difference.flatten(1).abs().amax(1)}[name]


def draws(seed: int, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = (4, 3, 3, 3)) -> Tensor:
    drawn = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * drawn


def test_every_registered_norm_is_measured_here():
    assert set(NORMS) == {"l2", "linf"}, "a new norm needs its own measure in size() above"


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6), eps=st.floats(0, 4))
def test_projections_are_feasible_and_idempotent(name, seed, eps):
    constraint, center = KINDS[name](eps), draws(seed)
    projected = constraint.project(draws(seed + 1, -2, 3), center)
    assert float(projected.min()) >= 0
    assert float(projected.max()) <= 1
    assert float(size(name, projected - center).max()) <= eps * (1 + 1e-9) + 1e-12
    torch.testing.assert_close(constraint.project(projected, center), projected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6), share=st.floats(0, 0.99))
def test_allowed_images_stay_as_they_are(name, seed, share):
    center = draws(seed, 0.4, 0.6)
    offset = draws(seed + 1, -0.1, 0.1)
    eps = 0.2
    offset = offset * (share * eps / size("l2" if name == "box" else name, offset)).view(-1, 1, 1, 1).clamp_max(1)
    torch.testing.assert_close(KINDS[name](eps).project(center + offset, center), center + offset, rtol=0, atol=1e-14)


def test_projection_changes_nothing_that_it_is_given():
    for name, kind in KINDS.items():
        images, center = draws(0, -1, 2), draws(1)
        before = images.clone(), center.clone()
        kind(0.3).project(images, center)
        assert torch.equal(images, before[0]), name
        assert torch.equal(center, before[1]), name


@pytest.mark.parametrize("name", KINDS)
def test_directions_are_of_length_one_and_uphill(name):
    grad = draws(7, -1, 1)
    way = KINDS[name](1.0).direction(grad)
    length = way.flatten(1).norm(dim=1) if name != "linf" else way.flatten(1).abs().amax(1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=1e-9)
    assert bool(((way * grad).sum((1, 2, 3)) > 0).all())
    # The steepest one: no other direction of that length climbs more.
    dual = grad.flatten(1).norm(dim=1) if name != "linf" else grad.flatten(1).abs().sum(1)
    torch.testing.assert_close((way * grad).sum((1, 2, 3)), dual, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_zero_gradient_moves_nothing(name):
    assert bool((KINDS[name](1.0).direction(torch.zeros(2, 3, 4, 4)) == 0).all())


@pytest.mark.parametrize("name", KINDS)
def test_random_starts_are_inside_and_each_images_own(name):
    center = draws(0, shape=(6, 3, 4, 4)).float()
    constraint = KINDS[name](0.5)
    starts = constraint.random_start(center, image_generators(0, range(6)))
    assert starts.dtype == center.dtype
    assert float(starts.min()) >= 0
    assert float(starts.max()) <= 1
    assert float(size(name, starts - center).max()) <= 0.5 * (1 + 1e-5)
    alone = constraint.random_start(center[4:5], image_generators(0, [4]))
    assert torch.equal(alone[0], starts[4])
    assert not torch.equal(constraint.random_start(center, image_generators(1, range(6))), starts)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dimensions", [1, 3, 12])
def test_random_starts_are_uniform_in_the_ball(name, dimensions):
    """The volume within r grows as rⁿ, so (distance/ε)ⁿ is uniform on [0, 1] for a uniform draw."""
    count = 600
    center = torch.full((count, dimensions, 1, 1), 0.5)
    starts = NORMS[name](0.25).random_start(center, image_generators(0, range(count)))
    share = (size(name, starts - center) / 0.25) ** dimensions
    # Four standard errors of a uniform number's mean and of its median.
    assert abs(float(share.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs(float((share < 0.5).float().mean()) - 0.5) < 4 * math.sqrt(0.25 / count)
    assert float((starts - center).mean((0, 2, 3)).abs().max()) < 4 * 0.25 / math.sqrt(count)


@pytest.mark.parametrize("name", NORMS)
def test_a_radius_of_zero_allows_the_center_alone(name):
    center = draws(0)
    assert torch.equal(NORMS[name](0).project(draws(1), center), center)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("eps", [-1, -1e-9, math.inf, math.nan])
def test_bad_radii(name, eps):
    with pytest.raises(UserError, match="finite radius eps of 0 or more"):
        ball(name, eps)


def test_norms_by_name():
    assert ball("l2", 0.5) == NORMS["l2"](0.5)
    with pytest.raises(UserError, match="expected a norm of l2, linf, got 'l3'"):
        ball("l3", 0.5)


def test_l2_norm_is_per_image():
    images = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 2.0)])
    assert l2_norm(images).shape == (2, 1, 1, 1)
    torch.testing.assert_close(l2_norm(images).flatten(), torch.tensor([12.0, 48.0]).sqrt())
