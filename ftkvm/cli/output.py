"""How commands print: tables or JSON on standard output, progress and errors on standard error."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ftkvm.catalogue import FtkvmError

F = TypeVar("F", bound=Callable[..., Any])
Show = Callable[[int, int, str], None]
_STATE_STYLES = {
    "ok": "green", "running": "green", "protected": "green", "Protected": "green", "off": "dim",
    "unknown": "yellow", "silent": "red",
}  # fmt: skip


def output_option(command: F) -> F:
    """Adds ``--output table|json`` to a command."""
    return click.option(
        "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Form of the output."
    )(command)


class Reporter:
    """Prints what a command found, in the form asked for."""

    def __init__(self, output: str = "table") -> None:
        self.json = output == "json"
        wide = None if sys.stdout.isatty() else 250  # a pipe has no width; nothing is cut off there
        self.out = Console(highlight=False, width=wide)
        self.err = Console(stderr=True, highlight=False)

    def document(self, document: object) -> None:
        """A JSON document on standard output."""
        click.echo(json.dumps(document, indent=2))

    def result(self, document: object, text: str) -> None:
        """The outcome of a command: the document with ``--output json``, else one line."""
        if self.json:
            self.document(document)
        else:
            click.echo(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
        """A table; ``empty`` is printed when there are no rows."""
        if not rows:
            click.echo(empty)
            return
        self.out.print(make_table(columns, rows))

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Show]:
        """Shows steps as they come: a bar on a terminal, a line per step otherwise."""
        if self.err.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[step]}"),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.err, transient=True) as bar:
                task = bar.add_task(title, total=None, step="")
                yield lambda step, steps, text: bar.update(task, completed=step, total=steps or None, step=text)
            return
        yield self._line_per_step(title)

    def _line_per_step(self, title: str) -> Show:
        last: list[tuple[int, int, str]] = []

        def show(step: int, steps: int, text: str) -> None:
            if text and [(step, steps, text)] != last:
                last[:] = [(step, steps, text)]
                click.echo(f"{title}: {f'{step}/{steps} ' if steps else ''}{text}", err=True)

        return show


def watch_document(reporter: Reporter, ask: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    """Shows a document again and again until interrupted; an error in its place while nobody answers."""
    with Live(console=reporter.out, auto_refresh=False, screen=reporter.out.is_terminal) as live:
        while True:
            try:
                live.update(render(ask()), refresh=True)
            except FtkvmError as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(1.0)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table with styled state words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> Text:
    text = "-" if value is None or value == "" else str(value)
    return Text(text, style=_STATE_STYLES.get(text, ""))


def print_error(error: FtkvmError, *, as_json: bool) -> None:
    """A message with its cause and remedy on standard error; with ``as_json`` also as a document on standard output."""
    if as_json:
        click.echo(json.dumps({"error": error.to_json()}, indent=2))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(error.code, style="bold red") + Text(f" {error.text}", style="bold"))
    also = error.params.get("also")
    for label, text in (("Also", also), ("Cause", error.cause), ("Remedy", error.remedy)):
        if text:
            console.print(Text(f"  {label}: ", style="dim") + Text(str(text)))
