"""Two hosts as network namespaces, each with a real keeper process, for the keeper's tests. Needs root.

vm ── bridge (ftk-a) ── lan            ftk-a ══ FT network (veth) ══ ftk-b
"""

import contextlib
import ctypes
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from ftkvm.keeper.client import KeeperClient
from ftkvm.keeper.model import PairSpec, PeerSpec, Role

UUID = "7e57ed00-0000-4000-8000-000000000001"
TAP = "vmtap"
ADDRESS = {"a": "10.231.0.1", "b": "10.231.0.2"}
_CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """One line on why these tests cannot run here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None or shutil.which("nft") is None:
        return "needs the programs ip and nft"
    probe = subprocess.run(["unshare", "-n", "nft", "add", "table", "bridge", "ftkvm"], capture_output=True)
    return None if probe.returncode == 0 else "network namespaces or nftables' bridge family are missing"


needs_netns = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


Made = TypeVar("Made")


def inside(netns: str, make: Callable[[], Made]) -> Made:
    """What is made in another network namespace, by a thread that goes there; a socket stays of that one."""
    made: list[Made] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        assert libc.setns(descriptor, _CLONE_NEWNET) == 0
        os.close(descriptor)
        made.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


class World:
    """``keepers`` are processes; ``client(host)`` talks to one of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tag = f"ftk{secrets.token_hex(2)}"
        self.store = directory / "store"
        (self.store / ".ftkvm").mkdir(parents=True)
        self.keepers: dict[str, subprocess.Popen[bytes]] = {}
        self.others: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()
        key = secrets.token_hex(32)
        for host in "ab":
            ip("netns", "add", self.netns(host))
            self._stack.callback(ip, "netns", "del", self.netns(host))
            ip("-n", self.netns(host), "link", "set", "lo", "up")
            (directory / host / "run").mkdir(parents=True)
            (directory / host / "beat.key").write_text(key + "\n")
            agent = {"host": f'name = "host-{host}"', "networks": f'ft = "{ADDRESS[host]}"',
                     "datastore": f'path = "{self.store}"'}  # fmt: skip
            (directory / host / "agent.toml").write_text("\n".join(f"[{k}]\n{v}" for k, v in agent.items()))
        ip(
            "link",
            "add",
            "ft",
            "netns",
            self.netns("a"),
            "type",
            "veth",
            "peer",
            "name",
            "ft",
            "netns",
            self.netns("b"),
        )
        for host in "ab":
            ip("-n", self.netns(host), "addr", "add", f"{ADDRESS[host]}/24", "dev", "ft")
            ip("-n", self.netns(host), "link", "set", "ft", "up")

    def netns(self, host: str) -> str:
        return f"{self.tag}-{host}"

    def start(self, host: str) -> None:
        environment = os.environ | {
            "FTKVM_AGENT_TOML": str(self.directory / host / "agent.toml"),
            "FTKVM_RUN": str(self.directory / host / "run"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        log = (self.directory / host / "log").open("ab")
        self.keepers[host] = subprocess.Popen(
            ["ip", "netns", "exec", self.netns(host), sys.executable, "-m", "ftkvm.keeper"],
            env=environment, stderr=log,
        )  # fmt: skip

    def client(self, host: str) -> KeeperClient:
        return KeeperClient(self.directory / host / "run" / "keeper.sock", timeout_s=5)

    def pair(self, host: str, role: Role, epoch: int = 7, won: int | None = None) -> None:
        other = "b" if host == "a" else "a"
        peer = PeerSpec(f"host-{other}", ADDRESS[other], 7444)
        qemu = "loaded" if role == "secondary" else "running"
        self.client(host).set_pair(PairSpec(UUID, "vm1", epoch, role, peer, (TAP,), qemu, won))

    def verdict(self, host: str) -> str:
        return self.client(host).status().pairs[UUID].peer.verdict

    def gate(self, host: str) -> str:
        return self.client(host).status().pairs[UUID].gate

    def lets_out(self, host: str) -> bool:
        """Whether the kernel passes the VM's frames: what nftables has now, whatever the keeper thinks or is."""
        show = ["ip", "netns", "exec", self.netns(host), "nft", "list", "set", "bridge", "ftkvm", "open"]
        said = subprocess.run(show, check=True, capture_output=True, text=True, timeout=10).stdout
        return f'"{TAP}"' in said

    def signal(self, host: str, number: signal.Signals) -> None:
        self.keepers[host].send_signal(number)

    def link(self, state: str, host: str = "b") -> None:
        ip("-n", self.netns(host), "link", "set", "ft", state)

    def protected(self) -> None:
        """Both keepers run, a is primary, b secondary, and a's gate is open."""
        for host, role in (("a", "primary"), ("b", "secondary")):
            self.start(host)
            self.pair(host, "primary" if role == "primary" else "secondary")
        until(lambda: self.gate("a") == "open")

    def add_vm_network(self) -> None:
        """A bridge in host a with the VM's port and a port to the LAN; both far ends in namespaces of their own."""
        ip("-n", self.netns("a"), "link", "add", "vmbr", "type", "bridge")
        ip("-n", self.netns("a"), "link", "set", "vmbr", "up")
        for number, (name, port) in enumerate((("vm", TAP), ("lan", "lanport")), start=1):
            ip("netns", "add", self.netns(name))
            self._stack.callback(ip, "netns", "del", self.netns(name))
            ip("link", "add", "eth", "netns", self.netns(name), "type", "veth",
               "peer", "name", port, "netns", self.netns("a"))  # fmt: skip
            ip("-n", self.netns("a"), "link", "set", port, "master", "vmbr", "up")
            ip("-n", self.netns(name), "addr", "add", f"10.232.0.{number}/24", "dev", "eth")
            ip("-n", self.netns(name), "link", "set", "eth", "up")

    def close(self) -> None:
        for process in [*self.keepers.values(), *self.others]:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(10)
        self._stack.close()


@contextlib.contextmanager
def world(directory: Path) -> Iterator[World]:
    made = World(directory)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> float:
    """Wait for the condition; returns how long that took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, "it did not come true in time"
        time.sleep(0.005)
    return time.monotonic() - began


class Traffic:
    """The VM broadcasts a numbered datagram every 5 ms; the LAN notes when each was sent and arrived."""

    def __init__(self, made: World) -> None:
        def sender() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return sock

        def receiver() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", 5555))
            sock.settimeout(0.1)
            return sock

        self._out, self._in = inside(made.netns("vm"), sender), inside(made.netns("lan"), receiver)
        self.sent: list[float] = []
        self.arrived: list[float] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ending.wait(0.005):
            at = time.monotonic()
            self.sent.append(at)  # before it is: it must not arrive unknown
            try:
                self._out.sendto(repr(at).encode(), ("10.232.0.255", 5555))
            except OSError:
                self.sent.pop()

    def _receive(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                self.arrived.append(float(self._in.recv(100)))

    def flows(self, within_s: float = 0.2) -> bool:
        since = time.monotonic()
        time.sleep(within_s)
        return any(sent >= since for sent in self.arrived)

    def last(self) -> float:
        """When the last datagram that arrived was sent."""
        return self.arrived[-1] if self.arrived else 0.0

    def longest_gap(self, since: float) -> float:
        times = [since, *[sent for sent in self.arrived if sent >= since]]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()
