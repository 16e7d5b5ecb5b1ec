"""What the commands that take pictures share: their options, reading, progress, stopping, and writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import settings_options
from robustsynth.cli.stopping import stoppable
from robustsynth.cli.trajectories import Trajectories, check_trajectory, trajectory_option
from robustsynth.errors import UserError
from robustsynth.tasks.step_settings import PICTURE_TASKS

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.loop import Step
    from robustsynth.models.classifier import Classifier
    from robustsynth.tasks.picture_job import Made, Picture

OnStep = Callable[[Sequence[int], "Step"], object]


@dataclasses.dataclass
class Plan:
    """How a command does its task.

    Attributes:
        solve: (pictures' tensor (n, C, H, W), labels (n,) or None, the pictures, on_step) to results by file ending.
        extra: whatever else than settings and label decides the results, as plain values.
        labelled: whether the task has labels.
        view: what labels are predicted from, and what the task saw, by title, to be shown in the figure.
        endings: of each picture's result files.
        runs: how many runs of the loop one call of `solve` makes.
    """

    solve: Callable[[Tensor, Tensor | None, Sequence[Picture], OnStep], dict[str, Tensor]]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    labelled: bool = True
    view: Callable[[Tensor, Sequence[Picture]], tuple[Tensor, dict[str, Tensor]]] = lambda images, _: (images, {})
    endings: tuple[str, ...] = ("",)
    runs: int = 1


def picture_options(task: str, *, label: bool = True) -> Callable[[Any], Any]:
    """The arguments and options of a command on pictures, those of its settings included."""

    def decorate(function: Any) -> Any:
        added = [
            click.argument("images", nargs=-1, required=True, type=click.Path()),
            click.option("--model", "model_name", default="imagenette", show_default=True, help="Name or folder."),
            click.option("--out", required=True, type=click.Path(), help="Folder to write to."),
            click.option("--preset", default=None, help="paper, mcgill2019, duke2023, hse2025 or best (the model's)."),
            settings_options(PICTURE_TASKS[task]),
            trajectory_option,
            click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured."),
            click.option("--batch-size", type=click.IntRange(min=1), default=None, help="2; on cuda 16."),
            click.option("--device", default=None, help="cpu or cuda."),
            click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder."),
        ]
        if label:
            added.insert(
                2, click.option("--label", default=None, help="Class of the pictures; predicted if not given.")
            )
        for option in reversed(added):
            function = option(function)
        return function

    return decorate


class PictureCommand:
    """One call of a command on pictures.

    Args:
        task: its name.
        options: of `picture_options`, as click gives them.

    Attributes:
        model: loaded.
        settings: resolved ones.
        pictures: read.
    """

    def __init__(self, task: str, options: dict[str, Any]) -> None:
        from robustsynth.models.store import load_model
        from robustsynth.tasks.picture_job import read_pictures
        from robustsynth.tasks.settings import BEST, knows_task, resolve_settings

        check_trajectory(options["trajectory"])
        kind = PICTURE_TASKS[task]
        names = {f.name for f in dataclasses.fields(kind)}
        given = {name: value for name, value in options.items() if name in names}
        self.task, self.options = task, options
        self.model: Classifier = load_model(options["model_name"], device=options["device"])
        self.settings = resolve_settings(kind, task, self.model, preset=options["preset"], given=given)
        preset = options["preset"]
        self.unknowing = preset if preset not in (None, BEST) and not knows_task(preset, task) else None
        self.pictures = read_pictures(options["images"], channels=self.model.channels)
        self.label: int | None = None
        if options.get("label") is not None:
            self.label = named_class(self.model, options["label"])
        from robustsynth.tasks.running import chosen_precision, default_batch_size

        self.execution: dict[str, Any] = {
            "precision": options["precision"] or chosen_precision(self.model),
            "batch_size": options["batch_size"] or default_batch_size(self.model.device),
        }
        self.stopping: list[int] = []
        self.arguments: dict[str, Any] = {
            **self.execution,
            **dataclasses.asdict(self.settings),
        }

    def run(self, plan: Plan) -> None:
        """Do what is missing, then say what was written; stopped by Ctrl-C, keep what there is and exit with 130."""
        from tqdm import tqdm

        from robustsynth.cli.describe import describe_model
        from robustsynth.tasks.picture_job import PictureJob

        settings = dataclasses.asdict(self.settings)
        told = settings | plan.extra
        if plan.labelled:
            told["label"] = None if self.label is None else self.model.classes[self.label]
        job = PictureJob(
            self.task,
            self.model,
            self.pictures,
            told,
            self.options["out"],
            execution=self.execution,
            endings=plan.endings,
            animation=f".{self.options['trajectory']}" if self.options["trajectory"] else None,
            overwrite=self.options["overwrite"],
        )
        say(describe_model(self.model))
        if self.unknowing is not None:
            say(f"preset {self.unknowing!r} says nothing of {self.task}: these are the model's own settings")
        say(f"settings: {', '.join(f'{k}={v}' for k, v in settings.items())}")
        say(f"running in {self.execution['precision']}, {self.execution['batch_size']} pictures a batch")
        for picture in self.pictures:
            if picture.notes:
                say(f"{picture.path.name}: {', '.join(picture.notes)}")
        if len(job.missing) < len(self.pictures):
            say(f"{len(self.pictures) - len(job.missing)} of {len(self.pictures)} pictures are there already")
        total = len(job.missing) * max(self.settings.steps, 1) * plan.runs
        with (
            stoppable(self.stopping),
            tqdm(total=total, unit="step", disable=not interactive(), desc=self.task) as bar,
        ):
            whole = job.run(
                lambda chunk: self._solve(plan, chunk, bar.update),
                batch_size=self.execution["batch_size"],
            )
        if not whole:
            say(f"stopped; what there is so far is in {job.out}, and the same command goes on")
            raise SystemExit(130)
        from robustsynth.tasks.figures import MOST_ROWS

        shown = "them" if len(self.pictures) <= MOST_ROWS else f"the first {MOST_ROWS}"
        say(f"wrote {len(job.missing)} pictures to {job.out}; figure.png shows {shown}")

    def _solve(self, plan: Plan, chunk: Sequence[Picture], advance: Callable[[int], object]) -> list[Made]:
        import torch

        from robustsynth.images import as_tensor, to_uint8
        from robustsynth.tasks.picture_job import Made
        from robustsynth.tasks.running import predict

        stopping = self.stopping
        if stopping:
            return []
        images = as_tensor([p.image for p in chunk])
        seen, shown = plan.view(images, chunk)
        labels: Tensor | None = None
        if plan.labelled:
            views, precision = self.settings.views, self.execution["precision"]
            labels = (
                predict(self.model, seen, views=views, precision=precision)
                if self.label is None
                else torch.full((len(chunk),), self.label)
            )
        reached: list[int] = []
        trajectories = Trajectories(self.options["trajectory"], [p.name for p in chunk], self.settings.steps)

        def on_step(places: Sequence[int], step: Step) -> bool:
            trajectories.add(places, step)
            if step.index:  # x₀ is where it starts, not a step that was taken
                advance(len(places))
            if stopping and not reached:
                reached.append(step.index)
            return not stopping

        results = plan.solve(images, labels, chunk, on_step)
        trajectories.write(Path(self.options["out"]), results)
        made = []
        for place, picture in enumerate(chunk):
            record: dict[str, Any] = {"seen": self._seen(next(iter(results.values())))}
            caption = picture.name
            if labels is not None:
                name = self.model.classes[int(labels[place])]
                record |= {"label": name, "predicted": self.label is None}
                caption += f": {name}" + (" (predicted)" if self.label is None else "")
            if reached:
                record["stopped_at_step"] = reached[0]
                caption += f", stopped at step {reached[0]}"
            made.append(
                Made(
                    picture,
                    {ending: to_uint8(result[place : place + 1])[0] for ending, result in results.items()},
                    {title: to_uint8(given[place : place + 1])[0] for title, given in shown.items()},
                    caption,
                    record,
                )
            )
        return made

    def _seen(self, result: Tensor) -> str:
        """How the classifier saw a picture, in words."""
        from robustsynth.tasks.views import choose_views

        size = (result.shape[2], result.shape[3])
        side = self.model.image_size or min(size)
        views = choose_views(size, side, self.settings.views)
        if len(views) > 1:
            return f"in {len(views)} squares of {views[0].width} pixels, each as {side}×{side}"
        return f"whole, as {side}×{side}"


def named_class(model: Classifier, name: str) -> int:
    """A class by name or index, also by a name from another vocabulary, which is said."""
    from robustsynth.models.class_names import matching_class
    from robustsynth.names import name_key

    found = matching_class(name, model.classes, model.aliases)
    if found is None:
        return model.class_index(name)
    if name_key(model.classes[found]) != name_key(name):
        say(f"{name!r} is taken as the class {model.classes[found]!r}")
    return found


def split_numbers(text: str, what: str) -> list[int]:
    """Comma-separated whole numbers.

    Raises:
        UserError: something else.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"expected {what} as whole numbers such as 3,17, got {text!r}") from None
