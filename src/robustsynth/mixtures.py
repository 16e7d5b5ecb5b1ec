"""Gaussian mixtures of each class as seeds, the richer distributions that Santurkar et al. (2019, Section 3.1) and
later reports wish for.

A mixture lives in the coordinates of its class's leading directions, which `ClassSeeds` keeps, so that it is small;
what lies outside of those directions stays stationary noise, stronger in one component than in another: a plain sky
and a flower bed differ in that most of all. Fitting needs scikit-learn and training images, sampling needs neither.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import sha256, written_beside
from robustsynth.models.card import ModelCard
from robustsynth.seeds import RIDGE, SEEDS_FILE, ClassSeeds, pixels_of, to_frequencies

MIXTURES_FILE = "mixtures.safetensors"

COMPONENTS = 4
"""Of each class. Held-out images of CIFAR-10 are less likely under more."""

FLOOR = 1e-3
"""Added to variances, of coordinates whose variance over the class is 1, so that no component closes on one image."""

TENSORS = ("weights", "means", "factors", "detail")


@dataclass(frozen=True)
class ClassMixtures:
    """A Gaussian mixture of each class, over the coordinates of its leading directions.

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
        """A draw from the mixture of a class: coordinates (R,), and the factor of its residual.

        Args:
            label: the class.
            normal: (R,) standard normal numbers.
            uniform: a number in [0, 1), which chooses the component.

        Example:
            >>> two = ClassMixtures(
            ...     weights=torch.tensor([[0.25, 0.75]]), means=torch.tensor([[[-5.0], [5.0]]]),
            ...     factors=torch.ones(1, 2, 1, 1), detail=torch.tensor([[1.0, 2.0]]))
            >>> two.coordinates(0, torch.tensor([0.5]), torch.tensor(0.3))
            (tensor([5.5000]), tensor(2.))
        """
        rising = self.weights[label].cumsum(0)
        # Rounding may leave the last sum a little below 1, or the number at 1 in float16.
        component = int(torch.searchsorted(rising, uniform * rising[-1], right=True).clamp_max(len(rising) - 1))
        along = self.means[label, component] + self.factors[label, component] @ normal
        return along, self.detail[label, component]

    def save(self, folder: Path | str) -> Path:
        """Write ``mixtures.safetensors`` (float16) beside the seeds in `folder`, whole or not at all."""
        small = {name: getattr(self, name).to(torch.float16).contiguous() for name in TENSORS}
        path = Path(folder) / MIXTURES_FILE
        with written_beside(path) as temporary:
            temporary.write_bytes(save(small, metadata={"seeds": sha256(Path(folder) / SEEDS_FILE)}))
        return path

    @classmethod
    def load(cls, folder: Path | str, *, recorded: str | None = None) -> ClassMixtures:
        """Read what `save` wrote.

        Args:
            folder: the model's.
            recorded: the file's SHA-256 as the model's card has it, to be checked.

        Raises:
            UserError: there is no such file, it is damaged, or it was fitted to other seeds than lie beside it.
        """
        folder = Path(folder)
        path = folder / MIXTURES_FILE
        again = f"robustsynth generate --model {folder} --fit-mixtures DATA"
        if not path.exists():
            raise UserError(
                f"expected Gaussian mixtures for --seeds-from mixture in {path}, found none; fit them to the training "
                f"images once with {again}, or use --seeds-from multivariate"
            )
        if recorded is not None and sha256(path) != recorded:
            raise UserError(
                f"expected {path} with SHA-256 {recorded[:12]}…, got {sha256(path)[:12]}…: the file is damaged or is "
                f"not the one that the card describes; restore it, or fit it again with {again}"
            )
        try:
            with safe_open(path, "pt") as opened:
                found = cls(**{name: opened.get_tensor(name).float() for name in TENSORS})
                seeds = (opened.metadata() or {})["seeds"]
        except (SafetensorError, KeyError) as error:
            raise UserError(
                f"expected Gaussian mixtures in {path}, but it is damaged ({error}); fit it again with {again}"
            ) from None
        if seeds != sha256(folder / SEEDS_FILE):
            raise UserError(
                f"expected the seeds that {path} was fitted to, but {folder / SEEDS_FILE} is another file; "
                f"fit the mixtures again with {again}"
            )
        return found


