"""The keeper's network sockets: beats over UDP, echo requests over raw ICMP, both from this host's FT address."""

import os
import socket
import sys
from collections.abc import Iterator

from ftkvm.keeper import beat as codec

DRAIN_LIMIT = 2048
"""Datagrams taken in one turn; more than a socket buffer holds, so a drain after a stall really empties it."""
_IP_FREEBIND = 15
_SOL_RAW, _ICMP_FILTER = 255, 1
_ONLY_REPLIES = (~(1 << codec.ECHO_REPLY) & 0xFFFFFFFF).to_bytes(4, sys.byteorder)


class Network:
    """Both sockets. Sending never fails: a network that is down is what silence is for."""

    def __init__(self, ft_address: str, port: int) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # start before the network is configured
        self.udp.bind((ft_address, port))
        self.icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        self.icmp.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        self.icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
        self.icmp.bind((ft_address, 0))
        for sock in (self.udp, self.icmp):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xC0)  # CS6: before bulk traffic, where switches care
        self._ident = os.getpid() & 0xFFFF
        self._token = os.urandom(8)
        self._pings = 0

    def send_beat(self, address: str, port: int, datagram: bytes) -> None:
        try:
            self.udp.sendto(datagram, (address, port))
        except OSError:
            return

    def send_ping(self, address: str, now_ms: int) -> None:
        self._pings += 1
        try:
            self.icmp.sendto(codec.encode_ping(self._ident, self._pings, self._token, now_ms), (address, 0))
        except OSError:
            return

    def beats(self) -> Iterator[tuple[str, bytes]]:
        """All datagrams that wait, with the address they came from."""
        return _drain(self.udp, 65_535)

    def pings(self) -> Iterator[tuple[str, int]]:
        """All answers to our echo requests that wait: who answered, and when we had asked (ms)."""
        for address, packet in _drain(self.icmp, 256):
            sent_ms = codec.decode_ping(packet, self._ident, self._token)
            if sent_ms is not None:
                yield address, sent_ms


def _drain(sock: socket.socket, size: int) -> Iterator[tuple[str, bytes]]:
    for _ in range(DRAIN_LIMIT):
        try:
            data, source = sock.recvfrom(size)
        except OSError:  # nothing left, or an ICMP error about something we sent
            return
        yield source[0], data
