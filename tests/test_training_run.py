"""Runs of training: what they learn, what they keep, and that nothing stops them from going on exactly."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

import robustsynth.training.step as step_module
import robustsynth.training.trainer as trainer_module
from conftest import train_until
from robustsynth.cli import main
from robustsynth.data import ImageData, load_data
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.models.store import load_model
from robustsynth.seeds import ClassSeeds, fit_class_seeds
from robustsynth.training.checkpoints import BEFORE, CHECKPOINT, TrainState, read_checkpoint
from robustsynth.training.data import InMemory
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def checkpoints_at_each_epochs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are of no time here; those of a real run would have taken a minute."""
    monkeypatch.setattr(trainer_module, "EPOCH_SECONDS", 0)


def pictures(count: int = 60, *, classes: int = 2, size: int = 8, seed: int = 0) -> ImageData:
    """Classes that differ in colour, with enough noise to need a few steps."""
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.int64)
    colour = np.array([[170, 90, 110], [90, 170, 130], [110, 110, 200]])[labels]
    images = np.clip(colour[:, None, None] + draw.normal(0, 35, (count, size, size, 3)), 0, 255).astype(np.uint8)
    return ImageData(
        images, labels, ("red", "green", "blue")[:classes], "toys", "CC0-1.0", "toys", (0.5,) * 3, (0.25,) * 3
    )


def quick(**changed: Any) -> TrainSettings:
    """Three epochs of four steps (with 60 pictures), for a network of a few hundred weights."""
    given: dict[str, Any] = {
        "architecture": "small-cnn",
        "width": 2,
        "eps": 0.2,
        "attack_steps": 1,
        "attack_step_size": 0.2,
        "epochs": 3,
        "batch_size": 12,
        "held_out": 12,
        "learning_rate": 0.1,
        "warmup": 0.2,
        "evaluate_every": 1,
    }
    return TrainSettings(**(given | changed))


def train(out: Path, settings: TrainSettings | None = None, *, stop: int | None = None, **options: Any) -> Trainer:
    """A run, stopped after step `stop` where one is given."""
    options = {"device": "cpu", "precision": "float32"} | options
    if options.get("resume"):
        options["precision"] = None
    trainer = Trainer(settings or quick(), options.pop("data", None) or pictures(), out, **options)
    train_until(trainer, stop)
    return trainer


