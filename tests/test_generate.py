"""Generation: the same seed gives the same bytes whatever else is drawn, and settings are found in the right order."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustsynth as rs
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.images import save_png
from robustsynth.loop import NonFiniteError
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model
from robustsynth.objectives import CrossEntropy
from robustsynth.seeds import SEED_KINDS, ClassSeeds, fit_class_seeds, sample_seeds
from robustsynth.solver import Stated, solve
from robustsynth.tasks.functions import generate, generate_steps
from robustsynth.tasks.generate import GENERATE, GenerateSettings
from robustsynth.tasks.settings import preset_names, resolve_settings

FIXED = {"precision": "float32", "batch_size": 8}

BESIDE_A_MODEL = [kind for kind in SEED_KINDS if kind != "mixture"]
"""Kinds of seeds that every trained model has; mixtures are tested with the other options."""


def test_generate_is_its_recipe(tiny, tiny_folder):
    """A draw of the class's distribution, then the loop on cross-entropy, keeping the best."""
    labels = torch.tensor([0, 1, 2, 2])
    got = generate(tiny, labels, seed=3, precision="float32", batch_size=4, eps=1.5, step_size=0.3, steps=5)
    start = sample_seeds(ClassSeeds.load(tiny_folder), "multivariate", labels, _streams(3, 4))
    frozen = tiny.frozen(precision="float32", batch_size=4)
    problem = rs.Problem(start, CrossEntropy(frozen, labels), rs.L2Ball(1.5))
    assert torch.equal(got, rs.pgd(problem, step_size=0.3, steps=5))
    assert got.dtype == torch.float32
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


def _streams(seed: int, count: int) -> list[torch.Generator]:
    from robustsynth.randomness import image_generators

    return image_generators(seed, range(count))


@pytest.mark.parametrize("kind", BESIDE_A_MODEL)
def test_images_become_their_class(tiny, kind):
    labels = torch.arange(12) % 3
    before = generate(tiny, labels, seeds_from=kind, steps=0, **FIXED)
    after = generate(tiny, labels, seeds_from=kind, eps=6.0, step_size=0.5, steps=12, **FIXED)
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(tiny(x), labels, reduction="none") for x in (before, after)]
    # The network is untrained, so that not every class can win; every image must come much nearer to its own.
    assert bool((losses[1] < 0.8 * losses[0]).all())


@pytest.mark.parametrize("kind", BESIDE_A_MODEL)
def test_a_seed_gives_the_same_bytes(tiny, tiny_folder, kind):
    first = generate(tiny, [0, 1, 2], seed=7, seeds_from=kind, **FIXED)
    again = generate(load_model(tiny_folder, device="cpu"), [0, 1, 2], seed=7, seeds_from=kind, **FIXED)
    assert torch.equal(first, again)
    assert not torch.equal(first, generate(tiny, [0, 1, 2], seed=8, seeds_from=kind, **FIXED))


@pytest.mark.parametrize("fixture", ["tiny_folder", "digits_folder"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_images_bytes_do_not_depend_on_the_others(fixture, batch_size, request):
    model = load_model(request.getfixturevalue(fixture), device="cpu")
    labels = torch.arange(40) % 3
    given = {"precision": "float32", "batch_size": batch_size, "eps": 3.0, "steps": 3}
    whole = generate(model, labels, **given)
    for count in (1, 5):
        assert torch.equal(generate(model, labels[:count], **given), whole[:count])
    chosen = [17, 3, 39, 22]
    assert torch.equal(generate(model, labels[chosen], indices=chosen, **given), whole[chosen])


def test_reduced_precision_draws_the_same_image(tiny):
    labels = torch.arange(8) % 3
    exact, reduced = (generate(tiny, labels, precision=p, batch_size=8) for p in ("float32", "bfloat16"))
    assert float((exact - reduced).abs().mean()) < 2 / 255


def test_the_generator_shows_every_step_of_every_batch(tiny):
    steps = generate_steps(tiny, [0, 1, 2, 0, 1], precision="float32", batch_size=2, steps=2)
    seen = [(progress.indices, progress.step, progress.finished) for progress in steps]
    assert seen == [(i, k, k == 2) for i in ((0, 1), (2, 3), (4,)) for k in range(3)]


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_preview_is_what_fewer_steps_would_give(tiny, step):
    steps = generate_steps(tiny, [0, 1], steps=9, use_best=False, **FIXED)
    stopped = next(progress.previews for progress in steps if progress.step == step)
    assert torch.equal(stopped, generate(tiny, [0, 1], steps=step, use_best=False, **FIXED))


def test_no_labels_give_no_images(tiny):
    for labels in ([], torch.empty(0, dtype=torch.long)):
        assert generate(tiny, labels, **FIXED).shape == (0, 3, 16, 16)
        assert generate(tiny, labels, start=torch.empty(0, 3, 16, 16), **FIXED).shape == (0, 3, 16, 16)


def test_linear_steps_fall_to_zero(tiny):
    settings = GenerateSettings(step_size=0.4, steps=4, step_schedule="linear")
    assert [settings.step_length(k) for k in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert GenerateSettings(step_size=0.4, steps=4).step_length(3) == 0.4
    constant, linear = (
        generate(tiny, [0], step_schedule=s, eps=9.0, use_best=False, **FIXED) for s in ("constant", "linear")
    )
    assert not torch.equal(constant, linear)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.0), ("linf", 0.05)])
