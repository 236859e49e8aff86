"""What somebody with a valid certificate, or with the datastore in their hands, can send: refused, and nothing else."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from starlette.testclient import TestClient

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.pki import Authority, TlsFiles, write_private
from ftkvm.adapters.trust import Trust
from ftkvm.agent.beat_keys import Keyring
from ftkvm.agent.cluster import ClusterReader, commit_config
from ftkvm.agent.cluster_settings import ClusterSettings
from ftkvm.agent.cluster_view import ClusterView
from ftkvm.agent.context import AgentContext
from ftkvm.agent.health import Health
from ftkvm.agent.operations import Operations
from ftkvm.agent.security import Security
from ftkvm.agent.service import Service
from ftkvm.agent.upgrade_room import UpgradeRoom
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.api.app import build_app
from ftkvm.api.cluster import router as cluster_router
from ftkvm.api.security import router as security_router
from ftkvm.catalogue import CATALOGUE, FtkvmError
from ftkvm.cli.main import main
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.core.checks.domain import Rules, VmFacts
from ftkvm.core.trust import Role
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Json, PeerUnreachable

schemathesis = pytest.importorskip("schemathesis", reason="`make setup` installs it")
ROOT = Path(__file__).parents[2]
XXE = """<?xml version="1.0"?><!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/shadow">]>
<domain><name>&x;</name><memory unit='KiB'>1024</memory></domain>"""
LEVELS = "".join(f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 20}'>" for n in range(12))
LAUGHS = f"<!DOCTYPE d [<!ENTITY a '{'ha' * 50}'>{LEVELS}]><domain><name>&m;</name></domain>"


class RefusingLibvirt:
    """A libvirt that answers every call with a refusal."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refuse(*_arguments: object, **_more: object) -> Any:
            raise FtkvmError("FTKVM-106", host="h1", detail=f"{name}: refused")

        return refuse


class NobodyElse:
    """The other hosts do not answer."""

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        raise PeerUnreachable("FTKVM-202", host=host, detail="made up")


class NoKeeper:
    def set_keys(self, keys: BeatKeys) -> None:
        """It takes all."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="module")
def context(place: Path) -> AgentContext:
    (place / "ds").mkdir()
    datastore = DirectoryDatastore(place / "ds", "h1")
    datastore.initialise()
    hosts = {name: HostEntry(name, "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=1) for name in ("h1", "h2")}
    assert commit_config(datastore, ClusterConfig(1, "lab", hosts, {}))
    workers = Workers()
    config = HostConfig("h1", "127.0.0.1", "127.0.0.1", "127.0.0.1", place / "ds", paths=Paths(place))
    reader = ClusterReader(datastore, workers, place / "cache.json")
    libvirt = cast(Any, RefusingLibvirt())
    return AgentContext(config, "boot", datastore, NobodyElse(), libvirt, workers, reader)


@pytest.fixture(scope="module")
def app(context: AgentContext, place: Path) -> Any:
    """The whole API but for the pairs' and HA's own, on a real datastore; no other host answers."""
    operations = Operations("h1", context.workers, place / "operations")
    operations.load()
    vms = Vms(context, operations)
    service = Service(context, vms, operations)
    changing = ClusterSettings(context, vms, service.admission)
    authority = Authority.create("test")
    pair = authority.issue("h1", role=Role.HOST)
    files = TlsFiles.in_directory(place, "host")
    for path, content in ((files.authority, authority.certificate), (files.certificate, pair.certificate),
                          (files.key, pair.key)):  # fmt: skip
        write_private(path, content)
    write_private(place / "beat.key", BeatKeys(0, bytes(32)).text().encode())
    keyring = Keyring("h1", place / "beat.key", context.datastore, context.workers, context.cluster, context.peers,
                      NoKeeper(), lambda _keys: None)  # fmt: skip
    security = Security(context, Trust(files), keyring)
    room = UpgradeRoom(context, vms, service.admission)
    routers = [cluster_router(changing, ClusterView(context, service, changing), room), security_router(security)]
    context.datastore.replace("vms/u1/vm.json", VmRecord("u1", "vm1", False, {}, {}).to_json())
    context.datastore.replace_text("vms/u1/domain.xml", "<domain><name>vm1</name></domain>")
    return build_app(service, Health(context), routers)


def require_told(status: int, text: str) -> None:
    """An answer is a document of ours; what nobody foresaw is a fault."""
    document = json.loads(text)
    assert isinstance(document, dict)
    if status >= 400:
        code = document["error"]["code"]
        assert code in CATALOGUE
        assert code != "FTKVM-900", document


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=str)
def test_whatever_fits_the_document_or_not_is_answered(app: Any, place: Path, mode: Any) -> None:
    """Every route of the OpenAPI document, with values that fit its schema and with values that do not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    routes = [found.ok() for found in schema.get_all_operations()]
    assert len(routes) > 30
    asked: set[str] = set()

    for route in routes:
        try:
            strategy = route.as_strategy(generation_mode=mode)

            @given(case=strategy)
            @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def ask(case: Any) -> None:
                answer = case.call()
                asked.add(route.label)  # noqa: B023
                require_told(answer.status_code, answer.text)

            ask()
        except Unsatisfiable:  # nothing of this route can be wrong
            continue
    assert len(asked) > len(routes) / 2
    assert {path.name for path in place.iterdir()} <= MADE
    assert {path.name for path in (place / "ds").iterdir()} == {".ftkvm"}


