"""``python3 -m ftkvm.agent.join``: enter a host into the cluster's configuration on the datastore.

Run on the host by hostprep, with a JSON document on standard input: ``{"cluster", "id", "datastore", "host": {"name",
…}, "first": bool, "settings": {}}``. ``first`` allows making a new cluster on the datastore. Idempotent.

With ``--ask`` nothing is changed: exit status 0, the host is in that cluster; 3, it is not; another, nobody knows.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cluster import commit_config, latest_config
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostEntry
from ftkvm.ports import Datastore, Json

ID_SETTING = "cluster.id"
_ATTEMPTS = 20
ASK = "--ask"
NOT_IN = 3


def join(datastore: Datastore, wish: Json) -> ClusterConfig:
    """Enter the host, unless it is there already; the configuration it is in is returned.

    :raises FtkvmError: FTKVM-609 another cluster's datastore, FTKVM-610 no cluster on it, FTKVM-219 the name has
        another address, FTKVM-242 the address is another host's, FTKVM-606
    """
    for _attempt in range(_ATTEMPTS):
        before = latest_config(datastore)
        after = entered(before, wish)
        if after == before or commit_config(datastore, after):
            return after
    raise FtkvmError("FTKVM-606")


def entered(config: ClusterConfig | None, wish: Json) -> ClusterConfig:
    """The configuration with the host in it; the same one if it is in it already. Pure. ``config`` None: no cluster.

    :raises FtkvmError: as :func:`join`
    """
    name = str(wish["host"]["name"])
    entry = HostEntry.from_json(name, wish["host"])
    if config is None:
        if not wish["first"]:
            raise FtkvmError("FTKVM-610", host=name, path=wish["datastore"], cluster=wish["cluster"])
        settings = {**wish.get("settings", {}), ID_SETTING: wish["id"]}
        config = ClusterConfig(0, str(wish["cluster"]), {}, settings)
    if config.settings.get(ID_SETTING) != wish["id"]:
        raise FtkvmError("FTKVM-609", path=wish["datastore"], cluster=config.cluster)
    there = config.hosts.get(name)
    if there is not None:  # prepared again: what was set since stays
        entry = replace(entry, maintenance=there.maintenance, fence=there.fence)
    if there == entry:
        return config
    if there is not None:
        raise FtkvmError("FTKVM-219", host=name, there=there.management, given=entry.management)
    _require_own_addresses(entry, config)
    hosts, order = {**config.hosts, name: entry}, (*config.joined(), name)
    removed = {other: boot for other, boot in config.removed.items() if other != name}
    return replace(config, version=config.version + 1, hosts=hosts, order=order, removed=removed)


def _require_own_addresses(entry: HostEntry, config: ClusterConfig) -> None:
    """A machine is in the cluster once.

    safety: under a second name its agent would own nothing of what it runs under the first, and the first, silent from
    then on, would be taken for lost.
    """
    for other in config.hosts.values():
        for network in ("management", "ft", "migration"):
            if getattr(other, network) == getattr(entry, network):
                raise FtkvmError(
                    "FTKVM-242", host=entry.name, network=network, address=getattr(entry, network), other=other.name
                )


def is_in(config: ClusterConfig | None, wish: Json) -> bool:
    """Whether nothing is left to do. Pure."""
    try:
        return config is not None and entered(config, wish) == config
    except FtkvmError:  # it is another host, or another cluster
        return False


def main() -> int:
    """Read the wish, join, print the version; a failure is printed as one line on standard error."""
    wish = json.load(sys.stdin)
    datastore = DirectoryDatastore(Path(wish["datastore"]), str(wish["host"]["name"]))
    try:
        if ASK in sys.argv[1:]:
            return 0 if is_in(latest_config(datastore), wish) else NOT_IN
        if wish["first"]:
            datastore.initialise()
        config = join(datastore, wish)
    except FtkvmError as error:
        print(json.dumps({"error": error.to_json()}), file=sys.stderr)
        return 1
    print(json.dumps({"version": config.version}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
