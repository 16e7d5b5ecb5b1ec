"""Fills: by the known pixels alone, exactly, and along the edges that they were made for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustsynth import fills
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.fills import DEFAULT, FILLS, diffuse, edge_tensors, fill
from robustsynth.masks import random_patch_masks
from robustsynth.randomness import image_generators


def blurred(seed: int, count: int = 3, side: int = 40, channels: int = 3) -> Tensor:
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


def patches(count: int = 3, side: int = 40, patch: int = 12) -> Tensor:
    return random_patch_masks(image_generators(1, range(count)), size=(side, side), side=patch, border=side // 8)


def hole(top: int, left: int, height: int, width: int, side: int = 40) -> Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, top : top + height, left : left + width] = 1
    return mask


MASKS = {
    "patches": patches(),
    "corner": hole(0, 25, 20, 15),
    "across": hole(10, 0, 6, 40),
    "all but a pixel": 1 - hole(20, 20, 1, 1),
    "dots": (torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.5).float(),
    "thick": hole(1, 1, 38, 38),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", FILLS)
def test_only_the_hole_is_changed_and_nothing_in_it_is_read(kind, name):
    images, mask = blurred(0), MASKS[name]
    filled = fill(images, mask, kind)
    assert torch.where(mask > 0, images, filled).equal(images)
    assert filled.min() >= 0
    assert filled.max() <= 1
    for junk in (torch.full_like(images, float("nan")), torch.rand_like(images), torch.full_like(images, 1e30)):
        assert fill(torch.where(mask > 0, junk, images), mask, kind).equal(filled)


@pytest.mark.parametrize("kind", FILLS)
def test_no_image_depends_on_its_batch(kind):
    images, mask = blurred(1, count=4), patches(4)
    together = fill(images, mask, kind)
    for index in range(4):
        assert fill(images[index : index + 1], mask[index : index + 1], kind).equal(together[index : index + 1])


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_type_are_kept_and_gradients_are_not(kind, dtype):
    images = blurred(2, count=2, channels=1).to(dtype).requires_grad_()
    filled = fill(images, hole(10, 10, 9, 7), kind)
    assert (filled.shape, filled.dtype, filled.requires_grad) == (images.shape, dtype, False)
    assert fill(images[:0], hole(10, 10, 9, 7), kind).shape == (0, 1, 40, 40)


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("size", [(1, 5), (5, 1), (2, 2), (3, 4)])
def test_small_images(kind, size):
    mask = torch.zeros(1, *size)
    mask[:, -1, -1] = 1
    images = torch.full((1, 3, *size), 0.25)
    assert fill(images, mask, kind) == pytest.approx(0.25, abs=1e-6)


def test_the_mean_is_each_images_and_channels_own():
    images, mask = blurred(3), MASKS["corner"]
    filled = fill(images, mask, "mean")
    for image, result in zip(images.double(), filled, strict=True):
        for channel, got in zip(image, result, strict=True):
            assert got[mask[0] > 0].numpy() == pytest.approx(float(channel[mask[0] == 0].mean()), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 9), width=st.integers(1, 9), share=st.floats(0.05, 0.95))
def test_laplace_makes_each_pixel_the_mean_of_the_neighbours_it_has(seed, height, width, share):
    random = np.random.default_rng(seed)
    unknown = random.random((height, width)) < share
    unknown.flat[random.integers(unknown.size)] = False
    values = torch.from_numpy(random.random((2, height, width)))
    filled = diffuse(torch.where(torch.from_numpy(unknown), float("nan"), values), torch.from_numpy(unknown)).numpy()
    for row, column in np.argwhere(unknown):
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        here = [filled[:, r, c] for r, c in near if 0 <= r < height and 0 <= c < width]
        assert filled[:, row, column] == pytest.approx(np.mean(here, axis=0), abs=1e-9)
    assert filled[:, ~unknown] == pytest.approx(values.numpy()[:, ~unknown], abs=0)


def test_laplace_continues_a_slope():
    slope = (torch.linspace(0, 0.5, 40)[:, None] + torch.linspace(0, 0.4, 40)).expand(1, 1, 40, 40)
    assert fill(slope, hole(7, 9, 20, 25), "laplace") == pytest.approx(slope.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["patches", "corner", "dots", "all but a pixel"])
@pytest.mark.parametrize("guided", [False, True])
def test_large_holes_are_solved_as_exactly_as_small_ones(guided, name, monkeypatch):
    values, unknown = blurred(4)[0].double(), MASKS[name][0].reshape(40, 40) > 0
    tensors = edge_tensors(values, unknown) if guided else None
    direct = diffuse(values, unknown, tensors)
    monkeypatch.setattr(fills, "DIRECT", 100)
    assert diffuse(values, unknown, tensors) == pytest.approx(direct.numpy(), abs=1e-4)


def step(angle: float, side: int, softness: float = 0.7) -> Tensor:
    """A straight edge through the middle, dark on one side."""
    at = torch.arange(side) - (side - 1) / 2
    distance = at * math.cos(angle) + at[:, None] * math.sin(angle)
    return (0.2 + 0.6 * torch.sigmoid(distance / softness)).expand(1, 3, side, side).contiguous()


@pytest.mark.parametrize("angle", [0, 0.3, math.pi / 4, 1.2, math.pi / 2, 2.5])
@pytest.mark.parametrize(("side", "patch"), [(40, 14), (160, 60)])
def test_straight_edges_go_on_through_the_hole(angle, side, patch):
    images = step(angle, side)
    start = (side - patch) // 2
    mask = hole(start, start, patch, patch, side)
    wrong = {kind: float(((fill(images, mask, kind) - images) ** 2 * mask).sum()) for kind in ("laplace", "edges")}
    assert wrong["edges"] < wrong["laplace"] / 4


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)])
def test_edges_know_no_up_or_down(turn):
    images, mask = blurred(5), patches()
    turned = fill(turn(images).contiguous(), turn(mask).contiguous(), "edges")
    assert turned == pytest.approx(turn(fill(images, mask, "edges")).numpy(), abs=1e-4)


def test_without_edges_the_fill_is_laplaces():
    flat = torch.full((1, 3, 40, 40), 0.3)
    assert fill(flat, MASKS["corner"], "edges") == pytest.approx(0.3, abs=1e-6)
    board = torch.zeros(1, 40, 40)
    board[:, ::2, ::2] = board[:, 1::2, 1::2] = 1  # no four known pixels meet
    images = blurred(6)
    assert fill(images, board, "edges").equal(fill(images, board, "laplace"))


def test_the_default_is_a_kind():
    images, mask = blurred(7), patches()
    assert fill(images, mask).equal(fill(images, mask, DEFAULT))


def test_unknown_kinds_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'laplace'"):
        fill(blurred(0), patches(), "laplase")


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 40, 40), torch.zeros(1, 3, 40, 40, dtype=torch.uint8)], ids=["one image", "bytes"]
)
def test_images_of_another_form_are_refused(images):
    with pytest.raises(UserError, match=r"images \(N, C, H, W\)"):
        fill(images, hole(1, 1, 2, 2))


@pytest.mark.parametrize("mask", [torch.zeros(1, 40, 40), torch.ones(1, 40, 40), hole(0, 0, 2, 2, side=39)])
def test_masks_that_do_not_suit_are_refused(mask):
    with pytest.raises(UserError, match="expected a mask"):
        fill(blurred(0), mask)
