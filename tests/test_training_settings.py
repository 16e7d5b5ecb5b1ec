"""Settings, presets, schedules, augmentation and the attack of training."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustsynth.constraints import ball
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.networks import build_network
from robustsynth.randomness import image_generators
from robustsynth.training.attack import adversarial_images
from robustsynth.training.checkpoints import make_optimizer
from robustsynth.training.data import augment
from robustsynth.training.settings import TrainSettings, resolve_train_settings, settings_from, training_presets


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return image_generators(seed, range(count))


# Settings and presets


@pytest.mark.parametrize("name", training_presets())
def test_every_preset_resolves_and_builds_its_network(name: str) -> None:
    resolved = resolve_train_settings(name)
    size, channels = (28, 1) if name.startswith("mnist") else (32, 3)
    with torch.device("meta"):
        network = build_network(
            resolved.architecture, classes=10, width=resolved.width, channels=channels, image_size=size
        )
        assert network(torch.empty(2, channels, size, size)).shape == (2, 10)


def test_the_preset_of_the_paper_is_its_table() -> None:
    """FACTS.md section 2, row CIFAR-10 (Santurkar et al. 2019, Tables 4 and 5)."""
    resolved = dataclasses.asdict(resolve_train_settings("cifar10-l2"))
    table = {
        "epochs": 350,
        "learning_rate": 0.01,
        "batch_size": 256,
        "schedule": "step",
        "milestones": (150, 250),
        "norm": "l2",
        "eps": 0.5,
        "attack_steps": 7,
        "attack_step_size": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "architecture": "resnet50",
        "width": None,
        # What the paper does not speak of is not done.
        "warmup": 0.0,
        "eps_warmup": 0.0,
        "average": 0.0,
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
    }
    assert {name: resolved[name] for name in table} == table


def test_the_preset_of_mcgill_is_its_table() -> None:
    resolved = resolve_train_settings("mnist-linf")
    assert (resolved.architecture, resolved.norm, resolved.eps, resolved.epochs) == ("small-cnn", "linf", 0.3, 20)
    assert not resolved.flip  # A mirrored digit is another sign.


def test_given_values_replace_a_presets_and_none_does_not() -> None:
    resolved = resolve_train_settings("cifar10-l2", {"epochs": 3, "eps": None, "flip": False})
    assert (resolved.epochs, resolved.eps, resolved.flip, resolved.batch_size) == (3, 0.5, False, 256)


@pytest.mark.parametrize(
    ("preset", "values", "named"),
    [("cifar10-l3", {}, "cifar10-l2"), (None, {"epoch": 3}, "epochs"), ("nothing", {}, "mnist-linf")],
)
def test_unknown_names_are_listed(preset: str | None, values: dict[str, int], named: str) -> None:
    with pytest.raises(UnknownNameError, match=named):
        resolve_train_settings(preset, values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm", "l1"),
        ("schedule", "linear"),
        ("crop", "random"),
        ("epochs", 0),
        ("batch_size", 0),
        ("evaluate_every", 0),
        ("held_out", 0),
        ("width", 0),
        ("image_size", 0),
        ("eps", -0.1),
        ("eps", math.inf),
        ("eps", math.nan),
        ("attack_steps", 0),
        ("attack_step_size", 0.0),
        ("attack_step_size", math.nan),
        ("average", 1.0),
        ("warmup", 1.0),
        ("eps_warmup", -0.1),
        ("label_smoothing", 1.0),
        ("momentum", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1e-4),
        ("clip_norm", -1.0),
        ("jitter", -0.1),
        ("seed", -1),
        ("milestones", (-1,)),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name.split("_")[0]):
        settings_from({name: value})


def test_standard_training_needs_no_attack() -> None:
    assert TrainSettings(eps=0.0, attack_steps=0).eps == 0


def test_milestones_of_a_list_are_those_of_a_tuple() -> None:
    """Checkpoints, JSON and TOML give lists; a resumed run compares settings."""
    assert settings_from({"milestones": [1, 2]}) == TrainSettings(milestones=(1, 2))


# Schedules


def test_cosine_with_warmup_rises_to_the_peak_and_falls_to_nothing() -> None:
    run = TrainSettings(epochs=10, learning_rate=0.2, warmup=0.2)
    rates = [run.rate(step, 50) for step in range(500)]
    assert rates[0] == pytest.approx(0.2 / 101)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100] == max(rates) == pytest.approx(0.2)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[300] == pytest.approx(0.1)  # Half-way down, half the peak.
    assert 0 < rates[-1] < 1e-5


def test_steps_divide_by_ten_at_each_milestone() -> None:
    run = TrainSettings(epochs=350, learning_rate=0.01, schedule="step", milestones=(150, 250))
    around = {149: 0.01, 150: 0.001, 249: 0.001, 250: 0.0001, 349: 0.0001}
    for epoch, rate in around.items():
        assert run.rate(epoch * 7 + (6 if epoch in (149, 249) else 0), 7) == pytest.approx(rate)


def test_eps_warmup_rises_linearly_to_the_whole() -> None:
    run = TrainSettings(epochs=10, eps_warmup=0.5)
    scales = [run.attack_scale(step, 4) for step in range(40)]
    assert scales[:3] == pytest.approx([0.05, 0.1, 0.15])
    assert scales[19:] == [1.0] * 21
    assert TrainSettings().attack_scale(0, 4) == 1.0


# The optimizer


@pytest.mark.parametrize("decay_norms", [False, True])
def test_weight_decay_reaches_what_it_should(decay_norms: bool) -> None:
    network = build_network("resnet18", classes=3, width=2, image_size=8)
    chosen = TrainSettings(weight_decay=0.1, decay_norms=decay_norms)
    decay = {id(p): g["weight_decay"] for g in make_optimizer(chosen, network).param_groups for p in g["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        weight = "bn" not in name and not name.endswith("bias") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.1 if weight or decay_norms else 0.0), name


# Augmentation


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_shape_and_range_and_follow_the_generator(
    crop: str, flip: bool, jitter: float, channels: int
) -> None:
    images = torch.rand(16, channels, 12, 12, generator=stream(1))
    images[0], images[1] = 0.0, 1.0
    chosen = TrainSettings(crop=crop, flip=flip, jitter=jitter)
    before = images.clone()
    views = augment(images, chosen, streams(16))
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert 0 <= views.min() <= views.max() <= 1
    assert torch.equal(views, augment(images, chosen, streams(16)))
    assert torch.equal(images, before)
    if (crop, flip, jitter) == ("none", False, 0.0):
        assert torch.equal(views, images)
    else:
        assert not torch.equal(views, augment(images, chosen, streams(16, seed=2)))


@pytest.mark.parametrize("flip", [True, False])
def test_a_padded_crop_is_a_window_of_the_reflected_image(flip: bool) -> None:
    images = torch.rand(200, 3, 16, 16, generator=stream(1))
    views = augment(images, TrainSettings(crop="pad", flip=flip), streams(200))
    padded = nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1)  # (N, C, 5, 5, 16, 16)

    def found(candidate: torch.Tensor) -> torch.Tensor:
        """(N, 5, 5): where each view is the window at that corner."""
        return (windows == candidate[:, :, None, None]).all(-1).all(-1).all(1)

    plain, mirrored = found(views), found(views.flip(3))
    assert bool((plain | mirrored).flatten(1).any(1).all())
    share = mirrored.flatten(1).any(1).float().mean().item()
    assert 0.35 < share < 0.65 if flip else share == 0
    # Every one of the 5×5 places is used: the crop is not stuck in a corner.
    assert bool((plain | mirrored).any(0).all())


def test_flips_without_crops_mirror_about_half() -> None:
    images = torch.rand(400, 1, 8, 8, generator=stream(1))
    views = augment(images, TrainSettings(crop="none", flip=True), streams(400))
    mirrored = (views == images.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (views == images).flatten(1).all(1)).all())
    assert 0.4 < mirrored.float().mean().item() < 0.6


def test_resized_crops_show_35_to_100_percent_of_the_area() -> None:
    """On an image whose channels are its own coordinates, a view says which window it is."""
    side = 64
    place = (torch.arange(side) + 0.5) / side
    image = torch.stack([place.expand(side, side), place[:, None].expand(side, side), torch.zeros(side, side)])
    views = augment(image.expand(300, -1, -1, -1), TrainSettings(crop="resized", flip=True), streams(300))
    middle = slice(side // 4, 3 * side // 4)  # Away from the border, where half a pixel is reflected.
    wide = (views[:, 0, side // 2, middle].diff(dim=1).mean(1) * side).squeeze()
    high = (views[:, 1, middle, side // 2].diff(dim=1).mean(1) * side).squeeze()
    area, aspect = wide.abs() * high, wide.abs() / high
    assert 0.345 < area.min() < 0.45
    assert 0.9 < area.max() <= 1.005
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.345
    assert 0.4 < (wide < 0).float().mean() < 0.6


def test_jitter_changes_brightness_by_at_most_its_strength() -> None:
    images = torch.full((300, 3, 4, 4), 0.4)
    means = augment(images, TrainSettings(crop="none", flip=False, jitter=0.3), streams(300)).mean((1, 2, 3))
    assert 0.28 - 1e-6 <= means.min() < 0.3  # A flat grey image has neither contrast nor saturation to change.
    assert 0.5 < means.max() <= 0.52 + 1e-6


# The attack


class Bent(nn.Module):
    """A small smooth network, in float64 where asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def distance(norm: str, offset: torch.Tensor) -> torch.Tensor:
    return offset.flatten(1).norm(dim=1) if norm == "l2" else offset.flatten(1).abs().amax(1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["l2", "linf"]), st.floats(1e-3, 2.0), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_attacks_stay_in_ball_and_box(norm: str, eps: float, steps: int, random: bool, seed: int) -> None:
    images = torch.rand(4, 3, 4, 4, generator=stream(seed)).round(decimals=1)
    attacked = adversarial_images(
        Bent(),
        images,
        torch.tensor([0, 1, 2, 0]),
        norm=norm,
        eps=eps,
        step_size=eps,
        steps=steps,
        random_start=streams(4, seed) if random else None,
    )
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert bool((distance(norm, attacked - images) <= eps * (1 + 1e-5) + 1e-6).all())
    assert not torch.equal(attacked, images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_attacks_raise_every_images_loss(norm: str) -> None:
    network, images, labels = Bent(), torch.rand(32, 3, 4, 4, generator=stream(3)), torch.arange(32) % 3
    eps = 0.5 if norm == "l2" else 0.1
    attacked = adversarial_images(network, images, labels, norm=norm, eps=eps, step_size=eps / 4, steps=8)
    with torch.no_grad():
        before = nn.functional.cross_entropy(network(images), labels, reduction="none")
        after = nn.functional.cross_entropy(network(attacked), labels, reduction="none")
    assert bool((after > before + 0.01).all())


def test_no_radius_no_attack() -> None:
    images = torch.rand(2, 3, 4, 4)
    result = adversarial_images(
        Bent(), images, torch.tensor([0, 1]), norm="l2", eps=0.0, step_size=0.0, steps=7, random_start=streams(2)
    )
    assert torch.equal(result, images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_one_step_recipe(norm: str) -> None:
    """FACTS.md section 6: a start uniform in the ball, one step of length eps, projection."""
    network, eps = Bent().double(), 0.4 if norm == "l2" else 0.05
    images, labels = torch.rand(6, 3, 4, 4, generator=stream(5), dtype=torch.float64), torch.arange(6) % 3
    got = adversarial_images(
        network, images, labels, norm=norm, eps=eps, step_size=eps, steps=1, random_start=[stream(9)] * 6
    )
    random = stream(9)
    start = ball(norm, eps).random_start(images, [random] * 6).requires_grad_(True)
    assert bool((distance(norm, (start - images).detach()) <= eps + 1e-9).all())
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(network(start), labels, reduction="sum"), start)
    if norm == "l2":
        moved = start.detach() + eps * grad / (grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)
        offset = moved - images
        offset = offset * (eps / offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
    else:
        offset = (start.detach() + eps * grad.sign() - images).clamp(-eps, eps)
    assert torch.allclose(got, (images + offset).clamp(0, 1), atol=1e-12)


def test_random_starts_are_uniform_in_the_ball() -> None:
    """In d dimensions the share of a ball's volume within radius r is r^d; far from the box's edges nothing clips."""
    images = torch.full((4000, 1, 1, 3), 0.5)
    start = ball("l2", 0.3).random_start(images, [stream()] * 4000) - images
    radius = start.flatten(1).norm(dim=1) / 0.3
    for r in (0.3, 0.5, 0.8, 0.95):
        assert (radius <= r).float().mean().item() == pytest.approx(r**3, abs=0.03)
    assert start.mean((0, 1, 2)).abs().max() < 0.01  # Towards no side.
    start = ball("linf", 0.3).random_start(images, [stream()] * 4000) - images
    assert start.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.03)
    assert start.abs().max() <= 0.3 + 1e-6
