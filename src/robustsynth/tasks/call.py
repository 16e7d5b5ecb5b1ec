"""One use of a task: a model, settings, images and inputs, solved batch by batch by the one generator.

The Python functions and the commands both make a `Call`; a task's `state` sees a `Batch` of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsynth.constraints import Constraint, Inside, ball
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.images import LoadedImage, as_images
from robustsynth.loop import Objective, Problem, check_images
from robustsynth.masks import check_mask, load_mask, mask_from_alpha, random_patch_masks, rectangle_mask
from robustsynth.models.classifier import Classifier, FrozenClassifier
from robustsynth.models.execution import Execution
from robustsynth.names import matching_class, name_key
from robustsynth.objectives import CrossEntropy, Distance
from robustsynth.randomness import image_generators
from robustsynth.resampling import faded
from robustsynth.solver import Progress, Stated, solve
from robustsynth.tasks.settings import ImageSettings
from robustsynth.tasks.task import REQUIRED, Task
from robustsynth.views import Shifted, Viewed, check_size, choose_views, size_ratio


class PerImage:
    """A value that each image of a call has one of: indices of images to the values of these images."""

    def __init__(self, of: Callable[[Sequence[int]], Any]) -> None:
        self.of = of

    def __call__(self, indices: Sequence[int]) -> Any:
        return self.of(indices)

    @classmethod
    def rows(cls, values: Tensor | Sequence[Tensor]) -> PerImage:
        """The rows of a tensor, or of a sequence of tensors."""
        if isinstance(values, Tensor):
            return cls(lambda indices: values[list(indices)])
        return cls(lambda indices: torch.stack([values[index] for index in indices]))


class Call:
    """One use of a task.

    Args:
        task: of the table.
        model: a classifier.
        settings: resolved ones.
        sizes: (H, W) of each image.
        load: gives image number i as (C, H, W) float32 in [0, 1] on the CPU; None for tasks without images.
        files: of the images, where they come from files.
        decoded: those of them that are decoded already, by number.
        precision: ``float32`` or ``bfloat16``; measured once per model and machine where None.
        batch_size: images a batch; measured likewise.

    Attributes:
        inputs: by name, a value or a `PerImage`.
        endings: of the result files of each image, where an image has several results.
        notes: what is to be said about how the inputs were understood.
    """

    def __init__(
        self,
        task: Task,
        model: Classifier,
        settings: Any,
        sizes: Sequence[tuple[int, int]],
        load: Callable[[int], Tensor] | None = None,
        *,
        files: Sequence[Path] = (),
        decoded: Mapping[int, LoadedImage] | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"expected a batch size of 1 or more, got {batch_size}")
        self.task, self.model, self.settings = task, model, settings
        self.files, self.decoded = list(files), decoded or {}
        self.sizes, self.load = list(sizes), load
        self.sources = list(range(len(self.sizes)))
        self.inputs: dict[str, Any] = {}
        self.endings: list[str] = [""]
        self.notes: list[str] = []
        self.execute(precision, batch_size)

    def __len__(self) -> int:
        return len(self.sources)

    def execute(self, precision: str | None, batch_size: int | None) -> None:
        """Choose precision and batch size: those given, or what is fastest here for so many images, which is measured
        when it is first needed."""
        self._given: tuple[str | None, int | None] = precision, batch_size
        self._frozen: FrozenClassifier | None = None

    @property
    def frozen(self) -> FrozenClassifier:
        """The classifier as the loop runs it."""
        if self._frozen is None:
            precision, batch_size = self._given
            self._frozen = self.model.frozen(precision=precision, batch_size=batch_size, images=max(1, len(self)))
        return self._frozen

    @property
    def execution(self) -> Execution:
        """Precision and batch size."""
        return self.frozen.execution

    def value(self, name: str) -> Any:
        """An input that holds for all images."""
        return self.inputs[name]

    def give(self, **inputs: Any) -> None:
        """Check the inputs of the Python function, in the order that the task names them.

        Raises:
            UserError: one that is missing or does not fit.
        """
        for each in self.task.inputs:
            given = inputs.get(each.name, each.default)
            if given is REQUIRED:
                raise UserError(f"expected {each.name} ({each.help}), got none")
            self.inputs[each.name] = each.check(given, self)
        self._check_sizes()

    def read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Read the inputs from options of the command line; returns what of them decides the results."""
        record: dict[str, Any] = {}
        for each in self.task.inputs:
            self.inputs[each.name], deciding = each.read(options, self)
            record |= deciding
        self._check_sizes()
        return record

    def repeat(self, endings: Sequence[str]) -> None:
        """Make several results of each image, whose files have these endings."""
        self.endings = list(endings)
        self.sources = [source for source in self.sources for _ in endings]

    def named_class(self, name: str) -> int:
        """A class by name or number, also by a name from another vocabulary, which is noted.

        Raises:
            UnknownNameError: no such class.
        """
        found = class_of(name, self.model)
        if not name.isdecimal() and name_key(self.model.classes[found]) != name_key(name):
            self.notes.append(f"{name!r} is taken as the class {self.model.classes[found]!r}")
        return found

    def result_size(self, index: int) -> tuple[int, int]:
        """(H, W) of a result."""
        size = self.sizes[self.sources[index]]
        return size if self.task.result_size is None else self.task.result_size(size, self)

    def _check_sizes(self) -> None:
        for size in {self.result_size(index) for index in range(len(self))}:
            if self.load is not None:
                check_size(*size)

    @property
    def runs(self) -> int:
        """Runs of the loop for each image."""
        return 1 if self.task.runs is None else self.task.runs(self)

    def side(self, size: tuple[int, int]) -> int:
        """Of the square images that the classifier is shown for an image of this size."""
        return self.model.image_size or min(size)

    def seen(self, index: int) -> str:
        """How the classifier sees a result, in words."""
        size = self.result_size(index)
        side = self.side(size)
        views = choose_views(size, side, self.settings.views)
        if len(views) > 1:
            return f"in {len(views)} squares of {views[0].width} pixels, each as {side}×{side}"
        return f"whole, as {side}×{side}"

    def steps(self, indices: Sequence[int] | None = None) -> Iterator[Progress]:
        """Solve for some of the images, or all: images of one size together, a batch at a time."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index in range(len(self)) if indices is None else indices:
            by_size.setdefault(self.result_size(index), []).append(index)
        count, settings = self.execution.batch_size, self.settings
        for size, same in by_size.items():
            ratio = 1.0 if self.load is None else size_ratio(size, self.side(size), settings.norm)
            yield from solve(
                (same[start : start + count] for start in range(0, len(same), count)),
                lambda chosen, run, before, size=size: self.task.state(Batch(self, chosen, size, run, before)),
                batch_size=count,
                step_size=lambda index, ratio=ratio: ratio * settings.step_length(index),
                steps=settings.steps,
                use_best=settings.use_best,
                runs=self.runs,
            )


class Batch:
    """What a task's `state` sees: images of one size, filled up to the batch size.

    Attributes:
        call: that it is part of.
        indices: of its images in the call; the last is repeated to fill it up.
        size: (H, W) of the results.
        run: number of this run of the loop.
        side: of the square images that the classifier is shown.
    """

    def __init__(
        self, call: Call, indices: Sequence[int], size: tuple[int, int], run: int = 0, before: Tensor | None = None
    ) -> None:
        self.call, self.indices, self.size, self.run = call, list(indices), size, run
        self.side = call.side(size)
        self.model, self.settings, self.device = call.model, call.settings, call.model.device
        self.precision, self.batch_size = call.execution.precision, call.execution.batch_size
        self._before = before
        self._labels: Tensor | None = None
        self._predicted = False

    @property
    def images(self) -> Tensor:
        """What the batch's images are (N, C, H, W), on the CPU: as given, or as the run before this one left them."""
        if self._before is None:
            assert self.call.load is not None
            sources = [self.call.sources[index] for index in self.indices]
            loaded = {source: self.call.load(source) for source in dict.fromkeys(sources)}
            self._before = torch.stack([loaded[source] for source in sources])
        return self._before

    def value(self, name: str) -> Any:
        """An input: of the batch's images, where each has its own."""
        value = self.call.inputs[name]
        return value(self.indices) if isinstance(value, PerImage) else value

    def network(self, network: Callable[[Tensor], Tensor] | None = None) -> Viewed:
        """The frozen classifier, or another network, as it sees images of this size; for one run of the loop, because
        shifts begin anew with it."""
        shifted = Shifted(network or self.call.frozen, self.settings.shift, self.settings.mirror)
        return Viewed(shifted, self._views(), self.side)

    def ball(self) -> Constraint:
        """The settings' ball, at the size of the results."""
        return ball(self.settings.norm, self.settings.eps * size_ratio(self.size, self.side, self.settings.norm))

    def labels(self, images: Tensor) -> Tensor:
        """The class of each image (N,): as given, or predicted from `images` (N, C, H, W)."""
        given = self.value("labels")
        if given is None:
            self._predicted = True
            with torch.no_grad():
                given = Viewed(self.call.frozen, self._views(), self.side)(images.to(self.device)).argmax(1).cpu()
        self._labels = given
        return given

    def towards(self, labels: Tensor, *, start: Tensor | None = None, adherence: float = 0.0) -> Stated:
        """Descend the cross-entropy of `labels` from `start`, the images where None.

        Args:
            labels: (N,).
            start: (N, C, H, W).
            adherence: λ, weight of the mean squared difference from the images.
        """
        self._labels = labels
        objective = CrossEntropy(self.network(), labels.to(self.device))
        if adherence:
            objective = objective + adherence * Distance(self.images.to(self.device))
        return self.stated(self.images if start is None else start, objective)

    def confined(
        self, objective: Objective, region: Tensor, reference: Tensor
    ) -> tuple[Objective, Constraint | None, Tensor | None]:
        """An objective for a region (N, 1, H, W), as the settings say: steps change the region alone, fading out within
        its border; or a penalty on the squared difference from `reference` holds what is outside.

        Returns:
            the objective; the constraint, None for the settings' ball; and the faded region, None with a penalty.
        """
        settings = self.settings
        if settings.only_inside:
            soft = faded(region, settings.feather * max(self.size) / self.side)
            return objective, Inside(self.ball(), soft.to(self.device)), soft
        outside = (1 - region).to(self.device)
        return objective + settings.penalty * Distance(reference.to(self.device), outside), None, None

    def stated(
        self,
        start: Tensor,
        objective: Objective,
        *,
        constraint: Constraint | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> Stated:
        """What the task wants of this batch.

        Args:
            start: (N, C, H, W), on the CPU or the device.
            objective: to minimise.
            constraint: the settings' ball where None.
            finish: iterates on the device to results on the CPU; the iterates themselves where None.
            given: see `Stated`.
        """
        problem = Problem(start.to(self.device), objective, constraint or self.ball())
        return Stated(
            problem,
            finish or (lambda images: images.detach().cpu()),
            labels=self._labels,
            predicted=self._predicted,
            given=given or {},
        )

    def _views(self) -> Any:
        kind = self.settings.views if isinstance(self.settings, ImageSettings) else "whole"
        return choose_views(self.size, self.side, kind)


def read_images(model: Classifier, images: Any, name: str = "images", *, any_values: bool = False) -> list[Tensor]:
    """Images of any kind as (C, H, W) float32 on the CPU, with the model's channels.

    Args:
        model: whose channels they get.
        images: see `robustsynth.images.as_images`.
        name: of them, for errors.
        any_values: whether they may hold any values, where not all are read.

    Raises:
        UserError: something that is no image, or of other channels.
    """
    if isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point() and not any_values:
        check_images(images, name)  # It says which of them is not finite.
    if not any_values and isinstance(images, (list, tuple)) and not images:
        return []
    read = as_images(images, channels=model.channels, any_values=any_values)
    return [image.detach().float().cpu() for image in read]


def class_of(name: int | str, model: Classifier) -> int:
    """A class by name or number, also by a name from another vocabulary, such as dog or truck.

    Raises:
        UnknownNameError: no such class.
        UserError: a number out of range.
    """
    found = matching_class(str(name), model.classes, model.aliases)
    return model.class_index(name if isinstance(name, int) else str(name)) if found is None else found


def class_indices(labels: Any, model: Classifier, count: int) -> Tensor:
    """(N,) class indices of the model; one number or name counts for all images.

    Raises:
        UserError: not (N,) integers or names, or not among the classes.
    """
    if isinstance(labels, str):
        labels = class_of(labels, model)
    elif isinstance(labels, (list, tuple)) and any(isinstance(label, str) for label in labels):
        labels = [class_of(label, model) for label in labels]
    try:
        labels = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"expected labels as numbers or names, one an image, got {labels!r}") from None
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


