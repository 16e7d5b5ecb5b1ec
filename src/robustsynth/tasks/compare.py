"""Several classifiers draw from the same start images, to be compared in one figure and one table (as in Santurkar et
al. 2019, Figure 2: what a robust classifier draws, and what a standard one does)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
# Batches that each model draws at least, unless a batch size is given: one batch each would not be a fair timing.
TURNS = 3
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey image (ITU-R BT.601)
SHOWN = (CLEAN, PGD, AUTO)  # accuracies in the figure and the table
NOT_MEASURED = "not measured"


@dataclass(frozen=True, eq=False)
class ComparisonPlan:
    """What each model is to draw, checked. Made by `plan_comparison`.

    Attributes:
        names: of the models, all different.
        classes: the class of each of the N start images, in the first model's spelling.
        seeds: (N, C, H, W) start images in [0, 1], at the size of the model that they are from.
        seeds_of: index of that model; common settings are its too.
        own_settings: whether each model has the settings of its own card.
        settings, executions: of each model.
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

    @property
    def steps(self) -> int:
        """Of all images together."""
        return len(self.classes) * sum(settings.steps for settings in self.settings)

    def start_images(self, place: int) -> Tensor:
        """The start images (N, C, H, W) in the size and with the channels of model `place`."""
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
        drawn: (models, N), whether each image is there; all are, unless it was stopped or an image met a NaN.
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
    """Ctrl-C in the middle of `compare`; ``comparison`` is what was drawn until then."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, drawn = comparison, comparison.drawn
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
    for all, so that only the models differ; ℓ2 sizes and shifts scale with the images.

    Args:
        models: one or more, which share the classes asked for.
        classes: names, or numbers as the first model counts them; all that the models share where None.
        num_per_class: start images of each class, drawn by `seed`.
        preset: as for `generate`, like `precision` and `batch_size`.
        own_settings: each model by the tuned settings of its own card in place of common ones.
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
    own, how = {"preset": preset, "own_settings": own_settings}, {"precision": precision, "batch_size": batch_size}
    plan = plan_comparison(models, classes, num_per_class=num_per_class, seed=seed, given=settings, **own, **how)
    drawing = ComparisonSteps(plan)
    try:
        deque(drawing, maxlen=0)
    except KeyboardInterrupt:
        raise ComparisonInterrupted(drawing.result()) from None
    return drawing.result()


class ComparisonSteps:
    """A comparison step by step: a ``for`` loop over it draws, and leaving the loop stops it.

    It yields the index of a model and the `Progress` of its batch. The models draw one batch each in turn, after a
    first step that is not timed. A machine that is busy for a while then slows all of them, and a comparison that is
    stopped has about as many images of each.
    """

    def __init__(self, plan: ComparisonPlan) -> None:
        self.plan = plan
        self._results = [Results(range(len(plan.classes))) for _ in plan.models]
        self._seconds: list[list[float]] = [[] for _ in plan.models]

    def __iter__(self) -> Iterator[tuple[int, Progress]]:
        left: deque[tuple[int, Iterator[Progress]]] = deque()
        for place, settings in enumerate(self.plan.settings):
            # A model's first step takes longer: it is neither timed nor kept.
            short = dataclasses.replace(settings, steps=min(settings.steps, 1), scales=1)
            deque(self._generation(place, short, 1), maxlen=0)
            left.append((place, self._generation(place, settings, len(self.plan.classes))))
        while left:
            place, progresses = left.popleft()
            resumed = time.perf_counter()
            for progress in progresses:
                # A step is from x_k to x_k+1, without what the loop does with x_k. The last is only scored.
                if 0 < progress.step < progress.steps:
                    self._seconds[place].append(time.perf_counter() - resumed)
                self._results[place].add(progress)
                yield place, progress
                if progress.finished:
                    left.append((place, progresses))
                    break
                resumed = time.perf_counter()

    def _generation(self, place: int, settings: GenerateSettings, count: int) -> Iterator[Progress]:
        plan, model, execution = self.plan, self.plan.models[place], self.plan.executions[place]
        labels, start = labels_of(model, plan.classes[:count]), plan.start_images(place)[:count]
        how = {"precision": execution.precision, "batch_size": execution.batch_size}
        return generate_steps(model, labels, start=start, **how, **dataclasses.asdict(settings))

    def result(self) -> Comparison:
        """What is drawn until now."""
        plan, seconds = self.plan, list[float | None]()
        images = [torch.zeros_like(plan.start_images(place)) for place in range(len(plan.models))]
        drawn = torch.zeros(len(images), len(plan.classes), dtype=torch.bool)
        for place, (results, timed) in enumerate(zip(self._results, self._seconds, strict=True)):
            for index, image in results.images.items():
                images[place][index] = image
                drawn[place, index] = index not in results.failures
            share = plan.settings[place].steps / plan.executions[place].batch_size
            seconds.append(statistics.median(timed) * share if timed and bool(drawn[place].any()) else None)
        failures = tuple(results.failures for results in self._results)
        return Comparison(plan, tuple(images), drawn, tuple(seconds), failures)


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
    """Check what `compare` is asked for, whose arguments and errors these are, and draw the start images.

    `names` are what to call the models, their own where None; `given` are settings, of which None is not given.
    """
    if not models:
        raise UserError("expected one or more models to compare, got none")
    if num_per_class < 1:
        raise UserError(f"expected 1 or more start images of each class, got {num_per_class}")
    of_images = tuple(name for name in shared_classes(models, classes) for _ in range(num_per_class))
    if not of_images:
        raise UserError("expected one or more classes to draw, got none")
    given = dict(given or {})

    def rank(place: int) -> tuple[bool, bool, bool]:
        model = models[place]
        robust = model.card is not None and bool(model.card.threat_model.get("eps"))
        mixed = model.folder is not None and (model.folder / MIXTURES_FILE).exists()
        seeded = has_seeds(model) and (mixed or given.get("seeds_from") != "mixture")
        return not seeded, not robust, model.image_size is None

    # The first robust model with class seeds; else any with seeds; else the first that knows its images' size.
    seeds_of = min(range(len(models)), key=rank)
    reference = models[seeds_of]
    common = GENERATE.resolve(reference, preset=preset, given=given)
    if own_settings:
        starts = {"seeds_from": common.seeds_from, "seed_upsampling": common.seed_upsampling}
        own = (GENERATE.resolve(model, preset=preset, given=given) for model in models)
        settings = tuple(dataclasses.replace(each, **starts) for each in own)
    else:
        settings = tuple(_scaled(common, reference, model) for model in models)
    labels, indices = labels_of(reference, of_images), range(len(of_images))
    seeds = draw_starts(reference, common, indices, labels, randomness.image_generators(seed, indices))
    executions: list[Execution] = []
    for model, each in zip(models, settings, strict=True):
        check_scales(each.scales, model.image_size or seeds.shape[-1])
        execution = model.frozen(precision=precision, batch_size=batch_size).execution
        size = batch_size or min(execution.batch_size, -(-len(labels) // TURNS))
        executions.append(dataclasses.replace(execution, batch_size=size))
    names, how = distinct(names or [model.name for model in models]), tuple(executions)
    return ComparisonPlan(tuple(models), names, of_images, seed, seeds, seeds_of, own_settings, settings, how)


def shared_classes(models: Sequence[Classifier], asked: Sequence[str | int] | None = None) -> list[str]:
    """The classes asked for, as for `compare`, in the first model's spelling, each once; all models must have them."""
    first = models[0]

    def lacking(name: str) -> list[str]:
        # By name alone: a number means another class in each model.
        return [model.name for model in models if name_position(name, model.classes) is None]

    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")

    shared = [name for name in first.classes if not lacking(name)]
    if not shared:
        having = "; ".join(f"{model.name} has {some(model.classes)}" for model in models)
        raise UserError(f"expected models that share classes, by name, got none in common: {having}")
    found: list[str] = []
    for name in map(str, shared if asked is None else asked):
        place = name_position(name, first.classes)
        if place is None and name.isdecimal():
            place = first.class_index(name)
        name = name if place is None else first.classes[place]
        if without := lacking(name):
            raise UserError(
                f"expected classes that all models have, got {name!r}, which {', '.join(without)} "
                f"{'lacks' if len(without) == 1 else 'lack'}; in common they have {some(shared)}"
            )
        found.append(name)
    return list(dict.fromkeys(found))


