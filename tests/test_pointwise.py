"""The strided convolution of single pixels against PyTorch's own, in the layout in which that is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustsynth.models.folding import fold_batch_norm
from robustsynth.models.layers import LEAST_CHANNELS, PointwiseConv2d, pointwise
from robustsynth.models.networks import ARCHITECTURES, build_network


@pytest.mark.parametrize(("channels", "side", "stride"), [(2, 64, 2), (3, 9, 2), (8, 33, 3), (15, 16, 2), (4, 8, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_value_and_gradients_are_those_of_the_usual_one(channels, side, stride, layout):
    ours = PointwiseConv2d(channels, 2 * channels, stride, bias=True)
    usual = nn.Conv2d(channels, 2 * channels, 1, stride)
    usual.load_state_dict(ours.state_dict())
    images = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(side))
    found = []
    for layer, given in ((ours.to(memory_format=layout), images.contiguous(memory_format=layout)), (usual, images)):
        given = given.clone().requires_grad_()
        result = layer(given)
        result.square().sum().backward()
        found.append((result, given.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_pytorchs_own_is_taken_wherever_it_is_safe():
    assert type(pointwise(LEAST_CHANNELS, 32, 2)) is nn.Conv2d
    assert type(pointwise(4, 8, 1)) is nn.Conv2d
    assert type(pointwise(4, 8, 2)) is PointwiseConv2d
    standard = build_network("resnet18", classes=10, image_size=32)
    assert not any(isinstance(module, PointwiseConv2d) for module in standard.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_network_has_the_convolution_that_goes_wrong(name):
    """Strided, of one pixel, of fewer channels than a vector has room for."""
    for module in build_network(name, classes=2, width=2, image_size=32).modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1):
            assert module.in_channels >= LEAST_CHANNELS


def test_its_batch_norm_is_folded_like_any_other():
    network = build_network("resnet18", classes=3, width=4, image_size=16).eval()
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-3, atol=1e-4)
