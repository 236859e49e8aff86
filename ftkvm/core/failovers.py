"""The failovers of one VM, out of the hosts' histories (FT-23). Pure."""

import json
from collections.abc import Mapping
from typing import Any

Entry = dict[str, Any]


def failovers(histories: Mapping[str, str], vm: str, uuid: str) -> tuple[list[Entry], dict[str, int]]:
    """The events ``failover`` of a VM, oldest first, and per file how many lines are not understood.

    A line names the VM by its UUID too; one that an older version wrote counts by its name.

    A host that loses power while it appends leaves half a line, to which the next one is joined: that is told, and
    hides nothing else.

    :param histories: per file its text, a JSON document a line
    """
    found: list[Entry] = []
    damaged: dict[str, int] = {}
    for name, text in histories.items():
        for line in filter(None, text.split("\n")):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                damaged[name] = damaged.get(name, 0) + 1
            elif entry.get("event") == "failover" and (
                entry["uuid"] == uuid if "uuid" in entry else entry.get("vm") == vm
            ):
                found.append(entry)
    return sorted(found, key=_at), damaged


def _at(entry: Entry) -> float:
    at = entry.get("at")
    return float(at) if isinstance(at, int | float) else 0.0
