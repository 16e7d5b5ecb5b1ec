"""Random numbers: one generator for each image, so that no image depends on the others of its batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from robustsynth.errors import UserError


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU, whatever the device, that depends on every number of `key` and on nothing else.

    Raises:
        UserError: a number below 0.

    Example:
        >>> a, b = generator(0, 17), generator(0, 17)
        >>> bool(torch.equal(torch.randn(3, generator=a), torch.randn(3, generator=b)))
        True
    """
    if min(key) < 0:
        raise UserError(f"expected a seed of 0 or more, got {min(key)}")
    # SeedSequence mixes the numbers, so that neighbouring seeds give unrelated streams.
    state = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One generator for each image index."""
    return [generator(seed, int(index)) for index in indices]


def normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers (N, *shape), row i drawn from `generators[i]`; float32."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def uniform(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1) of shape (N, *shape), row i drawn from `generators[i]`; float32."""
    return torch.stack([torch.rand(tuple(shape), generator=g) for g in generators])
