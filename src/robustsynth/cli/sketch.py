"""``robustsynth sketch``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, picture_options

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("sketch")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the texture.")
@picture_options("sketch")
def command(seed: int, **options: Any) -> None:
    """Turn drawings into pictures of a class. Dark lines on white serve best; give the class with --label."""
    from robustsynth.tasks.sketch import sketch

    call = PictureCommand("sketch", options)

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        return {"": sketch(call.model, images, labels, seed=seed, on_step=on_step, **call.arguments)}

    call.run(Plan(solve, extra={"seed": seed}))