def log_rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "log.csv").read_text(encoding="utf-8").splitlines()))


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times and names."""
    checkpoint = read_checkpoint(out)
    flat = {
        f"{part}.{name}": value.clone() for part in ("network", "average") for name, value in checkpoint[part].items()
    }
    flat |= {f"momentum.{i}": s["momentum_buffer"] for i, s in checkpoint["optimizer"]["state"].items()}
    flat |= {f"model.{name}": value for name, value in load_file(out / "model.safetensors").items()}
    flat |= {f"seeds.{name}": value for name, value in load_file(out / "seeds.safetensors").items()}
    rows = log_rows(out)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    for row in rows:
        assert float(row.pop("seconds")) >= 0
    assert card["training"].pop("seconds") >= 0
    card.pop("name")
    return {"tensors": flat, "rows": rows, "card": card, "best": checkpoint["best"], "step": checkpoint["step"]}


def assert_equal_outcome(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["tensors"].keys() == second["tensors"].keys()
    for name, value in first["tensors"].items():
        assert torch.equal(value, second["tensors"][name]), name
    for part in ("rows", "card", "best", "step"):
        assert first[part] == second[part], part


# What a run learns and keeps


def test_a_run_learns_and_its_folder_is_a_model_that_draws(tmp_path: Path) -> None:
    data = pictures(120)
    out = tmp_path / "toys"
    trainer = train(out, quick(epochs=6, average=0.9), data=data)
    model = load_model(out, device="cpu")
    fresh = pictures(100, seed=1)
    with torch.no_grad():
        right = model(torch.from_numpy(fresh.images).permute(0, 3, 1, 2) / 255).argmax(1) == torch.tensor(fresh.labels)
    assert right.float().mean() > 0.95
    card = model.card
    assert card is not None
    assert (card.name, card.classes, card.image_size, card.channels) == ("toys", ("red", "green"), 8, 3)
    assert (card.architecture, card.width, card.threat_model) == ("small-cnn", 2, {"norm": "l2", "eps": 0.2})
    assert card.data == {"name": "toys", "source": "toys", "licence": "CC0-1.0", "images": 108}
    assert card.training["settings"]["epochs"] == 6
    assert card.training["execution"]["precision"] == "float32"
    assert card.training["held_out"]["images"] == 12
    assert card.training["held_out"]["clean"] >= card.training["held_out"]["pgd10"] > 0.6
    assert card.training["torch"] == torch.__version__
    assert card.training["machine"]
    assert card.training["seconds"] == round(trainer.state.seconds)
    assert card.sha256 == {name: sha256(out / name) for name in ("model.safetensors", "seeds.safetensors")}
    result = call(
        *("generate", "--model", out, "--num", 4, "--steps", 2, "--out", tmp_path / "drawn"),
        *("--precision", "float32", "--batch-size", 4, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "drawn").glob("000003-*.png"))) == 1


def test_what_is_kept_is_the_average_of_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.5, 0.25), (0.75, 0.5), (0.9, 0.25), (0.6, 0.5), (0.75, 0.5)])
    monkeypatch.setattr(Trainer, "_held_out_accuracy", lambda self: next(scores))
    averages: list[dict[str, torch.Tensor]] = []
    weights: list[dict[str, torch.Tensor]] = []
    trainer = Trainer(quick(epochs=5), pictures(), tmp_path, device="cpu", precision="float32")
    for _ in trainer.steps():
        if trainer.state.step % trainer.steps_per_epoch == 0:
            averages.append({k: v.clone() for k, v in trainer.state.average.state_dict().items()})
            weights.append({k: v.clone() for k, v in trainer.state.network.state_dict().items()})
    # The second epoch: robust accuracy chooses, clean accuracy between equals (0.75 before 0.6), the first of twins.
    assert trainer.state.best == {"score": [0.5, 0.75], "epoch": 2}
    saved = load_file(tmp_path / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, averages[1][name].half()), name
    assert any(not torch.equal(value, weights[1][name].half()) for name, value in saved.items())
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card["training"]["selected_epoch"] == 2
    assert card["training"]["held_out"]["pgd10"] == 0.5


def test_the_average_follows_its_formula_batch_norm_included(tmp_path: Path) -> None:
    """decay = min(average, t/(t+10)); running means and variances are averaged, counts are copied."""
    trainer = Trainer(
        quick(architecture="resnet18", average=0.6, epochs=5, held_out=4, batch_size=28),
        pictures(32),
        tmp_path,
        device="cpu",
        precision="float32",
    )
    expected = {k: v.clone().double() for k, v in trainer.state.average.state_dict().items()}
    batch = trainer.source.read(trainer.kept)
    for step in range(1, 4):
        trainer._step(*batch)
        decay = min(0.6, step / (step + 10))
        for name, value in trainer.state.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    state = trainer.state.average.state_dict()
    moved = [n for n in state if "running_var" in n]
    assert moved
    for name, value in state.items():
        if "num_batches_tracked" in name:
            # One forward pass a step in training mode: the attack's are in evaluation mode and leave no trace.
            assert value == 3
        else:
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert not trainer.state.average.training
    assert not any(p.requires_grad for p in trainer.state.average.parameters())


def test_no_average_keeps_the_weights_themselves(tmp_path: Path) -> None:
    trainer = train(tmp_path, quick(average=0.0, epochs=1))
    for name, value in trainer.state.network.state_dict().items():
        assert torch.equal(value, trainer.state.average.state_dict()[name])


def test_held_out_images_are_neither_trained_on_nor_in_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(61)
    seen: list[np.ndarray] = []
    read = InMemory.read

    def spy(self: InMemory, numbers: np.ndarray) -> Any:
        seen.append(numbers)
        return read(self, numbers)

    monkeypatch.setattr(InMemory, "read", spy)
    monkeypatch.setattr(Trainer, "_held_out_accuracy", lambda self: (1.0, 1.0))
    trainer = train(tmp_path, data=data)
    assert len(trainer.held) == 12
    assert sorted([*trainer.held, *trainer.kept]) == list(range(61))
    assert not set(np.concatenate(seen)) & set(trainer.held)
    for epoch in range(3):
        places = np.concatenate(seen[4 * epoch : 4 * epoch + 4])
        assert len(set(places)) == 48  # Each image once an epoch, the incomplete last batch left out.
    assert not np.array_equal(seen[0], seen[4])
    fitted = ClassSeeds.load(tmp_path)
    for label in (0, 1):
        kept = trainer.kept[data.labels[trainer.kept] == label]
        mean = torch.from_numpy(data.images[kept]).permute(0, 3, 1, 2).float().div(255).mean(0)
        assert torch.allclose(fitted.mean[label], mean, atol=1e-3)
    everything = fit_class_seeds(data.images, data.labels, classes=2, image_size=8)
    assert not torch.allclose(fitted.mean, everything.mean, atol=1e-3)


def test_the_order_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack meets the network frozen and in evaluation mode, the loss meets it in training mode on the attacked
    images, and the rate is that step's."""
    trainer = Trainer(quick(architecture="resnet18"), pictures(), tmp_path, device="cpu", precision="float32")
    network = trainer.state.network
    attack, met = step_module.recipe_attack, []

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        attacked = attack(*args, **kwargs)
        met.append((args[1], attacked))
        return attacked

    monkeypatch.setattr(step_module, "recipe_attack", spy)
    trained_on: list[torch.Tensor] = []
    network.register_forward_pre_hook(
        lambda module, inputs: trained_on.append(inputs[0].detach().clone()) if module.training else None
    )
    trainer._step(*trainer.source.read(trainer.kept[:12]))
    assert len(trained_on) == 1
    assert torch.allclose(trained_on[0], (met[0][1] - 0.5) / 0.25, atol=1e-6)
    assert not torch.equal(met[0][0], met[0][1])
    assert trainer.state.optimizer.param_groups[0]["lr"] == trainer.settings.rate(0, 4)
    assert trainer.state.optimizer.param_groups[1]["lr"] == trainer.settings.rate(0, 4)


