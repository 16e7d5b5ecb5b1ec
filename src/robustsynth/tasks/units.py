"""Units of a classifier's representation: which to look at, which classes they feed, and which images raise them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import FeatureNetwork, last_linear

FEEDS = 3
"""Classes named for each unit at most."""

FAINTEST = 0.2
"""Of the largest weight: classes that a unit feeds less than this are not named."""


def choose_units(model: Classifier, classes: Sequence[int] | None = None, *, num: int = 12) -> list[int]:
    """Units worth a look: those with the largest weights to each class, in turns, each once; grouped by class.

    Args:
        model: whose last layer is linear and gives the logits.
        classes: indices of those to choose for; all where None.
        num: of units, at most.

    Raises:
        UserError: fewer than one unit asked for, or a model whose logits are not those of its last linear layer.

    Example:
        >>> from robustsynth.models.store import load_model
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
    before = -1
    while before < len(chosen) < num:
        before = len(chosen)
        for label in indices:
            # Its best that no class has taken; one that lowers the class says nothing of it.
            unit = next((u for u in order[label] if u not in chosen and weights[label, u] > 0), None)
            if unit is not None and len(chosen) < num:
                chosen[unit] = label
    return [unit for label in indices for unit, owner in chosen.items() if owner == label]


def check_units(model: Classifier, units: Sequence[int]) -> list[int]:
    """Units that the model has, each once, in the order given.

    Raises:
        UserError: none, or one that it lacks.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> check_units(load_model("mnist"), [17, 3, 17])
        [17, 3]
    """
    count = last_linear(model).in_features
    if not units:
        raise UserError(f"expected one or more units from 0 to {count - 1}, got none")
    for unit in units:
        if not 0 <= unit < count:
            raise UserError(f"expected units from 0 to {count - 1} for model {model.name!r}, got {unit}")
    return list(dict.fromkeys(int(unit) for unit in units))


def feeds(model: Classifier, weights: Tensor, unit: int) -> tuple[tuple[str, float], ...]:
    """The classes whose logits a unit raises most, with the weights; none where the layer does not give the logits."""
    if len(weights) != len(model.classes):
        return ()
    column = weights[:, unit]
    best = column.argsort(descending=True, stable=True)[:FEEDS].tolist()
    least = FAINTEST * max(0.0, float(column[best[0]]))
    return tuple((model.classes[label], float(column[label])) for label in best if column[label] > least)


@dataclass(frozen=True, eq=False)
class TopImages:
    """The images of a data set that raise each unit most.

    Attributes:
        data: uint8 (N, H, W, C).
        order: by unit, positions in the data, first that of the image that most raises it.
        activations: by unit, what it reaches in those.
    """

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
        on_images: Callable[[int], object] | None = None,
    ) -> TopImages:
        """Look at all of `data`, None being none, for the `count` best images of each unit.

        Raises:
            UserError: data that are not uint8 pictures of the model's size.
        """
        side = model.image_size or 0
        if data is None or count == 0:
            data = np.zeros((0, side, side, model.channels), dtype=np.uint8)
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[1:] != (side, side, model.channels):
            raise UserError(
                f"expected data as uint8 (N, {side}, {side}, {model.channels}) for model {model.name!r}, "
                f"got {data.dtype} {data.shape}"
            )
        size = network.execution.batch_size
        found = np.zeros((len(data), len(units)), dtype=np.float32)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            images = torch.from_numpy(np.array(part)).permute(0, 3, 1, 2).float() / 255
            found[start : start + size] = representations(network, images, model.device)[:, list(units)].numpy()
            if on_images is not None:
                on_images(len(part))
        order = {unit: np.argsort(-found[:, place], kind="stable")[:count] for place, unit in enumerate(units)}
        return cls(data, order, {unit: found[order[unit], place] for place, unit in enumerate(units)})

    def of_unit(self, unit: int) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
        """Indices, activations and pictures."""
        order = self.order[unit]
        return tuple(order.tolist()), tuple(self.activations[unit].tolist()), np.array(self.data[order])


def representations(network: FeatureNetwork, images: Tensor, device: torch.device) -> Tensor:
    """R(x) of one batch of images, (n, D) on the CPU.

    The batch is filled up to the network's batch size: libraries choose other kernels for other sizes, and what an
    image reaches must not depend on its company.
    """
    missing = max(0, network.execution.batch_size - len(images))
    with torch.no_grad():
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return network(filled.to(device))[: len(images)].cpu()
