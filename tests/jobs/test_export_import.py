"""Models out of runs and into model directories: bit for bit, whole or absent, and no code run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import export, import_weights
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.foreign_files import read_source
from pelagos.jobs.weights.recognising import MARKERS, find_network
from pelagos.models.dpot import DPOT
from pelagos.models.poseidon import ScOT
from pelagos.models.registry import create_model, load_pretrained
from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]


@pytest.fixture(scope="module")
def dpot() -> nn.Module:
    torch.manual_seed(1)
    return create_model("dpot-nano", in_channels=3, out_channels=2)


@pytest.fixture(scope="module")
def scot() -> nn.Module:
    torch.manual_seed(1)
    return create_model("poseidon-nano")


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_nothing_written(directory: Path) -> None:
    """Neither the directory nor a temporary one beside it."""
    assert [p.name for p in directory.parent.glob(f"*{directory.name}*")] == []


def test_a_run_exports_and_loads_bit_equal_whole_and_in_shards(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(ema_decay=0.9)
    run = RunDirectory.create(job)
    train(job, run, build_parts, {})
    options = {"runs_dir": job.runs_dir}
    whole, shards, averaged = tmp_path / "whole", tmp_path / "shards", tmp_path / "ema"
    written = export.run("run", whole, **options)
    assert written.files == ("README.md", "config.json", "forecaster.json", "model.safetensors")
    assert len(export.run("run", shards, max_shard_size="20KB", **options).files) > 5
    export.run("run", averaged, weights="ema", checkpoint="6", **options)
    forecaster, _ = Forecaster.from_run(run)
    expected = forecaster.model.state_dict()  # averaged, as the run keeps an average
    raw = Forecaster.from_run(run, weights="model")[0].model.state_dict()
    for directory in (whole, shards):
        model = load_pretrained(directory)
        assert isinstance(model, ScOT)
        assert model.config == forecaster.model.config
        assert_same_bits(model.state_dict(), expected)
        frames, lead = torch.ones(1, 4, 16, 16), torch.full((1,), 0.1)
        again = Forecaster.load(directory).predict(frames, lead)
        assert torch.equal(again, forecaster.predict(frames, lead))
    ema, _ = Forecaster.from_run(run, "6", "ema")
    assert_same_bits(load_pretrained(averaged).state_dict(), ema.model.state_dict())
    config = json.loads((whole / "config.json").read_text())
    assert config["model_name"] == "poseidon-nano"
    assert config["dtype"] == "float32"
    assert config["image_size"] == 16

    before = (whole / "config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="exists; choose another directory or give --overwrite"):
        export.run("run", whole, **options)
    assert (whole / "config.json").stat().st_mtime_ns == before
    export.run("run", whole, overwrite=True, max_shard_size="20KB", **options)
    assert_same_bits(load_pretrained(whole).state_dict(), expected)
    with pytest.raises(ValueError, match="`pelagos export run DIR"):
        import_weights.run(run.path, tmp_path / "no")
    with pytest.raises(ValueError, match="max_shard_size='much'"):
        export.run("run", tmp_path / "no", max_shard_size="much", **options)
    assert_nothing_written(tmp_path / "no")

    # a checkpoint moved away from its run: a distributed checkpoint with two networks in it
    moved = tmp_path / "moved"
    (run.path / "checkpoints" / "step-00000008").rename(moved)
    with pytest.raises(ValueError, match=r"several networks, under 'ema\.', 'model\.'"):
        import_weights.run(moved, tmp_path / "no", model="poseidon-nano")
    small = [f"{k}={v}" for k, v in job.model.config.items()]
    import_weights.run(
        moved, tmp_path / "again", prefix="model.", model="poseidon-nano", options=small
    )
    assert_same_bits(load_pretrained(tmp_path / "again").state_dict(), raw)


def test_overwriting_never_deletes_what_is_no_model(dpot: DPOT, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    save_file(dpot.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is not a model directory"):
        import_weights.run(tmp_path / "a.safetensors", tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_official_dpot_files_are_read_with_their_arguments(dpot: DPOT, tmp_path: Path) -> None:
    source, state = tmp_path / "model.pth", dpot.state_dict()
    prefixed = {f"module.{k}": v for k, v in state.items()}
    moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"args": argparse.Namespace(lr=1e-3), "model": prefixed, "optimizer": moments}
    torch.save(content, source)
    (tmp_path / "config.json").write_text('{"model_type": "of something else"}')
    assert import_weights.run(source, tmp_path / "out").model == "dpot-nano"
    model = DPOT.from_pretrained(tmp_path / "out")
    assert (model.config.in_channels, model.config.out_channels) == (3, 2)
    assert_same_bits(model.state_dict(), state)
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert_same_bits(load_pretrained(again).state_dict(), state)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_official_poseidon_directories_are_read_by_their_config(
    scot: ScOT, tmp_path: Path, form: str
) -> None:
    source = tmp_path / "hub"
    source.mkdir()
    if form.endswith("bin"):
        torch.save(scot.state_dict(), source / form)
    else:
        save_file(scot.state_dict(), source / form)
    official = {k: v for k, v in vars(scot.config).items() if k != "unit_norm_init"}
    (source / "config.json").write_text(
        json.dumps({"model_type": "swinv2", "transformers_version": "4.29.2", **official})
    )
    import_weights.run(source, tmp_path / "out")
    model = load_pretrained(tmp_path / "out")
    assert_same_bits(model.state_dict(), scot.state_dict())
    pixels, time = torch.randn(1, 4, 64, 64), torch.ones(1)
    with torch.no_grad():
        assert torch.equal(model(pixels, time).output, scot(pixels, time).output)


class Malice:
    """Creates a file when unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_official_weights_of_three_dimensions_keep_the_official_mixer(tmp_path: Path) -> None:
    # five fields, as in compressible flow; the files lie as those of two dimensions do
    torch.manual_seed(0)
    published = create_model("dpot3d-nano", in_channels=5, out_channels=5, mixer="published")
    source = tmp_path / "model_499.pth"
    arguments = argparse.Namespace(model="DPOT", width=64, T_in=10)
    torch.save({"args": arguments, "model": published.state_dict(), "optimizer": {}}, source)
    assert import_weights.run(source, tmp_path / "out").model == "dpot3d-nano"
    again = load_pretrained(tmp_path / "out")
    assert again.config == published.config
    assert_same_bits(again.state_dict(), published.state_dict())
    found = read_source(source, None, MARKERS)
    assert find_network(found) == ("dpot3d-nano", {"mixer": "published"})
    # weights whose configuration is known keep theirs
    create_model("dpot3d-nano").save_pretrained(tmp_path / "own")
    import_weights.run(tmp_path / "own", tmp_path / "second")
    assert load_pretrained(tmp_path / "second").config.mixer == "lifted"


