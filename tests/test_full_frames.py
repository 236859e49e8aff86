"""Whether frames of the full size get through, on real interfaces: three hosts at one switch. Needs root."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator

import pytest
from keeper_world import inside, ip, needs_netns

from ftkvm.adapters import pings

pytestmark = needs_netns
_NUMBERS = itertools.count()
ADDRESS = {"a": "10.232.0.1", "b": "10.232.0.2", "c": "10.232.0.3"}


class Switched:
    """Hosts *a*, *b*, *c* with MTU 9000 at a switch whose ports take 9000 too."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._tag = f"ff{os.getpid()}{next(_NUMBERS)}"
        for end in ("switch", *ADDRESS):
            ip("netns", "add", self.netns(end))
            stack.callback(ip, "netns", "del", self.netns(end))
            ip("-n", self.netns(end), "link", "set", "lo", "up")
        self.switch("link", "add", "sw", "type", "bridge")
        self.switch("link", "set", "sw", "up")
        for host, address in ADDRESS.items():
            peer = ("peer", "name", "ft", "mtu", "9000", "netns", self.netns(host))
            self.switch("link", "add", f"port-{host}", "mtu", "9000", "type", "veth", *peer)
            self.switch("link", "set", f"port-{host}", "master", "sw", "up")
            ip("-n", self.netns(host), "addr", "add", f"{address}/24", "dev", "ft")
            ip("-n", self.netns(host), "link", "set", "ft", "up")

    def netns(self, end: str) -> str:
        return f"{self._tag}-{end}"

    def switch(self, *words: str) -> None:
        ip("-n", self.netns("switch"), *words)

    def stuck(self, *others: str, mtu: int = 9000) -> set[str]:
        """Asked from host *a*."""
        found = inside(self.netns("a"), lambda: pings.stuck(ADDRESS["a"], [ADDRESS[each] for each in others], mtu))
        return {host for host, address in ADDRESS.items() if address in found}


@pytest.fixture
def hosts() -> Iterator[Switched]:
    with contextlib.ExitStack() as stack:
        yield Switched(stack)


def test_all_get_through(hosts: Switched) -> None:
    began = time.monotonic()
    assert hosts.stuck("b", "c") == set()
    assert time.monotonic() - began < 0.6, "nobody is waited for when all have answered"


def test_sizes_at_the_edge(hosts: Switched) -> None:
    """An odd one, one smaller than what a ping has to carry, and that of the loopback interface."""
    assert [hosts.stuck("b", mtu=mtu) for mtu in (1415, 21, 68)] == [set()] * 3
    assert inside(hosts.netns("a"), lambda: pings.stuck("127.0.0.1", ["127.0.0.1"], 65536)) == set()


def test_a_switch_port_that_takes_no_large_frames(hosts: Switched) -> None:
    hosts.switch("link", "set", "port-c", "mtu", "1500")
    assert hosts.stuck("b", "c") == {"c"}


def test_a_host_whose_own_nic_is_set_smaller(hosts: Switched) -> None:
    ip("-n", hosts.netns("b"), "link", "set", "ft", "mtu", "1500")
    assert hosts.stuck("b", "c") == {"b"}


def test_who_does_not_answer_at_all_is_not_accused(hosts: Switched) -> None:
    hosts.switch("link", "set", "port-b", "down")
    began = time.monotonic()
    assert hosts.stuck("b", "c") == set()
    assert time.monotonic() - began < 2


def test_no_such_address_here(hosts: Switched) -> None:
    with pytest.raises(OSError, match="assign"):
        pings.stuck("192.0.2.1", [ADDRESS["b"]], 1500)
