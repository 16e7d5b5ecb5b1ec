"""A classifier of images in [0, 1] with its normalisation inside, and the fast frozen form of it that the loop runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.execution import PRECISIONS, Execution, chosen_execution
from robustsynth.models.folding import fold_batch_norm, keep_rows_apart, reduce_but_logits, reducible
from robustsynth.names import name_position


class Classifier(nn.Module):
    """Any network as a classifier: images (N, C, H, W) in [0, 1] in, logits (N, classes) out.

    Make one with `load_model` or `Classifier.wrap`.

    Attributes:
        network: the network itself, which takes normalised images.
        classes: the classes' names in the order of the logits.
        image_size: side of the images in pixels; None where any size will do.
        card: how it was trained and how good it is; None for a wrapped network.
        folder: where it was loaded from, which also holds its seeds; None for a wrapped network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        card: ModelCard | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise UserError(f"expected one mean and one positive std a channel, got mean={mean}, std={std}")
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise UserError(f"expected two or more different class names, got {list(classes)}")
        self.network = network
        self.classes = tuple(str(name) for name in classes)
        self.image_size = image_size
        self.card = card
        self.folder = folder
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self._frozen: dict[Any, FrozenClassifier] = {}
        self._executions: dict[Any, Execution] = {}
        self._versions: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        *,
        classes: Sequence[str] | int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
    ) -> Classifier:
        """Anybody's network as a `Classifier`, with no conversion.

        Args:
            module: takes normalised images (N, C, H, W), gives logits (N, classes); put into evaluation mode.
            classes: names in the order of the logits, or just their number.
            mean: per channel, in [0, 1] units; subtracted before the network. Zeros where it normalises itself.
            std: per channel; divided by before the network. Ones where it normalises itself.
            image_size: side that images must have; None takes them as they come.

        Raises:
            UserError: means and stds do not match, or class names are too few or not unique.

        Example:
            >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
            >>> model = Classifier.wrap(net, classes=["cat", "ship"], mean=[0.5] * 3, std=[0.2] * 3)
            >>> model(torch.rand(4, 3, 8, 8)).shape
            torch.Size([4, 2])
        """
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        return cls(module, classes=names, mean=mean, std=std, image_size=image_size).eval()

    @property
    def channels(self) -> int:
        """Channels of the images, 1 or 3."""
        return self.mean.shape[1]

    @property
    def name(self) -> str:
        """The model's name: its card's, its folder's, or its network's type."""
        if self.card is not None:
            return self.card.name
        return self.folder.name if self.folder is not None else type(self.network).__name__

    @property
    def aliases(self) -> Mapping[str, Sequence[str]]:
        """Other names of its classes, as its card has them (see `ModelCard`); none without a card."""
        return {} if self.card is None else self.card.aliases

    @property
    def device(self) -> torch.device:
        """The device that it is on."""
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1] != self.channels or (size and images.shape[2:] != (size, size)):
            side = f"{size}, {size}" if size else "H, W"
            raise UserError(
                f"expected images (N, {self.channels}, {side}) for model {self.name!r}, got {tuple(images.shape)}"
            )
        return self.network((images - self.mean) / self.std)

    def logits(self, images: Tensor) -> Tensor:
        """The same as calling the classifier."""
        return self(images)

    def features(self, images: Tensor) -> Tensor:
        """The representation R(x), (N, D): what the last linear layer is given (Santurkar et al. 2019, Eq. 5).

        Raises:
            UserError: the network has no linear layer.

        Example:
            >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 2))
            >>> Classifier.wrap(net, classes=2, mean=[0] * 3, std=[1] * 3).features(torch.rand(4, 3, 8, 8)).shape
            torch.Size([4, 7])
        """
        return linear_runs(self.network, self, images)[-1][1].flatten(1).float()

    def frozen(
        self, *, precision: str | None = None, batch_size: int | None = None, images: int | None = None
    ) -> FrozenClassifier:
        """The fast form of this classifier that images are optimised with; it is built again when weights change.

        Args:
            precision: ``"float32"`` or ``"bfloat16"``; measured once per model and machine where None.
            batch_size: images a batch; what is fastest for `images` where None, measured likewise.
            images: how many there are to be optimised; None for many.

        Raises:
            UserError: an unknown precision, or a batch size below 1.

        Example:
            >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
            >>> model = Classifier.wrap(net, classes=2, mean=[0] * 3, std=[1] * 3, image_size=2)
            >>> model.frozen(precision="float32", batch_size=4).execution.batch_size
            4
        """
        if precision not in (None, *PRECISIONS):
            raise UserError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"expected a batch size of 1 or more, got {batch_size}")
        # Weights that have changed (their version counts) or been exchanged since must not be served from the cache.
        tensors = (*self.network.parameters(), *self.network.buffers())
        versions = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        if versions != self._versions:
            self._frozen, self._versions = {}, versions
        where = (str(self.device), torch.get_num_threads())

        def built(name: str, execution: Execution | None = None) -> FrozenClassifier:
            key = (name, execution, *where)
            if key not in self._frozen:
                if execution is None:
                    self._frozen[key] = FrozenClassifier(self, fold_batch_norm(self.network), name)
                else:  # The same network: what it does not depend on is how many images it is given at a time.
                    self._frozen[key] = copy.copy(built(name))
                    self._frozen[key].execution = execution
            return self._frozen[key]

        asked = (precision, batch_size, images, *where)
        if asked not in self._executions:
            self._executions[asked] = chosen_execution(
                built,
                network=self.network,
                image_size=self.image_size,
                channels=self.channels,
                device=self.device,
                precision=precision,
                batch_size=batch_size,
                images=images,
            )
        execution = self._executions[asked]
        return built(execution.precision, execution)

    def class_index(self, name: str | int) -> int:
        """The position of a class given by name or index.

        Raises:
            UnknownNameError: no such class.
            UserError: an index out of range.
        """
        # A digit classifier's classes are themselves named by digits; names go first, as they are written.
        if str(name) in self.classes:
            return self.classes.index(str(name))
        if isinstance(name, int) or name.isdecimal():
            if 0 <= int(name) < len(self.classes):
                return int(name)
            raise UserError(f"expected a class index from 0 to {len(self.classes) - 1}, got {name}")
        position = name_position(name, self.classes)
        if position is None:
            raise UnknownNameError("class", name, self.classes, f"(model {self.name!r})")
        return position