MADE = {"beat.key", "ds", "operations", "cache.json", "ca.crt", "host.crt", "host.key", "host.key.new", "run"}
HOSTILE = ["..", "../../../etc/passwd", "%2e%2e%2f", "a;touch /tmp/ftkvm-was-here", "$(id)", "`id`", "a\nb", "\x00",
           "-x", "a" * 5000, "ü/..", "{uuid}", "%s%n"]  # fmt: skip


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_reach_nothing(app: Any, place: Path, word: str) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    before = sorted(str(path) for path in (place / "ds").rglob("*"))
    for path in ("/v1/vms/{}/start", "/v1/local/vms/{}/stop", "/v1/hosts/{}/maintenance", "/v1/vms/{}/settings"):
        answer = client.post(path.format(word.replace("\n", "%0a").replace("\x00", "%00")), json={"on": True})
        require_told(answer.status_code, answer.text)
        assert answer.status_code >= 400
    fence = client.post("/v1/hosts/h2/fence", json={"parameters": {"agent": word}})
    assert fence.status_code == 409, fence.text
    assert sorted(str(path) for path in (place / "ds").rglob("*")) == before
    assert {path.name for path in place.iterdir()} <= MADE
    assert not Path("/tmp/ftkvm-was-here").exists()


@given(body=st.one_of(st.binary(max_size=300), st.just(b"[" * 100_000), st.just(b'{"a":' * 50_000),
                      st.just(b'{"force": 1e999}'), st.just(b'"\\ud800"')))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_bodies_that_are_no_documents(app: Any, body: bytes) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.post("/v1/vms/nobody/stop", content=body, headers={"content-type": "application/json"})
    require_told(answer.status_code, answer.text)
    assert answer.status_code in (400, 404, 409)


@pytest.mark.parametrize("xml", [XXE, LAUGHS], ids=["external-entity", "billion-laughs"])
def test_a_definition_with_entities_is_no_definition(context: AgentContext, app: Any, xml: str) -> None:
    """Planted on the datastore: the VM is told to have no valid definition, and no file is read for it."""
    context.datastore.replace_text("vms/u1/domain.xml", xml)
    client = TestClient(app, raise_server_exceptions=False)
    answers = [client.post("/v1/vms/vm1/start", json={}), client.post("/v1/local/vms/u1/start", json={"owner": 0}),
               client.get("/v1/cluster/validate")]  # fmt: skip
    context.datastore.replace_text("vms/u1/domain.xml", "<domain><name>vm1</name></domain>")
    for answer in answers:
        require_told(answer.status_code, answer.text)
        assert "root:" not in answer.text
        assert "haha" not in answer.text
    with pytest.raises(Exception, match=r"undefined entity|amplification|not well-formed"):
        VmFacts.of(xml, Rules(datastore="/srv", bridge="br-vm"), {})


@pytest.mark.parametrize(
    "word", ["a;reboot", "$(id)", "`id`", "a b", "a\nb", "a'b", 'a"b', "a|b", "../a", "a/b", "ä", ""]
)
def test_host_names_are_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, word: str) -> None:
    """Before anything is read or any connection made."""
    for command in (["host", "add", word], ["cert", "issue", word, "--role", "viewer", "--directory", str(tmp_path)]):
        assert main(command) == 2
        assert "FTKVM-605" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_shell_is_built_from_input() -> None:
    """What runs on a host or at the operator starts programs with lists of words; only hostprep speaks to a shell (SSH
    has nothing else), and there each value is quoted or was checked to be a name."""
    found = []
    for part in ("agent", "adapters", "api", "cli", "core", "engine", "hold", "keeper"):
        for path in (ROOT / "ftkvm" / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    shell = any(word.arg == "shell" for word in node.keywords)
                    if shell or called in ("os.system", "os.popen", "subprocess.getoutput", "eval", "exec"):
                        found.append(f"{path}:{node.lineno}")
    assert found == []
