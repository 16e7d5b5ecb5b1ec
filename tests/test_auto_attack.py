"""AutoAttack by its authors' package: what is believed of it, and runs that are stopped, gone on with and shared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.evaluation import accuracy, auto_attack
from robustsynth.evaluation.accuracy import EvaluationResult, EvaluationRun, drawn, evaluate_accuracy, fingerprint
from robustsynth.evaluation.auto_attack import STANDARD, AutoAttack, attacks_for, forward_passes
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model
from robustsynth.processes import Workers

SIDE = 8


def random_classifier(classes: int, channels: int = 1) -> Classifier:
    """A small random network, smooth enough for every attack to have something to follow."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Linear(channels * SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, classes)
    network = nn.Sequential(nn.Flatten(), *layers)
    return Classifier.wrap(network, classes=classes, mean=[0.5] * channels, std=[0.25] * channels, image_size=SIDE)


def pictures(model: Classifier, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures that the model is right about, but for every tenth."""
    images = np.random.default_rng(0).integers(60, 196, (count, SIDE, SIDE, model.channels), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        labels = model(x).argmax(1).numpy()
    labels[::10] = (labels[::10] + 1) % len(model.classes)
    return images, labels


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255).contiguous(), torch.from_numpy(labels)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own attacks with few steps."""
    package = pytest.importorskip("pyautoattack")

    def build(*given: Any, **settings: Any) -> Any:
        runner = package.AutoAttack(*given, **settings)
        for attack in (runner.apgd, runner.apgd_targeted, runner.fab):
            attack.n_iter = 12
        runner.square.n_queries = 20
        return runner

    monkeypatch.setattr(auto_attack, "load_package", lambda: SimpleNamespace(AutoAttack=build))


# What fits a number of classes


@pytest.mark.parametrize(
    ("classes", "attacks"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        (4, STANDARD),
        (10, STANDARD),
        (1000, STANDARD),
    ],
)
def test_attacks_by_number_of_classes(classes: int, attacks: tuple[str, ...]) -> None:
    assert attacks_for(classes) == attacks
    assert all(forward_passes(name, classes) > 100 for name in attacks)
    assert (auto_attack.title(classes) == "AutoAttack") == (attacks == STANDARD)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (3, 3), (4, 1), (12, 3)])
def test_every_attack_runs_and_finds_something(short: None, norm: str, classes: int, channels: int) -> None:
    model = random_classifier(classes, channels)
    images, labels = pictures(model, 12)
    x, y = tensors(images, labels)
    attacker = AutoAttack(model, norm=norm, eps=0.3 if norm == "l2" else 0.02)
    x, y = x[attacker.correct(x, y)], y[attacker.correct(x, y)]
    before = torch.random.get_rng_state()
    for name in attacks_for(classes):
        held, warnings = attacker.survivors(name, x, y, seed=1)
        again, _ = attacker.survivors(name, x, y, seed=1)
        assert torch.equal(held, again)
        assert not warnings
        # Twelve steps find some of them at least; a few random squares need not.
        assert name == "square" or not held.all()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_plane_gives_the_closed_form(short: None, norm: str) -> None:
    """The attacks together fell the images that are nearer to the plane than eps, and no others."""
    draw = torch.Generator().manual_seed(1)
    layer = nn.Linear(SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, SIDE * SIDE, generator=draw))
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    model = Classifier.wrap(nn.Sequential(nn.Flatten(), layer), classes=2, mean=[0.0], std=[1.0], image_size=SIDE)
    images, labels = pictures(model, 40)
    x, y = tensors(images, labels)
    with torch.no_grad():
        logits = model(x)
        w = layer.weight[0] - layer.weight[1]
    margin = torch.where(y == 0, logits[:, 0] - logits[:, 1], logits[:, 1] - logits[:, 0])
    away = margin / (w.norm() if norm == "l2" else w.abs().sum())
    eps = float(away[away > 0].median()) * 1.001
    attacker = AutoAttack(model, norm=norm, eps=eps)
    right = attacker.correct(x, y)
    assert torch.equal(right, away > 0)
    for name in attacks_for(2):
        found, _ = attacker.survivors(name, x[right], y[right], seed=0)
        right[right.clone()] = found
    assert int(right.sum()) == pytest.approx(int((away > eps).sum()), abs=1)


# What is believed


