"""What following a run's records costs beside reading them whole, at a number of steps.

python benchmarks/records.py 1000000
"""

import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

from pelagos.platform.records.record_tail import RecordTail
from pelagos.platform.records.run_files import is_step, read_metrics

NUM_LOOKS = 1000
VALUES = {
    **{"time": 1.7e9, "epoch": 0.1, "loss": 0.5, "gradient_norm": 1.0, "lr": 1e-3},
    **{"step_seconds": 0.4, "samples_per_second": 50.0, "data_stall_fraction": 0.0},
    **{"memory_bytes": 1e9, "loss/a": 0.4, "loss/b": 0.6, "data_requests": 10.0, "data_bytes": 1e6},
}


def main(num_steps: int) -> None:
    """Follow a file of so many steps, and read the same file whole."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "metrics.jsonl"
        with path.open("w") as file:
            for step in range(num_steps):
                file.write(json.dumps({"step": step, **VALUES}) + "\n")
        tail = RecordTail(path, is_step)
        begin = time.process_time()
        count = sum(len(piece) for piece in tail.pieces())
        first, peak = time.process_time() - begin, _peak_megabytes()
        begin = time.process_time()
        for look in range(NUM_LOOKS):
            with path.open("a") as file:
                file.write(json.dumps({"step": count + look, **VALUES}) + "\n")
            tail.read()
        looked = (time.process_time() - begin) / NUM_LOOKS
        begin = time.process_time()
        read_metrics(path)
        whole = time.process_time() - begin
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"{num_steps:,} steps, {path.stat().st_size / 1e6:.0f} MB")
        print(f"first reading: {first:.1f} CPU-s, peak {peak:.0f} MB of the process")
        print(f"a look: {1e3 * looked:.3f} ms of CPU, the append included")
        print(
            f"read whole: {whole:.1f} CPU-s, peak {_peak_megabytes():.0f} MB; look / whole: ",
            end="",
        )
        print(f"{looked / whole:.1e}")


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]))
