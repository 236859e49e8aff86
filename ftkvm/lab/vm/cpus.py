"""A host's CPUs stopped while the rest of its hardware goes on, as when a real host's kernel hangs.

The threads of a QEMU that are its machine's CPUs go into a threaded control group below the host's, and that is frozen.
The devices are other threads: what the NICs and the disk were given before is still sent and written, no more comes,
and the watchdog counts on.
"""

import time
from collections.abc import Iterable
from contextlib import closing

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names
from ftkvm.lab.monitor import Qmp
from ftkvm.lab.system import Cgroup
from ftkvm.lab.vm.machine import monitor_socket

TRIES = 60
MOMENT_S = 0.5
"""In which a QEMU whose lock is free answers (0.5 ms were seen)."""
PAUSE_S = 0.1


class Cpus(Cgroup):
    """Those of one host, by its name."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{names.netns(host)}/cpus")
        self._host = host

    def stop(self) -> None:
        """Stops them; returns when they stand still and the rest goes on.

        A CPU may be stopped while it holds QEMU's lock, in some 5 % of the tries if it is busy. Then the devices would
        stand still with it: so QEMU is asked something, and if it does not answer, they are let go and stopped again.

        :raises FtkvmError: FTKVM-710, it never answered
        """
        for _try in range(TRIES):
            with closing(Qmp(monitor_socket(self._host))) as monitor:
                self._take(int(cpu["thread-id"]) for cpu in monitor("query-cpus-fast"))
                if self._stopped_well(monitor):
                    return
            time.sleep(PAUSE_S)
        raise FtkvmError(
            "FTKVM-710", what=f"{self._host}'s QEMU to be without its CPUs", timeout_s=f"{TRIES * MOMENT_S:.0f}"
        )

    def let_go(self) -> None:
        """Lets them run, if they were stopped."""
        if self.path.exists():
            self.freeze(False)

    def _take(self, threads: Iterable[int]) -> None:
        self.path.mkdir(exist_ok=True)
        if (self.path / "cgroup.type").read_text().strip() != "threaded":
            (self.path / "cgroup.type").write_text("threaded")
        for thread in threads:
            (self.path / "cgroup.threads").write_text(str(thread))

    def _stopped_well(self, monitor: Qmp) -> bool:
        well = False
        try:
            self.freeze(True)
            monitor("query-status", timeout_s=MOMENT_S)
            well = True
        except TimeoutError:
            pass
        finally:
            if not well:
                self.freeze(False)
        return well
