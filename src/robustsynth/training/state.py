"""All that a training run is at a step, and its checkpoint file."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.models.execution import Execution
from robustsynth.training.settings import TrainSettings, settings_from

CHECKPOINT = "checkpoint.pt"


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
        """Write the checkpoint, whole or not at all."""
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
        # By way of memory: on a full disk torch.save hides the operating system's error behind one of its own.
        packed = io.BytesIO()
        torch.save(contents, packed)
        with written_beside(folder / CHECKPOINT) as temporary:
            temporary.write_bytes(packed.getbuffer())

    def load(self, folder: Path, device: torch.device) -> None:
        """Become what `save` wrote.

        Raises:
            UserError: there is no checkpoint, it is damaged, or it belongs to other settings.
        """
        contents = read_checkpoint(folder, device)
        saved = settings_from(contents["settings"])
        if saved != self.settings:
            ours = dataclasses.asdict(self.settings)
            differing = [n for n, v in dataclasses.asdict(saved).items() if v != ours[n]]
            raise UserError(
                f"expected the settings that {folder} was begun with, got others in {', '.join(differing)}; "
                "resume without them, or choose another --out"
            )
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


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a run's checkpoint; nothing in it is executed.

    Raises:
        UserError: there is none, it is damaged, or it holds code.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise UserError(f"expected a checkpoint to resume from in {folder}, found no {CHECKPOINT}; leave out --resume")
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # A damaged file fails in the zip reader, the unpickler or the tensors.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"expected a checkpoint of tensors and plain values in {path}, but it holds code, which is never "
                "executed here. Convert it where you trust it: torch.load it there with weights_only=False and "
                "torch.save its state_dict() instead; or begin again in another --out"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"expected a checkpoint in {path}, but it is damaged ({reason}); begin again") from None
    needed = ("settings", "execution", "network", "average", "optimizer", "step", "seconds", "best", "rows")
    missing = [name for name in needed if not isinstance(contents, dict) or name not in contents]
    if missing:
        raise UserError(f"expected a checkpoint of robustsynth train in {path}, but it lacks {', '.join(missing)}")
    return contents


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
