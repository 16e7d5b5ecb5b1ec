"""Which precision and batch size are fastest here: measured once per model and machine, then remembered.

On some processors bfloat16 is 2.6 to 4 times as fast as float32, on others 4 to 500 times slower, and libraries claim
support on both. So a forward and backward pass is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsynth.files import cache_folder, write_json

PRECISIONS = ("float32", "bfloat16")

BUDGET = 0.5
"""Seconds that comparing precisions may take; comparing batch sizes may take as many again."""


@dataclass(frozen=True)
class Execution:
    """How a model is run: `precision`, `batch_size` (images a batch), and whether these were `measured` here."""

    precision: str
    batch_size: int
    measured: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For ``settings.json`` and checkpoints."""
        return dataclasses.asdict(self)


def machine_name(device: torch.device | None = None) -> str:
    """The processor that `device` is, as people know it, with the number of threads used."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Not Linux: the name from the platform module has to do.
        named = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = named[1].strip() if named else name
    return f"{name}, {torch.get_num_threads()} threads"


def processor_kind() -> str:
    """Which fast arithmetic the processor has, as far as PyTorch can tell: for cache keys and benchmark tables.

    Processors of one model name differ in what their hypervisor lets through.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    wanted = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    found = [name for name in wanted if capabilities.get(name)]
    return "+".join(found) or torch.backends.cpu.get_cpu_capability()


def chosen_execution(
    frozen: Callable[[str], nn.Module],
    *,
    network: nn.Module,
    image_size: int | None,
    channels: int,
    device: torch.device,
    precision: str | None = None,
    batch_size: int | None = None,
    images: int | None = None,
) -> Execution:
    """What was given, completed by what is remembered, completed by what is measured now.

    Times of batches are remembered, not the size that was best: which is best depends on how many images there are.

    Args:
        frozen: gives the network as it runs in a precision, normalisation inside.
        network: whose structure, with the other arguments and the machine, is what is remembered by.
        image_size: side of the images to measure with, in pixels; 32 where None.
        channels: of the images.
        device: to measure on.
        precision: as for `Classifier.frozen`; so are `batch_size` and `images`.
    """
    if precision is not None and batch_size is not None:
        return Execution(precision, batch_size, measured=False)
    described = [repr(network), image_size, channels, machine_name(device), processor_kind(), torch.__version__]
    file = f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]}.json"
    known = _remembered(file)
    before = json.dumps(known)
    side = image_size or 32
    sizes = batch_sizes(side, device)
    sizes = [n for place, n in enumerate(sizes) if place == 0 or images is None or sizes[place - 1] < images]
    example = torch.rand(sizes[-1], channels, side, side, device=device)
    if precision is None:
        precision = known["precision"]
    if precision is None:
        # Always on batches of one size, so that it does not depend on the number of images.
        number = 8 if side <= 64 else 2 if side <= 160 else 1
        compared = torch.rand(number, *example.shape[1:], device=device)
        precision = known["precision"] = fastest_precision({p: frozen(p) for p in PRECISIONS}, compared)
    if batch_size is None:
        times = {int(n): seconds for n, seconds in known["seconds"].get(precision, {}).items()}
        if len(sizes) > 1 and not set(sizes) <= set(times):
            times |= seconds_a_batch(frozen(precision), example, sizes)
            known["seconds"][precision] = times
        batch_size = best_batch(times, sizes, images)
    # A cache that cannot be written (a full disk, a read-only home) costs a measurement each time, not the images.
    if json.dumps(known) != before:
        with contextlib.suppress(OSError):
            write_json(cache_folder("execution") / file, known)
    return Execution(precision, batch_size, measured=True)


def batch_sizes(image_size: int, device: torch.device) -> Sequence[int]:
    """Candidates, smallest first. A processor gains little beyond a few; a graphics card gains up to hundreds."""
    if device.type == "cuda":
        return (1, 4, 16, 32, 64, 128, 256) if image_size <= 64 else (1, 4, 16, 32, 64)
    return (1, 2, 4, 8, 16, 32) if image_size <= 64 else (1, 2, 4, 8, 16) if image_size <= 160 else (1, 2, 4, 8)


def fastest_precision(candidates: dict[str, nn.Module], images: Tensor) -> str:
    """The precision whose forward and backward pass takes least time.

    float32 goes first and sets the limit: a candidate that is slower on a single image by far is not tried on a
    whole batch, because it may be slower by hundreds of times.
    """
    names = list(candidates)
    best, limit = names[0], _seconds(candidates[names[0]], images, BUDGET / 2)
    for name in names[1:]:
        one = _seconds(candidates[name], images[:1], 0.0)
        if one > 2 * limit:
            continue
        taken = _seconds(candidates[name], images, BUDGET / 2)
        # Twice in turn, so that a hiccup of the machine during one of them does not decide.
        again = _seconds(candidates[best], images, BUDGET / 4)
        if taken < min(limit, again):
            best, limit = name, taken
    return best


def seconds_a_batch(network: nn.Module, images: Tensor, sizes: Sequence[int]) -> dict[int, float]:
    """The least time of a forward and backward pass of a batch of each size."""
    # The sizes take turns, so that a hiccup of the machine during one of them does not decide. The first turn warms up.
    each = dict.fromkeys(sizes, float("inf"))
    started, turns = time.perf_counter(), 0
    while turns < 2 or (time.perf_counter() - started < BUDGET and turns < 20):
        for n in sizes:
            each[n] = min(each[n], _seconds(network, images[:n], 0.0))
        turns += 1
    return each


def best_batch(times: dict[int, float], sizes: Sequence[int], images: int | None) -> int:
    """The smallest of `sizes` (smallest first) with which all images take the least time, to half a percent, padding
    included; where `images` is None there are so many that padding does not count.

    Example:
        >>> best_batch({1: 1.0, 2: 1.5, 4: 2.0}, [1, 2, 4], 3), best_batch({1: 1.0, 2: 1.5, 4: 2.9}, [1, 2, 4], 5)
        (4, 2)
    """
    if len(sizes) == 1:
        return sizes[0]
    total = {n: times[n] / n if images is None else -(-images // n) * times[n] for n in sizes}
    return next(n for n in sizes if total[n] <= 1.005 * min(total.values()))


def _seconds(network: nn.Module, images: Tensor, budget: float) -> float:
    """The least time of a forward and backward pass, over as many as `budget` seconds hold (at least one)."""

    def once() -> float:
        variable = images.detach().requires_grad_(True)
        started = time.perf_counter()
        torch.autograd.grad(network(variable).sum(), variable)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - started

    first = once()  # Also warms up: kernels are chosen and memory is allocated in the first pass.
    if budget == 0 or first > 4 * budget:
        return first
    times = [once()]
    while sum(times) < budget and len(times) < 50:
        times.append(once())
    return min(times)


def _remembered(file: str) -> dict[str, Any]:
    """The fastest precision and the times of batches by precision that were measured before, if they were."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads((cache_folder("execution") / file).read_text(encoding="utf-8"))
        times = [(int(n), each) for seconds in found["seconds"].values() for n, each in seconds.items()]
        if found["precision"] in (None, *PRECISIONS) and all(n > 0 and each > 0 for n, each in times):
            return found
    return {"precision": None, "seconds": {}}
