"""``python -m ftkvm.lab``: the ``ftkvm lab`` commands alone, for a machine where only the lab is wanted."""

import sys

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.lab import lab


def main() -> None:
    """Runs the group; a known failure is shown with its cause and remedy."""
    try:
        lab()
    except FtkvmError as error:
        print(f"{error}\n  cause:  {error.cause}\n  remedy: {error.remedy}", file=sys.stderr)
        sys.exit(error.message.exit_status)


if __name__ == "__main__":
    main()
