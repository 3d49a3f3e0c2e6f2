"""A network of a user's own: any `nn.Module` class, named `my_lab.networks:MyNet` in a job.

The class takes its options as keywords, and `in_channels` and `out_channels` (numbers of fields)
where its signature has them. It is called as the objective calls (`pelagos.models.family.Call`); its
attribute `call` says how, `"frame"` where it has none, and its answer may be the tensor alone.

`OwnNetwork` holds it as `network` and offers the registry's interface. Its initial weights are
those that the class's constructor draws, on the CPU, whole.

Only modules that are already imported are looked at: a name in a file of others imports nothing.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pelagos.models.family import Call, FrameOutput, Options
from pelagos.models.low_rank import is_update
from pelagos.models.pretrained import Pretrained, check_weights, read_weights

MODEL_TYPE = "own"
INPUTS = "as its objective calls it"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_CALLS = get_args(Call)
# Always imported: a name in a file of others must not pick among their classes.
_LIBRARIES = ("torch", "einops", "accelerate", "ray", "mlflow", "pelagos")


@dataclass(frozen=True)
class OwnOptions(Options):
    """The arguments that built a user's own network; `network` is its name, `module:Class`."""

    network: str = ""
    in_channels: int = 0
    out_channels: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def names_class(name: str) -> bool:
    """Whether a name is of a class, `module:Class`, and not of the registry."""
    return _NAME.fullmatch(name) is not None


def find(name: str) -> type[nn.Module]:
    """Return the class of a name, whose module has been imported.

    Raises ValueError: the module was not, or it has no such network.
    """
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in _LIBRARIES:
        raise ValueError(f"{name}: {module} does not hold networks of users")
    if module not in sys.modules:
        raise ValueError(
            f"{name}: the module {module} was not imported. Jobs import the modules of their own "
            f"model.name and plugins, but not those that only a file names: give --plugin {module}"
        )
    found = getattr(sys.modules[module], attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [
            known
            for known, value in vars(sys.modules[module]).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise ValueError(
            f"{module} has no network {attribute} (a subclass of torch.nn.Module); it has "
            f"{', '.join(classes) or 'none'}"
        )
    return found


def call_of(name: str) -> Call:
    """How a class is called: its attribute `call`, or `frame`. Raises ValueError as `find`."""
    found: Call = getattr(find(name), "call", "frame")
    if found not in _CALLS:
        raise ValueError(f"{name}.call is {found!r}; expected one of {', '.join(_CALLS)}")
    return found


def create(
    name: str, in_channels: int | None, out_channels: int | None, options: Mapping[str, Any]
) -> OwnNetwork:
    """Build a class's network.

    Raises ValueError: there is no such class, it does not take these options, or it cannot be built.
    """
    return OwnNetwork(OwnOptions(name, in_channels or 0, out_channels or 0, dict(options)))


def load(config: Mapping[str, Any], directory: str | Path) -> OwnNetwork:
    """Return the network of a model directory. Raises ValueError as `create`, and if it does not fit."""
    model = OwnNetwork(OwnOptions.from_official(config))
    weights = read_weights(directory)
    check_weights(model, weights, str(directory))
    model.load_state_dict(weights, strict=True)
    return model


class OwnNetwork(Pretrained):
    """A user's network with the interface of the registry's networks."""

    model_types = (MODEL_TYPE,)
    config_class = OwnOptions

    def __init__(self, config: OwnOptions) -> None:
        super().__init__()
        self.config = config
        self.call = call_of(config.network)
        device = torch.empty(0).device
        # on the meta device a constructor could not compute with numbers, as many do
        with torch.device("cpu"):
            self.network = _constructed(config)
        self._drawn: dict[str, Tensor] = {}
        if device.type != "cpu":
            self.to(device)

    def forward(self, *arguments: Any) -> Any:
        """The network's answer, as its objective takes it (`pelagos.models.family.Call`)."""
        answer = self.network(*arguments)
        if isinstance(answer, Tensor):
            if self.call == "frame":
                return FrameOutput(answer)
            if self.call == "window":
                return (answer,)
        return answer

    def blocks(self) -> list[nn.Module]:
        """The repeated modules to wrap, compile or checkpoint.

        The result of the class's `blocks`, or else its longest list of modules.
        """
        says = getattr(self.network, "blocks", None)
        if callable(says) and not isinstance(says, nn.Module):
            return list(says())
        if isinstance(says, nn.ModuleList | nn.Sequential):
            return list(says)
        lists = [m for m in self.network.modules() if isinstance(m, nn.ModuleList)]
        return list(max(lists, key=len, default=[]))

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay: the class's own answer, or vectors and all of norms."""
        says = getattr(self.network, "no_weight_decay", None)
        return (
            {f"network.{name}" for name in says()} if callable(says) else super().no_weight_decay()
        )

    def draw_whole(self, seed: int, module: str, key: str) -> Tensor | None:
        """Return one initial parameter or buffer of a submodule, as the constructor draws it.

        All are drawn together from `seed`; each is kept until it is asked for. Low-rank updates, which
        no constructor makes, are None.
        """
        name = f"{module}.{key}" if module else key
        if is_update(name):
            return None
        if name not in self._drawn:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(seed)
                fresh = _constructed(self.config)
            tensors = [*fresh.named_parameters(), *fresh.named_buffers()]
            self._drawn = {f"network.{n}": t.detach() for n, t in tensors}
        return self._drawn.pop(name)

    def reset_parameters(self) -> None:
        """Initialise all anew, from torch's global generator."""
        self.network = _constructed(self.config)

    def reset_buffers(self) -> None:
        """Fill the tables that the state dict does not hold."""
        missing = dict(self.named_buffers()).keys() - self.state_dict().keys()
        fresh = dict(_constructed(self.config).named_buffers()) if missing else {}
        for name in missing:
            self.get_buffer(name).copy_(fresh[name.removeprefix("network.")])


def _constructed(config: OwnOptions) -> nn.Module:
    kind = find(config.network)
    keywords = _keywords(kind, config)
    try:
        return kind(**keywords)
    except Exception as error:  # the constructor is a user's own
        said = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise ValueError(f"{config.network}({said}): {type(error).__name__}: {error}") from error


def _keywords(kind: type[nn.Module], config: OwnOptions) -> dict[str, Any]:
    """The options, and the numbers of channels where the class takes them."""
    taken = inspect.signature(kind.__init__).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    unknown = sorted(set(config.options) - set(taken))
    if unknown and not takes_any:
        known = [name for name in list(taken)[1:] if name not in ("in_channels", "out_channels")]
        raise ValueError(
            f"{config.network} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(known) or 'none'}"
        )
    channels = {"in_channels": config.in_channels, "out_channels": config.out_channels}
    return {**config.options, **{k: v for k, v in channels.items() if k in taken and v}}