def test_each_step_of_each_seed_draws_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[list[float]] = []

    def draw(images: torch.Tensor, _: TrainSettings, streams: list[torch.Generator], *, side: int) -> torch.Tensor:
        draws.append([float(torch.rand(1, generator=stream)) for stream in streams])
        return images

    monkeypatch.setattr(step_module, "augment", draw)
    train(tmp_path / "a", quick(seed=1))
    train(tmp_path / "b", quick(seed=2))
    train(tmp_path / "c", quick(seed=1))
    assert len({number for numbers in draws for number in numbers}) == 24 * 12  # Each image of it, too.
    assert draws[:12] == draws[24:]


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    trainer = Trainer(
        quick(clip_norm=1e-3, momentum=0.0, weight_decay=0.0), pictures(), tmp_path, device="cpu", precision="float32"
    )
    trainer._step(*trainer.source.read(trainer.kept[:12]))
    squares = [float(p.grad.square().sum()) for p in trainer.state.network.parameters() if p.grad is not None]
    assert sum(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-2)


def test_standard_training_never_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(quick(eps=0.0), pictures(), tmp_path, device="cpu", precision="float32")
    monkeypatch.setattr(step_module, "recipe_attack", None)
    trainer._step(*trainer.source.read(trainer.kept[:12]))
    assert trainer.state.step == 1


