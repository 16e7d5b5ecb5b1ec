"""``robustsynth compare``: several models draw from the same start images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from robustsynth.cli.options import machine_options, out_option, parse_classes, settings_options
from robustsynth.cli.progress import describe_model, not_finite, say, sole_writer, stop, stoppable, with_bar
from robustsynth.tasks.generate import GenerateSettings


@click.command("compare")
@click.argument("models", nargs=-1, required=True)
@out_option
@click.option(
    "--classes",
    default="all",
    show_default=True,
    help="Names, or numbers and ranges as the first model counts; all that the models share.",
)
@click.option("--num-per-class", type=int, default=2, show_default=True, help="Start images of each class.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same start images.")
@click.option(
    "--own-settings", is_flag=True, help="Each model by its own card's settings, in place of the same for all."
)
@settings_options(GenerateSettings, "generate")
@machine_options(batch_size="Measured, for three turns or more, if not given.")
@click.option("--overwrite", is_flag=True, help="Replace what another comparison wrote to the folder.")
def command(models: tuple[str, ...], out: str, classes: str, device: str | None, overwrite: bool, **asked: Any) -> None:
    """Draw the same class seeds with several MODELS, as one figure beside a table of accuracy, size and time.

    The seeds are those of the first robust model that has some, and its settings hold for all: what differs is the
    model. Models of other sizes get the seeds resized, and l2 sizes in proportion. Writes figure.png, table.md and
    settings.json; stopped by Ctrl-C, with what was drawn until then.

    robustsynth compare cifar10 cifar10-standard --out contrast
    """
    from robustsynth.models.store import load_model
    from robustsynth.run_folder import FIGURE_FILE
    from robustsynth.tasks import compare

    loaded = [load_model(name, device=device) for name in models]
    given = {each.name: asked.pop(each.name) for each in dataclasses.fields(GenerateSettings)}
    wanted, known = None, loaded[0].classes
    if classes.strip().lower() != "all":
        places = parse_classes(classes, known, lambda name: known.index(compare.shared_classes(loaded, [name])[0]))
        wanted = [known[place] for place in places]
    plan = compare.plan_comparison(loaded, wanted, names=_names(models), given=given, **asked)
    # The folder is looked at by its only writer: another command may have written there a moment ago.
    with sole_writer(out):
        folder = compare.comparison_folder(out, plan, overwrite=overwrite)
        for model in loaded:
            say(describe_model(model))
        common = "" if plan.own_settings else "and settings "
        say(f"start images {common}of {plan.names[plan.seeds_of]}, seed {plan.seed}")
        drawing = compare.ComparisonSteps(plan)
        with stoppable() as asked_to_stop:
            progresses = (progress for _, progress in drawing)
            for _ in with_bar(progresses, total=plan.steps, name="drawing", asked=asked_to_stop):
                pass
        result = drawing.result()
        count = int(result.drawn.sum())
        if not count and not result.complete:
            stop("stopped before the first images were done; nothing was written")
        click.echo(compare.write_comparison(folder, result))
    if not result.complete:
        stop(f"stopped; {count} of {result.drawn.numel()} images are in {folder.out / FIGURE_FILE}")
    if any(result.failures):
        failed = [f"{len(f)} of {name}" for name, f in zip(plan.names, result.failures, strict=True) if f]
        raise not_finite(failed, f"the other images are in {folder.out}")
    say(f"wrote {FIGURE_FILE}, {compare.TABLE_FILE} and settings.json to {folder.out}")


def _names(models: Sequence[str]) -> list[str]:
    """What to call the models: as they were asked for, a path by its last part where that tells them apart."""
    from robustsynth.models.store import WEIGHTS_FILE

    short: list[str] = []
    for name in models:
        path = Path(name).expanduser().resolve()
        folder = path.parent if path.name == WEIGHTS_FILE else path
        short.append(folder.name if "/" in name and not name.startswith("hf://") else name.removeprefix("hf://"))
    pairs = zip(short, models, strict=True)
    return [long if short.count(name) > 1 and models.count(long) == 1 else name for name, long in pairs]
