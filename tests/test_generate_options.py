"""What generation can do beyond the paper: mixtures as seeds, mixes of classes, ensembles, from coarse to fine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustsynth as rs
from conftest import make_model_folder, pictures_of_classes, png
from robustsynth.cli import main
from robustsynth.constraints import L2Ball, ball
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model
from robustsynth.objectives import CrossEntropy, Ensemble, MixedCrossEntropy
from robustsynth.randomness import image_generators
from robustsynth.seeds import (
    MIXTURES_FILE,
    SEEDS_FILE,
    TENSORS,
    ClassMixtures,
    ClassSeeds,
    add_mixtures,
    fit_class_mixtures,
    fit_class_seeds,
)
from robustsynth.tasks.functions import generate, generate_steps
from robustsynth.tasks.generation import (
    CoarseToFine,
    check_scales,
    check_targets,
    main_classes,
    named,
    parse_mix,
)

FIXED = {"precision": "float32", "batch_size": 4}
LABELS = torch.tensor([0, 1, 2, 2, 0])
MIXES = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5]])


@pytest.fixture(scope="module")
def mixed_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny model with mixtures beside its seeds."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("mixed") / "tiny"))
    add_mixtures(folder, *pictures_of_classes(3, 12, 16, 3), components=2)
    return folder


@pytest.fixture
def mixed(mixed_folder) -> Classifier:
    return load_model(mixed_folder, device="cpu")


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory) -> Path:
    """Another network for the same classes in another order."""
    return make_model_folder(
        tmp_path_factory.mktemp("other") / "other",
        architecture="small-cnn",
        classes=("t-shirt", "cat", "ship"),
        image_size=16,
        channels=3,
    )


@pytest.fixture
def other(other_folder) -> Classifier:
    return load_model(other_folder, device="cpu")


OPTIONS = {
    "mixture": {"seeds_from": "mixture"},
    "two scales": {"scales": 2},
    "three scales": {"scales": 3},
    "ensemble": {"ensemble": True},
    "mix": {"labels": MIXES[[0, 1, 2, 2, 0]]},
    "all": {"seeds_from": "mixture", "scales": 2, "ensemble": True, "labels": MIXES[[0, 1, 2, 2, 0]]},
}


def drawn(model: Classifier, other: Classifier, option: dict, places: list[int], **given) -> torch.Tensor:
    option = dict(option)
    labels = option.pop("labels", LABELS)[places]
    ensemble = [other] if option.pop("ensemble", False) else []
    return generate(model, labels, indices=places, ensemble=ensemble, **(FIXED | option | given))


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_each_option_changes_images_and_none_depends_on_the_others(mixed, other, option):
    whole = drawn(mixed, other, option, list(range(5)))
    assert whole.shape == (5, 3, 16, 16)
    assert not torch.equal(whole, drawn(mixed, other, {}, list(range(5))))
    assert torch.equal(whole[[3, 1]], drawn(mixed, other, option, [3, 1]))
    assert not torch.equal(whole, drawn(mixed, other, option, list(range(5)), seed=1))


def test_options_are_off_unless_asked_for(mixed, tiny):
    """A model's images do not change because mixtures lie beside it."""
    assert torch.equal(generate(mixed, LABELS, **FIXED), generate(tiny, LABELS, **FIXED))
    assert torch.equal(generate(tiny, LABELS, ensemble=[], scales=1, **FIXED), generate(tiny, LABELS, **FIXED))


# ---- mixtures as seeds --------------------------------------------------------------------------------------------


