"""Who gets into an agent's API, over real TLS on this machine: roles, ends, revocation, renewal, sizes and rates."""

import http.client
import json
import logging
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI

from ftkvm.adapters import pki
from ftkvm.adapters.peers import HttpsPeers
from ftkvm.adapters.pki import Authority, KeyPair, TlsFiles, write_private
from ftkvm.adapters.trust import Trust, finish_renewal
from ftkvm.api import guard
from ftkvm.api.guard import RATES, Hosts
from ftkvm.api.server import ApiServer
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role
from ftkvm.ports import PeerUnknown, PeerUnreachable

MEMBERS = {"host1", "host2"}


@dataclass
class Stage:
    """host1's agent, listening, and what its requests did."""

    root: Path
    authority: Authority
    trust: Trust
    entry: HostEntry
    done: list[str]

    def client(self, name: str, role: Role, days: float = 30, authority: Authority | None = None) -> HttpsPeers:
        pair = (authority or self.authority).issue(name, ("127.0.0.1",), role=role, days=days)
        return self.peers(files_of(self.root / f"{name}-{time.monotonic_ns()}", self.authority, pair))

    def peers(self, files: TlsFiles) -> HttpsPeers:
        return HttpsPeers(lambda _host: self.entry, files.client_context())


def files_of(directory: Path, authority: Authority, pair: KeyPair) -> TlsFiles:
    directory.mkdir(parents=True)
    files = TlsFiles.in_directory(directory, "host")
    for path, content in ((files.authority, authority.certificate), (files.certificate, pair.certificate),
                          (files.key, pair.key)):  # fmt: skip
        write_private(path, content)
    return files


def application(done: list[str]) -> FastAPI:
    app = FastAPI()

    @app.api_route("/v1/{path:path}", methods=["GET", "POST"])
    def anything(path: str) -> dict[str, str]:
        done.append(path)
        return {"path": path}

    return app


def require_member(name: str) -> None:
    if name not in MEMBERS:
        raise FtkvmError("FTKVM-324", who=name, detail="it was removed, or never joined")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    yield from _stage(tmp_path, RATES)


@pytest.fixture
def slow_stage(tmp_path: Path) -> Iterator[Stage]:
    """An agent that answers a viewer 20 times at once, and then twice a second."""
    yield from _stage(tmp_path, {**RATES, Role.VIEWER: (2.0, 20.0)})


def _stage(tmp_path: Path, rates: Mapping[Role, tuple[float, float]]) -> Iterator[Stage]:
    authority, done = Authority.create("test"), list[str]()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    pair = authority.issue("host1", ("127.0.0.1",), role=Role.HOST)
    trust = Trust(files_of(tmp_path / "host1", authority, pair))
    hosts = Hosts(lambda _name: False, require_member)
    server = ApiServer(application(done), trust, port, hosts, "127.0.0.1", rates)
    server.start()
    entry = HostEntry("host1", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=port)
    yield Stage(tmp_path, authority, trust, entry, done)
    server.stop()


def refused(peers: HttpsPeers, code: str, method: str = "GET", path: str = "/v1/health") -> FtkvmError:
    with pytest.raises(FtkvmError) as caught:
        peers.call("host1", method, path, {} if method == "POST" else None)
    assert caught.value.code == code, caught.value
    return caught.value


