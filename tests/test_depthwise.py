"""The depthwise convolution that is fast in bfloat16: the same function as PyTorch's, in every precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustsynth.models.folding import fold_and_report, reduce_but_logits, reducible
from robustsynth.models.layers import DepthwiseConv2d
from robustsynth.models.networks import build_network


def pair(stride: int, *, bias: bool = False, kernel: int = 3) -> tuple[DepthwiseConv2d, nn.Conv2d]:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(8, kernel=kernel, stride=stride, bias=bias)
    plain = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8, bias=bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def passes(layer: nn.Module, images: torch.Tensor, *, autocast: bool) -> list[torch.Tensor]:
    x = images.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = layer(x)
    return [made.detach(), *torch.autograd.grad(made.float().square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel", "bias"), [(3, False), (3, True), (5, True)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "float64", "autocast", "bfloat16"])
def test_it_is_pytorchs_own(precision, stride, kernel, bias, side):
    ours, plain = pair(stride, bias=bias, kernel=kernel)
    images = torch.randn(3, 8, side, side)
    if precision in ("bfloat16", "float64"):
        ours, plain, images = (each.to(getattr(torch, precision)) for each in (ours, plain, images))
    autocast = precision == "autocast"
    got, expected = (passes(layer, images, autocast=autocast) for layer in (ours, plain))
    reduced = precision in ("autocast", "bfloat16")
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        # To a rounding of bfloat16, which has 8 bits, of the largest number; else to the last bit.
        limit = float(theirs.float().abs().max()) / 64 if reduced else 0.0
        assert float((mine.double() - theirs.double()).abs().max()) <= limit


def test_its_arithmetic_is_better_than_bfloat16s_where_it_is_strided():
    ours, plain = pair(2)
    exact = passes(ours.double(), (images := torch.randn(4, 8, 16, 16)).double(), autocast=False)
    ours, plain = ours.bfloat16(), plain.bfloat16()
    mine, theirs = (
        (passes(layer, images.bfloat16(), autocast=False)[2].double() - exact[2]).norm() for layer in (ours, plain)
    )
    assert float(mine) <= 1.1 * float(theirs)


def test_mobilenet_still_folds_whole_and_is_held_in_bfloat16():
    network = build_network("mobilenet-v2", classes=3, width=8).eval()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    strided = [m for m in network.modules() if isinstance(m, DepthwiseConv2d) and m.stride == (2, 2)]
    folded, told = fold_and_report(network)
    assert len(strided) == 3
    assert len(told) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(m, DepthwiseConv2d) and m.stride == (2, 2) for m in folded.modules()) == 3
    assert reducible(folded)
    reduce_but_logits(folded)
    assert torch.isfinite(folded(torch.rand(2, 3, 32, 32).bfloat16())).all()
