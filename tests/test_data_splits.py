"""Names of splits, and holding out."""

from __future__ import annotations

import numpy as np
import pytest

from robustsynth.data import hold_out
from robustsynth.data.rows import choose_splits
from robustsynth.errors import UserError


@pytest.mark.parametrize(
    ("available", "wanted", "chosen"),
    [
        (["test", "train", "val"], "test", ("test",)),
        (["train", "val"], "test", ("val",)),
        (["train", "test"], "validation", ("test",)),
        (["train", "test", "val"], "validation", ("val",)),  # rather than the test images
        (["test", "train", "extra"], "all", ("train", "extra", "test")),
        (["extra"], "extra", ("extra",)),
    ],
)
def test_the_split_that_answers_to_a_name(available, wanted, chosen):
    assert choose_splits(available, wanted, where="here") == chosen


@pytest.mark.parametrize(("available", "wanted"), [(["test"], "train"), (["train"], "extra"), ([], "all")])
def test_an_absent_split_is_refused(available, wanted):
    listed = "'t" if available else "none"
    with pytest.raises(UserError, match=f"here has no split '{wanted}'; it has: {listed}"):
        choose_splits(available, wanted, where="here")


@pytest.mark.parametrize(("total", "held", "seed"), [(10, 3, 0), (1000, 100, 7), (5, 0, 0), (5, 5, 1)])
def test_hold_out_is_torch_randperm(total, held, seed):
    import torch

    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    held_indices, kept = hold_out(total, held, seed)
    assert held_indices.dtype == kept.dtype == np.int64
    assert held_indices.tolist() == order[:held]
    assert kept.tolist() == order[held:]


def test_holding_out_more_than_there_are_is_refused():
    with pytest.raises(UserError, match="between 0 and 3"):
        hold_out(3, 4)
