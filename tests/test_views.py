"""How a classifier sees images of any size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustsynth.errors import UserError
from robustsynth.images import LARGEST
from robustsynth.views import VIEWS, Shifted, View, Viewed, check_size, choose_views, moved, shift_of, size_ratio

# So that no image takes more views than are allowed.
sides = st.integers(16, 200)


@given(sides, sides, sides, st.sampled_from([None, *VIEWS]))
def test_views_cover_the_image_and_stay_inside(height, width, side, kind):
    seen = torch.zeros(height, width, dtype=torch.bool)
    for view in choose_views((height, width), side, kind):
        assert 0 <= view.top <= view.top + view.height <= height
        assert 0 <= view.left <= view.left + view.width <= width
        seen[view.top : view.top + view.height, view.left : view.left + view.width] = True
    assert seen.all()


@given(sides, sides, sides, st.sampled_from(["squares", "tiles"]))
def test_squares_overlap(height, width, side, kind):
    views = choose_views((height, width), side, kind)
    assert all(view.height == view.width for view in views)
    lefts = sorted({view.left for view in views})
    assert all(b - a <= views[0].width * 0.8 + 1 for a, b in itertools.pairwise(lefts))


@pytest.mark.parametrize(("size", "count"), [((96, 128), 1), ((100, 100), 1), ((96, 240), 3), ((500, 100), 7)])
def test_long_images_are_seen_in_squares(size, count):
    assert len(choose_views(size, 32)) == count


def test_a_network_sees_its_own_size_and_gives_a_gradient_to_every_pixel():
    shapes = []

    def network(images: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return images.mean((2, 3))

    images = torch.rand(2, 3, 40, 100, requires_grad=True)
    Viewed(network, choose_views((40, 100), 16), 16)(images).sum().backward()
    assert set(shapes) == {(2, 3, 16, 16)}
    assert images.grad is not None
    assert (images.grad > 0).all()


def test_views_are_averaged():
    halves = [View(0, 0, 4, 4), View(0, 4, 4, 4)]
    image = torch.cat([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)], 3)
    assert Viewed(lambda x: x.mean((2, 3)), halves, 4)(image).item() == 0.5


def test_a_radius_grows_with_the_image():
    change = torch.full((1, 3, 60, 80), 0.1)
    small = torch.full((1, 3, 32, 32), 0.1)
    assert size_ratio((60, 80), 32, "l2") == pytest.approx((change.norm() / small.norm()).item(), rel=1e-5)
    assert size_ratio((60, 80), 32, "linf") == 1


@pytest.mark.parametrize(
    ("size", "said"), [((1, 1), "at least"), ((7, 900), "at least"), ((20_000, 20_000), "at most")]
)
def test_sizes_that_make_no_sense_are_refused(size, said):
    with pytest.raises(UserError, match=said):
        check_size(*size)
    assert LARGEST < 20_000**2


def test_images_of_too_many_views_are_refused():
    with pytest.raises(UserError, match="views=whole"):
        choose_views((3000, 4000), 32, "tiles")


def test_unknown_views_are_named():
    with pytest.raises(UserError, match="whole, squares, tiles"):
        choose_views((9, 9), 8, "spiral")


@given(st.integers(0, 500), st.integers(0, 9))
def test_shifts_stay_within_their_bound(index, most):
    assert max(map(abs, shift_of(index, most))) <= most


def test_shifts_are_spread_evenly():
    drawn = np.array([shift_of(i, 4) for i in range(60)])
    assert np.abs(drawn.mean(0)).max() < 0.3
    assert len({tuple(d) for d in drawn}) > 30


def test_a_shift_moves_right_and_down():
    image = torch.arange(25.0).view(1, 1, 5, 5)
    there = moved(image, 2, 1)
    assert there.shape == image.shape
    assert there[0, 0, 1:, 2:].equal(image[0, 0, :-1, :-2])
    assert moved(image, 0, 0) is image


def test_calls_shift_and_a_new_look_begins_anew():
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def look() -> list[torch.Tensor]:
        seen = Shifted(lambda x: x.flatten(1), 3)
        return [seen(image) for _ in range(5)]

    first, second = look(), look()
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not first[0].equal(first[1])


@pytest.mark.parametrize("mirror", [False, True])
def test_every_second_call_is_mirrored(mirror):
    seen = Shifted(lambda x: x[:, 0, 0], 0, mirror)
    images = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    forwards, backwards = [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]
    assert [seen(images).tolist()[0] for _ in range(4)] == [forwards, backwards if mirror else forwards] * 2