def test_images_stay_in_the_ball(tiny, norm, eps):
    start = generate(tiny, [0, 1, 2], steps=0, **FIXED)
    moved = generate(tiny, [0, 1, 2], norm=norm, eps=eps, step_size=0.5, steps=6, use_best=False, **FIXED) - start
    size = moved.flatten(1).norm(dim=1) if norm == "l2" else moved.flatten(1).abs().amax(1)
    assert float(size.max()) <= eps * (1 + 1e-5)
    assert float(size.min()) > 0.5 * eps


# ---- where it starts ----------------------------------------------------------------------------------------------


def test_start_images(tiny):
    start = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generate(tiny, [0, 1, 2], start=start, steps=0, **FIXED), start)
    assert torch.equal(generate(tiny, [0, 1, 2], start=start.double(), steps=0, **FIXED), start)
    eight_bits = (255 * start).round().to(torch.uint8)
    assert torch.equal(generate(tiny, [0, 1, 2], start=eight_bits, steps=0, **FIXED), eight_bits.float() / 255)
    pixels = eight_bits.permute(0, 2, 3, 1).numpy()
    assert torch.equal(generate(tiny, [0, 1, 2], start=pixels, steps=0, **FIXED), eight_bits.float() / 255)
    part = generate(tiny, [2, 1], start=start[[2, 1]], indices=[2, 1], **FIXED)
    assert torch.equal(part, generate(tiny, [0, 1, 2], start=start, **FIXED)[[2, 1]])


BAD_STARTS = {
    "fewer than labels": (torch.rand(2, 3, 16, 16), r"start images \(3, 3, 16, 16\), one a label"),
    "more than labels": (torch.rand(4, 3, 16, 16), "one a label"),
    "another size": (torch.rand(3, 3, 8, 8), "one a label"),
    "another colour": (torch.rand(3, 1, 16, 16), r"\(N, 3, H, W\), got \(3, 1, 16, 16\); give 3 channels"),
    "of several sizes": ([torch.rand(3, 16, 16), torch.rand(3, 8, 8), torch.rand(3, 16, 16)], "3 of several sizes"),
    "one for all": (torch.rand(3, 16, 16), "one a label"),
    "whole numbers": (torch.zeros(3, 3, 16, 16, dtype=torch.int64), "uint8, or of floats"),
    "outside": (torch.full((3, 3, 16, 16), 1.5), r"start with values in \[0, 1\]"),
}