def test_a_malicious_pickle_is_refused_and_not_run(dpot: DPOT, tmp_path: Path) -> None:
    trap, source = tmp_path / "trap", tmp_path / "model.pth"
    pickle.loads(pickle.dumps(Malice(trap)))
    assert trap.exists()  # it would work
    trap.rmdir()
    torch.save({"model": dpot.state_dict(), "args": Malice(trap)}, source)
    with pytest.raises(ValueError, match=r"asks to load posix\.mkdir"):
        import_weights.run(source, tmp_path / "out")
    assert not trap.exists()
    assert_nothing_written(tmp_path / "out")


def test_distributed_checkpoints_are_imported_and_their_metadata_runs_nothing(
    dpot: DPOT, tmp_path: Path
) -> None:
    source = tmp_path / "dcp"
    moments = {f"{k}.exp_avg": torch.zeros_like(v) for k, v in dpot.state_dict().items()}
    state = {"app": {"model": dpot.state_dict(), "optimizer": moments}, "step": 3}
    with pytest.warns(UserWarning, match="save in a single process"):
        dcp.save(state, checkpoint_id=source, no_dist=True)
    assert import_weights.run(source, tmp_path / "out").model == "dpot-nano"
    assert_same_bits(load_pretrained(tmp_path / "out").state_dict(), dpot.state_dict())
    for file in source.glob("*.distcp"):
        file.unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        import_weights.run(source, tmp_path / "no")
    trap = tmp_path / "trap"
    (source / ".metadata").write_bytes(pickle.dumps(Malice(trap)))
    with pytest.raises(ValueError, match=r"asks to load posix\.mkdir"):
        import_weights.run(source, tmp_path / "no")
    assert not trap.exists()
    assert_nothing_written(tmp_path / "no")


