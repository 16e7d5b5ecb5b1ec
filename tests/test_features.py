"""What units respond to: the fast representation, its straight-through gradient, the atlas, and its command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, fx, nn

import robustsynth as rs
from conftest import VERY_DEEP, WITHOUT_RELU, pixels, png, quiet, random_statistics
from robustsynth.cli import main
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.files import only_writer
from robustsynth.images import read_image, to_uint8
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import ARCHITECTURES, build_network
from robustsynth.models.representation import feature_network, last_linear
from robustsynth.models.store import load_model
from robustsynth.objectives import Activation, Distance, Roughness
from robustsynth.sheet import LABEL_WIDTH
from robustsynth.solver import Interrupted, Progress
from robustsynth.tasks import features as tasks_features
from robustsynth.tasks.features import (
    Looked,
    UnitRow,
    check_units,
    choose_units,
    classes_raised,
    draw_atlas,
    feature_steps,
    features,
    noise,
    resolve_features,
)
from robustsynth.tasks.settings import FeatureSettings

FIXED = {"precision": "float32", "batch_size": 4}

# ---- the representation -------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Everything by functions and methods, and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x, with_latent=False):
        x = F.relu(self.conv(x), inplace=True)
        latent = F.dropout(F.adaptive_avg_pool2d(x, 1), training=self.training).view(x.size(0), -1)
        out = self.fc(latent)
        return (out, latent) if with_latent else out


class Untraceable(nn.Module):
    """What it does depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.fc(x * 1 if bool((x > -1e9).any()) else x)


class Forked(nn.Module):
    """What the last ReLU gives also goes through further layers with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.beside, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        aside = self.beside(x)
        out = self.fc(x.mean([2, 3]))
        return out + aside.mean()


class Hidden(nn.Module):
    """A linear layer within a layer that is not looked into runs after the one that is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 256, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1))).unsqueeze(1)
        return self.attention(x, x, x)[0].squeeze(1)


def pooled(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


NETWORKS = {
    "functional": (Functional, True),
    "a ReLU and dropout": (lambda: pooled(nn.ReLU(), nn.Dropout(0.5)), True),
    "max-pooling": (lambda: pooled(nn.ReLU(), nn.MaxPool2d(2)), True),
    "a fork": (Forked, True),
    "a hidden layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.ReLU(), nn.Linear(9, 4)), True),
    "no ReLU": (lambda: pooled(), False),
    "another activation": (lambda: pooled(nn.GELU()), False),
    "a norm behind the ReLU": (lambda: pooled(nn.ReLU(), nn.BatchNorm2d(6)), False),
    "one linear layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), False),
    "not traceable": (Untraceable, False),
    "hidden linear layers": (Hidden, False),
}
"""A network, and whether a gradient can pass straight through a ReLU of it."""
# Two of the wide ones are others of the same code, at another depth or width.
REGISTERED = [n for n in ARCHITECTURES if n not in (*VERY_DEEP, "wide-resnet28-4", "wide-resnet34-20")]
NETWORKS |= {
    name: (lambda name=name: build_network(name, classes=5, width=4, image_size=16), name not in WITHOUT_RELU)
    for name in REGISTERED
}


def wrapped(build) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = random_statistics(build())
    classes = 8 if isinstance(network, Hidden) else network(torch.zeros(2, 3, 16, 16)).shape[1]
    return Classifier.wrap(network, classes=classes, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], image_size=16)


def gradient(network, images: Tensor, unit: int) -> Tensor:
    x = images.clone().requires_grad_(True)
    return torch.autograd.grad(network(x)[:, unit].sum(), x)[0]


IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize(("build", "has_relu"), NETWORKS.values(), ids=NETWORKS)
def test_the_representation_is_the_classifiers(build, has_relu, straight_through):
    model = wrapped(build)
    network = feature_network(model, straight_through=straight_through, **FIXED)
    assert network.straight_through == (straight_through and has_relu)
    with torch.no_grad():
        got, expected = network(IMAGES), model.features(IMAGES)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    if not network.straight_through:
        plain = gradient(lambda x: model.features(x), IMAGES, 0)
        torch.testing.assert_close(gradient(network, IMAGES, 0), plain, rtol=1e-3, atol=1e-5)


def last_bias(network: nn.Module) -> nn.Parameter:
    """Of what feeds the last ReLU of a registered architecture: it is the last but the classifier's own."""
    return [parameter for name, parameter in network.named_parameters() if name.endswith("bias")][-2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in REGISTERED if name not in WITHOUT_RELU])
def test_a_dead_unit_can_be_raised_only_straight_through(name, precision):
    model = wrapped(NETWORKS[name][0])
    with torch.no_grad():
        last_bias(model.network)[2] = -100.0
    for straight_through in (True, False):
        network = feature_network(model, straight_through=straight_through, precision=precision, batch_size=4)
        assert bool((network(IMAGES)[:, 2] == 0).all()), "a dead unit's value stays 0"
        grad = gradient(network, IMAGES, 2)
        assert bool((grad.flatten(1).norm(dim=1) > 0).all()) == straight_through
        assert bool(torch.isfinite(grad).all())


