"""The recipes of training: each learns and resumes exactly, its formula is its paper's, and collapse is caught."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import train_until
from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.networks import build_network
from robustsynth.randomness import image_generators
from robustsynth.training.attack import divergence, recipe_attack
from robustsynth.training.checkpoints import read_checkpoint
from robustsynth.training.data import cutmix
from robustsynth.training.settings import TrainSettings, settings_from
from robustsynth.training.step import mart_loss, perturbed_weights, recipe_loss
from robustsynth.training.trainer import Trainer

COMMON: dict[str, Any] = {
    "architecture": "small-cnn",
    "width": 2,
    "eps": 0.2,
    "attack_steps": 1,
    "attack_step_size": 0.2,
    "epochs": 2,
    "batch_size": 12,
    "held_out": 6,
    "learning_rate": 0.1,
    "evaluate_every": 5,
    "guard_every": 2,
}
RECIPES: dict[str, dict[str, Any]] = {
    "trades": {"recipe": "trades"},
    "trades + awp + cutmix": {"recipe": "trades", "awp": 0.01, "cutmix": 0.5, "guard_every": 0},
    "mart": {"recipe": "mart"},
    "free": {"recipe": "free", "free_replays": 2},
    "free, linf, in parts": {"recipe": "free", "free_replays": 2, "norm": "linf", "eps": 0.02, "accumulate": 2},
    "fast": {"recipe": "fast"},
    "fast, linf": {"recipe": "fast", "norm": "linf", "eps": 0.02, "schedule": "one-cycle"},
    "pgd + awp": {"awp": 0.01, "eps_warmup": 0.5},
    "pgd + cutmix in parts": {"cutmix": 0.7, "accumulate": 3, "label_smoothing": 0.1},
    "pgd, dropout": {"architecture": "mobilenet-v2", "width": 4, "attack_statistics": "train", "epochs": 6},
    "pgd, statistics of the batch": {
        "attack_statistics": "train",
        "architecture": "resnet18",
        "batch_size": 24,
        "epochs": 5,
    },
}


def pictures(count: int = 54) -> ImageData:
    """Two classes that differ in colour."""
    draw = np.random.default_rng(0)
    labels = (np.arange(count) % 2).astype(np.int64)
    colour = np.array([[170, 90, 110], [90, 170, 130]])[labels]
    images = np.clip(colour[:, None, None] + draw.normal(0, 30, (count, 8, 8, 3)), 0, 255).astype(np.uint8)
    return ImageData(images, labels, ("red", "green"), "toys", "CC0-1.0", "toys", (0.5,) * 3, (0.25,) * 3)


def made(out: Path, *, data: ImageData | None = None, resume: bool = False, **changed: Any) -> Trainer:
    precision = None if resume else "float32"
    chosen = TrainSettings(**(COMMON | changed))
    return Trainer(chosen, data or pictures(), out, device="cpu", precision=precision, resume=resume)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(contents: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by the path to it."""
    if isinstance(contents, torch.Tensor):
        return {prefix: contents}
    items = (
        contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    )
    return {path: value for key, part in items for path, value in tensors(part, f"{prefix}.{key}").items()}


