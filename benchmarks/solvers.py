"""Speed of the solvers: trajectories/s per family, and ratios to peers in the same run.

    PYTHONPATH=src python benchmarks/solvers.py [--resolutions 64 128] [--trajectories 2]

Peers, timed interleaved with ours on one core: a straightforward NumPy code of the same step
(vorticity form with five transforms for the incompressible solver; the same MUSCL-HLLC step for the
compressible one), and our own solver called once per trajectory instead of once per batch.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from pelagos.data_pipelines.generate import (
    FAMILIES,
    generate_trajectories,
    solve_euler,
    solve_navier_stokes,
    trajectory_generator,
)

Array = npt.NDArray[np.floating]
REPEATS = 5
GAMMA = 1.4


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    print_machine()
    for resolution in arguments.resolutions:
        for name in arguments.families:
            rate = family_rate(name, resolution, arguments.trajectories)
            print(f"{name:14s} {resolution:4d}^2 float32  {rate:8.3f} trajectories/s on 1 core")
    for dtype in ("float32", "float64"):
        label = f"128^2 {dtype}, one trajectory, NumPy peer"
        print_ratio(f"incompressible, {label}", *navier_stokes_pair(128, 20, dtype))
        print_ratio(f"compressible, {label}", *euler_pair(128, 10, dtype))
    print_ratio(
        "CE-RP, 2 trajectories at 128^2, compiled; peer not compiled", *compiled_pair(128, 2)
    )
    for name in ("NS-Gauss", "CE-RP"):
        print_ratio(f"{name}, 8 trajectories at 32^2, one at a time", *batch_pair(name, 32, 8))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--trajectories", type=int, default=2, help="per family and resolution")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    return parser.parse_args()


def print_machine() -> None:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    print(f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")


def family_rate(name: str, resolution: int, count: int) -> float:
    """Trajectories per second of 21 frames to time 1, initial states included."""
    started = time.perf_counter()
    generate_trajectories(name, range(count), seed=0, resolution=resolution)
    return count / (time.perf_counter() - started)


def print_ratio(label: str, ours: Callable[[], object], peer: Callable[[], object]) -> None:
    """Interleaved timing; medians and the median of the pairwise ratios."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(REPEATS)]
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{label}: ours {mine:.3f} s, peer {theirs:.3f} s, speed-up {ratio:.2f}")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def batch_pair(name: str, resolution: int, count: int) -> tuple[Callable[[], object], ...]:
    settings = {"seed": 0, "resolution": resolution, "num_frames": 2, "final_time": 0.2}

    def batched() -> None:
        generate_trajectories(name, range(count), **settings)

    def one_at_a_time() -> None:
        for i in range(count):
            generate_trajectories(name, [i], **settings)

    return batched, one_at_a_time


def compiled_pair(resolution: int, count: int) -> tuple[Callable[[], object], ...]:
    settings = {"seed": 0, "resolution": resolution, "num_frames": 2, "final_time": 0.1}

    def solve(compiled: bool) -> Callable[[], object]:
        return lambda: generate_trajectories("CE-RP", range(count), compiled=compiled, **settings)

    return solve(True), solve(False)


