"""Resampling against Pillow's, and back-projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.resampling import KERNELS, back_project, resample

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
sizes = st.integers(1, 24)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", PILLOW)
@pytest.mark.parametrize("size", [(20, 21), (90, 75), (37, 12), (1, 1)])
def test_smooth_kernels_are_pillows(kernel, size):
    image = pictures(1, 1, 37, 50)
    theirs = Image.fromarray(image[0, 0].numpy(), mode="F").resize((size[1], size[0]), PILLOW[kernel])
    assert np.abs(np.asarray(theirs) - resample(image, size, kernel)[0, 0].numpy()).max() < 1e-5


@given(st.sampled_from(KERNELS), sizes, sizes, sizes, sizes)
def test_a_plain_picture_stays_plain(kernel, height, width, high, wide):
    plain = torch.full((1, 2, height, width), 0.3)
    assert torch.allclose(resample(plain, (high, wide), kernel), torch.full((1, 2, high, wide), 0.3), atol=1e-5)


@given(sizes, sizes, sizes, sizes)
def test_area_keeps_the_mean(height, width, high, wide):
    image = pictures(1, 1, height, width)
    assert abs(resample(image, (high, wide), "area").mean() - image.mean()) < 1e-5


@given(sizes, sizes, st.integers(1, 4))
def test_area_undoes_nearest(height, width, factor):
    image = pictures(1, 2, height, width)
    enlarged = resample(image, (height * factor, width * factor), "nearest")
    assert torch.allclose(resample(enlarged, (height, width), "area"), image, atol=1e-6)


def test_gradients_flow_back():
    image = pictures(1, 1, 6, 6).requires_grad_(True)
    resample(image, (4, 5), "bilinear").sum().backward()
    assert image.grad is not None
    # Each output's weights add up to 1, so that all of them together give as much as there are outputs.
    assert image.grad.sum().item() == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("factor", [1.5, 2, 3.3, 8])
@pytest.mark.parametrize("kernel", ["area", "bicubic", "lanczos"])
def test_back_projection_meets_the_small_picture(factor, kernel):
    # Not from black to white, where clamping stops what would be needed.
    low = 0.25 + 0.5 * pictures(2, 3, 10, 12)
    size = (round(10 * factor), round(12 * factor))
    before = resample(low, size, "bicubic").clamp(0, 1)
    after = back_project(before, low, rounds=20, kernel=kernel)

    def difference(images: torch.Tensor) -> float:
        return (resample(images, (10, 12), "area") - low).abs().mean().item() * 255

    assert difference(after) < 1 < difference(before)
    assert after.min() >= 0
    assert after.max() <= 1


@pytest.mark.parametrize(
    ("size", "kernel", "error"), [((0, 3), "area", UserError), ((3, 3), "cubic", UnknownNameError)]
)
def test_mistakes_are_named(size, kernel, error):
    with pytest.raises(error):
        resample(pictures(1, 1, 4, 4), size, kernel)
