"""The socket by which the memory of a VM goes to its secondary: opened by the agents, then given to the two QEMUs."""

import contextlib
import socket
import threading
from collections.abc import Iterator

QEMU_WAITS = b"w"
"""The first byte, from the secondary's agent: its QEMU has the channel and waits."""


@contextlib.contextmanager
def shut_down_after(channel: socket.socket, timeout_s: float) -> Iterator[None]:
    """Shut ``channel`` down, also for a QEMU that has it, unless the block ends within ``timeout_s``."""
    timer = threading.Timer(timeout_s, _shut_down, (channel,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(channel: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side has closed it
        channel.shutdown(socket.SHUT_RDWR)