def test_the_precision_is_measured_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    """8×8 images end as 1×1 in a ResNet, of which batch norm in training mode takes no single one."""
    first = Trainer(quick(architecture="resnet18"), pictures(), tmp_path / "a", device="cpu")
    second = Trainer(quick(architecture="resnet18"), pictures(), tmp_path / "b", device="cpu", precision="float32")
    assert first.state.execution.precision in ("float32", "bfloat16")
    assert first.state.execution.measured
    assert not second.state.execution.measured
    for name, value in first.state.network.state_dict().items():
        assert torch.equal(value, second.state.network.state_dict()[name]), name


# Exact resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The outcome of the quick run in a precision; each is made once."""
    known: dict[str, dict[str, Any]] = {}

    def get(precision: str) -> dict[str, Any]:
        if precision not in known:
            out = tmp_path_factory.mktemp("undisturbed")
            train(out, precision=precision)
            known[precision] = outcome(out)
        return known[precision]

    return get


@pytest.mark.parametrize(
    ("precision", "stops"),
    [
        ("float32", [1]),
        ("float32", [2, 3]),
        ("float32", [4]),  # The last step of the first epoch.
        ("float32", [5]),  # The first of the second.
        ("float32", [3, 8, 11]),
        ("float32", [12]),  # The last of all.
        ("bfloat16", [6]),
        ("bfloat16", [4, 9]),
    ],
)
def test_a_stopped_run_goes_on_exactly(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], precision: str, stops: list[int]
) -> None:
    train(tmp_path, stop=stops[0], precision=precision)
    for stop in [*stops[1:], None]:
        torch.rand(7)  # The global stream of random numbers must not matter.
        trainer = train(tmp_path, stop=stop, resume=True)
        assert trainer.state.execution.precision == precision
    assert_equal_outcome(outcome(tmp_path), undisturbed(precision))


@pytest.mark.parametrize("way", ["break", "exception", "close"])
def test_a_loop_that_is_left_stops_at_that_step_with_a_checkpoint(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], way: str
) -> None:
    """In mid-epoch and at an epoch's end, before any checkpoint would be due."""
    for stop in (3, 8):
        given = {"resume": True} if stop == 8 else {"precision": "float32"}
        trainer = Trainer(quick(), pictures(), tmp_path, device="cpu", **given)
        if way == "close":
            steps = trainer.steps()
            while trainer.state.step < stop:
                next(steps)
            del steps
        elif way == "break":
            train_until(trainer, stop)
        else:
            with contextlib.suppress(ZeroDivisionError):
                for _ in trainer.steps():
                    assert 1 / (stop - trainer.state.step)
        assert (read_checkpoint(tmp_path)["step"], trainer.finished) == (stop, False)
    train(tmp_path, resume=True)
    assert_equal_outcome(outcome(tmp_path), undisturbed("float32"))


def test_precisions_differ(undisturbed: Callable[[str], dict[str, Any]]) -> None:
    """Otherwise the comparison above would say nothing about the second."""
    first, second = (undisturbed(p)["tensors"]["network.fc.weight"] for p in ("float32", "bfloat16"))
    assert not torch.equal(first, second)


def test_a_resnet_resumes_exactly_with_its_batch_norm(tmp_path: Path) -> None:
    settings = quick(architecture="resnet18", epochs=2, batch_size=24, held_out=6)
    train(tmp_path / "whole", settings)
    train(tmp_path / "parts", settings, stop=3)
    train(tmp_path / "parts", settings, resume=True)
    assert_equal_outcome(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("moment", ["_end_epoch", "finish_model", "keep_model", "save"])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_cut_off_around_an_epochs_end_goes_on_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[[str], dict[str, Any]],
    moment: str,
    after: bool,
) -> None:
    """As a kill would: nothing more is written once `moment` begins, or once it has ended."""
    owner = {"save": TrainState, "_end_epoch": Trainer}.get(moment, trainer_module)
    real, calls = getattr(owner, moment), []

    def cut(self: Any, *args: Any) -> None:
        calls.append(1)
        last = len(calls) == (1 if moment in ("finish_model", "keep_model") else 2)
        if last and not after:
            raise SystemExit(137)
        real(self, *args)
        if last:
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, cut)
        with pytest.raises(SystemExit):
            train(tmp_path)
    train(tmp_path, resume=True)
    assert_equal_outcome(outcome(tmp_path), undisturbed("float32"))


