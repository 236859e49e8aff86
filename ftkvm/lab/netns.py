"""Sockets in another network name space, without leaving this process.

A socket belongs to the name space its thread was in when it was made, so it is enough to be there for that moment.
"""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def inside(namespace: str | None) -> Iterator[None]:
    """Puts the *calling thread* into a named network name space; None leaves it where it is."""
    if namespace is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def make_socket(
    namespace: str | None, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """A socket that lives in the name space; close it as any other."""
    with inside(namespace):
        return socket.socket(family, kind, protocol)


def connect(namespace: str | None, address: str, port: int, timeout_s: float = 5) -> socket.socket:
    """A TCP connection made from inside the name space, Nagle off. Raises OSError."""
    sock = make_socket(namespace)
    try:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock
