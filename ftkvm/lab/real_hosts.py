"""From bare machines to a protected VM: the commands of the README's section for real hosts, and nothing else.

``python -m ftkvm.lab.real_hosts`` takes them out of README.md word for word and runs them at the operator's seat of a
lab of bare hosts (:mod:`ftkvm.lab.vm.bare`). What an operator brings is brought: ``ftkvm`` and ``ssh`` as the seat has
them, and a VM's definition, ``vm1.xml``. Then the primary's host loses its power while a client is connected. Figures:
build/real-hosts.json; ``commands`` has the seconds here of each, all else is in the hosts' time.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import demo, lab, names, operator
from ftkvm.lab.client import Capture, CounterClient, GapProbe, LedgerClient, wait_for_guest
from ftkvm.lab.demo import Clients, Story
from ftkvm.lab.guest import domain
from ftkvm.lab.stage import Stage

TREE = Path(__file__).parents[2]
README = TREE / "README.md"
HEADING = "## On real hosts"
REPORT = Path("build/real-hosts.json")
SEAT = names.OPERATOR / "seat"
"""Where the commands are run: the operator's directory."""
HOSTS = 3
COMMAND_TIMEOUT_S = 3600.0
SSH_S = 10.0
"""For sshd to answer, in the hosts' time."""


def commands(readme: str) -> list[str]:
    """Those of the section's first fenced block, a line each.

    :raises ValueError: there is no such section, or no block in it
    """
    section = readme.split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    return [line for line in section.split("\n```\n")[1].splitlines() if line.strip()]


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


def run(stage: Stage, story: Story, line: str) -> float:
    """One command, what it says told as it comes; the seconds it took here.

    :raises FtkvmError: FTKVM-709, it failed
    """
    story.chapter(f"$ {line}")
    started, said = time.monotonic(), ""
    with subprocess.Popen(
        operator.command(["timeout", str(COMMAND_TIMEOUT_S), "sh", "-c", line]), cwd=SEAT, env=environment(stage),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for text in process.stdout:
            story.say(f"  {text.rstrip()[:200]}")
            said = (said + text)[-1500:]
    took_s = time.monotonic() - started
    if process.returncode:
        raise FtkvmError("FTKVM-709", command=line, detail=f"status {process.returncode}: {said.strip()}")
    story.say(f"done in {took_s:.1f} s")
    return took_s


def play(stage: Stage, story: Story, lines: Sequence[str]) -> None:
    """The block, then a host's loss."""
    guest = prepare_seat(stage)
    took: list[dict[str, Any]] = []
    for line in lines:
        took.append({"command": line, "seconds": round(run(stage, story, line), 1)})
        story.note(commands=took, commands_s=round(sum(each["seconds"] for each in took), 1))
    pair = stage.wait_protected(demo.VM, demo.PROTECT_TIMEOUT_S)
    story.note(kvm="yes", protected={key: pair.get(key) for key in ("state", "host", "secondary_host", "epoch")})
    story.say(f"{demo.VM} is protected: primary on {pair['host']}, secondary on {pair['secondary_host']}; the "
              f"commands took {story.figures['commands_s']} s here")  # fmt: skip
    wait_for_guest(guest.address, 60 * stage.patience)
    with connected(stage, guest) as clients:
        clients.wait_progress(10 * stage.patience)
        story.stream()
        demo.lose_primary(stage, story, clients, guest)
        acknowledged = demo.end_streams(story, clients)
    demo.prove(stage, story, acknowledged)


@contextmanager
def connected(stage: Stage, guest: domain.Guest) -> Iterator[Clients]:
    """The demo's clients."""
    with (
        CounterClient(guest.address) as counter,
        GapProbe(guest.address) as probe,
        LedgerClient(guest.address, every_s=0.01) as records,
        Capture(list(stage.hosts)) as capture,
    ):
        yield Clients(counter, probe, records, capture)


def main(words: Sequence[str]) -> int:
    """A lab of bare hosts from nothing, the block, the loss, the report; 0 when all held."""
    parser = argparse.ArgumentParser(prog="python -m ftkvm.lab.real_hosts", description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, choices=[2, 3], default=HOSTS, help="2: without the third host's command")
    asked = parser.parse_args(words)
    lines = commands(README.read_text())
    mine = hosts_in(lines)[: asked.hosts]
    lines = [line for line in lines if not line.startswith("ftkvm host add ") or hosts_in([line])[0] in mine]
    story = Story(REPORT)

    def tell() -> None:
        story.chapter("The lab: bare hosts, an NFS server, a Debian mirror")
        lab.down(story.say)
        lab.up(len(mine), None, story.say, lab.VMS, bare=True)
        story.time_dilation = lab.record().time_dilation
        story.note(hosts_as=lab.VMS, hosts=len(mine), bare=True, time_dilation=story.time_dilation)
        story.note(lab_s=round(time.monotonic() - story.started, 1))
        play(Stage(tuple(mine), time_dilation=story.time_dilation), story, lines)

    return demo.told(story, tell)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