def test_straight_through_is_the_gradient_without_the_relu():
    model = wrapped(lambda: pooled(nn.ReLU()))
    linear = wrapped(lambda: pooled(nn.Identity()))
    linear.load_state_dict(model.state_dict(), strict=False)
    got = gradient(feature_network(model, **FIXED), IMAGES, 3)
    torch.testing.assert_close(got, gradient(linear.features, IMAGES, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in REGISTERED if name not in WITHOUT_RELU])
def test_reduced_precision_pools_exactly(name):
    """Values come in finer steps than bfloat16 has, or which iterate is best would be decided by ties."""
    model = wrapped(NETWORKS[name][0])
    network = feature_network(model, precision="bfloat16", batch_size=4)
    with torch.no_grad():
        got, exact = network(IMAGES), model.features(IMAGES)
    assert got.dtype == torch.float32
    assert float(F.cosine_similarity(got.flatten(), exact.flatten(), dim=0)) > 0.99
    if name != "small-cnn" and not name.startswith("vgg"):  # These average nothing after the last ReLU.
        assert not torch.equal(got, got.to(torch.bfloat16).float())


def test_it_is_built_once_for_the_weights_that_there_are(tiny):
    first = feature_network(tiny, **FIXED)
    assert feature_network(tiny, **FIXED) is first
    assert feature_network(tiny, straight_through=False, **FIXED) is not first
    assert isinstance(first.body.network, fx.GraphModule)
    assert not any(p.requires_grad for p in first.parameters())
    assert not first.training
    with torch.no_grad():
        tiny.network.layer4[-1].bn2.bias += 0.5
    second = feature_network(tiny, **FIXED)
    assert second is not first
    torch.testing.assert_close(second(IMAGES), tiny.features(IMAGES), rtol=1e-4, atol=1e-4)


def test_the_original_is_untouched(tiny):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    logits = tiny(IMAGES)
    gradient(feature_network(tiny, **FIXED), IMAGES, 0)
    assert all(torch.equal(before[k], v) for k, v in tiny.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in tiny.parameters())
    assert torch.equal(tiny(IMAGES), logits)


def test_a_linear_layer_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(768, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.fc(input=torch.relu(self.body(x.flatten(1))))

    model = wrapped(ByKeyword)
    network = feature_network(model, **FIXED)
    assert network.straight_through
    expected = torch.relu(model.network.body(((IMAGES - model.mean) / model.std).flatten(1)))
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_networks_without_linear_layers_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier.wrap(network, classes=4, mean=[0.5] * 3, std=[0.5] * 3, image_size=16)
    for use in (feature_network, last_linear, choose_units):
        with pytest.raises(UserError, match="last layer is linear"):
            use(model)


def test_the_last_linear_layer_is_the_one_that_runs_last():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 4), nn.Linear(768, 5)

        def forward(self, x):
            return self.head(torch.relu(self.body(x.flatten(1))))

    model = wrapped(Backwards)
    assert last_linear(model) is model.network.head
    assert feature_network(model, **FIXED)(IMAGES).shape == (4, 5)


# ---- the objective ------------------------------------------------------------------------------------------------


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :7]


def test_feature_activation_is_minus_the_units_activation():
    units = torch.tensor([3, 0, 6, 3])
    expected = -flat(IMAGES)[range(4), units]
    assert torch.equal(Activation(flat, units)(IMAGES), expected)
    assert torch.equal(Activation(flat, 3)(IMAGES), -flat(IMAGES)[:, 3])
    both = 0.1 * Activation(flat, units) + 90 * Distance(IMAGES.flip(0))
    torch.testing.assert_close(both(IMAGES), 0.1 * expected + 90 * Distance(IMAGES.flip(0))(IMAGES))


def test_feature_activation_of_a_classifier_runs_the_fast_network(tiny):
    objective = Activation(tiny, [0, 1, 2, 3])
    assert objective.network is feature_network(tiny)
    x = IMAGES.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(objective(x)[1], x)
    assert bool((grad[1] != 0).any())
    assert bool((grad[[0, 2, 3]] == 0).all()), "an image's gradient is its own"


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (torch.tensor([0.5]), "one unit, or .N,. integers, got torch.float32"),
        (torch.tensor([[1]]), r"got torch.int64 \(1, 1\)"),
        (torch.tensor([True]), "got torch.bool"),
        (-1, "units of 0 or more, got -1"),
        (7, "units from 0 to 6, got 7"),
        ([0, 1, 2, 9], "units from 0 to 6, got 9"),
        ([0, 1], "one unit an image, got 2 for 4 images"),
    ],
)
def test_bad_units(units, message):
    with pytest.raises(UserError, match=message):
        Activation(flat, units)(IMAGES)


