"""All that a training run is at a step, and its checkpoint file."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustsynth.errors import UserError
from robustsynth.models.execution import Execution
from robustsynth.training.checking import other_data
from robustsynth.training.checkpoints import CHECKPOINT, read_checkpoint, write_checkpoint
from robustsynth.training.settings import TrainSettings, settings_from


@dataclass
class TrainState:
    """A run at a step. Random numbers need no state: each step's are drawn from a generator keyed by its number.

    Attributes:
        settings: of the run.
        network: being trained.
        average: its weights' moving average, which is what is evaluated and kept.
        optimizer: SGD.
        execution: precision and batch size, as measured when the run started.
        data: what tells the images that it trains on from others.
        step: steps done.
        seconds: of training so far, over all resumptions.
        best: the best selection score so far, and where.
        rows: the log so far.
        perturbation: of the last batch, (N, C, H, W), with which free begins the next.
        attack_level: how often the attack has been made stronger after a collapse.
        collapses: what the guard saw and did each time.
        good: weights, average and optimizer before any collapse, of a run that is guarded.
    """

    settings: TrainSettings
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.SGD
    execution: Execution
    data: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    perturbation: torch.Tensor | None = None
    attack_level: int = 0
    collapses: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    good: dict[str, Any] | None = None

    @classmethod
    def fresh(
        cls, settings: TrainSettings, network: nn.Module, execution: Execution, data: dict[str, Any]
    ) -> TrainState:
        """A run that has not begun."""
        average = copy.deepcopy(network).requires_grad_(False).eval()
        return cls(settings, network, average, make_optimizer(settings, network), execution, data)

    def update_average(self) -> None:
        """Move the average towards the weights; early on, when they are poor, by more."""
        decay = min(self.settings.average, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = list(zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True))
            for a, n in pairs:
                if a.is_floating_point():
                    a.lerp_(n, 1 - decay)
                else:
                    a.copy_(n)
        # The weights and batch norm's statistics have all gone into it.
        self.check_finite("average")

    def check_finite(self, *parts: str) -> None:
        """Refuse NaN and infinity, which would be drawn into everything that follows.

        A loss and its gradient may be finite while batch norm's running statistics are not: they are not used in
        training, but by the attack and by the model that is kept.

        Args:
            parts: of ``network``, ``average`` and ``optimizer``.

        Raises:
            UserError: where they are.
        """
        for part in parts:
            tensors = self._tensors(part)
            if tensors and not math.isfinite(nn.utils.get_total_norm(tensors.values(), math.inf)):
                where = next(name for name, value in tensors.items() if not bool(value.isfinite().all()))
                raise UserError(
                    f"expected finite weights, got NaN or infinity in {where} of the {part} at step {self.step}; the "
                    "last checkpoint is kept. Begin again in another --out with a lower --learning-rate, or try "
                    "--precision float32"
                )

    def _tensors(self, part: str) -> dict[str, torch.Tensor]:
        """The floating-point tensors of a part, by name."""
        state = getattr(self, part).state_dict()
        if part == "optimizer":
            state = {f"{name} {i}": v for i, each in state["state"].items() for name, v in each.items()}
        return {n: v for n, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}

    def keep_good(self) -> None:
        """Remember the weights as they are, to go back to."""
        parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}
        self.good = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()} | {"step": self.step}

    def return_to_good(self) -> int:
        """Take the remembered weights again; the step that they are from. The count of steps goes on."""
        assert self.good is not None
        self.network.load_state_dict(self.good["network"])
        self.average.load_state_dict(self.good["average"])
        # A copy: the optimizer would go on with the very tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(self.good["optimizer"]))
        return self.good["step"]

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all, and keep the one so far as the one before it.

        Raises:
            UserError: weights are not finite; the checkpoints stay as they are.
            OSError: the disk is full; likewise.
        """
        self.check_finite("network", "average", "optimizer")
        contents = {
            "settings": dataclasses.asdict(self.settings),
            "execution": self.execution.as_dict(),
            "data": self.data,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "rows": self.rows,
            "perturbation": self.perturbation,
            "attack_level": self.attack_level,
            "collapses": self.collapses,
            "good": self.good,
        }
        write_checkpoint(contents, folder)

    def load(
        self,
        folder: Path,
        device: torch.device,
        *,
        announce: Callable[[str], object] = lambda line: None,
        set_aside: bool = True,
    ) -> None:
        """Become what `save` wrote; where the newest checkpoint is damaged, what it wrote before that.

        Args:
            folder: the run's.
            device: to put tensors on.
            announce: told what a damaged checkpoint costs.
            set_aside: move a damaged checkpoint away, so that it does not become the one before the next.

        Raises:
            UserError: there is no checkpoint that is whole, or it belongs to other settings or other data.
        """
        contents = read_checkpoint(folder, device, announce=announce, set_aside=set_aside)
        saved = settings_from(contents["settings"])
        if saved != self.settings:
            ours = dataclasses.asdict(self.settings)
            differing = [
                f"{n} ({ours[n]} in place of {v})" for n, v in dataclasses.asdict(saved).items() if v != ours[n]
            ]
            raise UserError(
                f"expected the settings that {folder} was begun with, got others in {', '.join(differing)}; "
                "resume without them, or choose another --out"
            )
        if told := other_data(contents.get("data", {}), self.data):
            raise UserError(f"expected the data that {folder} was begun with, got other ({told}); pass its --data")
        try:
            self.network.load_state_dict(contents["network"])
            self.average.load_state_dict(contents["average"])
            self.optimizer.load_state_dict(contents["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise UserError(
                f"expected the weights in {folder / CHECKPOINT} to fit the network, but they do not ({reason}); "
                "pass the --data that the run was begun with"
            ) from None
        self.data = contents.get("data", {})
        self.execution = Execution(**contents["execution"])
        self.step, self.seconds = contents["step"], contents["seconds"]
        self.best, self.rows = contents["best"], contents["rows"]
        # Checkpoints from before there were recipes lack these.
        self.perturbation, self.good = contents.get("perturbation"), contents.get("good")
        self.attack_level, self.collapses = contents.get("attack_level", 0), contents.get("collapses", [])


def make_optimizer(settings: TrainSettings, network: nn.Module) -> torch.optim.SGD:
    """SGD that decays weights, and biases and norms only where the settings say so."""
    vectors = 0.0 if not settings.decay_norms else settings.weight_decay
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": vectors},
    ]
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        foreach=True,
    )
