"""Batch norm folded into the convolution before it: the same function in evaluation mode, with fewer passes."""

from __future__ import annotations

import copy
import inspect

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

REDUCIBLE = (
    nn.Conv2d, nn.Linear, nn.ReLU, nn.Identity, nn.Dropout, nn.Flatten,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
"""Layers whose weights and arithmetic may both be reduced to bfloat16; a normalisation's statistics may not."""


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode with each batch norm folded into the convolution before it.

    A network whose code cannot be traced is copied as it is, so the result always computes the same function.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> x = torch.rand(1, 3, 5, 5)
        >>> bool(torch.allclose(net(x), fold_batch_norm(net)(x), atol=1e-6))
        True
    """
    network = copy.deepcopy(network).eval()
    try:
        # Options with defaults, such as the authors' with_latent=False, are fixed at them.
        parameters = list(inspect.signature(network.forward).parameters.values())[1:]
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        traced = fx.symbolic_trace(network, concrete_args=defaults)
    except Exception:
        # Tracing fails in as many ways as people write networks; the plain copy is always right.
        return network
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0] if node.args else node.kwargs["input"]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = modules[before.target], modules[node.target]
        assert isinstance(norm, nn.BatchNorm2d)
        # Used again elsewhere, as a module or by its numbers, it must stay as it is; a hook may do anything between.
        own = str(before.target)
        uses = sum(str(n.target) == own or str(n.target).startswith(f"{own}.") for n in traced.graph.nodes)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (convolution, norm))
        if uses > 1 or hooked or type(convolution) is not nn.Conv2d or norm.running_mean is None:
            continue
        modules[own] = fuse_conv_bn_eval(convolution, norm)
        traced.set_submodule(own, modules[own])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval()


def reducible(network: nn.Module) -> bool:
    """Whether the whole network may be held in bfloat16 (see `REDUCIBLE`)."""
    leaves = [m for m in network.modules() if not list(m.children())]
    owned = {id(p) for m in leaves for p in m.parameters(recurse=False)}
    return all(isinstance(m, REDUCIBLE) for m in leaves) and all(id(p) in owned for p in network.parameters())
