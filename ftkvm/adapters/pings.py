"""ICMP echo requests to a few addresses at once."""

import os
import select
import socket
import sys
import time
from collections.abc import Collection

from ftkvm.keeper import beat as codec

_SOL_RAW, _ICMP_FILTER = 255, 1
_ONLY_REPLIES = (~(1 << codec.ECHO_REPLY) & 0xFFFFFFFF).to_bytes(4, sys.byteorder)


def ping(addresses: Collection[str], timeout_s: float = 1.0) -> set[str]:
    """Ask each address once, and return those that answered within ``timeout_s``; blocks no longer than that.

    :raises OSError: no raw socket (needs CAP_NET_RAW)
    """
    ident, token = os.getpid() & 0xFFFF, os.urandom(8)
    waiting = set(addresses)
    answered: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP) as icmp:
        icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
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
