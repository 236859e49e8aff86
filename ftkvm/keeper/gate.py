"""The gate in the kernel: an nftables set of bridge ports that closes by itself when nobody renews it.

A frame that enters the bridge from a gated port passes only while the port is in ``open``, whose elements live for one
second. libnftables is called in this process (0.1 ms for a renewal); the ``nft`` program is used where it is missing.
"""

import ctypes
import logging
import subprocess
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

OPEN_MS = 1000
RENEW_MS = 250

_TABLE = """
add table bridge ftkvm
add set bridge ftkvm gated { type ifname; }
add set bridge ftkvm open { type ifname; flags timeout; timeout 1s; }
add chain bridge ftkvm forward { type filter hook forward priority 0; policy accept; }
add chain bridge ftkvm input { type filter hook input priority 0; policy accept; }
flush chain bridge ftkvm forward
flush chain bridge ftkvm input
add rule bridge ftkvm forward iifname @gated iifname != @open drop
add rule bridge ftkvm input iifname @gated iifname != @open drop
"""


class GateError(Exception):
    """The kernel or nftables refused; the text is nftables' own."""


def _elements(ports: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{port}"' for port in ports) + " }"


def _library() -> Callable[[str], str | None]:
    """Run a script through libnftables; returns its error text or None. Raises OSError if the library is not there."""
    lib = ctypes.CDLL("libnftables.so.1")
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    for buffered in (lib.nft_ctx_buffer_error, lib.nft_ctx_buffer_output):
        buffered.argtypes = [ctypes.c_void_p]
    context = lib.nft_ctx_new(0)
    lib.nft_ctx_buffer_error(context)
    lib.nft_ctx_buffer_output(context)

    def run(script: str) -> str | None:
        if lib.nft_run_cmd_from_buffer(context, script.encode()) == 0:
            return None
        return str(lib.nft_ctx_get_error_buffer(context).decode(errors="replace")) or "nftables refused"

    return run


def _program(script: str) -> str | None:
    try:
        done = subprocess.run(["nft", "-f", "-"], input=script, text=True, capture_output=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr or "nft failed"


class Gates:
    """The host's gates. Every method is one transaction: the kernel takes all of it or nothing. Raises GateError."""

    def __init__(self) -> None:
        try:
            self._script = _library()
        except OSError as error:
            log.warning("libnftables is missing (%s): each renewal starts the nft program", error)
            self._script = _program

    def _run(self, script: str) -> None:
        if (error := self._script(script)) is not None:
            raise GateError(error.strip().splitlines()[0])

    def manage(self, ports: Iterable[str]) -> None:
        """Make exactly these ports gated. What is open stays open until its time is up."""
        ports = sorted(ports)
        add = f"add element bridge ftkvm gated {_elements(ports)}\n" if ports else ""
        self._run(f"{_TABLE}flush set bridge ftkvm gated\n{add}")

    def open(self, ports: Iterable[str]) -> None:
        """Open these ports for OPEN_MS from now. Adding an element that is there renews nothing: add, delete, add."""
        which = _elements(sorted(ports))
        verbs = ("add", "delete", "add")
        self._run("".join(f"{verb} element bridge ftkvm open {which}\n" for verb in verbs))

    def close(self, ports: Iterable[str]) -> None:
        """Close these ports at once. (``add`` first: deleting what is not there would fail.)"""
        which = _elements(sorted(ports))
        self._run("".join(f"{verb} element bridge ftkvm open {which}\n" for verb in ("add", "delete")))

    def remove(self) -> None:
        """Take the table away with all gates (uninstalling, tests)."""
        self._run("add table bridge ftkvm\ndelete table bridge ftkvm\n")
