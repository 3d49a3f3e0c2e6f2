"""Low-rank updates in PEFT's layout: its names, and base plus update is the merged model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F

from pelagos.jobs import export, finetune
from pelagos.models.registry import load_pretrained
from pelagos.platform.config import FinetuneJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory

FineTune = Callable[..., RunDirectory]
LAYERS = ["query.weight", "value.weight", "upsample.*mixup.weight"]
KERNEL = "patch_embeddings.projection.weight"


@pytest.fixture
def fine_tuned(trained: RunDirectory, datasets: tuple[str, str], tmp_path: Path) -> FineTune:
    """A function that trains updates of these parameters for a few steps."""

    def run(targets: list[str], **lora: Any) -> RunDirectory:
        tree = {
            "job": "finetune",
            "name": "child",
            "runs_dir": str(tmp_path / "runs"),
            "source": {"run": trained.name, "runs_dir": str(trained.path.parent)},
            "lora": {"targets": targets, "rank": 2, "alpha": 6.0, **lora},
            "data": {"mixture": [{"uri": datasets[1]}], "global_batch_size": 4},
            "objective": {"name": "all2all", "config": {"time_scale": 0.2}},
            "optimizer": {"lr": 0.05},
            "schedule": {"total_steps": 3},
            "tracking": {"uri": None},
            "resources": {"launcher": "none"},
        }
        job = parse_job(yaml.safe_dump(tree), "child.yaml")
        assert isinstance(job, FinetuneJob)
        assert finetune.run(job, Console(quiet=True)).outcome.kind == "finished"
        return RunDirectory.open(job.runs_dir, job.name)

    return run


def directories(run: RunDirectory, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The adapter, the base that it is added to, and the merged model."""
    places = tuple(tmp_path / name for name in ("adapter", "base", "merged"))
    options = {"runs_dir": str(run.path.parent)}
    export.run(run.name, places[0], adapter=True, **options)  # type: ignore[arg-type]
    export.run(run.name, places[1], weights="base", **options)  # type: ignore[arg-type]
    export.run(run.name, places[2], **options)  # type: ignore[arg-type]
    return places  # type: ignore[return-value]


def test_base_plus_update_by_peft_s_formulas_is_the_merged_model(
    fine_tuned: FineTune, tmp_path: Path
) -> None:
    run = fine_tuned([*LAYERS, KERNEL], also_train=["patch_recovery.mixup"])
    adapter, base, merged = directories(run, tmp_path)
    assert sorted(p.name for p in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 6.0)
    assert config["modules_to_save"] == ["patch_recovery.mixup"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in tensors)
    before = load_pretrained(base).state_dict()
    after = load_pretrained(merged).state_dict()
    scale = config["lora_alpha"] / config["r"]
    kernels = 0
    for module in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        if a.ndim == 2:
            update = b @ a
        else:  # what PEFT computes for a convolution: one with A, then one with B of a single point
            update = F.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3)
            kernels += 1
        expected = before[f"{module}.weight"] + scale * update
        torch.testing.assert_close(after[f"{module}.weight"], expected)
        assert not torch.equal(before[f"{module}.weight"], expected)
    assert kernels == 1
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{module}.weight" for module in config["target_modules"]}
    kept = tensors["base_model.model.patch_recovery.mixup.weight"]
    assert torch.equal(kept, after["patch_recovery.mixup.weight"])
    text = (adapter / "README.md").read_text()
    assert "library_name: peft" in text
    assert "waves" in text


def test_the_package_peft_loads_the_directory(fine_tuned: FineTune, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    run = fine_tuned([*LAYERS, KERNEL], also_train=["patch_recovery.mixup"])
    adapter, base, merged = directories(run, tmp_path)
    network = load_pretrained(base)
    with torch.no_grad():
        network.get_submodule("patch_recovery.mixup").weight.zero_()  # the adapter brings it
    loaded = peft.PeftModel.from_pretrained(network, adapter).merge_and_unload()
    fields, time = torch.rand(2, 4, 16, 16), torch.full((2,), 0.5)
    expected = load_pretrained(merged)
    with torch.no_grad():
        torch.testing.assert_close(loaded(fields, time).output, expected(fields, time).output)


def test_updates_that_peft_has_no_layer_for_are_named(
    fine_tuned: FineTune, trained: RunDirectory, tmp_path: Path
) -> None:
    run = fine_tuned(["dwconv.weight", "query.weight"])  # one kernel per channel
    options: dict[str, Any] = {"runs_dir": str(run.path.parent), "adapter": True}
    with pytest.raises(
        ValueError, match=r"--adapter: PEFT updates .*dwconv.weight.*Export without"
    ):
        export.run(run.name, tmp_path / "no", **options)
    options["runs_dir"] = str(trained.path.parent)
    with pytest.raises(ValueError, match="trained whole weights, no low-rank updates"):
        export.run(trained.name, tmp_path / "no", **options)
    with pytest.raises(ValueError, match="has no low-rank updates, so there is no base"):
        export.run(trained.name, tmp_path / "no", runs_dir=options["runs_dir"], weights="base")
    assert not (tmp_path / "no").exists()
