"""What a process has sent to a peer, from the kernel's own counters (``ss``, tcp_diag)."""

import re
import subprocess

SS_TIMEOUT_S = 2.0
_ACKED = re.compile(r"bytes_acked:(\d+)")


def sent_bytes(pid: int, address: str) -> int:
    """Bytes that ``address`` has acknowledged on all open TCP connections of process ``pid``.

    QEMU's own count of migrated bytes stands still once COLO runs; this one has memory, disk writes and mirrored
    frames in it: all that protection costs the FT network. It drops when a connection is closed.

    :raises OSError: ss cannot be run or does not end in time
    """
    command = ("ss", "--tcp", "--numeric", "--processes", "--info", "--no-header", "--oneline", "dst", address)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SS_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{' '.join(command)}: no end within {error.timeout:g} s") from error
    return parse_sent(done.stdout, pid)


def parse_sent(listing: str, pid: int) -> int:
    """The sum over the lines of ``ss`` that name the process."""
    mine = (line for line in listing.splitlines() if f"pid={pid}," in line)
    return sum(int(match.group(1)) for line in mine if (match := _ACKED.search(line)))
