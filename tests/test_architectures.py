"""The registered networks: published names and shapes, stems, and what everything else here asks of a network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import WITHOUT_RELU, random_statistics
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import ARCHITECTURES, build_network, standard_width
from robustsynth.models.networks.mobilenet import ClippedReLU
from robustsynth.models.representation import feature_network, last_linear

PARAMETERS = {
    # name: (with 1000 classes at 224 pixels, with 10 classes at 32 pixels); None where nobody publishes it.
    # torchvision's are those of its documentation's tables of weights; the wide ones those that papers which train
    # them print as 36.48 and 46.16 million.
    "vgg11-bn": (132_868_840, None),
    "vgg13-bn": (133_053_736, None),
    "vgg16-bn": (138_365_992, 14_728_266),
    "vgg19-bn": (143_678_248, None),
    "mobilenet-v2": (3_504_872, None),
    "wide-resnet28-10": (None, 36_479_194),
    "wide-resnet34-10": (None, 46_160_474),
    # The common 11,171,146, and 1,024 for the batch norm before pooling (`bn_before_fc` in RobustBench's resnet.py).
    "preact-resnet18": (None, 11_172_170),
    "preact-resnet18-plain": (None, 11_171_146),
    "resnet101": (44_549_160, None),
    "resnet152": (60_192_808, None),
    "wide-resnet50-2": (68_883_240, None),
    "resnext50-32x4d": (25_028_904, None),
    "wide-resnet28-10-silu": (None, 36_479_194),
    "wide-resnet70-16-silu": (None, 266_796_506),
}

CONVOLUTIONS = {
    # Positions within `features`, from the keys of torchvision's published files vgg11_bn-6002323d.pth and so on.
    "vgg11-bn": (0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13-bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16-bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19-bn": (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}
VGG_CHANNELS = {
    "vgg11-bn": (64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13-bn": (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16-bn": (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    "vgg19-bn": (64, 64, 128, 128, *(256,) * 4, *(512,) * 8),
}
MOBILE_BLOCKS = (
    (32, 32, 16), (16, 96, 24), (24, 144, 24), (24, 144, 32), (32, 192, 32), (32, 192, 32), (32, 192, 64),
    (64, 384, 64), (64, 384, 64), (64, 384, 64), (64, 384, 96), (96, 576, 96), (96, 576, 96), (96, 576, 160),
    (160, 960, 160), (160, 960, 160), (160, 960, 320),
)  # fmt: skip
"""Channels that enter, within, and that leave features.1 to features.17 of torchvision's mobilenet_v2-b0353104.pth."""

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vgg_shapes(name: str) -> Shapes:
    shapes: Shapes = {}
    inputs = 3
    for position, channels in zip(CONVOLUTIONS[name], VGG_CHANNELS[name], strict=True):
        shapes |= {f"features.{position}.weight": (channels, inputs, 3, 3), f"features.{position}.bias": (channels,)}
        shapes |= norm(f"features.{position + 1}", channels)
        inputs = channels
    return shapes | linear("classifier.0", 25088, 4096) | linear("classifier.3", 4096, 4096) | LAST_OF_VGG


LAST_OF_VGG = linear("classifier.6", 4096, 1000)


def mobilenet_shapes() -> Shapes:
    shapes: Shapes = {"features.0.0.weight": (32, 3, 3, 3)} | norm("features.0.1", 32)
    for block, (inputs, hidden, outputs) in enumerate(MOBILE_BLOCKS, start=1):
        name = f"features.{block}.conv"
        if block == 1:
            shapes |= {f"{name}.0.0.weight": (32, 1, 3, 3)} | norm(f"{name}.0.1", 32)
            shapes |= {f"{name}.1.weight": (16, 32, 1, 1)} | norm(f"{name}.2", 16)
            continue
        shapes |= {f"{name}.0.0.weight": (hidden, inputs, 1, 1)} | norm(f"{name}.0.1", hidden)
        shapes |= {f"{name}.1.0.weight": (hidden, 1, 3, 3)} | norm(f"{name}.1.1", hidden)
        shapes |= {f"{name}.2.weight": (outputs, hidden, 1, 1)} | norm(f"{name}.3", outputs)
    shapes |= {"features.18.0.weight": (1280, 320, 1, 1)} | norm("features.18.1", 1280)
    return shapes | linear("classifier.1", 1280, 1000)


