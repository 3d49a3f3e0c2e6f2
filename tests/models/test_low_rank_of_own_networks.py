"""Low-rank updates of a user's own network: the constructor draws the weights, and not the updates."""

import torch
from torch import nn

from pelagos.models.low_rank import add_low_rank
from pelagos.models.registry import create_model
from pelagos.platform.strategies.initialize import draw_missing


class Net(nn.Module):
    """A network of a user's own, whose constructor draws more than one module's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(width, 4)


NAME = f"{__name__}:Net"
OPTIONS = {"width": 6}


def test_weights_are_the_constructors_with_and_without_updates() -> None:
    with torch.device("meta"):
        plain = create_model(NAME, in_channels=1, out_channels=1, **OPTIONS)
        updated = create_model(NAME, in_channels=1, out_channels=1, **OPTIONS)
        add_low_rank(updated, ["first.weight"], 2, 4.0, [])
    for model in (plain, updated):
        draw_missing(model, 3)
    torch.manual_seed(3)
    expected = dict(Net(6).named_parameters())
    for model in (plain, updated):
        weights = dict(model.named_parameters())
        for name, values in expected.items():
            assert torch.equal(weights[f"network.{name}"], values), name
    trained = {name for name, p in updated.named_parameters() if p.requires_grad}
    assert trained == {"network.first.weight_lora_a", "network.first.weight_lora_b"}