@pytest.mark.parametrize(("start", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_bad_start_images(tiny, start, message):
    with pytest.raises(UserError, match=message):
        generate(tiny, [0, 1, 2], start=start, **FIXED)


def test_a_start_that_is_no_number_is_named_by_its_place_in_the_job(tiny):
    start = torch.rand(20, 3, 16, 16)
    start[13, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="image 13 before the first step"):
        generate(tiny, torch.zeros(20, dtype=torch.long), start=start, **FIXED)


def test_a_folder_of_start_images(tiny, tmp_path):
    for i in range(2):
        save_png(tmp_path / "own" / f"{i}.png", np.full((20, 30, 3), 100 * (i + 1), np.uint8))
    for folder in (tmp_path / "own", str(tmp_path / "own")):
        drawn = generate(tiny, [0, 1, 2], seeds_from=folder, steps=0, **FIXED)
        assert drawn.shape == (3, 3, 16, 16)
        assert [round(255 * float(x.mean())) for x in drawn] == [100, 200, 100], "in turn"
    with pytest.raises(UserError, match="multivariate, mixture or a folder of start images, got 'uniforn'"):
        generate(tiny, [0], seeds_from="uniforn", **FIXED)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found none"):
        generate(tiny, [0], seeds_from=str(tmp_path / "empty"), **FIXED)
    (tmp_path / "own" / "1.png").write_text("no image")
    with pytest.raises(UserError, match=r"1\.png, but it cannot be read"):
        generate(tiny, [0, 1], seeds_from=str(tmp_path / "own"), **FIXED)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def plain(**given) -> Classifier:
    return Classifier.wrap(Plain(), classes=4, mean=[0.5] * 3, std=[0.2] * 3, **given)


def test_a_wrapped_network_starts_from_noise():
    model = plain(image_size=12)
    assert GENERATE.resolve(model).seeds_from == "uniform"
    assert generate(model, [0, 3], steps=2, **FIXED).shape == (2, 3, 12, 12)
    for kind in ("normal", "multivariate", "mixture"):
        with pytest.raises(UserError, match="a wrapped network has none; use seeds_from='uniform'"):
            generate(model, [0], seeds_from=kind, **FIXED)


def test_a_network_for_any_size_is_given_a_start(tmp_path):
    model = plain()
    with pytest.raises(UserError, match=r"give image_size to Classifier\.wrap, or start"):
        generate(model, [0], **FIXED)
    assert generate(model, [0], start=torch.rand(1, 3, 7, 9), steps=1, **FIXED).shape == (1, 3, 7, 9)
    save_png(tmp_path / "a.png", np.zeros((6, 8, 3), np.uint8))
    assert generate(model, [0], seeds_from=tmp_path, steps=1, **FIXED).shape == (1, 3, 6, 8)
    save_png(tmp_path / "b.png", np.zeros((6, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"of one size.*b\.png is 9×6"):
        generate(model, [0, 1], seeds_from=tmp_path, steps=1, **FIXED)


def test_seeds_of_another_model_are_refused(tiny_copy):
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    fit_class_seeds(images, np.arange(10) % 5, classes=5, image_size=16, rank=2).save(tiny_copy)
    with pytest.raises(UserError, match=r"seeds\.safetensors with SHA-256 .*restore it"):
        generate(load_model(tiny_copy, device="cpu"), [0], **FIXED)
    dataclasses.replace(ModelCard.load(tiny_copy), sha256={}).save(tiny_copy)
    with pytest.raises(UserError, match=r"seeds of 3 classes .* got 5 classes and 16 pixels"):
        generate(load_model(tiny_copy, device="cpu"), [0], **FIXED)


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3], "labels from 0 to 2, got 3 to 3"),
        ([0, -1], "labels from 0 to 2, got -1 to 0"),
        ([0.5], "integers, got torch.float32"),
        ([[0, 1]], r"integers, got torch.int64 \(1, 2\)"),
        (0.5, "integers"),
        ([[[1]]], "integers"),
    ],
)
def test_bad_labels(tiny, labels, message):
    for given in (labels, torch.tensor(labels)):
        with pytest.raises(UserError, match=message):
            generate(tiny, given, **FIXED)


@pytest.mark.parametrize(
    "labels", [None, [None], {"cat": 1}, [[0], [1, 2]], "shp", ["cat", "shp"], ["cat", 3], ["cat", None], object()]
)
def test_what_is_no_label_is_refused(tiny, labels):
    with pytest.raises(UserError, match=r"label|class"):
        generate(tiny, labels, **FIXED)


def test_classes_go_by_name_or_number(tiny):
    numbers = generate(tiny, [0, 1], **FIXED)
    for labels in (
        ["cat", "ship"],
        ("cat", 1),
        ["cat", np.int64(1)],
        np.array([0, 1]),
        torch.tensor([0, 1], dtype=torch.uint8),
    ):
        assert torch.equal(generate(tiny, labels, **FIXED), numbers)
    for label in ("ship", 1, np.int64(1), torch.tensor(1), ["ship"]):
        assert torch.equal(generate(tiny, label, **FIXED), generate(tiny, [1], **FIXED))


def test_bad_indices(tiny):
    with pytest.raises(UserError, match="one index a label, got 1 indices for 2 labels"):
        generate(tiny, [0, 1], indices=[0], **FIXED)
    with pytest.raises(UserError, match="some twice"):
        generate(tiny, [0, 1], indices=[4, 4], **FIXED)