def assert_same_checkpoint(first: Path, second: Path) -> None:
    ours, theirs = read_checkpoint(first), read_checkpoint(second)
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    for name in ("step", "attack_level", "collapses"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_and_goes_on_exactly(tmp_path: Path, name: str) -> None:
    losses = train_until(made(tmp_path / "whole", **RECIPES[name]))
    steps = len(losses)
    assert sum(losses[-2:]) < sum(losses[:2])
    stop = steps // 2 + 1  # In the second epoch.
    train_until(made(tmp_path / "parts", **RECIPES[name]), stop)
    assert read_checkpoint(tmp_path / "parts")["step"] == stop
    torch.rand(3)  # The global stream must not matter.
    trainer = made(tmp_path / "parts", resume=True, **RECIPES[name])
    trainer.run()
    assert not trainer.state.collapses
    assert_same_checkpoint(tmp_path / "parts", tmp_path / "whole")


def test_every_recipe_is_in_the_table() -> None:
    assert {row.get("recipe", "pgd") for row in RECIPES.values()} == {"pgd", "trades", "mart", "free", "fast"}


# Losses


def test_the_divergence_is_nothing_at_no_perturbation_and_more_elsewhere() -> None:
    first, second = torch.randn(2, 5, 4, generator=stream())
    assert torch.equal(divergence(first, first), torch.zeros(5))
    assert bool((divergence(first, second) > 0).all())
    probabilities = first.softmax(1), second.softmax(1)
    expected = (probabilities[0] * (probabilities[0] / probabilities[1]).log()).sum(1)
    assert torch.allclose(divergence(first, second), expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trades_without_perturbation_is_the_clean_loss(smoothing: float) -> None:
    images, labels = torch.rand(6, 1, 1, 3, generator=stream()), torch.arange(6) % 3
    chosen = TrainSettings(recipe="trades", label_smoothing=smoothing, trades_beta=6.0)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return 5 * x.flatten(1)

    clean = F.cross_entropy(logits(images), labels, label_smoothing=smoothing)
    assert torch.allclose(recipe_loss(logits, images, images, labels, chosen), clean)
    moved = (images + 0.1 * torch.randn(images.shape, generator=stream(1))).clamp(0, 1)
    expected = clean + 6 * divergence(logits(images), logits(moved)).mean()
    assert torch.allclose(recipe_loss(logits, images, moved, labels, chosen), expected)


def test_marts_loss_is_its_formula() -> None:
    clean, attacked = torch.randn(2, 7, 4, generator=stream(), dtype=torch.float64)
    labels = torch.arange(7) % 4
    expected = 0.0
    for c, a, y in zip(clean.softmax(1), attacked.softmax(1), labels.tolist(), strict=True):
        others = max(float(a[k]) for k in range(4) if k != y)
        boosted = -float(a[y].log()) - np.log(1 - others)
        kl = float((c * (c / a).log()).sum())
        expected += (boosted + 3.0 * kl * (1 - float(c[y]))) / 7
    assert mart_loss(clean, attacked, labels, weight=3.0).item() == pytest.approx(expected, rel=2e-3)
    sure_and_wrong = torch.tensor([[0.0, 200.0]])
    assert bool(torch.isfinite(mart_loss(sure_and_wrong, sure_and_wrong, torch.tensor([0]), weight=5.0)))


# Attacks


class Bent(nn.Module):
    """A small smooth network."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 4 * self.layers(images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_noise_of_fast_is_not_clipped(norm: str) -> None:
    """Noise of k·eps and a step of eps add up: with no projection both are found again in the result."""
    network, eps = Bent().requires_grad_(False), 0.04
    images = torch.full((5, 3, 4, 4), 0.5)
    labels = torch.arange(5) % 3
    chosen = TrainSettings(recipe="fast", norm=norm, eps=eps, fast_noise=2.0)
    got = recipe_attack(network, images, labels, chosen, [stream()] * 5) - images
    size = got.flatten(1).norm(dim=1) if norm == "l2" else got.flatten(1).abs().amax(1)
    assert bool((size > 1.2 * eps).all())
    assert bool((size <= 3 * eps * (1 + 1e-4)).all())
    plain = recipe_attack(network, images, labels, dataclasses.replace(chosen, fast_noise=0.0), [stream()] * 5) - images
    size = plain.flatten(1).norm(dim=1) if norm == "l2" else plain.flatten(1).abs().amax(1)
    assert torch.allclose(size, torch.full((5,), eps), atol=1e-5)


def test_trades_attacks_the_divergence() -> None:
    network, images = Bent().requires_grad_(False), torch.rand(8, 3, 4, 4, generator=stream())
    chosen = TrainSettings(recipe="trades", eps=0.5, attack_steps=4, attack_step_size=0.25)
    labels = torch.zeros(8, dtype=torch.long)
    attacked = recipe_attack(network, images, labels, chosen, image_generators(0, range(8)))
    # The labels do not matter to it.
    assert torch.equal(attacked, recipe_attack(network, images, labels + 1, chosen, image_generators(0, range(8))))
    reference = network(images)
    aside = images + 0.5 * F.normalize(torch.randn(8, 48, generator=stream(1))).view_as(images)
    for place, factor in ((images, 1), (aside.clamp(0, 1), 2)):
        found, other = (divergence(reference, network(x)) for x in (attacked, place))
        assert bool((found > factor * other).all())
    assert bool(((attacked - images).flatten(1).norm(dim=1) <= 0.5 + 1e-5).all())


def test_the_attack_maximises_the_mixed_labels_loss() -> None:
    network, images = Bent().requires_grad_(False), torch.rand(8, 3, 4, 4, generator=stream())
    shares = torch.tensor([[0.6, 0.4, 0.0]]).expand(8, 3)
    chosen = TrainSettings(eps=0.5, attack_steps=4, attack_step_size=0.25, random_start=False)
    attacked = recipe_attack(network, images, shares, chosen, image_generators(0, range(8)))
    before, after = (F.cross_entropy(network(x), shares, reduction="none") for x in (images, attacked))
    assert bool((after > before + 0.02).all())
    on_first = recipe_attack(network, images, torch.zeros(8, dtype=torch.long), chosen, image_generators(0, range(8)))
    assert bool((after >= F.cross_entropy(network(on_first), shares, reduction="none") - 1e-6).all())


def test_statistics_in_the_attack_are_frozen_unless_asked_for(tmp_path: Path) -> None:
    counts = {}
    for kind in ("eval", "train"):
        trainer = made(tmp_path / kind, architecture="resnet18", batch_size=24, attack_steps=3, attack_statistics=kind)
        trainer._step(*trainer.source.read(trainer.kept[:24]))
        counts[kind] = int(trainer.state.network.get_buffer("bn1.num_batches_tracked"))
    assert counts == {"eval": 1, "train": 4}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_moves_weights_with_the_attacks_frozen_copy_as_without(tmp_path: Path, name: str) -> None:
    """Only networks with batch norm have a frozen copy. Of several parts the later ones' attacks would differ: the copy
    keeps the statistics that the step began with."""
    chosen = RECIPES[name] | {"architecture": "resnet18", "batch_size": 12, "guard_every": 0, "accumulate": 1}
    ends = []
    for asked in (True, False):
        trainer = made(tmp_path / str(asked), **chosen)
        has = chosen.get("recipe") != "free" and chosen.get("attack_statistics") != "train"
        assert (trainer.frozen is not None) == has
        trainer.frozen = trainer.frozen if asked else None
        weights = list(trainer.state.network.parameters())
        before = [weight.detach().clone() for weight in weights]
        trainer._step(*trainer.source.read(trainer.kept[:12]))
        ends.append(torch.cat([(a - b).detach().flatten() for a, b in zip(weights, before, strict=True)]))
    assert float(ends[0].norm()) > 1e-3
    assert float(F.cosine_similarity(*ends, dim=0)) > 0.99


# Weights


def test_perturbed_weights_raise_the_loss_and_come_back_exactly() -> None:
    network = build_network("resnet18", classes=3, width=2, image_size=8).train()
    images, labels = torch.rand(6, 3, 8, 8, generator=stream()), torch.arange(6) % 3
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def loss() -> torch.Tensor:
        return F.cross_entropy(network(images), labels)

    with perturbed_weights(network, loss, 0.02):
        inside = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in inside.items():
        moved = float((value - before[name]).float().norm())
        if "weight" in name and value.ndim > 1:
            assert moved == pytest.approx(0.02 * float(before[name].norm()), rel=1e-3), name
        else:
            assert moved == 0, name  # Vectors, and batch norm's statistics.
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in network.parameters())
    with pytest.raises(KeyError), perturbed_weights(network, loss, 0.02):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    plain = loss().item()
    with perturbed_weights(network, loss, 0.02):
        assert loss().item() > plain


@pytest.mark.parametrize("changed", [{}, {"cutmix": 0.5}, {"recipe": "trades", "awp": 0.0}, {"recipe": "free"}])
def test_parts_add_up_to_the_batch(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Without batch norm, whose statistics are those of a part."""
    weights = []
    for parts in (1, 3):
        given = {"accumulate": parts, "momentum": 0.0, "guard_every": 0, **changed}
        trainer = made(tmp_path / str(parts), **given)
        trainer._step(*trainer.source.read(trainer.kept[:12]))
        weights.append(trainer.state.network.state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6), name


# CutMix


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 999))
def test_cutmix_gives_each_label_the_share_of_its_area(
    count: int, height: int, width: int, probability: float, seed: int
) -> None:
    """On images each of its own number, a mixed one says which pixels are whose."""
    labels = torch.arange(count) % 3
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 2, height, width)
    mixed, shares = cutmix(images, labels, classes=3, probability=probability, generator=stream(seed))
    area = torch.zeros(count, 3)
    for row in range(count):
        for pixel in mixed[row, 0].flatten().long().tolist():
            area[row, pixel % 3] += 1 / (height * width)
    assert torch.allclose(shares, area, atol=1e-5)
    assert torch.equal(mixed[:, 0], mixed[:, 1])


