"""The network as the attack sees it: in evaluation mode, frozen, batch norms folded into convolutions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustsynth.models.folding import fold_and_tell, reduce_but_logits, reducible
from robustsynth.training.settings import TrainSettings


class AttackNetwork(nn.Module):
    """A frozen twin of a network in training, which follows its weights.

    The attack of adversarial training asks the network, as it would be used, many times between two changes of its
    weights. A normalisation by fixed statistics is a multiplication that the convolution before it can do as well, and
    weights that stay need to be cast to bfloat16 only once.

    Args:
        network: being trained.
        precision: ``float32`` or ``bfloat16``, that it computes in.

    Attributes:
        folds: whether there was anything to fold; where not, it is as fast as the network itself.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 2))
        >>> twin, images = AttackNetwork(network, "float32"), torch.rand(2, 3, 5, 5)
        >>> with torch.no_grad():
        ...     _ = network[0].weight.mul_(2)
        >>> twin.follow(network)
        >>> bool(torch.allclose(twin(images), network.eval()(images), atol=1e-5))
        True
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        twin, self._norms = fold_and_tell(network)
        self.folds = bool(self._norms)
        twin = twin.requires_grad_(False).eval()
        self.reduced = precision == "bfloat16"
        self._whole = self.reduced and reducible(twin)
        if self._whole:
            reduce_but_logits(twin)
        self.twin = twin.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Take on the weights and statistics that `network` has now."""
        current = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        modules = dict(network.named_modules())
        for name, value in self.twin.state_dict().items():
            owner, _, kind = name.rpartition(".")
            if owner not in self._norms:
                value.copy_(current[name])
                continue
            norm = modules[self._norms[owner]]
            assert isinstance(norm, nn.BatchNorm2d)
            value.copy_(_folded(current, owner, norm, kind))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), float32, of normalised images (N, C, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.reduced and not self._whole):
            return self.twin(images.to(torch.bfloat16) if self._whole else images).float()


def attack_twin(network: nn.Module, settings: TrainSettings, precision: str) -> AttackNetwork | None:
    """A twin for the attack of a run to ask, where there is an attack and something to gain."""
    asked = settings.eps > 0 and settings.recipe != "free" and settings.attack_statistics != "train"
    twin = AttackNetwork(network, precision) if asked else None
    return twin if twin is not None and twin.folds else None


def _folded(current: Mapping[str, Tensor], owner: str, norm: nn.BatchNorm2d, kind: str) -> Tensor:
    """The weight or the bias of the convolution `owner` with `norm` folded into it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    if kind == "weight":
        return current[f"{owner}.weight"] * scale.view(-1, 1, 1, 1)
    before = current.get(f"{owner}.bias", torch.zeros_like(scale))
    shift = (before - norm.running_mean) * scale
    return shift + norm.bias if norm.affine else shift