BAD_SETTINGS = {
    "steps": [-1, 2.5, 3.0, math.nan, math.inf, "60", True],
    "step_size": [0, -1, math.nan, math.inf, "0.5"],
    "eps": [-1, math.nan, math.inf, "30", True],
    "norm": ["l3", 2],
    "step_schedule": ["cosine", 1],
    "seed_upsampling": ["linear", 3],
    "seeds_from": [3],
    "use_best": ["no", 1],
    "scales": [0, -1, 1.5, "2", True],
    "shift": [-1, 1.5, "2", True],
    "mirror": ["no", 1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD_SETTINGS.items() for v in values])
def test_bad_settings(tiny, name, value):
    with pytest.raises(UserError, match=rf"expected .*{name.split('_')[0]}.*got"):
        generate(tiny, [0], **{name: value}, **FIXED)


def test_every_setting_is_checked():
    assert set(BAD_SETTINGS) == {f.name for f in dataclasses.fields(GenerateSettings)}


def test_unknown_names(tiny):
    with pytest.raises(UnknownNameError, match="unknown setting of generate 'step': did you mean 'steps'"):
        generate(tiny, [0], step=3)
    with pytest.raises(UnknownNameError, match="unknown preset 'papr': did you mean 'paper'"):
        generate(tiny, [0], preset="papr")
    with pytest.raises(UserError, match="expected a precision of float32, bfloat16"):
        generate(tiny, [0], precision="float8")


# ---- settings -----------------------------------------------------------------------------------------------------


def a_model(size: int | None, tasks: dict | None = None) -> SimpleNamespace:
    card = None if tasks is None else SimpleNamespace(tasks=tasks)
    return SimpleNamespace(image_size=size, card=card, folder=None, classes=tuple("abcdefghij"))


def resolved(size, preset=None, tasks=None, **given) -> tuple[float, float, int]:
    found = resolve_settings(GenerateSettings, "generate", a_model(size, tasks), preset=preset, given=given)
    return pytest.approx((found.eps, found.step_size, found.steps))


def test_the_caller_comes_first_then_the_preset_then_the_card_then_the_paper():
    tuned = {"generate": {"eps": 6.0, "steps": 40}}
    assert resolved(32) == (30, 0.5, 60)
    assert resolved(32, tasks=tuned) == (6, 0.5, 40), "what the card leaves out is the paper's"
    assert resolved(32, "best", tuned) == (6, 0.5, 40)
    assert resolved(32, "best") == (30, 0.5, 60)
    assert resolved(32, "paper", tuned) == (30, 0.5, 60)
    assert resolved(32, "mcgill2019", tuned) == (30, 0.5, 100)
    assert resolved(32, "paper", tuned, eps=1.0) == (1, 0.5, 60)
    assert resolved(32, None, tuned, steps=0, eps=None) == (6, 0.5, 0), "None is not said, 0 is"
    assert resolved(32, None, {"generate": {"of_a_later_version": 1}}) == (30, 0.5, 60)
    assert resolved(32, None, {"inpaint": {"eps": 1.0}}) == (30, 0.5, 60)


@pytest.mark.parametrize(
    ("preset", "size", "expected"),
    [
        ("paper", 224, (40, 1, 60)),
        ("paper", 112, (20, 0.5, 60)),
        ("paper", 28, (30, 0.5, 60)),
        ("paper", 64, (30, 0.5, 60)),
        ("mcgill2019", 224, (40, 1, 100)),
        ("duke2023", 224, (40, 1, 60)),
        ("duke2023", 128, (40 * 128 / 224, 128 / 224, 60)),
        ("duke2023", 32, (40 / 7, 1 / 7, 60)),
        ("hse2025", 32, (20, 0.01, 2000)),
    ],
)
def test_published_sizes_scale_with_the_side(preset, size, expected):
    assert resolved(size, preset) == expected


@pytest.mark.parametrize(("kind", "steps"), [("uniform", 100), ("normal", 100), ("multivariate", 60)])
def test_duke_takes_more_steps_from_poorer_seeds(kind, steps):
    assert resolved(224, "duke2023", seeds_from=kind) == (40, 1, steps)


def test_implied_noise_counts_as_said():
    """A model without seeds starts from noise, for which duke2023 takes 100 steps."""
    assert GENERATE.resolve(plain(image_size=224), preset="duke2023").steps == 100


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("size", [28, 32, 64, 128, 224, None])
def test_every_preset_has_settings_for_every_size(preset, size):
    model = a_model(size)
    assert isinstance(resolve_settings(GenerateSettings, "generate", model, preset=preset), GenerateSettings)


