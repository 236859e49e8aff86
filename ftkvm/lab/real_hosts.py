"""From bare machines to a protected VM: the commands of the README's section for real hosts, and nothing else.

``make kvm`` takes them out of README.md word for word and runs them at the operator's seat of a lab of bare hosts
(:mod:`ftkvm.lab.vm.bare`). What an operator brings is brought: ``ftkvm`` and ``ssh`` as the seat has them, and a VM's
definition, ``vm1.xml``. The report's ``commands`` has the seconds here of each; ``commands_s`` is their sum.
"""

import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import demo, names, operator
from ftkvm.lab.guest import domain
from ftkvm.lab.stage import Stage

TREE = Path(__file__).parents[2]
README = TREE / "README.md"
HEADING = "## On real hosts"
SEAT = names.OPERATOR / "seat"
"""Where the commands are run: the operator's directory."""
COMMAND_TIMEOUT_S = 3600.0
SSH_S = 10.0
"""For sshd to answer, in the hosts' time."""


def commands(readme: str, hosts: Sequence[str] | None = None) -> list[str]:
    """Those of the section's first fenced block, a line each; of the lines that add hosts only those of ``hosts``.

    :raises IndexError: there is no such section, or no block in it
    """
    section = readme.split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    lines = [line for line in section.split("\n```\n")[1].splitlines() if line.strip()]
    return [line for line in lines if hosts is None or set(hosts_in([line])) <= set(hosts)]


def phases(lines: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """What comes before FT is turned on, the command that does it, and the rest.

    :raises ValueError: none does
    """
    words = [line.split()[:2] for line in lines]
    at = words.index(["ftkvm", "enable"])
    return list(lines[:at]), lines[at], list(lines[at + 1 :])


def hosts_in(lines: Sequence[str]) -> list[str]:
    """The hosts that the commands add."""
    return [line.split()[3] for line in lines if line.startswith("ftkvm host add ")]


# --------------------------------------------------------------------------------------------------- what is brought


def prepare_seat(stage: Stage) -> domain.Guest:
    """The operator's directory: the two programs on their path, and the VM that they want to protect."""
    programs = SEAT / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    python = f"PYTHONPATH={shlex.quote(str(TREE))} exec {shlex.quote(sys.executable)} -m ftkvm.cli"
    ssh = f"exec /usr/bin/ssh -o ConnectTimeout={SSH_S * stage.patience:.0f} -F {operator.SSH_CONFIG}"
    for name, words in {"ftkvm": python, "ssh": ssh}.items():
        (programs / name).write_text(f'#!/bin/sh\n{words} "$@"\n')
        (programs / name).chmod(0o755)
    files = domain.install_files()
    disk = f"{stage.datastore}/images/{demo.VM}.qcow2"
    guest = domain.Guest(demo.VM, str(uuid.uuid4()), domain.FIRST_NUMBER, disk)
    (SEAT / f"{demo.VM}.xml").write_text(domain.domain_xml(guest, files, demo.GUEST_MEMORY_MIB, 1, kvm=True))
    return guest


def environment(stage: Stage) -> dict[str, str]:
    """The operator's, who has our programs on their path."""
    there = stage.environment()
    return {**there, "PATH": f"{SEAT / 'bin'}:{there['PATH']}", "PYTHONUNBUFFERED": "1"}


# ------------------------------------------------------------------------------------------------------- what is done


@dataclass
class Seat:
    """The operator's, where commands are typed; what each took is kept."""

    stage: Stage
    say: Callable[[str], None]
    took: list[dict[str, Any]] = field(default_factory=list)

    def type(self, line: str) -> None:
        """One command, what it says told as it comes; a line that starts with ``$`` shows it.

        :raises FtkvmError: FTKVM-709, it failed
        """
        self.say(f"$ {line}")
        started, said = time.monotonic(), ""
        words = operator.command(["timeout", str(COMMAND_TIMEOUT_S), "sh", "-c", line])
        with subprocess.Popen(
            words, cwd=SEAT, env=environment(self.stage), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for text in process.stdout:
                self.say(f"  {text.rstrip()[:200]}")
                said = (said + text)[-1500:]
        self.took.append({"command": line, "seconds": round(time.monotonic() - started, 1)})
        if process.returncode:
            raise FtkvmError("FTKVM-709", command=line, detail=f"status {process.returncode}: {said.strip()}")
        self.say(f"done in {self.took[-1]['seconds']} s")

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {"commands": self.took, "commands_s": round(sum(each["seconds"] for each in self.took), 1)}
