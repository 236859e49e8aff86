"""Directories of numbered files on the datastore (``0000012.json``): each is created once, and the newest counts."""

import re
from collections.abc import Iterable

_NAME = re.compile(r"(\d{7})\.json")


def numbers(files: Iterable[str]) -> list[int]:
    """The numbers among the names of a directory's files, in their order; other files are not counted."""
    return [int(match.group(1)) for match in map(_NAME.fullmatch, files) if match]


def newest(files: Iterable[str]) -> int:
    """The highest number; 0: there is none."""
    return max(numbers(files), default=0)


def path_of(directory: str, number: int) -> str:
    """The file of that number."""
    return f"{directory}/{number:07d}.json"
