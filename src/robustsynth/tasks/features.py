"""What the units of a classifier's representation respond to: pictures drawn from noise to raise each of them, and the
images of a data set that raise it most. It is how to choose units to paint with (Santurkar et al. 2019, Equation 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import L2Ball
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError, Problem, Step
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import FeatureNetwork, feature_network, last_linear
from robustsynth.objectives import Objective
from robustsynth.tasks.batches import solve_in_batches
from robustsynth.tasks.feature_settings import FeatureSettings
from robustsynth.tasks.settings import resolve_settings

SIZED_FOR = 32
"""The images' side, in pixels, that the default radius and step are for."""

FEEDS = 3
"""Classes named for each unit at most."""


class FeatureActivation(Objective):
    """−R(x)_f, minus the activation of a unit f of the representation (Santurkar et al. 2019, Equation 5).

    Args:
        model: a `Classifier`, whose `feature_network` is used, or any function from images to features (N, D).
        units: f, one for all images, or (N,) integers, one an image.

    Raises:
        UserError: units that are not integers of 0 or more.

    Example:
        >>> flat = lambda x: x.flatten(1)
        >>> FeatureActivation(flat, [1, 0])(torch.tensor([[[[0.0, 0.5]]], [[[0.25, 0.0]]]])).tolist()
        [-0.5, -0.25]
    """

    def __init__(self, model: Classifier | Callable[[Tensor], Tensor], units: int | Tensor | Sequence[int]) -> None:
        units = torch.as_tensor(units)
        if units.ndim > 1 or units.is_floating_point() or units.dtype == torch.bool:
            raise UserError(f"expected one unit, or (N,) integers, got {units.dtype} {tuple(units.shape)}")
        if units.numel() and int(units.min()) < 0:
            raise UserError(f"expected units of 0 or more, got {int(units.min())}")
        self.network = feature_network(model) if isinstance(model, Classifier) else model
        self.units = units.long()
        self._highest = int(units.max()) if units.numel() else -1

    def __call__(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if self.units.ndim and len(self.units) != len(images):
            raise UserError(f"expected one unit an image, got {len(self.units)} for {len(images)} images")
        if self._highest >= features.shape[1]:
            raise UserError(f"expected units from 0 to {features.shape[1] - 1}, got {self._highest}")
        chosen = self.units.to(images.device).expand(len(images))
        return -features.gather(1, chosen.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True, eq=False)
class UnitRow:
    """What one unit responds to.

    Attributes:
        unit: its position in the representation.
        feeds: the classes whose logits it raises most, with the weights, largest first.
        images: (K, C, H, W) in [0, 1], drawn from noise to raise it.
        activations: what it reached in each of them.
        top_indices: positions in the data of the images that raise it most, first the one that most does.
        top_activations: what it reaches in each of those.
        top_images: those, uint8 (T, H, W, C).
    """

    unit: int
    feeds: tuple[tuple[str, float], ...]
    images: Tensor
    activations: tuple[float, ...]
    top_indices: tuple[int, ...]
    top_activations: tuple[float, ...]
    top_images: np.ndarray

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {
            "unit": self.unit,
            "classes": [{"name": name, "weight": round(weight, 4)} for name, weight in self.feeds],
            "activation_reached": [round(value, 4) for value in self.activations],
            "top_images": [
                {"index": index, "activation": round(value, 4)}
                for index, value in zip(self.top_indices, self.top_activations, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class FeatureAtlas:
    """Rows for units, and the settings that they were drawn with."""

    rows: tuple[UnitRow, ...]
    settings: FeatureSettings


def feature_atlas(
    model: Classifier,
    units: Sequence[int] | None = None,
    *,
    data: np.ndarray | None = None,
    num: int = 12,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
    on_images: Callable[[int], object] | None = None,
    **settings: Any,
) -> FeatureAtlas:
    """Pictures of what units of a classifier respond to; `robustsynth.tasks.atlas.draw_atlas` puts them on a sheet.

    Args:
        model: from `load_model` or `Classifier.wrap`, with an image size.
        units: positions in the representation; where None, `choose_units` takes `num`.
        data: uint8 (N, H, W, C) of the model's size, to find the images that raise each unit most; None for none.
        num: units to choose.
        seed: of the noise. A picture depends on it, on its unit, and on its number among that unit's, on nothing else.
        precision: ``float32`` or ``bfloat16``; measured once per model and machine where None.
        batch_size: images a batch; likewise.
        on_step: called with the positions of a batch's pictures (unit after unit) and each `Step` of it.
        on_images: called with the number of images of the data that have been looked at.
        **settings: fields of `FeatureSettings`, which override the model's own.

    Raises:
        UserError: units that the model lacks, data of another size, a model without image size.
        NonFiniteError: NaN or infinity in some pictures.

    Example:
        >>> from robustsynth.models.files import load_model
        >>> atlas = feature_atlas(load_model("mnist"), [3, 17], steps=2, drawn=1)
        >>> [row.unit for row in atlas.rows], atlas.rows[0].images.shape
        ([3, 17], torch.Size([1, 1, 28, 28]))
    """
    resolved = resolve_features(model, given=settings)
    rows = feature_rows(
        model,
        choose_units(model, num=num) if units is None else units,
        resolved,
        data=data,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        on_step=on_step,
        on_images=on_images,
    )
    return FeatureAtlas(tuple(rows), resolved)


def feature_rows(
    model: Classifier,
    units: Sequence[int],
    settings: FeatureSettings,
    *,
    data: np.ndarray | None = None,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Iterator[UnitRow]:
    """As `feature_atlas`, but hands over each unit's row as it is done, so that stopping early keeps the others."""
    units = list(dict.fromkeys(int(unit) for unit in units))
    weights = last_linear(model).weight.detach().cpu()
    for unit in units:
        if not 0 <= unit < weights.shape[1]:
            raise UserError(f"expected units from 0 to {weights.shape[1] - 1} for model {model.name!r}, got {unit}")
    network = feature_network(
        model, straight_through=settings.straight_through, precision=precision, batch_size=batch_size
    )
    top = _Top.of(network, model, units, data, settings.top, on_images)
    wanted = [(unit, number) for unit in units for number in range(settings.drawn)]

    def state(chosen: Sequence[int]) -> Problem:
        start = noise(model, [randomness.generator(seed, *wanted[i]) for i in chosen], settings.contrast)
        objective = FeatureActivation(network, [wanted[i][0] for i in chosen])
        return Problem(start.to(model.device), objective, L2Ball(settings.eps))

    done: list[Tensor] = []
    reached: list[float] = []
    for batch in solve_in_batches(
        range(len(wanted)),
        state,
        batch_size=network.execution.batch_size,
        step_size=settings.step_length,
        steps=settings.steps,
        on_step=on_step,
    ):
        if batch.failures:
            raise NonFiniteError(batch.images, {batch.indices.index(i): step for i, step in batch.failures.items()})
        done += batch.images
        values = _features(network, batch.images, model.device)
        reached += [float(row[wanted[i][0]]) for i, row in zip(batch.indices, values, strict=True)]
        while len(done) >= settings.drawn:
            unit = units.pop(0)
            images, activations = torch.stack(done[: settings.drawn]), tuple(reached[: settings.drawn])
            done, reached = done[settings.drawn :], reached[settings.drawn :]
            yield UnitRow(unit, feeds(model, weights, unit), images, activations, *top.of_unit(unit))


def resolve_features(model: Classifier, *, given: dict[str, Any] | None = None) -> FeatureSettings:
    """The settings for `model`: those given, else its card's tuned ones, else the defaults at its images' size.

    Example:
        >>> network = torch.nn.Linear(2, 2)
        >>> large = Classifier.wrap(network, classes=2, mean=[0.5], std=[0.5], image_size=128)
        >>> resolve_features(large).eps
        32.0
    """
    scale = (model.image_size or SIZED_FOR) / SIZED_FOR
    sized = {"eps": FeatureSettings.eps * scale, "step_size": FeatureSettings.step_size * scale}
    tuned = {} if model.card is None else model.card.tasks.get("features", {})
    said = {name: value for name, value in (given or {}).items() if value is not None}
    return resolve_settings(FeatureSettings, "features", model, given=sized | tuned | said)


def choose_units(model: Classifier, classes: Sequence[int] | None = None, *, num: int = 12) -> list[int]:
    """Units worth a look: those with the largest weights to each class, in turns, each once; grouped by class.

    Args:
        model: whose last layer is linear and gives the logits.
        classes: indices of those to choose for; all where None.
        num: of units, at most.

    Raises:
        UserError: fewer than one unit asked for, or a model whose logits are not those of its last linear layer.

    Example:
        >>> from robustsynth.models.files import load_model
        >>> len(choose_units(load_model("mnist"), [3, 8], num=4))
        4
    """
    if num < 1:
        raise UserError(f"expected 1 or more units, got {num}")
    weights = last_linear(model).weight.detach()
    if len(weights) != len(model.classes):
        raise UserError(
            f"expected a model whose last linear layer gives its {len(model.classes)} logits to choose units by their "
            f"weights, but that of {model.name!r} gives {len(weights)} numbers; say which units"
        )
    indices = list(dict.fromkeys(range(len(weights)) if classes is None else classes))
    order = {label: weights[label].argsort(descending=True, stable=True).tolist() for label in indices}
    chosen: dict[int, int] = {}
    for rank in range(weights.shape[1]):
        for label in indices:
            # Its next best that no class has taken; one that lowers the class says nothing of it.
            unit = next((u for u in order[label] if u not in chosen and weights[label, u] > 0), None)
            if unit is not None and len(chosen) < num:
                chosen[unit] = label
        if len(chosen) >= num or len(chosen) < min(num, rank + 1):
            break
    return [unit for label in indices for unit, owner in chosen.items() if owner == label]


def feeds(model: Classifier, weights: Tensor, unit: int) -> tuple[tuple[str, float], ...]:
    """The classes whose logits a unit raises most, with the weights; none where the layer does not give the logits."""
    if len(weights) != len(model.classes):
        return ()
    column = weights[:, unit]
    best = column.argsort(descending=True, stable=True)[:FEEDS].tolist()
    return tuple((model.classes[label], float(column[label])) for label in best if column[label] > 0)


def noise(model: Classifier, generators: Sequence[torch.Generator], contrast: float) -> Tensor:
    """Noise of low contrast around the colour that the model normalises by, (N, C, H, W) in [0, 1].

    A model that normalises itself has zeros there; grey stands in.
    """
    size = model.image_size
    if size is None:
        raise UserError(f"expected a model with an image size, got {model.name!r} without; give it to Classifier.wrap")
    level = model.mean.cpu() if bool(model.mean.any()) else torch.full_like(model.mean.cpu(), 0.5)
    return (level + contrast * randomness.normal(generators, (model.channels, size, size))).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class _Top:
    """The images that raise each unit most."""

    data: np.ndarray
    order: dict[int, np.ndarray]
    activations: dict[int, np.ndarray]

    @classmethod
    def of(
        cls,
        network: FeatureNetwork,
        model: Classifier,
        units: Sequence[int],
        data: np.ndarray | None,
        count: int,
        on_images: Callable[[int], object] | None,
    ) -> _Top:
        side = model.image_size or 0
        if data is None:
            data = np.zeros((0, side, side, model.channels), dtype=np.uint8)
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[1:] != (side, side, model.channels):
            raise UserError(
                f"expected data as uint8 (N, {side}, {side}, {model.channels}) for model {model.name!r}, "
                f"got {data.dtype} {data.shape}"
            )
        size = network.execution.batch_size
        found = np.zeros((len(data), len(units)), dtype=np.float32)
        for start in range(0, len(data), size if count else len(data) + 1):
            part = data[start : start + size]
            images = torch.from_numpy(np.ascontiguousarray(part)).permute(0, 3, 1, 2).float() / 255
            found[start : start + size] = _features(network, images, model.device)[:, list(units)].numpy()
            if on_images is not None:
                on_images(len(part))
        order = {unit: np.argsort(-found[:, place], kind="stable")[:count] for place, unit in enumerate(units)}
        return cls(data, order, {unit: found[order[unit], place] for place, unit in enumerate(units)})

    def of_unit(self, unit: int) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
        """Indices, activations and pictures."""
        order = self.order[unit]
        return tuple(order.tolist()), tuple(self.activations[unit].tolist()), np.array(self.data[order])


def _features(network: FeatureNetwork, images: Tensor, device: torch.device) -> Tensor:
    """R(x) of one batch, on the CPU; filled up to the batch size, as libraries' kernels differ with it."""
    missing = max(0, network.execution.batch_size - len(images))
    with torch.no_grad():
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return network(filled.to(device))[: len(images)].cpu()
