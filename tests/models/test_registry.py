"""The registry: every model builds, counts, and is documented; mistakes are answered."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pelagos.models.registry import FAMILIES, create_model, list_models, model_info

PUBLISHED_SIZES = {
    "poseidon-t": 20_774_444,
    "poseidon-s": 39_901_076,
    "poseidon-b": 157_729_988,
    "poseidon-l": 628_575_524,
    "dpot-ti": 7_534_643,
    "dpot-s": 30_801_459,
    "dpot-m": 122_125_875,
    "dpot-l": 509_018_739,
    "dpot-h": 1_031_082_099,
    # with a class token and its position, which the mean-pooled network has not: 2 D more
    "vit-s": 22_050_664 - 2 * 384,
    "vit-b": 86_567_656 - 2 * 768,
    "vit-l": 304_326_632 - 2 * 1024,
    "vit-h": 632_045_800 - 2 * 1280,
    "dpot3d-nano": 1_279_732,
    "dpot3d-ti": 15_138_036,
    "dpot3d-s": 45_876_468,
    "dpot3d-m": 137_200_884,
    "dpot3d-l": 597_625_652,
    "dpot3d-h": 1_149_180_724,
    "mpp-nano": 153_052,
    "mpp-ti": 7_285_884,
    "mpp-s": 28_979_436,
    "mpp-b": 115_608_012,
    "mpp-l": 407_055_628,
}
FORBIDDEN = ("ray", "mlflow", "zarr", "deepspeed", "accelerate", "pydantic")


def forecast(name: str, model: torch.nn.Module, batch_size: int = 2) -> torch.Tensor:
    """The model's answer to its family's example, in the family's own call."""
    family = FAMILIES[model_info(name).family]
    answer = model(*family.example(model.config, batch_size))
    if family.call == "frame":
        return answer.output
    if family.call == "window":
        return answer[0]
    if family.call == "masked":
        return answer.prediction
    return answer


@pytest.mark.parametrize("name", list_models())
def test_every_model_builds_on_meta_with_the_parameters_it_states(name: str):
    with torch.device("meta"):
        model = create_model(name)
        output = forecast(name, model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == model_info(name).parameters == PUBLISHED_SIZES.get(name, count)
    assert output.shape[0] == 2
    assert model.no_weight_decay() < {n for n, _ in model.named_parameters()}
    assert len(model.blocks()) > 0


def test_published_sizes_are_all_registered():
    assert set(PUBLISHED_SIZES) < set(list_models())


def test_channels_and_overrides_reach_the_configuration():
    model = create_model("poseidon-nano", in_channels=3, out_channels=2, image_size=32)
    assert model(torch.zeros(1, 3, 32, 32), torch.ones(1)).output.shape == (1, 2, 32, 32)
    assert model.config.channel_slice_list_normalized_loss == (0, 1, 2)


def test_unknown_name_lists_the_closest():
    with pytest.raises(ValueError, match="closest: poseidon-t"):
        create_model("posiedon-t")


def test_unknown_override_lists_the_options():
    with pytest.raises(ValueError, match=r"no option 'embed_dims'; .*embed_dim, .*window_size"):
        create_model("poseidon-nano", embed_dims=3)


def test_misfitting_override_names_the_model():
    with pytest.raises(ValueError, match="model 'poseidon-nano': scOT config: image_size=60"):
        create_model("poseidon-nano", image_size=60)


def test_an_unknown_size_lists_those_of_its_family():
    with pytest.raises(
        ValueError,
        match="unknown model 'unet-q'; closest: unet-base, unet-nano|unet-nano, unet-base",
    ):
        create_model("unet-q")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dpot-nano", "patch_size", True),
        ("unet-nano", "width", "wide"),
        ("poseidon-nano", "patch_size", 0),
        ("poseidon-nano", "window_size", -1),
        ("poseidon-nano", "image_size", None),
        ("poseidon-nano", "depths", [2, "two", 1]),
        ("poseidon-nano", "channel_slice_list_normalized_loss", []),
    ],
)
def test_options_of_the_wrong_kind_are_named(name: str, option: str, value: object):
    with pytest.raises(ValueError, match=rf"{name}.*{option}=.* must (be a|list) whole number"):
        create_model(name, **{option: value})


def test_poseidon_names_the_nearest_sizes():
    with pytest.raises(ValueError, match="image_size=60 .* = 16: use 48 or 64"):
        create_model("poseidon-nano", image_size=60)
    with pytest.raises(ValueError, match="window_size=7; the nearest that fits is 8"):
        create_model("poseidon-nano", window_size=7)


def test_models_import_without_the_platforms_dependencies():
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {FORBIDDEN!r}:
            raise ImportError('models must not import ' + name)
sys.meta_path.insert(0, Refuse())
import pelagos.models.registry, pelagos.models.objectives, pelagos.models.poseidon
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("poseidon-nano", {"use_conditioning": "no"}),  # text, and so true, in YAML 1.2
        ("poseidon-nano", {"learn_residual": 0}),
        ("poseidon-nano", {"layer_norm_eps": "1e-5"}),
        ("sinenet-nano", {"lead_time": "off"}),
        ("fno-nano", {"use_coordinates": "false"}),
    ],
)
def test_options_of_another_type_are_rejected(name: str, options: dict[str, object]) -> None:
    (option,) = options
    with pytest.raises(ValueError, match=f"{option}=.* must be (true or false|a number)"):
        create_model(name, **options)
