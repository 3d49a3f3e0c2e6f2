"""Run the notebooks of this folder anew, and write them back with their outputs.

    python examples/notebooks/execute.py                  # all
    python examples/notebooks/execute.py own_data.ipynb

Each runs in a temporary directory of its own, so that no output names a path of this machine.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
CELL_SECONDS = 300


def executed(path: Path, directory: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run in `directory`. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    programs = Path(sys.executable).parent  # `!pelagos` is the one of this environment
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        coalesce_streams=True,
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute(env=environment)
    return notebook


def without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without times of execution and details of the kernel, which change."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    names = sys.argv[1:] or sorted(path.name for path in HERE.glob("*.ipynb"))
    for name in names:
        path, begun = HERE / Path(name).name, time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            notebook = without_traces(executed(path, Path(directory)))
        nbformat.write(notebook, path)
        seconds, size = time.monotonic() - begun, path.stat().st_size / 1e3
        print(f"{path.name}: {seconds:.0f} s, {size:.0f} kB")


if __name__ == "__main__":
    main()