def masks_of(mask: Any, call: Call) -> list[Tensor]:
    """A mask (1, H, W) for each image of a call.

    Args:
        mask: (N, 1, H, W); or one for all images: (1, H, W), an array (H, W), or an image of where; or a list of
            such, one an image.

    Raises:
        UserError: another number of masks than of images, or one that does not fit.
    """
    one_each = isinstance(mask, (list, tuple)) or (isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) > 1)
    if one_each and len(mask) != len(call.sizes):
        raise UserError(f"expected one mask, or one for each of {len(call.sizes)} images, got {len(mask)}")
    found: dict[Any, Tensor] = {}
    rows = []
    for place, size in enumerate(call.sizes):
        given: Any = mask[place] if one_each else mask
        key = (place if one_each else 0, size)
        if key not in found:
            if isinstance(given, np.ndarray):
                given = torch.from_numpy(given[None] if given.ndim == 2 else given)
            elif isinstance(given, (str, Path, Image.Image)):
                given = load_mask(given, size)
            elif not isinstance(given, Tensor):
                raise UserError(
                    f"expected a mask as a tensor, an array, a file or a Pillow image, got {type(given).__name__}"
                )
            found[key] = check_mask(given, torch.empty(1, 1, *size))[0].float().cpu()
        rows.append(found[key])
    return rows


