"""The processes of a job that ``torchrun`` starts: how they find each other, share work and exchange values.

``torchrun`` starts all processes of a job again when one was lost; each such round shares one key-value store with the
rounds before. PyTorch's own ``init_process_group`` uses the same keys in every round, so that after a restart some
processes read the addresses of dead ones: they are refused, or wait for ever (seen with PyTorch 2.13). Here each round
has keys of its own.
"""

# torch.distributed documents the stores as its own, but imports them in a way that type checkers take for private.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from robustsynth.errors import UserError

T = TypeVar("T")

LONGEST_WAIT = datetime.timedelta(days=30)
"""How long processes wait for each other. A slow one may need hours more than a quick one; ``torchrun`` ends it."""

PAUSE = 0.05
"""Seconds between looks into the store: waiting within it, a process would not hear Ctrl-C."""

FIRST_REPORTS = 5
"""Seconds in which the first process has reported an error that all met, and ``torchrun`` has ended the others."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says where another process is gone."""


@dataclass(frozen=True)
class Workers:
    """`size` processes, of which this one is number `rank`; alone by default.

    What waits for the other processes (`total` and all below it) is for use within `joined`.

    Example:
        >>> Workers(rank=1, size=3).share(range(8))
        range(1, 8, 3)
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Workers:
        """What ``torchrun`` says in RANK and WORLD_SIZE; alone without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, items: Any) -> Any:
        """The part of `items`, a sequence or an array, that this process works on: every `size`-th."""
        return items[self.rank :: self.size]

    def device(self, asked: str | None) -> str | None:
        """The device `asked` for; of several processes each gets a graphics card of its own, where there are any."""
        if asked in (None, "cuda") and not self.alone and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        return asked

    @contextlib.contextmanager
    def joined(self, device: torch.device | str | None = None) -> Iterator[None]:
        """Within it the processes can exchange tensors: on a processor by gloo, on a graphics card `device` by nccl."""
        if self.alone or dist.is_initialized():
            yield
            return
        cuda = device is not None and torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(torch.device(device))  # pyright: ignore[reportArgumentType]
        store = job_store()
        among: dict[str, Any] = {}
        if store is not None:
            among = {"store": join_round(store, self.rank, self.size), "rank": self.rank, "world_size": self.size}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT, **among)
        try:
            yield
        except BaseException as error:
            # Its frames hold what the finally clause is to free.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            dist.destroy_process_group()
            # What holds the group may hold itself: a group that is freed when the interpreter ends aborts the process
            # ("terminate called without an active exception").
            gc.collect()

    @contextlib.contextmanager
    def errors_reported_once(self) -> Iterator[None]:
        """Within it an error that all processes meet is reported by the first alone, any other one by who met it.

        Where a process is gone that others wait for, they say so in a line. To be entered within `joined`: were the
        group to end before a process has reported, the others would fail too, and ``torchrun`` would end them all.
        """
        named = f"process {self.rank + 1} of {self.size}"
        try:
            yield
        except UserError as error:
            if self.first:
                raise
            # torchrun ends all processes of a machine where one has failed.
            time.sleep(FIRST_REPORTS)
            raise UserError(f"{named}, on {platform.node()}: {error}") from None
        except RuntimeError as error:
            if self.alone or not any(sign in str(error) for sign in LOST):
                raise
            print(f"{named}: another process of this run is gone, so this one ends", file=sys.stderr)
            raise SystemExit(1) from None

    def total(self, counts: Sequence[int]) -> list[int]:
        """The sums of all processes' counts."""
        if self.alone:
            return list(counts)
        sums = torch.tensor(list(counts), dtype=torch.int64)
        dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.total([0])

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process."""
        return [count > 0 for count in self.total([int(flag) for flag in flags])]

    def agreed(self, value: Callable[[], T]) -> T:
        """Call `value` in the first process alone; all of them return its result, or raise its `UserError`."""
        if self.alone:
            return value()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = value()
            except UserError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]

    def gathered(self, value: T) -> list[T]:
        """Every process's `value`, by rank."""
        found: list[Any] = [value] * self.size
        if not self.alone:
            dist.all_gather_object(found, value)
        return found

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process, then in all others, which find what the first wrote to the disk."""
        if not self.first:
            self.wait()
        done = work()
        if self.first:
            self.wait()
        return done


ALONE = Workers()


class Team:
    """The processes that train one network together, within ``workers.joined``.

    A step's batch of `batch_size` images is the same whatever their number. It is worked through in `accumulate`
    parts, and of each part every process takes its own run of images.

    Attributes:
        rows: (n,) integers, the places in the batch that this process takes; None for all of them.
        count: how many these are.
        share: of a part's images, that this process takes.

    Example:
        >>> Team(Workers(rank=1, size=2), batch_size=12, accumulate=2).rows.tolist()
        [3, 4, 5, 9, 10, 11]
    """

    def __init__(self, workers: Workers = ALONE, *, batch_size: int = 1, accumulate: int = 1) -> None:
        self.workers, self.batch_size, self.count, self.share = workers, batch_size, batch_size, 1.0
        self.rows: Tensor | None = None
        if workers.alone:
            return
        part = batch_size // accumulate
        if part < workers.size:
            raise UserError(
                f"expected at least one image of a batch for each of {workers.size} processes, got {part}; "
                "raise --batch-size, lower --accumulate or start fewer processes"
            )
        first, end = (part * rank // workers.size for rank in (workers.rank, workers.rank + 1))
        self.rows = torch.cat([torch.arange(first, end) + start for start in range(0, batch_size, part)])
        self.count, self.share = len(self.rows), (end - first) / part

    def own(self, batch: Tensor) -> Tensor:
        """This process's images of a batch (N, …) of all processes."""
        return batch if self.rows is None else batch[self.rows.to(batch.device)]

    def gathered(self, images: Tensor) -> Tensor:
        """Every process's images (n, …) of a batch, put together in the batch's order (N, …)."""
        if self.rows is None:
            return images
        # Each adds its own to zeros: numbers of images differ, which gathering does not allow.
        batch = images.new_zeros(self.batch_size, *images.shape[1:])
        batch[self.rows.to(batch.device)] = images.detach()
        dist.all_reduce(batch)
        return batch

    def mean(self, value: float) -> float:
        """The mean over a part's images, of which `value` is that over this process's; NaN where any is."""
        mean = torch.tensor(value, dtype=torch.float64)
        self.average([mean])
        return float(mean)

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


