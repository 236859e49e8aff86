"""Names that users give."""

import re
from collections.abc import Iterable

import click

from ftkvm.catalogue import FtkvmError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def require_name(option: str, name: str) -> None:
    """A name that can be part of a file name, a certificate and a unit.

    :raises FtkvmError: FTKVM-605
    """
    if not _NAME.fullmatch(name):
        detail = f"{name!r} is not a name: letters, digits, - and _, at most 63, beginning with a letter or digit"
        raise FtkvmError("FTKVM-605", option=option, detail=detail)


def words_of(changes: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE words by key.

    :raises click.BadParameter: a word without =, or a key given twice
    """
    words: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{change}: KEY=VALUE is wanted")
        if key in words:
            raise click.BadParameter(f"{key} is given twice")
        words[key] = value
    return words
