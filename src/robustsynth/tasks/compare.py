"""Comparison: several classifiers draw from the same start images (Santurkar et al. 2019, Figure 2: what a robust
classifier draws, and what a standard one does)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import norm_named
from robustsynth.errors import UserError
from robustsynth.images import save_png, to_uint8
from robustsynth.models.card import AUTO, CLEAN, PGD, TITLES, Measured, measured, one_line
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import Execution, machine_name
from robustsynth.models.store import WEIGHTS_FILE
from robustsynth.names import name_position
from robustsynth.resampling import resample
from robustsynth.run_folder import FIGURE_FILE, RunFolder, model_identity
from robustsynth.seeds import MIXTURES_FILE, SEED_KINDS, has_seeds
from robustsynth.sheet import PAGE, sheet
from robustsynth.solver import Progress, Results
from robustsynth.tasks.functions import generate_steps
from robustsynth.tasks.generate import GENERATE, GenerateSettings
from robustsynth.tasks.generation import check_scales, draw_starts, start_identity

TABLE_FILE = "table.md"

TURNS = 3
"""Batches that each model draws at least, unless a batch size is given."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601)."""

NOT_MEASURED = "not measured"
_TITLES = {**TITLES, CLEAN: "Clean accuracy"}


@dataclass(frozen=True, eq=False)
class ComparisonPlan:
    """What is to be drawn by which models. Whatever can be refused beforehand has been.

    Attributes:
        models: to compare.
        names: of the models, all different.
        classes: the class of each of the N start images, in the first model's spelling.
        seed: of the start images.
        seeds: (N, C, H, W) start images in [0, 1], at the size of the model that they are from.
        seeds_of: place of that model; common settings are its too.
        own_settings: whether each model has the settings of its own card.
        settings: of each model.
        executions: precision and batch size of each.
    """

    models: tuple[Classifier, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    seed: int
    seeds: Tensor
    seeds_of: int
    own_settings: bool
    settings: tuple[GenerateSettings, ...]
    executions: tuple[Execution, ...]

    def starts(self, place: int) -> Tensor:
        """The start images (N, C, H, W) in the size and the channels of the model at `place`."""
        model, images = self.models[place], self.seeds
        if model.channels == 1 and images.shape[1] == 3:
            images = (images * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        elif model.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        side = model.image_size or images.shape[-1]
        return resample(images, (side, side)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What several models drew from the same start images.

    Attributes:
        plan: what was asked for.
        images: for each model (N, C, H, W) in [0, 1] on the CPU, of its own size and channels; black where not drawn.
        drawn: (models, N), which images are there; all, unless it was stopped or an image met a NaN.
        seconds: for each model, the time of an image in this run, by its median step; None where no step was timed.
        failures: for each model, by image, the step at which it met a NaN or an infinity.
    """

    plan: ComparisonPlan
    images: tuple[Tensor, ...]
    drawn: Tensor
    seconds: tuple[float | None, ...]
    failures: tuple[dict[int, int], ...]

    @property
    def seeds(self) -> Tensor:
        """(N, C, H, W) start images in [0, 1]."""
        return self.plan.seeds

    @property
    def complete(self) -> bool:
        """Whether every batch was drawn; images that met a NaN are no reason to draw again."""
        return int(self.drawn.sum()) + sum(map(len, self.failures)) == self.drawn.numel()


class ComparisonInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of `compare`.

    Attributes:
        comparison: what was drawn until then.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        drawn = comparison.drawn
        super().__init__(f"{int(drawn.sum())} of {drawn.numel()} images are drawn; .comparison has them")


def compare(
    models: Sequence[Classifier],
    classes: Sequence[str | int] | None = None,
    *,
    num_per_class: int = 2,
    seed: int = 0,
    preset: str | None = None,
    own_settings: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> Comparison:
    """Draw from the same class seeds with several classifiers. `ComparisonSteps` does it step by step.

    The seeds are those of the first robust model that has some, resized for models of other sizes. Its settings hold
    for all, so that the contrast is one of models and not of settings; ℓ2 sizes and shifts scale with the images.

    Args:
        models: one or more, which share the classes asked for.
        classes: names, or numbers as the first model counts them; all that the models share where None.
        num_per_class: start images of each class.
        seed: of the start images.
        preset: as for `generate`.
        own_settings: each model by the tuned settings of its own card in place of common ones.
        precision: as for `generate`.
        batch_size: as for `generate`.
        **settings: fields of `GenerateSettings`, which override the preset.

    Returns:
        A `Comparison`, with ``images``, ``seeds`` and ``seconds``.

    Raises:
        UserError: no models, classes that they do not share, or settings or seeds that do not fit.
        ComparisonInterrupted: on Ctrl-C; it has what was drawn until then.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> result = compare([load_model("mnist"), load_model("mnist-standard")], ["3", "8"], num_per_class=1, steps=2)
        >>> [images.shape for images in result.images]
        [torch.Size([2, 1, 28, 28]), torch.Size([2, 1, 28, 28])]
    """
    plan = plan_comparison(
        models,
        classes,
        num_per_class=num_per_class,
        seed=seed,
        preset=preset,
        own_settings=own_settings,
        precision=precision,
        batch_size=batch_size,
        given=settings,
    )
    drawing = ComparisonSteps(plan)
    try:
        for _ in drawing:
            pass
    except KeyboardInterrupt:
        raise ComparisonInterrupted(drawing.result()) from None
    return drawing.result()


class ComparisonSteps:
    """A comparison step by step: a ``for`` loop over it draws, and leaving the loop stops it.

    It yields the place of a model and the `Progress` of its batch. The models take turns, a batch each, after a first
    step that does not count: a machine that is busy for a while is then busy for all, and what is there when the loop
    is left is there of all models.

    Args:
        plan: of `plan_comparison`.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> drawing = ComparisonSteps(plan_comparison([load_model("mnist")], ["3"], num_per_class=1))
        >>> for place, progress in drawing:
        ...     if progress.step == 2:
        ...         break
        >>> drawing.result().complete
        False
    """

    def __init__(self, plan: ComparisonPlan) -> None:
        self.plan = plan
        self._results = [Results(range(len(plan.classes))) for _ in plan.models]
        self._seconds: list[list[float]] = [[] for _ in plan.models]

    def __iter__(self) -> Iterator[tuple[int, Progress]]:
        left: deque[tuple[int, Iterator[Progress]]] = deque()
        for place, settings in enumerate(self.plan.settings):
            # For what happens only in a model's first step.
            short = dataclasses.replace(settings, steps=min(settings.steps, 1), scales=1)
            for _ in self._generation(place, short, 1):
                pass
            left.append((place, self._generation(place, settings, len(self.plan.classes))))
        while left:
            place, progresses = left.popleft()
            resumed = time.perf_counter()
            for progress in progresses:
                taken = time.perf_counter() - resumed
                # A step is from x_k to x_k+1, without what the loop does with x_k. The last is only scored.
                if 0 < progress.step < progress.steps:
                    self._seconds[place].append(taken)
                self._results[place].add(progress)
                yield place, progress
                if progress.finished:
                    left.append((place, progresses))
                    break
                resumed = time.perf_counter()

    def result(self) -> Comparison:
        """What is drawn until now."""
        plan = self.plan
        images = [torch.zeros_like(plan.starts(place)) for place in range(len(plan.models))]
        drawn = torch.zeros(len(images), len(plan.classes), dtype=torch.bool)
        seconds: list[float | None] = []
        for place, results in enumerate(self._results):
            for index, image in results.images.items():
                images[place][index] = image
                drawn[place, index] = index not in results.failures
            # The median does not change by a moment in which the machine is busy.
            timed = self._seconds[place] and bool(drawn[place].any())
            share = plan.settings[place].steps / plan.executions[place].batch_size
            seconds.append(statistics.median(self._seconds[place]) * share if timed else None)
        failures = tuple(results.failures for results in self._results)
        return Comparison(plan, tuple(images), drawn, tuple(seconds), failures)

    def _generation(self, place: int, settings: GenerateSettings, count: int) -> Iterator[Progress]:
        plan, model, execution = self.plan, self.plan.models[place], self.plan.executions[place]
        return generate_steps(
            model,
            labels_of(model, plan.classes[:count]),
            start=plan.starts(place)[:count],
            precision=execution.precision,
            batch_size=execution.batch_size,
            **dataclasses.asdict(settings),
        )


# What is asked for


def plan_comparison(
    models: Sequence[Classifier],
    classes: Sequence[str | int] | None = None,
    *,
    names: Sequence[str] | None = None,
    num_per_class: int = 2,
    seed: int = 0,
    preset: str | None = None,
    own_settings: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> ComparisonPlan:
    """All of `compare` but the drawing. Arguments that are not listed here are as there.

    Args:
        names: what to call the models; their own names where None.
        given: settings by name; None values count as not given.

    Raises:
        UserError: no models, classes that they do not share, or settings or seeds that do not fit.
    """
    if not models:
        raise UserError("expected one or more models to compare, got none")
    if num_per_class < 1:
        raise UserError(f"expected 1 or more start images of each class, got {num_per_class}")
    of_images = tuple(name for name in shared_classes(models, classes) for _ in range(num_per_class))
    if not of_images:
        raise UserError("expected one or more classes to draw, got none")
    given = dict(given or {})
    seeds_of = _with_seeds(models, given.get("seeds_from"))
    reference = models[seeds_of]
    common = GENERATE.resolve(reference, preset=preset, given=given)
    if own_settings:
        starts = {"seeds_from": common.seeds_from, "seed_upsampling": common.seed_upsampling}
        own = (GENERATE.resolve(model, preset=preset, given=given) for model in models)
        settings = tuple(dataclasses.replace(each, **starts) for each in own)
    else:
        settings = tuple(_scaled(common, reference, model) for model in models)
    indices = range(len(of_images))
    labels = labels_of(reference, of_images)
    seeds = draw_starts(reference, common, indices, labels, randomness.image_generators(seed, indices))
    executions: list[Execution] = []
    for model, each in zip(models, settings, strict=True):
        check_scales(each.scales, model.image_size or seeds.shape[-1])
        execution = model.frozen(precision=precision, batch_size=batch_size).execution
        # In several turns, however few images there are: one batch each would not be fair to the first.
        size = batch_size or min(execution.batch_size, -(-len(labels) // TURNS))
        executions.append(dataclasses.replace(execution, batch_size=size))
    names = distinct(names or [model.name for model in models])
    return ComparisonPlan(
        tuple(models), names, of_images, seed, seeds, seeds_of, own_settings, settings, tuple(executions)
    )


def shared_classes(models: Sequence[Classifier], asked: Sequence[str | int] | None = None) -> list[str]:
    """Classes that all models have by name, in the first one's spelling.

    Args:
        models: one or more.
        asked: names, or numbers as the first model counts; all shared ones in its order where None.

    Raises:
        UserError: the models share no class, or not one that was asked for.
    """
    first = models[0]
    shared = [name for name in first.classes if all(_position(name, model) is not None for model in models)]
    if not shared:
        having = "; ".join(f"{model.name} has {_some(model.classes)}" for model in models)
        raise UserError(f"expected models that share classes, by name, got none in common: {having}")
    found: list[str] = []
    for name in map(str, shared if asked is None else asked):
        if _position(name, first) is None and name.isdecimal():
            name = first.classes[first.class_index(name)]
        if without := [model.name for model in models if _position(name, model) is None]:
            raise UserError(
                f"expected classes that all models have, got {name!r}, which {', '.join(without)} "
                f"{'lacks' if len(without) == 1 else 'lack'}; in common they have {_some(shared)}"
            )
        found.append(first.classes[int(labels_of(first, [name]))])
    return list(dict.fromkeys(found))


def labels_of(model: Classifier, names: Sequence[str]) -> Tensor:
    """The named classes (N,) as the model numbers them."""
    return torch.tensor([_position(name, model) for name in names])


def _position(name: str, model: Classifier) -> int | None:
    """Of a class by name alone: a number means another class in each model."""
    return name_position(name, model.classes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind those that were there before.

    Example:
        >>> distinct(["a", "b", "a"])
        ('a', 'b', 'a (2)')
    """
    counts = [list(names[: place + 1]).count(name) for place, name in enumerate(names)]
    return tuple(name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True))


def _with_seeds(models: Sequence[Classifier], seeds_from: str | None) -> int:
    """The first robust model with class seeds; else any with seeds; else the first that knows its images' size."""

    def rank(place: int) -> tuple[bool, bool, bool]:
        model = models[place]
        robust = model.card is not None and bool(model.card.threat_model.get("eps"))
        mixed = model.folder is not None and (model.folder / MIXTURES_FILE).exists()
        seeded = has_seeds(model) and (mixed or seeds_from != "mixture")
        return not seeded, not robust, model.image_size is None

    return min(range(len(models)), key=rank)


def _scaled(settings: GenerateSettings, reference: Classifier, model: Classifier) -> GenerateSettings:
    """The same settings for images of another size: a radius grows as its norm says, and a shift with the side."""
    if reference.image_size is None or model.image_size is None:
        return settings
    side = model.image_size / reference.image_size
    scale = norm_named(settings.norm).scale
    values = scale(side**2) * scale(model.channels / reference.channels)
    sizes = {"eps": settings.eps * values, "step_size": settings.step_size * values}
    return dataclasses.replace(settings, shift=round(settings.shift * side), **sizes)


# What is written


def comparison_folder(out: Path | str, plan: ComparisonPlan, *, overwrite: bool = False) -> RunFolder:
    """The folder of a comparison. The same comparison may be drawn there again, because its times are those of a run.

    Raises:
        UserError: the folder holds another comparison or something else; or a card's accuracies have a form of which no
            table can be made.
    """
    for model in plan.models:
        _accuracies(model)
    # All models have the same starts; a record names a folder without its path.
    starts = start_identity(plan.settings[plan.seeds_of])
    seeds_from = {"seeds_from": starts["settings"]["seeds_from"]} if starts else {}
    asked = {
        "task": "compare",
        "models": [model_identity(model, name) for name, model in zip(plan.names, plan.models, strict=True)],
        "classes": list(dict.fromkeys(plan.classes)),
        "num_per_class": len(plan.classes) // len(set(plan.classes)),
        "seed": plan.seed,
        "seeds_of": plan.names[plan.seeds_of],
        "own_settings": plan.own_settings,
        "settings": {n: dataclasses.asdict(s) | seeds_from for n, s in zip(plan.names, plan.settings, strict=True)},
    }
    if starts:
        asked["starts_sha256"] = starts["starts_sha256"]
    written = (FIGURE_FILE, TABLE_FILE)
    return RunFolder(out, asked, overwrite=overwrite, files=lambda record: written, new_files=written)


def write_comparison(folder: RunFolder, result: Comparison) -> str:
    """Write ``figure.png``, ``table.md`` and ``settings.json``; returns the table."""
    plan, table = result.plan, comparison_table(result)
    folder.begin(complete=False)
    asked = {name: folder.asked[name] for name in ("models", "classes")}
    save_png(folder.out / FIGURE_FILE, draw_figure(result), text=folder.png_text(**asked))
    folder.write_text(TABLE_FILE, table)
    folder.save(
        complete=result.complete,
        drawn=dict(zip(plan.names, result.drawn.sum(1).tolist(), strict=True)),
        seconds_an_image=dict(zip(plan.names, result.seconds, strict=True)),
        execution={name: each.as_dict() for name, each in zip(plan.names, plan.executions, strict=True)},
        machine=machine_name(plan.models[0].device),
    )
    return table


def draw_figure(result: Comparison) -> np.ndarray:
    """The start images and what each model made of them, as uint8 (H, W, 3)."""
    plan = result.plan
    rows: list[list[np.ndarray | None]] = [list(to_uint8(plan.seeds))]
    labels: list[tuple[str, ...]] = [("start", _starts(plan))]
    for model, name, images, drawn in zip(plan.models, plan.names, result.images, result.drawn, strict=True):
        rows.append([image if there else None for image, there in zip(to_uint8(images), drawn.tolist(), strict=True)])
        labels.append((name, *_about(model)))
    note = f"{_how(plan)}; seed {plan.seed}."
    return sheet(rows, titles=plan.classes, labels=labels, note=note, classes=plan.models[0].classes, width=PAGE)


def comparison_table(result: Comparison) -> str:
    """The table in Markdown, with aligned columns, and what its figures mean."""
    plan = result.plan
    lines = [["model", "trained", "clean", "PGD", "AutoAttack", "weights", "parameters", "an image"]]
    for name, model, seconds in zip(plan.names, plan.models, result.seconds, strict=True):
        lines.append([
            name,
            _trained(model),
            *(_accuracy(_accuracies(model), attack) for attack in (CLEAN, PGD, AUTO)),
            f"{_bytes(model) / 1e6:.1f} MB",
            f"{sum(p.numel() for p in model.network.parameters()):,}",
            NOT_MEASURED if seconds is None else f"{seconds:.3g} s",
        ])  # fmt: skip
    lines = [[_escaped(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    rows = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    notes = (f"- {_escaped(note)}" for note in _notes(result))
    return "\n".join([*(f"| {row} |" for row in rows), "", *notes, ""])


def _escaped(text: str) -> str:
    """Text without markup, for a cell of Markdown and for a terminal: a card may be anybody's."""
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def _accuracy(rows: Sequence[Measured], attack: str) -> str:
    cells = [
        f"{100 * row.share:.1f} %"
        + (f" at {row.norm} {row.eps:g}" if row.eps else "")
        + ("" if row.images is None else f" ({row.images:,})")
        for row in rows
        if row.attack == attack
    ]
    return ", ".join(cells) or NOT_MEASURED


def _notes(result: Comparison) -> list[str]:
    plan = result.plan
    notes = ["Accuracies are those of the models' cards, with the number of images in brackets; weights without seeds."]
    for attack in (CLEAN, PGD, AUTO):
        measured_by: dict[str, list[str]] = {}
        for name, model in zip(plan.names, plan.models, strict=True):
            for row in _accuracies(model):
                if row.attack == attack:
                    how = row.data if attack == CLEAN else f"{row.how}, on {row.data}"
                    measured_by.setdefault(how, []).append(name)
        for how, names in measured_by.items():
            notes.append(f"{_TITLES[attack]} of {', '.join(dict.fromkeys(names))}: {how}.")
    ways: dict[str, list[str]] = {}
    for name, execution in zip(plan.names, plan.executions, strict=True):
        ways.setdefault(f"{execution.precision}, {execution.batch_size} images a batch", []).append(name)
    each = "; ".join(way if len(ways) == 1 else f"{', '.join(names)} in {way}" for way, names in ways.items())
    steps = sorted({settings.steps for settings in plan.settings})
    count = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    notes.append(
        f"An image: {count} times the median step of this run, in which the models drew batches in turns after a "
        f"first step that does not count ({each}; {machine_name(plan.models[0].device)})."
    )
    notes.append(f"{_how(plan)}; seed {plan.seed}.")
    if not result.complete:
        notes.append("Stopped before its end: the figure has what was drawn until then.")
    for name, failures in zip(plan.names, result.failures, strict=True):
        if failures:
            notes.append(f"{name} met NaN or infinity in {len(failures)} of {len(plan.classes)} images.")
    return notes


def _how(plan: ComparisonPlan) -> str:
    """Start images and settings in a sentence."""
    if len(plan.models) == 1:
        return f"Start images: {_starts(plan)}; {_settings(plan, 0)}"
    starts = f"The same start images for all ({_starts(plan)})"
    if plan.own_settings:
        own = "; ".join(f"{name} {_settings(plan, place)}" for place, name in enumerate(plan.names))
        return f"{starts}, each with its own settings: {own}"
    sizes = {(model.image_size, model.channels) for model in plan.models}
    more = "" if len(sizes) == 1 else f", sizes scaled for images other than {plan.names[plan.seeds_of]}'s"
    return f"{starts} and the same settings ({_settings(plan, plan.seeds_of)}{more})"


def _settings(plan: ComparisonPlan, place: int) -> str:
    settings = plan.settings[place]
    schedule = ", falling" if settings.step_schedule == "linear" else ""
    return f"{settings.norm} eps {settings.eps:g}, {settings.steps} steps of {settings.step_size:g}{schedule}"


def _starts(plan: ComparisonPlan) -> str:
    seeds_from = plan.settings[plan.seeds_of].seeds_from
    if seeds_from == "uniform":
        return "uniform noise"
    if seeds_from in SEED_KINDS:
        return f"class seeds of {plan.names[plan.seeds_of]}"
    return f"images of {Path(seeds_from).resolve().name}"


def _accuracies(model: Classifier) -> list[Measured]:
    return [] if model.card is None else measured(model.card)


def _trained(model: Classifier) -> str:
    threat = {} if model.card is None else model.card.threat_model
    if not threat:
        return "not stated"
    return f"{threat.get('norm', 'l2')} {threat['eps']}" if threat.get("eps") else "standard"


def _about(model: Classifier) -> tuple[str, ...]:
    """What stands below a model's name in the figure: how it was trained, and its accuracies."""
    trained = _trained(model)
    kind = {"standard": "standard training", "not stated": "training not stated"}.get(trained, f"robust, {trained}")
    rows = [row for row in _accuracies(model) if row.attack in (CLEAN, PGD, AUTO)]
    return (kind, *(f"{100 * r.share:.1f} % {r.title}" + (f", eps {r.eps:g}" if r.eps else "") for r in rows))


def _bytes(model: Classifier) -> int:
    """Of the weights' file; of the numbers in memory for a network that has none."""
    if model.folder is not None and (model.folder / WEIGHTS_FILE).exists():
        return (model.folder / WEIGHTS_FILE).stat().st_size
    tensors = (*model.network.parameters(), *model.network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
