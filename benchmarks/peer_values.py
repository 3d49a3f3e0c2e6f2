"""Values against independent software: networks, metrics and solvers, each peer in its own environment.

    python benchmarks/peer_values.py [--environments DIR] [--peers timm monai …]

Pelagos writes inputs, weights and its own answers to a folder; peer_value_checks.py, which imports
nothing of Pelagos, computes the same with the peer and prints the largest relative difference (of the
peer's largest value). A row passes where that is below the bound, which is float32's rounding grown
over the number of operations; the exit status is 1 if any row does not. Environments are made once.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelagos.data_pipelines.generate.semilinear import AllenCahn, Burgers, solve_semilinear
from pelagos.evaluation.measures import image_metrics, metrics
from pelagos.models.registry import create_model

HERE = Path(__file__).parent
REQUIREMENTS = {
    "timm": ["timm==1.0.22"],
    "nnunet": ["dynamic-network-architectures==0.4.2"],
    "monai": ["monai>=1.4", "scipy"],
    "the_well": ["the_well==1.2.0", "matplotlib"],
    "exponax": ["exponax>=0.1"],
    "scipy": ["scipy"],
}
# Largest relative difference, as a share of the largest value.
BOUNDS = {
    "timm ViT": 1e-5,
    "nnU-Net (dynamic-network-architectures)": 1e-5,
    "MONAI Dice": 1e-6,
    "MONAI 95th percentile of surface distances": 1e-6,
    "The Well VRMSE": 2e-3,  # theirs divides the variance by n - 1, of 384 points
    "The Well NRMSE": 1e-5,
    "exponax Burgers": 1e-5,
    "scipy Allen-Cahn": 2e-4,  # the 2/3 rule takes away what a cubic term makes there
}


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter values of its own size, so that none is left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise)
    return model.eval()


def arrays_of(model: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": p.detach() for name, p in model.named_parameters()}


def timm_case() -> dict[str, Tensor]:
    model = randomised(create_model("vit-nano", in_channels=3, out_channels=10), 0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": model(x).detach(), **arrays_of(model, "w.")}


def nnunet_case() -> dict[str, Tensor]:
    model = randomised(create_model("nnunet-nano", in_channels=1, out_channels=2), 0)
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    answer = model(x)
    y = answer[0] if isinstance(answer, tuple) else answer
    return {"x": x, "y": y.detach(), **arrays_of(model, "w.")}


def monai_case() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = np.zeros((24, 24, 24), bool)
    truth[6:16, 5:15, 8:18] = True
    predicted = np.roll(truth, (2, 1, 0), (0, 1, 2)) ^ (rng.random(truth.shape) < 0.002)
    distances = image_metrics.surface_distances(predicted, truth, (1.0, 1.0, 1.0))
    return {
        "truth": truth,
        "predicted": predicted,
        "dice": np.float64(image_metrics.dice(predicted, truth)),
        "hausdorff95": np.float64(distances.hausdorff_95),
    }


def the_well_case() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = 280 + 5 * torch.randn(3, 2, 16, 24, generator=generator)
    forecast = truth + torch.randn(truth.shape, generator=generator)
    found = {
        name: torch.stack(  # ours take a group of channels as one, theirs each by itself
            [getattr(metrics, name)(forecast[:, [c]], truth[:, [c]]) for c in (0, 1)], dim=1
        )
        for name in ("vrmse", "nrmse")
    }
    return {"truth": truth, "forecast": forecast, **found}


def exponax_case() -> dict[str, Any]:
    size = 48
    x = torch.arange(size, dtype=torch.float64) / size
    along_y, along_x = torch.meshgrid(x, x, indexing="ij")
    u = torch.sin(2 * torch.pi * along_x) * torch.cos(2 * torch.pi * along_y)
    v = 0.5 * torch.cos(2 * torch.pi * (along_x + along_y))
    start = torch.stack((u, v))[None]
    frames = solve_semilinear(start, [0.0, 0.1], Burgers(), diffusivity=0.02, cfl=0.05)
    return {"start": start[0], "end": frames[0, -1], "diffusivity": np.float64(0.02)}


def scipy_case() -> dict[str, Any]:
    size = 32
    x = torch.arange(size, dtype=torch.float64) / size
    along_y, along_x = torch.meshgrid(x, x, indexing="ij")
    phase = 0.6 * torch.sin(2 * torch.pi * along_x) * torch.sin(4 * torch.pi * along_y)
    frames = solve_semilinear(
        phase[None, None], [0.0, 0.5], AllenCahn(2.0), diffusivity=5e-3, cfl=0.02
    )
    return {"start": phase, "end": frames[0, -1, 0]}


CASES = {
    "timm": timm_case,
    "nnunet": nnunet_case,
    "monai": monai_case,
    "the_well": the_well_case,
    "exponax": exponax_case,
    "scipy": scipy_case,
}


def environment(peer: str, folder: Path) -> str:
    """Make the peer's environment unless it stands; return its interpreter."""
    wanted = [f"torch=={torch.__version__.split('+')[0]}", "numpy", *REQUIREMENTS[peer]]
    root = folder / peer
    interpreter, stamp = root / "bin" / "python", root / "installed.txt"
    if not (stamp.exists() and stamp.read_text().split() == wanted):
        print(f"installing {' '.join(wanted)}", flush=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(root)], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(pip, check=True, capture_output=True)
        stamp.write_text("\n".join(wanted))
    return str(interpreter)


def check(peer: str, folder: Path, scratch: Path) -> dict[str, float]:
    """Return the largest relative difference of each thing that this peer computes too."""
    file = scratch / f"{peer}.npz"
    np.savez(file, **{k: np.asarray(v) for k, v in CASES[peer]().items()})
    command = [environment(peer, folder), str(HERE / "peer_value_checks.py"), peer, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--peers", nargs="*", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, numpy {np.__version__}")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for peer in arguments.peers:
            try:
                rows = check(peer, arguments.environments, Path(scratch))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{peer:45} not compared: {error}")
                failed = True
                continue
            for name, difference in rows.items():
                verdict = "agrees" if difference <= BOUNDS[name] else "DIFFERS"
                failed |= difference > BOUNDS[name]
                print(f"{name:45} {difference:9.1e}  (bound {BOUNDS[name]:.0e})  {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
