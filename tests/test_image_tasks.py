"""The tasks on given images, over the table: shapes, sizes, independence of the batch, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import robustsynth as rs
from robustsynth.constraints import Box, Consistent, Inside, L2Ball
from robustsynth.errors import UserError
from robustsynth.files import read_preset
from robustsynth.fills import fill
from robustsynth.images import save_png
from robustsynth.loop import NonFiniteError
from robustsynth.resampling import blurred, resample
from robustsynth.tasks.call import Call
from robustsynth.tasks.settings import CONDITIONS, StepSettings, preset_names, resolve_settings
from robustsynth.tasks.table import TASKS
from robustsynth.views import Shifted, Viewed, choose_views

IMAGE_TASKS = [name for name, task in TASKS.items() if task.images]
SETTINGS = {name: TASKS[name].settings for name in IMAGE_TASKS}
SHAPES = [(16, 16), (24, 18), (13, 40), (9, 9)]


def images_of(count: int, height: int = 16, width: int = 16, *, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def hole(height: int, width: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    return mask


def call(task: str, model: rs.Classifier, images: Any, **named) -> Any:
    """Any task's function or generator, with what it needs beside the images."""
    size = tuple(images.shape[-2:]) if isinstance(images, Tensor) and images.ndim > 2 else (16, 16)
    needs = {
        "inpaint": {"mask": hole(*size)},
        "translate": {"targets": 1},
        "upscale": {"factor": 2},
        "paint": {"unit": 3, "mask": hole(*size)},
    }.get(task.removesuffix("_steps"), {})
    return getattr(rs, task)(model, images, **(needs | {"steps": 3} | named))


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("size", SHAPES)
def test_images_of_any_size_stay_their_size(task, size, tiny):
    images = images_of(3, *size)
    result = call(task, tiny, images)
    factor = 2 if task == "upscale" else 1
    assert result.shape == (3, 3, size[0] * factor, size[1] * factor)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    assert factor == 2 or not result.equal(images)


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_image_does_not_depend_on_the_others(task, batch_size, tiny):
    images, given = images_of(5), {"batch_size": batch_size, "precision": "float32"}
    together = call(task, tiny, images, **given)
    alone = torch.cat([call(task, tiny, images[i : i + 1], **given) for i in range(5)])
    assert together.equal(alone)


@pytest.mark.parametrize("task", [name for name in IMAGE_TASKS if name not in ("inpaint", "paint")])
def test_images_of_several_sizes_are_a_list_and_each_is_as_it_is_alone(task, tiny):
    mixed = [images_of(1, *size, seed=i)[0] for i, size in enumerate([(16, 16), (12, 20), (16, 16), (12, 20)])]
    given = {"batch_size": 2, "precision": "float32"}
    together = call(task, tiny, mixed, **given)
    assert isinstance(together, list)
    for made, image in zip(together, mixed, strict=True):
        assert made.equal(call(task, tiny, image[None], **given)[0])


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_nothing_to_do_gives_nothing(task, tiny):
    assert call(task, tiny, images_of(0)).shape[0] == 0


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_the_input_is_left_alone(task, tiny):
    images = images_of(2)
    before = images.clone()
    call(task, tiny, images)
    assert images.equal(before)


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_it_can_be_stopped_at_any_step_and_gives_what_there_is(task, tiny):
    result = None
    for progress in call(f"{task}_steps", tiny, images_of(1), steps=50):
        if progress.step == 2:
            result = progress.previews
            break
    assert result is not None
    assert result.shape[0] == 1
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_the_radius_holds_at_the_images_own_size(task, tiny):
    images = images_of(2, 32, 32)
    given = {"eps": 0.5, "step_size": 0.4, "steps": 6}
    if task == "upscale":
        start = resample(images, (64, 64), "nearest")
        change, ratio = call(task, tiny, images, **given, start="nearest", consistency=0) - start, 4
    elif task == "inpaint":
        start = fill(images, hole(32, 32).expand(2, 1, 32, 32), "mean")
        change, ratio = call(task, tiny, images, **given, fill="mean", keep_known=False) - start, 2
    else:
        change, ratio = call(task, tiny, images, **given) - images, 2
    # Twice as wide and high an image as the model's 16×16 has a ball of twice the radius.
    assert (change.flatten(1).norm(dim=1) <= 0.5 * ratio * 1.001).all()
    assert (change.flatten(1).norm(dim=1) > 0.25 * ratio).any()


