"""Where generation starts: fitting, sampling and keeping class distributions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from conftest import pictures_of_classes
from robustsynth import randomness
from robustsynth.errors import UserError
from robustsynth.randomness import generator, image_generators
from robustsynth.seeds import (
    RIDGE,
    SEED_KINDS,
    SEEDS_FILE,
    ClassSeeds,
    fit_class_mixtures,
    fit_class_seeds,
    from_frequencies,
    sample_seeds,
    to_frequencies,
)

FITTED = [kind for kind in SEED_KINDS if kind != "uniform"]


@pytest.fixture(scope="module")
def seeds() -> ClassSeeds:
    images, labels = pictures_of_classes(3, 20, 8, 3)
    fitted = fit_class_seeds(images, labels, classes=3, image_size=8, rank=6)
    return dataclasses.replace(fitted, mixtures=fit_class_mixtures(fitted, images, labels, components=2))


@pytest.mark.parametrize("kind", SEED_KINDS)
def test_starts_are_images_of_their_own(seeds, kind):
    labels = torch.tensor([0, 2, 2, 1])
    drawn = sample_seeds(seeds, kind, labels, image_generators(0, range(4)), shape=(3, 8, 8))
    assert drawn.shape == (4, 3, 8, 8)
    assert drawn.dtype == torch.float32
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert not torch.equal(drawn[1], drawn[2]), "two images of one class differ"
    alone = sample_seeds(seeds, kind, labels[2:3], image_generators(0, [2]), shape=(3, 8, 8))
    assert torch.equal(alone[0], drawn[2]), "an image does not depend on its company"
    other = sample_seeds(seeds, kind, labels, image_generators(1, range(4)), shape=(3, 8, 8))
    assert not torch.equal(other, drawn)


@pytest.mark.parametrize("kind", FITTED)
def test_fitted_seeds_follow_their_class(seeds, kind):
    for label in range(3):
        drawn = sample_seeds(seeds, kind, torch.full((40,), label), image_generators(0, range(40)))
        assert abs(float(drawn.mean()) - (60 + 40 * label) / 255) < 0.02


def correlated_images(count: int) -> np.ndarray:
    """Images along two known directions, with a little noise of every pixel."""
    random = np.random.default_rng(0)
    ways = random.normal(size=(2, 8 * 8 * 3))
    values = 128 + random.normal(0, 14, (count, 2)) @ ways + random.normal(0, 2, (count, 8 * 8 * 3))
    return values.round().clip(0, 255).astype(np.uint8).reshape(count, 8, 8, 3)


def outside_of_the_basis(seeds: ClassSeeds) -> torch.Tensor:
    """The covariance of the first class's residual: independent frequencies, as pixels."""
    waves = from_frequencies(torch.eye(192).view(192, 3, 8, 8)).flatten(1).double()
    return waves.T @ torch.diag(seeds.residual[0].double().flatten() ** 2) @ waves


def test_low_rank_covariance_is_near_the_true_one():
    images = np.concatenate([correlated_images(300), correlated_images(300)[::-1]])
    labels = np.repeat([0, 1], 300)
    seeds = fit_class_seeds(images, labels, classes=2, image_size=8, rank=4)
    flat = torch.from_numpy(images[:300]).permute(0, 3, 1, 2).double().flatten(1) / 255
    true = torch.cov(flat.T)
    basis = seeds.basis[0].double()
    fitted = basis.T @ basis + outside_of_the_basis(seeds)
    assert float((fitted - true).norm() / true.norm()) < 0.05
    torch.testing.assert_close(torch.trace(fitted), torch.trace(true), rtol=1e-3, atol=0)
    torch.testing.assert_close(seeds.mean[0].double().flatten(), flat.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seeds.std[0].double().flatten(), flat.std(0), rtol=1e-3, atol=1e-5)


