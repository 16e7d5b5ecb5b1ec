"""What generation draws: a class for each image, or a mix of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier, FrozenClassifier
from robustsynth.objectives import (
    CrossEntropy,
    Ensemble,
    MixedCrossEntropy,
    Network,
    Objective,
    Reordered,
    checked_weights,
)
from robustsynth.tasks.views import Shifted


def check_targets(targets: Tensor | Sequence[int], model: Classifier) -> Tensor:
    """Class indices (N,), or weights of the classes (N, K), checked against the model.

    Raises:
        UserError: anything else.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> check_targets([3, 8], load_model("cifar10"))
        tensor([3, 8])
    """
    targets = torch.as_tensor(targets).cpu()
    if targets.ndim == 1 and not targets.numel():
        return targets.long()
    if targets.ndim == 2 and targets.is_floating_point():
        return checked_weights(targets, len(model.classes))
    last = len(model.classes) - 1
    if targets.ndim != 1 or targets.is_floating_point():
        raise UserError(
            f"expected labels as (N,) integers, got {targets.dtype} {tuple(targets.shape)}; "
            f"for mixes of classes give their weights, (N, {last + 1}) floats"
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) <= last:
        raise UserError(f"expected labels from 0 to {last}, got {int(targets.min())} to {int(targets.max())}")
    return targets


def main_classes(targets: Tensor) -> Tensor:
    """The class (N,) of each image, of a mix the one that weighs most, the first of equals.

    Example:
        >>> main_classes(torch.tensor([[0.4, 0.6], [0.5, 0.5]])).tolist()
        [1, 0]
    """
    return targets if targets.ndim == 1 else targets.argmax(1)


def parse_mix(text: str, model: Classifier) -> Tensor:
    """``ship:0.6,horse:0.4`` as weights (K,) that sum to 1.

    Args:
        text: classes by name or number, each with a weight above 0; their sum does not matter.
        model: whose classes are meant.

    Raises:
        UserError: no such classes, or no such weights.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> parse_mix("3:1,8:3", load_model("mnist"))[[3, 8]].tolist()
        [0.25, 0.75]
    """
    weights = torch.zeros(len(model.classes))
    for part in text.split(","):
        name, _, number = part.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name.strip() or not 0 < weight < float("inf"):
            first, last = model.classes[0], model.classes[-1]
            raise UserError(f"expected a mix such as {first}:0.6,{last}:0.4, got {text!r}")
        weights[model.class_index(name.strip())] += weight
    return weights / weights.sum()


def named(target: Tensor, classes: Sequence[str]) -> str:
    """A target as people write it: a class's name, or ``ship:0.6,horse:0.4``.

    Example:
        >>> named(torch.tensor([0.25, 0.75]), ["cat", "ship"]), named(torch.tensor(1), ["cat", "ship"])
        ('ship:0.75,cat:0.25', 'ship')
    """
    if target.ndim == 0:
        return classes[int(target)]
    heaviest = sorted(target.nonzero().flatten().tolist(), key=lambda place: -float(target[place]))
    return ",".join(f"{classes[place]}:{float(target[place]):.4g}" for place in heaviest)


def objective_source(
    frozen: FrozenClassifier, ensemble: Sequence[Classifier], *, shift: int = 0, mirror: bool = False
) -> Callable[[Tensor], Objective]:
    """A function from targets (n,) or (n, K) to what to minimise: their cross-entropy by a frozen classifier, or the
    mean of it by that and all others of an ensemble.

    Args:
        frozen: the model as it is optimised with.
        ensemble: the others.
        shift: pixels by which images are moved from call to call (see `robustsynth.tasks.views.Shifted`).
        mirror: whether every second call sees them mirrored.

    Raises:
        UserError: classifiers of other classes, or of images of another size.
    """
    networks: list[Network] = [frozen]
    for other in ensemble:
        # In the same precision and batch size, so that there is one answer to what the pictures were drawn in.
        execution = frozen.execution
        its_frozen = other.frozen(precision=execution.precision, batch_size=execution.batch_size)
        networks.append(Reordered(its_frozen, other.classes, frozen.classes))
        channels = frozen.mean.numel()
        sizes = {frozen.image_size, other.image_size} - {None}
        if len(sizes) > 1 or other.channels != channels:
            raise UserError(
                f"expected classifiers of images of {frozen.image_size} pixels and {channels} channels, got "
                f"{other.name!r} for {other.image_size} pixels and {other.channels}; an ensemble looks at the same "
                "images"
            )

    def objective(targets: Tensor) -> Objective:
        kind = CrossEntropy if targets.ndim == 1 else MixedCrossEntropy
        each = [kind(Shifted(network, shift, mirror), targets) for network in networks]
        return each[0] if len(each) == 1 else Ensemble(each)

    return objective
