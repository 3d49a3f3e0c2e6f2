"""Low-rank updates of a user's own network: the constructor draws the weights, and not the updates."""

import torch
from torch import nn

from pelagos.models.low_rank import add_low_rank
from pelagos.models.registry import create_model
from pelagos.platform.strategies.initialize import draw_missing

OPTIONS = {"in_features": 5, "out_features": 4}


def test_weights_are_the_constructors_with_and_without_updates() -> None:
    with torch.device("meta"):
        plain = create_model("torch.nn:Linear", in_channels=1, out_channels=1, **OPTIONS)
        updated = create_model("torch.nn:Linear", in_channels=1, out_channels=1, **OPTIONS)
        add_low_rank(updated, ["weight"], 2, 4.0, [])
    for model in (plain, updated):
        draw_missing(model, 3)
    torch.manual_seed(3)
    expected = nn.Linear(5, 4)
    for model in (plain, updated):
        weights = dict(model.named_parameters())
        assert torch.equal(weights["network.weight"], expected.weight)
        assert torch.equal(weights["network.bias"], expected.bias)
    trained = {name for name, p in updated.named_parameters() if p.requires_grad}
    assert trained == {"network.weight_lora_a", "network.weight_lora_b"}