@pytest.mark.parametrize(
    ("attacked", "believed"),
    [
        (lambda x: (x + 0.3).clamp(0, 1), True),
        (lambda x: (x + 0.31).clamp(0, 1), False),
        (lambda x: x + float("nan"), False),
        (lambda x: x, False),
    ],
    ids=["in the ball", "outside", "no number", "untouched"],
)
def test_an_adversarial_image_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, attacked: Callable[[torch.Tensor], torch.Tensor], believed: bool
) -> None:
    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([0.6 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.6], 1)

    class Package:
        def __init__(self, *given: Any, **settings: Any) -> None:
            self.apgd_targeted = self.fab = self.square = SimpleNamespace()

        def run_standard_evaluation(self, x: torch.Tensor, y: torch.Tensor, **settings: Any) -> Any:
            return attacked(x), y

    monkeypatch.setattr(auto_attack, "load_package", lambda: SimpleNamespace(AutoAttack=Package))
    model = Classifier.wrap(Bright(), classes=2, mean=[0.0], std=[1.0], image_size=SIDE)
    attacker = AutoAttack(model, norm="linf", eps=0.3)
    x, y = torch.full((3, 1, SIDE, SIDE), 0.5), torch.zeros(3, dtype=torch.int64)
    held, _ = attacker.survivors("apgd-ce", x, y, seed=0)
    assert held.tolist() == [not believed] * 3


def test_what_the_package_warns_of_is_kept(short: None) -> None:
    """Rounded logits have gradients of zero, which the package notices in its ratio loss."""

    class Rounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = (x.flatten(1)[:, :4] * 8).round()
            return steps + 0 * x.flatten(1)[:, :4]

    model = Classifier.wrap(Rounded(), classes=4, mean=[0.0], std=[1.0], image_size=SIDE)
    x, y = tensors(*pictures(model, 10))
    attacker = AutoAttack(model, norm="linf", eps=0.01)
    right = attacker.correct(x, y)
    _, warnings = attacker.survivors("apgd-t", x[right], y[right], seed=0)
    assert any("zero gradient" in text for text in warnings)
    assert not any("flags_doc" in text for text in warnings)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"robustsynth\[eval\].*--attack apgd"):
        AutoAttack(random_classifier(4), norm="l2", eps=0.5)


@pytest.mark.parametrize(
    ("change", "said"), [({"eps": 0.0}, "above 0"), ({"eps": -1.0}, "-1"), ({"norm": "l1"}, "l2, linf")]
)
def test_what_does_not_fit_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AutoAttack(random_classifier(4), **({"norm": "l2", "eps": 0.5} | change))


# Runs


class Pretended:
    """In place of the attacks: each fells images of its own, known by their first pixel, and is counted."""

    def __init__(self) -> None:
        fallen = range(0, 40), range(40, 60), range(60, 70), range(70, 72)
        self.fells: dict[str, range] = dict(zip(STANDARD, fallen, strict=True))
        self.calls: list[tuple[str, int, int]] = []
        self.stop_at: int | None = None

    def __call__(
        self, attacker: Any, name: str, x: torch.Tensor, y: torch.Tensor, *, seed: int
    ) -> tuple[torch.Tensor, list[str]]:
        if self.stop_at is not None and len(self.calls) >= self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((name, seed, len(x)))
        for _ in range(10):
            attacker.on_pass()
        first = (x[:, 0, 0, 0] * 255).round().long()
        return torch.tensor([int(v) not in self.fells[name] for v in first]), [f"{name} warns"]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    attacks = Pretended()
    monkeypatch.setattr(
        AutoAttack, "survivors", lambda self, name, x, y, *, seed, numbers: attacks(self, name, x, y, seed=seed)
    )
    monkeypatch.setattr(auto_attack, "load_package", lambda: None)
    monkeypatch.setattr(auto_attack, "package_version", lambda: "pyautoattack pretended")
    return attacks


def numbered(count: int = 100) -> tuple[Classifier, np.ndarray, np.ndarray]:
    """Images whose first pixel is their number, of which the last twelve are wrong from the first."""

    class Numbered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wrong = (x[:, 0, 0, 0] * 255 > count - 12.5).float()
            return torch.stack([1 - wrong, wrong, wrong - 2, wrong - 2], 1)

    images = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    model = Classifier.wrap(Numbered(), classes=4, mean=[0.0], std=[1.0], image_size=SIDE)
    return model, images, np.zeros(count, np.int64)