def test_draws_have_the_fitted_covariance():
    images = correlated_images(300)
    seeds = fit_class_seeds(np.concatenate([images] * 2), np.repeat([0, 1], 300), classes=2, image_size=8, rank=4)
    count = 1500
    drawn = seeds.multivariate(torch.zeros(count, dtype=torch.long), image_generators(0, range(count)))
    got = torch.cov(drawn.double().flatten(1).T)
    basis = seeds.basis[0].double()
    expected = basis.T @ basis + outside_of_the_basis(seeds) + RIDGE * torch.eye(192, dtype=torch.float64)
    assert float((got - expected).norm() / expected.norm()) < 0.1
    independent = torch.cov(
        seeds.normal(torch.zeros(count, dtype=torch.long), image_generators(0, range(count))).double().flatten(1).T
    )
    torch.testing.assert_close(independent.diagonal().sqrt(), seeds.std[0].double().flatten(), rtol=0.15, atol=0.002)
    off = independent - torch.diag(independent.diagonal())
    assert float(off.norm() / expected.norm()) < 0.2, "pixels are independent of each other"


def test_the_ridge_is_added():
    """Images of a class that are all alike still give starts that differ, by the paper's 1e-4."""
    images = np.full((4, 8, 8, 3), 128, np.uint8)
    seeds = fit_class_seeds(images, np.array([0, 0, 1, 1]), classes=2, image_size=8, rank=2)
    drawn = seeds.multivariate(torch.zeros(50, dtype=torch.long), image_generators(0, range(50)))
    assert float(drawn.std()) == pytest.approx(RIDGE**0.5, rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_frequencies_are_an_orthonormal_change_of_axes(channels):
    x = torch.rand(5, channels, 8, 8)
    torch.testing.assert_close(from_frequencies(to_frequencies(x)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(to_frequencies(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    flat = to_frequencies(torch.full((1, channels, 8, 8), 0.5)).flatten()
    assert abs(float(flat[0])) > 1, "a grey image has brightness"
    assert float(flat[1:].abs().max()) < 1e-5, "and nothing else"


def test_full_rank_seeds_leave_no_residual():
    images, labels = pictures_of_classes(2, 5, 4, 1)
    seeds = fit_class_seeds(images, labels, classes=2, image_size=4, rank=16)
    assert seeds.basis.shape == (2, 16, 16)
    assert float(seeds.residual.max()) < 1e-6


def test_fitting_moves_no_stream_of_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = fit_class_seeds(*pictures_of_classes(2, 9, 8, 3), classes=2, image_size=8, rank=4)
    assert torch.equal(torch.rand(3), expected)
    second = fit_class_seeds(*pictures_of_classes(2, 9, 8, 3), classes=2, image_size=8, rank=4)
    assert torch.equal(first.basis, second.basis)


@pytest.mark.parametrize(("size", "side"), [(28, 28), (64, 64), (128, 32), (224, 56)])
def test_large_images_are_fitted_at_a_quarter(size, side):
    seeds = fit_class_seeds(*pictures_of_classes(2, 3, size, 1), classes=2, image_size=size, rank=2)
    assert seeds.mean.shape == (2, 1, side, side)
    nearest = sample_seeds(seeds, "multivariate", torch.tensor([0, 1]), image_generators(0, range(2)))
    assert nearest.shape == (2, 1, size, size)
    factor = size // side
    blocks = nearest.unfold(2, factor, factor).unfold(3, factor, factor)
    assert bool((blocks == blocks[..., :1, :1]).all()), "nearest upsampling repeats each pixel"
    smooth = sample_seeds(
        seeds, "multivariate", torch.tensor([0, 1]), image_generators(0, range(2)), upsampling="bicubic"
    )
    assert smooth.shape == nearest.shape
    assert 0 <= float(smooth.min()) <= float(smooth.max()) <= 1
    assert torch.equal(smooth, nearest) is (factor == 1)


def test_reduction_averages():
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 1), dtype=np.uint8)
    seeds = fit_class_seeds(images, np.array([0, 0, 1, 1]), classes=2, image_size=128, rank=1)
    expected = F.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, 4)[:2].mean(0)
    torch.testing.assert_close(seeds.mean[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 0, 0, 0]])
def test_a_class_with_too_few_images_is_named(labels):
    with pytest.raises(UserError, match=r"at least 2 images of each class to fit seeds, got [01] of class 1"):
        fit_class_seeds(np.zeros((4, 4, 4, 1), np.uint8), np.array(labels), classes=2, image_size=4)


def test_seeds_come_back_as_they_were_saved(seeds, tmp_path):
    path = seeds.save(tmp_path)
    assert path == tmp_path / SEEDS_FILE
    again = ClassSeeds.load(tmp_path)
    assert again.image_size == 8
    assert again.mixtures is None, "they are in a file of their own"
    for field in dataclasses.fields(seeds):
        if field.name not in ("image_size", "mixtures"):
            torch.testing.assert_close(getattr(again, field.name), getattr(seeds, field.name), rtol=1e-3, atol=1e-4)
    # float16, so small: two bytes a number.
    numbers = sum(getattr(seeds, n).numel() for n in ("mean", "std", "basis", "residual"))
    assert path.stat().st_size < 2 * numbers + 1500


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("seeds"),
    "a pickle": lambda path: torch.save({"mean": torch.zeros(1)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_seeds_are_named(seeds, tmp_path, damage):
    damage(seeds.save(tmp_path))
    with pytest.raises(UserError, match=rf"class seeds in .*{SEEDS_FILE}, but it is damaged"):
        ClassSeeds.load(tmp_path)


def test_seeds_that_lack_something_are_named(seeds, tmp_path):
    from safetensors.torch import save_file

    save_file({"mean": seeds.mean}, seeds.save(tmp_path), metadata={"image_size": "8"})
    with pytest.raises(UserError, match="damaged"):
        ClassSeeds.load(tmp_path)
    save_file({n: getattr(seeds, n).contiguous() for n in ("mean", "std", "basis", "residual")}, seeds.save(tmp_path))
    with pytest.raises(UserError, match="damaged"):
        ClassSeeds.load(tmp_path)


def test_missing_seeds_say_what_else_there_is(tmp_path):
    with pytest.raises(UserError, match="found none; use --seeds-from uniform or a folder"):
        ClassSeeds.load(tmp_path)


def test_uniform_needs_no_fit(seeds):
    labels = torch.tensor([0, 0])
    drawn = sample_seeds(None, "uniform", labels, image_generators(0, range(2)), shape=(1, 30, 30))
    assert abs(float(drawn.mean()) - 0.5) < 0.03
    with pytest.raises(UserError, match="expected the shape"):
        sample_seeds(None, "uniform", labels, image_generators(0, range(2)))
    assert sample_seeds(seeds, "uniform", labels, image_generators(0, range(2))).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("kind", FITTED)
def test_fitted_kinds_need_a_fit(kind):
    with pytest.raises(UserError, match=f"--seeds-from {kind}, but this model has none"):
        sample_seeds(None, kind, torch.tensor([0]), image_generators(0, [0]), shape=(3, 8, 8))


def test_unknown_kinds(seeds):
    with pytest.raises(UserError, match="multivariate, mixture, or a folder of images, got 'gaussian'"):
        sample_seeds(seeds, "gaussian", torch.tensor([0]), image_generators(0, [0]))


# ---- randomness ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=3), st.lists(st.integers(0, 2**63), min_size=1, max_size=3))
def test_streams_are_equal_for_equal_keys_alone(a, b):
    first, second = (torch.rand(4, generator=generator(*key)) for key in (a, b))
    # Trailing zeros mean nothing to numpy's SeedSequence, so keys are compared without.
    same = a == b or (len(a) != len(b) and np.trim_zeros(a, "b") == np.trim_zeros(b, "b"))
    assert torch.equal(first, second) is same or len(a) != len(b)


def test_images_of_a_job_have_streams_of_their_own():
    drawn = randomness.uniform(image_generators(0, range(50)), (20,))
    assert len({tuple(row) for row in drawn.tolist()}) == 50
    assert torch.equal(drawn[[7, 3]], randomness.uniform(image_generators(0, [7, 3]), (20,)))
    assert float(torch.corrcoef(drawn).triu(1).abs().max()) < 0.85
    assert abs(float(randomness.normal(image_generators(0, range(50)), (100,)).std()) - 1) < 0.05


def test_a_seed_below_zero_is_refused():
    with pytest.raises(UserError, match="seed of 0 or more, got -1"):
        generator(-1, 0)
