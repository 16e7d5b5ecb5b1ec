"""Accuracy under attack: against classifiers whose answer is known in closed form, and against foolbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from robustsynth.cli import main
from robustsynth.constraints import L2Ball, LinfBall
from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import Accuracy, evaluate_accuracy
from robustsynth.evaluation.attacks import apgd
from robustsynth.files import sha256
from robustsynth.loop import Problem, pgd
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks.plain import SmallCNN
from robustsynth.models.store import load_model, save_model
from robustsynth.objectives import Untargeted
from robustsynth.seeds import fit_class_seeds

SIDE = 8
PLAIN = {"precision": "float32", "batch_size": 16}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def linear_classifier() -> Classifier:
    """Two classes parted by a plane through the middle grey."""
    draw = torch.Generator().manual_seed(1)
    layer = nn.Linear(SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, SIDE * SIDE, generator=draw))
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    network = nn.Sequential(nn.Flatten(), layer)
    return Classifier.wrap(network, classes=2, mean=[0.0], std=[1.0], image_size=SIDE)


def linear_problem(count: int = 120) -> tuple[Classifier, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The classifier, images away from the box's edges, labels, and signed margins f_y − f_other with w."""
    model = linear_classifier()
    draw = np.random.default_rng(0)
    images = draw.integers(100, 156, (count, SIDE, SIDE, 1), dtype=np.uint8)
    layer = model.network[1]  # pyright: ignore[reportIndexIssue]
    w = (layer.weight[0] - layer.weight[1]).detach().double().numpy()
    b = float((layer.bias[0] - layer.bias[1]).detach())
    value = images.reshape(count, -1).astype(np.float64) / 255 @ w + b
    labels = (value < 0).astype(np.int64)
    labels[::10] = 1 - labels[::10]  # A tenth is wrong without any attack.
    return model, images, labels, np.where(labels == 0, value, -value), w


# Intervals


def test_wilson_by_hand() -> None:
    """9 of 10: centre (0.9 + 1.9208/10) / 1.38416 = 0.78897, half-width 1.96·√(0.009 + 0.0096040) / 1.38416."""
    low, high = Accuracy(0.5, 9, 10).interval
    assert low == pytest.approx(0.5958, abs=2e-4)
    assert high == pytest.approx(0.9821, abs=2e-4)


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1999])
def test_intervals_stay_within_0_and_1(total: int) -> None:
    assert 0 <= Accuracy(0.0, 0, total).interval[0] < 1e-9
    assert 0.999999 < Accuracy(0.0, total, total).interval[1] <= 1


