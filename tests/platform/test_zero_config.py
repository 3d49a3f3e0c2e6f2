"""The configuration that DeepSpeed is given, key by key, and a user's own beside it.

Keys and what they mean: https://www.deepspeed.ai/docs/config-json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pelagos.platform.config.schema import ZeroConfig
from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.strategies.zero_config import check_nvme, merged, user_config, zero_config


def config_of(stage: int = 3, world_size: int = 4, **zero: Any) -> dict[str, Any]:
    options = StrategyOptions(
        micro_batch_size=3, num_micro_batches=5, clip_norm=0.7, zero=ZeroConfig(**zero)
    )
    return zero_config(stage, options, world_size)


@pytest.mark.parametrize("stage", [1, 2])
def test_nothing_is_left_to_deepspeeds_choice(stage: int) -> None:
    assert config_of(stage) == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 5,
        "train_batch_size": 60,  # samples x micro-batches x ranks
        "gradient_clipping": 0.7,
        "zero_optimization": {
            "stage": stage,
            "round_robin_gradients": False,
            "memory_efficient_linear": False,
            "offload_optimizer": {"device": "none"},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "steps_per_print": 2147483647,
        "wall_clock_breakdown": False,
    }
    assert zero_config(stage, StrategyOptions(), 1)["gradient_clipping"] == 0.0  # never clips


def test_parts_of_parameters_are_stage_threes_alone(tmp_path: Path) -> None:
    names = ("offload_param", "zero_hpz_partition_size", "zero_quantized_weights")
    names += ("zero_quantized_gradients",)
    section = config_of(3)["zero_optimization"]
    assert section["stage"] == 3
    assert [section[name] for name in names] == [{"device": "none"}, 1, False, False]
    assert not set(names) & set(config_of(2)["zero_optimization"])
    section = config_of(
        3, offload_optimizer="cpu", offload_parameters="nvme", nvme_path=str(tmp_path)
    )["zero_optimization"]
    assert section["offload_optimizer"] == {"device": "cpu"}
    assert section["offload_param"] == {"device": "nvme", "nvme_path": str(tmp_path)}
    section = config_of(3, hpz_partition_size=2, quantized_weights=True)["zero_optimization"]
    assert [section[name] for name in names[1:]] == [2, True, False]
    assert config_of(3, quantized_gradients=True)["zero_optimization"][names[3]] is True


def test_both_have_their_keys_and_none_has_two_values() -> None:
    ours = {"a": 1, "deep": {"b": 2, "c": {"d": 3}}, "plain": {"e": 4}}
    theirs = {"deep": {"c": {"d": "auto", "more": 5}, "b": 2}, "new": {"f": 6}, "a": "auto"}
    found = merged(ours, theirs)
    expected = {"a": 1, "deep": {"b": 2, "c": {"d": 3, "more": 5}}, "plain": {"e": 4}}
    assert found == {**expected, "new": {"f": 6}}
    assert ours == {"a": 1, "deep": {"b": 2, "c": {"d": 3}}, "plain": {"e": 4}}  # is left alone
    with pytest.raises(ValueError, match="contradicts the job") as caught:
        merged(ours, {"a": 2, "deep": {"c": {"d": 9}}, "plain": 7})
    told = (
        "a is 2 there, but 1 in the job; deep.c.d is 9 there, but 3 in the job; plain is 7 there, "
    )
    told += "but {'e': 4} in the job"
    assert told in str(caught.value)


def test_a_users_configuration_is_a_mapping_or_a_file_of_one(tmp_path: Path) -> None:
    given = {"comms_logger": {"enabled": True}}
    assert user_config(None) == {}
    assert user_config(given) == given
    assert user_config(given) is not given
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(given))
    assert user_config(str(path)) == given
    for text, message in (("[1]", "holds a list, expected an object"), ("{", "is not JSON: ")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"parallel\.zero\.config: {path} {message}"):
            user_config(str(path))
    path.unlink()
    with pytest.raises(ValueError, match=f"cannot read {path}: No such file or directory"):
        user_config(str(path))


@pytest.mark.parametrize("part", ["offload_optimizer", "offload_parameters"])
def test_an_nvme_disk_is_a_directory_that_is_there(part: str, tmp_path: Path) -> None:
    check_nvme(ZeroConfig())
    check_nvme(ZeroConfig(**{part: "cpu"}))
    check_nvme(ZeroConfig(**{part: "nvme", "nvme_path": str(tmp_path)}))
    for missing in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=rf"nvme_path: {missing} is not a directory on "):
            check_nvme(ZeroConfig(**{part: "nvme", "nvme_path": str(missing)}))
