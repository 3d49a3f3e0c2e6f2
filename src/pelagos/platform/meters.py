"""Where the time of a step goes: throughput, data stall, achieved FLOP/s, memory."""

import time
from dataclasses import dataclass

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
    """Times one step at a time; `finish` returns the values to log."""

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
