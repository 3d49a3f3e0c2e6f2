"""The DeepSpeed configuration of a job, and a user's own merged into it."""

import os
import platform
from pathlib import Path
from typing import Any

from pelagos.infra.json_text import parse_json
from pelagos.platform.config.schema import ZeroConfig
from pelagos.platform.strategies.base import StrategyOptions

NVME = "nvme"


def zero_config(stage: int, options: StrategyOptions, world_size: int) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a ZeRO stage.

    Precision stays fp32 here: autocast and loss scaling are applied from outside. DeepSpeed's
    replacement of `torch.nn.functional.linear` is off, because it has other roundings.

    Raises:
        ValueError: the user's own configuration contradicts the job.
    """
    zero = options.zero
    zero_section: dict[str, Any] = {
        "stage": stage,
        "round_robin_gradients": False,
        "memory_efficient_linear": False,
        "offload_optimizer": _offload(zero.offload_optimizer, zero.nvme_path),
    }
    if stage == 3:
        zero_section |= {
            "offload_param": _offload(zero.offload_parameters, zero.nvme_path),
            "zero_hpz_partition_size": zero.hpz_partition_size,
            "zero_quantized_weights": zero.quantized_weights,
            "zero_quantized_gradients": zero.quantized_gradients,
        }
    ours = {
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.num_micro_batches,
        "train_batch_size": options.micro_batch_size * options.num_micro_batches * world_size,
        "gradient_clipping": options.clip_norm or 0.0,
        "zero_optimization": zero_section,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    return merged(ours, user_config(zero.config))


def user_config(config: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return the user's own configuration, given as a mapping or as the path of a JSON file.

    Raises:
        ValueError: the file is missing or is no JSON object.
    """
    if not isinstance(config, str):
        return dict(config or {})
    key = "parallel.zero.config"
    try:
        content = parse_json(Path(config).read_text())
    except OSError as error:
        raise ValueError(f"{key}: cannot read {config}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{key}: {config} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{key}: {config} holds a {type(content).__name__}, expected an object")
    return content


def merged(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return `ours` with the keys that only `theirs` has; "auto" takes our value.

    Raises:
        ValueError: lists every key that both set, to different values.
    """
    conflicts: list[str] = []
    result = _merge(ours, theirs, path, conflicts)
    if conflicts:
        raise ValueError(
            "parallel.zero.config contradicts the job: "
            + "; ".join(conflicts)
            + (
                '. Remove these keys from it or set them to "auto", and set the values in the job '
                "file."
            )
        )
    return result


def _merge(
    ours: dict[str, Any], theirs: dict[str, Any], path: str, conflicts: list[str]
) -> dict[str, Any]:
    result = dict(ours)
    for key, value in theirs.items():
        name = f"{path}{key}"
        if key not in ours:
            result[key] = value
        elif isinstance(value, dict) and isinstance(ours[key], dict):
            result[key] = _merge(ours[key], value, f"{name}.", conflicts)
        elif value not in (ours[key], "auto"):
            conflicts.append(f"{name} is {value!r} there, but {ours[key]!r} in the job")
    return result


def check_nvme(zero: ZeroConfig) -> None:
    """Refuse an NVMe directory that is missing or cannot be written.

    Raises:
        ValueError: names the path.
    """
    if NVME not in (zero.offload_optimizer, zero.offload_parameters):
        return
    path = Path(zero.nvme_path or "")
    if not path.is_dir() or not os.access(path, os.W_OK):
        found = "is not writable" if path.is_dir() else "is not a directory"
        raise ValueError(
            f"parallel.zero.nvme_path: {path} {found} on {platform.node()}; name a directory on an "
            "NVMe disk that exists on every worker's node"
        )


def _offload(device: str, nvme_path: str | None) -> dict[str, Any]:
    offload: dict[str, Any] = {"device": device}
    if device == NVME:
        offload["nvme_path"] = nvme_path
    return offload