# ------------------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize(("role", "method", "path", "allowed"), [
    (Role.VIEWER, "GET", "/v1/vms", True),
    (Role.VIEWER, "POST", "/v1/cluster/what-if", True),
    (Role.VIEWER, "POST", "/v1/cluster/upgrade-room", True),
    (Role.VIEWER, "POST", "/v1/vms/vm1/stop", False),
    (Role.OPERATOR, "POST", "/v1/vms/vm1/stop", True),
    (Role.OPERATOR, "POST", "/v1/hosts/host1/maintenance", True),
    (Role.OPERATOR, "POST", "/v1/hosts/host1/fence", False),
    (Role.OPERATOR, "POST", "/v1/cluster/settings", False),
    (Role.OPERATOR, "POST", "/v1/security/revoked", False),
    (Role.ADMINISTRATOR, "POST", "/v1/cluster/settings", True),
    (Role.ADMINISTRATOR, "POST", "/v1/security/revoked", True),
    (Role.ADMINISTRATOR, "GET", "/v1/local/ha", True),
    (Role.ADMINISTRATOR, "POST", "/v1/local/vms/u/start", False),  # secondaries are not driven directly (OP-04)
    (Role.ADMINISTRATOR, "POST", "/v1/peer/pairs/u/destroy", False),
    (Role.HOST, "POST", "/v1/peer/pairs/u/destroy", True),
    (Role.HOST, "POST", "/v1/peer/beat-keys", True),
    (Role.ADMINISTRATOR, "POST", "/v1/peer/beat-keys", False),
    (Role.VIEWER, "POST", "/v1/peer/beat-keys", False),
    (Role.ADMINISTRATOR, "POST", "/v1/security/beat-keys", True),
    (Role.OPERATOR, "POST", "/v1/security/beat-keys", False),
    (Role.HOST, "POST", "/v1/security/beat-keys", False),
    (Role.HOST, "GET", "/v1/health", True),
    (Role.HOST, "POST", "/v1/cluster/settings", False),
    (Role.HOST, "POST", "/v1/security/certificate", False),
    (Role.HOST, "POST", "/v1/vms/vm1/stop", False),
])  # fmt: skip
def test_what_a_role_may_do(stage: Stage, role: Role, method: str, path: str, allowed: bool) -> None:
    peers = stage.client("host2", role)
    if allowed:
        peers.call("host1", method, path, {} if method == "POST" else None)
        assert len(stage.done) == 1
    else:
        refused(peers, "FTKVM-325", method, path)
        assert stage.done == []


# ------------------------------------------------------------------------------------------ who is not let in


def test_an_expired_client_is_told_why_and_it_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    for role in Role:
        error = refused(stage.client("host2", role, days=-3), "FTKVM-322", "POST", "/v1/local/vms/u/start")
        assert "ended 3 days ago" in error.text
    assert stage.done == []
    assert "host2 (host) is refused" in caplog.text


def test_a_revoked_client_is_told_why(stage: Stage) -> None:
    pair = stage.authority.issue("host2", role=Role.HOST)
    peers = stage.peers(files_of(stage.root / "mine", stage.authority, pair))
    peers.call("host1", "GET", "/v1/health")
    assert stage.trust.take_list(stage.authority.revoke([pki.identity_of(pair.certificate).serial], 1))
    refused(peers, "FTKVM-323")
    stage.client("host2", Role.HOST).call("host1", "GET", "/v1/health")  # its new one counts
    assert len(stage.done) == 2


def test_an_open_connection_of_a_revoked_client_is_refused_too(stage: Stage) -> None:
    pair = stage.authority.issue("eve", role=Role.ADMINISTRATOR)
    context = files_of(stage.root / "eve", stage.authority, pair).client_context()
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", stage.entry.api_port, context=context, timeout=5)
    connection.request("GET", "/v1/health")
    assert connection.getresponse().read() == b'{"path":"health"}'
    stage.trust.take_list(stage.authority.revoke([pki.identity_of(pair.certificate).serial], 1))
    connection.request("GET", "/v1/health")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (403, "FTKVM-323")
    connection.close()


def test_another_clusters_client_is_not_let_in_and_it_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    peers = stage.client("host2", Role.HOST, authority=Authority.create("other"))
    with pytest.raises((PeerUnreachable, PeerUnknown)):
        peers.call("host1", "POST", "/v1/peer/pairs/u/destroy", {})
    assert stage.done == []
    assert "a client was refused" in caplog.text


