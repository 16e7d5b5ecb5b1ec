"""``robustsynth features``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import Numbers, parse_classes, settings_options
from robustsynth.cli.trajectories import Trajectories, check_trajectory, trajectory_option
from robustsynth.errors import UserError
from robustsynth.tasks.feature_settings import FeatureSettings

if TYPE_CHECKING:
    from robustsynth.data import ImageData
    from robustsynth.loop import Step
    from robustsynth.models.classifier import Classifier


@click.command("features")
@click.option("--model", "model_name", default="imagenette", show_default=True, help="Name or folder.")
@click.option("--units", type=Numbers(int), default=None, help="Units such as 3,17,200; chosen by weight if not given.")
@click.option("--classes", default=None, help="Choose units for these classes: names, indices, ranges or all.")
@click.option("--num", type=click.IntRange(min=1), default=12, show_default=True, help="Units to choose.")
@click.option("--data", default=None, help="Show top images of it: a folder of class folders or parquet files, a name.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise drawn from.")
@click.option("--out", required=True, type=click.Path(), help="Folder to write to.")
@settings_options(FeatureSettings)
@trajectory_option
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=None, help="Measured if not given.")
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder.")
def command(
    model_name: str,
    units: tuple[int, ...] | None,
    classes: str | None,
    num: int,
    data: str | None,
    split: str,
    seed: int,
    out: str,
    trajectory: str | None,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Show what a model's units respond to, to choose some for painting.

    A row a unit: pictures drawn from noise to raise it, the images of --data that raise it most, and the classes that
    it speaks for. Writes atlas.png, features.json and settings.json into the folder, and with --trajectory how each
    picture comes about.
    """
    from tqdm import tqdm

    from robustsynth.cli.describe import describe_model
    from robustsynth.models.store import load_model
    from robustsynth.tasks.features import resolve_features
    from robustsynth.tasks.features_job import FeaturesJob

    check_trajectory(trajectory)
    model = load_model(model_name, device=device)
    wanted = _wanted_units(model, units, classes, num)
    settings = resolve_features(model, given=given)
    images = None if data is None else _images(model, data, split)
    job = FeaturesJob(
        model,
        wanted,
        settings,
        out,
        data=images,
        split=split,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    say(describe_model(model))
    say(f"settings: {', '.join(f'{k}={v}' for k, v in job.record['settings'].items())}")
    say(f"running in {job.execution.precision}, {job.execution.batch_size} images a batch, seed {seed}")
    total = len(images) if images is not None and settings.top else 0
    names = [f"unit-{unit}-{number}" for unit in job.units for number in range(settings.drawn)]
    films = Trajectories(trajectory, names, settings.steps)
    steps, hidden = len(job.units) * settings.drawn * settings.steps, not interactive()
    with (
        tqdm(total=total, unit="image", desc="looking", disable=hidden or not total) as looking,
        tqdm(total=steps, unit="step", desc="drawing", disable=hidden) as drawing,
    ):

        def advance(indices: Sequence[int], step: Step) -> None:
            films.add(indices, step)
            if step.index == settings.steps:
                films.write_finished(job.out, indices)
            if step.index:  # x₀ is where it starts, not a step that was taken
                drawing.update(len(indices))

        rows = job.run(on_step=advance, on_images=looking.update)
    if len(rows) < len(job.units):
        said = f"what was done, {len(rows)} of {len(job.units)} units, is in {job.out}" if rows else "nothing is done"
        say(f"stopped; {said}")
        raise SystemExit(130)
    for row in rows:
        speaks = ", ".join(f"{name} {weight:+.2f}" for name, weight in row.feeds) or "no class known"
        click.echo(f"unit {row.unit:4}  reaches {max(row.activations):5.1f}  {speaks}")
    say(f"wrote atlas.png and features.json to {job.out}")


def _wanted_units(model: Classifier, units: tuple[int, ...] | None, classes: str | None, num: int) -> list[int]:
    from robustsynth.tasks.units import check_units, choose_units

    if units is not None and classes is not None:
        raise UserError("expected --units or --classes, got both; units are chosen for classes where none are given")
    if units is not None:
        return check_units(model, units)
    return choose_units(model, parse_classes(classes or "all", model.classes, model.class_index), num=num)


def _images(model: Classifier, data: str, split: str) -> ImageData:
    from robustsynth.data import load_data

    return load_data(data, split, image_size=model.image_size, channels=model.channels, announce=say)
