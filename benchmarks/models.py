"""Training-step time of Poseidon and DPOT, and as a ratio to the official code.

    python benchmarks/models.py                            # poseidon-nano, poseidon-t and dpot-ti
    python benchmarks/models.py --official PATH_TO_CLONE   # also the official scOT, interleaved
    python benchmarks/models.py --models dpot-ti --official-dpot PATH_TO_CLONE

One step is forward, backward, clipping to 5 and AdamW, in fp32. The candidates take turns within
one process, and the best and median of the turns are reported: on a shared machine the best is
the number to compare. ``--official`` takes a clone of github.com/camlab-ethz/poseidon and needs
``transformers==4.49`` beside Pelagos; ``--official-dpot`` one of github.com/HaoZhongkai/DPOT.
Nothing of them is copied here.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pelagos.models.registry import create_model

CASES = {"poseidon-nano": 16, "poseidon-t": 4, "dpot-ti": 4}  # model: batch size


def official(path: str, ours: nn.Module) -> nn.Module:
    """The official network of the same configuration, with the same weights."""
    sys.path.insert(0, path)
    from scOT.model import ScOT, ScOTConfig

    config: Any = ours.config
    options = {k: getattr(config, k) for k in config.__dataclass_fields__}
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    network: nn.Module = ScOT(ScOTConfig(**options))
    network.load_state_dict(ours.state_dict(), strict=True)
    return network


def official_dpot(path: str, ours: nn.Module) -> nn.Module:
    """The official DPOT of the same configuration, with the same weights."""
    sys.path.insert(0, path)
    from models.dpot import DPOTNet  # type: ignore[import-not-found]  # noqa: TID251 of the clone

    config: Any = ours.config
    network: nn.Module = DPOTNet(**{k: getattr(config, k) for k in config.__dataclass_fields__})
    network.load_state_dict(ours.state_dict(), strict=True)
    return network


def stepper(model: nn.Module, batch: int, size: int, frames: int = 0) -> Callable[[], float]:
    """A function that takes one training step and returns its wall seconds.

    ``frames``: how many a DPOT takes; 0 is a Poseidon.
    """
    generator = torch.Generator().manual_seed(0)
    pixels, labels = (torch.randn(batch, 4, size, size, generator=generator) for _ in range(2))
    lead = torch.rand(batch, generator=generator)
    window = torch.randn(batch, size, size, frames, 4, generator=generator)

    def compute_loss() -> Tensor:
        if not frames:
            loss: Tensor = model(pixel_values=pixels, time=lead, labels=labels).loss
            return loss
        prediction, logits = model(window)
        square: Tensor = prediction.square().mean()
        return square + 0.0 * logits.sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        start = time.perf_counter()
        compute_loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", metavar="PATH", help="clone of the official repository")
    parser.add_argument("--official-dpot", metavar="PATH", help="clone of DPOT's repository")
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{arguments.threads} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    for name in arguments.models:
        torch.manual_seed(0)
        ours = create_model(name)
        is_dpot = name.startswith("dpot")
        size = ours.config.img_size if is_dpot else ours.config.image_size
        batch, frames = CASES[name], ours.config.in_timesteps if is_dpot else 0
        candidates = {"pelagos": stepper(ours, batch, size, frames)}
        theirs = official_dpot if is_dpot else official
        clone = arguments.official_dpot if is_dpot else arguments.official
        if clone:
            candidates["official"] = stepper(theirs(clone, ours), batch, size, frames)
        report(f"{name} [{batch}, 4, {size}, {size}]", batch, candidates, arguments.turns)


def report(title: str, batch: int, candidates: dict[str, Callable[[], float]], turns: int) -> None:
    """Run the candidates in turn and print the best and median step of each."""
    for step in candidates.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, step in candidates.items():
            seconds[name].append(step())
    for name, taken in seconds.items():
        best, median = min(taken), statistics.median(taken)
        line = f"{title} {name}: best {best:.3f} s, median {median:.3f} s, {batch / best:.1f}/s"
        if name != "official" and "official" in seconds:
            line += f", {min(seconds['official']) / best:.2f} times as fast as official"
        print(line, flush=True)


if __name__ == "__main__":
    main()
