"""ICMP echo requests to a few addresses at once: who answers, and whether frames of the full size get through."""

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Collection

from ftkvm.keeper import beat as codec

_SOL_RAW, _ICMP_FILTER = 255, 1
_ONLY_REPLIES = (~(1 << codec.ECHO_REPLY) & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
_IP_MTU_DISCOVER, _DO_NOT_FRAGMENT = 10, 3  # IP_PMTUDISC_PROBE: whatever the kernel remembers of the path; see ip(7)
_IP_HEADER = 20
_LARGEST = 65535 - _IP_HEADER
_AGAIN_S = 0.2


def ping(addresses: Collection[str], timeout_s: float = 1.0) -> set[str]:
    """Ask each address once, and return those that answered within ``timeout_s``; blocks no longer than that.

    :raises OSError: no raw socket (needs CAP_NET_RAW)
    """
    ident, token = os.getpid() & 0xFFFF, os.urandom(8)
    waiting = set(addresses)
    answered: set[str] = set()
    with _icmp() as icmp:
        for number, address in enumerate(sorted(waiting)):
            try:
                icmp.sendto(codec.encode_ping(ident, number, token, int(time.monotonic() * 1000)), (address, 0))
            except OSError:  # no route: it will not answer
                waiting.discard(address)
        deadline = time.monotonic() + timeout_s
        while waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([icmp], [], [], left_s)[0]:
                break
            try:
                packet, source = icmp.recvfrom(256)
            except OSError:
                continue
            if source[0] in waiting and codec.decode_ping(packet, ident, token) is not None:
                waiting.discard(source[0])
                answered.add(source[0])
    return answered


def stuck(source: str, addresses: Collection[str], mtu: int, timeout_s: float = 0.8) -> set[str]:
    """Addresses that answer a small frame and none of ``mtu`` bytes (IP header included) that may not be cut in pieces.

    ``source``: the address to ask from. Both are sent several times; one that answers neither is not among them.
    Blocks no longer than ``timeout_s``, and while all answer no longer than the slowest answer takes.

    :raises OSError: no raw socket (needs CAP_NET_RAW), or no such address here
    """
    ident, small, whole = os.getpid() & 0xFFFF, os.urandom(8), os.urandom(8)
    open_: set[tuple[str, bytes]] = {(address, token) for address in addresses for token in (small, whole)}
    sizes = {small: 0, whole: min(mtu - _IP_HEADER, _LARGEST)}
    with _icmp() as icmp:
        icmp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO_NOT_FRAGMENT)
        icmp.bind((source, 0))
        now = time.monotonic()
        deadline, again = now + timeout_s, now
        while open_ and now < deadline:
            if now >= again:
                again = now + _AGAIN_S
                for address, token in open_:
                    with contextlib.suppress(OSError):  # no route, or one that takes no such frame: no answer
                        icmp.sendto(codec.encode_ping(ident, 0, token, int(now * 1000), sizes[token]), (address, 0))
            if select.select([icmp], [], [], max(0.0, min(again, deadline) - now))[0]:
                with contextlib.suppress(OSError):
                    packet, origin = icmp.recvfrom(256)
                    open_ -= {
                        (origin[0], token) for token in sizes if codec.decode_ping(packet, ident, token) is not None
                    }
            now = time.monotonic()
    return {address for address, token in open_ if token == whole and (address, small) not in open_}


def _icmp() -> socket.socket:
    icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
    return icmp
