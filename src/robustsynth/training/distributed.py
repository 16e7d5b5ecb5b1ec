"""Training by several processes: which images of a batch each one takes, and how gradients and losses are averaged.

The batch of a step is the same whatever the number of processes. It is worked through in ``accumulate`` parts, and of
each part every process takes its own run of images. PyTorch's `DistributedDataParallel` averages the gradients.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustsynth.errors import UserError
from robustsynth.processes import ALONE, Workers


class Team:
    """The processes that train one network, on batches of `batch_size` images over all of them in `accumulate` parts.

    Attributes:
        workers: all of them, and which this is; for use within ``workers.joined``.
        rows: (n,) integers, the places in the batch that this process takes; None for all of them.
        count: how many these are.
        share: of a part's images, that this process takes.

    Raises:
        UserError: more processes than images in a part.

    Example:
        >>> Team(Workers(rank=1, size=2), batch_size=12, accumulate=2).rows.tolist()
        [3, 4, 5, 9, 10, 11]
    """

    def __init__(self, workers: Workers = ALONE, *, batch_size: int = 1, accumulate: int = 1) -> None:
        self.workers, self.count, self.share = workers, batch_size, 1.0
        self.rows: Tensor | None = None
        if workers.alone:
            return
        part = batch_size // accumulate
        if part < workers.size:
            raise UserError(
                f"expected at least one image of a batch for each of {workers.size} processes, got {part}; "
                "raise --batch-size, lower --accumulate or start fewer processes"
            )
        runs = [torch.arange(part * r // workers.size, part * (r + 1) // workers.size) for r in range(workers.size)]
        self._rows_of_all = [torch.cat([run + start for start in range(0, batch_size, part)]) for run in runs]
        self.rows = self._rows_of_all[workers.rank]
        self.count, self.share = len(self.rows), len(runs[workers.rank]) / part

    def own(self, batch: Tensor) -> Tensor:
        """This process's images of a batch (N, …) of all processes."""
        return batch if self.rows is None else batch[self.rows.to(batch.device)]

    def gathered(self, images: Tensor) -> Tensor:
        """Every process's images (n, …) of a batch, put together in the batch's order (N, …)."""
        if self.rows is None:
            return images
        # All must send as much: those with fewer images fill up.
        mine = images.new_zeros(max(map(len, self._rows_of_all)), *images.shape[1:])
        mine[: len(images)] = images.detach()
        sent = [torch.empty_like(mine) for _ in self._rows_of_all]
        dist.all_gather(sent, mine)
        batch = images.new_empty(sum(map(len, self._rows_of_all)), *images.shape[1:])
        for rows, values in zip(self._rows_of_all, sent, strict=True):
            batch[rows.to(batch.device)] = values[: len(rows)]
        return batch

    def wrapped(self, network: nn.Module) -> nn.Module:
        """`network` as it is to be called for gradients of its parameters, which then are those of the whole batch."""
        if self.workers.alone:
            return network
        device = next(network.parameters()).device
        # Statistics are shared after the step: broadcasting them before each pass would undo a pass before it.
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        given: dict[str, Any] = {option: False, "device_ids": [device] if device.type == "cuda" else None}
        return DistributedDataParallel(network, **given)

    def summing(self, network: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Within it a backward pass through a wrapped network adds to the gradients; in the last they are averaged."""
        if isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return contextlib.nullcontext()

    def mean(self, value: float) -> float:
        """The mean over a part's images, of which `value` is that over this process's; NaN where any is."""
        if self.workers.alone:
            return value
        share = torch.tensor(value * self.share, dtype=torch.float64)
        dist.all_reduce(share)
        return float(share)

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss whose gradients, averaged over processes of equal weight, are those of the mean over all images."""
        return loss if self.workers.alone else loss * (self.share * self.workers.size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes, weighted by images, in place."""
        if self.workers.alone or not tensors:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors]) * self.share
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))


SINGLE = Team()
"""One process that takes every image."""


def synchronised(network: nn.Module, device: torch.device, workers: Workers) -> nn.Module:
    """`network` with batch norm over the images of all processes, which PyTorch has for graphics cards only."""
    if workers.alone:
        return network
    if device.type == "cpu":
        raise UserError(
            "expected a graphics card for --sync-batch-norm, which PyTorch has for no processor, got cpu; leave it out"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
