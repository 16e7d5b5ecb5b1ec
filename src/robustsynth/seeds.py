"""Where generation starts: simple distributions of images for each class (Santurkar et al. 2019, Section 3.1).

Three distributions are fitted on training images and kept in one small file beside the model, so that nobody
needs the training data to sample: independent normals a pixel, multivariate normals of low rank, and, with nothing
to fit, uniform noise. Large images are fitted at a quarter of their resolution, as the paper does. Mixtures of normals
are in `robustsynth.mixtures`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustsynth import randomness
from robustsynth.errors import UserError
from robustsynth.files import sha256, written_beside

if TYPE_CHECKING:  # Mixtures are fitted to seeds, so that module needs this one.
    from robustsynth.mixtures import ClassMixtures

RANK = 64
"""Directions kept of each class's covariance. The rest is kept as the variance of each of its frequencies: outside of
the leading directions, natural images differ much as stationary noise does, which the cosine transform decorrelates.
White noise in its place would be grain that no photograph has."""

RIDGE = 1e-4
"""What the paper adds to the covariance's diagonal."""

SEEDS_FILE = "seeds.safetensors"


@dataclass(frozen=True)
class ClassSeeds:
    """Fitted start distributions of every class.

    Attributes:
        image_size: side of the images to start from, in pixels.
        mean: (K, C, h, w), of each class.
        std: (K, C, h, w), of each pixel.
        basis: (K, R, C·h·w), directions of the covariance scaled by their standard deviation.
        residual: (K, C, h, w), standard deviation outside of the basis of each cosine frequency of each of
            brightness and two colour differences (of brightness alone where C is 1).
        mixtures: over the coordinates of the basis, in place of one normal; None where they are not loaded.
    """

    image_size: int
    mean: Tensor
    std: Tensor
    basis: Tensor
    residual: Tensor
    mixtures: ClassMixtures | None = None

    def normal(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Independent normals a pixel (duke2023's univariate seeds): (N, C, h, w), not yet in [0, 1]."""
        return self.mean[labels] + self.std[labels] * randomness.normal(generators, self.mean.shape[1:])

    def multivariate(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """N(μ_y, Σ_y + 1e-4·I), Σ_y of low rank: (N, C, h, w), not yet in [0, 1]."""
        along = randomness.normal(generators, self.basis.shape[1:2])
        return self._drawn(labels, along, self._noise(generators), torch.ones(len(labels)))

    def mixture(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A draw of the class's Gaussian mixture in place of its one normal: (N, C, h, w), not yet in [0, 1].

        From the same generators, it is made of the same noise as `multivariate`.

        Raises:
            UserError: mixtures are not loaded.
        """
        if self.mixtures is None:
            raise UserError("expected class seeds with Gaussian mixtures, got seeds without; see robustsynth.mixtures")
        normal = randomness.normal(generators, self.basis.shape[1:2])
        noise = self._noise(generators)
        component = randomness.uniform(generators, ())
        drawn = [self.mixtures.coordinates(*each) for each in zip(labels.tolist(), normal, component, strict=True)]
        return self._drawn(labels, [along for along, _ in drawn], noise, [detail for _, detail in drawn])

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        return randomness.normal(generators, self.mean.shape[1:])

    def _drawn(
        self, labels: Tensor, along: Sequence[Tensor] | Tensor, noise: Tensor, detail: Sequence[Tensor] | Tensor
    ) -> Tensor:
        """Images at coordinates `along` the basis, with noise by frequency outside of it, `detail` times as strong."""
        shape = self.mean.shape[1:]
        # One image at a time: a batched product may round an image differently in another batch.
        drawn = [
            self.mean[label]
            + (a @ self.basis[label]).view(shape)
            + from_frequencies((((d * self.residual[label]) ** 2 + RIDGE).sqrt() * n)[None])[0]
            for label, a, n, d in zip(labels.tolist(), along, noise, detail, strict=True)
        ]
        return torch.stack(drawn) if drawn else torch.empty(0, *shape)

    def save(self, folder: Path | str) -> Path:
        """Write ``seeds.safetensors`` (float16) into `folder`, whole or not at all."""
        tensors = {"mean": self.mean, "std": self.std, "basis": self.basis, "residual": self.residual}
        small = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
        path = Path(folder) / SEEDS_FILE
        with written_beside(path) as temporary:
            temporary.write_bytes(save(small, metadata={"image_size": str(self.image_size)}))
        return path

    @classmethod
    def load(cls, folder: Path | str, *, recorded: str | None = None) -> ClassSeeds:
        """Read what `save` wrote.

        Args:
            folder: the model's.
            recorded: the file's SHA-256 as the model's card has it, to be checked.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        path = Path(folder) / SEEDS_FILE
        if not path.exists():
            raise UserError(
                f"expected class seeds in {path}, found none; "
                "use --seeds-from uniform or a folder of start images, or fit them with robustsynth train"
            )
        if recorded is not None and sha256(path) != recorded:
            raise UserError(
                f"expected {path} with SHA-256 {recorded[:12]}…, got {sha256(path)[:12]}…: the file is damaged or is "
                "not the one that the card describes; restore it"
            )
        try:
            with safe_open(path, "pt") as opened:
                values = {name: opened.get_tensor(name).float() for name in ("mean", "std", "basis", "residual")}
                return cls(image_size=int((opened.metadata() or {})["image_size"]), **values)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"expected class seeds in {path}, but it is damaged ({error}); restore it") from None


def fit_class_seeds(
    images: np.ndarray, labels: np.ndarray, *, classes: int, image_size: int, rank: int = RANK
) -> ClassSeeds:
    """Fit the start distributions of every class on training images.

    Args:
        images: uint8 (N, H, W, C).
        labels: (N,) integers.
        classes: number of classes K.
        image_size: side of the images that generation will start from.
        rank: directions kept of each class's covariance.

    Raises:
        UserError: a class with fewer than two images.

    Example:
        >>> pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        >>> seeds = fit_class_seeds(pictures, np.arange(20) % 2, classes=2, image_size=8)
        >>> sample_seeds(seeds, "multivariate", torch.tensor([0, 1]), randomness.image_generators(0, [0, 1])).shape
        torch.Size([2, 3, 8, 8])
    """
    side = image_size if image_size <= 64 else image_size // 4
    fitted: dict[str, list[Tensor]] = {"mean": [], "std": [], "basis": [], "residual": []}
    for label in range(classes):
        chosen = np.flatnonzero(labels == label)
        if len(chosen) < 2:
            raise UserError(
                f"expected at least 2 images of each class to fit seeds, got {len(chosen)} of class {label}"
            )
        pixels = pixels_of(images, chosen, side)
        mean = pixels.mean(0)
        centred = (pixels - mean).flatten(1)
        kept = min(rank, len(chosen) - 1, centred.shape[1])
        # The algorithm draws random directions to start from; forked, so that nobody's stream of numbers moves.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, scale, directions = torch.svd_lowrank(centred, q=min(kept + 16, *centred.shape), niter=4)
        directions = directions[:, :kept]
        basis = (directions * scale[:kept] / (len(chosen) - 1) ** 0.5).T
        left = centred - centred @ directions @ directions.T
        fitted["mean"].append(mean)
        fitted["std"].append(pixels.std(0))
        fitted["basis"].append(F.pad(basis, (0, 0, 0, rank - kept)))
        fitted["residual"].append(to_frequencies(left.view_as(pixels)).square().mean(0).sqrt())
    mean, std, basis, residual = (torch.stack(fitted[name]) for name in ("mean", "std", "basis", "residual"))
    return ClassSeeds(image_size, mean, std, basis, residual)


def sample_seeds(
    seeds: ClassSeeds | None,
    kind: str,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    *,
    shape: tuple[int, int, int] | None = None,
    upsampling: str = "nearest",
) -> Tensor:
    """Start images (N, C, H, W) in [0, 1], one generator an image.

    Args:
        seeds: the model's fitted seeds; may be None for ``"uniform"``.
        kind: ``"uniform"``, ``"normal"``, ``"multivariate"`` or ``"mixture"``.
        labels: (N,) integers.
        generators: one an image.
        shape: (C, H, W), needed where `seeds` is None.
        upsampling: ``"nearest"`` (the paper's) or ``"bicubic"``, from the resolution that seeds were fitted at.

    Raises:
        UserError: an unknown kind, or fitted seeds that are missing.

    Example:
        >>> generators = randomness.image_generators(0, [0, 1])
        >>> sample_seeds(None, "uniform", torch.tensor([3, 3]), generators, shape=(3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if kind == "uniform":
        if shape is None and seeds is not None:
            shape = (seeds.mean.shape[1], seeds.image_size, seeds.image_size)
        if shape is None:
            raise UserError("expected the shape (C, H, W) of the images to start from uniform noise, got none")
        return randomness.uniform(generators, shape)
    if kind not in SEED_KINDS:
        raise UserError(f"expected seeds of kind {', '.join(SEED_KINDS)}, or a folder of images, got {kind!r}")
    if seeds is None:
        raise UserError(
            f"expected fitted seeds for --seeds-from {kind}, but this model has none; "
            "use --seeds-from uniform or a folder of start images"
        )
    drawn = getattr(seeds, kind)(labels, generators).clamp(0, 1)
    if drawn.shape[-1] == seeds.image_size:
        return drawn
    size = (seeds.image_size, seeds.image_size)
    if upsampling == "nearest":
        return F.interpolate(drawn, size=size, mode="nearest")
    return F.interpolate(drawn, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def to_frequencies(images: Tensor) -> Tensor:
    """The orthonormal cosine transform of (N, C, H, W), of brightness and colour differences where C is 3.

    Example:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> bool(torch.allclose(from_frequencies(to_frequencies(x)), x, atol=1e-5))
        True
    """
    rows, columns = _cosines(images.shape[2]), _cosines(images.shape[3])
    return rows @ _mix(images, _opponents(images.shape[1])) @ columns.T


def from_frequencies(coefficients: Tensor) -> Tensor:
    """The inverse of `to_frequencies`."""
    rows, columns = _cosines(coefficients.shape[2]), _cosines(coefficients.shape[3])
    return _mix(rows.T @ coefficients @ columns, _opponents(coefficients.shape[1]).T)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("kc,nchw->nkhw", matrix, images)


@functools.cache
def _cosines(size: int) -> Tensor:
    """The orthonormal cosine basis (size, size), a row a frequency."""
    place, frequency = torch.arange(size) + 0.5, torch.arange(size).view(-1, 1)
    basis = torch.cos(torch.pi / size * frequency * place) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


def _opponents(channels: int) -> Tensor:
    """Orthonormal brightness, red minus blue, and green against both."""
    if channels != 3:
        return torch.eye(channels)
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return axes / axes.norm(dim=1, keepdim=True)


def pixels_of(images: np.ndarray, chosen: np.ndarray, side: int) -> Tensor:
    """The chosen ones of uint8 images (N, H, W, C) as floats (n, C, side, side) in [0, 1].

    Example:
        >>> pixels_of(np.full((3, 4, 4, 1), 255, np.uint8), np.array([0, 2]), 2).mean((1, 2, 3)).tolist()
        [1.0, 1.0]
    """
    parts = []
    for start in range(0, len(chosen), 256):  # A few hundred at a time, to bound memory.
        part = torch.from_numpy(np.ascontiguousarray(images[chosen[start : start + 256]]))
        part = part.permute(0, 3, 1, 2).float() / 255
        if part.shape[-1] != side:
            part = F.interpolate(part, size=(side, side), mode="area")
        parts.append(part)
    return torch.cat(parts)


SEED_KINDS = ("uniform", "normal", "multivariate", "mixture")
"""All but the first are methods of `ClassSeeds`."""


def has_seeds(model: Classifier) -> bool:
    """Whether fitted class seeds lie beside the model."""
    return model.folder is not None and (model.folder / SEEDS_FILE).exists()


def model_seeds(model: Classifier, kind: str) -> ClassSeeds:
    """The seeds that lie beside the model."""
    if model.folder is None:
        raise UserError(
            f"expected fitted seeds for seeds_from={kind!r}, but a wrapped network has none; "
            "use seeds_from='uniform', a folder of start images, or start=…"
        )
    recorded = {} if model.card is None else model.card.sha256
    seeds = ClassSeeds.load(model.folder, recorded=recorded.get(SEEDS_FILE))
    if len(seeds.mean) != len(model.classes) or seeds.image_size != model.image_size:
        raise UserError(
            f"expected seeds of {len(model.classes)} classes for images of {model.image_size} pixels in "
            f"{model.folder}, got {len(seeds.mean)} classes and {seeds.image_size} pixels; they belong to "
            "another model"
        )
    if kind == "mixture":
        mixtures = ClassMixtures.load(model.folder, recorded=recorded.get(MIXTURES_FILE))
        return dataclasses.replace(seeds, mixtures=mixtures)
    return seeds
