"""The state of a training run at a step, and its checkpoint files, which show whether they are damaged.

A checkpoint is what `torch.save` writes, a zip archive, with the SHA-256 of all its bytes in the archive's comment:
`torch.load` opens it as it is, but would itself not notice a flipped bit in a tensor. The checkpoint before the newest
is kept for when the newest is damaged.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.models.execution import Execution
from robustsynth.training.settings import TrainSettings, settings_from

FORMAT = 2
"""Of the checkpoints that are written and read here. Those of 0.1.0 have none: their runs drew other random numbers."""

CHECKPOINT, BEFORE, DAMAGED = "checkpoint.pt", "checkpoint-before.pt", "checkpoint-damaged.pt"
"""The newest, the one before it, and where a damaged one is moved to when a run goes on from the one before it."""

PARTS = ("network", "average", "optimizer")
PLAIN = ("data", "step", "seconds", "best", "rows", "perturbation", "attack_level", "collapses", "good")
NEEDED = ("settings", "execution", *PARTS, *PLAIN)
"""What a checkpoint has: the attributes of `TrainState`, with the ``state_dict`` of its parts."""

_CHECKSUM = re.compile(rb"robustsynth checkpoint of step (\d+), sha256 ([0-9a-f]{64})\Z")
_DIGITS = 64


@dataclass
class TrainState:
    """A run at a step. Random numbers need no state: each step's are drawn from a generator keyed by its number.

    Attributes:
        average: the network's moving average, which is what is evaluated and kept.
        data: what tells the images that it trains on from others.
        step: steps done.
        seconds: of training so far, over all resumptions.
        best: the best selection score so far, and where.
        rows: the log so far.
        perturbation: of the last batch, (N, C, H, W), with which free begins the next.
        attack_level: how often the attack has been made stronger after a collapse.
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
            for a, n in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                if a.is_floating_point():
                    a.lerp_(n, 1 - decay)
                else:
                    a.copy_(n)
        # The weights and batch norm's statistics have all gone into it.
        self.check_finite("average")

    def check_finite(self, *parts: str) -> None:
        """Raise a `UserError` where there is NaN or infinity in some of `PARTS`.

        A loss and its gradient may be finite while batch norm's running statistics are not: they are not used in
        training, but by the attack and by the model that is kept.
        """
        for part in parts:
            state = getattr(self, part).state_dict()
            if part == "optimizer":
                state = {f"{name} {i}": v for i, each in state["state"].items() for name, v in each.items()}
            tensors = {n: v for n, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
            if tensors and not math.isfinite(nn.utils.get_total_norm(tensors.values(), math.inf)):
                name = next(name for name, value in tensors.items() if not bool(value.isfinite().all()))
                raise self.not_finite("finite weights", f" in {name} of the {part}")

    def not_finite(self, expected: str, where: str = "") -> UserError:
        """The error of a step that met NaN or infinity in the place of what was expected."""
        return UserError(
            f"expected {expected}, got NaN or infinity{where} at step {self.step}; the last checkpoint is kept. Begin "
            "again in another --out with a lower --learning-rate, or try --precision float32"
        )

    def keep_good(self) -> None:
        """Remember the weights as they are, to go back to."""
        self.good = copy.deepcopy({name: getattr(self, name).state_dict() for name in PARTS}) | {"step": self.step}

    def return_to_good(self) -> int:
        """Take the remembered weights again; the step that they are from. The count of steps goes on."""
        assert self.good is not None
        for name in PARTS:
            # A copy: the optimizer would go on with the very tensors that it is given.
            getattr(self, name).load_state_dict(copy.deepcopy(self.good[name]))
        return self.good["step"]

    def save(self, folder: Path) -> None:
        """Write the checkpoint by `write_checkpoint`, or raise a `UserError` where weights are not finite."""
        self.check_finite(*PARTS)
        contents = {name: getattr(self, name).state_dict() for name in PARTS}
        contents |= {name: getattr(self, name) for name in PLAIN}
        contents |= {"settings": dataclasses.asdict(self.settings), "execution": self.execution.as_dict()}
        write_checkpoint(contents, folder)

    def load(self, folder: Path, device: torch.device, **how: Any) -> None:
        """Become what `save` wrote, as by `read_checkpoint`; a `UserError` where it is of other settings or data."""
        contents = read_checkpoint(folder, device, **how)
        ours, saved = (dataclasses.asdict(each) for each in (self.settings, settings_from(contents["settings"])))
        if differing := [f"{n} ({ours[n]} in place of {v})" for n, v in saved.items() if v != ours[n]]:
            raise UserError(
                f"expected the settings that {folder} was begun with, got others in {', '.join(differing)}; "
                "resume without them, or choose another --out"
            )
        if other := differences(contents["data"], self.data):
            raise UserError(f"expected the data that {folder} was begun with, got other ({other}); pass its --data")
        try:
            for name in PARTS:
                getattr(self, name).load_state_dict(contents[name])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise UserError(
                f"expected the weights in {folder / CHECKPOINT} to fit the network, but they do not ({reason}); "
                "pass the --data that the run was begun with"
            ) from None
        self.execution = Execution(**contents["execution"])
        for name in PLAIN:
            setattr(self, name, contents[name])


def make_optimizer(settings: TrainSettings, network: nn.Module) -> torch.optim.SGD:
    """SGD that decays weights, and biases and norms only where the settings say so."""
    decay, momentum = settings.weight_decay, settings.momentum
    weights, others = ([p for p in network.parameters() if (p.ndim > 1) == kind] for kind in (True, False))
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": decay}]
    groups.append({"params": others, "weight_decay": decay if settings.decay_norms else 0.0})
    nesterov = settings.nesterov and momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=momentum, nesterov=nesterov, foreach=True)


def differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the data of now differs from that which a run was begun with, in words; empty where it does not.

    Example:
        >>> differences({"images": 60, "classes": ["cat"]}, {"images": 61, "classes": ["cat", "dog"]})
        'images: 60 then, 61 now; classes: 1 then, 2 now, such as dog'
    """
    found = []
    for name, value in now.items():
        was = begun.get(name, value)
        # The mean and deviation are the run's: a model that is fine-tuned brings its own.
        if name in ("mean", "std") or was == value:
            continue
        if name == "classes":
            differing = sorted(set(was) ^ set(value))[:3]
            such = f", such as {', '.join(differing)}" if differing else ", in another order"
            found.append(f"classes: {len(was)} then, {len(value)} now{such}")
        else:
            found.append(f"{name}: {was} then, {value} now")
    return "; ".join(found)


class _DamagedError(Exception):
    """A file is not what was written: in which way, and, where it is still known, its step."""


def has_checkpoint(folder: Path) -> bool:
    """Whether a run was begun in `folder`."""
    return (folder / CHECKPOINT).exists() or (folder / BEFORE).exists()


def write_checkpoint(contents: dict[str, Any], folder: Path) -> None:
    """Write `contents`, with its ``step``, as the newest checkpoint of `folder`; the newest so far is the one before.

    At every moment, also of a power cut, one of the two is complete. A run has one writer: what an earlier one that was
    killed left half written is removed. An `OSError` of a full disk leaves what was there untouched.
    """
    path = folder / CHECKPOINT
    for left in folder.glob(".checkpoint-*.pt"):
        left.unlink(missing_ok=True)
    # By way of memory: on a full disk torch.save hides the operating system's error behind one of its own.
    packed = io.BytesIO()
    torch.save(contents | {"format": FORMAT}, packed)
    _add_checksum(packed, contents["step"])
    with written_beside(path) as temporary:
        temporary.write_bytes(packed.getbuffer())
        if path.exists():
            _keep_before(path)
    # The new names on the disk too, where the system lets a folder be written through.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_checkpoint(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    announce: Callable[[str], object] = lambda line: None,
    set_aside: bool = False,
) -> dict[str, Any]:
    """The contents of a run's newest checkpoint, or of the one before it where that is damaged; no code is executed.

    `announce` is called with what a damaged checkpoint costs; `set_aside` moves it away, so that it does not become the
    one before the next.

    Raises:
        UserError: there is none, both are damaged, it holds code, or another version wrote it.
    """
    if not has_checkpoint(folder):
        raise UserError(f"expected a checkpoint to resume from in {folder}, found no {CHECKPOINT}; leave out --resume")
    try:
        return _read(folder / CHECKPOINT, device)
    except _DamagedError as error:
        newest, *step = error.args
    try:
        contents = _read(folder / BEFORE, device)
    except _DamagedError as error:
        raise UserError(
            f"expected a whole checkpoint in {folder}, but {CHECKPOINT} is damaged ({newest}) and there is none before "
            f"it to go back to ({BEFORE}: {error.args[0]}); {_begin_again(folder)}"
        ) from None
    again = f"{step[0] - contents['step']} steps" if step else "the steps since"
    announce(
        f"{folder / CHECKPOINT} is damaged ({newest}): going on from the one before it, of step {contents['step']}; "
        f"{again} are trained again, to the same weights"
    )
    if set_aside:
        # Of several processes that read at once, one is the first.
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / CHECKPOINT, folder / DAMAGED)
    return contents


def _begin_again(folder: Path) -> str:
    best = f", also from the best model so far: --fine-tune {folder}" if (folder / "card.json").exists() else ""
    return f"begin again in another --out{best}"


def _add_checksum(packed: io.BytesIO, step: int) -> None:
    """Append step and SHA-256 as the comment of the zip archive in `packed`."""
    comment = f"robustsynth checkpoint of step {step}, sha256 ".encode()
    # An archive without a comment ends with the comment's length, two bytes.
    packed.seek(-2, os.SEEK_END)
    packed.write((len(comment) + _DIGITS).to_bytes(2, "little") + comment)
    packed.write(hashlib.sha256(packed.getbuffer()).hexdigest().encode())


def _keep_before(path: Path) -> None:
    """Give the newest checkpoint so far its second name too: under the first there is one at every moment."""
    before, link = path.with_name(BEFORE), path.with_name(".checkpoint-link.pt")
    try:
        os.link(path, link)
        os.replace(link, before)
        # Two names of one file are not renamed into each other: what is left then is the link.
        link.unlink(missing_ok=True)
    except OSError:  # A file system without links; or a full one, which has room for a name in the old one's place.
        os.replace(path, before)


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    """The contents of one file; a `_DamagedError` where it is missing or not what was written."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise _DamagedError("there is no such file") from None
    except PermissionError:
        raise
    except OSError as error:
        raise _DamagedError(error.strerror or str(error)) from None
    checksum = _CHECKSUM.search(packed[-200:])
    if checksum and hashlib.sha256(memoryview(packed)[:-_DIGITS]).hexdigest().encode() != checksum[2]:
        raise _DamagedError("its bytes do not have the SHA-256 that they were written with", int(checksum[1]))
    try:
        contents = torch.load(io.BytesIO(packed), map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # A damaged file fails in the zip reader, the unpickler or the tensors.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"expected a checkpoint of tensors and plain values in {path}, but it holds code, which is never "
                "executed here. Convert it where you trust it: torch.load it there with weights_only=False and "
                f"torch.save its state_dict() instead; or {_begin_again(path.parent)}"
            ) from None
        raise _DamagedError((str(error).splitlines() or [type(error).__name__])[0][:200]) from None
    missing = [name for name in NEEDED if not isinstance(contents, dict) or name not in contents]
    # Those of before there was a format may lack more.
    if {"settings", "network", "step"} & set(missing):
        raise UserError(f"expected a checkpoint of robustsynth train in {path}, but it lacks {', '.join(missing)}")
    if (found := contents.get("format", 1)) != FORMAT:
        raise UserError(
            f"expected a checkpoint of format {FORMAT} in {path}, got format {found}, of another version of "
            f"robustsynth; go on with that version, or {_begin_again(path.parent)}"
        )
    if not checksum:
        raise _DamagedError("its checksum is missing")
    return contents
