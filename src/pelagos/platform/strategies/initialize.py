"""Drawing initial weights module by module, so that no rank needs to hold the whole model.

Each module's direct parameters and buffers are drawn on the CPU from a generator seeded by
(seed, the module's name). So the weights do not depend on strategy, world size, device, or on the
order in which modules are drawn.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def modules_to_draw(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold parameters or buffers of their own, children first.

    Raises:
        ValueError: two modules share a parameter, which drawing one by one would part.
    """
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise ValueError(
                f"{type(model).__name__} shares one parameter under two names, "
                f"{seen[id(parameter)]} and {name}; a model must hold each parameter once"
            )
        seen[id(parameter)] = name
    for name, module in reversed(list(model.named_modules())):
        if module._parameters or module._buffers:
            yield name, module


def is_on_meta(module: nn.Module) -> bool:
    """Return whether the module's own tensors have no values yet."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(t.is_meta for t in tensors if t is not None)


def draw(model: nn.Module, name: str, module: nn.Module, seed: int) -> None:
    """Draw the values of a module's own parameters and buffers, which must lie on the CPU.

    `model.init_weights(module)` says how; without it the module's own `reset_parameters()`. A model
    that can only draw all its weights together has `draw_whole(seed, module's name, key)`.

    Raises:
        ValueError: neither exists.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if callable(draw_whole := getattr(model, "draw_whole", None)):
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and (drawn := draw_whole(seed, name, key)) is not None:
                    tensor.copy_(drawn)
            return
        torch.manual_seed(_module_seed(seed, name))
        init_weights = getattr(model, "init_weights", None)
        if init_weights is not None:
            init_weights(module)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            raise ValueError(
                f"no rule initialises {name} ({type(module).__name__}): give {type(model).__name__} "
                "a method init_weights(module), or the module reset_parameters()"
            )


def draw_missing(model: nn.Module, seed: int) -> None:
    """Draw, on the CPU, every module that is on the meta device; leave the others alone."""
    for name, module in modules_to_draw(model):
        if is_on_meta(module):
            module.to_empty(device="cpu", recurse=False)
            draw(model, name, module, seed)


def drawn_copy(
    model: nn.Module, name: str, module: nn.Module, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return freshly drawn parameters and buffers of a module, leaving the module as it is."""
    parameters = {k: p for k, p in module._parameters.items() if p is not None}
    buffers = {k: b for k, b in module._buffers.items() if b is not None}
    drawn_parameters = {k: torch.empty(p.shape, dtype=p.dtype) for k, p in parameters.items()}
    drawn_buffers = {k: torch.empty(b.shape, dtype=b.dtype) for k, b in buffers.items()}
    for key, tensor in drawn_parameters.items():
        module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    module._buffers.update(drawn_buffers)
    try:
        draw(model, name, module, seed)
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)
    return drawn_parameters, drawn_buffers


def _module_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
