"""The units' confinement: systemd understands it, and none of it needs a mount name space of its own."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hostprep.units import AGENT, HOLD, KEEPER, UNIT_FILES

NAMES = [path.rpartition("/")[2] for path in UNIT_FILES]
MAKES_A_MOUNT_NAMESPACE = re.compile(
    r"(Private(?!Users)\w+|Protect(System|Home|Hostname|Control\w+|Kernel\w+|Proc|Clock)|ProcSubset|\w+Paths|Bind\w+"
    r"|\w+FileSystem|MountFlags|MountAPIVFS|RootDirectory|RootImage|DynamicUser|DevicePolicy|DeviceAllow)"
)


def directives(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.mark.parametrize("path", UNIT_FILES)
def test_systemd_understands_the_units(tmp_path: Path, path: str) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-container, which `make setup` installs, brings systemd"
    for each, text in UNIT_FILES.items():
        (tmp_path / each.rpartition("/")[2]).write_text(text)
    file = tmp_path / path.rpartition("/")[2]
    done = subprocess.run([analyze, "verify", "--man=no", file], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if file.name in line] == []


@pytest.mark.parametrize("text", UNIT_FILES.values(), ids=NAMES)
def test_a_daemon_is_started_whatever_the_datastore_does(text: str) -> None:
    """A mount name space is made of a copy of all the host's mounts; one of them may hang, and with it the start.
    Nor are devices kept from it: a watchdog that cannot be opened ends no host."""
    assert [name for name in directives(text) if MAKES_A_MOUNT_NAMESPACE.fullmatch(name)] == []


@pytest.mark.parametrize("text", UNIT_FILES.values(), ids=NAMES)
def test_every_daemon_is_confined(text: str) -> None:
    found = directives(text)
    on = ("NoNewPrivileges", "RestrictSUIDSGID", "RestrictNamespaces", "LockPersonality")
    assert [found[name] for name in on] == ["yes"] * len(on)
    assert "@mount" in found["SystemCallFilter"] and found["SystemCallFilter"].startswith("~")
    assert found["CapabilityBoundingSet"]


def test_what_each_needs_is_left() -> None:
    agent = directives(AGENT)["CapabilityBoundingSet"]
    assert agent.startswith("~")
    for needed in (
        "KILL",
        "CHOWN",
        "DAC_OVERRIDE",
        "NET_RAW",
        "SYS_PTRACE",
        "SYSLOG",
        "SYS_NICE",
        "SETUID",
    ):
        assert f"CAP_{needed} " not in agent + " ", needed
    assert "RestrictRealtime" not in directives(KEEPER)
    assert {"CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_NET_ADMIN"} <= set(directives(KEEPER)["CapabilityBoundingSet"].split())
    assert "CAP_NET_ADMIN" in directives(HOLD)["CapabilityBoundingSet"]