@pytest.mark.parametrize("task", [name for name in IMAGE_TASKS if name not in ("translate", "paint")])
def test_labels_are_predicted_where_none_are_given(task, tiny):
    images = images_of(4)
    free = call(task, tiny, images)
    named = [call(task, tiny, images, labels=label) for label in range(3)]
    # Each image is one of the three named ones, and that of a single label.
    for i in range(4):
        assert sum(free[i].equal(made[i]) for made in named) == 1


@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "best"])
def test_presets_resolve_or_have_no_such_task(task, preset, tiny):
    kind = SETTINGS[task]
    resolved = TASKS[task].resolve(tiny, preset=preset)
    rows = read_preset("robustsynth.tasks", preset).get(task, [])
    fields = {f.name for f in dataclasses.fields(kind)}
    for row in rows:
        assert set(row) <= fields | set(CONDITIONS)
    if rows:
        assert resolved.steps in {row["steps"] for row in rows if "small" in row["images"]}


def test_the_model_cards_settings_come_before_the_papers_and_after_the_callers(tiny):
    assert tiny.card is not None
    tuned = dataclasses.replace(tiny.card, tasks={"inpaint": {"eps": 1.5, "fill": "laplace"}})
    tiny.card = tuned
    found = resolve_settings(rs.InpaintSettings, "inpaint", tiny, given={"steps": 7})
    assert (found.eps, found.fill, found.steps, found.penalty) == (1.5, "laplace", 7, 10.0)
    assert found == TASKS["inpaint"].resolve(tiny, given={"steps": 7})
    assert TASKS["inpaint"].resolve(tiny, preset="paper").fill == "mean"


# What each task promises.


@pytest.mark.parametrize("only_inside", [True, False])
def test_inpainting_never_reads_under_the_mask(only_inside, tiny):
    images, mask = images_of(2), hole(16, 16)
    other = torch.where(mask > 0, torch.nan, images)
    given = {"mask": mask, "steps": 4, "only_inside": only_inside, "keep_known": False}
    assert rs.inpaint(tiny, images, **given).equal(rs.inpaint(tiny, other, **given))


def test_inpainting_gives_the_known_pixels_back(tiny):
    images, mask = images_of(3), hole(16, 16)
    result = rs.inpaint(tiny, images, mask=mask, steps=4)
    assert torch.where(mask > 0, images, result).equal(images)
    loose = rs.inpaint(tiny, images, mask=mask, steps=4, keep_known=False, penalty=0.0)
    assert not torch.where(mask > 0, images, loose).equal(images)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("task", ["inpaint", "paint"])
def test_masks_of_everything_or_nothing_are_refused(value, task, tiny):
    with pytest.raises(UserError, match="mask"):
        call(task, tiny, images_of(1), mask=torch.full((1, 16, 16), value))


@pytest.mark.parametrize("task", ["inpaint", "paint"])
def test_a_mask_of_another_size_is_refused(task, tiny):
    with pytest.raises(UserError, match="16"):
        call(task, tiny, images_of(1), mask=hole(15, 16))