# Accuracy


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_classifier_gives_the_closed_form(norm: str) -> None:
    """PGD reaches exactly the images whose distance to the plane is below eps: |f| / ‖w‖₂, or |f| / ‖w‖₁."""
    model, images, labels, margin, w = linear_problem()
    away = margin / (np.linalg.norm(w) if norm == "l2" else np.abs(w).sum())
    radii = [float(np.quantile(away[away > 0], q)) for q in (0.2, 0.5, 0.9)]
    rows = evaluate_accuracy(model, images, labels, norm=norm, eps=radii, **PLAIN)
    assert [row.eps for row in rows] == [0.0, *radii]
    for row in rows:
        assert row.total == 120
        assert (
            abs(row.correct - int((away > row.eps).sum())) <= 1
        )  # The image at the quantile itself may go either way.
    assert rows[0].correct == 108
    shares = [row.share for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[1] - 0.3


def test_radii_twice_and_zero_are_one_row_each() -> None:
    model, images, labels, _, _ = linear_problem()
    rows = evaluate_accuracy(model, images, labels, eps=[0.1, 0.0, 0.1, 0.2], **PLAIN)
    assert [row.eps for row in rows] == [0.0, 0.1, 0.2]
    assert rows[0].correct == 108


@pytest.mark.parametrize("fooled_by", ["image", "random", "neither"])
def test_an_image_counts_only_if_it_is_right_after_both_attacks(
    monkeypatch: pytest.MonkeyPatch, fooled_by: str
) -> None:
    from robustsynth.evaluation import attacks

    model, images, labels, _, _ = linear_problem(40)
    asked: list[int] = []

    def attack(problem: Any, **settings: Any) -> torch.Tensor:
        assert settings["steps"] == 20
        assert settings["step_size"] == pytest.approx(2.5 * 0.3 / 20)
        random = not torch.equal(problem.start, problem.center)
        asked.append(random)
        if fooled_by == ("random" if random else "image"):
            wrong = problem.center.clone()
            wrong[0] = 1 - wrong[0]  # The plane passes through the middle grey: a negative is of the other class.
            return wrong
        return problem.center

    monkeypatch.setattr(attacks, "pgd", attack)
    rows = evaluate_accuracy(model, images, labels, eps=[0.3], precision="float32", batch_size=64)
    assert rows[0].correct == 36
    assert rows[1].correct == (36 if fooled_by == "neither" else 35)
    assert asked == [False, True]


def bent_classifier() -> tuple[Classifier, np.ndarray, np.ndarray]:
    """A small trained network and the images that it was trained on."""
    draw = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = draw.normal(110, 30, (96, SIDE, SIDE, 3))
    images[np.arange(96), :, :, labels] += 35
    images = images.clip(0, 255).astype(np.uint8)
    torch.manual_seed(0)
    network = SmallCNN(classes=3, width=4, channels=3, image_size=SIDE)
    model = Classifier.wrap(network, classes=3, mean=[0.4] * 3, std=[0.2] * 3, image_size=SIDE)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, images, labels


def test_the_result_does_not_depend_on_the_batch_size() -> None:
    model, images, labels = bent_classifier()
    results = [
        evaluate_accuracy(model, images, labels, eps=[0.3, 0.6], precision="float32", batch_size=size)
        for size in (5, 32, 96)
    ]
    assert results[0] == results[1] == results[2]
    assert 0.2 < results[0][1].share < 1.0  # Somewhere in between, so that there is something to get wrong.


def test_batches_are_as_large_as_was_asked() -> None:
    model, images, labels = bent_classifier()
    seen: list[int] = []
    evaluate_accuracy(model, images, labels, eps=[], precision="float32", batch_size=40, on_images=seen.append)
    assert seen == [40, 40, 16]


@pytest.mark.filterwarnings("ignore")
def test_as_strong_as_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = bent_classifier()
    eps = 0.5
    ours = evaluate_accuracy(model, images, labels, eps=[eps], **PLAIN)[1].share
    theirs = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=2.5 * eps / 20, steps=20, random_start=False)
    wrapped = foolbox.PyTorchModel(model.requires_grad_(False), bounds=(0, 1), device="cpu")
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    _, _, fooled = theirs(wrapped, x, torch.from_numpy(labels), epsilons=eps)
    share = 1 - fooled.float().mean().item()
    assert 0.05 < share < 0.95
    # Ours also starts at random; one image of 96 may fall to rounding.
    assert ours <= share + 1.5 / 96
    assert ours >= share - 0.1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_apgd_on_a_linear_classifier_gives_the_closed_form(norm: str) -> None:
    model, images, labels, margin, w = linear_problem(60)
    away = margin / (np.linalg.norm(w) if norm == "l2" else np.abs(w).sum())
    radius = float(np.quantile(away[away > 0], 0.5))
    rows = evaluate_accuracy(model, images, labels, norm=norm, eps=[radius], attack="apgd", steps=20, **PLAIN)
    assert abs(rows[1].correct - int((away > radius).sum())) <= 1


def test_apgd_does_not_depend_on_the_batch_size_and_is_no_weaker_than_pgd() -> None:
    model, images, labels = bent_classifier()
    given: dict[str, Any] = {"eps": [0.4], "precision": "float32"}
    small, large = (
        evaluate_accuracy(model, images, labels, attack="apgd", steps=30, batch_size=size, **given) for size in (7, 96)
    )
    assert small == large
    assert 0.05 < small[1].share < 0.95
    # One image may lie so near to the edge that either reaches it alone.
    assert small[1].correct <= evaluate_accuracy(model, images, labels, batch_size=96, **given)[1].correct + 1


def test_apgd_stays_in_the_ball_and_keeps_the_error_it_meets() -> None:
    model, images, labels = bent_classifier()
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
    for constraint in (L2Ball(0.3), LinfBall(0.02)):
        for loss in ("ce", "dlr"):
            found = apgd(model, x, y, constraint=constraint, loss=loss, steps=12)
            assert torch.allclose(constraint.project(found, x), found, atol=1e-6)
            assert model(found).argmax(1).eq(y).sum() < model(x).argmax(1).eq(y).sum()


def test_the_ratio_sees_through_a_softmax_that_saturates() -> None:
    """Logits times 10,000 leave cross-entropy no gradient; their ratio does not change at all."""
    model, images, labels = bent_classifier()

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1e4 * model.network(x)

    masked = Classifier.wrap(Scaled(), classes=3, mean=[0.4] * 3, std=[0.2] * 3, image_size=SIDE)
    given: dict[str, Any] = {"eps": [0.6], **PLAIN}
    honest = evaluate_accuracy(model, images, labels, **given)[1].share
    fooled = evaluate_accuracy(masked, images, labels, **given)[1].share
    apgd_share = evaluate_accuracy(masked, images, labels, attack="apgd", steps=30, **given)[1].share
    assert fooled > honest + 0.2
    assert apgd_share <= honest + 0.02


