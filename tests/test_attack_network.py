"""The network as the attack sees it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustsynth.models.networks import ARCHITECTURES, build_network
from robustsynth.training.attack import AttackNetwork

NARROW = {"wide-resnet34-20": 2, "wide-resnet70-16-silu": 1}


def trained_a_little(architecture: str, *, channels: int = 3) -> nn.Module:
    """With statistics and norms that are not those of a fresh network."""
    torch.manual_seed(0)
    width = NARROW.get(architecture, 4 if architecture.startswith("wide") else 8)
    network = build_network(architecture, classes=5, width=width, channels=channels)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(4, channels, 32, 32)).square().mean().backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_network_and_follows_it(architecture):
    network = trained_a_little(architecture)
    frozen, images = AttackNetwork(network, "float32"), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point():
                value.mul_(1.05)
        expected = network(images)
        assert not torch.allclose(frozen(images), expected, rtol=1e-3, atol=1e-4), "it does not follow by itself"
        frozen.follow(network)
        torch.testing.assert_close(frozen(images), expected, rtol=1e-3, atol=1e-4)


def test_following_is_the_same_as_being_made_anew():
    network = trained_a_little("resnet18")
    frozen = AttackNetwork(network, "bfloat16")
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.01)
    frozen.follow(network)
    for (name, followed), made in zip(
        frozen.state_dict().items(), AttackNetwork(network, "bfloat16").state_dict().values(), strict=True
    ):
        torch.testing.assert_close(followed, made, rtol=0.01, atol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet18-even", "preact-resnet18"])
def test_reduced_precision_gives_gradients_as_near_as_autocasts(architecture):
    network = trained_a_little(architecture).requires_grad_(False)
    frozen, images = AttackNetwork(network, "bfloat16"), torch.randn(4, 3, 32, 32)

    def autocast(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x).float()

    gradients = []
    for function in (network, autocast, frozen):
        x = images.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(function(x), torch.arange(4), reduction="sum")
        gradients.append(torch.autograd.grad(loss, x)[0].flatten(1))
    exact, autocasts, folded = gradients
    near, nearest = (nn.functional.cosine_similarity(exact, g).mean() for g in (folded, autocasts))
    assert near > 0.9
    assert near > nearest - 0.01


def test_its_parameters_are_frozen_and_its_own():
    network = trained_a_little("resnet18")
    frozen = AttackNetwork(network, "float32")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in network.parameters())
    before = [p.clone() for p in network.parameters()]
    for p in frozen.parameters():
        p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_what_cannot_be_folded_is_copied():
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return self.fc(x.mean((2, 3)) if float(x.sum()) > -1e9 else x[:, :, 0, 0])

    network = Untraceable().eval()
    frozen = AttackNetwork(network, "float32")
    assert not frozen.folds
    with torch.no_grad():
        network.fc.weight.mul_(3)
        frozen.follow(network)
        images = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(frozen(images), network(images))