def test_translation_and_refinement_lower_the_class_loss(tiny):
    images = images_of(4)

    def loss(made: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(tiny(made), torch.full((4,), 1), reduction="none")

    with torch.no_grad():
        for made in (
            rs.translate(tiny, images, 1, eps=2.0, step_size=0.3, steps=15),
            rs.refine(tiny, images, 1, eps=2.0, step_size=0.3, steps=15),
            rs.sketch(tiny, images, 1, eps=2.0, step_size=0.3, steps=15),
        ):
            assert (loss(made) < loss(images)).all()


def test_adherence_holds_a_result_back(tiny):
    images = images_of(2)
    free = rs.translate(tiny, images, 1, eps=4.0, step_size=0.3, steps=12, use_best=False)
    held = rs.translate(tiny, images, 1, eps=4.0, step_size=0.3, steps=12, use_best=False, adherence=1000.0)
    assert ((held - images).norm() < (free - images).norm()).all()


@pytest.mark.parametrize("factor", [1, 1.5, 2.3, 3.5, 7])
def test_upscaling_multiplies_sizes_and_keeps_the_average(factor, tiny):
    low = 0.2 + 0.6 * images_of(2, 10, 12)
    high = rs.upscale(tiny, low, factor=factor, start="bicubic", consistency=10, eps=0.5, step_size=0.1, steps=3)
    assert high.shape[2:] == (int(10 * factor + 0.5), int(12 * factor + 0.5))
    assert (resample(high, (10, 12), "area") - low).abs().mean() < 1 / 255


@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf")])
def test_factors_below_one_are_refused(factor, tiny):
    with pytest.raises(UserError, match="factor"):
        rs.upscale(tiny, images_of(1), factor=factor)


def test_painting_raises_the_unit_and_stays_inside(tiny):
    images, mask = images_of(3), hole(16, 16)
    made = rs.paint(tiny, images, 5, mask=mask, eps=4.0, step_size=0.3, steps=12, only_inside=True)
    assert torch.where(mask > 0, images, made).equal(images)
    with torch.no_grad():
        assert (tiny.features(made)[:, 5] > tiny.features(images)[:, 5]).all()


def test_a_feathered_painting_fades_out_towards_its_border(tiny):
    images = images_of(2, 32, 32)
    mask = torch.zeros(1, 32, 32)
    mask[:, 6:26, 6:26] = 1
    given = {"mask": mask, "eps": 4.0, "step_size": 0.3, "steps": 8, "only_inside": True}
    change = [(rs.paint(tiny, images, 5, feather=f, **given) - images).abs().mean((0, 1)) for f in (0.0, 2.0)]
    assert (change[1] * (1 - mask[0])).sum() == 0
    rim, middle = change[1][6, 6:26].mean(), change[1][14:18, 14:18].mean()
    assert rim < 0.3 * middle
    assert change[0][6, 6:26].mean() > rim


def test_painting_several_units_is_one_after_another(tiny):
    images, first, second = images_of(2), hole(16, 16), hole(16, 16).flip(2)
    given = {"steps": 3, "only_inside": True}
    both = rs.paint(tiny, images, [2, 5], mask=[first, second], **given)
    by_hand = rs.paint(tiny, rs.paint(tiny, images, 2, mask=first, **given), 5, mask=second, **given)
    assert both.equal(by_hand)


@pytest.mark.parametrize(("unit", "count"), [(32, 1), (-1, 1), ([1, 2], 3), ([], 1)])
def test_units_and_masks_that_do_not_fit_are_refused(unit, count, tiny):
    with pytest.raises(UserError, match="unit"):
        rs.paint(tiny, images_of(1), unit, mask=[hole(16, 16)] * count)


def test_softening_blurs_and_keeps_what_is_plain():
    plain, noisy = torch.full((1, 3, 20, 30), 0.25), images_of(1, 20, 30)
    assert torch.allclose(blurred(plain, 2.5), plain, atol=1e-6)
    assert blurred(noisy, 2.5).std() < 0.5 * noisy.std()


# Mistakes.

WRONG = {
    "images beyond 1": (lambda x: 255 * x, "divide"),
    "NaN": (lambda x: x * float("nan"), "NaN"),
    "grey": (lambda x: x[:, :1], "3, H, W"),
    "no channels": (lambda x: x[0, 0], "3, H, W"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), "3, H, W"),
    "a number": (lambda x: 3, "expected images"),
    "a missing file": (lambda x: "nowhere.png", "nowhere.png"),
    "one pixel": (lambda x: x[:, :, :1, :1], "at least 8"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("task", ["translate", "upscale", "sketch", "refine"])
def test_wrong_images_are_refused(task, wrong, tiny):
    spoil, said = WRONG[wrong]
    named = {"factor": 1} if task == "upscale" else {}
    with pytest.raises(UserError, match=said):
        call(task, tiny, spoil(images_of(2)), **named)


@pytest.mark.parametrize("labels", [3, -1, [0, 1, 2], [0.5, 1.0], torch.zeros(2, 2, dtype=torch.long)])
@pytest.mark.parametrize("task", ["translate", "refine"])
def test_labels_that_do_not_fit_are_refused(task, labels, tiny):
    named = {"targets" if task == "translate" else "labels": labels}
    with pytest.raises(UserError, match="label"):
        call(task, tiny, images_of(2), **named)


BAD_SETTINGS = [
    {"steps": -1},
    {"step_size": 0.0},
    {"eps": -1.0},
    {"eps": float("nan")},
    {"norm": "l1"},
    {"step_schedule": "cosine"},
    {"views": "spiral"},
    {"steps": 2.5},
    {"use_best": "yes"},
]


@pytest.mark.parametrize("bad", BAD_SETTINGS, ids=str)
@pytest.mark.parametrize("kind", SETTINGS.values())
def test_bad_settings_are_refused(kind: type[StepSettings], bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        kind(**bad)


def test_a_nan_spares_the_other_images(tiny):
    images = images_of(4)
    network = tiny.frozen(precision="float32", batch_size=2).network

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Only the second image is dark.
            return network(x) * torch.where(x.mean((1, 2, 3)) < -1, torch.nan, 1.0)[:, None]

    images[1] *= 0.1
    tiny.frozen(precision="float32", batch_size=2).network = Broken()
    with pytest.raises(NonFiniteError) as caught:
        rs.translate(tiny, images, 1, steps=2, precision="float32", batch_size=2)
    assert set(caught.value.failures) == {1}
    assert caught.value.images.shape == images.shape


# The constraints that they are made of.


def test_inside_changes_nothing_outside():
    mask = hole(8, 8)[None]
    constraint = Inside(L2Ball(1.0), mask)
    centre, moved = images_of(1, 8, 8), images_of(1, 8, 8, seed=1)
    projected = constraint.project(moved, centre)
    assert torch.where(mask > 0, centre, projected).equal(centre)
    direction = constraint.direction(moved - 0.5)
    assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert (direction * (1 - mask)).abs().sum() == 0


def test_consistent_comes_nearer_to_the_small_image():
    low = 0.3 + 0.4 * images_of(1, 4, 4)
    constraint = Consistent(Box(), low)
    once = constraint.project(images_of(1, 16, 16, seed=2), images_of(1, 16, 16))
    many = once
    for _ in range(10):
        many = constraint.project(many, many)

    def far(x: Tensor) -> float:
        return (resample(x, (4, 4), "area") - low).abs().mean().item()

    assert far(many) < far(once) < 0.5
    assert far(many) < 1 / 255


def test_a_sketch_may_take_on_its_classes_colours_and_texture(tiny):
    drawings = (images_of(3) > 0.5).float()
    plain = rs.sketch(tiny, drawings, 1, steps=0)
    assert plain.equal(drawings)
    blended = rs.sketch(tiny, drawings, 1, steps=0, blend=0.5)
    assert blended.amin() > 0.1, "no black is left of a drawing that is half mean image"
    textured = rs.sketch(tiny, drawings, 1, steps=0, texture=0.5, seed=3)
    assert textured.equal(rs.sketch(tiny, drawings, 1, steps=0, texture=0.5, seed=3))
    assert not textured.equal(rs.sketch(tiny, drawings, 1, steps=0, texture=0.5, seed=4))
    # Its own stream, whatever other drawings there are.
    alone = rs.sketch(tiny, drawings[2:], 1, steps=0, texture=0.5, seed=3)
    assert alone.equal(textured[2:])


def test_texture_needs_class_seeds(tiny):
    wrapped = rs.Classifier.wrap(tiny.network, classes=tiny.classes, mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    with pytest.raises(UserError, match="seeds"):
        rs.sketch(wrapped, images_of(1), 1, steps=0, texture=0.5)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_small_region_is_painted_however_wide_the_feather(side, tiny):
    images, mask = images_of(1), torch.zeros(1, 16, 16)
    mask[:, 3 : 3 + side, 3 : 3 + side] = 1
    made = rs.paint(tiny, images, 5, mask=mask, eps=4.0, step_size=0.3, steps=4, only_inside=True, feather=6.0)
    assert not made.equal(images)


@pytest.mark.parametrize("unit", [np.int64(3), torch.tensor(3), [3], (3,), np.array([3])], ids=repr)
def test_units_may_be_any_integers(unit, tiny):
    given = {"mask": hole(16, 16), "steps": 2}
    assert rs.paint(tiny, images_of(1), unit, **given).equal(rs.paint(tiny, images_of(1), 3, **given))


def test_what_is_measured_is_what_is_used(tiny):
    """Without being told, a task runs in the precision and batch size that it reports."""
    images = images_of(3)
    execution = Call(TASKS["refine"], tiny, TASKS["refine"].resolve(tiny), [(16, 16)] * 3).execution
    assert execution.measured
    named = {"batch_size": execution.batch_size, "precision": execution.precision}
    assert rs.refine(tiny, images, 1, steps=3).equal(rs.refine(tiny, images, 1, steps=3, **named))


def test_another_norm_needs_its_own_sizes(tiny):
    with pytest.raises(UserError, match="eps and step_size"):
        rs.refine(tiny, images_of(1), 1, norm="linf")
    made = rs.refine(tiny, images_of(1), 1, norm="linf", eps=0.05, step_size=0.02, steps=5)
    assert (made - images_of(1)).abs().max() <= 0.05 + 1e-6


@pytest.mark.parametrize("shift", [0, 3])
def test_views_computed_again_give_the_gradient_of_one_pass(shift, tiny):
    image = images_of(1, 16, 60)
    views = choose_views((16, 60), 16)
    assert len(views) > 2
    frozen = tiny.frozen(precision="float32", batch_size=2)
    seen = Viewed(Shifted(frozen, shift), views, 16)
    for _ in range(3):
        variable = image.clone().requires_grad_(True)
        value = seen(variable).square().sum()
        (again,) = torch.autograd.grad(value, variable)
        step = 0.01 * again / again.norm()
        before = seen.network.calls
        # The same call's shift, a little further along the gradient: the value rises as the gradient says.
        seen.network.calls = before - 1
        with torch.no_grad():
            risen = seen(image + step).square().sum() - value
        assert risen.item() == pytest.approx(0.01 * again.norm().item(), rel=0.3)


# Any kind of image, and classes by name.


def test_any_kind_of_image_goes_in(tiny, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    expected = rs.refine(tiny, tensor, 1, steps=2, batch_size=1)
    with Image.open(tmp_path / "a.png") as opened:
        kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), opened.copy(), pixels, pixels / 255.0, tensor[0]]
        kinds += [
            tensor.numpy().transpose(0, 2, 3, 1),
            (tensor * 255).round().to(torch.uint8),
            [tensor[0]],
            tensor.double(),
        ]
    for kind in kinds:
        made = rs.refine(tiny, kind, 1, steps=2, batch_size=1)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
    assert rs.refine(tiny, [tmp_path / "a.png", pixels], 1, steps=1).shape == (2, 3, 18, 24)
    masked = rs.inpaint(tiny, tmp_path / "a.png", 1, mask=_mask_file(tmp_path / "mask.png"), steps=2, batch_size=1)
    assert masked.equal(rs.inpaint(tiny, tensor, 1, mask=hole(18, 24), steps=2, batch_size=1))


def _mask_file(path):
    save_png(path, (hole(18, 24).numpy()[0, :, :, None] * 255).astype(np.uint8))
    return path


@pytest.mark.parametrize(
    ("task", "name"),
    [("translate", "targets"), *((name, "labels") for name in ("inpaint", "upscale", "sketch", "refine"))],
)
def test_classes_go_by_name_or_number(task, name, tiny):
    images = images_of(2)
    numbers = call(task, tiny, images, **{name: [1, 0]})
    assert call(task, tiny, images, **{name: ["ship", "cat"]}).equal(numbers)
    assert call(task, tiny, images, **{name: torch.tensor([1, 0])}).equal(numbers)
    assert call(task, tiny, images, **{name: "ship"}).equal(call(task, tiny, images, **{name: 1}))
    with pytest.raises(UserError, match="did you mean 'ship'"):
        call(task, tiny, images, **{name: "shp"})


def test_a_mask_may_be_of_many_kinds_and_one_an_image(tiny, tmp_path):
    images, first, second = images_of(2), hole(16, 16), hole(16, 16).flip(2)
    given = {"steps": 2, "batch_size": 2, "precision": "float32"}
    each = [rs.inpaint(tiny, images[i : i + 1], 1, mask=mask, **given) for i, mask in enumerate((first, second))]
    expected = torch.cat(each)
    save_png(tmp_path / "mask.png", (255 * second[0, :, :, None]).byte().numpy())
    with Image.open(tmp_path / "mask.png") as opened:
        kinds = [second, second.bool(), second.numpy(), second[0].numpy(), tmp_path / "mask.png", opened.copy()]
    for kind in kinds:
        assert rs.inpaint(tiny, images, 1, mask=[first, kind], **given).equal(expected)
    assert rs.inpaint(tiny, images, 1, mask=torch.stack([first, second]), **given).equal(expected)
    of_one = rs.inpaint(tiny, images, 1, mask=first, **given)
    assert rs.inpaint(tiny, images, 1, mask=first[0].numpy(), **given).equal(of_one)
    mixed = rs.inpaint(tiny, [images[0], images_of(1, 12, 20)[0]], 1, mask=[first, hole(12, 20)], **given)
    assert [tuple(made.shape) for made in mixed] == [(3, 16, 16), (3, 12, 20)]
    assert mixed[0].equal(expected[0])


WRONG_MASKS = {
    "none": None,
    "a number": 3,
    "a missing file": "nowhere.png",
    "none at all": [],
    "too many of a list": [hole(16, 16)] * 3,
    "too many": torch.stack([hole(16, 16)] * 3),
    "an array of another size": np.zeros((15, 16)),
    "an array of grey": np.full((16, 16), 0.5),
    "an object": object(),
}


@pytest.mark.parametrize("mask", WRONG_MASKS.values(), ids=WRONG_MASKS)
@pytest.mark.parametrize("task", ["inpaint", "paint"])
def test_what_is_no_mask_is_refused(task, mask, tiny):
    with pytest.raises(UserError, match=r"mask|image"):
        call(task, tiny, images_of(2), mask=mask)


@pytest.mark.parametrize("unit", [None, "eye", 3.7, [[1, 2]], {}, object()])
def test_what_is_no_unit_is_refused(unit, tiny):
    with pytest.raises(UserError, match=r"unit|mask"):
        rs.paint(tiny, images_of(1), unit, mask=hole(16, 16), steps=1)


@pytest.mark.parametrize("factor", [None, "2", True, [2]])
def test_what_is_no_factor_is_refused(factor, tiny):
    with pytest.raises(UserError, match="factor"):
        rs.upscale(tiny, images_of(1), factor=factor, steps=1)


@pytest.mark.parametrize("seed", [None, "3", 1.5, True, -1])
def test_what_is_no_seed_is_refused(seed, tiny):
    with pytest.raises(UserError, match="seed"):
        rs.generate(tiny, [0], seed=seed, steps=1)
    with pytest.raises(UserError, match="seed"):
        rs.sketch(tiny, images_of(1), 1, seed=seed, texture=0.3, steps=1)


@pytest.mark.parametrize(
    "label", [object(), {}, ["cat", None], [None, None], [[0], [1]], "shp", True, [True, False], 1.0]
)
@pytest.mark.parametrize("task", ["translate", "refine"])
def test_what_is_no_class_is_refused(label, task, tiny):
    with pytest.raises(UserError, match=r"label|class"):
        call(task, tiny, images_of(2), **{"targets" if task == "translate" else "labels": label})


@pytest.mark.parametrize("name", ["cats", "CAT", "0", 0, " cat "])
@pytest.mark.parametrize("task", ["translate", "refine"])
def test_a_class_may_be_named_as_people_name_it(name, task, tiny):
    named = "targets" if task == "translate" else "labels"
    images = images_of(2)
    expected = call(task, tiny, images, **{named: "cat"})
    assert call(task, tiny, images, **{named: name}).equal(expected)
    assert call(task, tiny, images, **{named: [name, "cat"]}).equal(expected)


def test_predictions_are_of_any_kind_of_image(tiny, tmp_path):
    images = images_of(3, 20, 30)
    found = rs.predict(tiny, images)
    assert found.shape == (3,)
    assert found.dtype == torch.int64
    assert torch.cat([rs.predict(tiny, image) for image in images]).equal(found)
    assert rs.predict(tiny, list(images)).equal(found)
    assert rs.predict(tiny, []).shape == (0,)