def test_checkpoints_come_in_mid_epoch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0)
    steps: list[int] = []
    for _ in Trainer(quick(), pictures(), tmp_path, device="cpu", precision="float32").steps():
        steps.append(read_checkpoint(tmp_path)["step"])
        if len(steps) == 6:
            break
    assert steps == [0, 1, 2, 3, 4, 5]  # A run can be resumed from before its first step on.


def test_epochs_shorter_than_a_checkpoints_writing_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "EPOCH_SECONDS", 60)
    now = [100.0]
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    steps: list[int] = []
    for _ in Trainer(quick(), pictures(), tmp_path, device="cpu", precision="float32").steps():
        steps.append(read_checkpoint(tmp_path)["step"])
        now[0] += 9  # Epochs of 36 seconds.
    assert sorted(set(steps)) == [0, 8]
    assert read_checkpoint(tmp_path)["step"] == 12


def test_time_goes_on_counting_over_resumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])

    def pass_time(trainer: Trainer) -> None:
        for _ in trainer.steps():
            now[0] += 10
            if trainer.state.step == 6:
                break

    pass_time(Trainer(quick(), pictures(), tmp_path, device="cpu", precision="float32"))
    now[0] += 1e6  # A night off.
    trainer = Trainer(quick(), pictures(), tmp_path, device="cpu", resume=True)
    pass_time(trainer)
    assert trainer.state.seconds == pytest.approx(120, abs=11)
    rows = log_rows(tmp_path)
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)


# Refusals


def test_a_new_run_does_not_overwrite_another(tmp_path: Path) -> None:
    train(tmp_path, stop=2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_new_run_does_not_overwrite_a_model(tmp_path: Path) -> None:
    train(tmp_path)
    for name in (CHECKPOINT, BEFORE):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds a model"):
        train(tmp_path)


def test_other_settings_are_named(tmp_path: Path) -> None:
    train(tmp_path, stop=2)
    with pytest.raises(UserError, match=r"others in eps \(0.3 in place of 0.2\), learning_rate \(0.2 in place"):
        train(tmp_path, quick(eps=0.3, learning_rate=0.2), resume=True)


@pytest.mark.parametrize(
    ("other", "named"),
    [(pictures(61), "images: 60 then, 61 now"), (pictures(classes=3), "classes|fit"), (pictures(size=12), "shape|fit")],
)
def test_other_data_is_refused(tmp_path: Path, other: ImageData, named: str) -> None:
    train(tmp_path, stop=2)
    with pytest.raises(UserError, match=named):
        train(tmp_path, data=other, resume=True)


def test_another_precision_is_refused(tmp_path: Path) -> None:
    train(tmp_path, stop=2)
    with pytest.raises(UserError, match="float32, got bfloat16"):
        Trainer(quick(), pictures(), tmp_path, device="cpu", precision="bfloat16", resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out --resume"):
        train(tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_called_damaged(tmp_path: Path, share: float) -> None:
    train(tmp_path, stop=2)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: int(share * len(whole))])
    (tmp_path / BEFORE).unlink()  # With it, the run would go on: see test_faults.
    with pytest.raises(UserError, match="damaged"):
        train(tmp_path, resume=True)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="lacks settings, execution"):
        train(tmp_path, resume=True)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("raw", [False, True])