def fit_class_mixtures(
    seeds: ClassSeeds, images: np.ndarray, labels: np.ndarray, *, components: int = COMPONENTS
) -> ClassMixtures:
    """Fit a mixture to each class, all with full or all with diagonal covariances, whichever makes held-out images
    likelier.

    Args:
        seeds: whose directions to use; fitted on the same images.
        images: uint8 (N, H, W, C), the training images.
        labels: (N,) integers.
        components: of each class.

    Raises:
        UserError: scikit-learn is not there, or a class has fewer than 5 images a component.

    Example:
        >>> from robustsynth.seeds import fit_class_seeds
        >>> pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        >>> seeds = fit_class_seeds(pictures, np.arange(40) % 2, classes=2, image_size=8, rank=4)
        >>> fit_class_mixtures(seeds, pictures, np.arange(40) % 2, components=2).means.shape
        torch.Size([2, 2, 4])
    """
    _scikit_learn()
    if components < 1:
        raise UserError(f"expected 1 or more components, got {components}")
    along, strength = [], []
    for label in range(len(seeds.mean)):
        chosen = np.flatnonzero(labels == label)
        if len(chosen) < 5 * components:
            raise UserError(
                f"expected at least {5 * components} images of each class for {components} components, got "
                f"{len(chosen)} of class {label}; ask for fewer components"
            )
        inside, outside = _parts(seeds, label, pixels_of(images, chosen, seeds.mean.shape[-1]))
        along.append(inside)
        strength.append(outside)
    kind = _likelier_kind(along, components)
    fitted: dict[str, list[np.ndarray]] = {name: [] for name in TENSORS}
    for inside, outside in zip(along, strength, strict=True):
        model = _fitted(kind, components, inside)
        shares = model.predict_proba(inside)
        fitted["weights"].append(model.weights_)
        fitted["means"].append(model.means_)
        fitted["factors"].append(_factors(model))
        fitted["detail"].append(np.sqrt(shares.T @ outside / shares.sum(0).clip(1e-6)))
    return ClassMixtures(**{name: torch.from_numpy(np.stack(rows)).float() for name, rows in fitted.items()})


def add_mixtures(folder: Path | str, images: np.ndarray, labels: np.ndarray, *, components: int = COMPONENTS) -> Path:
    """Fit mixtures for a model that has seeds, write them beside it, and record them in its card.

    Args:
        folder: the model's.
        images: as for `fit_class_mixtures`.
        labels: likewise.
        components: likewise.

    Returns:
        The file written.

    Raises:
        UserError: as `fit_class_mixtures`, or the model has no seeds.
    """
    card = ModelCard.load(folder)
    seeds = ClassSeeds.load(folder, recorded=card.sha256.get(SEEDS_FILE))
    path = fit_class_mixtures(seeds, images, labels, components=components).save(folder)
    dataclasses.replace(card, sha256=card.sha256 | {path.name: sha256(path)}).save(folder)
    return path


def _scikit_learn() -> Any:
    """Its class of Gaussian mixtures, and its warning of a fit that is cut short."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise UserError(
            "expected scikit-learn to fit Gaussian mixtures, found none; pip install 'robustsynth[fit]'"
        ) from None
    return GaussianMixture, ConvergenceWarning


def _parts(seeds: ClassSeeds, label: int, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, R) of images of a class along its directions, and how much stronger than the class's average
    each one's residual is (n,), as a variance, all frequencies counting alike."""
    centred = (pixels - seeds.mean[label]).flatten(1)
    basis, residual = seeds.basis[label], seeds.residual[label]
    # A class of few images has fewer directions than there is room for; the rest of the basis is zero.
    inside = centred @ basis.T / basis.square().sum(1).clamp_min(1e-12)
    left = to_frequencies((centred - inside @ basis).view(pixels.shape))
    weight = 1 / (residual.square() + RIDGE)
    expected = float((residual.square() * weight).sum())
    if expected < 1e-3:  # Nothing is left outside of the directions.
        return inside.double().numpy(), np.ones(len(pixels))
    return inside.double().numpy(), ((left.square() * weight).flatten(1).sum(1) / expected).double().numpy()


def _fitted(kind: str, components: int, along: np.ndarray) -> Any:
    mixture, cut_short = _scikit_learn()
    with warnings.catch_warnings():
        # A fit that still improves a little after its last round, or images that are all alike, do no harm.
        warnings.simplefilter("ignore", cut_short)
        return mixture(components, covariance_type=kind, reg_covar=FLOOR, random_state=0).fit(along)


def _likelier_kind(along: Sequence[np.ndarray], components: int) -> str:
    """The kind of covariances under which a tenth of each class, which the fit has not seen, is likelier."""
    scores = {"diag": 0.0, "full": 0.0}
    for values in along:
        order = np.random.default_rng(0).permutation(len(values))
        first = max(1, len(values) // 10)
        for kind in scores:
            scores[kind] += _fitted(kind, components, values[order[first:]]).score(values[order[:first]])
    return max(scores, key=lambda kind: scores[kind])


def _factors(model: Any) -> np.ndarray:
    """Lower triangular factors (M, R, R) of a fitted mixture's covariances."""
    if model.covariance_type == "full":
        return np.linalg.cholesky(model.covariances_)
    return np.stack([np.diag(np.sqrt(variances)) for variances in model.covariances_])