def command_masks(
    mask: Sequence[str], options: Mapping[str, Any], call: Call, *, own_alpha: bool = False
) -> tuple[PerImage, dict[str, Any]]:
    """The mask (1, H, W) of each image as the command line says, checked now, and what decides it.

    Args:
        mask: what ``--mask`` was given: at most one image or rectangle.
        options: ``patch``, side of a random square; ``seed`` of it; ``invert``, to take the other part.
        call: whose images they are for.
        own_alpha: where nothing is given, what is transparent in an image is its mask.

    Raises:
        UserError: not exactly one source, or a mask that does not fit an image.
    """
    invert, patch, seed = options["invert"], options["patch"], options["seed"]
    if len(mask) > 1 or (mask and patch is not None):
        raise UserError("expected one --mask or --patch for each image, got several; merge the masks into one")
    if not mask and patch is None and not own_alpha:
        raise UserError("expected --mask (an image, or LEFT,TOP,WIDTH,HEIGHT) or --patch SIDE, got neither")
    record: dict[str, Any]
    if mask and "," in mask[0] and re.fullmatch(r"[-\d.,\s]+", mask[0]):
        record = {"mask": mask[0]}
    elif mask:
        if not (path := Path(mask[0])).is_file():
            raise UserError(f"expected an image of the mask in {path}, found no such file")
        record = {"mask": {"file": path.name, "sha256": sha256(path)}}
    else:
        record = {"mask": "transparent parts"} if patch is None else {"patch": patch, "seed": seed}

    def build(source: int | None, size: tuple[int, int]) -> Tensor:
        if source is None:
            return rectangle_mask(mask[0], size) if isinstance(record["mask"], str) else load_mask(mask[0], size)
        if patch is None:
            return mask_from_alpha(call.decoded.get(source, call.files[source]))
        # Keyed by the image's contents, not its place: the same image has the same hole in any company.
        generators = image_generators(seed, [int(sha256(call.files[source])[:8], 16)])
        return random_patch_masks(generators, size=size, side=patch, border=min(size) // 8)[0]

    @functools.lru_cache(maxsize=64)
    def checked(source: int | None, size: tuple[int, int]) -> Tensor:
        built = build(source, size)
        return check_mask(1 - built if invert else built, torch.empty(1, 1, *size))[0].float()

    def of(source: int) -> Tensor:
        return checked(None if mask else source, call.sizes[source])

    for source in range(len(call.sizes)):
        of(source)
    masks = PerImage(lambda indices: torch.stack([of(call.sources[index]) for index in indices]))
    return masks, record | {"invert": invert}


def predict(model: Classifier, images: Any, *, views: str | None = None, precision: str | None = None) -> Tensor:
    """The most likely class (N,) of images of any size.

    Args:
        model: a classifier.
        images: as for `refine`.
        views: how it sees them, see `ImageSettings`.
        precision: of the frozen classifier; measured where None.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> predict(load_model("mnist"), torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2])
    """
    frozen = model.frozen(precision=precision)
    found = []
    for image in read_images(model, images):
        size = (image.shape[1], image.shape[2])
        side = model.image_size or min(size)
        with torch.no_grad():
            found.append(Viewed(frozen, choose_views(size, side, views), side)(image[None].to(model.device)).argmax(1))
    return torch.cat(found).cpu() if found else torch.empty(0, dtype=torch.long)
