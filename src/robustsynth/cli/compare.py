"""``robustsynth compare``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import parse_classes, settings_options
from robustsynth.cli.stopping import STOPPED, stoppable
from robustsynth.errors import UserError
from robustsynth.tasks.settings import GenerateSettings

if TYPE_CHECKING:
    from robustsynth.loop import Step
    from robustsynth.models.classifier import Classifier


@click.command("compare")
@click.argument("models", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(), help="Folder to write to.")
@click.option(
    "--classes",
    default="all",
    show_default=True,
    help="Names, or numbers and ranges as the first model counts; all that the models share.",
)
@click.option("--num-per-class", type=int, default=2, show_default=True, help="Start images of each class.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same start images.")
@click.option("--preset", default=None, help="paper, mcgill2019, duke2023, hse2025 or best (the model's own).")
@click.option(
    "--own-settings", is_flag=True, help="Each model by its own card's settings, in place of the same for all."
)
@settings_options(GenerateSettings)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=None, help="Measured, for three turns or more, if not given."
)
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace what another comparison wrote to the folder.")
def command(
    models: tuple[str, ...],
    out: str,
    classes: str,
    num_per_class: int,
    seed: int,
    preset: str | None,
    own_settings: bool,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Draw the same class seeds with several MODELS, as one figure beside a table of accuracy, size and time.

    The seeds are those of the first robust model that has some, and its settings hold for all: what differs is the
    model. Models of other sizes get the seeds resized, and l2 sizes in proportion. Writes figure.png, table.md and
    settings.json; stopped by Ctrl-C, with what was drawn until then.

    robustsynth compare cifar10 cifar10-standard --out contrast
    """
    from tqdm import tqdm

    from robustsynth.cli.describe import describe_model
    from robustsynth.models.store import load_model
    from robustsynth.tasks.compare import draw_in_turns
    from robustsynth.tasks.compare_plan import plan_comparison
    from robustsynth.tasks.compare_report import check_folder, write_comparison

    loaded = [load_model(name, device=device) for name in models]
    plan = plan_comparison(
        loaded,
        _classes(classes, loaded),
        names=_names(models),
        num_per_class=num_per_class,
        seed=seed,
        preset=preset,
        own_settings=own_settings,
        precision=precision,
        batch_size=batch_size,
        given=given,
    )
    folder = Path(out)
    check_folder(folder, plan, overwrite=overwrite)
    for model in loaded:
        say(describe_model(model))
    say(f"start images {'' if own_settings else 'and settings '}of {plan.names[plan.seeds_of]}, seed {seed}")
    count = len(plan.classes)
    total = sum(count * max(each.steps, 1) for each in plan.settings)
    stopping: list[int] = []
    with (
        stoppable(stopping),
        tqdm(total=total, unit="step", unit_scale=True, disable=not interactive(), desc="drawing") as bar,
    ):

        def advance(place: int, indices: Sequence[int], step: Step) -> bool:
            if step.index:
                bar.update(len(indices))
            return not stopping

        result = draw_in_turns(plan, on_step=advance)
    if not bool(result.drawn.any()) and not result.complete:
        say("stopped before the first pictures were done; nothing was written")
        raise SystemExit(STOPPED)
    click.echo(write_comparison(folder, result))
    if not result.complete:
        say(f"stopped; {int(result.drawn.sum())} of {result.drawn.numel()} images are in {folder / 'figure.png'}")
        raise SystemExit(STOPPED)
    if any(result.failures):
        told = ", ".join(f"{len(f)} of {name}" for name, f in zip(plan.names, result.failures, strict=True) if f)
        raise UserError(
            f"expected finite numbers, got NaN or infinity for {told}; the other images are in {folder}. "
            "Try --precision float32 or a smaller --step-size"
        )
    say(f"wrote figure.png, table.md and settings.json to {folder}")


def _classes(text: str, models: Sequence[Classifier]) -> list[str] | None:
    """The classes asked for, by names that all models have; None for all of them."""
    from robustsynth.tasks.compare_plan import shared_class

    if text.strip().lower() == "all":
        return None
    first = models[0]

    def index(name: str) -> int:
        return first.classes.index(shared_class(name, models))

    return [first.classes[place] for place in parse_classes(text, first.classes, index)]


def _names(models: Sequence[str]) -> list[str]:
    """What to call the models: as they were asked for, a path by its last part where that tells them apart."""
    short = [
        name.removeprefix("hf://") if name.startswith("hf://") else _folder_name(name) if "/" in name else name
        for name in models
    ]
    pairs = zip(short, models, strict=True)
    return [long if short.count(name) > 1 and models.count(long) == 1 else name for name, long in pairs]


def _folder_name(path: str) -> str:
    from robustsynth.models.store import WEIGHTS_FILE

    resolved = Path(path).expanduser().resolve()
    return (resolved.parent if resolved.name == WEIGHTS_FILE else resolved).name
