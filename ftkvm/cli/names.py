"""Names that users give."""

import re

from ftkvm.catalogue import FtkvmError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def require_name(option: str, name: str) -> None:
    """A name that can be part of a file name, a certificate and a unit.

    :raises FtkvmError: FTKVM-605
    """
    if not _NAME.fullmatch(name):
        detail = f"{name!r} is not a name: letters, digits, - and _, at most 63, beginning with a letter or digit"
        raise FtkvmError("FTKVM-605", option=option, detail=detail)
