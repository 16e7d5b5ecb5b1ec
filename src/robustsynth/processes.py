"""The processes of a job that ``torchrun`` starts: how they share work, wait for each other and exchange values."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from robustsynth.rendezvous import PATIENCE, job_store, join_round

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """`size` processes, of which this one is number `rank`; alone by default.

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
        if asked in (None, "cuda") and self.size > 1 and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        return asked

    @contextlib.contextmanager
    def joined(self, device: torch.device | str | None = None) -> Iterator[None]:
        """A context in which the processes can wait for each other and exchange tensors on `device`.

        On a processor they use gloo, on graphics cards nccl.
        """
        if self.size == 1 or dist.is_initialized():
            yield
            return
        cuda = device is not None and torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(torch.device(device))  # pyright: ignore[reportArgumentType]
        store = job_store()
        among: dict[str, Any] = {}
        if store is not None:
            among = {"store": join_round(store, self.rank, self.size), "rank": self.rank, "world_size": self.size}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE, **among)
        try:
            yield
        except BaseException as error:
            # Its frames hold what the finally clause is to free.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            dist.destroy_process_group()
            # A DistributedDataParallel holds the group, and often itself: a group that is freed when the interpreter
            # ends aborts the process ("terminate called without an active exception").
            gc.collect()

    def total(self, counts: Sequence[int]) -> list[int]:
        """The sums of all processes' counts; waits for all of them. Within `joined`."""
        if self.size == 1:
            return list(counts)
        sums = torch.tensor(list(counts), dtype=torch.int64)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process; waits for all of them. Within `joined`."""
        return [count > 0 for count in self.total([int(flag) for flag in flags])]

    def agreed(self, value: Callable[[], T]) -> T:
        """Call `value` in the first process alone, and return its result in all of them. Within `joined`."""
        if self.size == 1:
            return value()
        box = [value() if self.first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # pyright: ignore[reportReturnType]

    def gathered(self, value: T) -> list[T]:
        """Every process's `value`, by rank; waits for all of them. Within `joined`."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process, then in all others, which find what the first wrote to the disk."""
        if self.size == 1:
            return work()
        if self.first:
            done = work()
            self.wait()
            return done
        self.wait()
        return work()

    def wait(self) -> None:
        """Wait until every process has called this. Within `joined`."""
        self.total([0])


ALONE = Workers()
