"""The command line without a cluster, or with one whose hosts do not answer."""

import json
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.main import main
from ftkvm.cli.patience import VARIABLE, stretched
from ftkvm.config import HostEntry
from ftkvm.home import Home

CREATE = ["cluster", "create", "lab", "--datastore", "/srv/ft", "--management-network", "10.0.0.0/24",
          "--ft-network", "10.1.0.0/24", "--migration-network", "10.2.0.0/24"]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTKVM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def change(option: str, value: str) -> list[str]:
    words = list(CREATE)
    words[words.index(option) + 1] = value
    return words


def test_create_makes_keys_that_only_the_owner_reads(home: Path) -> None:
    assert main(CREATE) == 0
    assert {path.name for path in home.iterdir()} == {
        "ca.crt", "ca.key", "client.crt", "client.key", "beat.key", "cluster.json", "certificates.json",
        ".changing"}  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    assert Home().load().ft_network == "10.1.0.0/24"


@pytest.mark.parametrize(("words", "code", "status"), [
    (change("create", "bad name"), "FTKVM-605", 2),
    (change("--datastore", "relative"), "FTKVM-605", 2),
    (change("--datastore", "/"), "FTKVM-605", 2),
    (change("--ft-network", "10.0.0.0/33"), "FTKVM-605", 2),
    (change("--ft-network", "10.1.0.1/24"), "FTKVM-605", 2),
    (change("--ft-network", "10.0.0.0/16"), "FTKVM-605", 2),
    (["vm", "list"], "FTKVM-604", 1),
    (["host", "add", "host1"], "FTKVM-604", 1),
    (["host", "add", "-x"], "", 2),
    (["host", "add", "../x"], "FTKVM-605", 2),
    (["explain", "999"], "FTKVM-903", 3),
    (["nonsense"], "", 2),
    (["vm", "register", "x"], "", 2),
])  # fmt: skip
def test_mistakes(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: str, status: int) -> None:
    assert main(words) == status
    said = capsys.readouterr().err
    assert code in said
    if code:
        assert "Cause:" in said
        assert "Remedy:" in said
    assert not home.exists()


def test_one_directory_one_cluster(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(CREATE) == 0
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    assert main(CREATE) == 1
    assert "FTKVM-603" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_no_hosts_yet(capsys: pytest.CaptureFixture[str]) -> None:
    main(CREATE)
    assert main(["status"]) == 1
    assert "FTKVM-608" in capsys.readouterr().err


def test_no_agent_answers(capsys: pytest.CaptureFixture[str]) -> None:
    main(CREATE)
    cluster = Home().load()
    for number in (1, 2):
        entry = HostEntry(f"host{number}", "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=9)
        cluster.hosts[entry.name] = entry.to_json()
    Home().save(cluster)
    capsys.readouterr()
    assert main(["vm", "list", "--output", "json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "FTKVM-607"
    assert "host1, host2" in captured.err


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "403"]) == 0
    assert "Both copies on one host" in capsys.readouterr().out
    assert main(["explain", "--output", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 50


@pytest.mark.parametrize(("said", "seconds"), [(None, 5.0), ("12", 60.0), ("1.5", 7.5)])
def test_the_command_line_is_as_patient_as_its_environment_says(
    monkeypatch: pytest.MonkeyPatch, said: str | None, seconds: float
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(VARIABLE, said)
    assert stretched(5.0) == seconds


@pytest.mark.parametrize("said", ["", "soon", "0.5", "-1", "nan", "inf", "10000"])
def test_a_patience_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(FtkvmError) as caught:
        stretched(5.0)
    assert (caught.value.code, VARIABLE in caught.value.text) == ("FTKVM-605", True)
