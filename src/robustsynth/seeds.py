"""Start images of generation, drawn from simple distributions of each class (Santurkar et al. 2019, Section 3.1).

Normals of each pixel and multivariate normals of low rank are fitted to training images, large ones at a quarter of
their resolution, and kept in one small file beside the model. A Gaussian mixture describes a class's coordinates along
its leading directions; what lies outside of these stays stationary noise, which each component scales.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustsynth import randomness
from robustsynth.errors import UserError
from robustsynth.files import sha256, written_beside
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier

T = TypeVar("T")

SEEDS_FILE, MIXTURES_FILE = "seeds.safetensors", "mixtures.safetensors"

SEED_KINDS = ("uniform", "normal", "multivariate", "mixture")
"""All but the first are methods of `ClassSeeds`."""

RANK = 64
"""Directions kept of each class's covariance. The rest is kept as a variance of each frequency: natural images differ
there much as stationary noise does, which the cosine transform decorrelates. White noise would show as grain."""

RIDGE = 1e-4
"""What the paper adds to the covariance's diagonal."""

COMPONENTS = 4
"""Of each class. Held-out images of CIFAR-10 are less likely under more."""

FLOOR = 1e-3
"""Added to variances, of coordinates whose variance over the class is 1, so that no component closes on one image."""

SEED_TENSORS, TENSORS = ("mean", "std", "basis", "residual"), ("weights", "means", "factors", "detail")
"""Of `ClassSeeds` and of `ClassMixtures`, by their names in the files."""