def start(folder: Path | None, *, num: int | None = None, **change: Any) -> EvaluationRun:
    model, images, labels = numbered()
    attack = AutoAttack(model, **({"norm": "l2", "eps": 0.5, "batch_size": 16} | change))
    return EvaluationRun(attack, images, labels, drawn(len(images), num, attack.seed), folder=folder)


def contents(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}


def test_the_breakdown(pretended: Pretended, tmp_path: Path) -> None:
    heard: list[float] = []
    result = start(tmp_path).run(on_images=heard.append)
    assert result == EvaluationResult(
        eps=0.5,
        wanted=100,
        done=100,
        clean=88,
        left={"apgd-ce": 48, "apgd-t": 28, "fab-t": 18, "square": 16},
        warnings=tuple(f"{name} warns" for name in STANDARD),
    )
    assert (result.robust.correct, result.robust.total, result.complete) == (16, 100, True)
    assert sum(heard) == pytest.approx(100)
    assert min(heard) > 0
    assert len(heard) > 4 * 7  # Within attacks as well.
    # Nobody is attacked who is wrong already.
    assert sum(size for name, _, size in pretended.calls if name == "apgd-ce") == 88
    assert sum(size for name, _, size in pretended.calls if name == "apgd-t") == 48


def test_images_are_drawn_as_for_pgd(pretended: Pretended, tmp_path: Path) -> None:
    run = start(tmp_path, num=30, seed=5)
    assert sorted(run.order) == sorted(np.random.default_rng(5).permutation(100)[:30])
    assert run.run().wanted == 30


@pytest.mark.parametrize("stop_at", [0, 1, 2, 5, 13, 27])
def test_stopped_anywhere_it_goes_on_to_the_same(pretended: Pretended, tmp_path: Path, stop_at: int) -> None:
    undisturbed = start(tmp_path / "a").run()
    calls, pretended.calls = pretended.calls, []
    pretended.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "b").run()
    known = start(tmp_path / "b").result()
    assert known.done <= 16 * (stop_at // 4 + 1)
    assert not known.complete
    pretended.stop_at = None
    assert start(tmp_path / "b").run() == undisturbed
    assert pretended.calls == calls  # With the same seeds, and nothing twice.
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_run_attacks_nothing(pretended: Pretended, tmp_path: Path) -> None:
    first = start(tmp_path).run()
    pretended.calls.clear()
    heard: list[float] = []
    assert start(tmp_path).run(on_images=heard.append) == first
    assert (pretended.calls, sum(heard)) == ([], 100)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"images": []}'])
def test_a_damaged_file_costs_its_batch_again(pretended: Pretended, tmp_path: Path, damage: str) -> None:
    first = start(tmp_path).run()
    pretended.calls.clear()
    next(tmp_path.glob("batch-000002-*")).write_text(damage, encoding="utf-8")
    assert start(tmp_path).run() == first
    assert len(pretended.calls) == 4


def test_a_larger_run_goes_on_from_a_smaller(pretended: Pretended) -> None:
    small, large = start(None, num=48), start(None)
    assert small.run_folder.out == large.run_folder.out
    small.run()
    before = len(pretended.calls)
    assert large.result().done == 48
    large.run()
    assert len(pretended.calls) == before + 4 * 4
    assert small.result().done == 48
    # A last batch that was smaller is another batch.
    assert start(None, num=40).result().done == 32


@pytest.mark.parametrize(
    "change", [{"eps": 0.25}, {"norm": "linf"}, {"seed": 1}, {"batch_size": 8}, {"precision": "bfloat16"}]
)
def test_other_settings_are_another_run(pretended: Pretended, tmp_path: Path, change: dict[str, Any]) -> None:
    assert start(None, **change).run_folder.out != start(None).run_folder.out
    start(tmp_path).run()
    with pytest.raises(UserError, match=f"\\({next(iter(change))}.*--out"):
        start(tmp_path, **change).run()


def test_the_model_and_the_data_name_the_run() -> None:
    model, other = random_classifier(4), random_classifier(4)
    assert fingerprint(model) == fingerprint(other)
    with torch.no_grad():
        next(other.network.parameters())[0, 0] += 1
    assert fingerprint(model) != fingerprint(other)
    images, labels = pictures(model, 30)
    changed = images.copy()
    changed[7] = 0
    prints = {accuracy.data_fingerprint(*pair) for pair in ((images, labels), (changed, labels), (images, labels + 1))}
    assert len(prints) == 3