def test_roughness_counts_every_neighbour():
    steps = (IMAGES[..., 1:] - IMAGES[..., :-1]).abs().mean((1, 2, 3))
    steps = steps + (IMAGES[:, :, 1:] - IMAGES[:, :, :-1]).abs().mean((1, 2, 3))
    torch.testing.assert_close(Roughness()(IMAGES), steps)
    assert Roughness()(torch.full((1, 1, 4, 4), 0.3)).item() == 0


# ---- which units, which images ------------------------------------------------------------------------------------


def with_head(weights: list[list[float]]) -> Classifier:
    head = nn.Linear(len(weights[0]), len(weights))
    head.weight.data = torch.tensor(weights)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, len(weights[0])), nn.ReLU(), head)
    names = ["cat", "ship", "dog"][: len(weights)]
    return Classifier.wrap(network, classes=names, mean=[0.5] * 3, std=[0.5] * 3, image_size=2)


HEAD = [[0.9, 0.8, 0.1, -0.5, 0.0], [0.8, 0.1, 0.5, -0.2, 0.0], [0.05, 0.2, 0.3, -0.1, 0.0]]


@pytest.mark.parametrize(
    ("classes", "num", "expected"),
    [
        (None, 1, [0]),
        (None, 3, [0, 2, 1]),  # Each class's best that none before has taken.
        (None, 12, [0, 2, 1]),  # Units 3 and 4 speak for no class.
        ([1], 2, [0, 2]),
        ([1, 1], 12, [0, 2, 1]),
        ([2, 0], 2, [2, 0]),
    ],
)
def test_chosen_units(classes, num, expected):
    assert choose_units(with_head(HEAD), classes, num=num) == expected


@settings(deadline=None, max_examples=30)
@given(num=st.integers(1, 40), seed=st.integers(0, 99))
def test_chosen_units_are_different_and_as_many_as_there_are(num, seed):
    weights = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    units = choose_units(with_head(weights.tolist()), num=num)
    useful = int((weights > 0).any(0).sum())
    assert len(units) == len(set(units)) == min(num, useful)


def test_classes_that_a_unit_raises():
    model = with_head(HEAD)
    weights = last_linear(model).weight.detach()
    assert [name for name, _ in classes_raised(model, weights, 0)] == ["cat", "ship"], "dog's 0.05 is next to nothing"
    assert [name for name, _ in classes_raised(model, weights, 2)] == ["ship", "dog"]
    assert classes_raised(model, weights, 3) == classes_raised(model, weights, 4) == ()
    assert classes_raised(model, weights[:2], 0) == (), "a layer that does not give the logits says nothing of classes"


def test_units_are_checked():
    model = with_head(HEAD)
    assert check_units(model, [4, 0, 4]) == [4, 0]
    for wrong, said in (([5], "units from 0 to 4 .*, got 5"), ([-1], "got -1"), ([], "got none")):
        with pytest.raises(UserError, match=said):
            check_units(model, wrong)
    with pytest.raises(UserError, match="1 or more units, got 0"):
        choose_units(model, num=0)


def test_units_cannot_be_chosen_by_a_layer_that_does_not_give_the_logits():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)).repeat(1, 2)

    model = Classifier.wrap(Doubled(), classes=4, mean=[0.5] * 3, std=[0.5] * 3, image_size=2)
    with pytest.raises(UserError, match="gives 2 numbers; say which units"):
        choose_units(model)
    (row,) = features(model, [7], steps=1, drawn=1, **FIXED).rows
    assert row.classes == ()


def test_top_images_are_those_of_the_classifiers_own_features(tiny):
    data = np.stack([pixels(i, 16) for i in range(11)])
    settings = resolve_features(tiny, given={"steps": 0, "drawn": 1, "top": 3})
    steps = list(feature_steps(tiny, [5, 1], settings, data=data, **FIXED))
    assert [each for each in steps if isinstance(each, Looked)] == [Looked(4, 11), Looked(8, 11), Looked(11, 11)]
    with torch.no_grad():
        exact = tiny.features(torch.from_numpy(data).permute(0, 3, 1, 2) / 255)
    for row in (each for each in steps if isinstance(each, UnitRow)):
        indices = list(row.top_indices)
        assert indices == exact[:, row.unit].argsort(descending=True)[:3].tolist()
        np.testing.assert_allclose(row.top_activations, exact[indices, row.unit], atol=1e-4)
        assert np.array_equal(row.top_images, data[indices])


