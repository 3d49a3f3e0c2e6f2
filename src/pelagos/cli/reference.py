"""The reference of the command line as Markdown, written from the verbs themselves.

`python -m pelagos.cli.reference > docs/cli.md`
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from pelagos.cli.main import app

INTRODUCTION = """\
# Command line

Every verb prints its own help with `--help`. Most verbs print JSON for programs with `--json`. The exit
status is 0 for success, 1 for a failure, 2 for bad input, and 130 after an interrupt.

Job files and their overrides (`key=value`) are described in [Job files](job-file.md).

This page is written from the verbs by `make docs`.
"""
EXAMPLE = re.compile(r"^Example: (.*(?:\n(?!\n).*)*)", re.MULTILINE)


def reference_markdown() -> str:
    """Return the reference page: each verb with its help, its example, arguments and options."""
    root: Any = typer.main.get_command(app)
    lines = [INTRODUCTION, "## Options of every verb\n"]
    lines += [*_table("option", (p for p in root.params if _is_shown(p))), ""]
    lines += ["| verb | purpose |", "|---|---|"]
    commands = sorted(_commands(root))
    for path, command in commands:
        heading = f"pelagos {path}"
        anchor = heading.replace(" ", "-")
        summary = _cell(inspect.cleandoc(command.help or "").partition("\n\n")[0])
        lines.append(f"| [`{heading}`](#{anchor}) | {summary} |")
    lines.append("")
    for path, command in commands:
        lines += _section(path, command)
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each verb that does something, with its name."""
    children: dict[str, Any] | None = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from _commands(child, (*path, name))


def _section(path: str, command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    example = EXAMPLE.search(text)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and _is_shown(p)]
    usage = " ".join(
        [f"pelagos {path}", *map(_usage, arguments), *(["[--OPTION …]"] if options else [])]
    )
    lines = [f"## pelagos {path}\n", EXAMPLE.sub("", text).strip() + "\n", f"    {usage}\n"]
    if example is not None:
        lines += ["Example:\n", f"    {' '.join(example[1].split())}\n"]
    if arguments:
        lines += [*_table("argument", arguments), ""]
    if options:
        lines += [*_table("option", options), ""]
    return lines


def _table(kind: str, parameters: Any) -> list[str]:
    rows = [f"| {kind} | default | meaning |", "|---|---|---|"]
    for parameter in parameters:
        rows.append(
            f"| {_name(parameter)} | {_default(parameter)} | {_cell(parameter.help or '')} |"
        )
    return rows


def _is_shown(parameter: Any) -> bool:
    return not parameter.hidden and "completion" not in parameter.name


def _usage(argument: Any) -> str:
    name = argument.name.upper() + (" …" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    if parameter.default is True:
        return f"`{parameter.opts[0]}`"
    return f"`{parameter.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