def preactivated(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm(f"{name}.bn1", inputs) | {f"{name}.conv1.weight": (outputs, inputs, 3, 3)}
    return shapes | norm(f"{name}.bn2", outputs) | {f"{name}.conv2.weight": (outputs, outputs, 3, 3)}


def preact_shapes(*, plain: bool = False) -> Shapes:
    """PreActResNet in RobustBench's model_zoo/architectures/resnet.py, with `bn_before_fc` or without."""
    shapes: Shapes = {"conv1.weight": (64, 3, 3, 3)}
    inputs = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        shapes |= preactivated(f"layer{stage}.0", inputs, channels)
        if stage > 1:
            shapes |= {f"layer{stage}.0.shortcut.0.weight": (channels, inputs, 1, 1)}
        shapes |= preactivated(f"layer{stage}.1", channels, channels)
        inputs = channels
    return shapes | ({} if plain else norm("bn", 512)) | linear("linear", 512, 10)


def wide_shapes(blocks: int) -> Shapes:
    """WideResNet in RobustBench's model_zoo/architectures/wide_resnet.py, which is TRADES' without `sub_block1`."""
    shapes: Shapes = {"conv1.weight": (16, 3, 3, 3)}
    inputs = 16
    for stage, channels in enumerate((160, 320, 640), start=1):
        for block in range(blocks):
            name = f"block{stage}.layer.{block}"
            shapes |= preactivated(name, inputs, channels)
            if block == 0:
                shapes |= {f"{name}.convShortcut.weight": (channels, inputs, 1, 1)}
            inputs = channels
    return shapes | norm("bn1", 640) | linear("fc", 640, 10)


def silu_block(name: str, inputs: int, outputs: int, convolutions: tuple[str, str], kernel: int) -> Shapes:
    first, second = convolutions
    shapes = norm(f"{name}.batchnorm_0", inputs) | {f"{name}.{first}.weight": (outputs, inputs, 3, 3)}
    shapes |= norm(f"{name}.batchnorm_1", outputs) | {f"{name}.{second}.weight": (outputs, outputs, 3, 3)}
    return shapes | ({f"{name}.shortcut.weight": (outputs, inputs, kernel, kernel)} if inputs != outputs else {})


def silu_wide_shapes(blocks: int, widening: int) -> Shapes:
    """DMWideResNet in RobustBench's model_zoo/architectures/dm_wide_resnet.py, without its mean and std."""
    shapes: Shapes = {"init_conv.weight": (16, 3, 3, 3)}
    inputs = 16
    for stage, channels in enumerate(16 * widening * factor for factor in (1, 2, 4)):
        for block in range(blocks):
            shapes |= silu_block(f"layer.{stage}.block.{block}", inputs, channels, ("conv_0", "conv_1"), 1)
            inputs = channels
    return shapes | norm("batchnorm", inputs) | linear("logits", inputs, 10)


def silu_preact_shapes() -> Shapes:
    """DMPreActResNet there."""
    shapes: Shapes = {"conv_2d.weight": (64, 3, 3, 3)}
    inputs = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            shapes |= silu_block(f"layer_{stage}.{block}", inputs, channels, ("conv_2d_1", "conv_2d_2"), 3)
            inputs = channels
    return shapes | norm("batchnorm", 512) | linear("logits", 512, 10)


PUBLISHED = {
    **{name: (1000, 224, vgg_shapes(name)) for name in CONVOLUTIONS},
    "mobilenet-v2": (1000, 224, mobilenet_shapes()),
    "preact-resnet18": (10, 32, preact_shapes()),
    "wide-resnet28-10": (10, 32, wide_shapes(4)),
    "wide-resnet34-10": (10, 32, wide_shapes(5)),
    "preact-resnet18-plain": (10, 32, preact_shapes(plain=True)),
    "preact-resnet18-early": (10, 32, preact_shapes(plain=True)),
    "preact-resnet18-silu": (10, 32, silu_preact_shapes()),
    "wide-resnet28-10-silu": (10, 32, silu_wide_shapes(4, 10)),
    "wide-resnet70-16-silu": (10, 32, silu_wide_shapes(11, 16)),
}
"""Classes, size, and the names and shapes of the published files."""


def meta_network(architecture: str, **given) -> nn.Module:
    """Shapes without numbers: nothing is allocated or drawn."""
    with torch.device("meta"):
        return build_network(architecture, **given)


# ---- as published -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_order_are_the_published_ones(name):
    classes, size, shapes = PUBLISHED[name]
    state = meta_network(name, classes=classes, image_size=size).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == shapes
    assert list(state) == list(shapes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name):
    for count, classes, size in zip(PARAMETERS[name], (1000, 10), (224, 32), strict=True):
        if count is not None:
            network = meta_network(name, classes=classes, image_size=size)
            assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
    ("width", "first", "second", "last"),
    [(16, 16, 8, 1280), (24, 24, 16, 1280), (32, 32, 16, 1280), (64, 64, 32, 2560)],
)
def test_the_width_of_mobilenet_is_its_multiplier(width, first, second, last):
    """torchvision's mobilenet_v2(width_mult=0.5, 0.75, 1 and 2)."""
    state = meta_network("mobilenet-v2", classes=10, width=width, image_size=224).state_dict()
    assert state["features.0.0.weight"].shape[0] == first
    assert state["features.1.conv.1.weight"].shape[0] == second
    assert state["features.18.0.weight"].shape[0] == last
    assert all(v.shape[0] % 8 == 0 for k, v in state.items() if k.endswith("weight") and not k.startswith("class"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_the_width_is_about_a_quarter_of_the_weights(name):
    whole, half = (
        sum(p.numel() for p in meta_network(name, classes=2, width=width, image_size=32).parameters())
        for width in (2 * standard_width(name), standard_width(name))
    )
    assert 3.5 < whole / half < 4.1


# ---- stems --------------------------------------------------------------------------------------------------------

SIDES = {
    # Side before the pooling of images of 28, 32, 64, 65 and 224 pixels.
    "vgg11-bn": (1, 1, 2, 2, 7),
    "vgg13-bn": (1, 1, 2, 2, 7),
    "vgg16-bn": (1, 1, 2, 2, 7),
    "vgg19-bn": (1, 1, 2, 2, 7),
    "mobilenet-v2": (4, 4, 8, 3, 7),
    "preact-resnet18": (4, 4, 8, 3, 7),
    "wide-resnet28-10": (7, 8, 16, 5, 14),
    "wide-resnet34-10": (7, 8, 16, 5, 14),
    "preact-resnet18-plain": (4, 4, 8, 3, 7),
    # Padded at one side alone, an odd side loses half a pixel.
    "preact-resnet18-silu": (3, 4, 8, 2, 7),
    "wide-resnet28-10-silu": (7, 8, 16, 4, 14),
    "resnext50-32x4d": (4, 4, 8, 3, 7),
}


@pytest.mark.parametrize("name", SIDES)
def test_stems_fit_the_image(name):
    for size, side in zip((28, 32, 64, 65, 224), SIDES[name], strict=True):
        network = meta_network(name, classes=3, width=8, image_size=size)
        sides: list[tuple[int, ...]] = []

        def look(_: nn.Module, given: tuple[Tensor, ...], sides=sides) -> None:
            sides.append(tuple(given[0].shape[2:]))

        network.get_submodule("avgpool").register_forward_pre_hook(look)
        assert network(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 3)
        assert sides == [(side, side)]


# ---- what everything else here asks of a network -------------------------------------------------------------------


def classifier(name: str, size: int) -> Classifier:
    """A narrow one, with batch norms as after training."""
    width = 1 if name.startswith("wide") else 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = random_statistics(build_network(name, classes=5, width=width, image_size=size))
    return Classifier.wrap(network, classes=5, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], image_size=size)


def pictures(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


WEIGHTS = torch.tensor([1.0, -2.0, 3.0, -1.0, 0.5])


def gradient(network, images: Tensor) -> Tensor:
    """Of a weighted sum of the logits: untrained networks are often so sure that cross-entropy has none."""
    x = images.clone().requires_grad_(True)
    return torch.autograd.grad((network(x) * WEIGHTS).sum(), x)[0]


def near(got: Tensor, expected: Tensor, share: float = 1e-9) -> None:
    """Equal but for rounding, which goes by the largest of the numbers."""
    assert float((got - expected).detach().abs().max()) <= share * float(expected.detach().abs().max())


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_works_on_every_architecture(name, size):
    # In float64: in float32 rounding opens a ReLU here and there in networks of thirty layers.
    model, images = classifier(name, size), pictures(size)
    last = last_linear(model)
    model.double()
    with torch.no_grad():
        logits, features = model(images), model.features(images)
    assert logits.shape == (2, 5)
    assert features.shape == (2, last.in_features)
    # Features are float32 whatever the network is.
    near(F.linear(features.double(), last.weight, last.bias), logits, share=1e-5)

    grad = gradient(model, images)
    assert bool(torch.isfinite(grad).all())
    assert bool((grad.flatten(1).norm(dim=1) > 0).all())
    with torch.no_grad():
        near(model(images[1:2]), logits[1:2])
    near(gradient(model, images[1:2]), grad[1:2])

    frozen = model.frozen(precision="float32", batch_size=4)
    with torch.no_grad():
        near(frozen(images), logits)
        near(frozen.features(images), features, share=1e-5)
    near(gradient(frozen, images), grad)

    representation = feature_network(model, precision="float32", batch_size=4)
    # The last thing before the representation is a ReLU.
    assert representation.straight_through == (name not in WITHOUT_RELU)
    assert (float(features.min()) >= 0) == representation.straight_through
    with torch.no_grad():
        near(representation(images), features, share=1e-5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("resnet101", "resnet152")])
def test_reduced_precision_points_the_same_way(name):
    model, images = classifier(name, 32), pictures(32).float()
    exact = gradient(model, images)
    reduced = gradient(model.frozen(precision="bfloat16", batch_size=4), images)
    # Untrained narrow networks of many layers lose much, of a hundred all: this asks that nothing is broken, not that
    # it is exact. The blocks of those left out are those of a resnet50.
    assert float(F.cosine_similarity(exact.flatten(), reduced.flatten(), dim=0)) > 0.8


@pytest.mark.parametrize(("name", "size"), [("vgg11-bn", 96), ("mobilenet-v2", 32), ("mobilenet-v2", 96)])
def test_dropout_matters_in_training_only(name, size):
    model, images = classifier(name, size).double(), pictures(size)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    with torch.no_grad():
        before = model(images)
        for dropout in dropouts:
            dropout.p = 0.9
        assert torch.equal(model(images), before)
        near(classifier(name, size).double().frozen(precision="float32", batch_size=4)(images), before)
        for dropout in dropouts:
            dropout.train()
        assert not torch.allclose(model(images), before)


def test_the_clipped_relu_is_relu6():
    x = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    expected = F.relu6(x)
    assert torch.equal(ClippedReLU()(x), expected)
    inside = torch.tensor([-7.0, -0.5, 0.5, 5.5, 6.5], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(ClippedReLU()(inside).sum(), inside)
    assert grad.tolist() == [0, 0, 1, 1, 0]


def test_a_block_keeps_its_shortcut_where_the_shape_stays():
    network = meta_network("mobilenet-v2", classes=2, image_size=32)
    shortcuts = [getattr(block, "shortcut", False) for block in network.get_submodule("features").children()]
    # features.3, 5, 6, 8, 9, 10, 12, 13, 15, 16: all but the first of each stage.
    assert [index for index, there in enumerate(shortcuts) if there] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