def two_kinds(count: int, side: int = 8) -> np.ndarray:
    """Images that are either dark and plain or bright and grainy: nothing like one normal."""
    random = np.random.default_rng(0)
    bright = np.arange(count) % 4 == 0
    level = np.where(bright, 190.0, 60.0)[:, None, None, None]
    slope = np.linspace(-1, 1, side)[None, :, None, None] * random.normal(0, 8, (count, 1, 1, 1))
    grain = np.where(bright, 12.0, 3.0)[:, None, None, None] * random.normal(size=(count, side, side, 3))
    return (level + slope + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def kinds() -> ClassSeeds:
    pictures = two_kinds(240)
    labels = np.repeat([0, 1], 120)
    seeds = fit_class_seeds(pictures, labels, classes=2, image_size=8, rank=3)
    return dataclasses.replace(seeds, mixtures=fit_class_mixtures(seeds, pictures, labels, components=2))


def test_a_mixture_has_the_kinds_that_one_normal_has_not(kinds):
    labels = torch.zeros(400, dtype=torch.long)
    one, mixture = (
        getattr(kinds, kind)(labels, image_generators(0, range(400))) for kind in ("multivariate", "mixture")
    )
    level = mixture.mean((1, 2, 3))
    bright = level > 0.5
    assert 0.15 < float(bright.float().mean()) < 0.35, "a quarter is bright"
    assert float(((level - 190 / 255).abs().minimum((level - 60 / 255).abs()) < 0.08).float().mean()) > 0.95
    assert float(((one.mean((1, 2, 3)) - 0.49).abs() < 0.1).float().mean()) > 0.1, "one normal draws what is between"

    def grain(images: torch.Tensor) -> float:
        return float((images[..., 1:] - images[..., :-1]).std())

    assert grain(mixture[bright]) > 2 * grain(mixture[~bright]), "and each is as grainy as its kind"


def test_components_are_what_was_fitted(kinds):
    fitted = kinds.mixtures
    torch.testing.assert_close(fitted.weights.sum(1), torch.ones(2))
    torch.testing.assert_close(fitted.weights.amin(1), torch.full((2,), 0.25), rtol=0.02, atol=0)
    assert torch.equal(fitted.factors, fitted.factors.tril())
    # Over all, coordinates have the mean and variance of those of one normal.
    mean = (fitted.weights[..., None] * fitted.means).sum(1)
    torch.testing.assert_close(mean, torch.zeros(2, 3), rtol=0, atol=1e-3)
    second = fitted.factors.square().sum(3) + fitted.means.square()
    torch.testing.assert_close((fitted.weights[..., None] * second).sum(1), torch.ones(2, 3), rtol=0.02, atol=0)


def test_one_component_is_nearly_one_normal():
    pictures, labels = pictures_of_classes(2, 60, 8, 3)
    seeds = fit_class_seeds(pictures, labels, classes=2, image_size=8, rank=4)
    seeds = dataclasses.replace(seeds, mixtures=fit_class_mixtures(seeds, pictures, labels, components=1))
    chosen = torch.tensor([0, 1, 1])
    one, mixture = (getattr(seeds, kind)(chosen, image_generators(0, range(3))) for kind in ("multivariate", "mixture"))
    assert float((one - mixture).abs().max()) < 0.02


def test_images_that_are_all_alike_can_be_fitted():
    pictures, labels = np.full((20, 8, 8, 3), 128, np.uint8), np.arange(20) % 2
    seeds = fit_class_seeds(pictures, labels, classes=2, image_size=8, rank=2)
    fitted = fit_class_mixtures(seeds, pictures, labels, components=2)
    assert all(bool(getattr(fitted, name).isfinite().all()) for name in TENSORS)


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_components_are_chosen_by_their_weights(uniform, weights):
    count = len(weights)
    mixtures = ClassMixtures(
        weights=torch.tensor([weights]),  # as rounded to float16, they need not sum to 1
        means=torch.arange(count).float().view(1, count, 1),
        factors=torch.zeros(1, count, 1, 1),
        detail=torch.arange(count).float().view(1, count),
    )
    along, detail = mixtures.coordinates(0, torch.zeros(1), torch.tensor(uniform, dtype=torch.float32))
    assert float(along) == float(detail)
    edges = np.cumsum(np.float32(weights)) / np.cumsum(np.float32(weights))[-1]
    component = int(detail)
    assert (edges[component - 1] if component else 0) - 1e-5 <= uniform <= edges[component] + 1e-5


def test_mixtures_come_back_as_they_were_saved(kinds, tmp_path):
    kinds.save(tmp_path)
    path = kinds.mixtures.save(tmp_path)
    again = ClassMixtures.load(tmp_path)
    for name in TENSORS:
        torch.testing.assert_close(getattr(again, name), getattr(kinds.mixtures, name), rtol=1e-3, atol=1e-3)
    assert path.stat().st_size < 2 * sum(getattr(again, name).numel() for name in TENSORS) + 1000


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: torch.save({"means": torch.zeros(1)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_mixtures_are_named(kinds, tmp_path, damage):
    kinds.save(tmp_path)
    damage(kinds.mixtures.save(tmp_path))
    with pytest.raises(UserError, match=rf"mixtures in .*{MIXTURES_FILE}, but it is damaged .*--fit-mixtures"):
        ClassMixtures.load(tmp_path)


def test_mixtures_of_other_seeds_are_refused(kinds, tmp_path):
    kinds.save(tmp_path)
    kinds.mixtures.save(tmp_path)
    dataclasses.replace(kinds, std=kinds.std + 1).save(tmp_path)
    with pytest.raises(UserError, match=r"fitted to, but .*seeds\.safetensors is another file; fit the mixtures again"):
        ClassMixtures.load(tmp_path)


def test_a_model_without_mixtures_says_how_to_get_them(tiny):
    with pytest.raises(UserError, match=r"found none; fit them .* --fit-mixtures DATA, or use --seeds-from multivar"):
        generate(tiny, [0], seeds_from="mixture", **FIXED)


def test_a_card_knows_its_mixtures(mixed_folder, tiny_folder, tmp_path):
    before, card = ModelCard.load(tiny_folder), ModelCard.load(mixed_folder)
    assert dataclasses.replace(card, sha256={k: v for k, v in card.sha256.items() if k != MIXTURES_FILE}) == before
    assert (mixed_folder / SEEDS_FILE).read_bytes() == (tiny_folder / SEEDS_FILE).read_bytes()
    copy = Path(shutil.copytree(mixed_folder, tmp_path / "copy"))
    with (copy / MIXTURES_FILE).open("ab") as opened:
        opened.write(b" ")
    model = load_model(copy, device="cpu")
    assert torch.equal(generate(model, [0], **FIXED), generate(model, [0], seeds_from="multivariate", **FIXED))
    with pytest.raises(UserError, match=rf"{MIXTURES_FILE} with SHA-256 .* fit it again"):
        generate(model, [0], seeds_from="mixture", **FIXED)


def test_a_mixture_needs_images_enough(kinds):
    with pytest.raises(UserError, match="at least 15 images of each class for 3 components, got 10 of class 0"):
        fit_class_mixtures(kinds, two_kinds(20), np.arange(20) % 2, components=3)
    with pytest.raises(UserError, match="1 or more components, got 0"):
        fit_class_mixtures(kinds, two_kinds(20), np.arange(20) % 2, components=0)


def test_without_scikit_learn_one_is_told_what_to_install(kinds, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(UserError, match=r"scikit-learn .*pip install 'robustsynth\[fit\]'"):
        fit_class_mixtures(kinds, two_kinds(20), np.arange(20) % 2)


# ---- mixes of classes ---------------------------------------------------------------------------------------------


def test_a_mix_is_its_recipe(tiny, tiny_folder):
    """A draw of the class that weighs most, then the loop on the weighted sum of cross-entropies."""
    got = generate(tiny, MIXES, seed=3, precision="float32", batch_size=3, eps=1.5, step_size=0.3, steps=4)
    seeds = ClassSeeds.load(tiny_folder)
    start = rs.sample_seeds(seeds, "multivariate", torch.tensor([0, 1, 2]), image_generators(3, range(3)))
    frozen = tiny.frozen(precision="float32", batch_size=3)
    problem = rs.Problem(start, MixedCrossEntropy(frozen, MIXES), L2Ball(1.5))
    assert torch.equal(got, rs.pgd(problem, step_size=0.3, steps=4))


def test_images_of_a_mix_come_nearer_to_its_shares(tiny):
    before, after = (generate(tiny, MIXES, steps=steps, eps=6.0, **FIXED) for steps in (0, 40))
    with torch.no_grad():
        away = [(tiny(x).softmax(1) - MIXES).abs().sum(1) for x in (before, after)]
    assert bool((away[1] < 0.6 * away[0]).all())


def test_a_mix_of_one_class_is_that_class(tiny):
    alone = generate(tiny, F.one_hot(LABELS, 3).float(), **FIXED)
    torch.testing.assert_close(alone, generate(tiny, LABELS, **FIXED), rtol=0, atol=1e-4)


def test_no_mixes_give_no_images(tiny):
    assert generate(tiny, torch.empty(0, 3), **FIXED).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([[0.5, 0.5]]), r"weights of the classes as a floating tensor \(N, 3\), got .* \(1, 2\)"),
        (torch.tensor([[0.5, 0.5, 0.5]]), "sum to 1"),
        (torch.tensor([0.5]), r"labels as \(N,\) integers, .*for mixes of classes give their weights, \(N, 3\) floats"),
    ],
)
def test_bad_mixes(tiny, weights, message):
    with pytest.raises(UserError, match=message):
        generate(tiny, weights, **FIXED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat:0.6,ship:0.4", [0.6, 0.4, 0]),
        ("ship:1,t-shirt:3", [0, 0.25, 0.75]),
        (" Cat : 2 , 2:2", [0.5, 0, 0.5]),
        ("cat:1,cat:1,ship:2", [0.5, 0.5, 0]),
        ("cat:1", [1, 0, 0]),
    ],
)
def test_mixes_as_people_write_them(tiny, text, expected):
    weights = parse_mix(text, tiny)
    assert weights.tolist() == pytest.approx(expected)
    assert parse_mix(named(weights, tiny.classes), tiny).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("text", ["cat", "cat:0.6,ship", "cat:0,ship:1", "cat:-1", "cat:nan", "cat:inf", ":1", "", ","])