def test_top_images_of_few_none_and_wrong_data(tiny):
    def row(data, top=8):
        return features(tiny, 0, data=data, top=top, steps=0, drawn=1, **FIXED).rows[0]

    two = np.stack([pixels(i, 16) for i in range(2)])
    assert len(row(two).top_indices) == 2
    for data, count in ((None, 8), (two, 0), (two[:0], 8)):
        none = row(data, count)
        assert (none.top_indices, none.top_activations, none.top_images.shape) == ((), (), (0, 16, 16, 3))
    for wrong in (two[..., :1], two[:, :8], two.astype(np.float32), two[0]):
        with pytest.raises(UserError, match=r"data as uint8 \(N, 16, 16, 3\) for model 'tiny'"):
            row(wrong)


# ---- the atlas ----------------------------------------------------------------------------------------------------


def test_atlas_raises_its_units(tiny):
    units = choose_units(tiny, num=4)
    atlas = features(tiny, units, steps=8, drawn=2, **FIXED)
    assert [row.unit for row in atlas.rows] == units
    start = features(tiny, units, steps=0, drawn=2, **FIXED)
    for row, before in zip(atlas.rows, start.rows, strict=True):
        assert row.images.shape == (2, 3, 16, 16)
        assert 0 <= float(row.images.min()) <= float(row.images.max()) <= 1
        assert all(now > then for now, then in zip(row.activations, before.activations, strict=True))
        assert bool(((row.images - before.images).flatten(1).norm(dim=1) <= atlas.settings.eps + 1e-4).all())
        with torch.no_grad():
            torch.testing.assert_close(
                tiny.features(row.images)[:, row.unit], torch.tensor(row.activations), rtol=1e-4, atol=1e-4
            )


def test_features_in_python(tiny, folder_of_images, monkeypatch):
    assert rs.features is features
    data = quiet(folder_of_images, image_size=16)
    settings = {"steps": 2, "drawn": 2, "top": 1} | FIXED
    atlas = rs.features(tiny, classes=["ship", 0], num=3, data=data, **settings)
    assert [row.unit for row in atlas.rows] == choose_units(tiny, [1, 0], num=3)
    assert all(len(row.top_indices) == 1 for row in atlas.rows)
    with pytest.raises(UserError, match="units or classes, got both"):
        rs.features(tiny, 3, classes=["cat"])
    plain, seen = tasks_features.solve, []

    def solve(*arguments, **given):
        for progress in plain(*arguments, **given):
            yield progress
            seen.append(progress)
            if len(seen) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(tasks_features, "solve", solve)
    with pytest.raises(Interrupted) as stopped:
        rs.features(tiny, [row.unit for row in atlas.rows], **settings)
    assert [state.status for state in stopped.value.states] == ["finished"] * 4 + ["stopped"] * 2
    assert torch.equal(torch.stack(stopped.value.images[:4]), torch.cat([row.images for row in atlas.rows[:2]]))


def test_leaving_the_loop_keeps_the_rows_that_are_done(tiny):
    settings = resolve_features(tiny, given={"steps": 2, "drawn": 3})
    whole = features(tiny, [2, 4, 6], steps=2, drawn=3, **FIXED)
    rows = []
    for each in feature_steps(tiny, [2, 4, 6], settings, **FIXED):
        if isinstance(each, UnitRow):
            rows.append(each)
        elif isinstance(each, Progress) and each.finished:
            break
    assert [row.unit for row in rows] == [2], "a batch of four holds all images of one unit"
    assert torch.equal(rows[0].images, whole.rows[0].images)
    assert rows[0].record() == whole.rows[0].record()


def test_an_image_depends_on_its_seed_unit_and_number_alone(tiny):
    def drawn(units, **settings):
        given = {"steps": 2, "drawn": 2, "shift": 1} | FIXED | settings
        return {row.unit: row.images for row in features(tiny, units, **given).rows}

    many, alone = drawn([3, 9, 1, 7, 0]), drawn([7])
    assert torch.equal(many[7], alone[7])
    assert torch.equal(drawn([9, 7], drawn=3)[7][:2], alone[7])
    assert not torch.equal(many[7][0], many[7][1])
    assert not torch.equal(drawn([7], seed=1)[7], alone[7])


@pytest.mark.parametrize(("batch_size", "drawn"), [(1, 2), (4, 3), (8, 1), (8, 5)])
def test_rows_come_as_they_are_done(tiny, batch_size, drawn):
    settings = dataclasses.replace(resolve_features(tiny), steps=1, drawn=drawn)
    steps = list(feature_steps(tiny, [2, 4, 6], settings, precision="float32", batch_size=batch_size))
    rows = [each for each in steps if isinstance(each, UnitRow)]
    assert [(row.unit, len(row.images), len(row.activations)) for row in rows] == [(u, drawn, drawn) for u in (2, 4, 6)]


