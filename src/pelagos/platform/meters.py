"""Where the time of a run goes: throughput, data stall, achieved FLOP/s, memory, goodput."""

import time
from dataclasses import dataclass
from typing import Any

import torch

# Dense bf16 tensor-core peak of one device, FLOP/s (vendor data sheets). Unknown devices: no MFU.
PEAK_FLOPS_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
}


@dataclass
class StepMeter:
    """Times one step at a time; `finish` returns what to log."""

    global_batch_size: int
    world_size: int
    flops_per_sample: float | None
    device: torch.device

    def start(self, waited_before: float) -> None:
        """Begin a step; `waited_before` is the stream's cumulative wait so far, in seconds."""
        self._begin = time.perf_counter()
        self._waited_before = waited_before

    def finish(self, waited_after: float) -> dict[str, float]:
        """End the step; return seconds, throughput, stall fraction, memory and FLOP/s."""
        seconds = time.perf_counter() - self._begin
        values = {
            "step_seconds": seconds,
            "samples_per_second": self.global_batch_size / seconds,
            "data_stall_fraction": min(1.0, (waited_after - self._waited_before) / seconds),
            "memory_bytes": float(peak_memory_bytes(self.device)),
        }
        if self.flops_per_sample is not None:
            achieved = self.flops_per_sample * self.global_batch_size / seconds / self.world_size
            values["flops_per_second_per_worker"] = achieved
            peak = device_peak_flops(self.device)
            if peak is not None:
                values["mfu"] = achieved / peak
        return values


def device_peak_flops(device: torch.device) -> float | None:
    """Return the device's peak FLOP/s, or None where no published figure is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS_BF16.items() if key in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated device memory, or of resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # not getrusage: its peak can be that of the process which started this one
    with open("/proc/self/status") as status:
        peak = next((line for line in status if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(peak.split()[1]) * 1024


def step_time_percentiles(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median, 90th and 99th percentile of step seconds."""
    seconds = torch.tensor([m["step_seconds"] for m in metrics if "step_seconds" in m])
    if len(seconds) == 0:
        return {}
    values = torch.quantile(seconds, torch.tensor([0.5, 0.9, 0.99])).tolist()
    return dict(
        zip(("step_seconds_p50", "step_seconds_p90", "step_seconds_p99"), values, strict=True)
    )


def goodput(events: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> float | None:
    """Return the share of launched wall time that went into steps which were kept.

    A launch lasts from its `launched` event to its last sign of life. Steps redone after a
    failure count once; start-up, saving, validation and lost steps count as not good.
    """
    launches = [e["time"] for e in events if e["kind"] == "launched"]
    signs = sorted([e["time"] for e in events] + [m["time"] for m in metrics if "time" in m])
    if not launches or not metrics:
        return None
    wall = 0.0
    for index, begin in enumerate(launches):
        following = launches[index + 1] if index + 1 < len(launches) else float("inf")
        wall += max((t for t in signs if begin <= t < following), default=begin) - begin
    kept = sum(float(m.get("step_seconds", 0.0)) for m in metrics)
    return min(1.0, kept / wall) if wall > 0 else None