def test_mixes_that_nobody_can_read(tiny, text):
    with pytest.raises(UserError, match=r"expected a mix such as cat:0\.6,t-shirt:0\.4, got"):
        parse_mix(text, tiny)


def test_mixes_of_unknown_classes(tiny):
    with pytest.raises(UnknownNameError, match="unknown class 'shp': did you mean 'ship'"):
        parse_mix("cat:1,shp:1", tiny)


def test_targets_are_labels_or_weights(tiny):
    assert main_classes(check_targets(MIXES, tiny)).tolist() == [0, 1, 2]
    assert check_targets([2, 0], tiny).tolist() == [2, 0]
    assert named(torch.tensor(1), tiny.classes) == "ship"
    assert check_targets(MIXES.double(), tiny).dtype == torch.float32


# ---- ensembles ----------------------------------------------------------------------------------------------------


def test_an_ensemble_is_its_recipe(tiny, tiny_folder, other):
    """The mean of the losses, each network's logits in the order of the first one's classes."""
    got = generate(tiny, [0, 1, 2], seed=3, ensemble=[other], **FIXED, eps=1.5, step_size=0.3, steps=4)
    start = rs.sample_seeds(
        ClassSeeds.load(tiny_folder), "multivariate", torch.tensor([0, 1, 2, 2]), image_generators(3, [0, 1, 2, 2])
    )
    mine, its = (model.frozen(**FIXED) for model in (tiny, other))
    objective = Ensemble([CrossEntropy(mine, [0, 1, 2, 2]), CrossEntropy(its, [1, 2, 0, 0])])
    expected = rs.pgd(rs.Problem(start, objective, L2Ball(1.5)), step_size=0.3, steps=4)[:3]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_an_ensemble_convinces_both(tiny, other):
    labels = torch.arange(6) % 3
    settings = {"eps": 6.0, "step_size": 0.5, "steps": 12, **FIXED}
    names = [other.classes.index(name) for name in tiny.classes]
    with torch.no_grad():
        alone, both = (
            F.cross_entropy(other(generate(tiny, labels, ensemble=e, **settings))[:, names], labels)
            for e in ([], [other])
        )
    assert float(both) < 0.9 * float(alone)