def test_a_dead_unit_is_drawn_straight_through_alone(tiny):
    with torch.no_grad():
        # Off in noise of low contrast, but not beyond reach.
        before = tiny.features(noise(tiny, [torch.Generator().manual_seed(0)], level=0.5, contrast=0.05))[0, 2]
        tiny.network.layer4[-1].bn2.bias[2] -= 3 * before + 1
    straight, plain = (
        features(tiny, [2], steps=40, eps=20.0, step_size=1.0, drawn=1, straight_through=on, **FIXED).rows[0]
        for on in (True, False)
    )
    assert plain.activations == (0.0,)
    assert straight.activations[0] > 0


def test_noise_has_its_level_and_contrast():
    model = with_head(HEAD)
    model.image_size = 32
    drawn = noise(model, [torch.Generator().manual_seed(i) for i in range(3)], level=0.4, contrast=0.05)
    assert drawn.shape == (3, 3, 32, 32)
    torch.testing.assert_close(drawn.mean((2, 3)), torch.full((3, 3), 0.4), rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.std((2, 3)), torch.full((3, 3), 0.05), rtol=0, atol=1e-3)
    assert torch.equal(drawn[:, 0], drawn[:, 2]), "grey"
    # Smoother than white noise, whose neighbours differ by √2 standard deviations.
    assert float(drawn.diff(dim=3).std()) < 0.7 * 2**0.5 * 0.05


def test_settings_follow_the_models_norm_and_size(tiny_copy):
    def resolved(**given):
        return resolve_features(load_model(tiny_copy, device="cpu"), given=given)

    def card(**changed):
        values = json.loads((tiny_copy / "card.json").read_text()) | changed
        (tiny_copy / "card.json").write_text(json.dumps(values))

    assert (resolved().norm, resolved().eps, resolved().step_size) == ("l2", 4.0, 0.7)
    assert (resolved(eps=3.0, steps=None).eps, resolved().shift, resolved(shift=1).shift) == (3.0, 0, 1)
    card(threat_model={"norm": "linf", "eps": 0.3})
    assert (resolved().norm, resolved().eps, resolved().smoothness) == ("linf", 0.7, 1.0)
    assert (resolved(norm="l2").eps, resolved(norm="l2").smoothness) == (4.0, 0.0)
    card(tasks={"features": {"norm": "linf", "eps": 0.25, "level": 0.1, "of a later version": 1}})
    assert (resolved().eps, resolved().step_size, resolved().level) == (0.25, 0.05, 0.1)
    assert resolved(norm="l2").eps == 4.0, "sizes tuned for one norm say nothing of another"
    with pytest.raises(UnknownNameError, match="unknown setting of features 'epz'"):
        resolved(epz=1)


def test_sizes_grow_with_the_side():
    model = with_head(HEAD)
    model.image_size = 128
    settings = resolve_features(model)
    assert (settings.eps, settings.step_size, settings.shift) == (32.0, 5.6, 2)
    assert settings.step_length(20) == 2.8


def test_noise_starts_between_grey_and_the_models_mean():
    def level(mean):
        return resolve_features(Classifier.wrap(nn.Linear(2, 2), classes=2, mean=mean, std=[1.0] * len(mean))).level

    assert level([0.1]) == 0.3
    assert level([0.0, 0.0, 0.0]) == 0.5, "a network that normalises itself says nothing of its mean"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eps": -1.0}, "finite eps of 0 or more, got -1"),
        ({"eps": float("nan")}, "finite eps"),
        ({"step_size": 0.0}, "positive finite step_size, got 0"),
        ({"steps": -1}, "0 or more steps, got -1"),
        ({"steps": 1.5}, "steps as int, got 1.5"),
        ({"norm": "l3"}, "norm of l2, linf, got 'l3'"),
        ({"step_schedule": "cosine"}, "step_schedule of constant, linear, got 'cosine'"),
        ({"level": 1.5}, "level from 0 to 1, got 1.5"),
        ({"drawn": 0}, "1 or more drawn images of each unit, got 0"),
        ({"top": -1}, "finite top of 0 or more, got -1"),
        ({"straight_through": 1}, "straight_through as bool, got 1"),
    ],
)
def test_bad_settings(wrong, said):
    with pytest.raises(UserError, match=said):
        FeatureSettings(**wrong)


def test_models_without_a_size_are_refused():
    model = Classifier.wrap(pooled(nn.ReLU()), classes=4, mean=[0.5] * 3, std=[0.5] * 3)
    for use in (features, last_linear):
        with pytest.raises(UserError, match="model with an image size"):
            use(model)
    with pytest.raises(UserError, match="model with an image size"):
        noise(model, [], level=0.5, contrast=0.1)


def test_broken_weights_are_named(tiny):
    with torch.no_grad():
        tiny.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="got NaN or infinity for image 0 at step 0"):
        features(tiny, [2], steps=2, drawn=1, **FIXED)


# ---- the sheet ----------------------------------------------------------------------------------------------------


