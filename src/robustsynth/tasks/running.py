"""What the tasks on given pictures share: checking, labels, and the run itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsynth.constraints import Constraint, ball
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError, Objective, Problem, Step, check_images
from robustsynth.models.classifier import Classifier
from robustsynth.tasks.batches import solve_in_batches
from robustsynth.tasks.step_settings import PictureSettings
from robustsynth.tasks.views import Shifted, Viewed, check_size, choose_views, size_ratio

BATCH = {"cpu": 2, "cuda": 16}
"""Pictures a batch, by kind of device. Every batch is filled up to it, so that a picture's pixels never depend on its
company, and most people bring one picture: on a processor a larger batch would make them wait for nothing."""

OnStep = Callable[[Sequence[int], Step], object]


@dataclass(frozen=True)
class Statement:
    """What a task wants of some pictures: an objective, and a constraint where the plain ball is not enough."""

    start: Tensor
    objective: Objective
    constraint: Constraint | None = None
    center: Tensor | None = None


class PictureTask:
    """A model looking at pictures of one size, for one task.

    Args:
        model: a classifier.
        pictures: (N, C, H, W) in [0, 1], as the task is given them.
        settings: of its steps.
        size: (H, W) that it works at; the pictures' own where None.
        precision: of the frozen classifier; measured where None.
        batch_size: pictures a batch; `default_batch_size` where None.
        network: to be looked through in place of the frozen classifier's logits.

    """

    def __init__(
        self,
        model: Classifier,
        pictures: Tensor,
        settings: PictureSettings,
        *,
        size: tuple[int, int] | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
        network: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.settings, self.count = model, settings, len(pictures)
        self.size = (pictures.shape[2], pictures.shape[3]) if size is None else size
        check_size(*self.size)
        self.side = model.image_size or min(self.size)
        self.batch_size = batch_size or default_batch_size(model.device)
        if self.batch_size < 1:
            raise UserError(f"expected a batch size of 1 or more, got {batch_size}")
        self.views = choose_views(self.size, self.side, settings.views)
        self.precision = precision or chosen_precision(model)
        frozen = model.frozen(precision=self.precision, batch_size=self.batch_size)
        self.logits = Viewed(frozen, self.views, self.side)
        self.looked_through = frozen if network is None else network

    def seen(self) -> Viewed:
        """The network through the views, for one run of the loop: shifts begin anew with it."""
        return Viewed(Shifted(self.looked_through, self.settings.shift, self.settings.mirror), self.views, self.side)

    def labels(self, labels: Tensor | Sequence[int] | int | None, pictures: Tensor) -> Tensor:
        """Class indices (N,), checked; predicted from `pictures` where none are given."""
        if labels is None:
            return self.predict(pictures)
        return check_labels(labels, self.model, self.count)

    def predict(self, pictures: Tensor) -> Tensor:
        """The most likely class (N,) of pictures (N, C, H, W)."""
        found = []
        with torch.no_grad():
            for start in range(0, len(pictures), self.batch_size):
                part = pictures[start : start + self.batch_size]
                # Filled up as the run's batches are, for the same reason.
                padded = torch.cat([part, part[-1:].expand(self.batch_size - len(part), -1, -1, -1)])
                found.append(self.logits(padded.to(self.model.device)).argmax(1)[: len(part)].cpu())
        return torch.cat(found) if found else torch.empty(0, dtype=torch.long)

    def ball(self) -> Constraint:
        """The settings' ball at the size that is worked at."""
        ratio = size_ratio(self.size, self.side, self.settings.norm)
        return ball(self.settings.norm, self.settings.eps * ratio)

    def run(self, state: Callable[[Tensor], Statement], on_step: OnStep | None = None) -> Tensor:
        """Solve what `state` states of the pictures with given places (n,), all of them.

        Raises:
            NonFiniteError: NaN or infinity in some pictures; the error carries all, the others complete.
        """
        ratio = size_ratio(self.size, self.side, self.settings.norm)

        def problem(chosen: Sequence[int]) -> Problem:
            stated = state(torch.tensor(list(chosen), dtype=torch.long))
            return Problem(stated.start, stated.objective, stated.constraint or self.ball(), stated.center)

        parts: list[Tensor] = []
        failures: dict[int, int] = {}
        for batch in solve_in_batches(
            range(self.count),
            problem,
            batch_size=self.batch_size,
            step_size=lambda index: ratio * self.settings.step_length(index),
            steps=self.settings.steps,
            use_best=self.settings.use_best,
            on_step=on_step,
        ):
            parts.append(batch.images)
            failures |= batch.failures
        result = torch.cat(parts) if parts else torch.empty(0, self.model.channels, *self.size)
        if failures:
            raise NonFiniteError(result, failures)
        return result


def chosen_precision(model: Classifier) -> str:
    """What is fastest for the model on this machine: measured once, and not for each batch size, so that results do
    not depend on it.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> chosen_precision(load_model("mnist")) in ("float32", "bfloat16")
        True
    """
    return model.frozen().execution.precision


def predict(model: Classifier, pictures: Tensor, *, views: str | None = None, precision: str | None = None) -> Tensor:
    """The most likely class (N,) of pictures (N, C, H, W) in [0, 1] of any size.

    Args:
        model: a classifier.
        pictures: (N, C, H, W).
        views: how it sees them, see `PictureSettings`.
        precision: of the frozen classifier; measured where None.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> predict(load_model("mnist"), torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2])
    """
    pictures = check_pictures(model, pictures)
    return PictureTask(model, pictures, PictureSettings(views=views), precision=precision).predict(pictures)


def default_batch_size(device: torch.device) -> int:
    """Pictures a batch on a device.

    Example:
        >>> default_batch_size(torch.device("cpu"))
        2
    """
    return BATCH.get(device.type, BATCH["cuda"])


def check_pictures(model: Classifier, pictures: Tensor, name: str = "images") -> Tensor:
    """Pictures as float32 on the CPU, checked against the model's channels."""
    check_images(pictures, name)
    if pictures.shape[1] != model.channels:
        raise UserError(
            f"expected {name} (N, {model.channels}, H, W) for model {model.name!r}, got {tuple(pictures.shape)}"
        )
    return pictures.detach().float().cpu()


def check_labels(labels: Tensor | Sequence[int] | int, model: Classifier, count: int) -> Tensor:
    """(N,) class indices of the model; one number counts for all pictures.

    Raises:
        UserError: not (N,) integers, or not among the classes.
    """
    try:
        labels = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"expected integer labels, one an image, got {labels!r}; see the model's classes") from None
    labels = labels if labels.numel() else labels.long()
    if labels.ndim == 0:
        labels = labels.expand(count)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool or len(labels) != count:
        raise UserError(f"expected {count} integer labels, one an image, got {labels.dtype} {tuple(labels.shape)}")
    last = len(model.classes) - 1
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise UserError(
            f"expected labels from 0 to {last} ({model.classes[0]} to {model.classes[-1]}), "
            f"got {sorted(set(labels.tolist()))}"
        )
    return labels.long()