def linear(
    size: int | None = 16, channels: int = 3, classes: tuple[str, ...] = ("cat", "ship", "t-shirt")
) -> Classifier:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, len(classes)))
    return Classifier.wrap(network, classes=classes, mean=[0.5] * channels, std=[0.2] * channels, image_size=size)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": ("cat", "ship", "dog")}, "same classes, got one with dog and without t-shirt"),
        ({"size": 32}, "images of 16 pixels and 3 channels, got 'Sequential' for 32 pixels and 3"),
        ({"channels": 1}, "for 16 pixels and 1"),
        ({"size": None, "channels": 1}, "for None pixels and 1"),
    ],
)
def test_ensembles_that_do_not_fit(tiny, given, message):
    with pytest.raises(UserError, match=message):
        generate(tiny, [0], ensemble=[linear(**given)], **FIXED)


def test_a_network_for_any_size_may_join(tiny):
    assert generate(tiny, [0], ensemble=[linear(size=None)], **FIXED).shape == (1, 3, 16, 16)


# ---- from coarse to fine ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(scales=st.integers(1, 4), steps=st.integers(0, 40))
def test_scales_follow_one_another(scales, steps):
    """From the coarsest to the whole image, at most a quarter of the steps, but a step at least, on canvases."""
    constraint = CoarseToFine(ball("linf", 1.0), scales=scales, steps=steps)
    grad = torch.zeros(1, 1, 32, 32)
    grad[0, 0, 0, 0] = 1.0
    reach = [int((constraint.direction(grad)[0, 0, 0] > 0).sum()) for _ in range(steps)]
    assert reach == sorted(reach, reverse=True)
    assert len(set(reach)) == min(scales, steps)
    assert reach.count(1) >= min(steps, steps - max(scales - 1, round(steps / 4)))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_ball_holds_at_every_scale(tiny, norm):
    start = generate(tiny, [0, 1, 2], steps=0, **FIXED)
    given = {"norm": norm, "eps": 0.5, "step_size": 0.4, "steps": 6, "use_best": False, **FIXED}
    moved = (generate(tiny, [0, 1, 2], scales=3, **given) - start).flatten(1)
    size = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
    assert 0.4 < float(size.max()) <= 0.5 + 1e-5