def labels_of(model: Classifier, names: Sequence[str]) -> Tensor:
    """The named classes (N,) as the model numbers them."""
    return torch.tensor([name_position(name, model.classes) for name in names])


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind each that repeats an earlier one, such as ``a (2)``."""
    counts = [list(names[: place + 1]).count(name) for place, name in enumerate(names)]
    return tuple(name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True))


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
    One that holds something else is refused, and cards whose accuracies cannot be read."""
    for model in plan.models:
        _accuracies(model)
    # All models have the same starts; settings.json names a folder without its path.
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
    labels: list[tuple[str, ...]] = [("start", _start_text(plan))]
    kinds = {"standard": "standard training", "not stated": "training not stated"}
    for model, name, images, drawn in zip(plan.models, plan.names, result.images, result.drawn, strict=True):
        rows.append([image if there else None for image, there in zip(to_uint8(images), drawn.tolist(), strict=True)])
        known = [row for row in _accuracies(model) if row.attack in SHOWN]
        shares = (f"{100 * r.share:.1f} % {r.title}" + (f", eps {r.eps:g}" if r.eps else "") for r in known)
        labels.append((name, kinds.get(_trained(model), f"robust, {_trained(model)}"), *shares))
    note = f"{_how(plan)}; seed {plan.seed}."
    return sheet(rows, titles=plan.classes, labels=labels, note=note, classes=plan.models[0].classes, width=PAGE)


