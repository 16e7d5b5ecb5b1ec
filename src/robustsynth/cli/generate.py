"""``robustsynth generate``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import parse_classes, settings_options
from robustsynth.tasks.settings import GenerateSettings

if TYPE_CHECKING:
    from robustsynth.loop import Step


@click.command("generate")
@click.option("--model", "model_name", default="cifar10", show_default=True, help="A bundled name or a model folder.")
@click.option("--classes", default="all", show_default=True, help="Names, indices, ranges such as 2-5, or all.")
@click.option("--num", type=int, default=None, help="Images in all, spread evenly over the classes; 8 a class.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pictures.")
@click.option("--out", required=True, type=click.Path(), help="Folder to write to.")
@click.option("--preset", default=None, help="paper, mcgill2019, duke2023, hse2025 or best (the model's own).")
@click.option("--format", "file_format", type=click.Choice(["png", "npz"]), default="png", show_default=True)
@settings_options(GenerateSettings)
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
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Draw images of classes with a robust classifier.

    Writes 000000.png …, grid.png and settings.json (or samples.npz) into the folder. Run again after an
    interruption, it goes on where it stopped.
    """
    from tqdm import tqdm

    from robustsynth.cli.describe import describe_model
    from robustsynth.models.files import load_model
    from robustsynth.tasks.generate import resolve_generate
    from robustsynth.tasks.job import GenerateJob, spread_labels

    model = load_model(model_name, device=device)
    settings = resolve_generate(model, preset=preset, given=given)
    wanted = parse_classes(classes, model.classes, model.class_index)
    labels = spread_labels(wanted, num if num is not None else 8 * len(wanted))
    job = GenerateJob(
        model,
        labels,
        settings,
        out,
        seed=seed,
        file_format=file_format,
        precision=precision,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    say(describe_model(model))
    say(f"settings: {', '.join(f'{k}={v}' for k, v in job.record['settings'].items())}")
    say(f"running in {job.execution.precision}, {job.execution.batch_size} images a batch, seed {seed}")
    if job.done:
        say(f"{job.done} of {len(labels)} images are there already")
    total = (len(labels) - job.done) * max(settings.steps, 1)
    with tqdm(total=total, unit="step", unit_scale=True, disable=not interactive(), desc="drawing") as bar:

        def advance(indices: Sequence[int], step: Step) -> None:
            if step.index:  # x₀ is where it starts, not a step that was taken
                bar.update(len(indices))

        job.run(on_step=advance)
    say(f"wrote {len(labels)} images to {job.out}")
