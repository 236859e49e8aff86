"""Power fencing by the programs of Debian's *fence-agents*: key=value lines on standard input, an exit status.

``off``: 0, the host is off. ``status``: 0 it is on, 2 it is off. All else, also a program that does not end, is not
known.
"""

import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.ports import WorkTimeout

DIRECTORY = Path("/usr/sbin")
AGENT_NAME = re.compile(r"fence_[a-z0-9_]+")
_OFF_TIMEOUT_S = 20.0
_STATUS_TIMEOUT_S = 10.0
_OFF = 2


def power_off(
    host: str, parameters: Mapping[str, str], directory: Path = DIRECTORY, off_timeout_s: float = _OFF_TIMEOUT_S
) -> None:
    """Switch ``host`` off, and see that it is off. Blocks up to 40 s.

    :param parameters: ``agent``, the program's name, and its own keys
    :raises FtkvmError: FTKVM-623, it refused, or the host is still on
    :raises WorkTimeout: FTKVM-624, it did not end in time: the host may be off or on
    """
    done = _run(host, parameters, "off", off_timeout_s, directory)
    if done.returncode:
        raise FtkvmError("FTKVM-623", host=host, agent=parameters["agent"], detail=_words(done))
    deadline = time.monotonic() + _STATUS_TIMEOUT_S
    while True:
        status = _run(host, parameters, "status", _STATUS_TIMEOUT_S, directory)
        if status.returncode == _OFF:
            return
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-623", host=host, agent=parameters["agent"], detail=f"still on; {_words(status)}")
        time.sleep(0.5)


def _run(
    host: str, parameters: Mapping[str, str], action: str, timeout_s: float, directory: Path
) -> subprocess.CompletedProcess[str]:
    agent = str(parameters.get("agent", ""))
    if not AGENT_NAME.fullmatch(agent):
        raise FtkvmError("FTKVM-623", host=host, agent=agent, detail="not the name of a fence agent")
    lines = {**{key: value for key, value in parameters.items() if key != "agent"}, "action": action}
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    try:
        return subprocess.run(
            [str(directory / agent)], input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WorkTimeout("FTKVM-624", host=host, agent=agent, seconds=f"{timeout_s:.0f}") from error
    except OSError as error:
        raise FtkvmError("FTKVM-623", host=host, agent=agent, detail=str(error)) from error


def _words(done: "subprocess.CompletedProcess[str]") -> str:
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"{said[-1][:200] if said else 'no word'} (exit status {done.returncode})"
