"""How the processes that ``torchrun`` starts find each other, also after it has restarted them.

``torchrun`` starts all processes of a job again when one was lost; each such round shares one key-value store with the
rounds before. PyTorch's own ``init_process_group`` writes each process's address in it under the same key in every
round, so that after a restart some read the addresses of dead processes: they are refused, or wait for ever (seen with
PyTorch 2.13). Here each round has keys of its own.
"""

# torch.distributed documents the stores as its own, but imports them in a way that type checkers take for private.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import datetime
import json
import os
import time
import uuid

import torch.distributed as dist

PATIENCE = datetime.timedelta(days=30)
"""How long processes wait for each other. A slow one may need hours more than a quick one; ``torchrun`` ends it."""

PAUSE = 0.05
"""Seconds between looks into the store: waiting within it, a process would not hear Ctrl-C."""


def job_store() -> dist.Store | None:
    """The store that ``torchrun`` keeps as long as the job lasts, or None where it keeps none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=PATIENCE)
    return dist.PrefixStore(f"robustsynth {os.environ.get('TORCHELASTIC_RUN_ID', '')}", store)


def join_round(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Wait for the other processes of this round, and give a store that they share and no earlier round has used.

    The first process opens a round with a new number. Every other one writes a random name there, and takes part once
    the first has listed that name: a round that an earlier process of its rank took part in lists another name.

    Args:
        store: that of the job, which may hold rounds whose processes are dead.
        rank: of this process, each of 0 to `size` - 1 once.
        size: number of processes.

    Example:
        >>> alone = join_round(dist.HashStore(), rank=0, size=1)
        >>> alone.set("key", "value")
    """
    if rank == 0:
        number = str(store.add("rounds", 1))
        here = _round(store, number)
        store.set("open", number)
        names = []
        for other in range(1, size):
            while not here.check([f"name {other}"]):
                time.sleep(PAUSE)
            names.append(here.get(f"name {other}").decode())
        here.set("members", json.dumps(names))
        return here
    name = uuid.uuid4().hex
    entered = ""
    while True:
        if store.check(["open"]):
            number = store.get("open").decode()
            here = _round(store, number)
            if number != entered:
                here.set(f"name {rank}", name)
                entered = number
            if here.check(["members"]) and name in json.loads(here.get("members")):
                return here
        time.sleep(PAUSE)


def _round(store: dist.Store, number: str) -> dist.Store:
    return dist.PrefixStore(f"round {number}", store)


def note_begun() -> None:
    """Remember, as long as the job of ``torchrun`` lasts, that its work has begun."""
    store = job_store()
    if store is not None:
        store.set("begun", "yes")


def was_begun() -> bool:
    """Whether an earlier round of this job of ``torchrun`` began its work: its processes were lost, and these go on.

    The number of restarts, which counts where ``torchrun`` keeps no store, is that of this machine alone, and counts
    rounds that ended with a user's mistake too.
    """
    store = job_store()
    if store is not None:
        return store.check(["begun"])
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