def test_restarts_only_find_more_and_begin_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustsynth.evaluation import attacks

    model, images, labels = bent_classifier()
    starts: list[torch.Tensor] = []

    def attack(problem: Any, **settings: Any) -> torch.Tensor:
        assert settings["steps"] == 7
        assert settings["step_size"] == pytest.approx(2.5 * 0.3 / 7)
        starts.append(problem.start)
        return problem.center

    monkeypatch.setattr(attacks, "pgd", attack)
    evaluate_accuracy(model, images[:8], labels[:8], eps=[0.3], restarts=3, steps=7, precision="float32", batch_size=8)
    assert len(starts) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_an_images_attack_does_not_depend_on_which_others_are_evaluated() -> None:
    model, images, labels = bent_classifier()
    given: dict[str, Any] = {"eps": [0.4], **PLAIN}
    whole = evaluate_accuracy(model, images, labels, **given)
    parts = [evaluate_accuracy(model, images, labels, indices=np.arange(96)[r::3], **given) for r in range(3)]
    for row, *shares in zip(whole, *parts, strict=True):
        assert (row.correct, row.total) == (sum(s.correct for s in shares), sum(s.total for s in shares))


@pytest.mark.parametrize("change", [{"restarts": 0}, {"steps": 0}, {"attack": "cw"}, {"indices": []}])
def test_settings_that_make_no_sense_are_told(change: dict[str, Any]) -> None:
    model, images, labels, _, _ = linear_problem(10)
    with pytest.raises(UserError):
        evaluate_accuracy(model, images, labels, eps=[0.1], **PLAIN, **change)


def test_the_ratio_needs_three_classes() -> None:
    model = linear_classifier()
    x = torch.full((1, 1, SIDE, SIDE), 0.5)
    with pytest.raises(UserError, match="3 or more classes"):
        apgd(model, x, torch.tensor([0]), constraint=L2Ball(0.1), loss="dlr")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_bundled_classifier_as_foolbox_sees_it() -> None:
    """Same steps from the same images: within two images of 64, which rounding may turn."""
    foolbox = pytest.importorskip("foolbox")
    model = load_model("cifar10-small", device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = model(x).argmax(1)
    eps = 0.25
    theirs = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=2.5 * eps / 20, steps=20, random_start=False)
    wrapped = foolbox.PyTorchModel(model.requires_grad_(False), bounds=(0, 1), device="cpu")
    _, _, fooled = theirs(wrapped, x, labels, epsilons=eps)
    problem = Problem(x, Untargeted(model, labels), L2Ball(eps))
    attacked = pgd(problem, step_size=2.5 * eps / 20, steps=20, use_best=False)
    with torch.no_grad():
        ours = int((model(attacked).argmax(1) == labels).sum())
    assert 0 < ours < 64
    assert abs(ours - int((~fooled).sum())) <= 2
    rows = evaluate_accuracy(model, images, labels.numpy(), eps=[eps], precision="float32", batch_size=32)
    assert rows[1].correct <= ours + 1  # That also starts at random.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((0, SIDE, SIDE, 1), np.uint8), "labels": np.zeros(0, np.int64)}, "got none"),
        ({"images": np.zeros((4, 6, 6, 1), np.uint8), "labels": np.zeros(4, np.int64)}, r"\(4, 6, 6, 1\)"),
        ({"images": np.zeros((4, SIDE, SIDE, 3), np.uint8), "labels": np.zeros(4, np.int64)}, "8, 1"),
        ({"labels": np.full(120, 2)}, "label from 0 to 1"),
        ({"norm": "l1"}, "l2, linf"),
        ({"eps": [0.1, -0.5]}, "-0.5"),
        ({"eps": [float("nan")]}, "nan"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], said: str) -> None:
    model, images, labels, _, _ = linear_problem()
    given: dict[str, Any] = {"images": images, "labels": labels, "eps": [0.1]} | change
    with pytest.raises(UserError, match=said):
        evaluate_accuracy(model, given.pop("images"), given.pop("labels"), **given, **PLAIN)