def test_a_checkpoint_with_code_is_refused_and_executes_nothing(tmp_path: Path, raw: bool) -> None:
    sprung, out = tmp_path / "sprung", tmp_path / "run"
    train(out, stop=2)
    if raw:
        (out / CHECKPOINT).write_bytes(pickle.dumps({"settings": Trap(sprung)}, protocol=2))
    else:
        contents = torch.load(out / CHECKPOINT, weights_only=True)
        torch.save(contents | {"rows": [Trap(sprung)]}, out / CHECKPOINT)
        assert zipfile.is_zipfile(out / CHECKPOINT)
    with pytest.raises(UserError, match="never executed"):
        train(out, resume=True)
    assert not sprung.exists()
    torch.load(out / CHECKPOINT, weights_only=False) if not raw else pickle.loads((out / CHECKPOINT).read_bytes())
    assert sprung.exists()  # The trap was a real one.


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at least 24 training images.*got 20.*--held-out"):
        train(tmp_path, data=pictures(20))


def test_a_class_too_small_for_seeds_is_told_before_training(tmp_path: Path) -> None:
    data = pictures()
    data.labels[:] = 0
    data.labels[5] = 1
    with pytest.raises(UserError, match=r"at least 2 images of each class.*'green'"):
        train(tmp_path, data=data)


# Accidents