@pytest.mark.parametrize("size", [2, 3, 9])
def test_shared_among_processes_it_is_the_same(
    pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each process does every n-th batch; there may be more processes than batches."""
    alone = start(tmp_path / "alone").run()
    monkeypatch.setattr(Workers, "total", lambda self, counts: list(counts))
    runs = [start(tmp_path / "shared") for _ in range(size)]
    results = [runs[rank].run(workers=Workers(rank, size)) for rank in reversed(range(size))]
    assert results[-1] == alone
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


def test_no_more_than_a_batch_is_read_at_a_time(pretended: Pretended, tmp_path: Path) -> None:
    model, images, labels = numbered()
    asked: list[int] = []

    class Map(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            asked.append(len(found) if np.ndim(found) == 4 else 1)
            return np.asarray(found)

    attack = AutoAttack(model, norm="l2", eps=0.5, batch_size=8)
    EvaluationRun(attack, images.view(Map), labels, np.arange(len(images)), folder=tmp_path).run()
    assert max(asked) == 8


@pytest.mark.parametrize("damage", [None, "{", '{"eps": 0.25}'])
def test_a_folder_of_0_1_0_is_gone_on_with_or_refused(pretended: Pretended, tmp_path: Path, damage: str | None) -> None:
    """It had ``run.json`` in place of ``settings.json``."""
    first = start(tmp_path).run()
    settings = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    record = {name: value for name, value in settings.items() if name not in ("task", "versions")}
    (tmp_path / "settings.json").unlink()
    (tmp_path / "run.json").write_text(damage or json.dumps(record), encoding="utf-8")
    pretended.calls.clear()
    if damage is None:
        assert start(tmp_path).run() == first
        assert not pretended.calls
    else:
        with pytest.raises(UserError, match=r"holds batch-.* without settings\.json; choose another --out"):
            start(tmp_path).run()


# The command line


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen grey 28×28 pictures of digits, as the model of the tests sees them."""
    draw = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "data" / "test" / str(index % 10) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def digits_copy(digits_folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(digits_folder, tmp_path / "digits"))


def evaluate(folder: Path, data: Path, *more: object) -> Result:
    return call("evaluate", "--model", folder, "--data", data, "--device", "cpu", "--attack", "auto", *more)


def test_the_command_prints_what_each_attack_left(
    pretended: Pretended, digits_copy: Path, data: Path, tmp_path: Path
) -> None:
    result = evaluate(digits_copy, data, "--out", tmp_path / "run", "--num", 18, "--eps", "0.5", "--record")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    names = [re.split(r"  +\d", line)[0].strip() for line in lines if "of 18 images" in line]
    assert names[1:-1] == [f"left after {name}" for name in ("APGD-CE", "APGD-T", "FAB-T", "Square")]
    assert (names[0], names[-1], lines[-1]) == ("clean", "AutoAttack l2 at eps 0.5", "AutoAttack, 18 images")
    assert "AutoAttack, 18 images, l2 at eps 0.5, 9 targets" not in result.stderr
    assert "float32" in result.stderr
    assert (tmp_path / "run" / "settings.json").exists()
    found = ModelCard.load(digits_copy).accuracies["auto"]
    assert found["attack"].startswith("AutoAttack, standard version of pyautoattack")
    assert [row["eps"] for row in found["rows"]] == [0.0, 0.5]
    left = list(found["rows"][1]["left_after"].values())
    assert left == sorted(left, reverse=True)
    assert left[-1] == found["rows"][1]["share"]


def test_records_stand_beside_each_other(pretended: Pretended, digits_copy: Path, data: Path) -> None:
    evaluate(digits_copy, data, "--eps", "0.5", "--record")
    common = ("evaluate", "--model", digits_copy, "--data", data, "--device", "cpu", "--record", "--batch-size", 32)
    call(*common, "--eps", "0.1", "--precision", "float32")
    call(*common, "--eps", "0.1", "--attack", "apgd", "--steps", 5)
    found = ModelCard.load(digits_copy).accuracies
    assert [row["eps"] for row in found["rows"]] == [0.0, 0.1]
    assert "APGD-5 on CE and DLR" in found["apgd"]["attack"]
    assert [row["eps"] for row in found["auto"]["rows"]] == [0.0, 0.5]


def test_stopped_it_says_what_is_known_and_how_to_go_on(
    pretended: Pretended, digits_copy: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = iter([True] * 99)
    monkeypatch.setattr(AutoAttack, "correct", lambda self, x, y: torch.tensor([next(labels) for _ in x]))
    pretended.stop_at = 4
    result = evaluate(digits_copy, data, "--eps", "0.5", "--batch-size", 5)
    assert result.exit_code == 130
    assert "stopped after 5 of 20 images; the same command goes on" in result.stderr
    assert "AutoAttack, 5 of 20 images" in result.stdout
    pretended.stop_at = None
    result = evaluate(digits_copy, data, "--eps", "0.5", "--batch-size", 5)
    assert result.exit_code == 0
    assert "5 of 20 images are done already" in result.stderr
    assert "AutoAttack, 20 images" in result.stdout


def test_square_that_finds_more_is_a_sign() -> None:
    from robustsynth.cli.evaluate import _warnings_of

    left = {"apgd-ce": 70, "apgd-t": 60, "fab-t": 60, "square": 50}
    assert "gradients" in _warnings_of(EvaluationResult(0.5, 100, 100, 90, left))[0]
    assert not _warnings_of(EvaluationResult(0.5, 100, 100, 90, left | {"square": 60}))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "5"], "--steps"),
        (["--restarts", "2"], "--restarts"),
        (["--eps", "0"], "above 0"),
        (["--norm", "linf"], "--eps"),
    ],
)
def test_a_mistake_exits_with_two(digits_folder: Path, data: Path, more: list[str], said: str) -> None:
    result = evaluate(digits_folder, data, *more)
    assert (result.exit_code, said in result.output) == (2, True)


