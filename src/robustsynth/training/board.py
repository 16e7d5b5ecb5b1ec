"""TensorBoard's logs of a run, in the folder ``tensorboard`` beside its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from robustsynth.errors import UserError

FOLDER = "tensorboard"
EVERY = 10
"""Steps between two values of the loss and the learning rate."""
SHOWN = 8
"""Adversarial images shown an epoch."""


class Board:
    """Writes what TensorBoard shows; what was logged after the step that a run is resumed from is dropped.

    Args:
        out: the run's folder.
        step: steps done so far.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "expected the package tensorboard for --tensorboard, which is not installed; "
                "pip install 'robustsynth[tensorboard]', or leave the option out"
            ) from None
        self.writer: Any = SummaryWriter(str(out / FOLDER), purge_step=step)

    def step(self, step: int, loss: float, rate: float) -> None:
        """Loss and learning rate of step `step`, now and then."""
        if step % EVERY == 0:
            self.writer.add_scalar("training/loss", loss, step)
            self.writer.add_scalar("training/learning rate", rate, step)

    def epoch(self, step: int, row: dict[str, Any], attacked: Tensor | None) -> None:
        """An epoch's row of the log, and some of the images (N, C, H, W) in [0, 1] that its last step trained on."""
        for name in ("held_out_clean", "held_out_pgd"):
            if row[name] != "":
                self.writer.add_scalar(name.replace("held_out_", "held out/"), row[name], step)
        if attacked is not None:
            self.writer.add_images("adversarial images", attacked[:SHOWN].detach().cpu(), step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