def test_cutmix_draws_as_often_as_asked_and_of_every_size() -> None:
    images, labels = torch.arange(400.0).view(-1, 1, 1, 1).expand(400, 1, 32, 32), torch.zeros(400, dtype=torch.long)
    for probability, low, high in ((0.0, 0.0, 0.0), (0.5, 0.38, 0.6), (1.0, 0.9, 1.0)):
        mixed, _ = cutmix(images, labels, classes=2, probability=probability, generator=stream())
        share = (mixed != images).float().mean((1, 2, 3))
        assert low <= (share > 0).float().mean() <= high
    assert share.max() > 0.8  # pyright: ignore[reportPossiblyUnboundVariable]


# Schedule and settings


def test_one_cycle_rises_and_falls_linearly() -> None:
    for warmup, peak in ((0.0, 40), (0.25, 25)):
        run = TrainSettings(epochs=10, learning_rate=0.2, schedule="one-cycle", warmup=warmup)
        rates = np.array([run.rate(step, 10) for step in range(100)])
        assert rates.argmax() == peak
        assert rates.max() == pytest.approx(0.2)
        assert np.allclose(np.diff(rates[:peak], 2), 0)
        assert np.allclose(np.diff(rates[peak:], 2), 0)
        assert 0 < rates[0] < 0.02
        assert 0 < rates[-1] < 0.005


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipe": "madry"}, "pgd, trades, mart, free, fast"),
        ({"attack_statistics": "batch"}, "eval, train"),
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 3}, "accumulate divides, got 128 in 3"),
        ({"free_replays": 0}, "free_replays"),
        ({"fast_noise": -1.0}, "fast_noise"),
        ({"trades_beta": 0.0}, "trades_beta"),
        ({"mart_weight": float("nan")}, "mart_weight"),
        ({"awp": -0.1}, "awp"),
        ({"cutmix": 1.1}, "cutmix"),
        ({"guard_every": -1}, "guard_every"),
        ({"guard_gap": 0.0}, "guard_gap"),
        ({"recipe": "trades", "eps": 0.0}, "recipe=trades.*standard training"),
        ({"awp": 0.01, "eps": 0.0}, "awp.*standard training"),
        ({"awp": 0.01, "recipe": "fast"}, "awp beside recipe pgd or trades, got fast"),
        ({"awp": 0.01, "recipe": "mart"}, "got mart"),
        ({"cutmix": 0.5, "recipe": "mart"}, "certain label.*set both to 0"),
        ({"label_smoothing": 0.1, "recipe": "mart"}, "certain label"),
        ({"attack_statistics": "train", "recipe": "free"}, "recipe free"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings_from(values)


def test_only_one_step_attacks_are_guarded() -> None:
    table = [
        ({"attack_steps": 1}, True),
        ({"attack_steps": 2}, False),
        ({"recipe": "fast"}, True),
        ({"recipe": "trades", "attack_steps": 1}, True),
        ({"recipe": "free", "attack_steps": 1}, False),
        ({"recipe": "fast", "guard_every": 0}, False),
        ({"attack_steps": 1, "eps": 0.0}, False),
    ]
    for values, guarded in table:
        assert TrainSettings(**values).guarded is guarded, values


# The guard


def patterns(count: int) -> ImageData:
    """Two classes, each a smooth pattern hardly above the radius that the runs below attack with, in noise."""
    draw = np.random.default_rng(99).normal(0, 1, (4, 12, 12, 1))[:2]
    for axis in (1, 2):
        draw = np.apply_along_axis(lambda line: np.convolve(line, np.ones(3) / 3, mode="same"), axis, draw)
    draw /= draw.std(axis=(1, 2, 3), keepdims=True)
    labels = (np.arange(count) % 2).astype(np.int64)
    images = 128 + 28 * draw[labels] + np.random.default_rng(0).normal(0, 20, (count, 12, 12, 1))
    return ImageData(
        images.clip(0, 255).astype(np.uint8), labels, ("a", "b"), "made", "CC0-1.0", "made", (0.5,), (0.25,)
    )


def plain_fgsm(out: Path, *, resume: bool = False, said: list[str] | None = None, **changed: Any) -> Trainer:
    """Ten epochs of 16 steps on `patterns`, looked at every 16."""
    given: dict[str, Any] = {
        **{"architecture": "small-cnn", "width": 8, "recipe": "fast", "fast_noise": 0.0, "norm": "linf", "eps": 0.09},
        **{"epochs": 10, "batch_size": 32, "held_out": 48, "learning_rate": 0.1, "schedule": "step", "warmup": 0.1},
        **{"average": 0.9, "evaluate_every": 10, "guard_every": 16, "crop": "none", "flip": False},
        "weight_decay": 0.0,
    }
    return Trainer(
        TrainSettings(**(given | changed)),
        patterns(48 + 32 * 16),
        out,
        device="cpu",
        precision=None if resume else "float32",
        resume=resume,
        announce=lambda line: None if said is None else said.append(line),
    )


def test_a_collapse_is_noticed_told_and_recovered_from_exactly(tmp_path: Path) -> None:
    said: list[str] = []
    guarded = plain_fgsm(tmp_path / "guarded", said=said)
    for _ in guarded.steps():
        if guarded.state.step == 60:
            guarded.state.save(tmp_path / "at60")
    state = guarded.state
    assert len(said) == len(state.collapses) >= 1
    assert said[0].startswith(f"catastrophic overfitting at step {state.collapses[0]['step']}: ")
    first = state.collapses[0]
    assert first["trained"] - first["pgd"] > 0.3
    assert first["back_to"] < first["step"]
    assert first["attack_steps"] == 2
    alone = plain_fgsm(tmp_path / "alone", guard_every=0)
    alone.run()
    assert alone.state.good is None
    assert state.best["score"][0] > alone.state.best["score"][0] + 0.1
    assert state.best["score"][0] > 0.85
    log = (tmp_path / "guarded" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert log[0].endswith(",collapses")
    assert log[-1].endswith(f",{len(state.collapses)}")
    card = ModelCard.load(tmp_path / "guarded")
    assert card.training["collapses"] == state.collapses
    # Cut off before the collapse and after it, the run does the same.
    assert first["step"] <= 40
    train_until(plain_fgsm(tmp_path / "parts"), 30)
    for stop in (40, 60):
        train_until(plain_fgsm(tmp_path / "parts", resume=True), stop)
    assert_same_checkpoint(tmp_path / "parts", tmp_path / "at60")


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    """The same data and attack, at a radius that can be learnt; the guard looks and changes nothing."""
    trainer = plain_fgsm(tmp_path / "watched", eps=0.04, epochs=4, evaluate_every=4)
    trainer.run()
    assert trainer.state.collapses == []
    assert trainer.state.good is not None
    assert trainer.state.good["step"] > 0
    other = plain_fgsm(tmp_path / "unwatched", eps=0.04, epochs=4, evaluate_every=4, guard_every=0)
    other.run()
    for name, value in trainer.state.network.state_dict().items():
        assert torch.equal(value, other.state.network.state_dict()[name]), name


# TensorBoard


def test_without_tensorboard_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"robustsynth\[tensorboard\]"):
        Trainer(TrainSettings(**COMMON), pictures(), tmp_path, device="cpu", precision="float32", tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_what_tensorboard_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra: what would be written is looked at here, the package itself where it is installed."""
    shown: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (Path(folder), purge_step) == (tmp_path / "tensorboard", 0)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert np.isfinite(value)
            shown.append((name, step))

        def add_images(self, name: str, images: torch.Tensor, step: int) -> None:
            assert images.shape == (8, 3, 8, 8)
            assert 0 <= images.min() <= images.max() <= 1
            shown.append((name, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            shown.append(("closed", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("robustsynth.training.outputs.TENSORBOARD_EVERY", 3)
    chosen = TrainSettings(**(COMMON | {"evaluate_every": 1}))
    Trainer(chosen, pictures(), tmp_path, device="cpu", precision="float32", tensorboard=True).run()
    each = [(name, step) for step in (3, 6) for name in ("training/loss", "training/learning rate")]
    ends = [(name, step) for step in (4, 8) for name in ("held out/clean", "held out/pgd", "adversarial images")]
    assert sorted(shown) == sorted([*each, *ends, ("closed", 0)])


def test_tensorboards_own_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    chosen = TrainSettings(**COMMON)
    Trainer(chosen, pictures(), tmp_path, device="cpu", precision="float32", tensorboard=True).run()
    (written,) = (tmp_path / "tensorboard").iterdir()
    assert written.stat().st_size > 500
