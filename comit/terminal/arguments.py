"""Kinds of arguments that several commands take."""

from __future__ import annotations

from typing import Any

import click


class Output(click.Path):
    """A file or folder to write; ``-``, which elsewhere is standard output, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a file that is called so is ``./-``."""
        if value == "-":
            self.fail("- would be standard output, which it cannot go to; name a file", param, ctx)
        return super().convert(value, param, ctx)