def broken_at(monkeypatch: pytest.MonkeyPatch, step: int, kind: str) -> None:
    """From `step` on the loss, its gradient or the weights that the attack meets are not finite."""
    real = Trainer._step

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * float("inf")

    def spoiled(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
        if self.state.step < step:
            return real(self, images, labels)
        if kind == "attack":
            with torch.no_grad():
                next(self.state.network.parameters()).fill_(float("nan"))
            return real(self, images, labels)
        with monkeypatch.context() as patched:
            loss = torch.nn.functional.cross_entropy

            def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
                value = loss(*args, **kwargs)
                if kwargs.get("reduction") == "none":
                    return value
                return value * float("nan") if kind == "loss" else Spoil.apply(value)  # pyright: ignore

            patched.setattr(torch.nn.functional, "cross_entropy", wrong)
            return real(self, images, labels)

    monkeypatch.setattr(Trainer, "_step", spoiled)


@pytest.mark.parametrize("kind", ["loss", "gradient", "attack"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_nan_stops_the_run_names_the_step_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, clip: float
) -> None:
    with monkeypatch.context() as patched:
        broken_at(patched, 6, kind)
        with pytest.raises(UserError, match=rf"finite {kind}, got NaN or infinity at step 6"):
            train(tmp_path, quick(clip_norm=clip))
    contents = read_checkpoint(tmp_path)
    assert contents["step"] == 4
    for part in ("network", "average"):
        assert all(bool(torch.isfinite(value.float()).all()) for value in contents[part].values())
    train(tmp_path, quick(clip_norm=clip), resume=True)  # What was kept is good for something.


# The command line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of class folders with the toy pictures, half as many again as a ``test`` part."""
    for part, data in (("train", pictures(60)), ("test", pictures(30, seed=1))):
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / "toys" / part / data.classes[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path / "toys"


QUICK = [
    *("--architecture", "small-cnn", "--width", "2", "--eps", "0.2", "--attack-steps", "1"),
    *("--attack-step-size", "0.2", "--epochs", "3", "--batch-size", "12", "--held-out", "12"),
    *("--learning-rate", "0.1", "--warmup", "0.2", "--evaluate-every", "1", "--random-start"),
    *("--precision", "float32", "--device", "cpu"),
]
"""The settings of `quick`, as options."""


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_train_then_generate_then_evaluate(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "mine"
    result = call("train", "--data", folder, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "in float32 on cpu; 12 images held out" in result.output
    assert "best of the run, epoch" in result.output
    assert "under PGD-10 at l2 eps 0.2 on held-out images" in result.output
    assert {"model.safetensors", "card.json", "seeds.safetensors", "log.csv", "run.json"} <= {
        p.name for p in out.iterdir()
    }
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    drawn = tmp_path / "drawn"
    result = call(
        *("generate", "--model", out, "--classes", "red,green", "--num", 4, "--out", drawn, "--steps", 3),
        *("--batch-size", 4, "--precision", "float32", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in drawn.glob("*.png")) == [
        *("000000-red.png", "000001-red.png", "000002-green.png", "000003-green.png", "grid.png")
    ]
    result = call(
        *("evaluate", "--model", out, "--data", folder, "--eps", "0.2,0.4", "--precision", "float32"),
        *("--batch-size", 32, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "PGD-20 l2 at eps 0.4" in result.output
    assert "of 30 images" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [5, 8])
def test_a_polite_kill_leaves_a_checkpoint(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int
) -> None:
    data = load_data(folder, "train", announce=lambda _: None)
    train(tmp_path / "whole", data=data)
    real = Trainer._step

    def interrupted(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
        if self.state.step == at - 1:
            signal.raise_signal(number)
        return real(self, images, labels)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", interrupted)
        result = call("train", "--data", folder, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 130
    assert f"stopped at step {at} of 12; go on with: robustsynth train --resume" in result.output
    assert signal.getsignal(number) == before
    assert read_checkpoint(tmp_path / "out")["step"] == at
    # Data and settings are remembered.
    result = call("train", "--resume", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"going on from step {at} of 12" in result.output
    assert_equal_outcome(outcome(tmp_path / "out"), outcome(tmp_path / "whole"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_process_goes_on_exactly(tmp_path: Path, folder: Path) -> None:
    longer = [*QUICK, "--epochs", "40"]
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-m", "robustsynth", "train", "--data", str(folder), "--out", str(out), *longer],
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        log = out / "log.csv"
        while not log.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGKILL, said.decode()
    assert 0 <= read_checkpoint(out)["step"] < 160
    result = call("train", "--resume", "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    train(tmp_path / "whole", quick(epochs=40), data=load_data(folder, "train", announce=lambda _: None))
    assert_equal_outcome(outcome(out), outcome(tmp_path / "whole"))


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write = Path.write_bytes
    written: list[bytes] = []

    def full(self: Path, data: Any) -> int:
        if "checkpoint" not in self.name:
            return write(self, data)
        if written:
            write(self, bytes(data)[:100])  # What still fitted.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        written.append(bytes(data))
        return write(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        result = call("train", "--data", folder, "--out", out, *QUICK)
    assert result.exit_code == 2
    assert "No space left" in result.output
    assert "Traceback" not in result.output
    assert (out / CHECKPOINT).read_bytes() == written[0]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert call("train", "--resume", "--out", out, "--device", "cpu").exit_code == 0


def test_the_systems_own_limit_on_files_is_an_os_error(tmp_path: Path) -> None:
    """A real refusal by the system, not one of a mock: torch.save alone turns it into a RuntimeError."""
    resource = pytest.importorskip("resource")
    trainer = Trainer(quick(width=8), pictures(), tmp_path, device="cpu", precision="float32")
    trainer.state.save(tmp_path)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            trainer.state.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / CHECKPOINT).read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "cifar10-l3"], "cifar10-l2"),
        (["--architecture", "resnet19"], "resnet18"),
        (["--eps", "-1"], "eps"),
        (["--seed", "-1"], "seed"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--held-out", "59"], "--held-out"),
        (["--norm", "l1"], "l2, linf"),
    ],
)
def test_a_mistake_exits_with_two_and_no_traceback(
    tmp_path: Path, folder: Path, arguments: list[str], said: str
) -> None:
    result = call("train", "--data", folder, "--out", tmp_path / "out", *QUICK, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_missing_data_and_missing_runs_exit_with_two(tmp_path: Path) -> None:
    result = call("train", "--out", tmp_path / "out", *QUICK)
    assert (result.exit_code, "--data" in result.output) == (2, True)
    result = call("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "out", *QUICK)
    assert (result.exit_code, "nowhere" in result.output) == (2, True)


def test_stopping_before_the_first_step_is_no_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustsynth.data.load.describe_data", stop)
    result = CliRunner().invoke(main, ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert result.output.strip() == "stopped"
