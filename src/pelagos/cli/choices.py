"""Choices that several verbs offer, each with one spelling: runs directory, checkpoint, output, workers.

A run's checkpoint is named RUN@WHICH: `quickstart@best`, `quickstart@500`, or `quickstart` for the
last one. Spellings of earlier versions work for one release, with a note.
"""

from collections.abc import Sequence
from typing import Annotated

import typer

from pelagos.cli import completion
from pelagos.cli.common import error_console, exit_on_error, expanded_option
from pelagos.platform.config.overrides import override

JobRunsDir = Annotated[
    str | None,
    typer.Option(
        "--runs-dir",
        help="Directory that holds the runs; default: the job's, else runs.",
        callback=expanded_option,
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Worker processes; default: the job's.", show_default=False
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        help="A run, started here or submitted; CLUSTER/RUN or DIR/RUN where several have the name.",
        show_default=False,
        autocompletion=completion.runs,
    ),
]
SearchedDir = Annotated[
    str | None,
    typer.Option(
        "--runs-dir",
        help="Look in this directory only; default: runs, and the clusters.",
        callback=expanded_option,
        show_default=False,
    ),
]
RunAtCheckpoint = Annotated[
    str,
    typer.Argument(
        help="A run, RUN@best or RUN@STEP; default: @last. Also CLUSTER/RUN or DIR/RUN.",
        show_default=False,
        autocompletion=completion.runs,
    ),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Look on this cluster only; default: the runs directory, and all of clusters.yaml.",
        autocompletion=completion.clusters,
    ),
]
# key of a job file: its spelling on the command line
_SPELLINGS = {
    "runs_dir": "--runs-dir",
    "output_dir": "--output",
    "resources.num_workers": "--workers",
    "checkpoint": "RUN@",
}


def with_choices(
    overrides: Sequence[str] | None,
    *,
    runs_dir: str | None = None,
    workers: int | None = None,
    output: str | None = None,
    checkpoint: str | None = None,
) -> list[str]:
    """Return the overrides followed by these choices; print a note on old spellings.

    A choice in both spellings ends the verb with status 2.
    """
    given = list(overrides or ())
    choices = {
        "runs_dir": runs_dir,
        "resources.num_workers": workers,
        "output_dir": output,
        "checkpoint": checkpoint,
    }
    for text in given:
        key, _, value = text.partition("=")
        is_section = value.startswith("{")  # `checkpoint` of a training
        if key in _SPELLINGS and not is_section:
            space = "" if _SPELLINGS[key].endswith("@") else " "
            if choices[key] is not None:
                new = f"{_SPELLINGS[key]}{space}{choices[key]}"
                with exit_on_error():
                    raise ValueError(f"{new} and {text} make the same choice: keep the first")
            note_old_spelling(text, f"{_SPELLINGS[key]}{space}{value}")
    return given + [override(key, value) for key, value in choices.items() if value is not None]


def run_and_checkpoint(target: str, old_option: str | None = None) -> tuple[str, str]:
    """Return the run and the checkpoint that RUN@WHICH names.

    Args:
        old_option: the value of `--checkpoint`, the earlier spelling.

    >>> run_and_checkpoint("quickstart@best"), run_and_checkpoint("me@lab/quickstart")
    (('quickstart', 'best'), ('me@lab/quickstart', 'last'))

    Raises:
        ValueError: both are given, or nothing follows the @.
    """
    run, at, which = _parts(target)
    if old_option is not None:
        if at:
            raise ValueError(f"{target} and --checkpoint {old_option} both name a checkpoint")
        note_old_spelling(f"--checkpoint {old_option}", f"{run}@{old_option}")
        return run, old_option
    if at and not which:
        raise ValueError(f"{target!r}: expected a checkpoint behind the @: last, best or a step")
    return run, which or "last"


def _parts(target: str) -> tuple[str, str, str]:
    """Split PLACE/RUN@WHICH at the @ of the run; a place may have one of its own."""
    place, slash, rest = target.rpartition("/")
    run, at, which = rest.partition("@")
    return f"{place}{slash}{run}", at, which


def require_run(target: str, instead: str) -> None:
    """Raise ValueError where RUN@WHICH is given to a verb that takes a run; `instead` is advice."""
    run, at, which = _parts(target)
    if at:
        raise ValueError(
            f"{target} names a checkpoint, but this verb takes a run: {instead.format(run, which)}"
        )


def note_old_spelling(old: str, new: str) -> None:
    """Print a note on a spelling that the next release drops."""
    text = f"note: {old} is now written {new}; the next release drops the old spelling"
    error_console.print(text, soft_wrap=True)
