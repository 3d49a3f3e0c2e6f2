"""Low-rank updates of frozen weights: W + (alpha / rank) B A, of which A and B alone are trained.

Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, arXiv:2106.09685, eq. 3.
Any parameter with two axes or more can have one: matrices, kernels of convolutions (as matrices
[out, in * kernel]), and stacks of matrices such as spectral weights [..., in, out] (one update for
each matrix). The network's own code and names stay: the parameter is read as the sum, while under
its name the state dict holds the frozen values. B starts at zero, so step 0 is the source's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pelagos.models.checks import check_patterns

_A, _B = "_lora_a", "_lora_b"


def add_low_rank(
    model: nn.Module,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    also_train: Sequence[str] = (),
) -> list[str]:
    """Give the parameters whose names match `targets` an update, freeze all others but `also_train`.

    Return the names of the updated.

    A parameter that matches both is trained itself. The updates' values are those of
    `initial_updates`, or whatever is loaded. Raises ValueError for a pattern that matches nothing,
    for targets without two axes, and for a rank above the smaller side of every target.
    """
    names = [name for name, _ in model.named_parameters()]
    check_patterns("lora.targets", targets, names)
    check_patterns("lora.also_train", also_train, names)
    updated = []
    for name in names:
        module_name, _, own_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        parameter = module._parameters[own_name]
        assert parameter is not None
        is_trained = any(re.search(p, name) for p in also_train)
        parameter.requires_grad_(is_trained)
        if is_trained or not any(re.search(p, name) for p in targets):
            continue
        if parameter.ndim < 2:
            raise ValueError(
                f"lora.targets: {name} has shape {list(parameter.shape)}, but a low-rank update "
                "needs two axes: name weights, not biases or norms"
            )
        _update(module, own_name, parameter, rank, alpha / rank)
        updated.append(name)
    _check_rank(model, updated, rank)
    return updated


def _check_rank(model: nn.Module, updated: Sequence[str], rank: int) -> None:
    """Refuse a rank that no target's matrix can have: updates would be as large as the weights."""
    parameters = dict(model.named_parameters())
    sides = {
        name: min(parameters[name + _A].shape[-1], parameters[name + _B].shape[-2])
        for name in updated
    }
    if sides and rank > max(sides.values()):
        widest = max(sides, key=lambda name: sides[name])
        raise ValueError(
            f"lora.rank: got {rank}, but no target has a rank that large; the widest, {widest}, has "
            f"a smaller side of {sides[widest]}. Use a rank below that, or train these weights "
            "themselves (lora.also_train)"
        )


def is_update(name: str) -> bool:
    """Return whether a parameter of that name is a factor of a low-rank update."""
    return name.endswith((_A, _B))


def factor_names(name: str) -> tuple[str, str]:
    """Return the names of the factors A and B of a parameter's update."""
    return name + _A, name + _B


def base_of(name: str) -> str | None:
    """Return the parameter whose update has a factor A of that name, None for other names."""
    return name.removesuffix(_A) if name.endswith(_A) else None


def initial_updates(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A uniform in ±1 / sqrt(columns), from the seed and its name alone; B zero."""
    values = {}
    for name, parameter in model.named_parameters():
        if name.endswith(_B):
            values[name] = torch.zeros(parameter.shape)
        elif name.endswith(_A):
            generator = torch.Generator().manual_seed(_seed(seed, name))
            bound = parameter.shape[-1] ** -0.5
            uniform = torch.rand(parameter.shape, generator=generator)
            values[name] = (2.0 * uniform - 1.0) * bound
    return values


def merged(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict of the network without updates: each is added to its weight."""
    plain = {name: w for name, w in weights.items() if not name.endswith((_A, _B))}
    for name in weights:
        if name.endswith(_A):
            base = name.removesuffix(_A)
            a, b = weights[name], weights[base + _B]
            plain[base] = plain[base] + _product(a, b, plain[base].shape) * (alpha / a.shape[-2])
    return plain


def _update(module: nn.Module, name: str, parameter: Tensor, rank: int, scale: float) -> None:
    a, b = _factor_shapes(module, parameter, rank)
    kind = type(module)
    updates: dict[str, float] = {**getattr(kind, "low_rank_scales", {}), name: scale}
    original = getattr(kind, "without_low_rank", kind)
    module.__class__ = _with_updates(original, updates)
    for suffix, shape in ((_A, a), (_B, b)):
        empty = torch.empty(shape, device=parameter.device, dtype=parameter.dtype)
        module.register_parameter(name + suffix, nn.Parameter(empty))


def _with_updates(kind: type[nn.Module], scales: Mapping[str, float]) -> type[nn.Module]:
    """A subclass that reads the named parameters as the sum of weight and update."""
    members: dict[str, object] = {name: _sum_of(name, scale) for name, scale in scales.items()}
    members |= {"low_rank_scales": dict(scales), "without_low_rank": kind}
    return type(f"LowRank{kind.__name__}", (kind,), members)


def _sum_of(name: str, scale: float) -> property:
    def read(module: nn.Module) -> Tensor:
        parameters = module._parameters
        weight, a, b = parameters[name], parameters[name + _A], parameters[name + _B]
        assert weight is not None
        assert a is not None
        assert b is not None
        if hasattr(weight, "placements"):  # held in parts by a strategy, which looks for the weight
            return weight
        return weight + _product(a, b, weight.shape) * scale

    return property(read)


def _factor_shapes(
    module: nn.Module, parameter: Tensor, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(module, nn.modules.conv._ConvNd) or parameter.ndim == 2:
        rows, columns = parameter.shape[0], parameter[0].numel()
        return (rank, columns), (rows, rank)
    *stack, rows, columns = parameter.shape
    return (*stack, rank, columns), (*stack, rows, rank)


def _product(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    return (b @ a).reshape(shape)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