def test_one_scale_is_the_ball():
    grad, center = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    coarse, plain = CoarseToFine(L2Ball(1.0), scales=1, steps=3), L2Ball(1.0)
    for _ in range(3):
        assert torch.equal(coarse.direction(grad), plain.direction(grad))
        assert torch.equal(coarse.project(center + grad, center), plain.project(center + grad, center))
    generators = image_generators(0, range(2)), image_generators(0, range(2))
    assert torch.equal(coarse.random_start(center, generators[0]), plain.random_start(center, generators[1]))


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (7, 7)])
def test_a_coarse_step_is_a_step_of_the_canvas(shape):
    """The gradient of what is drawn on a small canvas, enlarged linearly."""
    weights = torch.randn(1, 3, *shape)
    canvas = torch.zeros(1, 3, shape[0] // 2, shape[1] // 2, requires_grad=True)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=shape, mode="bilinear", align_corners=False)

    (grad,) = torch.autograd.grad((enlarged(canvas) * weights).sum(), canvas)
    expected = enlarged(grad)
    got = CoarseToFine(L2Ball(1.0), scales=2, steps=2).direction(weights)
    torch.testing.assert_close(got, expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_coarse_steps_leave_the_seeds_detail(tiny):
    """Stopped before the fine scale, the change is smooth, not the image."""
    start = generate(tiny, [0, 1], steps=0, **FIXED)
    given = {"scales": 2, "steps": 16, "eps": 2.0, "use_best": False, **FIXED}
    begun = next(p.previews for p in generate_steps(tiny, [0, 1], **given) if p.step == 4) - start
    whole = generate(tiny, [0, 1], **given) - start

    def roughness(change: torch.Tensor) -> float:
        return float((change[..., 1:] - change[..., :-1]).square().mean() / change.square().mean())

    assert float(begun.abs().max()) > 0
    assert roughness(begun) < 0.6 * roughness(whole)


@pytest.mark.parametrize(("size", "most"), [(32, 4), (28, 3), (16, 3), (7, 1), (4, 1), (2, 1)])
def test_canvases_have_a_least_size(size, most):
    check_scales(most, size)
    with pytest.raises(UserError, match=f"scales of 1 to {most} for images of {size} pixels, got {most + 1}"):
        check_scales(most + 1, size)


def test_too_many_scales_are_refused_before_anything_is_written(tiny, tiny_folder, tmp_path):
    with pytest.raises(UserError, match=r"scales of 1 to 3 for images of 16 pixels, got 4: .* would have 2"):
        generate(tiny, [0], scales=4, **FIXED)
    assert "got 4" in draw(tiny_folder, tmp_path / "out", "--scales", "4", code=2)
    assert not (tmp_path / "out").exists()


# ---- the command line -------------------------------------------------------------------------------------


def run(*arguments: str | Path, code: int = 0) -> str:
    """What a command says; the terminal is wide, so that no message is broken."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "2000"})
    assert result.exit_code == code, result.output
    return result.output


def draw(model: Path, out: Path, *arguments: str | Path, code: int = 0) -> str:
    fixed = ("--precision", "float32", "--batch-size", "4", "--device", "cpu")
    return run("generate", "--model", model, "--out", out, *fixed, *arguments, code=code)


def record_of(out: Path) -> dict:
    return json.loads((out / "settings.json").read_text(encoding="utf-8"))


def test_mixes_on_the_command_line(tiny, tiny_folder, tmp_path):
    out = tmp_path / "out"
    draw(tiny_folder, out, "--mix", "ship:3,cat:1", "--mix", "t-shirt:1", "--num", "5")
    assert record_of(out)["classes"] == ["ship:0.75,cat:0.25", "t-shirt:1"]
    weights = torch.tensor([[0.25, 0.75, 0]] * 3 + [[0, 0, 1.0]] * 2)
    expected = rs.images.to_uint8(generate(tiny, weights, **FIXED))
    names = [f"{i:06d}-{'ship_0.75_cat_0.25' if i < 3 else 't-shirt_1'}" for i in range(5)]
    assert sorted(p.stem for p in out.glob("0*.png")) == names
    assert np.array_equal(np.stack([rs.images.read_image(out / f"{name}.png").pixels for name in names]), expected)
    assert record_of(out)["labels"] == ["ship:0.75,cat:0.25"] * 3 + ["t-shirt:1"] * 2
    assert rs.images.read_image(out / "grid.png").pixels.shape[0] > 2 * 16, "a row for each mix"
    assert "other ones (classes, labels_sha256)" in draw(tiny_folder, out, "--mix", "ship:1", "--num", "5", code=2)
    assert "--classes or --mix, got both" in draw(
        tiny_folder, tmp_path / "b", "--classes", "cat", "--mix", "cat:1", code=2
    )
    assert "a mix such as cat:0.6" in draw(tiny_folder, tmp_path / "b", "--mix", "cat", code=2)


def test_an_array_of_mixes_has_their_main_classes(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--mix", "ship:3,cat:1", "--num", "2", "--format", "npz")
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [1, 1]


def test_ensembles_on_the_command_line(tiny, other, tiny_folder, other_folder, digits_folder, tmp_path):
    out = tmp_path / "out"
    draw(tiny_folder, out, "--ensemble", other_folder, "--classes", "cat", "--num", "2")
    assert [member["name"] for member in record_of(out)["ensemble"]] == ["other"]
    assert record_of(out)["ensemble"][0]["sha256"] == other.card.sha256["model.safetensors"]
    expected = rs.images.to_uint8(generate(tiny, [0, 0], ensemble=[other], **FIXED))
    assert np.array_equal(rs.images.read_image(out / "000001-cat.png").pixels, expected[1])
    refused = draw(tiny_folder, out, "--classes", "cat", "--num", "2", code=2)
    assert "other ones (ensemble)" in refused
    assert "same classes" in draw(tiny_folder, tmp_path / "b", "--ensemble", digits_folder, code=2)
    assert "unknown model" in draw(tiny_folder, tmp_path / "b", "--ensemble", f"{other_folder},nobody", code=2)


def test_a_folder_of_an_earlier_version_goes_on(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--num", "3")
    record = record_of(tmp_path)
    assert (record["ensemble"], record["settings"].pop("scales")) == (None, 1)
    del record["ensemble"]
    (tmp_path / "settings.json").write_text(json.dumps(record))
    os.unlink(tmp_path / "000001-ship.png")
    assert "2 of 3 images are there already" in draw(tiny_folder, tmp_path, "--num", "3")
    assert "other ones (settings)" in draw(tiny_folder, tmp_path, "--num", "3", "--scales", "2", code=2)


def test_mixtures_on_the_command_line(tiny_folder, tmp_path):
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    pictures, labels = pictures_of_classes(3, 20, 16, 3)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        file = tmp_path / "data" / ("cat", "ship", "t-shirt")[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(picture))
    asked = ("--num", "3", "--seeds-from", "mixture")
    assert "--fit-mixtures DATA" in draw(model, tmp_path / "a", *asked, code=2)
    assert not (tmp_path / "a").exists()
    said = draw(model, tmp_path / "a", "--num", "3", "--fit-mixtures", tmp_path / "data")
    assert "fitting mixtures to 60 images" in said
    assert record_of(tmp_path / "a")["settings"]["seeds_from"] == "mixture"
    draw(model, tmp_path / "b", *asked)
    assert (tmp_path / "a" / "grid.png").read_bytes() == (tmp_path / "b" / "grid.png").read_bytes()
    shutil.rmtree(tmp_path / "data" / "cat")
    assert "images of the model's classes, cat, ship, t-shirt, to fit mixtures to, got ship, t-shirt" in draw(
        model, tmp_path / "c", "--fit-mixtures", tmp_path / "data", code=2
    )