@dataclass(frozen=True)
class ClassMixtures:
    """A Gaussian mixture of each class, over its coordinates along the basis of `ClassSeeds`.

    Attributes:
        weights: (K, M), probabilities of the components.
        means: (K, M, R).
        factors: (K, M, R, R), lower triangular; a component's covariance is its factor times the transposed factor.
        detail: (K, M), what a component multiplies the residual's standard deviations by.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    detail: Tensor

    def coordinates(self, label: int, normal: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A draw from the mixture of class `label`: coordinates (R,), and the factor of its residual.

        It is made of standard normal numbers (R,) and of a number in [0, 1), which chooses the component.
        """
        rising = self.weights[label].cumsum(0)
        # Rounding may leave the last sum a little below 1, or the number at 1 in float16.
        component = int(torch.searchsorted(rising, uniform * rising[-1], right=True).clamp_max(len(rising) - 1))
        along = self.means[label, component] + self.factors[label, component] @ normal
        return along, self.detail[label, component]

    def save(self, folder: Path | str) -> Path:
        """Write ``mixtures.safetensors`` (float16) beside the seeds in `folder`."""
        return _write(Path(folder) / MIXTURES_FILE, self, TENSORS, seeds=sha256(Path(folder) / SEEDS_FILE))

    @classmethod
    def load(cls, folder: Path | str, *, recorded: str | None = None) -> ClassMixtures:
        """Read what `save` wrote into a model's folder; `recorded` is its SHA-256 as the model's card has it.

        A `UserError` where there is no such file, it is damaged, or it was fitted to other seeds than lie beside it.
        """
        path, seeds = Path(folder) / MIXTURES_FILE, Path(folder) / SEEDS_FILE
        again = f"robustsynth generate --model {folder} --fit-mixtures DATA"
        tensors, fitted_to = _read(
            path,
            TENSORS,
            ("seeds", str),
            recorded,
            name="Gaussian mixtures",
            if_missing=f"fit them to the training images once with {again}, or use --seeds-from multivariate",
            if_damaged=f"restore it, or fit it again with {again}",
        )
        if fitted_to != sha256(seeds):
            raise UserError(
                f"expected the seeds that {path} was fitted to, but {seeds} is another file; fit the mixtures again "
                f"with {again}"
            )
        return cls(**tensors)


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
        noise = randomness.normal(generators, self.mean.shape[1:])
        return self._images(labels, along, noise, torch.ones(len(labels)))

    def mixture(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A draw of the class's Gaussian mixture in place of its one normal: (N, C, h, w), not yet in [0, 1].

        From the same generators, it is made of the same noise as `multivariate`. A `UserError` without `mixtures`.
        """
        if self.mixtures is None:
            raise UserError("expected class seeds with Gaussian mixtures, got seeds without; see fit_class_mixtures")
        normal = randomness.normal(generators, self.basis.shape[1:2])
        noise = randomness.normal(generators, self.mean.shape[1:])
        component = randomness.uniform(generators, ())
        drawn = [self.mixtures.coordinates(*each) for each in zip(labels.tolist(), normal, component, strict=True)]
        return self._images(labels, [along for along, _ in drawn], noise, [detail for _, detail in drawn])

    def _images(
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
        return _write(Path(folder) / SEEDS_FILE, self, SEED_TENSORS, image_size=str(self.image_size))

    @classmethod
    def load(cls, folder: Path | str, *, recorded: str | None = None) -> ClassSeeds:
        """Read what `save` wrote; arguments and errors as for `ClassMixtures.load`."""
        tensors, image_size = _read(
            Path(folder) / SEEDS_FILE,
            SEED_TENSORS,
            ("image_size", int),
            recorded,
            name="class seeds",
            if_missing="use --seeds-from uniform or a folder of start images, or fit them with robustsynth train",
            if_damaged="restore it",
        )
        return cls(image_size, **tensors)


def _write(path: Path, tensors: object, names: Sequence[str], **metadata: str) -> Path:
    small = {name: getattr(tensors, name).to(torch.float16).contiguous() for name in names}
    with written_beside(path) as temporary:
        temporary.write_bytes(save(small, metadata=metadata))
    return path


def _read(
    path: Path,
    names: Sequence[str],
    metadata: tuple[str, Callable[[str], T]],
    recorded: str | None,
    *,
    name: str,
    if_missing: str,
    if_damaged: str,
) -> tuple[dict[str, Any], T]:
    """The tensors of a file that `_write` wrote, and one value of its metadata."""
    if not path.exists():
        raise UserError(f"expected {name} in {path}, found none; {if_missing}")
    if recorded is not None and sha256(path) != recorded:
        raise UserError(
            f"expected {path} with SHA-256 {recorded[:12]}…, got {sha256(path)[:12]}…: the file is damaged or is "
            f"not the one that the card describes; {if_damaged}"
        )
    key, kind = metadata
    try:
        with safe_open(path, "pt") as opened:
            tensors = {each: opened.get_tensor(each).float() for each in names}
            return tensors, kind((opened.metadata() or {})[key])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"expected {name} in {path}, but it is damaged ({error}); {if_damaged}") from None


def has_seeds(model: Classifier) -> bool:
    """Whether fitted class seeds lie beside the model."""
    return model.folder is not None and (model.folder / SEEDS_FILE).exists()


def model_seeds(model: Classifier, kind: str) -> ClassSeeds:
    """The seeds that lie beside the model, with mixtures where `kind` is ``"mixture"``.

    A `UserError` where there are none, or they are damaged or another model's.
    """
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
    if kind != "mixture":
        return seeds
    mixtures = ClassMixtures.load(model.folder, recorded=recorded.get(MIXTURES_FILE))
    return dataclasses.replace(seeds, mixtures=mixtures)


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
    size = (seeds.image_size, seeds.image_size)
    if drawn.shape[-1] == seeds.image_size or upsampling == "nearest":
        return F.interpolate(drawn, size=size, mode="nearest")
    return F.interpolate(drawn, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


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
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        >>> seeds = fit_class_seeds(images, np.arange(20) % 2, classes=2, image_size=8)
        >>> sample_seeds(seeds, "multivariate", torch.tensor([0, 1]), randomness.image_generators(0, [0, 1])).shape
        torch.Size([2, 3, 8, 8])
    """
    side = image_size if image_size <= 64 else image_size // 4
    fitted: dict[str, list[Tensor]] = {name: [] for name in SEED_TENSORS}
    for label in range(classes):
        chosen = np.flatnonzero(labels == label)
        if len(chosen) < 2:
            raise UserError(
                f"expected at least 2 images of each class to fit seeds, got {len(chosen)} of class {label}"
            )
        pixels = _pixels(images, chosen, side)
        mean = pixels.mean(0)
        centred = (pixels - mean).flatten(1)
        kept = min(rank, len(chosen) - 1, centred.shape[1])
        # The algorithm starts from random directions; the global generator's state is restored afterwards.
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
    mean, std, basis, residual = map(torch.stack, fitted.values())
    return ClassSeeds(image_size, mean, std, basis, residual)


def fit_class_mixtures(
    seeds: ClassSeeds, images: np.ndarray, labels: np.ndarray, *, components: int = COMPONENTS
) -> ClassMixtures:
    """Fit a mixture of so many components to each class, all with full or all with diagonal covariances, whichever
    makes held-out images likelier. Images and labels are those that `seeds` were fitted to.

    Raises:
        UserError: scikit-learn is not there, or a class has fewer than 5 images a component.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        >>> seeds = fit_class_seeds(images, np.arange(40) % 2, classes=2, image_size=8, rank=4)
        >>> fit_class_mixtures(seeds, images, np.arange(40) % 2, components=2).means.shape
        torch.Size([2, 2, 4])
    """
    try:
        import sklearn.mixture as _  # noqa: F401
    except ImportError:
        raise UserError(
            "expected scikit-learn to fit Gaussian mixtures, found none; pip install 'robustsynth[fit]'"
        ) from None
    if components < 1:
        raise UserError(f"expected 1 or more components, got {components}")
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for label in range(len(seeds.mean)):
        chosen = np.flatnonzero(labels == label)
        if len(chosen) < 5 * components:
            raise UserError(
                f"expected at least {5 * components} images of each class for {components} components, got "
                f"{len(chosen)} of class {label}; ask for fewer components"
            )
        parts.append(_parts(seeds, label, _pixels(images, chosen, seeds.mean.shape[-1])))
    kind = _likelier_kind([along for along, _ in parts], components)
    fitted: dict[str, list[np.ndarray]] = {name: [] for name in TENSORS}
    for along, strength in parts:
        model = _fitted(kind, components, along)
        shares = model.predict_proba(along)
        covariances, full = model.covariances_, kind == "full"
        fitted["weights"].append(model.weights_)
        fitted["means"].append(model.means_)
        fitted["factors"].append(np.linalg.cholesky(covariances if full else [np.diag(v) for v in covariances]))
        fitted["detail"].append(np.sqrt(shares.T @ strength / shares.sum(0).clip(1e-6)))
    return ClassMixtures(*(torch.from_numpy(np.stack(rows)).float() for rows in fitted.values()))


def add_mixtures(folder: Path | str, images: np.ndarray, labels: np.ndarray, *, components: int = COMPONENTS) -> Path:
    """Fit mixtures for the model in `folder`, write them beside its seeds, and record them in its card.

    Returns the file written. Other arguments and errors are as for `fit_class_mixtures`.
    """
    card = ModelCard.load(folder)
    seeds = ClassSeeds.load(folder, recorded=card.sha256.get(SEEDS_FILE))
    path = fit_class_mixtures(seeds, images, labels, components=components).save(folder)
    dataclasses.replace(card, sha256=card.sha256 | {path.name: sha256(path)}).save(folder)
    return path


def _parts(seeds: ClassSeeds, label: int, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, R) of images of a class along its directions, and how much stronger than the class's average
    each one's residual is (n,), as a variance, all frequencies counting alike."""
    centred = (pixels - seeds.mean[label]).flatten(1)
    basis, residual = seeds.basis[label], seeds.residual[label]
    # A class of few images has fewer directions than there is room for; the rest of the basis is zero.
    along = centred @ basis.T / basis.square().sum(1).clamp_min(1e-12)
    left = to_frequencies((centred - along @ basis).view(pixels.shape))
    weight = 1 / (residual.square() + RIDGE)
    expected = float((residual.square() * weight).sum())
    if expected < 1e-3:  # Nothing is left outside of the directions.
        return along.double().numpy(), np.ones(len(pixels))
    return along.double().numpy(), ((left.square() * weight).flatten(1).sum(1) / expected).double().numpy()


def _fitted(kind: str, components: int, along: np.ndarray) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        # A fit that still improves a little after its last round, or images that are all alike, do no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(components, covariance_type=kind, reg_covar=FLOOR, random_state=0).fit(along)


def _likelier_kind(along: Sequence[np.ndarray], components: int) -> str:
    """The kind of covariances under which a tenth of each class, which the fit has not seen, is likelier."""
    scores = {"diag": 0.0, "full": 0.0}
    for values in along:
        order = np.random.default_rng(0).permutation(len(values))
        first = max(1, len(values) // 10)
        for kind in scores:
            scores[kind] += _fitted(kind, components, values[order[first:]]).score(values[order[:first]])
    return max(scores, key=lambda kind: scores[kind])


def _pixels(images: np.ndarray, chosen: np.ndarray, side: int) -> Tensor:
    """The chosen ones of uint8 images (N, H, W, C) as floats (n, C, side, side) in [0, 1]."""
    parts = []
    for start in range(0, len(chosen), 256):  # A few hundred at a time, to bound memory.
        part = torch.from_numpy(np.ascontiguousarray(images[chosen[start : start + 256]]))
        part = part.permute(0, 3, 1, 2).float() / 255
        parts.append(part if part.shape[-1] == side else F.interpolate(part, size=(side, side), mode="area"))
    return torch.cat(parts)


def to_frequencies(images: Tensor) -> Tensor:
    """The orthonormal cosine transform of (N, C, H, W), of brightness and colour differences where C is 3."""
    rows, columns, axes = _cosines(images.shape[2]), _cosines(images.shape[3]), _opponents(images.shape[1])
    return rows @ torch.einsum("kc,nchw->nkhw", axes, images) @ columns.T


def from_frequencies(coefficients: Tensor) -> Tensor:
    """The inverse of `to_frequencies`."""
    rows, columns = _cosines(coefficients.shape[2]), _cosines(coefficients.shape[3])
    return torch.einsum("kc,nkhw->nchw", _opponents(coefficients.shape[1]), rows.T @ coefficients @ columns)


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
