"""Fine-tuning: what is carried over, what is trained, where it may start from, and what is refused."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from pelagos.jobs import export, finetune, pretrain, resume
from pelagos.jobs.training.blueprint import INITIAL_WEIGHTS, build_parts
from pelagos.jobs.training.networks import build_model, build_objective
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.run_weights import trained_weights
from pelagos.models.low_rank import add_low_rank, initial_updates, merged
from pelagos.models.registry import create_model
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.config import ConfigError, FinetuneJob, PretrainJob, resolve_yaml
from pelagos.platform.config.load import load_job, parse_job
from pelagos.platform.optimization.optimizer import group_settings, parameter_groups
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
MakeFinetune = Callable[..., FinetuneJob]
TRACER_FIELDS = "[density, velocity-x, velocity-y, pressure, tracer]"
KERNEL = "patch_embeddings.projection.weight"
ATTENTION = ["query.weight", "value.weight", "dwconv.weight"]


@pytest.fixture(scope="module")
def parent(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunDirectory:
    """A run of eight steps to start from."""
    directory = tmp_path_factory.mktemp("parent")
    job = parse_job(tiny_job_text(datasets, directory, "parent"), "parent")
    assert isinstance(job, PretrainJob)
    assert pretrain.run(job, quiet()).outcome.kind == "finished"
    return RunDirectory.open(job.runs_dir, "parent")


@pytest.fixture
def downstream(tmp_path: Path, write_waves: Callable[..., None]) -> str:
    uri = str(tmp_path / "downstream.zarr")
    write_waves(uri, ("density", "velocity-x", "velocity-y", "pressure", "tracer"), 7)
    return uri


@pytest.fixture
def make_finetune(downstream: str, parent: RunDirectory, tmp_path: Path) -> MakeFinetune:
    """A fine-tuning of the parent on the same four fields; keyword arguments are overrides."""

    def make(name: str = "child", **overrides: Any) -> FinetuneJob:
        tree = {
            "job": "finetune",
            "name": name,
            "runs_dir": str(tmp_path / "runs"),
            "source": {"run": "parent", "runs_dir": str(parent.path.parent)},
            "data": {"mixture": [{"uri": downstream}], "global_batch_size": 4},
            "objective": {"name": "all2all", "config": {"time_scale": 0.2}},
            "optimizer": {"lr": 0.001, "weight_decay": 0.0},
            "schedule": {"total_steps": 2},
            "checkpoint": {"every_steps": 1},
            "validation": {"every_steps": 2, "num_samples": 4},
            "tracking": {"uri": None},
            "resources": {"launcher": "none"},
        }
        dotted = [f"{k.replace('__', '.')}={v}" for k, v in overrides.items()]
        job = parse_job(yaml.safe_dump(tree), "child.yaml", dotted)
        assert isinstance(job, FinetuneJob)
        return job

    return make


def quiet() -> Console:
    return Console(file=io.StringIO(), width=140)


def fine_tune(job: FinetuneJob) -> RunDirectory:
    assert finetune.run(job, quiet()).outcome.kind == "finished"
    return RunDirectory.open(job.runs_dir, job.name)


def saved(run: RunDirectory, step: int, section: str = "model.") -> dict[str, Tensor]:
    found = CheckpointStore(run.checkpoint_uri).load_named(step, section)
    return {name.removeprefix(section): tensor for name, tensor in found.items()}


def first_weights(run: RunDirectory) -> dict[str, Tensor]:
    store = CheckpointStore(f"{run.checkpoint_uri}/{INITIAL_WEIGHTS}")
    return {n.removeprefix("model."): t for n, t in store.load_named(0, "model.").items()}


def test_without_a_learning_rate_nothing_but_the_source_comes_out(
    make_finetune: MakeFinetune, parent: RunDirectory
) -> None:
    run = fine_tune(make_finetune(optimizer__lr=1e-30))
    _, expected, _ = trained_weights(parent)
    got = saved(run, 2)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_other_fields_start_afresh_only_where_shapes_differ(
    make_finetune: MakeFinetune, parent: RunDirectory
) -> None:
    prepared = finetune.prepare(make_finetune(data__fields=TRACER_FIELDS))
    # Poseidon's recipe: embedding kernel, recovery kernel and bias, mixing kernel
    assert set(prepared.adaptation.names("re-initialised")) == {
        "embeddings.patch_embeddings.projection.weight",
        "patch_recovery.projection.weight",
        "patch_recovery.projection.bias",
        "patch_recovery.mixup.weight",
    }
    assert "embeddings.patch_embeddings.projection.bias" in prepared.adaptation.names("matched")
    run = fine_tune(make_finetune(data__fields=TRACER_FIELDS))
    _, source, _ = trained_weights(parent)
    first = first_weights(run)
    assert all(torch.equal(first[name], source[name]) for name in first)
    assert first.keys() == set(prepared.adaptation.names("matched"))


def test_every_trainable_parameter_is_in_one_group_and_moves_in_the_first_step(
    make_finetune: MakeFinetune,
) -> None:
    job = make_finetune(
        data__fields=TRACER_FIELDS,
        optimizer__groups="[{pattern: embeddings|patch_recovery, lr: 0.005}]",
    )
    run = fine_tune(job)
    resolved = run.job()
    with torch.device("meta"):
        model = build_model(resolved, build_objective(resolved))
    groups = parameter_groups(model, group_settings(model, resolved.optimizer))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert {g["lr"] for g in groups if any("patch_recovery" in n for n in g["names"])} == {0.005}
    first, after = first_weights(run), saved(run, 1)
    moments = saved(run, 1, "optimizer.")
    still = [n for n in names if moments[f"{n}.exp_avg"].abs().max() == 0]
    assert still == []
    assert [n for n in names if n in first and torch.equal(first[n], after[n])] == []


def test_frozen_parameters_keep_their_bits(make_finetune: MakeFinetune) -> None:
    run = fine_tune(make_finetune(optimizer__frozen="[encoder]"))
    first, after = first_weights(run), saved(run, 2)
    frozen = [name for name in first if "encoder" in name]
    assert frozen
    assert all(torch.equal(first[name], after[name]) for name in frozen)
    assert not any(torch.equal(first[n], after[n]) for n in first if n not in frozen)


def test_low_rank_updates_start_at_the_source_and_leave_it_untouched(
    make_finetune: MakeFinetune, parent: RunDirectory
) -> None:
    targets = f"[{', '.join(ATTENTION)}]"
    base = fine_tune(make_finetune("base", optimizer__lr=1e-30))
    run = fine_tune(make_finetune(lora__targets=targets, lora__rank=2, optimizer__lr=0.01))
    # the first loss is that of the source, bit for bit: B is zero
    assert run.metrics()[0]["loss"] == base.metrics()[0]["loss"]
    _, source, _ = trained_weights(parent)
    trained = saved(run, 2)
    updates = {n for n in trained if n.endswith(("_lora_a", "_lora_b"))}
    assert trained.keys() - updates == source.keys()
    assert all(torch.equal(trained[name], source[name]) for name in source)
    assert updates == {
        n.removesuffix(".exp_avg") for n in saved(run, 2, "optimizer.") if n.endswith(".exp_avg")
    }
    forecaster, _ = Forecaster.from_run(run)
    fields, lead = torch.rand(2, 4, 16, 16), torch.full((2,), 0.1)
    job = run.job()
    unmerged = build_model(job, build_objective(job))
    unmerged.load_state_dict(trained)
    with torch.no_grad():
        expected = unmerged(fields, lead / 0.2).output
    got = forecaster.predict_normalized(fields, lead)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not torch.equal(
        forecaster.model.state_dict()["encoder.layers.0.blocks.0.attention.self.query.weight"],
        source["encoder.layers.0.blocks.0.attention.self.query.weight"],
    )


def test_low_rank_updates_train_new_layers_too(make_finetune: MakeFinetune) -> None:
    job = make_finetune(data__fields=TRACER_FIELDS, lora__targets="[query.weight]", lora__rank=1)
    run = fine_tune(job)
    moments = {n.removesuffix(".exp_avg") for n in saved(run, 2, "optimizer.") if "exp_avg" in n}
    assert "patch_recovery.mixup.weight" in moments
    assert not any(n.endswith("key.weight") for n in moments)


@pytest.mark.parametrize(
    ("model", "targets", "call"),
    [
        ("poseidon-nano", ATTENTION, lambda m: m(torch.ones(1, 4, 64, 64), torch.ones(1)).output),
        (
            "dpot-nano",
            ["filter.w1", "time_agg_layer.w", "mlp.0.weight"],
            lambda m: m(torch.ones(1, 64, 64, 10, 4))[0],
        ),
    ],
)
def test_merged_weights_give_the_unmerged_output(model: str, targets: list[str], call: Any) -> None:
    torch.manual_seed(0)
    network = create_model(model)
    with torch.no_grad():
        plain = call(network)
        assert len(add_low_rank(network, targets, rank=3, alpha=6.0)) >= 3
        network.load_state_dict(initial_updates(network, 0), strict=False)
        assert torch.equal(call(network), plain)
        for name, parameter in network.named_parameters():
            if name.endswith("_lora_b"):
                parameter.normal_(std=0.1)
        updated = call(network)
        other = create_model(model)
        other.load_state_dict(merged(network.state_dict(), alpha=6.0), strict=True)
        again = call(other)
    assert (updated - plain).norm() > 1e-3 * plain.norm()
    assert (again - updated).norm() <= 1e-5 * updated.norm()


def start_here(path: str, overrides: list[str]) -> str:
    job = load_job(path, overrides)
    assert isinstance(job, FinetuneJob)
    return train(job, RunDirectory(f"{job.runs_dir}/{job.name}"), build_parts, {}).kind


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("zero2", "zero3"))],
)
def test_low_rank_fine_tuning_is_the_same_under_every_strategy(
    make_finetune: MakeFinetune, rank_pool: Any, tmp_path: Path, strategy: str
) -> None:
    options: dict[str, Any] = {
        "data__fields": TRACER_FIELDS,
        "lora__targets": f"[{', '.join([*ATTENTION, KERNEL])}]",  # a convolution too
        "schedule__total_steps": 4,
        "checkpoint__every_steps": 4,
        "optimizer__lr": 0.0003,
    }
    alone = fine_tune(make_finetune("alone", **options))
    prepared = finetune.prepare(make_finetune("ranks", **options))
    job = prepared.job.model_copy(
        update={
            "parallel": prepared.job.parallel.model_copy(update={"strategy": strategy}),
            "resources": prepared.job.resources.model_copy(update={"num_workers": 2}),
        }
    )
    run = RunDirectory.create(job)
    finetune.write_initial_weights(prepared, run)
    path = tmp_path / "ranks.yaml"
    path.write_text(resolve_yaml(job))
    answers = rank_pool.call(2, __file__, "start_here", timeout=120.0, path=str(path), overrides=[])
    assert answers == ["finished", "finished"]
    for here, there in zip(alone.metrics(), run.metrics(), strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-6)
    frozen, trained = first_weights(run), saved(run, 4)
    assert all(torch.equal(frozen[n], trained[n]) for n in frozen if "_lora_" not in n)


def test_a_run_killed_before_its_first_weights_gets_them_on_resume(
    make_finetune: MakeFinetune,
) -> None:
    whole = fine_tune(make_finetune("whole"))
    prepared = finetune.prepare(make_finetune("killed"))
    run = RunDirectory.create(prepared.job)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):  # never from scratch
        train(prepared.job, run, build_parts, {})
    assert resume.resume(prepared.job.runs_dir, "killed", quiet()).outcome.kind == "finished"
    assert [m["loss"] for m in run.metrics()] == [m["loss"] for m in whole.metrics()]


@pytest.mark.parametrize("kind", ["checkpoints", "one checkpoint", "exported", "file"])
def test_the_same_weights_from_wherever_they_lie(
    make_finetune: MakeFinetune, parent: RunDirectory, tmp_path: Path, kind: str
) -> None:
    by_run = finetune.prepare(make_finetune(source__checkpoint=8))
    source: Any = {
        "checkpoints": parent.checkpoint_uri,
        "one checkpoint": f"{parent.checkpoint_uri}/step-{8:08d}",
        "exported": str(tmp_path / "exported"),
        "file": str(tmp_path / "weights.safetensors"),
    }[kind]
    if kind == "exported":
        export.run("parent", source, runs_dir=str(parent.path.parent))
    if kind == "file":
        save_file(trained_weights(parent)[1], source)
    job = make_finetune(source=f"{{uri: {source}}}")
    if kind == "file":  # a bare file tells the family; sizes that are not registered must be said
        with pytest.raises(ConfigError, match="no registered size of poseidon"):
            finetune.prepare(job)
        model = parent.job().model
        job = job.model_copy(update={"model": model})
    prepared = finetune.prepare(job)
    assert prepared.source.digest == by_run.source.digest
    assert prepared.job.model == by_run.job.model


def test_weights_come_from_an_object_store_too(
    make_finetune: MakeFinetune,
    parent: RunDirectory,
    s3_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import s3fs

    export.run("parent", tmp_path / "exported", runs_dir=str(parent.path.parent))
    uri = s3_server.new_uri("/exported")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(**s3_server.storage_options)
    files.put(str(tmp_path / "exported"), uri.removeprefix("s3://"), recursive=True)
    options = {"storage__endpoint_url": s3_server.endpoint}
    files.put(parent.checkpoint_uri, f"{uri}-run".removeprefix("s3://"), recursive=True)
    digest = finetune.prepare(make_finetune()).source.digest
    for place in (uri, f"{uri}-run", f"{uri}-run/step-{8:08d}"):
        prepared = finetune.prepare(make_finetune(source=f"{{uri: '{place}'}}", **options))
        assert prepared.source.digest == digest
    one = make_finetune(source=f"{{uri: '{uri}/model.safetensors'}}", **options)
    prepared = finetune.prepare(one.model_copy(update={"model": parent.job().model}))
    assert prepared.source.digest == digest
    with pytest.raises(ConfigError, match="does not exist|no object|not found|NoSuchKey"):
        finetune.prepare(make_finetune(source=f"{{uri: '{uri}-not'}}", **options))


def test_lineage_reaches_mlflow_and_a_registered_model_is_a_source(
    make_finetune: MakeFinetune, parent: RunDirectory, tmp_path: Path
) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    run = fine_tune(make_finetune(tracking__uri=tracking))
    client = MlflowClient(tracking_uri=tracking)
    version = client.get_model_version_by_alias("child", "newest")
    tags = client.get_run(version.run_id).data.tags
    source = finetune.prepare(make_finetune()).source
    assert tags["pelagos.source.run"] == "parent"
    assert tags["pelagos.source.digest"] == version.tags["pelagos.source.digest"] == source.digest
    assert len(yaml.safe_load(tags["pelagos.source.datasets"])) == 2
    again = make_finetune(
        "grandchild", source="{uri: 'models:/child@newest'}", tracking__uri=tracking
    )
    prepared = finetune.prepare(again)
    expected = trained_weights(run)[1]
    assert all(torch.equal(prepared.source.tensors[n], expected[n]) for n in expected)


def test_the_sources_constants_can_be_kept(
    make_finetune: MakeFinetune, parent: RunDirectory
) -> None:
    run = fine_tune(make_finetune(data__normalization="source"))
    mine, _ = Forecaster.from_run(run)
    theirs, _ = Forecaster.from_run(parent)
    assert mine.normalization == theirs.normalization


def test_data_that_the_source_was_trained_on_is_pointed_out(
    make_finetune: MakeFinetune, datasets: tuple[str, str]
) -> None:
    prepared = finetune.prepare(make_finetune(data__mixture=f"[{{uri: '{datasets[1]}'}}]"))
    assert "was already trained on this data" in prepared.notes[0]
    assert finetune.prepare(make_finetune()).notes == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"source": "{run: nobody, runs_dir: /nowhere}"}, "no run 'nobody'"),
        ({"source": "{}"}, "expected one of run and uri, got neither"),
        ({"source": "{uri: 'missing/dir'}"}, "missing/dir does not exist"),
        ({"model": "{name: dpot-nano}"}, "takes several frames"),
        (
            {"model": "{name: dpot-nano}", "objective": "{name: autoregressive}"},
            "another family or size",
        ),
        ({"model": "{name: poseidon-nano}"}, "another family or size"),
        (
            {"model": "{name: poseidon-nano}", "reinitialize": "[patch_recovery]"},
            "another family or size",
        ),
        ({"model": "{name: poseidon-nano}", "data__fields": TRACER_FIELDS}, "data.fields chooses"),
        ({"reinitialize": "[no_such_layer]"}, "matches none"),
        ({"reinitialize": "['(']"}, "a regular expression; this one has a mistake"),
        ({"optimizer__frozen": "['*']"}, "a regular expression; this one has a mistake"),
        ({"lora": "{targets: ['[']}"}, "a regular expression; this one has a mistake"),
        (
            {"optimizer__groups": "[{pattern: '(', lr: 0.1}]"},
            "a regular expression; this one has a mistake",
        ),
        (
            {"optimizer__groups": "[{pattern: encoder, frozen_until_step: 2}]"},
            "expected less than total_steps 2",
        ),
        ({"lora": "{targets: [no_such_layer]}"}, "lora.targets: no_such_layer matches none"),
        ({"lora": "{targets: [query.bias]}"}, "needs two axes"),
        ({"lora": "{targets: [query.weight], rank: 1000}"}, "lora.rank: got 1000, .*smaller side"),
        ({"source": "{uri: 's3://'}"}, "s3:// names no bucket: expected s3://BUCKET/PATH"),
        ({"data__normalization": "source", "data__fields": TRACER_FIELDS}, "constants for tracer"),
        ({"optimizer__frozen": "[no_such_layer]"}, "matches none"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(
    make_finetune: MakeFinetune, tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune.run(make_finetune(**overrides), quiet())
    assert not (tmp_path / "runs").exists()


def test_the_table_says_what_becomes_of_each_parameter(make_finetune: MakeFinetune) -> None:
    console = quiet()
    finetune.show_adaptation(finetune.prepare(make_finetune(data__fields=TRACER_FIELDS)), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "patch_recovery.mixup.weight" in shown
    assert "4 x 4 x 5 x 5" in shown
    assert "5 x 5 x 5 x 5" in shown
    assert "4 re-initialised" in shown


def test_what_is_trained_decides_the_memory(make_finetune: MakeFinetune) -> None:
    def memory(**overrides: Any) -> tuple[int, int, float]:
        text = finetune.training_memory(finetune.prepare(make_finetune(**overrides)).blueprint)
        found = re.match(r"([\d,]+) of ([\d,]+) values are trained: ([\d.,]+) MB", text)
        assert found
        trained, total = (int(found[i].replace(",", "")) for i in (1, 2))
        return trained, total, float(found[3].replace(",", ""))

    everything = memory()
    assert everything[0] == everything[1]
    adapted = memory(lora__targets="[query.weight]", lora__rank=1)
    frozen = memory(optimizer__frozen="[encoder]")
    assert adapted[0] < 0.02 * everything[0]
    # 4 of 16 bytes stay per weight, and the updates come on top
    assert adapted[2] == pytest.approx((4 * adapted[1] + 12 * adapted[0]) / 1e6, abs=0.06)
    assert adapted[2] < 0.3 * everything[2]
    assert adapted[2] < frozen[2] < everything[2]
