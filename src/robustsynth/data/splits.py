"""How splits are named in files, and how some images are held out of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustsynth.errors import UserError

VALIDATION_NAMES = ("validation", "val", "valid")
# What people call the images that are not trained on; where one is missing another stands in for it.
EVALUATION_NAMES = ("test", *VALIDATION_NAMES)
SPLIT_NAMES = ("train", *EVALUATION_NAMES)


def choose_splits(available: Sequence[str], wanted: str, *, where: str) -> tuple[str, ...]:
    """The splits among `available` that answer to `wanted`, which may be ``"all"``.

    Raises:
        UserError: there is none.

    Example:
        >>> choose_splits(["train", "val"], "test", where="pets")
        ('val',)
        >>> choose_splits(["test", "train"], "all", where="pets")
        ('train', 'test')
    """
    ordered = sorted(available, key=lambda name: (name != "train", name))
    if wanted == "all" and ordered:
        return tuple(ordered)
    stand_ins = VALIDATION_NAMES if wanted == "test" else (*VALIDATION_NAMES, "test")
    for name in (wanted, *(stand_ins if wanted in EVALUATION_NAMES else ())):
        if name in available:
            return (name,)
    listed = ", ".join(map(repr, ordered)) or "none"
    raise UserError(f"{where} has no split {wanted!r}; it has: {listed}. Ask for one of these, or for 'all'.")


def hold_out(count_total: int, held: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split ``range(count_total)`` at random into `held` indices held out and the others kept.

    The shuffle is `torch.randperm` with a generator of its own, so that a seed means the same split for ever.

    Args:
        count_total: how many there are.
        held: how many to hold out, 0 to `count_total`.
        seed: of the shuffle.

    Returns:
        Two int64 arrays, of shapes (held,) and (count_total - held,).

    Raises:
        UserError: `held` is negative or more than there are.

    Example:
        >>> held, kept = hold_out(5, 2)
        >>> len(held), sorted([*held.tolist(), *kept.tolist()])
        (2, [0, 1, 2, 3, 4])
    """
    if not 0 <= held <= count_total:
        raise UserError(f"expected between 0 and {count_total} images to hold out, got {held}.")
    import torch

    order = torch.randperm(count_total, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[:held].copy(), order[held:].copy()