def row(side: int = 16, *, drawn: int = 2, top: int = 0, channels: int = 3, classes=(("cat", 0.5),)) -> UnitRow:
    return UnitRow(
        unit=7,
        classes=classes,
        images=torch.zeros(drawn, channels, side, side),
        activations=tuple(float(i) for i in range(drawn)),
        top_indices=tuple(range(top)),
        top_activations=(1.0,) * top,
        top_images=np.full((top, side, side, channels), 200, dtype=np.uint8),
    )


@pytest.mark.parametrize("side", [1, 16, 28, 32, 128, 224])
@pytest.mark.parametrize("top", [0, 5])
def test_every_image_is_on_the_sheet(side, top):
    atlas = draw_atlas([row(side, top=top), row(side, top=top)], title="units")
    factor = max(1, 128 // side)
    assert atlas.dtype == np.uint8
    # Drawn ones are black all over, top ones of one grey; letters are of neither.
    assert (atlas == 0).all(-1).sum() == 2 * 2 * (side * factor) ** 2
    assert (atlas == 200).all(-1).sum() >= 2 * top * (side * factor) ** 2
    assert (atlas[:, -8:] == 255).all(), "a margin"


def test_the_sheet_writes_what_it_shows():
    plain = draw_atlas([row()], title="units")
    for other in (
        draw_atlas([row()], title="others"),
        draw_atlas([row(classes=())], title="units"),
        draw_atlas([row()], title="units", drawn_as="elsewise"),
        draw_atlas([dataclasses.replace(row(), unit=8)], title="units"),
        draw_atlas([dataclasses.replace(row(), activations=(0.0, 9.0))], title="units"),
    ):
        assert plain.shape != other.shape or not np.array_equal(plain, other)


@pytest.mark.parametrize(
    "name", ["great white shark, white shark, man-eater, man-eating shark", "猫" * 40, "", "W" * 99]
)
def test_long_and_foreign_names_stay_in_their_column(name):
    atlas = draw_atlas([row(classes=((name, 0.5),))], title="units")
    usual = draw_atlas([row()], title="units")
    assert atlas.shape[0] <= usual.shape[0] + 40, "a note at the foot where no font has the letters"
    assert atlas.shape[1] <= usual.shape[1] + LABEL_WIDTH
    assert (atlas == 0).all(-1).sum() == 2 * 128**2, "no letter lies on an image"


def test_grey_images_and_uneven_rows():
    assert draw_atlas([row(channels=1, top=2), row(channels=1, top=1)], title="digits").shape[2] == 3
    with pytest.raises(UserError, match="one or more units to draw"):
        draw_atlas([], title="none")


# ---- the command --------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def features_of(model, out, *arguments):
    fixed = ["--precision", "float32", "--batch-size", "4", "--device", "cpu", "--steps", "2", "--drawn", "2"]
    return run("features", "--model", model, "--out", out, *fixed, *arguments)


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("cat", "ship")):
        (root / "train" / name).mkdir(parents=True)
        for i in range(4):
            (root / "train" / name / f"{i}.png").write_bytes(png(pixels(10 * label + i, 20)))
    return root


def test_features_writes_an_atlas_its_numbers_and_settings(tiny_folder, folder_of_images, tmp_path):
    out = tmp_path / "new" / "out"
    data = ("--data", folder_of_images, "--split", "train", "--top", "3")
    result = features_of(tiny_folder, out, "--units", "3,0", *data)
    assert result.exit_code == 0, result.output
    drawn = [f"unit-{unit}-{number}.png" for unit in (0, 3) for number in (0, 1)]
    assert sorted(os.listdir(out)) == ["atlas.png", "features.json", "settings.json", *drawn]
    found = json.loads((out / "features.json").read_text())
    assert [entry["unit"] for entry in found] == [3, 0]
    assert set(found[0]) == {"unit", "classes", "activation_reached", "top_images"}
    assert len(found[0]["activation_reached"]) == 2
    top = found[0]["top_images"]
    assert len(top) == 3
    assert all(0 <= image["index"] < 8 for image in top)
    assert top[0]["activation"] >= top[1]["activation"] >= top[2]["activation"]
    record = json.loads((out / "settings.json").read_text())
    assert (record["task"], record["units"], record["done"], record["seed"]) == ("features", [3, 0], 2, 0)
    assert record["settings"]["steps"] == 2
    assert record["data"]["images"] == 8
    assert record["execution"]["precision"] == "float32"
    with Image.open(out / "atlas.png") as atlas:
        assert atlas.width > 5 * 112
    for said in ("model tiny", "steps=2", "float32", "4 images a batch", "unit    3", "wrote atlas.png"):
        assert said in result.output


def test_animations_of_each_image(tiny_folder, tmp_path):
    assert features_of(tiny_folder, tmp_path, "--units", "3,0", "--trajectory", "gif").exit_code == 0
    assert sorted(p.name for p in tmp_path.glob("*.gif")) == [f"unit-{u}-{n}.gif" for u in (0, 3) for n in (0, 1)]