def comparison_table(result: Comparison) -> str:
    """The table in Markdown, with aligned columns, and what its figures mean."""
    plan = result.plan
    lines = [["model", "trained", "clean", "PGD", "AutoAttack", "weights", "parameters", "an image"]]
    for name, model, seconds in zip(plan.names, plan.models, result.seconds, strict=True):
        accuracies = (_accuracy(_accuracies(model), attack) for attack in SHOWN)
        parameters = f"{sum(p.numel() for p in model.network.parameters()):,}"
        taken = NOT_MEASURED if seconds is None else f"{seconds:.3g} s"
        lines.append([name, _trained(model), *accuracies, f"{_bytes(model) / 1e6:.1f} MB", parameters, taken])
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
    found = [row for row in rows if row.attack == attack]
    counted = ("" if row.images is None else f" ({row.images:,})" for row in found)
    cells = (f"{100 * row.share:.1f} %{row.radius}{count}" for row, count in zip(found, counted, strict=True))
    return ", ".join(cells) or NOT_MEASURED


def _notes(result: Comparison) -> list[str]:
    """What the table's figures mean, a sentence or two each."""
    plan = result.plan
    notes = ["Accuracies are those of the models' cards, with the number of images in brackets; weights without seeds."]
    rows = [(name, row) for name, model in zip(plan.names, plan.models, strict=True) for row in _accuracies(model)]
    for attack in SHOWN:
        title, how = ("Clean accuracy", "{0.data}") if attack == CLEAN else (TITLES[attack], "{0.how}, on {0.data}")
        ways = _by_value((name, how.format(row)) for name, row in rows if row.attack == attack)
        notes += [f"{title} of {', '.join(names)}: {how}." for how, names in ways.items()]
    executions = (f"{each.precision}, {each.batch_size} images a batch" for each in plan.executions)
    ways = _by_value(zip(plan.names, executions, strict=True))
    each = "; ".join(way if len(ways) == 1 else f"{', '.join(names)} in {way}" for way, names in ways.items())
    steps = [settings.steps for settings in plan.settings]
    count = " to ".join(map(str, dict.fromkeys((min(steps), max(steps)))))
    notes += [
        f"An image: {count} times the median step of this run, in which the models drew batches in turns after a "
        f"first step that does not count ({each}; {machine_name(plan.models[0].device)}).",
        f"{_how(plan)}; seed {plan.seed}.",
    ]
    if not result.complete:
        notes.append("Stopped before its end: the figure has what was drawn until then.")
    failed = {name: len(failures) for name, failures in zip(plan.names, result.failures, strict=True) if failures}
    return notes + [f"{name} met NaN or infinity in {n} of {len(plan.classes)} images." for name, n in failed.items()]


def _by_value(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, None]]:
    """The names of each value, each once."""
    found: dict[str, dict[str, None]] = {}
    for name, value in pairs:
        found.setdefault(value, {})[name] = None
    return found


def _how(plan: ComparisonPlan) -> str:
    """Start images and settings in a sentence."""

    def settings_of(place: int) -> str:
        settings = plan.settings[place]
        schedule = ", falling" if settings.step_schedule == "linear" else ""
        return f"{settings.norm} eps {settings.eps:g}, {settings.steps} steps of {settings.step_size:g}{schedule}"

    if len(plan.models) == 1:
        return f"Start images: {_start_text(plan)}; {settings_of(0)}"
    starts = f"The same start images for all ({_start_text(plan)})"
    if plan.own_settings:
        own = "; ".join(f"{name} {settings_of(place)}" for place, name in enumerate(plan.names))
        return f"{starts}, each with its own settings: {own}"
    sizes = {(model.image_size, model.channels) for model in plan.models}
    more = "" if len(sizes) == 1 else f", sizes scaled for images other than {plan.names[plan.seeds_of]}'s"
    return f"{starts} and the same settings ({settings_of(plan.seeds_of)}{more})"


def _start_text(plan: ComparisonPlan) -> str:
    seeds_from = plan.settings[plan.seeds_of].seeds_from
    if seeds_from in SEED_KINDS:
        return "uniform noise" if seeds_from == "uniform" else f"class seeds of {plan.names[plan.seeds_of]}"
    return f"images of {Path(seeds_from).resolve().name}"


def _accuracies(model: Classifier) -> list[Measured]:
    return [] if model.card is None else measured(model.card)


def _trained(model: Classifier) -> str:
    threat = {} if model.card is None else model.card.threat_model
    known = f"{threat.get('norm', 'l2')} {threat['eps']}" if threat.get("eps") else "standard"
    return known if threat else "not stated"


def _bytes(model: Classifier) -> int:
    """Of the weights' file; of the numbers in memory for a network that has none."""
    if model.folder is not None and (model.folder / WEIGHTS_FILE).exists():
        return (model.folder / WEIGHTS_FILE).stat().st_size
    tensors = (*model.network.parameters(), *model.network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
