"""Low-rank updates in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Names as the package `peft` (0.21) reads them: `base_model.model.MODULE.lora_A.weight [rank, in]` and
`lora_B.weight [out, rank]`; of convolutions `[rank, in, *kernel]` and `[out, rank, 1, …]`. Modules that
were trained themselves are stored whole, as `modules_to_save`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pelagos.models.layers.linear import Linear
from pelagos.models.low_rank import base_of, factor_names

_PREFIX = "base_model.model."
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LINEAR = (nn.Linear, Linear)  # other subclasses may use their weight in another way
_LISTED = 3


def as_peft(
    network: nn.Module, weights: Mapping[str, Tensor], lora: Mapping[str, Any], base: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors of an adapter.

    Args:
        network: without updates, whose modules are looked at; may be on the meta device.
        weights: the state dict with the factors of updates.
        lora: the options of the training: `rank`, `alpha`, `also_train`.
        base: the name of the base model, for people.

    Raises:
        ValueError: the weights have no updates, or some that PEFT has no layer for.
    """
    updated = sorted(filter(None, (base_of(name) for name in weights)))
    if not updated:
        raise ValueError(
            "--adapter: the run trained whole weights, no low-rank updates: leave out --adapter"
        )
    targets = {name: _target(network, name) for name in updated}
    others = [name for name, target in targets.items() if target is None]
    if others:
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        raise ValueError(
            f"--adapter: PEFT updates the weight of a Linear or a plain convolution, but the run also "
            f"updated {', '.join(others[:_LISTED])}{more}. Export without --adapter: the updates are "
            "then added to the weights"
        )
    tensors: dict[str, Tensor] = {}
    for name in updated:
        module = name.rpartition(".")[0]
        first, second = (weights[n] for n in factor_names(name))
        layer = network.get_submodule(module)
        if isinstance(layer, _CONVOLUTIONS):
            kernel = layer.weight.shape[1:]
            first = first.reshape(len(first), *kernel)
            second = second.reshape(*second.shape, *(1,) * (len(kernel) - 1))
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = first.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = second.contiguous()
    modules = [name.rpartition(".")[0] for name in updated]
    saved = _saved(network, lora.get("also_train", ()), modules)
    for module in saved:
        for name, value in weights.items():
            if name.startswith(f"{module}."):
                tensors[f"{_PREFIX}{name}"] = value.contiguous()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": int(lora["rank"]),
        "lora_alpha": lora["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": _exactly(network, modules),
        "modules_to_save": saved or None,
    }
    return config, tensors


def _target(network: nn.Module, name: str) -> nn.Module | None:
    """Return the layer that PEFT has an update for, None if it has none."""
    module, _, own = name.rpartition(".")
    layer = network.get_submodule(module)
    is_plain = type(layer) in _LINEAR or (type(layer) in _CONVOLUTIONS and layer.groups == 1)
    return layer if own == "weight" and is_plain else None


def _saved(network: nn.Module, patterns: Sequence[str], updated: Sequence[str]) -> list[str]:
    """Return the modules with parameters that were trained themselves.

    Raises:
        ValueError: PEFT cannot keep one, as it holds an updated layer, or is the whole network.
    """
    names = [
        name for name, _ in network.named_parameters() if any(re.search(p, name) for p in patterns)
    ]
    modules = sorted({name.rpartition(".")[0] for name in names} - set(updated))
    wrong = [m for m in modules if not m or any(u.startswith(f"{m}.") for u in updated)]
    partly = [n for n in names if n.rpartition(".")[0] in updated]
    if wrong or partly:
        told = ", ".join(
            [*(m or "parameters of the network itself" for m in wrong), *partly][:_LISTED]
        )
        raise ValueError(
            f"--adapter: {told} was trained beside its own low-rank update or around others, which "
            "PEFT's layout cannot hold. Export without --adapter"
        )
    return modules


def _exactly(network: nn.Module, modules: Sequence[str]) -> list[str] | str:
    """Return what makes PEFT choose these modules alone: their names, which it also takes as endings."""
    ends = tuple(f".{module}" for module in modules)
    chosen = set(modules)
    if any(n.endswith(ends) for n, _ in network.named_modules() if n not in chosen):
        return "|".join(re.escape(module) for module in modules)
    return list(modules)
