"""ports.Peers over real HTTPS on this machine: who gets in, and what is known when there is no answer."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from ftkvm.adapters.peers import HttpsPeers
from ftkvm.adapters.pki import Authority, KeyPair, TlsFiles, write_private
from ftkvm.adapters.trust import Trust
from ftkvm.api.guard import Hosts
from ftkvm.api.server import ApiServer
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role
from ftkvm.ports import PeerUnknown, PeerUnreachable


def _files(directory: Path, authority: Authority, pair: KeyPair, name: str) -> TlsFiles:
    directory.mkdir(exist_ok=True)
    write_private(directory / "ca.crt", authority.certificate)
    write_private(directory / f"{name}.crt", pair.certificate)
    write_private(directory / f"{name}.key", pair.key)
    return TlsFiles.in_directory(directory, name)


def anybody() -> Hosts:
    return Hosts(lambda _name: True, lambda _name: None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _application() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/health")
    def health() -> dict[str, str]:
        return {"host": "host1"}

    @app.post("/v1/slow")
    def slow() -> dict[str, str]:
        time.sleep(1.5)
        return {}

    @app.get("/v1/refuse")
    def refuse() -> JSONResponse:
        return JSONResponse({"error": FtkvmError("FTKVM-101", vm="vm1").to_json()}, 404)

    return app


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("test")


@pytest.fixture(scope="module")
def entry(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostEntry]:
    found = HostEntry("host1", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=_free_port())
    pair = authority.issue("host1", ("127.0.0.1",), role=Role.HOST)
    files = _files(tmp_path_factory.mktemp("host"), authority, pair, "host")
    server = ApiServer(_application(), Trust(files), found.api_port, anybody(), "127.0.0.1")
    server.start()
    yield found
    server.stop()


def _peers(directory: Path, authority: Authority, entry: HostEntry, issuer: Authority | None = None) -> HttpsPeers:
    pair = (issuer or authority).issue("operator", role=Role.ADMINISTRATOR)
    return HttpsPeers(lambda _host: entry, _files(directory, authority, pair, "client").client_context())


def test_an_answer(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    assert _peers(tmp_path, authority, entry).call("host1", "GET", "/v1/health") == {"host": "host1"}


def test_a_refusal_comes_as_its_message(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    with pytest.raises(FtkvmError) as caught:
        _peers(tmp_path, authority, entry).call("host1", "GET", "/v1/refuse")
    assert caught.value.code == "FTKVM-101"
    assert "vm1" in caught.value.text


def test_no_answer_in_time_is_unknown(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    with pytest.raises(PeerUnknown):
        _peers(tmp_path, authority, entry).call("host1", "POST", "/v1/slow", {}, timeout_s=0.3)


def test_nobody_there_is_no_effect(tmp_path: Path, authority: Authority) -> None:
    nobody = HostEntry("host1", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=_free_port())
    with pytest.raises(PeerUnreachable) as caught:
        _peers(tmp_path, authority, nobody).call("host1", "GET", "/v1/health")
    assert caught.value.code == "FTKVM-202"


def test_the_name_in_the_certificate_counts(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    other = HostEntry("host2", entry.management, entry.ft, entry.migration, entry.api_port)
    with pytest.raises(PeerUnreachable):
        _peers(tmp_path, authority, other).call("host2", "GET", "/v1/health")


def test_a_client_of_another_authority_is_not_let_in(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    peers = _peers(tmp_path, authority, entry, issuer=Authority.create("other"))
    with pytest.raises((PeerUnreachable, PeerUnknown)):
        peers.call("host1", "GET", "/v1/health")


def test_a_server_of_another_authority_is_not_believed(tmp_path: Path, entry: HostEntry) -> None:
    other = Authority.create("other")
    with pytest.raises(PeerUnreachable):
        _peers(tmp_path, other, entry).call("host1", "GET", "/v1/health")


def test_the_second_address_is_tried(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    with socket.socket() as silent:  # bound, not listening: refuses
        silent.bind(("127.0.0.2", entry.api_port))
        cut = HostEntry("host1", "127.0.0.2", entry.ft, entry.migration, entry.api_port)
        assert _peers(tmp_path, authority, cut).call("host1", "GET", "/v1/health") == {"host": "host1"}


def test_a_dead_host_costs_little_the_second_time(tmp_path: Path, authority: Authority) -> None:
    with socket.socket() as listener:  # accepts, and never speaks TLS: as a host that died silently
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        entry = HostEntry("host1", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=int(listener.getsockname()[1]))
        peers = _peers(tmp_path, authority, entry)
        times = []
        for _attempt in range(2):
            begun = time.monotonic()
            with pytest.raises(PeerUnreachable):
                peers.call("host1", "GET", "/v1/health")
            times.append(time.monotonic() - begun)
    assert times[0] < 2.0
    assert times[1] < 0.8


def test_certificates_stay_good_only_for_what_they_name(authority: Authority) -> None:
    pair = authority.issue("host1", ("10.0.0.1", "10.0.1.1"), role=Role.HOST)
    assert authority.still_good(pair.certificate, "host1", ("10.0.1.1", "10.0.0.1"))
    assert not authority.still_good(pair.certificate, "host2", ("10.0.0.1", "10.0.1.1"))
    assert not authority.still_good(pair.certificate, "host1", ("10.0.0.1",))
    assert not Authority.create("x").still_good(pair.certificate, "host1", ("10.0.0.1", "10.0.1.1"))
    assert not authority.still_good(b"", "host1", ())


def test_private_files_are_private(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"x")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_many_at_once(tmp_path: Path, authority: Authority, entry: HostEntry) -> None:
    peers = _peers(tmp_path, authority, entry)
    seen: list[str] = []
    ask = lambda: seen.append(str(peers.call("host1", "GET", "/v1/health")["host"]))  # noqa: E731
    threads = [threading.Thread(target=ask) for _number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == ["host1"] * 20
