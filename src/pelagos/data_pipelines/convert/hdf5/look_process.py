"""The process of the first look: touches parts of HDF5 files as readers do, and may hang or crash.

It is run by its path and imports nothing but h5py, so that it starts quickly. A line of JSON comes in
for each file, and lines of JSON go out: where it is, and at the end its findings. A timer of the
kernel ends it when it computes for long without getting any further: the library is then in a loop
in C, in which no handler of Python is called. Another ends it when it waits for much longer still.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

MOST_OBJECTS = 10_000  # and as many links; others are looked at when they are asked for
MOST_LEVELS = 100  # of groups in groups
CHUNKS_PER_STEP = 1000
MOST_SHOWN = 200  # characters of a name
NO_MEMORY = "memory allocation failed"  # so HDF5 says it
LITTLE_FILE_BYTES = 2**20
# A step may wait so much longer than it may compute: for a slow disk, but not for ever for a pipe.
WAITING_FACTOR = 20


class Stop(Exception):
    """Enough was seen, or the file is damaged."""


class Look:
    """A look at one file.

    Args:
        order: `file`, `key` (empty: all of it), `seconds` of computing that one step may take.
        out: where to say which part is looked at.
    """

    def __init__(self, order: dict[str, Any], out: TextIO) -> None:
        self.name, self.key, self.seconds = order["file"], order["key"], float(order["seconds"])
        self.out, self.num_objects, self.num_links = out, 0, 0
        self.fault, self.is_complete = "", False
        self.most_chunks = max(os.path.getsize(self.name), LITTLE_FILE_BYTES)

    def take(self) -> dict[str, Any]:
        """Whether everything was seen, and the faults; errors are left to those who read."""
        h5py = importlib.import_module("h5py")
        self.go_on()
        with contextlib.suppress(Stop), self.tried():
            with h5py.File(self.name, "r") as file:
                if self.key:
                    self.see(self.key, file[self.key])
                else:
                    self.see("/", file)
                    file.visititems(self.see)
            self.is_complete = True
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return {"complete": self.is_complete, "fault": self.fault}

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """Pass over errors, which are said where the file is read. Raises Stop where memory ends."""
        try:
            yield
        except Stop:
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or NO_MEMORY in str(error):
                self.fault = f"asks for more memory than this machine has ({error})"
                raise Stop from error

    def go_on(self) -> None:
        """The time for one step begins anew."""
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITING_FACTOR * self.seconds)

    def see(self, name: str, node: Any) -> None:
        """One group or array. Raises Stop at too many."""
        self.num_objects += 1
        if self.num_objects > MOST_OBJECTS:
            raise Stop
        if name.count("/") > MOST_LEVELS:
            self.fault = f"nests groups more than {MOST_LEVELS} deep, so links form a circle"
            raise Stop
        self.out.write(json.dumps({"at": name[-MOST_SHOWN:]}) + "\n")
        self.out.flush()
        for touch in (self.see_attributes, self.see_links, self.see_array):
            self.go_on()
            with self.tried():
                touch(node)

    def see_attributes(self, node: Any) -> None:
        for name in node.attrs:
            self.go_on()
            with self.tried():
                node.attrs[name]

    def see_links(self, node: Any) -> None:
        for name in node if hasattr(node, "keys") else ():
            node.get(name, getlink=True, default=None)
            self.num_links += 1
            self.go_on()
            if self.num_links > MOST_OBJECTS:
                raise Stop

    def see_array(self, node: Any) -> None:
        """Where an array has its numbers, which positions belong to it, and its index of chunks."""
        self.require_files(node)  # the shape may be that of the sources, which are opened for it
        shape = getattr(node, "shape", None)
        if shape is None:
            return
        plist = node.id.get_create_plist()
        plist.fill_value_defined()
        for i in range(plist.get_nfilters()):
            plist.get_filter(i)
        for dim in node.dims:
            self.go_on()
            if len(dim):
                dim[0].attrs.get("NAME", "")
            dim.label  # noqa: B018
        self.go_on()
        if node.is_virtual:
            for source in node.virtual_sources():
                source.vspace.get_select_npoints()
        elif node.chunks is not None:
            self.see_chunks(node)
        elif not node.external:
            node.id.get_storage_size()

    def require_files(self, node: Any) -> None:
        """Raise Stop where a virtual array has a pipe or a device for a source.

        Opening it would wait for ever.
        """
        if not getattr(node, "is_virtual", False):
            return
        folder = os.path.dirname(self.name)
        for name in {str(source.file_name) for source in node.virtual_sources()} - {"."}:
            path = os.path.join(folder, name)
            if os.path.exists(path) and not os.path.isfile(path):
                self.fault = (
                    f"names {name}, which is not a regular file, as a source of {node.name}"
                )
                raise Stop

    def see_chunks(self, node: Any) -> None:
        num_seen = 0
        widths = zip(node.shape, node.chunks, strict=True)
        most = min(
            self.most_chunks, 1000 + 2 * math.prod(-(-size // width) for size, width in widths)
        )

        def note(_: Any) -> None:
            nonlocal num_seen
            num_seen += 1
            if num_seen > most:
                self.fault = f"lists more chunks of {node.name} than can exist: the list has no end"
                raise Stop
            if num_seen % CHUNKS_PER_STEP == 0:
                self.go_on()

        node.id.chunk_iter(note)


def bound_memory(num_bytes: int) -> None:
    """Limit the further memory of the process, where the system reports its present memory."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> None:
    """Answer the requests on standard input until it ends, one line each."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where a library may print
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        importlib.import_module("h5py")
    except Exception as error:
        answer: dict[str, Any] = {"failed": f"{type(error).__name__}: {error}"}
    else:
        answer = {"ready": True}
    out.write(json.dumps(answer) + "\n")
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        with contextlib.suppress(OSError, ValueError, ImportError):
            bound_memory(order["bytes"])
        try:
            answer = Look(order, out).take()
        except OSError:  # it is gone
            answer = {"complete": False, "fault": ""}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
