"""What peer_values.py asks of each peer, in the peer's own environment; nothing of Pelagos is imported.

    python benchmarks/peer_value_checks.py PEER FILE.npz

prints JSON: name of the comparison to the largest difference, as a share of the peer's largest value.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def share(found: Any, expected: Any) -> float:
    """The largest difference of `found` from the peer's value, relative to the latter's largest."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def weights(arrays: Any) -> dict[str, Any]:
    import torch

    return {n.removeprefix("w."): torch.from_numpy(arrays[n]) for n in arrays if n.startswith("w.")}


def timm(arrays: Any) -> dict[str, float]:
    """timm's VisionTransformer without a class token, averaging tokens, with the same weights."""
    import torch

    # torchvision, which timm imports, asks for two operations that its CPU build may lack
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from timm.models.vision_transformer import VisionTransformer

    mine = weights(arrays)
    width = mine["encoder.norm.weight"].shape[0]
    model = VisionTransformer(
        img_size=32,
        patch_size=4,
        num_classes=10,
        global_pool="avg",
        class_token=False,
        embed_dim=width,
        depth=3,
        num_heads=4,
        fc_norm=False,
    )
    rules = {
        "encoder.": "",
        "attention.query_key_value": "attn.qkv",
        "attention.projection": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
        "head.logits": "head",
    }
    state = {}
    for name, tensor in mine.items():
        if name == "encoder.position":  # [1, D, y, x] to [1, token, D]
            state["pos_embed"] = tensor.flatten(2).transpose(1, 2)
        elif name == "encoder.embedding.weight":  # values of a patch in the order y, x, channel
            cut = tensor.reshape(width, 4, 4, 3)
            state["patch_embed.proj.weight"] = cut.permute(0, 3, 1, 2)
        elif name == "encoder.embedding.bias":
            state["patch_embed.proj.bias"] = tensor
        else:
            for ours, theirs in rules.items():
                name = name.replace(ours, theirs)
            state[name] = tensor
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        answer = model(torch.from_numpy(arrays["x"]))
    return {"timm ViT": share(arrays["y"], answer)}


def nnunet(arrays: Any) -> dict[str, float]:
    """nnU-Net's own PlainConvUNet with as many stages; weights go over in the order of use."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    mine = weights(arrays)
    model = PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[8, 16, 32],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_conv_per_stage=2,
        num_classes=2,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )

    def block(name: str, target: str) -> dict[str, Any]:
        parts = {"convolution": "conv", "norm": "norm"}
        return {
            f"{target}.{theirs}.{kind}": mine[f"{name}.{ours}.{kind}"]
            for ours, theirs in parts.items()
            for kind in ("weight", "bias")
        }

    state: dict[str, Any] = {}
    first = {0: "stem", 1: "down.0", 2: "down.1"}
    for level in range(3):
        stage = f"encoder.stages.{level}.0.convs"
        state |= block(first[level], f"{stage}.0")
        state |= block(f"encoder.{level}.0", f"{stage}.1")
    for stage, level in enumerate((1, 0)):
        for kind in ("weight", "bias"):
            state[f"decoder.transpconvs.{stage}.{kind}"] = mine[f"up.{level}.{kind}"]
        for place in (0, 1):
            state |= block(f"decoder.{level}.{place}", f"decoder.stages.{stage}.convs.{place}")
    for kind in ("weight", "bias"):
        state[f"decoder.seg_layers.1.{kind}"] = mine[f"heads.0.{kind}"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    unused = ("all_modules", "decoder.encoder", "seg_layers.0")  # the same modules by other names
    assert not unexpected, unexpected
    assert all(any(word in name for word in unused) for name in missing), missing
    model.eval()
    with torch.no_grad():
        answer = model(torch.from_numpy(arrays["x"]))
    return {"nnU-Net (dynamic-network-architectures)": share(arrays["y"], answer)}


def monai(arrays: Any) -> dict[str, float]:
    """MONAI's Dice and 95th percentile of surface distances."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance

    predicted, truth = (torch.from_numpy(arrays[n])[None, None] for n in ("predicted", "truth"))
    dice = compute_dice(predicted.float(), truth.float(), include_background=True)
    distance = compute_hausdorff_distance(
        predicted.float(), truth.float(), include_background=True, percentile=95
    )
    return {
        "MONAI Dice": share(arrays["dice"], dice.squeeze()),
        "MONAI 95th percentile of surface distances": share(
            arrays["hausdorff95"], distance.squeeze()
        ),
    }


def the_well(arrays: Any) -> dict[str, float]:
    """The Well's metrics, of fields [batch, y, x, channel]."""
    import types

    import torch
    from the_well.benchmark.metrics import NRMSE, VRMSE

    meta = types.SimpleNamespace(n_spatial_dims=2)
    forecast, truth = (
        torch.from_numpy(arrays[name]).movedim(1, -1) for name in ("forecast", "truth")
    )
    return {
        f"The Well {name}": share(arrays[name.lower()], metric.eval(forecast, truth, meta))
        for name, metric in (("VRMSE", VRMSE), ("NRMSE", NRMSE))
    }


def exponax(arrays: Any) -> dict[str, float]:
    """exponax's exponential integrator of Burgers' equation, not in conservative form."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import exponax as ex
    import jax.numpy as jnp

    steps, size = 400, arrays["start"].shape[-1]
    stepper = ex.stepper.Burgers(
        2, 1.0, size, 0.1 / steps, diffusivity=float(arrays["diffusivity"]), conservative=False
    )
    # exponax's first axis of space and first channel are x
    state = jnp.asarray(arrays["start"]).transpose(0, 2, 1)
    for _ in range(steps):
        state = stepper(state)
    return {"exponax Burgers": share(arrays["end"], np.asarray(state).transpose(0, 2, 1))}


def scipy(arrays: Any) -> dict[str, float]:
    """scipy's DOP853 on the Fourier collocation of u_t = D Laplace(u) - R u (u^2 - 1)."""
    from scipy.integrate import solve_ivp

    start = arrays["start"]
    size = len(start)
    k = 2 * np.pi * np.fft.fftfreq(size, 1 / size)
    square = k[:, None] ** 2 + k[None] ** 2

    def slope(_: float, flat: Any) -> Any:
        u = flat.reshape(size, size)
        diffused = np.fft.ifft2(-5e-3 * square * np.fft.fft2(u)).real
        return (diffused - 2.0 * u * (u * u - 1)).ravel()

    found = solve_ivp(slope, (0, 0.5), start.ravel(), method="DOP853", rtol=1e-9, atol=1e-11)
    return {"scipy Allen-Cahn": share(arrays["end"], found.y[:, -1].reshape(size, size))}


if __name__ == "__main__":
    peers = {f.__name__: f for f in (timm, nnunet, monai, the_well, exponax, scipy)}
    print(json.dumps(peers[sys.argv[1]](np.load(sys.argv[2]))))