def need_linear(found: object, network: nn.Module) -> None:
    """Raise a `UserError` unless a linear layer was found, whose input could be the representation."""
    if not found:
        raise UserError(
            "expected a network whose last layer is linear, to take its input as the representation; "
            f"{type(network).__name__} has no linear layer"
        )


def linear_runs(network: nn.Module, call: nn.Module, images: Tensor) -> list[tuple[nn.Linear, Tensor]]:
    """The linear layers of `network` in the order in which they run in ``call(images)``, with what each is given."""
    runs: list[Any] = []
    with contextlib.ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_pre_hook(lambda layer, inputs: runs.append((layer, inputs[0])))
                hooks.callback(hook.remove)
        call(images)
    need_linear(runs, network)
    return runs


class FrozenClassifier(nn.Module):
    """A classifier to optimise images with: evaluation mode, no parameter gradients, batch norm folded, channels-last,
    in the precision that was measured to be fastest.

    Images (N, C, H, W) float32 in [0, 1] in; logits (N, classes) float32 out; gradients flow to the images.
    Make one with `Classifier.frozen`.

    Attributes:
        execution: precision and batch size, and whether they were measured.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.classes = classifier.classes
        self.image_size = classifier.image_size
        self.precision = precision
        self.execution = Execution(precision=precision, batch_size=32, measured=False)
        # Where the whole network may be reduced its weights are cast once; elsewhere autocast casts them again
        # in each pass, but keeps normalisations in float32.
        self.reduced = precision == "bfloat16" and reducible(network)
        network = copy.deepcopy(network).requires_grad_(False).eval()
        if self.reduced:
            reduce_but_logits(network)
        elif precision == "float32":
            keep_rows_apart(network)
        self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.register_buffer("mean", classifier.mean.clone())
        self.register_buffer("std", classifier.std.clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) in the images' own precision, float32 or float64."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if self.reduced:
            return self.network(normalised.to(torch.bfloat16)).to(images.dtype)
        if self.precision == "bfloat16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return self.network(normalised).to(images.dtype)
        return self.network(normalised)

    def features(self, images: Tensor) -> Tensor:
        """The representation R(x), (N, D) float32, as of `Classifier.features`."""
        return linear_runs(self.network, self, images)[-1][1].flatten(1).float()