def test_units_are_chosen_for_classes(tiny_folder, tmp_path):
    model = load_model(tiny_folder, device="cpu")
    assert features_of(tiny_folder, tmp_path / "a", "--classes", "ship,cat", "--num", "3").exit_code == 0
    chosen = json.loads((tmp_path / "a" / "settings.json").read_text())["units"]
    assert chosen == choose_units(model, [1, 0], num=3)
    assert features_of(tiny_folder, tmp_path / "b").exit_code == 0
    assert len(json.loads((tmp_path / "b" / "features.json").read_text())) == 12
    assert json.loads((tmp_path / "b" / "features.json").read_text())[0]["top_images"] == []


def test_the_same_command_makes_the_same_atlas(tiny_folder, tmp_path):
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    before = read_image(tmp_path / "atlas.png").pixels
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    assert np.array_equal(read_image(tmp_path / "atlas.png").pixels, before)


def refused(result, *said: str) -> None:
    """Exit code 2 and one message, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for words in said:
        assert words in result.output
    assert "Traceback" not in result.output


WRONG = {
    "unit": (["--units", "32"], ["units from 0 to 31", "got 32"]),
    "negative unit": (["--units", "-1"], ["got -1"]),
    "word": (["--units", "cat"], ["comma-separated numbers", "'cat'"]),
    "no unit": (["--units", ","], ["one or more units", "got none"]),
    "both": (["--units", "1", "--classes", "cat"], ["--units or --classes, got both"]),
    "class": (["--classes", "shp"], ["unknown class 'shp'", "did you mean 'ship'"]),
    "num": (["--num", "0"], ["0"]),
    "data": (["--data", "nowhere"], ["unknown data set 'nowhere'"]),
    "steps": (["--steps", "-1"], ["0 or more steps, got -1"]),
    "level": (["--level", "2"], ["level from 0 to 1, got 2"]),
    "norm": (["--norm", "l3"], ["l3"]),
    "seed": (["--seed", "-1"], ["-1"]),
    "precision": (["--precision", "int8"], ["'int8'"]),
    "device": (["--device", "abacus"], ["expected a device", "abacus"]),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(tiny_folder, tmp_path, arguments, said):
    refused(features_of(tiny_folder, tmp_path / "out", *arguments), *said)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced_unasked(tiny_folder, tmp_path):
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    before = (tmp_path / "atlas.png").read_bytes()
    refused(features_of(tiny_folder, tmp_path, "--units", "2"), "(units)", "--overwrite")
    assert (tmp_path / "atlas.png").read_bytes() == before
    assert features_of(tiny_folder, tmp_path, "--units", "2", "--overwrite").exit_code == 0
    assert (tmp_path / "atlas.png").read_bytes() != before
    (tmp_path / "settings.json").write_text('{"task": "generate"}')
    refused(features_of(tiny_folder, tmp_path, "--units", "2", "--overwrite"), "holds results of generate")
    (tmp_path / "settings.json").write_text("{")
    refused(features_of(tiny_folder, tmp_path, "--units", "2"), "damaged")
    (tmp_path / "file").write_text("mine")
    refused(features_of(tiny_folder, tmp_path / "file", "--units", "2"), "is a file")


def interrupted(monkeypatch, step, number=signal.SIGINT):
    """A signal at the given `Progress` or `Looked` of those that follow."""
    plain, seen = tasks_features.feature_steps, []

    def steps(*arguments, **settings):
        for each in plain(*arguments, **settings):
            if not isinstance(each, UnitRow):
                seen.append(each)
                if len(seen) == step:
                    signal.raise_signal(number)
            yield each

    monkeypatch.setattr(tasks_features, "feature_steps", steps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("step", "done"), [(1, []), (2, []), (3, [3, 5]), (5, [3, 5])])
def test_stopped_by_the_user_it_keeps_the_units_that_are_done(
    tiny_folder, tmp_path, monkeypatch, folder_of_images, step, done, number
):
    asked = ("--units", "3,5,7", "--data", folder_of_images, "--split", "train", "--top", "2")
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert features_of(tiny_folder, whole, *asked).exit_code == 0
    with monkeypatch.context() as patched:
        interrupted(patched, 2 + step, number)  # The eight images of the data are looked at in two batches.
        result = features_of(tiny_folder, out, *asked)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert (f"{len(done)} of 3 units" if done else "nothing is done") in result.output
    assert json.loads((out / "settings.json").read_text())["done"] == len(done)
    if done:
        assert [entry["unit"] for entry in json.loads((out / "features.json").read_text())] == done
        with Image.open(out / "atlas.png") as part, Image.open(whole / "atlas.png") as all_of_it:
            assert part.height < all_of_it.height
    result = features_of(tiny_folder, out, *asked)
    assert result.exit_code == 0, "the same command makes it whole"
    assert ("2 of 3 units are there already" in result.output) == bool(done)
    assert files(out) == files(whole)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stopped_while_looking_and_twice(tiny_folder, tmp_path, monkeypatch, folder_of_images):
    data = ("--data", folder_of_images, "--split", "train")
    interrupted(monkeypatch, 1)
    result = features_of(tiny_folder, tmp_path, "--units", "3", *data)
    assert result.exit_code == 130
    assert "nothing is done" in result.output
    assert os.listdir(tmp_path) == ["settings.json"]


def test_rows_that_are_there_are_not_drawn_again(tiny_folder, tmp_path, monkeypatch):
    asked = ("--units", "3,5,7")
    assert features_of(tiny_folder, tmp_path, *asked).exit_code == 0
    whole = files(tmp_path)
    (tmp_path / "unit-5-1.png").write_bytes(b"damaged")
    (tmp_path / "atlas.png").unlink()
    plain, drawn = tasks_features.feature_steps, []

    def steps(model, units, *arguments, **settings):
        drawn.extend(units)
        return plain(model, units, *arguments, **settings)

    monkeypatch.setattr(tasks_features, "feature_steps", steps)
    assert "2 of 3 units are there already" in features_of(tiny_folder, tmp_path, *asked).output
    assert (drawn, files(tmp_path)) == ([5], whole)
    for damaged in ("{", "[3]", "null", '[{"unit": 3}]', '[{"unit": 3, "classes": [], "activation_reached": [1]}]'):
        drawn.clear()
        (tmp_path / "features.json").write_text(damaged)
        assert features_of(tiny_folder, tmp_path, *asked).exit_code == 0
        assert (drawn, files(tmp_path)) == ([3, 5, 7], whole)
    drawn.clear()
    assert "3 of 3 units are there already" in features_of(tiny_folder, tmp_path, *asked).output
    assert drawn == []
    assert features_of(tiny_folder, tmp_path, *asked, "--trajectory", "gif").exit_code == 0
    assert drawn == [3, 5, 7], "their animations are missing"


def test_a_folder_of_the_first_version_is_continued_or_refused(tiny_folder, tmp_path):
    """It has no images of single units, and no versions that matter."""
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    whole = files(tmp_path)
    for path in tmp_path.glob("unit-*"):
        path.unlink()
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    assert files(tmp_path) == whole
    refused(features_of(tiny_folder, tmp_path, "--units", "1", "--batch-size", "2"), "batch size", "--overwrite")


def test_overwriting_removes_the_units_of_before_alone(tiny_folder, tmp_path):
    assert features_of(tiny_folder, tmp_path, "--units", "1", "--trajectory", "gif").exit_code == 0
    (tmp_path / "unit-1-notes.png").write_text("mine")
    assert features_of(tiny_folder, tmp_path, "--units", "2", "--overwrite").exit_code == 0
    names = {"atlas.png", "features.json", "settings.json", "unit-1-notes.png", "unit-2-0.png", "unit-2-1.png"}
    assert set(os.listdir(tmp_path)) == names
    (tmp_path / "settings.json").unlink()
    refused(features_of(tiny_folder, tmp_path, "--units", "2"), "holds atlas.png without settings.json")


def test_drawn_images_say_what_they_are(tiny_folder, tmp_path):
    assert features_of(tiny_folder, tmp_path, "--units", "1").exit_code == 0
    with Image.open(tmp_path / "unit-1-1.png") as image:
        said = json.loads(image.text["robustsynth"])
        assert image.size == (16, 16)
    assert (said["task"], said["model"]["name"], said["unit"], said["number"]) == ("features", "tiny", 1, 1)


def test_one_writer_at_a_time(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("robustsynth.files.only_writer", partial(only_writer, patience=0))
    with only_writer(tmp_path):
        refused(features_of(tiny_folder, tmp_path, "--units", "1"), "another process")
    assert not os.listdir(tmp_path)


def test_digits_in_grey(digits_folder, tmp_path):
    assert features_of(digits_folder, tmp_path, "--classes", "3", "--num", "2").exit_code == 0
    assert read_image(tmp_path / "atlas.png").pixels.shape[2] == 3


def test_every_setting_is_an_option_with_help():
    result = run("features", "--help")
    for field in dataclasses.fields(FeatureSettings):
        assert f"--{field.name.replace('_', '-')}" in result.output, field.name


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_bundled_models_can_be_drawn(name):
    model = load_model(name, device="cpu")
    atlas = features(model, num=2, drawn=1, steps=10, **FIXED)
    start = features(model, [row.unit for row in atlas.rows], drawn=1, steps=0, **FIXED)
    for row, before in zip(atlas.rows, start.rows, strict=True):
        assert row.activations[0] > before.activations[0] + 1
        assert not np.array_equal(to_uint8(row.images), to_uint8(before.images))
