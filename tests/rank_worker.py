"""One rank of the pool in `conftest.py`: imports torch once, then takes part in one call after another.

Reads a line of JSON per call: a file and a function in it, its arguments, and the process group.
Writes a line of JSON per call: the result, or the traceback.
"""

import contextlib
import faulthandler
import importlib.util
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).with_name("servers")))  # as pytest has it
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def load(path: str, loaded: dict[str, ModuleType]) -> ModuleType:
    if path not in loaded:
        spec = importlib.util.spec_from_file_location("called", path)
        assert spec is not None
        assert spec.loader is not None
        loaded[path] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[path])
    return loaded[path]


def start_counting_afresh() -> None:
    """Reset DeepSpeed's counters of modules and parameters: the ranks of a group must agree on
    them, and these processes have not all been in the same groups before."""
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if offload is not None and partition is not None:
        offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        partition.Init.param_id = 0


def serve() -> None:
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)  # the pool asks where a rank hangs
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)
    loaded: dict[str, ModuleType] = {}
    for line in sys.stdin:
        call = json.loads(line)
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        for name in GROUP_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(call["environment"])
        start_counting_afresh()
        try:
            function = getattr(load(call["file"], loaded), call["function"])
            answer = {"result": function(**call["arguments"])}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        finally:
            if dist.is_initialized():
                with contextlib.suppress(Exception):
                    dist.destroy_process_group()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
