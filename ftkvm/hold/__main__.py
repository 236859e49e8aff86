"""``python3 -m ftkvm.hold CONFIG.json``: exit status 0 when QEMU has gone, 1 on anything else."""

import contextlib
import gc
import logging
import os
import sys
from pathlib import Path

from ftkvm.hold import config
from ftkvm.hold.frames import FramingError
from ftkvm.hold.proxy import Proxy

log = logging.getLogger("ftkvm.hold")


def main(path: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        proxy = Proxy(config.load(Path(path)))
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 1
    gc.freeze()
    gc.disable()  # the loop makes no reference cycles
    try:
        proxy.run()
    except FramingError as error:
        log.error("%s", error)
        return 1
    finally:
        proxy.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