def test_a_gradient_that_is_not_finite_names_the_image() -> None:
    class Touchy(nn.Module):
        """Right about everything, with an infinite gradient (of a root at 0) for images that begin with black."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([1 + x[:, 0, 0, 0].sqrt(), torch.zeros(len(x))], 1)

    model = Classifier.wrap(Touchy(), classes=2, mean=[0.0], std=[1.0], image_size=SIDE)
    images = np.full((50, SIDE, SIDE, 1), 128, np.uint8)
    images[43, 0, 0, 0] = 0
    with pytest.raises(UserError, match="image 43 at step 0"):
        evaluate_accuracy(model, images, np.zeros(50, np.int64), eps=[0.1], **PLAIN)


# The command line


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model folder with seeds, and its images in ``data`` beside it."""
    model, images, labels = bent_classifier()
    names = ("blue", "green", "red")
    folder = tmp_path / "model"
    fit_class_seeds(images, labels, classes=3, image_size=SIDE).save(folder)
    card = ModelCard(
        "model", "small-cnn", 4, 3, SIDE, names, (0.4,) * 3, (0.2,) * 3, threat_model={"norm": "l2", "eps": 0.4}
    )
    save_model(folder, model, card)
    for index, (image, label) in enumerate(zip(images[:45], labels[:45], strict=True)):
        path = tmp_path / "data" / "test" / names[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def evaluate(folder: Path, *more: object) -> Result:
    data = folder.parent / "data"
    return call(
        *("evaluate", "--model", folder, "--data", data, "--precision", "float32", "--batch-size", 32),
        *("--device", "cpu", *more),
    )


def test_evaluate_prints_one_row_a_radius(stored: Path) -> None:
    before = (stored / "card.json").read_bytes()
    result = evaluate(stored, "--eps", "0.2,0.6")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if " of 45 images" in line]
    assert [row.split("  ")[0] for row in rows] == ["clean", "PGD-20 l2 at eps 0.2", "PGD-20 l2 at eps 0.6"]
    shares = [float(row.split(" %")[0].split()[-1]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 80
    assert (stored / "card.json").read_bytes() == before


def test_the_models_own_radius_is_the_default_of_its_own_norm_alone(stored: Path) -> None:
    assert "PGD-20 l2 at eps 0.4" in evaluate(stored).output
    result = evaluate(stored, "--norm", "linf")
    assert (result.exit_code, "--eps" in result.output) == (2, True)
    assert "PGD-20 linf at eps 0.02" in evaluate(stored, "--norm", "linf", "--eps", "0.02").output


def test_record_writes_the_card_and_keeps_the_sums(stored: Path) -> None:
    before = ModelCard.load(stored)
    result = evaluate(stored, "--eps", "0.4", "--record", "--num", 30, "--seed", 5)
    assert result.exit_code == 0, result.output
    after = ModelCard.load(stored)
    names = ("model.safetensors", "seeds.safetensors")
    assert after.sha256 == before.sha256 == {name: sha256(stored / name) for name in names}
    assert (after.accuracies["norm"], after.accuracies["seed"]) == ("l2", 5)
    assert [(row["eps"], row["images"]) for row in after.accuracies["rows"]] == [(0.0, 30), (0.4, 30)]
    low, high = after.accuracies["rows"][1]["interval"]
    assert low <= after.accuracies["rows"][1]["share"] <= high
    assert json.loads((stored / "card.json").read_text(encoding="utf-8"))["classes"] == ["blue", "green", "red"]


def test_classes_in_another_order_are_matched_by_name(stored: Path) -> None:
    """Class folders are labelled by their sorted names, which need not be the model's order."""
    expected = evaluate(stored, "--eps", "0.2").stdout
    card = ModelCard.load(stored)
    weights = (stored / "model.safetensors").read_bytes()
    data = stored.parent / "data" / "test"
    # The model now calls its three classes red, blue, green; the pictures are renamed with them.
    renamed = dict(zip(card.classes, ("red", "blue", "green"), strict=True))
    for old in card.classes:
        (data / old).rename(data / f"old-{old}")
    for old, new in renamed.items():
        (data / f"old-{old}").rename(data / new)
    values = json.loads((stored / "card.json").read_text(encoding="utf-8"))
    values["classes"] = list(renamed.values())
    (stored / "card.json").write_text(json.dumps(values), encoding="utf-8")
    got = evaluate(stored, "--eps", "0.2").stdout
    assert got.splitlines()[0] == expected.splitlines()[0]
    assert (stored / "model.safetensors").read_bytes() == weights


def test_another_number_of_classes_is_refused(stored: Path) -> None:
    path = stored.parent / "data" / "test" / "yellow" / "1.png"
    path.parent.mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(path)
    result = evaluate(stored, "--eps", "0.2")
    assert result.exit_code == 2
    assert "the model's 3 classes" in result.output
    assert "got 4" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--seed", "-1"], "--seed"), (["--eps", "a"], "0.25,0.5"), (["--eps", "-1"], "eps"), (["--norm", "l1"], "linf")],
)
def test_a_mistake_exits_with_two_and_no_traceback(stored: Path, arguments: list[str], said: str) -> None:
    result = evaluate(stored, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_apgd_at_the_command_line(stored: Path) -> None:
    result = evaluate(stored, "--attack", "apgd", "--steps", 10, "--restarts", 2, "--eps", "0.4")
    assert result.exit_code == 0, result.output
    assert "APGD-10 l2 at eps 0.4" in result.stdout
    assert "PGD-10 l2 at eps 0.4" in evaluate(stored, "--steps", 10, "--eps", "0.4").stdout


def test_pgd_is_kept_and_gone_on_with(stored: Path, tmp_path: Path) -> None:
    given = ("--eps", "0.2,0.4", "--out", tmp_path / "run", "--batch-size", 10)
    first = evaluate(stored, *given)
    assert (first.exit_code, "done already" in first.stderr) == (0, False)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"eps-0.2", "eps-0.4"}
    again = evaluate(stored, *given)
    assert (again.stdout, again.stderr.count("45 of 45 images are done already")) == (first.stdout, 2)
    refused = evaluate(stored, *given, "--seed", 1)
    assert (refused.exit_code, "(seed)" in refused.output) == (2, True), refused.output
    replaced = evaluate(stored, *given, "--seed", 1, "--overwrite")
    assert (replaced.exit_code, "done already" in replaced.stderr) == (0, False)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_ctrl_c_keeps_what_is_finished(stored: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    """In the middle of an attempt: what is under way is lost, what is finished stays, and the same command goes on."""
    from robustsynth.evaluation.attacks import GradientAttack

    given = ("--attack", attack, "--steps", 5, "--eps", "0.4", "--batch-size", 10)
    undisturbed = evaluate(stored, *given, "--out", stored.parent / "undisturbed")
    attacked, passes = GradientAttack.attacked, []

    def interrupted(self: GradientAttack, *arguments: Any) -> torch.Tensor:
        def stop() -> None:
            passes.append(1)
            if len(passes) == 33:
                raise KeyboardInterrupt

        self.on_pass = stop
        return attacked(self, *arguments)

    monkeypatch.setattr(GradientAttack, "attacked", interrupted)
    stopped = evaluate(stored, *given)
    assert stopped.exit_code == 130
    done = int(stopped.stderr.split("stopped after ")[1].split(" of 45 images")[0])
    assert done in (20, 30)
    assert f"of {done} images" in stopped.stdout
    monkeypatch.undo()
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(stored.parent / "cache"))
    resumed = evaluate(stored, *given)
    assert f"{done} of 45 images are done already" in resumed.stderr
    assert resumed.stdout == undisturbed.stdout


def test_masking_is_looked_for_when_asked(stored: Path) -> None:
    result = evaluate(stored, "--eps", "0.2,0.4", "--check-masking", "--num", 10)
    assert result.exit_code == 0, result.output
    assert "signs of masked gradients at eps 0.4, on 10 images" in result.stderr
    assert sum(line.startswith(("SEEN ", "not seen ")) for line in result.stdout.splitlines()) == 6


def test_data_of_other_classes_are_refused_and_other_names_of_the_same_are_not(stored: Path) -> None:
    right = evaluate(stored, "--eps", "0").stdout
    test = stored.parent / "data" / "test"
    (test / "blue").rename(test / "Blues")
    assert evaluate(stored, "--eps", "0").stdout == right
    (test / "Blues").rename(test / "navy")
    result = evaluate(stored, "--eps", "0")
    assert result.exit_code == 2
    assert "expected data with the model's classes (blue, green, red), got 'navy' among" in " ".join(
        result.output.split()
    )
    for number, name in enumerate(("navy", "green", "red")):
        (test / name).rename(test / str(number))
    result = evaluate(stored, "--eps", "0")
    assert (result.stdout, "taking them in their order" in result.output) == (right, True)


@pytest.mark.parametrize(
    ("change", "said"), [("--eps=-1", "radii --eps of 0 or more"), ("--eps=inf", "radii --eps of 0")]
)
def test_radii_that_are_none_are_refused(stored: Path, change: str, said: str) -> None:
    result = evaluate(stored, change)
    assert (result.exit_code, said in " ".join(result.output.split())) == (2, True), result.output