def test_deepspeed_directories_are_sent_to_their_own_script(tmp_path: Path) -> None:
    (tmp_path / "ds" / "global_step7").mkdir(parents=True)
    (tmp_path / "ds" / "latest").write_text("global_step7")
    (tmp_path / "ds" / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    for source in (tmp_path / "ds", tmp_path / "ds" / "global_step7"):
        with pytest.raises(ValueError, match=rf"python {tmp_path}/ds/zero_to_fp32\.py"):
            import_weights.run(source, tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_weights_that_fit_no_size_say_what_differs(dpot: DPOT, tmp_path: Path) -> None:
    odd = create_model("dpot-nano", depth=3)
    save_file(odd.state_dict(), tmp_path / "odd.safetensors")
    with pytest.raises(
        ValueError, match=r"dpot-nano: blocks\.2\.filter\.b1 is unknown to the network"
    ):
        import_weights.run(tmp_path / "odd.safetensors", tmp_path / "out")
    written = import_weights.run(
        tmp_path / "odd.safetensors", tmp_path / "out", model="dpot-nano", options=["depth=3"]
    )
    assert written.model == "dpot-nano"
    state = {k: v for k, v in dpot.state_dict().items() if not k.startswith("blocks.1")}
    save_file({**state, "cls_head.4.bias": torch.zeros(5)}, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"13 mismatches: .* and 3 more"):
        import_weights.run(tmp_path / "less.safetensors", tmp_path / "no", model="dpot-nano")
    save_file({"a": torch.zeros(1)}, tmp_path / "stranger.safetensors")
    with pytest.raises(ValueError, match="no registered model has these names"):
        import_weights.run(tmp_path / "stranger.safetensors", tmp_path / "no")
    assert_nothing_written(tmp_path / "no")


def test_damaged_model_directories_say_what_is_missing(dpot: DPOT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a model directory: it has no config\.json"):
        load_pretrained(tmp_path)
    source = tmp_path / "a.safetensors"
    save_file(dpot.state_dict(), source)
    import_weights.run(source, tmp_path / "out", max_shard_size="100KB")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type 'bert'; known types: scot, swinv2, dpot"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"type 'dpot', but ScOT reads scot, swinv2"):
        ScOT.from_pretrained(tmp_path / "out")
    shard = sorted((tmp_path / "out").glob("model-*"))[1]
    kept = load_file(shard)
    first, value = kept.popitem()
    save_file({**kept, first: value[None]}, shard)
    with pytest.raises(ValueError, match=f"1 mismatches: {first} has shape"):
        load_pretrained(tmp_path / "out")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        load_pretrained(tmp_path / "out")
    shard.unlink()
    with pytest.raises(ValueError, match=f"lacks 1 of the .*: {shard.name}"):
        load_pretrained(tmp_path / "out")


def test_the_verbs_report_what_they_wrote(dpot: DPOT, tmp_path: Path) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "out"
    torch.save({f"net.{k}": v for k, v in dpot.state_dict().items()}, source)
    verb = ["import", str(source), str(out), "--prefix", "net.", "--json"]
    result = CliRunner().invoke(app, verb)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "dpot-nano"
    assert CliRunner().invoke(app, verb).exit_code == 2
    missing = CliRunner().invoke(app, ["export", "none", str(out), "--runs-dir", str(tmp_path)])
    assert missing.exit_code == 2


def test_mpp_weights_with_the_wrapper_s_prefix_are_recognised(tmp_path: Path) -> None:
    network = create_model("mpp-nano")
    wrapped = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"iters": 3, "model_state": wrapped}, tmp_path / "ckpt.tar")
    written = import_weights.run(tmp_path / "ckpt.tar", tmp_path / "out")
    assert written.model == "mpp-nano"
    again = load_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], t) for name, t in network.state_dict().items())