def test_a_client_without_a_certificate_is_not_let_in(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(cafile=str(stage.trust.files.authority))
    context.check_hostname = False
    with pytest.raises((ssl.SSLError, OSError)):
        connection = http.client.HTTPSConnection("127.0.0.1", stage.entry.api_port, context=context, timeout=5)
        connection.request("GET", "/v1/health")
        connection.getresponse()
    assert stage.done == []
    assert "a client was refused" in caplog.text


def test_a_host_that_was_removed_is_refused(stage: Stage) -> None:
    refused(stage.client("host3", Role.HOST), "FTKVM-324", "POST", "/v1/local/vms/u/start")
    assert stage.done == []


def test_a_server_that_expired_or_is_revoked_is_not_asked(stage: Stage) -> None:
    files = stage.trust.files
    client = files_of(stage.root / "client", stage.authority, stage.authority.issue("op", role=Role.ADMINISTRATOR))
    before = pki.identity_of(files.certificate.read_bytes())
    old = stage.authority.issue("host1", ("127.0.0.1",), role=Role.HOST, days=-1)
    write_private(files.key, old.key)
    write_private(files.certificate, old.certificate)
    stage.trust.refresh()
    assert "expired" in refused(stage.peers(client), "FTKVM-321").text
    new = stage.authority.issue("host1", ("127.0.0.1",), role=Role.HOST)
    write_private(files.key, new.key)
    write_private(files.certificate, new.certificate)
    stage.trust.refresh()
    stage.peers(client).call("host1", "GET", "/v1/health")
    serial = pki.identity_of(new.certificate).serial
    write_private(client.revoked, stage.authority.revoke([before.serial, serial], 1))
    assert "revoked" in refused(stage.peers(client), "FTKVM-321").text
    assert stage.done == ["health"]


def test_contexts_in_use_learn_of_a_revocation(stage: Stage) -> None:
    mine = Trust(files_of(stage.root / "h2", stage.authority, stage.authority.issue("host2", role=Role.HOST)))
    peers = HttpsPeers(lambda _host: stage.entry, mine.client_context())
    peers.call("host1", "GET", "/v1/health")
    mine.take_list(stage.authority.revoke(["123"], 1))
    peers.call("host1", "GET", "/v1/health")  # a list that does not name it changes nothing
    mine.take_list(stage.authority.revoke([stage.trust.own().serial], 2))
    refused(peers, "FTKVM-321")


def test_an_older_list_or_a_forged_one_is_not_taken(stage: Stage) -> None:
    old, new = stage.authority.revoke(["1"], 1), stage.authority.revoke(["1", "2"], 2)
    assert stage.trust.take_list(new)
    assert not stage.trust.take_list(old)
    assert stage.trust.revoked == {"1", "2"}
    for forged in (Authority.create("test").revoke([], 9), b"", b"-----BEGIN X509 CRL-----\nxx\n", b"\x00" * 5000):
        with pytest.raises(FtkvmError) as caught:
            stage.trust.take_list(forged)
        assert caught.value.code == "FTKVM-333"
    assert stage.trust.revoked == {"1", "2"}


# ------------------------------------------------------------------------------------------------------ renewal


def test_renewing_changes_what_the_running_server_shows(stage: Stage) -> None:
    before = stage.trust.own()
    request = stage.trust.request()
    assert stage.trust.own() == before  # until it is installed nothing changes
    certificate = stage.authority.sign(request, "host1", ("127.0.0.1",), days=90)
    stage.trust.install(certificate)
    after = stage.trust.own()
    assert after.serial != before.serial
    context = files_of(
        stage.root / "c", stage.authority, stage.authority.issue("op", role=Role.VIEWER)
    ).client_context()
    with (
        socket.create_connection(("127.0.0.1", stage.entry.api_port), 5) as raw,
        context.wrap_socket(raw, server_hostname="host1") as tls,
    ):
        assert pki.identity_of(tls.getpeercert(binary_form=True) or b"").serial == after.serial


def test_only_the_certificate_that_was_asked_for_is_taken(stage: Stage) -> None:
    before = stage.trust.own()
    request = stage.trust.request()
    other_key = pki.signing_request("host1")[1]
    addresses = ("127.0.0.1",)
    for wrong in (
        stage.authority.sign(other_key, "host1", addresses),
        Authority.create("test").sign(request, "host1", addresses),
        stage.authority.sign(request, "host1", addresses, days=-1),
        stage.authority.issue("host1", addresses, role=Role.ADMINISTRATOR).certificate,
        b"nonsense",
    ):
        with pytest.raises(FtkvmError) as caught:
            stage.trust.install(wrong)
        assert caught.value.code == "FTKVM-330"
    assert stage.trust.own() == before
    with pytest.raises(ValueError, match="not a signing request"):
        stage.authority.sign(request, "host2", addresses)


@pytest.mark.parametrize("moved", [[], ["key"], ["key", "crt"]])
def test_a_renewal_that_was_cut_off_ends_right(tmp_path: Path, moved: list[str]) -> None:
    authority = Authority.create("test")
    files = files_of(tmp_path / "h", authority, authority.issue("host1", role=Role.HOST))
    new = authority.issue("host1", role=Role.HOST)
    write_private(files.key.with_name("host.key.new"), new.key)
    write_private(files.certificate.with_name("host.crt.new"), new.certificate)
    for end in moved:  # what had been done before the power went
        (tmp_path / "h" / f"host.{end}.new").replace(tmp_path / "h" / f"host.{end}")
    finish_renewal(files)
    assert pki.fits_key(files.certificate.read_bytes(), files.key.read_bytes())
    assert files.certificate.read_bytes() == new.certificate
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == ["ca.crt", "host.crt", "host.key"]


@pytest.mark.parametrize("damaged", ["host.crt.new", "host.key.new"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN", b"\x00" * 200])
def test_half_a_renewal_is_thrown_away_and_what_was_in_use_stays(tmp_path: Path, damaged: str, content: bytes) -> None:
    """Files that came back empty after a power loss, or of a preparation over SSH that was cut off (the same names)."""
    authority = Authority.create("test")
    files = files_of(tmp_path / "h", authority, authority.issue("host1", role=Role.HOST))
    before = files.certificate.read_bytes(), files.key.read_bytes()
    new = authority.issue("host1", role=Role.HOST)
    write_private(tmp_path / "h/host.key.new", new.key)
    write_private(tmp_path / "h/host.crt.new", new.certificate)
    (tmp_path / "h" / damaged).write_bytes(content)
    finish_renewal(files)
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == before
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == ["ca.crt", "host.crt", "host.key"]
    assert pki.unusable(files) is None


def test_a_key_that_was_only_asked_for_waits_for_its_certificate(tmp_path: Path) -> None:
    authority = Authority.create("test")
    files = files_of(tmp_path / "h", authority, authority.issue("host1", role=Role.HOST))
    trust = Trust(files)
    request = trust.request()
    finish_renewal(files)  # the agent was started again in between
    trust.install(authority.sign(request, "host1", ()))
    assert pki.unusable(files) is None


@pytest.mark.parametrize("content", [b"", b"-----BEGIN X509 CRL-----\n", b"\x00" * 100])
def test_with_a_damaged_revocation_list_nobody_is_trusted_until_a_good_one_is_found(
    stage: Stage, content: bytes
) -> None:  # fmt: skip
    eve = stage.authority.issue("eve", role=Role.ADMINISTRATOR)
    good = stage.authority.revoke([pki.identity_of(eve.certificate).serial], 3)
    host2 = files_of(stage.root / "h2", stage.authority, stage.authority.issue("host2", role=Role.HOST))
    host2.revoked.write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    damaged = Trust(host2)
    server = ApiServer(
        application(stage.done), damaged, port, Hosts(lambda _n: True, require_member), "127.0.0.1", RATES
    )
    server.start()
    entry = HostEntry("host2", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=port)
    callers = [
        HttpsPeers(lambda _host: entry, files_of(stage.root / name, stage.authority, pair).client_context())
        for name, pair in (("eve", eve), ("op", stage.authority.issue("op", role=Role.ADMINISTRATOR)))
    ]
    outgoing = HttpsPeers(lambda _host: stage.entry, damaged.client_context())
    try:
        for peers in callers:
            with pytest.raises(FtkvmError) as caught:
                peers.call("host2", "GET", "/v1/health")
            assert caught.value.code == "FTKVM-337"
            assert "crl.pem" in caught.value.text
        refused(outgoing, "FTKVM-321")
        assert stage.done == []
        assert damaged.take_list(good)
        with pytest.raises(FtkvmError) as caught:
            callers[0].call("host2", "GET", "/v1/health")
        assert caught.value.code == "FTKVM-323"
        callers[1].call("host2", "GET", "/v1/health")
        outgoing.call("host1", "GET", "/v1/health")
        assert len(stage.done) == 2
    finally:
        server.stop()


def test_a_half_written_file_leaves_the_contexts_as_they_are(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    peers = stage.client("op", Role.VIEWER)
    stage.trust.files.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    stage.trust.refresh()
    assert "going on with those from before" in caplog.text
    peers.call("host1", "GET", "/v1/health")


# ---------------------------------------------------------------------------------------------- sizes and rates


def raw_request(stage: Stage, head: bytes, body: bytes = b"") -> tuple[int, str]:
    """(HTTP status, our code) of a request written by hand."""
    name = f"raw-{time.monotonic_ns()}"
    context = files_of(stage.root / name, stage.authority, stage.authority.issue("op", role=Role.ADMINISTRATOR))
    with (
        socket.create_connection(("127.0.0.1", stage.entry.api_port), 5) as raw,
        context.client_context().wrap_socket(raw, server_hostname="host1") as tls,
    ):
        tls.sendall(head + b"\r\n\r\n" + body)
        answer = http.client.HTTPResponse(tls)
        answer.begin()
        text = answer.read().decode()
    return answer.status, json.loads(text)["error"]["code"] if text.startswith("{") else text


def test_a_body_that_is_too_large_is_refused(stage: Stage) -> None:
    head = b"POST /v1/vms/vm1/stop HTTP/1.1\r\nHost: host1\r\nContent-Length: %d"
    assert raw_request(stage, head % (guard.MAX_BODY_BYTES + 1)) == (413, "FTKVM-326")
    assert raw_request(stage, head % 10**15) == (413, "FTKVM-326")
    assert raw_request(stage, head % 10**30)[0] == 400
    chunk = b"%x\r\n%s\r\n" % (65536, b"x" * 65536)
    chunked = b"POST /v1/vms/vm1/stop HTTP/1.1\r\nHost: host1\r\nTransfer-Encoding: chunked"
    assert raw_request(stage, chunked, chunk * 17 + b"0\r\n\r\n") == (413, "FTKVM-326")
    assert stage.done == []


def test_a_body_as_large_as_allowed_is_taken(stage: Stage) -> None:
    stage.client("op", Role.OPERATOR).call("host1", "POST", "/v1/vms/a/stop", {"x": "y" * (guard.MAX_BODY_BYTES - 100)})
    assert stage.done == ["vms/a/stop"]


def test_no_http_at_all(stage: Stage) -> None:
    assert raw_request(stage, b"\x00\x01\x02 nonsense")[0] == 400
    assert raw_request(stage, b"GET /v1/health HTTP/1.1\r\nX: " + b"a" * 100_000)[0] in (400, 431)
    assert stage.done == []


def test_who_asks_too_often_waits_and_others_do_not(slow_stage: Stage) -> None:
    peers = slow_stage.client("eve", Role.VIEWER)
    before = time.monotonic()
    with pytest.raises(FtkvmError) as caught:
        for _number in range(200):
            peers.call("host1", "GET", "/v1/health")
    assert caught.value.code == "FTKVM-327"
    assert 20 <= len(slow_stage.done) <= 21 + 2 * (time.monotonic() - before)
    slow_stage.client("op", Role.VIEWER).call("host1", "GET", "/v1/health")
    time.sleep(0.6)
    peers.call("host1", "GET", "/v1/health")


def test_refusals_are_logged_with_who_and_what(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    refused(stage.client("eve", Role.VIEWER), "FTKVM-325", "POST", "/v1/vms/vm1/stop")
    assert "refused POST /v1/vms/vm1/stop from 127.0.0.1: FTKVM-325: eve (viewer)" in caplog.text
