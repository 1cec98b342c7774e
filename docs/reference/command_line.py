"""Writes command-line.md beside this file, from the help texts of comit's own commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from comit.cli import main

PAGE = Path(__file__).with_name("command-line.md")
HEAD = """# Command line

`comit COMMAND --help` shows the same texts. All commands have the same
[exit codes](running.md#exit-codes). This page is made from the program:
`python docs/reference/command_line.py`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_group(main, "comit", click.Context(main, info_name="comit"))])


def _group(group: click.Group, name: str, context: click.Context) -> Iterator[str]:
    for part, command in group.commands.items():
        below = click.Context(command, info_name=part, parent=context)
        yield from _command(command, f"{name} {part}", below)
        if isinstance(command, click.Group):
            yield from _group(command, f"{name} {part}", below)


def _command(command: click.Command, name: str, context: click.Context) -> Iterator[str]:
    arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
    words = [name, *arguments] if not isinstance(command, click.Group) else [name, "COMMAND"]
    yield f"## {name}\n"
    yield f"`{' '.join(words)}`\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        literal = paragraph.startswith("\b")  # click's mark for lines to keep
        lines = paragraph.removeprefix("\b\n").split("\n")
        yield "\n".join(f"    {line}" if literal else line for line in lines) + "\n"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield "| option | meaning | default |"
        yield "| --- | --- | --- |"
        yield from (_row(o, context) for o in options)
        yield ""


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(sorted((*option.opts, *option.secondary_opts), key=len))
    value = "" if option.is_flag else f" {option.make_metavar(context)}".replace(" RANGE", "")
    default = "required" if option.required else ""
    if option.show_default and not option.is_flag:
        given = option.default if isinstance(option.default, tuple) else (option.default,)
        default = ", ".join(map(str, given))
    cells = (f"`{names}{value}`", option.help or "", default)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
