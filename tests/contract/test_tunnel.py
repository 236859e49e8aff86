"""The tunnel between two hosts' libvirtds over real TLS: who gets through, and what happens when an end is lost."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkvm.adapters.pki import Authority, TlsFiles, write_private
from ftkvm.adapters.trust import Trust
from ftkvm.adapters.tunnel import Tunnel, TunnelServer
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role


def _files(directory: Path, authority: Authority, name: str) -> TlsFiles:
    directory.mkdir(parents=True, exist_ok=True)
    pair = authority.issue(name, ("127.0.0.1",), role=Role.HOST)
    write_private(directory / "ca.crt", authority.certificate)
    write_private(directory / "host.crt", pair.certificate)
    write_private(directory / "host.key", pair.key)
    return TlsFiles.in_directory(directory, "host")


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Path]:
    """A unix socket that answers what it is told, in capitals."""
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _address = server.accept()
                except OSError:
                    return
                with connection:
                    while data := connection.recv(1000):
                        connection.sendall(data.upper())

        threading.Thread(target=serve, daemon=True).start()
        yield path


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test")


@pytest.fixture
def host2(tmp_path: Path, authority: Authority, echo: Path) -> Iterator[HostEntry]:
    """host2 listens; it lets host1 in and nobody else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    files = _files(tmp_path / "host2", authority, "host2")
    server = TunnelServer(Trust(files), "127.0.0.1", port, lambda name: name == "host1", echo)
    server.start()
    yield HostEntry("host2", "127.0.0.1", "127.0.0.1", "127.0.0.1", tunnel_port=port)
    server.stop()


def _ask(path: Path, word: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(word)
        return client.recv(1000)


def test_what_goes_in_comes_out(tmp_path: Path, authority: Authority, host2: HostEntry) -> None:
    files = _files(tmp_path / "host1", authority, "host1")
    with Tunnel(host2, files, tmp_path / "out.sock") as tunnel:
        assert _ask(tunnel.path, b"hello") == b"HELLO"
        assert _ask(tunnel.path, b"again") == b"AGAIN"
    assert not (tmp_path / "out.sock").exists()


def test_a_name_that_is_no_host_is_refused(tmp_path: Path, authority: Authority, host2: HostEntry) -> None:
    files = _files(tmp_path / "operator", authority, "operator")
    with Tunnel(host2, files, tmp_path / "out.sock") as tunnel:
        assert _ask(tunnel.path, b"hello") == b""


def test_another_clusters_certificate_is_refused(tmp_path: Path, host2: HostEntry) -> None:
    files = _files(tmp_path / "host1", Authority.create("other"), "host1")
    with pytest.raises(FtkvmError) as caught, Tunnel(host2, files, tmp_path / "out.sock"):
        pass
    assert caught.value.code == "FTKVM-202"


def test_a_host_that_does_not_listen_is_told_at_once(tmp_path: Path, authority: Authority) -> None:
    files = _files(tmp_path / "host1", authority, "host1")
    nowhere = HostEntry("host2", "127.0.0.1", "127.0.0.1", "127.0.0.1", tunnel_port=1)
    with pytest.raises(FtkvmError) as caught, Tunnel(nowhere, files, tmp_path / "out.sock"):
        pass
    assert caught.value.code == "FTKVM-202"
