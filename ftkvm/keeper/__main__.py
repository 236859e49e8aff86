"""``python3 -m ftkvm.keeper``: become prompt, then loop until killed. Restarting it disturbs nothing."""

import ctypes
import gc
import logging
import os
from pathlib import Path

from ftkvm.keeper import config
from ftkvm.keeper.loop import Keeper

log = logging.getLogger("ftkvm.keeper")

_MCL_CURRENT_AND_FUTURE = 3
_RR_PRIORITY = 10


def become_prompt() -> None:
    """Run before ordinary processes, never wait for a page from disk, never stop for a garbage collection."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_RR_PRIORITY))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError as error:
            log.warning("no priority over other processes: %s", error)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        log.warning("memory is not locked: %s", os.strerror(ctypes.get_errno()))
    gc.collect()
    gc.freeze()
    gc.disable()  # the loop makes no reference cycles


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    keeper = Keeper(config.load(), boot_id)
    become_prompt()
    log.info("keeper of %s, %d pairs", keeper.config.host, len(keeper.pairs))
    keeper.run()


if __name__ == "__main__":
    main()
