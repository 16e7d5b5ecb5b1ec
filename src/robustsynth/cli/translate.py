"""``robustsynth translate``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, named_class, picture_options

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("translate")
@click.option("--to", "targets", required=True, help="Class to turn the pictures into, or several: dog,church.")
@picture_options("translate", label=False)
def command(targets: str, **options: Any) -> None:
    """Turn pictures into another class.

    With several classes each picture gives several, NAME-CLASS.png, and figure.png shows all of them in a row.
    """
    from robustsynth.tasks.translate import translate

    call = PictureCommand("translate", options)
    wanted = list(dict.fromkeys(named_class(call.model, name.strip()) for name in targets.split(",") if name.strip()))
    if not wanted:
        raise click.UsageError(f"expected one or more classes after --to, got {targets!r}")
    names = [call.model.classes[index] for index in wanted]
    several = len(wanted) > 1
    endings = tuple(f"-{name.replace(' ', '_')}" for name in names) if several else ("",)

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}
        for ending, index in zip(endings, wanted, strict=True):
            results[ending] = translate(call.model, images, index, on_step=on_step, **call.arguments)
            if call.stopping:
                break  # What was not begun is not there: a source is nobody's translation.
        return results

    call.run(Plan(solve, extra={"to": names}, labelled=False, endings=endings, runs=len(wanted)))
