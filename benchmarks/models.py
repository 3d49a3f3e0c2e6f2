"""Training-step time, peak memory and achieved FLOP/s of every family of the registry.

    python benchmarks/models.py                           # the nano sizes, on this machine's device
    python benchmarks/models.py --models all --batch 1    # every size whose training fits
    python benchmarks/models.py --models poseidon-t --official PATH_TO_CLONE
    python benchmarks/models.py --models dpot-ti --official-dpot PATH_TO_CLONE

One step is forward, backward of the mean square of what comes out, clipping to 5 and AdamW, in fp32,
on the family's own example input. Each model runs in a process of its own, so that its peak memory
is its own; the models take turns, and the best and the median of all turns are reported. FLOPs are
counted with torch's rules (matrix products, convolutions, attention; no Fourier transforms), so
the rate of spectral models is a lower bound. With a clone of official code, its models follow beside
ours, in turns within one process (`official_models.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from model_steps import new_model, stepper
from official_models import compare_with_dpot, compare_with_scot
from torch import Tensor, nn

from pelagos.models.flops import flop_counter
from pelagos.models.registry import FAMILIES, create_model, list_models, model_info


def values_of(answer: Any) -> list[Tensor]:
    """Return every floating tensor of a network's answer."""
    if isinstance(answer, Tensor):
        return [answer] if answer.is_floating_point() else []
    if isinstance(answer, tuple | list):
        return [tensor for entry in answer for tensor in values_of(entry)]
    return [
        tensor
        for entry in vars(answer).values()
        if entry is not None
        for tensor in values_of(entry)
    ]


def loss_of(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([v.float().square().mean() for v in values_of(model(*given))]).sum()


def example(name: str, config: Any, batch: int) -> tuple[Tensor, ...]:
    given = FAMILIES[model_info(name).family].example(config, batch)
    return tuple(torch.randn_like(t) if t.is_floating_point() and t.ndim > 1 else t for t in given)


def count_flops(name: str, batch: int) -> int:
    with torch.device("meta"):
        model = create_model(name)
        with flop_counter() as counter:
            loss_of(model, example(name, model.config, batch)).backward()
    return int(counter.get_total_flops())


def measure(name: str, batch: int, steps: int) -> dict[str, Any]:
    """Train one model for some steps in this process."""
    model, device = new_model(name)
    with device:
        given = example(name, model.config, batch)
    step = stepper(model, lambda: loss_of(model, given))
    seconds = [step() for _ in range(steps + 1)]
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # the first one warms up
    return {"seconds": seconds[1:], "memory": memory, "shape": [list(t.shape) for t in given]}


def fits(name: str) -> bool:
    """Whether weights, gradients and AdamW's two moments leave a fifth of the memory free."""
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 4 * model_info(name).parameters < 0.8 * free


def run_apart(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Measure one model in a process of its own; None if that did not live to tell."""
    sizes = ["--batch", str(options.batch), "--steps", str(options.steps)]
    command = [sys.executable, __file__, "--one", name, *sizes]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return None
    if finished.returncode:
        print(f"{name}: exit {finished.returncode}: {finished.stderr[-300:]}", file=sys.stderr)
        return None
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def print_row(name: str, turns: list[dict[str, Any]], batch: int) -> None:
    seconds = [s for turn in turns for s in turn["seconds"]]
    best = min(seconds)
    shape = " + ".join("x".join(map(str, s)) for s in turns[0]["shape"])
    print(
        f"| {name} | {model_info(name).parameters:,} | {shape} | {best:.4f} | "
        f"{statistics.median(seconds):.4f} | {batch / best:.1f} | "
        f"{count_flops(name, batch) / best / 1e9:.1f} | "
        f"{max(turn['memory'] for turn in turns) / 2**20:.0f} |",
        flush=True,
    )


def print_table(names: list[str], options: argparse.Namespace) -> None:
    print("| model | parameters | input | best s | median s | samples/s | GFLOP/s | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names if fits(name)}
    for turn in range(options.turns):
        for name in list(results):
            found = run_apart(name, options)
            if found is None:
                del results[name]
                continue
            results[name].append(found)
            if turn == options.turns - 1:
                print_row(name, results[name], options.batch)
    left_out = [name for name in names if name not in results]
    if left_out:
        print(f"do not fit, take longer than --limit, or failed: {', '.join(left_out)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    nano = [name for name in list_models() if name.endswith("-nano")]
    parser.add_argument("--models", nargs="+", default=nano, choices=[*list_models(), "all"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a model's turn")
    parser.add_argument("--official", metavar="PATH", help="clone of Poseidon's repository")
    parser.add_argument("--official-dpot", metavar="PATH", help="clone of DPOT's repository")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.batch, options.steps)))
        return
    names = list_models() if "all" in options.models else options.models
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.machine()
    print(
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    print_table(names, options)
    for name in names:
        family = model_info(name).family
        if family == "poseidon" and options.official:
            compare_with_scot(options.official, name, options.batch, options.steps * options.turns)
        if family == "dpot" and options.official_dpot:
            compare_with_dpot(
                options.official_dpot, name, options.batch, options.steps * options.turns
            )


if __name__ == "__main__":
    main()