# The real thing, at length


@pytest.mark.slow
def test_two_processes_equal_one(digits_folder: Path, data: Path, tmp_path: Path) -> None:
    """Also after one of them was killed: torchrun starts both again, and what is done stays."""
    pytest.importorskip("pyautoattack")
    command = ["-m", "robustsynth", "evaluate", "--model", str(digits_folder), "--data", str(data), "--device", "cpu"]
    command += ["--attack", "auto", "--eps", "1", "--batch-size", "5", "--out"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = [
        subprocess.run(
            [*begin, *command, str(tmp_path / name)], capture_output=True, text=True, env=environment, check=False
        )
        for name, begin in (("one", [sys.executable]), ("two", two))
    ]
    assert [each.returncode for each in found] == [0, 0], found[1].stderr
    assert found[0].stdout == found[1].stdout
    assert "AutoAttack, 20 images" in found[0].stdout
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_two_processes_equal_one_with_pgd(digits_folder: Path, data: Path, tmp_path: Path) -> None:
    command = ["-m", "robustsynth", "evaluate", "--model", str(digits_folder), "--data", str(data), "--device", "cpu"]
    command += ["--eps", "0.1,0.5", "--precision", "float32", "--batch-size", "8", "--num-images", "15"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = [
        subprocess.run(
            [*begin, *command, "--out", str(tmp_path / str(len(begin)))],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        for begin in ([sys.executable], two)
    ]
    assert [each.returncode for each in found] == [0, 0], found[1].stderr
    assert found[0].stdout == found[1].stdout
    assert "of 15 images" in found[0].stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "tiny"])
def test_never_above_pgd_and_apgd(name: str, tiny: Classifier, tmp_path: Path) -> None:
    pytest.importorskip("pyautoattack")
    if name == "mnist":
        model = load_model("mnist", device="cpu")
        images = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 1), dtype=np.uint8)
        norm, eps = "linf", 0.05
    else:
        model, norm, eps = tiny, "l2", 0.05
        images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        labels = model(x).argmax(1).numpy()
    ours = [
        evaluate_accuracy(model, images, labels, norm=norm, eps=[eps], attack=attack, precision="float32", batch_size=8)
        for attack in ("pgd", "apgd")
    ]
    result = EvaluationRun(AutoAttack(model, norm=norm, eps=eps), images, labels, np.arange(24), folder=tmp_path).run()
    assert result.robust.correct <= min(rows[1].correct for rows in ours)
    assert result.clean == ours[0][0].correct
