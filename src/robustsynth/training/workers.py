"""Training by several processes: which rows of a batch each one takes, and what they add up.

The batch of a step is the same whatever the number of processes. It is worked through in ``accumulate`` parts, and of
each part every process takes its own run of rows. Random numbers are drawn for the whole batch by every process, which
then keeps those of its rows; gradients are averaged by PyTorch's `DistributedDataParallel`, weighted by rows.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustsynth.errors import UserError
from robustsynth.processes import ALONE, Workers


@dataclass(frozen=True)
class Rows:
    """Some rows of a larger batch.

    Args:
        indices: (n,) integers on the CPU.
        total: rows of the larger batch.
    """

    indices: Tensor
    total: int


def own(drawn: Tensor, rows: Rows | None) -> Tensor:
    """Of numbers drawn for a whole batch those of `rows`; all where None.

    Example:
        >>> own(torch.arange(6), Rows(torch.tensor([1, 4]), 6)).tolist()
        [1, 4]
    """
    return drawn if rows is None else drawn[rows.indices.to(drawn.device)]


def total_of(images: Tensor, rows: Rows | None) -> int:
    """For how many images numbers are to be drawn, where `images` are those of `rows`."""
    return len(images) if rows is None else rows.total


class Team:
    """The processes that train one network.

    Args:
        workers: all of them, and which this is; within ``workers.joined``.
        batch_size: images of a step, over all processes.
        accumulate: parts of it.

    Attributes:
        rows: of the batch, that this process takes; None for all of them.
        part_rows: of a part.
        share: of a part's rows, that this process takes.

    Raises:
        UserError: more processes than rows.

    Example:
        >>> Team(Workers(rank=1, size=2), batch_size=12, accumulate=2).rows.indices.tolist()
        [3, 4, 5, 9, 10, 11]
    """

    def __init__(self, workers: Workers = ALONE, *, batch_size: int = 1, accumulate: int = 1) -> None:
        self.workers = workers
        self.rows: Rows | None = None
        self.part_rows: Rows | None = None
        self.share = 1.0
        if workers.alone:
            return
        part = batch_size // accumulate
        if part < workers.size:
            raise UserError(
                f"expected at least one image of a batch for each of {workers.size} processes, got {part}; "
                "raise --batch-size, lower --accumulate or start fewer processes"
            )
        runs = [torch.arange(part * r // workers.size, part * (r + 1) // workers.size) for r in range(workers.size)]
        self.part_rows = Rows(runs[workers.rank], part)
        self._taken = [torch.cat([run + start for start in range(0, batch_size, part)]) for run in runs]
        self.rows = Rows(self._taken[workers.rank], batch_size)
        self.share = len(runs[workers.rank]) / part

    def wrapped(self, network: nn.Module) -> nn.Module:
        """`network` as it is to be called for gradients of its parameters, which then are those of the whole batch."""
        if self.workers.alone:
            return network
        device = next(network.parameters()).device
        ids = [device] if device.type == "cuda" else None
        # Statistics are shared after the step: broadcasting them before each pass would undo a pass before it.
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        given: dict[str, Any] = {option: False}
        return DistributedDataParallel(network, device_ids=ids, **given)

    @contextlib.contextmanager
    def summing(self, network: nn.Module, *, last: bool) -> Iterator[None]:
        """Within it a backward pass through a wrapped network adds to the gradients; in the last they are averaged."""
        if isinstance(network, DistributedDataParallel) and not last:
            with network.no_sync():
                yield
        else:
            yield

    def mean(self, value: float) -> float:
        """The mean over a part's rows, of which `value` is that over this process's; NaN where any is."""
        if self.workers.alone:
            return value
        share = torch.tensor(value * self.share, dtype=torch.float64)
        dist.all_reduce(share)
        return float(share)

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss whose gradients, averaged over processes of equal weight, are those of the mean over all rows."""
        return loss if self.workers.alone else loss * (self.share * self.workers.size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes, by rows, in place."""
        if self.workers.alone or not tensors:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors]) * self.share
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def average_statistics(self, network: nn.Module) -> None:
        """Batch norm's running statistics become the same in all processes: the mean, by rows."""
        self.average([b for b in network.buffers() if b.is_floating_point()])

    def whole(self, tensor: Tensor) -> Tensor:
        """Every process's rows (n, …) of a batch, put together in the batch's order (N, …)."""
        if self.rows is None:
            return tensor
        # All must send as much: those with fewer rows fill up.
        most = max(map(len, self._taken))
        mine = tensor.new_zeros(most, *tensor.shape[1:])
        mine[: len(tensor)] = tensor.detach()
        everyone = [torch.empty_like(mine) for _ in self._taken]
        dist.all_gather(everyone, mine)
        put = tensor.new_empty(self.rows.total, *tensor.shape[1:])
        for indices, values in zip(self._taken, everyone, strict=True):
            put[indices.to(put.device)] = values[: len(indices)]
        return put


SINGLE = Team()
"""One process that takes every row."""


def synchronised(network: nn.Module, device: torch.device, workers: Workers) -> nn.Module:
    """`network` with batch norm over the images of all processes, in the same parameters.

    Raises:
        UserError: PyTorch has that for graphics cards only.
    """
    if workers.alone:
        return network
    if device.type == "cpu":
        raise UserError(
            "expected a graphics card for --sync-batch-norm, which PyTorch has for no processor, got cpu; leave it out"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
