"""`pelagos import`: published or foreign weights into a model directory, without running their code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelagos.infra.yaml_text import parse_yaml_value
from pelagos.jobs.weights.foreign_files import read_source
from pelagos.jobs.weights.model_directory import ModelDirectory, check_free, write_model_directory
from pelagos.jobs.weights.recognising import MARKERS, _network
from pelagos.models.pretrained import check_weights


def run(
    source: str | Path,
    directory: str | Path,
    *,
    model: str | None = None,
    options: Sequence[str] = (),
    prefix: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> ModelDirectory:
    """Write the weights of `source` as a model directory, in their own precision.

    `source` is a safetensors or PyTorch file, a Hugging Face directory, or a directory of
    `torch.distributed.checkpoint`. The network is the registry's `model` with `options`
    (`key=value`), or the one that a `config.json` next to the weights describes, or the registered
    one that the shapes fit. `prefix` precedes the network's own names in the source. Names without
    it are ignored. By default the prefix is detected.

    Raises:
        ValueError: a source that is not readable without running its code, or does not fit;
            nothing was written.
    """
    target = Path(directory)
    check_free(target, overwrite)
    overrides = _options(options)
    found = read_source(Path(source), prefix, MARKERS)
    network, name = _network(found, model, overrides)
    check_weights(network, found.tensors, str(source))
    return write_model_directory(
        target,
        network,
        found.tensors,
        name=name,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )


def _options(entries: Sequence[str]) -> dict[str, Any]:
    options = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise ValueError(f"option {entry!r}: expected key=value, such as image_size=64")
        options[key] = parse_yaml_value(value)
    return options
