"""``robustsynth refine``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, picture_options

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("refine")
@picture_options("refine")
def command(**options: Any) -> None:
    """Make pictures more like their class: another generator's output, or any photograph."""
    from robustsynth.tasks.refine import refine

    call = PictureCommand("refine", options)

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        return {"": refine(call.model, images, labels, on_step=on_step, **call.arguments)}

    call.run(Plan(solve))
