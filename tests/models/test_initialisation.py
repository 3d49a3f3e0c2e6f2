"""Initialising a model one module at a time: complete, and with the draws of earlier versions."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from pelagos.models.registry import create_model

# SHA-256 of every parameter and buffer after manual_seed(0), from the version that drew the whole
# model at once: a run repeated from its seed must not change with the initialisation's form.
POSEIDON_DRAWS = {
    "606ef609823de217e4130620c3030668c72658ffb03a1ea548c98a8035258a7e": {},
    "7781d40242e8f05f769c1d4d63c94706212d84ef4802131a157c3424c8926fa9": {"unit_norm_init": False},
    "0c0104b6d0a9dc37bf1c70da5e0232c4d45593bbfc73bc002c5f3cd53cb85de7": {"use_conditioning": False},
}
SMALL_MODELS = [
    "poseidon-nano",
    "dpot-nano",
    "dpot3d-nano",
    "mpp-nano",
    "fno-nano",
    "tfno-nano",
    "unet-nano",
    "sinenet-nano",
    "mgno-nano",
    "deeponet-nano",
    "vit-nano",
    "mae-nano",
    "nnunet-nano",
    "stunet-nano",
    "mednext-nano",
    "simvp-nano",
    "gnot-nano",
]


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def digest(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors_of(model).items()):
        sha.update(name.encode())
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("expected", POSEIDON_DRAWS)
def test_poseidon_draws_the_same_weights_as_before(expected: str):
    torch.manual_seed(0)
    assert digest(create_model("poseidon-nano", **POSEIDON_DRAWS[expected])) == expected


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_one_call_per_module_initialises_everything(name: str):
    torch.manual_seed(3)
    direct = create_model(name)
    with torch.device("meta"):
        model = create_model(name)
    assert all(tensor.is_meta for tensor in tensors_of(model).values())
    model.to_empty(device="cpu")
    for tensor in tensors_of(model).values():
        tensor.data.fill_(float("nan"))
    torch.manual_seed(3)
    for module in model.modules():
        model.init_weights(module)
    got = tensors_of(model)
    for key, expected in tensors_of(direct).items():
        assert torch.isfinite(got[key]).all(), key
        assert torch.equal(got[key], expected), key


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_call_touches_only_the_direct_tensors_of_its_module(name: str):
    model = create_model(name)
    for module in model.modules():
        direct = {
            id(t) for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        }
        versions = {key: tensor._version for key, tensor in tensors_of(model).items()}
        model.init_weights(module)
        for key, tensor in tensors_of(model).items():
            written = tensor._version > versions[key]
            assert written == (id(tensor) in direct), key
