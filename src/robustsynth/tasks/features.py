"""What the units of a classifier's representation respond to: images drawn from noise to raise each unit, and the
images of a data set that raise it most. It shows which units to paint with (Santurkar et al. 2019, Section 3.5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import ball, norm_named
from robustsynth.errors import UserError
from robustsynth.images import as_tensor, to_uint8
from robustsynth.loop import NonFiniteError, Problem
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import FeatureNetwork, feature_network, last_linear
from robustsynth.objectives import Activation, Objective, Roughness
from robustsynth.sheet import sheet
from robustsynth.solver import Interrupted, Progress, Results, Stated, solve
from robustsynth.tasks.settings import FeatureSettings, resolve_settings
from robustsynth.views import Shifted

if TYPE_CHECKING:
    from robustsynth.data import ImageData

MOST_CLASSES, LEAST_WEIGHT = 3, 0.2  # classes named for each unit, and the share of its largest weight they exceed
SIZED_FOR = 32  # the images' side, in pixels, that the default radius and step are for
PIXELS_A_SHIFT = 64  # of the images' side for each pixel of the default shift: small images show no grid
CELL = 128  # pixels of the side to which smaller images are enlarged on the atlas

NORM_DEFAULTS = {
    "l2": {"eps": FeatureSettings.eps, "step_size": FeatureSettings.step_size},
    "linf": {"eps": 0.7, "step_size": 0.05, "smoothness": 1.0},
}
"""Defaults that were found for a norm. Steps in ℓ∞ move all pixels alike, even those that matter next to nothing, which
shows as grain where nothing smooths it."""


@dataclass(frozen=True, eq=False)
class UnitRow:
    """What one unit, a position in the representation, responds to.

    Attributes:
        classes: those whose logits it raises most, with the weights, largest first.
        images, activations: (K, C, H, W) in [0, 1], drawn from noise to raise it, and what it reached in each.
        top_indices: positions in the data of the images that raise it most, first the one that most does.
        top_activations, top_images: what it reaches in each of those, and they, uint8 (T, H, W, C).
    """

    unit: int
    classes: tuple[tuple[str, float], ...]
    images: Tensor
    activations: tuple[float, ...]
    top_indices: tuple[int, ...]
    top_activations: tuple[float, ...]
    top_images: np.ndarray

    def record(self) -> dict[str, Any]:
        """Everything but the images, as plain values."""
        top = zip(self.top_indices, self.top_activations, strict=True)
        return {
            "unit": self.unit,
            "classes": [{"name": name, "weight": round(weight, 4)} for name, weight in self.classes],
            "activation_reached": [round(value, 4) for value in self.activations],
            "top_images": [{"index": index, "activation": round(value, 4)} for index, value in top],
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], drawn: Sequence[np.ndarray], data: ImageData | None) -> UnitRow:
        """The row that a `record` is of, with its drawn images, uint8 (H, W, C), and the data of its top images."""
        top = record["top_images"]
        indices = [int(each["index"]) for each in top]
        none = np.zeros((0, *drawn[0].shape), np.uint8)
        return cls(
            int(record["unit"]),
            tuple((str(each["name"]), float(each["weight"])) for each in record["classes"]),
            as_tensor(drawn),
            tuple(float(value) for _, value in zip(drawn, record["activation_reached"], strict=True)),
            tuple(indices),
            tuple(float(each["activation"]) for each in top),
            none if not top or data is None else np.array(data.images[indices]),
        )


@dataclass(frozen=True, eq=False)
class FeatureAtlas:
    """Rows for units, and the settings that they were drawn with."""

    rows: tuple[UnitRow, ...]
    settings: FeatureSettings


@dataclass(frozen=True)
class Looked:
    """How many images of the data have been looked at, of how many."""

    images: int
    of: int


def features(
    model: Classifier,
    units: int | Sequence[int] | None = None,
    *,
    classes: Sequence[str | int] | None = None,
    num: int = 12,
    data: np.ndarray | ImageData | None = None,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> FeatureAtlas:
    """Images of what units of a classifier respond to; `draw_atlas` puts them on a sheet.

    Args:
        model: from `load_model` or `Classifier.wrap`, with an image size.
        units: positions in the representation; where None, `choose_units` takes `num`.
        classes: names or indices of those to choose units for; all where None.
        num: units to choose.
        data: from `load_data`, or uint8 (N, H, W, C) of the model's size, to find the images that raise each unit
            most; None for none.
        seed: of the noise. An image depends on it, on its unit, and on its number among that unit's, on nothing else.
        precision: as for `generate`, like `batch_size`.
        **settings: fields of `FeatureSettings`, which override the model's own.

    Raises:
        UserError: units that the model lacks, data of another size, a model without image size.
        NonFiniteError: NaN or infinity in some images.
        Interrupted: on Ctrl-C; it has the drawn images, unit after unit, as they had become.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> atlas = features(load_model("mnist"), [3, 17], steps=2, drawn=1)
        >>> [row.unit for row in atlas.rows], atlas.rows[0].images.shape
        ([3, 17], torch.Size([1, 1, 28, 28]))
    """
    if units is not None and classes is not None:
        raise UserError("expected units or classes, got both; units are chosen for classes where none are given")
    resolved = resolve_features(model, given=settings)
    wanted = choose_units(model, classes, num=num) if units is None else check_units(model, units)
    rows, results = [], Results(range(len(wanted) * resolved.drawn))
    how = {"precision": precision, "batch_size": batch_size}
    try:
        for each in feature_steps(model, wanted, resolved, data=data, seed=seed, **how):
            if isinstance(each, UnitRow):
                rows.append(each)
            elif isinstance(each, Progress):
                results.add(each)
    except KeyboardInterrupt:
        raise Interrupted(results) from None
    return FeatureAtlas(tuple(rows), resolved)


def feature_steps(
    model: Classifier,
    units: int | Sequence[int],
    settings: FeatureSettings,
    *,
    data: np.ndarray | ImageData | None = None,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
) -> Iterator[Looked | Progress | UnitRow]:
    """As `features`, but step by step. Leaving the loop cancels what is left.

    Yields:
        `Looked` for each batch of the data, then `Progress` at each step of each batch of drawn images, whose indices
        count them unit after unit. The `UnitRow` of a unit comes as soon as it is done, before the last `Progress` of
        its batch.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> mnist = load_model("mnist")
        >>> settings = resolve_features(mnist, given={"steps": 1, "drawn": 2})
        >>> for each in feature_steps(mnist, [3], settings, batch_size=2):
        ...     print(f"unit {each.unit}" if isinstance(each, UnitRow) else f"{each.indices} at step {each.step}")
        (0, 1) at step 0
        unit 3
        (0, 1) at step 1
    """
    units = check_units(model, units)
    weights = last_linear(model).weight.detach().cpu()
    # What a unit counts for in logits: activations alone have no scale, a layer before could change it at will.
    logit_scale = float(weights.abs().amax(0).mean()) or 1.0
    how = {"precision": precision, "batch_size": batch_size}
    network = feature_network(model, straight_through=settings.straight_through, **how)
    size = network.execution.batch_size

    pixels = _pixels(model, data, settings.top)
    found = np.zeros((len(pixels), len(units)), dtype=np.float32)
    for start in range(0, len(pixels), size):
        part = as_tensor(list(pixels[start : start + size]))
        found[start : start + size] = representations(network, part, model.device)[:, units].numpy()
        yield Looked(start + len(part), len(pixels))

    wanted = [(unit, number) for unit in units for number in range(settings.drawn)]

    def state(chosen: Sequence[int], run: int, before: Tensor | None) -> Stated:
        generators = [randomness.generator(seed, *wanted[i]) for i in chosen]
        start = noise(model, generators, level=settings.level, contrast=settings.contrast)
        # Shifts begin anew with each batch.
        seen = Shifted(network, settings.shift, settings.mirror)
        objective: Objective = Activation(seen, [wanted[i][0] for i in chosen])
        if settings.smoothness:
            objective = objective + settings.smoothness / logit_scale * Roughness()
        return Stated(Problem(start.to(model.device), objective, ball(settings.norm, settings.eps)))

    batches = [range(start, min(start + size, len(wanted))) for start in range(0, len(wanted), size)]
    how = {"batch_size": size, "step_size": settings.step_length, "steps": settings.steps}
    done: list[tuple[Tensor, float]] = []
    left = iter(enumerate(units))
    for progress in solve(batches, state, use_best=settings.use_best, **how):
        if progress.finished:
            if progress.failures:
                failures = {progress.indices.index(i): step for i, step in progress.failures.items()}
                raise NonFiniteError(progress.previews, failures)
            reached = representations(network, progress.previews, model.device)
            for i, image, values in zip(progress.indices, progress.previews, reached, strict=True):
                done.append((image, float(values[wanted[i][0]])))
        while len(done) >= settings.drawn:
            place, unit = next(left)
            images, activations = zip(*done[: settings.drawn], strict=True)
            del done[: settings.drawn]
            top = np.argsort(-found[:, place], kind="stable")[: settings.top]
            yield UnitRow(
                unit,
                classes_raised(model, weights, unit),
                torch.stack(images),
                activations,
                tuple(top.tolist()),
                tuple(found[top, place].tolist()),
                np.array(pixels[top]),
            )
        yield progress


def resolve_features(model: Classifier, *, given: dict[str, Any] | None = None) -> FeatureSettings:
    """The settings for `model`: those given, else its card's tuned ones, else the defaults for its norm and size.

    The norm is that which the model withstands: an ℓ∞-robust classifier of digits sees little but single pixels where
    steps are ℓ2. ℓ2 sizes grow with the images' side, as the distance over equally changed pixels does. The noise is
    half as far from mid-grey as the colour that the model normalises by: below it, it sees no difference in digits on
    black.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    tuned, own = ({}, {}) if model.card is None else (model.card.tasks.get("features", {}), model.card.threat_model)
    norm = given.get("norm", tuned.get("norm", own.get("norm", "l2")))
    size = norm_named(norm).scale
    scale = size((model.image_size or SIZED_FOR) ** 2) / size(SIZED_FOR**2)
    sized = dict(NORM_DEFAULTS.get(norm, {}))
    sized |= {name: value * scale for name, value in sized.items() if name in ("eps", "step_size")}
    kept = tuned if norm == tuned.get("norm", norm) else {}  # Tuned sizes say nothing of another norm.
    if missing := {"eps", "step_size"} - sized.keys() - kept.keys() - given.keys():
        raise UserError(f"expected eps and step_size beside norm={norm}, got no {' and no '.join(sorted(missing))}")
    sized = {name: value for name, value in sized.items() if name not in kept}
    if "shift" not in tuned:
        sized |= {"shift": (model.image_size or SIZED_FOR) // PIXELS_A_SHIFT}
    if "level" not in tuned and bool(model.mean.any()):  # All zeros means that the network normalises itself.
        sized |= {"level": round((0.5 + float(model.mean.mean())) / 2, 2)}
    return resolve_settings(FeatureSettings, "features", model, given={"norm": norm} | sized | given)


def noise(model: Classifier, generators: Sequence[torch.Generator], *, level: float, contrast: float) -> Tensor:
    """Noise around a grey of brightness `level`, (N, C, H, W) in [0, 1], of standard deviation `contrast`.

    Its amplitudes fall with frequency as those of photographs do (Field 1987, "Relations between the statistics of
    natural images and the response properties of cortical cells"), and it is grey: white noise of the same contrast
    shows as grain in what becomes of it, coloured noise as patches of wrong colours.
    """
    side = model.image_size
    if side is None:
        raise UserError(f"expected a model with an image size, got {model.name!r} without; give it to Classifier.wrap")
    rows, columns = torch.fft.fftfreq(side).unsqueeze(1), torch.fft.rfftfreq(side).unsqueeze(0)
    frequency = torch.sqrt(rows**2 + columns**2)
    frequency[0, 0] = float("inf")  # So that the mean is the level.
    spectrum = torch.fft.rfft2(randomness.normal(generators, (1, side, side))) / frequency
    drawn = torch.fft.irfft2(spectrum, s=(side, side))
    drawn = drawn / drawn.std(dim=(2, 3), correction=0, keepdim=True).clamp_min(1e-12)
    return (level + contrast * drawn).clamp(0, 1).repeat(1, model.channels, 1, 1)


# Which units, and what is known of them


def choose_units(model: Classifier, classes: Sequence[str | int] | None = None, *, num: int = 12) -> list[int]:
    """At most `num` units worth a look: those with the largest weights to each of the classes (names or indices; all
    where None), which take turns, each unit once. They are grouped by class. The model's last linear layer must give
    its logits."""
    if num < 1:
        raise UserError(f"expected 1 or more units, got {num}")
    weights = last_linear(model).weight.detach()
    if len(weights) != len(model.classes):
        raise UserError(
            f"expected a model whose last linear layer gives its {len(model.classes)} logits to choose units by their "
            f"weights, but that of {model.name!r} gives {len(weights)} numbers; say which units"
        )
    every = range(len(weights))
    asked = every if classes is None else classes
    indices = dict.fromkeys(c if isinstance(c, int) and c in every else model.class_index(c) for c in asked)
    order = {label: weights[label].argsort(descending=True, stable=True).tolist() for label in indices}
    chosen: dict[int, int] = {}
    left = deque(indices)
    while left and len(chosen) < num:
        label = left.popleft()
        # Its best that no class has taken; one that lowers the class says nothing of it.
        unit = next((u for u in order[label] if u not in chosen and weights[label, u] > 0), None)
        if unit is not None:
            chosen[unit] = label
            left.append(label)
    return [unit for label in indices for unit, owner in chosen.items() if owner == label]


def check_units(model: Classifier, units: int | Sequence[int]) -> list[int]:
    """Units that the model has, each once, in the order given; none, or one that it lacks, are a `UserError`."""
    count = last_linear(model).in_features
    found = np.atleast_1d(np.asarray(units))
    if not found.size:
        raise UserError(f"expected one or more units from 0 to {count - 1}, got none")
    if found.ndim > 1 or found.dtype.kind not in "iu":
        raise UserError(f"expected units as whole numbers from 0 to {count - 1}, got {units!r}")
    if wrong := [unit for unit in found.tolist() if not 0 <= unit < count]:
        raise UserError(f"expected units from 0 to {count - 1} for model {model.name!r}, got {wrong[0]}")
    return list(dict.fromkeys(found.tolist()))


def classes_raised(model: Classifier, weights: Tensor, unit: int) -> tuple[tuple[str, float], ...]:
    """The classes whose logits a unit raises most, with the weights; none where the layer does not give the logits."""
    if len(weights) != len(model.classes):
        return ()
    column = weights[:, unit]
    best = column.argsort(descending=True, stable=True)[:MOST_CLASSES].tolist()
    least = LEAST_WEIGHT * max(0.0, float(column[best[0]]))
    return tuple((model.classes[label], float(column[label])) for label in best if column[label] > least)


def representations(network: FeatureNetwork, images: Tensor, device: torch.device) -> Tensor:
    """R(x) of one batch of images, (n, D) on the CPU.

    The batch is filled up to the network's batch size: libraries choose other kernels for other sizes, and what an
    image reaches must not depend on which other images are there.
    """
    missing = max(0, network.execution.batch_size - len(images))
    with torch.no_grad():
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return network(filled.to(device))[: len(images)].cpu()


def _pixels(model: Classifier, data: np.ndarray | ImageData | None, top: int) -> np.ndarray:
    """The images to look at, uint8 (N, H, W, C), checked; N is 0 where there is nothing to look for."""
    side = model.image_size or 0
    if data is None or top == 0:
        return np.zeros((0, side, side, model.channels), dtype=np.uint8)
    pixels = data if isinstance(data, np.ndarray) else data.images
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (side, side, model.channels):
        raise UserError(
            f"expected data as uint8 (N, {side}, {side}, {model.channels}) for model {model.name!r}, "
            f"got {pixels.dtype} {pixels.shape}"
        )
    return pixels


def draw_atlas(
    rows: Sequence[UnitRow],
    *,
    title: str,
    drawn_as: str = "drawn from noise",
    data_name: str = "the data",
    classes: Sequence[str] = (),
) -> np.ndarray:
    """One uint8 image (H, W, 3) of the rows of a `FeatureAtlas`: for each unit its number, its classes, what was drawn
    to raise it, its top images, and below each image the unit's activation in it.

    `title` stands above everything, `drawn_as` above the drawn images, and `data_name` says what the top images are of;
    `classes` are the model's, as for `robustsynth.sheet.sheet`. No rows are a `UserError`.

    Example:
        >>> row = UnitRow(3, (("cat", 0.5),), torch.zeros(2, 3, 32, 32), (1.0, 2.0), (), (), np.zeros((0, 32, 32, 3)))
        >>> draw_atlas([row], title="two images").shape[2]
        3
    """
    if not rows:
        raise UserError("expected one or more units to draw, got none")
    drawn, top = max(len(row.images) for row in rows), max(len(row.top_images) for row in rows)

    def line(first: Iterable[Any], second: Iterable[Any], missing: Any) -> list[Any]:
        padding = [missing] * (drawn + top)
        return [*[*first, *padding][:drawn], *[*second, *padding][:top]]

    def numbers(values: Sequence[float]) -> list[str]:
        return [f"{value:.1f}" for value in values]

    return sheet(
        [line(to_uint8(row.images), row.top_images, None) for row in rows],
        title=title,
        titles=[drawn_as] * drawn + [f"images of {data_name} that raise it most"] * top,
        labels=[(f"unit {r.unit}", *(f"{weight:+.2f} {name}" for name, weight in r.classes)) for r in rows],
        captions=[line(numbers(row.activations), numbers(row.top_activations), "") for row in rows],
        classes=classes,
        cell=CELL,
    )