def job_store() -> dist.Store | None:
    """The store that ``torchrun`` keeps as long as the job lasts, or None where it keeps none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=LONGEST_WAIT)
    return dist.PrefixStore(f"robustsynth {os.environ.get('TORCHELASTIC_RUN_ID', '')}", store)


def join_round(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Wait for the `size` processes of this round, and give a store that they share and no earlier round has used.

    The first process opens a round with a new number. Every other one writes a random name there, and takes part once
    the first has listed that name: a round that an earlier process of its rank took part in lists another name.
    """
    if rank == 0:
        number = str(store.add("rounds", 1))
        here = dist.PrefixStore(f"round {number}", store)
        store.set("open", number)
        names = []
        for other in range(1, size):
            while not here.check([f"name {other}"]):
                time.sleep(PAUSE)
            names.append(here.get(f"name {other}").decode())
        here.set("members", json.dumps(names))
        return here
    name, entered = uuid.uuid4().hex, ""
    while True:
        if store.check(["open"]):
            number = store.get("open").decode()
            here = dist.PrefixStore(f"round {number}", store)
            if number != entered:
                here.set(f"name {rank}", name)
                entered = number
            if here.check(["members"]) and name in json.loads(here.get("members")):
                return here
        time.sleep(PAUSE)


def note_begun() -> None:
    """Remember, as long as the job of ``torchrun`` lasts, that its work has begun."""
    if (store := job_store()) is not None:
        store.set("begun", "yes")


def was_begun() -> bool:
    """Whether an earlier round of this job of ``torchrun`` began its work: its processes were lost, and these go on."""
    if (store := job_store()) is not None:
        return store.check(["begun"])
    # The number of restarts is that of this machine alone, and counts rounds that ended with a user's mistake too.
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