def test_a_cards_settings_are_used(tiny):
    settings = GENERATE.resolve(tiny)
    assert (settings.eps, settings.step_size, settings.steps) == (2.0, 0.25, 4)
    assert torch.equal(generate(tiny, [0], **FIXED), generate(tiny, [0], eps=2.0, step_size=0.25, steps=4, **FIXED))
    assert not torch.equal(generate(tiny, [0], **FIXED), generate(tiny, [0], preset="duke2023", **FIXED))


def test_settings_are_checked_whoever_gave_them(tiny_copy):
    values = json.loads((tiny_copy / "card.json").read_text())
    values["tasks"] = {"generate": {"eps": "wide"}}
    (tiny_copy / "card.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="expected eps as float, got 'wide'"):
        generate(load_model(tiny_copy, device="cpu"), [0])


# ---- bad numbers --------------------------------------------------------------------------------------------------


def spoil_class(model: Classifier, label: int) -> Classifier:
    """Images of one class meet NaN, others do not: cross-entropy of the others must not see that logit."""

    class Spoilt(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            logits = self.network(x)
            bright = (x.mean((1, 2, 3)) > 0).view(-1, 1)
            return torch.where(bright, torch.full_like(logits, math.nan), logits)

    return Classifier.wrap(Spoilt(model.network), classes=3, mean=[0.5] * 3, std=[0.25] * 3, image_size=16)


def test_images_that_meet_nan_are_named_and_the_others_kept(tiny):
    start = torch.rand(11, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    sound = generate(tiny, [0] * 11, start=start, eps=1.0, step_size=0.1, steps=3, **FIXED)
    start[[2, 9]] = 0.9
    model = spoil_class(tiny, 0)
    with pytest.raises(NonFiniteError, match="image 2 at step 0, image 9 at step 0; the other 9") as caught:
        generate(model, [0] * 11, start=start, eps=1.0, step_size=0.1, steps=3, **FIXED)
    assert caught.value.failures == {2: 0, 9: 0}
    others = [i for i in range(11) if i not in (2, 9)]
    torch.testing.assert_close(caught.value.images[others], sound[others], rtol=0, atol=1e-4)
    assert torch.equal(caught.value.images[[2, 9]], start[[2, 9]])


def test_padding_is_no_image(tiny):
    """The last batch repeats its last image; when that fails, it failed once."""
    model, start = spoil_class(tiny, 0), torch.full((3, 3, 16, 16), 0.2)
    start[2] = 0.9
    with pytest.raises(NonFiniteError) as caught:
        generate(model, [0, 0, 0], start=start, steps=1, precision="float32", batch_size=8)
    assert caught.value.failures == {2: 0}
    assert len(caught.value.images) == 3


def test_weights_that_are_nan_fail_every_image(tiny):
    with torch.no_grad():
        tiny.network.fc.bias[1] = math.nan
    with pytest.raises(NonFiniteError, match="the other 0 images are complete"):
        generate(tiny, [0, 1], **FIXED)


def test_failures_are_named_by_place_in_what_was_asked_for(tiny):
    model, start = spoil_class(tiny, 0), torch.full((3, 3, 16, 16), 0.2)
    start[1] = 0.9
    with pytest.raises(NonFiniteError) as caught:
        generate(model, [0, 0, 0], start=start, indices=[30, 10, 20], steps=1, **FIXED)
    assert caught.value.failures == {1: 0}


# ---- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_every_batch_has_one_size(count):
    asked = []

    def state(indices, run, before):
        asked.append(tuple(indices))
        start = torch.full((len(indices), 1, 1, 1), 0.5)
        return Stated(rs.Problem(start, lambda x: x.sum((1, 2, 3)), rs.Box()))

    indices = list(range(10, 10 + count))
    batches = [indices[start : start + 4] for start in range(0, count, 4)]
    done = [p for p in solve(batches, state, batch_size=4, step_size=0.1, steps=1) if p.finished]
    assert [i for progress in done for i in progress.indices] == indices
    assert all(len(progress.previews) == len(progress.indices) == len(progress.loss) for progress in done)
    assert all(len(a) == 4 for a in asked)
    assert all(set(a) == set(progress.indices) for a, progress in zip(asked, done, strict=True))