def navier_stokes_pair(
    n: int, steps: int, dtype: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    velocity = FAMILIES["NS-Sines"].initial_state(trajectory_generator(0, "NS-Sines", 0), n)
    velocity = velocity.astype(dtype)
    state, size = torch.from_numpy(velocity)[None], 1e-3
    times = [0.0, size * steps]

    def ours() -> object:
        return solve_navier_stokes(state, times, viscosity=4e-4, cfl=1e9, max_step=size)

    return ours, lambda: numpy_navier_stokes(velocity, steps, size, 4e-4)


def numpy_navier_stokes(velocity: Array, steps: int, dt: float, viscosity: float) -> Array:
    """Vorticity form, 2/3 rule, integrating factor, RK4; five real transforms per evaluation."""
    n = velocity.shape[-1]
    kx = (2 * np.pi * np.fft.rfftfreq(n, 1 / n)[None, :]).astype(velocity.dtype)
    ky = (2 * np.pi * np.fft.fftfreq(n, 1 / n)[:, None]).astype(velocity.dtype)
    square = kx**2 + ky**2
    inverse = np.divide(1.0, square, out=np.zeros_like(square), where=square > 0)
    kept = (np.abs(kx) < 2 * np.pi * n / 3) & (np.abs(ky) < 2 * np.pi * n / 3)
    u, v = np.fft.rfft2(velocity)
    omega = (1j * kx * v - 1j * ky * u) * kept
    half = np.exp(-0.5 * dt * viscosity * square)

    def slope(w: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.complexfloating]:
        u = np.fft.irfft2(1j * ky * inverse * w)
        v = np.fft.irfft2(-1j * kx * inverse * w)
        vorticity = np.fft.irfft2(w)
        flux = 1j * kx * np.fft.rfft2(u * vorticity) + 1j * ky * np.fft.rfft2(v * vorticity)
        return -flux * kept

    for _ in range(steps):
        k1 = slope(omega)
        k2 = slope(half * (omega + 0.5 * dt * k1))
        k3 = slope(half * omega + 0.5 * dt * k2)
        k4 = slope(half * (half * omega + dt * k3))
        omega = half**2 * (omega + dt / 6 * k1) + dt / 3 * half * (k2 + k3) + dt / 6 * k4
    return np.stack((np.fft.irfft2(1j * ky * inverse * omega),) * 2)


def euler_pair(n: int, steps: int, dtype: str) -> tuple[Callable[[], object], Callable[[], object]]:
    state = FAMILIES["CE-KH"].initial_state(trajectory_generator(0, "CE-KH", 0), n).astype(dtype)
    tensor, size = torch.from_numpy(state)[None], 4e-4
    times = [0.0, size * steps]

    def ours() -> object:
        return solve_euler(tensor, times, cfl=1e9, max_step=size)

    return ours, lambda: numpy_euler(state, steps, size)


def numpy_euler(primitive: Array, steps: int, dt: float) -> Array:
    """MUSCL with the monotonised-central limiter, HLLC, two-stage SSP Runge-Kutta; periodic."""
    state = conserved(primitive)
    for _ in range(steps):
        middle = state + dt * numpy_slope(state)
        state = 0.5 * (state + middle + dt * numpy_slope(middle))
    return primitives(state)


def conserved(w: Array) -> Array:
    rho, u, v, p = w
    return np.stack((rho, rho * u, rho * v, p / (GAMMA - 1) + 0.5 * rho * (u**2 + v**2)))


def primitives(q: Array) -> Array:
    rho, u, v = q[0], q[1] / q[0], q[2] / q[0]
    return np.stack((rho, u, v, (GAMMA - 1) * (q[3] - 0.5 * rho * (u**2 + v**2))))


def numpy_slope(state: Array) -> Array:
    n, w = state.shape[-1], primitives(state)
    turned = w[[0, 2, 1, 3]].transpose(0, 2, 1)
    along_y = numpy_difference(turned)[[0, 2, 1, 3]].transpose(0, 2, 1)
    return -n * (numpy_difference(w) + along_y)


def numpy_difference(w: Array) -> Array:
    a, b = w - np.roll(w, 1, -1), np.roll(w, -1, -1) - w
    size = np.minimum(np.minimum(np.abs(a), np.abs(b)), 0.25 * np.abs(a + b))
    half = np.where(a * b > 0, np.sign(a) * size, 0.0)
    flux = numpy_hllc(w + half, np.roll(w - half, -1, -1))
    return flux - np.roll(flux, 1, -1)


def numpy_hllc(left: Array, right: Array) -> Array:
    (rl, ul, _, pl), (rr, ur, _, pr) = left, right
    cl2, cr2, sl, sr = GAMMA * pl / rl, GAMMA * pr / rr, np.sqrt(rl), np.sqrt(rr)
    wl, wr = sl / (sl + sr), sr / (sl + sr)
    um = wl * ul + wr * ur
    cm = np.sqrt(wl * cl2 + wr * cr2 + 0.5 * wl * wr * (ur - ul) ** 2)
    slow, fast = np.minimum(ul - np.sqrt(cl2), um - cm), np.maximum(ur + np.sqrt(cr2), um + cm)
    ml, mr = rl * (slow - ul), rr * (fast - ur)
    contact = (pr - pl + ml * ul - mr * ur) / (ml - mr)
    use = contact >= 0
    w, wave, mass = np.where(use, left, right), np.where(use, slow, fast), np.where(use, ml, mr)
    reach = np.where(use, np.minimum(slow, 0), np.maximum(fast, 0))
    rho, u, v, p = w
    q = conserved(w)
    star = mass / (wave - contact)
    energy = star * (q[3] / rho + (contact - u) * (contact + p / mass))
    flux = np.stack((q[1], q[1] * u + p, q[1] * v, (q[3] + p) * u))
    return flux + reach * (np.stack((star, star * contact, star * v, energy)) - q)


if __name__ == "__main__":
    main()
