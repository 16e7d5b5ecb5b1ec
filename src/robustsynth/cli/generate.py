"""``robustsynth generate``"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import parse_classes, settings_options
from robustsynth.cli.stopping import STOPPED, stoppable
from robustsynth.cli.trajectories import Trajectories, check_trajectory, trajectory_option
from robustsynth.errors import UserError
from robustsynth.tasks.settings import GenerateSettings

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.loop import Step
    from robustsynth.models.classifier import Classifier


@click.command("generate")
@click.option("--model", "model_name", default="cifar10", show_default=True, help="A bundled name or a model folder.")
@click.option("--classes", default="all", show_default=True, help="Names, indices, ranges such as 2-5, or all.")
@click.option(
    "--num",
    "--num-images",
    "num",
    type=int,
    default=None,
    help="Images in all, spread evenly over the classes; 8 a class.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pictures.")
@click.option("--out", required=True, type=click.Path(), help="Folder to write to.")
@click.option("--preset", default=None, help="paper, mcgill2019, duke2023, hse2025 or best (the model's own).")
@click.option("--format", "file_format", type=click.Choice(["png", "npz"]), default="png", show_default=True)
@click.option(
    "--mix", "mixes", multiple=True, help="A mix in place of --classes, such as ship:0.6,horse:0.4; one or several."
)
@click.option("--ensemble", default=None, help="Further models of the same classes, to agree with; comma-separated.")
@click.option(
    "--fit-mixtures",
    metavar="DATA",
    default=None,
    help="First fit Gaussian mixtures to these training images, keep them beside the model, and start from them.",
)
@settings_options(GenerateSettings)
@trajectory_option
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=None, help="Measured if not given.")
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder.")
def command(
    model_name: str,
    classes: str,
    num: int | None,
    seed: int,
    out: str,
    preset: str | None,
    file_format: str,
    mixes: tuple[str, ...],
    ensemble: str | None,
    fit_mixtures: str | None,
    trajectory: str | None,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Draw images of classes with a robust classifier.

    Writes 000000.png …, grid.png and settings.json (or samples.npz) into the folder. Stopped by Ctrl-C, it keeps what
    is done, and what was under way as it had come to look; run again, it goes on. Several processes draw the same
    pictures together: torchrun --nproc-per-node 4 -m robustsynth generate …
    """
    from tqdm import tqdm

    from robustsynth.cli.describe import describe_model
    from robustsynth.cli.voices import one_voice
    from robustsynth.models.store import load_model
    from robustsynth.processes import Workers
    from robustsynth.tasks.generate import resolve_generate
    from robustsynth.tasks.job import GenerateJob

    workers = Workers.from_environment()
    tell: Callable[[str], object] = say if workers.first else lambda text: None
    device = workers.device(device)
    with workers.joined(device), one_voice(workers):
        check_trajectory(trajectory)
        model = load_model(model_name, device=device)
        if fit_mixtures is not None:
            if workers.first:
                _fit_mixtures(model, fit_mixtures)
            workers.wait()
            model = load_model(model_name, device=device)
            given["seeds_from"] = given["seeds_from"] or "mixture"
        settings = resolve_generate(model, preset=preset, given=given)
        job = GenerateJob(
            model,
            _targets(model, classes, mixes, num),
            settings,
            out,
            seed=seed,
            file_format=file_format,
            precision=precision,
            batch_size=batch_size,
            overwrite=overwrite,
            ensemble=[load_model(name.strip(), device=device) for name in ensemble.split(",")] if ensemble else [],
            workers=workers,
        )
        tell(describe_model(model))
        tell(f"settings: {', '.join(f'{k}={v}' for k, v in job.record['settings'].items())}")
        tell(f"running in {job.execution.precision}, {job.execution.batch_size} images a batch, seed {seed}")
        count = len(job.labels)
        if job.done:
            tell(f"{job.done} of {count} images are there already")
        total = job.to_draw * max(settings.steps, 1)
        films = Trajectories(trajectory, [f"{index:06d}" for index in range(count)], settings.steps)
        stopping: list[int] = []
        shown = interactive() and workers.first
        with (
            stoppable(stopping),
            tqdm(total=total, unit="step", unit_scale=True, disable=not shown, desc="drawing") as bar,
        ):

            def advance(indices: Sequence[int], step: Step) -> bool:
                films.add(indices, step)
                if step.index:  # x₀ is where it starts, not a step that was taken
                    bar.update(len(indices))
                return not stopping

            whole = job.run(on_step=advance, on_batch=lambda batch: films.write_finished(job.out, batch.indices))
        if not whole:
            tell(f"stopped; {job.done} of {count} images are in {job.out}, and the same command goes on")
            raise SystemExit(STOPPED)
        tell(f"wrote {count} images to {job.out}")


def _targets(model: Classifier, classes: str, mixes: Sequence[str], num: int | None) -> Tensor:
    """A class or a mix for each image."""
    import torch

    from robustsynth.tasks.job import spread_labels
    from robustsynth.tasks.targets import parse_mix

    if not mixes:
        wanted = parse_classes(classes, model.classes, model.class_index)
        return spread_labels(wanted, 8 * len(wanted) if num is None else num)
    if classes != "all":
        raise UserError(f"expected --classes or --mix, got both, {classes!r} and {mixes[0]!r}; leave one out")
    weights = torch.stack([parse_mix(mix, model) for mix in mixes])
    return weights[spread_labels(range(len(mixes)), 8 * len(mixes) if num is None else num)]


def _fit_mixtures(model: Classifier, data: str) -> None:
    """Fit mixtures of the model's classes to training images, and keep them beside the model."""
    from robustsynth.data import load_data
    from robustsynth.mixtures import add_mixtures

    if model.folder is None or model.image_size is None:
        raise UserError(f"expected a model folder to fit mixtures for, got {model.name!r}")
    images = load_data(data, "train", image_size=model.image_size, channels=model.channels, announce=say)
    if images.classes != model.classes:
        raise UserError(
            f"expected images of the model's classes, {', '.join(model.classes)}, to fit mixtures to, "
            f"got {', '.join(images.classes)} in {data}"
        )
    say(f"fitting mixtures to {len(images)} images of {images.name}")
    say(f"wrote {add_mixtures(model.folder, images.images, images.labels)}")
