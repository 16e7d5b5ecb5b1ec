"""Which precision and batch size are fastest here: measured once per model and machine, then remembered.

Support flags do not tell. On some processors bfloat16 is 2.6 to 4 times as fast as float32, on others 4 to 500
times slower, and libraries claim support on both. So a forward and backward pass is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
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
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # Not Linux: the name from the platform module has to do.
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
) -> Execution:
    """What was given, completed by what is remembered, completed by what is measured now.

    Args:
        frozen: gives the network as it runs in a precision, normalisation inside.
        network: whose structure, with the other arguments and the machine, is what is remembered by.
        image_size: side of the images to measure with, in pixels; 32 where None.
        channels: of the images.
        device: to measure on.
        precision: ``"float32"``, ``"bfloat16"``, or None to measure.
        batch_size: or None to measure.
    """
    if precision is not None and batch_size is not None:
        return Execution(precision, batch_size, measured=False)
    known_by = [repr(network), image_size, channels, precision, batch_size, machine_name(device), processor_kind()]
    key = hashlib.sha256(json.dumps([*known_by, torch.__version__]).encode()).hexdigest()[:24]
    if (remembered := _remembered(key)) is not None:
        return remembered
    side = image_size or 32
    sizes = batch_sizes(side, device)
    example = torch.rand(sizes[-1], channels, side, side, device=device)
    if precision is None:
        precision = fastest_precision({p: frozen(p) for p in PRECISIONS}, example[: sizes[0]])
    if batch_size is None:
        batch_size = smallest_good_batch(frozen(precision), example, sizes)
    execution = Execution(precision, batch_size, measured=True)
    # A cache that cannot be written (a full disk, a read-only home) costs a measurement each time, not the images.
    with contextlib.suppress(OSError):
        write_json(cache_folder("execution") / f"{key}.json", execution.as_dict())
    return execution


def batch_sizes(image_size: int, device: torch.device) -> Sequence[int]:
    """Candidates, smallest first. A processor gains little beyond a few; a graphics card gains up to hundreds."""
    if device.type == "cuda":
        return (32, 64, 128, 256) if image_size <= 64 else (16, 32, 64)
    return (8, 16, 32) if image_size <= 64 else (2, 4, 8) if image_size <= 160 else (1, 2, 4)


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


def smallest_good_batch(network: nn.Module, images: Tensor, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` whose time an image is the best to half a percent: small batches waste less padding.

    The sizes take turns, so that a hiccup of the machine during one of them does not decide.
    """
    rounds = 3
    each = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds):
        for n in sizes:
            each[n] = min(each[n], _seconds(network, images[:n], BUDGET / rounds / len(sizes)) / n)
    return next(n for n in sizes if each[n] <= 1.005 * min(each.values()))


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


def _remembered(key: str) -> Execution | None:
    """What was measured before; None where nothing was, or where the file is damaged or of another version."""
    try:
        found = Execution(**json.loads((cache_folder("execution") / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.precision in PRECISIONS and type(found.batch_size) is int and found.batch_size > 0 else None
