"""The fast frozen twin of a classifier, which the loop runs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier, representation
from robustsynth.models.execution import PRECISIONS, Execution, chosen_execution
from robustsynth.models.folding import fold_batch_norm, keep_rows_apart, reduce_but_logits, reducible


class Synthesizer(nn.Module):
    """A classifier for synthesis alone: evaluation mode, no parameter gradients, batch norm folded, channels-last,
    in the precision that was measured to be fastest.

    Images (N, C, H, W) float32 in [0, 1] in; logits (N, classes) float32 out; gradients flow to the images.
    Make one with ``Classifier.synthesizer()``.

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
        self.versions: tuple[tuple[int, int, int], ...] = ()
        # Where the whole network may be reduced its weights are cast once; elsewhere autocast casts them again
        # in each pass, but keeps normalisations in float32.
        self.whole = precision == "bfloat16" and reducible(network)
        network = copy.deepcopy(network).requires_grad_(False).eval()
        if self.whole:
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
        if self.whole:
            return self.network(normalised.to(torch.bfloat16)).to(images.dtype)
        if self.precision == "bfloat16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return self.network(normalised).to(images.dtype)
        return self.network(normalised)

    def features(self, images: Tensor) -> Tensor:
        """The representation R(x), (N, D) float32: what the last linear layer is given."""
        return representation(self.network, self, images)


def build_synthesizer(
    classifier: Classifier, *, precision: str | None = None, batch_size: int | None = None
) -> Synthesizer:
    """The fast twin of `classifier`, measuring on first use what was not given.

    Raises:
        UserError: an unknown precision, or a batch size below 1.
    """
    if precision not in (None, *PRECISIONS):
        raise UserError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"expected a batch size of 1 or more, got {batch_size}")
    folded = fold_batch_norm(classifier.network)
    twins: dict[str, Synthesizer] = {}

    def twin(name: str) -> Synthesizer:
        if name not in twins:
            twins[name] = Synthesizer(classifier, folded, name)
        return twins[name]

    execution = chosen_execution(classifier, twin, precision=precision, batch_size=batch_size)
    result = twin(execution.precision)
    result.execution = execution
    return result
