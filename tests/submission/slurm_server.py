"""A real Slurm on this machine: munge, the controller and one node daemon, all in a directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests import debian

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
START_TIMEOUT_SECONDS = 60
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
KillWait=10
ReturnToService=2
SchedulerParameters=sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def install() -> str:
    """Install Slurm from Debian's packages if it is not there; return why that failed, or nothing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if all(map(shutil.which, PROGRAMS)) and os.geteuid() != 0:
        return "starting Slurm's daemons takes root"
    return debian.install(PROGRAMS, ["slurm-wlm", "munge"])


@contextlib.contextmanager
def slurm(folder: Path, ports: list[int]) -> Iterator[None]:
    """Run Slurm and point this process's environment at it."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, controller_port=ports[0], node_port=ports[1])
    )
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    folder.chmod(0o755)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(
            _start(
                folder,
                "munged",
                ["--foreground", "--force", f"--key-file={key}"]
                + [f"--{n}-file={folder}/munge.{n}" for n in ("pid", "log", "seed")]
                + [f"--socket={folder}/munge.socket"],
            )
        )
        _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        processes.append(_start(folder, "slurmctld", ["-D", "-f", str(configuration)]))
        processes.append(_start(folder, "slurmd", ["-D", "-f", str(configuration), "-N", host]))
        _wait_for(lambda: "idle" in _shown("sinfo", "--noheader", "--format=%T"), folder)
        yield
    finally:
        if len(processes) == 3:
            # a run says that it has finished before its allocation ends with `ray stop`, which would
            # also stop the Ray of whatever test comes next
            subprocess.run(["scancel", "--user=root", "--state=PENDING"], capture_output=True)
            with contextlib.suppress(RuntimeError):
                _wait_for(lambda: not _shown("squeue", "--noheader").strip(), folder)
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _start(folder: Path, program: str, options: list[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{program}.out").open("wb") as output:
        return subprocess.Popen(
            [shutil.which(program) or program, *options], stdout=output, stderr=subprocess.STDOUT
        )


def _shown(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _wait_for(condition, folder: Path) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.2)
    logs = {p.name: p.read_text(errors="replace")[-800:] for p in folder.glob("*.[lo]*")}
    raise RuntimeError(f"Slurm did not start: {logs}")
