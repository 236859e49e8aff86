"""The datastore probe: writes this host's heartbeat file again and again and reports each write's end.

A process of its own, not a thread: a thread that hangs in a dead FUSE or NFS mount cannot be killed, and would keep
the keeper's sockets bound after the keeper's end, so that a restarted keeper could not start. The probe holds nothing
but a pipe; when the keeper ends, it ends at its next report.

Report: one line per write, "ok" or the name of the errno.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PERIOD_S = 0.2


def write_heartbeat(store: Path, host: str, boot_id: str, counter: int) -> None:
    """Replace ``hosts/<host>/heartbeat``. ``.ftkvm`` is never made: an unmounted datastore must not look fine."""
    directory = store / ".ftkvm" / "hosts" / host
    if not directory.is_dir():
        (store / ".ftkvm").stat()
        directory.mkdir(parents=True, exist_ok=True)
    doc = {"format": 1, "host": host, "boot_id": boot_id, "counter": counter, "at": time.time()}
    temporary = directory / "heartbeat.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, json.dumps(doc).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(directory / "heartbeat")


def main(store: str, host: str, boot_id: str) -> None:
    """Probe until the pipe is closed."""
    next_s = time.monotonic()
    while True:
        counter = time.monotonic_ns() // 1_000_000  # grows over restarts of the probe too
        try:
            write_heartbeat(Path(store), host, boot_id, counter)
            report = "ok"
        except OSError as error:
            report = errno.errorcode.get(error.errno or 0, "EIO")
        try:
            os.write(1, report.encode() + b"\n")
        except BrokenPipeError:
            return
        next_s = max(next_s + PERIOD_S, time.monotonic())
        time.sleep(max(0.0, next_s - time.monotonic()))


def start(store: Path, host: str, boot_id: str) -> "subprocess.Popen[bytes]":
    """Start the probe as a child; its reports come from ``stdout``, which does not block."""
    command = [sys.executable, "-m", "ftkvm.keeper.probe", str(store), host, boot_id]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, child.pid, -20)
    return child


if __name__ == "__main__":
    main(*sys.argv[1:4])
