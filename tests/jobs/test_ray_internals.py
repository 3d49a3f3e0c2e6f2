"""What the platform takes from Ray that is not public, and the machine that Ray is started on."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.jobs.test_kills import CLI, write_job

from pelagos.infra.ray_cluster import require_gpus, torch_trainer
from pelagos.platform.config import PretrainJob

MakeJob = Callable[..., PretrainJob]
# names that Ray, torch or Python import; none is a plugin
SHADOWS = ("queue", "types", "numpy", "csv", "email", "json", "torch", "zarr", "ray", "pelagos")


@pytest.mark.ray
def test_files_beside_the_job_are_no_modules_of_the_workers(
    make_job: MakeJob, tmp_path: Path
) -> None:
    settings = {"resources__launcher": "ray", "resources__num_workers": 1}
    job, run = write_job(make_job, tmp_path, "shadowed", schedule__total_steps=4, **settings)
    place = tmp_path / "place"
    place.mkdir()
    for name in SHADOWS:
        (place / f"{name}.py").write_text(f"raise ImportError('shadowed {name}')\n")
    program = [CLI[0], "-c", "from pelagos.cli.main import main; main()"]
    done = subprocess.run(
        [program[0], "-P", *program[1:], "pretrain", job],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "192.0.2.1:6379"},
        capture_output=True,
        text=True,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert run.status()["state"] == "finished"
    assert "RAY_ADDRESS=192.0.2.1:6379 is not used" in said
    assert "set resources.ray_address=192.0.2.1:6379" in said


def test_a_training_in_a_cluster_of_its_own_ends_without_rays_wait() -> None:
    from ray.train import ScalingConfig

    def names(is_own_cluster: bool) -> set[str]:
        trainer = torch_trainer(is_own_cluster)(
            lambda: None, scaling_config=ScalingConfig(num_workers=1)
        )
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    assert names(False) - names(True) == {"PlacementGroupCleanerCallback"}
    assert names(True) < names(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("launcher", ["ray", "none"])
def test_a_gpu_that_is_not_there_is_refused_before_the_run_has_a_name(
    make_job: MakeJob, tmp_path: Path, launcher: str
) -> None:
    settings = {"resources__launcher": launcher, "resources__gpus_per_worker": 1}
    job, run = write_job(make_job, tmp_path, "wishful", resources__num_workers=1, **settings)
    done = subprocess.run([*CLI, "pretrain", job], capture_output=True, text=True)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "the job needs 1 GPUs (num_workers x gpus_per_worker)" in said
    assert "set resources.gpus_per_worker=0" in said.lower()
    assert not Path(run.path).exists()


def test_a_missing_gpu_is_told_from_a_pytorch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    require_gpus(2)
    with pytest.raises(ValueError, match="PyTorch sees 2 here"):
        require_gpus(4)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"this machine has (none|some).*built without CUDA"):
        require_gpus(1)
    require_gpus(0)
