"""JSON Schemas for editors: the shipped files obey them, and they reject what `pelagos` rejects.

The judge is jsonschema, which knows nothing of Pelagos.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pelagos.cli.schema import schemas
from pelagos.data_pipelines.convert.mapping.schema import Mapping
from pelagos.platform.config.load import ConfigError, parse_job

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
Change = Callable[[dict[str, Any]], Any]


def judge(name: str) -> Draft202012Validator:
    schema = schemas()[name]
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def jobs() -> Draft202012Validator:
    return judge("job")


def test_the_shipped_schemas_are_those_of_the_code() -> None:
    """`pelagos schema docs/schemas` writes them anew."""
    for name, schema in schemas().items():
        assert json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text()) == schema, name


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_shipped_file_names_its_schema_and_obeys_it(
    file: Path, jobs: Draft202012Validator
) -> None:
    text = file.read_text()
    named = MODELINE.match(text)
    assert named is not None
    assert (file.parent / named[1]).resolve() == ROOT / "docs" / "schemas" / "job.json"
    jobs.validate(yaml.safe_load(text))


def deep(tree: dict[str, Any], *path: Any) -> Any:
    for part in path:
        tree = tree.setdefault(part, {}) if isinstance(tree, dict) else tree[part]
    return tree


@pytest.mark.parametrize(
    ("config", "change", "is_good"),
    [
        ("pretrain", lambda t: t.update(nam="x"), False),
        ("pretrain", lambda t: t.pop("model"), False),
        ("pretrain", lambda t: deep(t, "optimizer").update(lr="fast"), False),
        ("pretrain", lambda t: deep(t, "optimizer").update(learning_rate=1e-3), False),
        ("pretrain", lambda t: deep(t, "data").update(global_batch_size=0), False),
        ("pretrain", lambda t: deep(t, "data", "mixture", 0).pop("uri"), False),
        ("pretrain", lambda t: deep(t, "parallel").update(strategy="fsdpp"), False),
        ("pretrain", lambda t: deep(t, "parallel").update(strategy="fsdp"), True),
        ("pretrain", lambda t: t.update(job="pretrian"), False),
        ("pretrain", lambda t: t.pop("job"), False),
        ("pretrain", lambda t: t.update(plugins=["my_lab.parts"]), True),
        ("finetune", lambda t: t.update(source={"run": "big@best"}), True),
        ("finetune", lambda t: t.update(source={"run": "big@500"}), True),
        ("finetune", lambda t: t.update(source={"run": "big", "checkpoint": 500}), True),
        ("finetune", lambda t: t.update(source={"run": "big@"}), False),
        ("finetune", lambda t: t.update(source={"run": "../big"}), False),
        ("sweep", lambda t: t.update(seeds=[]), False),
        ("sweep", lambda t: t.update(seeds=[2**62]), False),
        ("generate", lambda t: deep(t, "datasets", 0).update(num_trajectories=-1), False),
    ],
)
def test_the_schema_and_pelagos_give_the_same_verdict(
    jobs: Draft202012Validator, config: str, change: Change, is_good: bool
) -> None:
    folder = "transfer" if config == "sweep" else "quickstart"
    tree = yaml.safe_load((ROOT / "configs" / folder / f"{config}.yaml").read_text())
    change(tree)
    assert jobs.is_valid(tree) is is_good
    try:
        parse_job(yaml.safe_dump(tree), "job")
        said = True
    except ConfigError:
        said = False
    assert said is is_good


def test_files_of_runs_mappings_and_clusters_have_schemas(jobs: Draft202012Validator) -> None:
    runs = {"runs": [{"job": "a.yaml"}, {"job": "b.yaml", "after": ["a"], "set": {"seed": 1}}]}
    assert jobs.is_valid(runs)
    for wrong in ({"runs": []}, {"runs": [{"after": "a"}]}, {**runs, "seed": 1}):
        assert not jobs.is_valid(wrong)
    mapping = judge("mapping")
    good = {"fields": [{"axes": ["n", "t", "y", "x"], "names": ["u"]}]}
    for tree, is_good in (
        (good, True),
        ({**good, "splits": {"train": 0.8, "test": 0.2}}, True),
        ({"fields": []}, False),
        ({"fields": [{"axes": ["n", "w"], "names": ["u"]}]}, False),
        ({**good, "field": []}, False),
    ):
        assert mapping.is_valid(tree) is is_good, tree
        if is_good:
            Mapping.model_validate(tree)
    clusters = judge("clusters")
    local = {"kind": "local", "storage": "runs"}
    assert clusters.is_valid({"clusters": {"here": local}})
    assert not clusters.is_valid({"clusters": {"here": {**local, "partition": "gpu"}}})
    assert not clusters.is_valid({"clusters": {"here": {"storage": "runs"}}})
    assert not clusters.is_valid({"clusters": {"here": {"kind": "slurmm", "storage": "runs"}}})


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "clusters").glob("*.md")), ids=lambda p: p.name
)
def test_clusters_of_the_documentation_obey_the_schema(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        tree = yaml.safe_load(block)
        if isinstance(tree, dict) and "clusters" in tree:
            judge("clusters").validate(tree)
