"""Scenarios about hosts that need no cluster: who may join, and who can take a VM by live migration."""

from collections.abc import Iterator
from typing import Any

from ftkvm.agent.join import ID_SETTING, entered
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig
from ftkvm.core.facts import DatastoreState
from ftkvm.core.joining import Machine, addresses_in, require_may_join
from ftkvm.core.move import choose
from ftkvm.core.placement import HostFacts

_SOFTWARE = {"ftkvm": "0.1.0", "QEMU": "11.1.3", "libvirt": "11.3.0"}


def joining(cluster: dict[str, Any], script: tuple[str, ...]) -> Iterator[str]:
    """A host wants to join: lines ``NAME ADDRESS,… [WORD=VALUE]…``.

    The words: ``boot``, ``machine``, ``cluster`` (ids), ``ftkvm``, ``QEMU``, ``libvirt`` (versions).
    """
    config: ClusterConfig | None = None
    there: list[Machine] = []
    for line in script:
        yield f"> {line}"
        name, addresses, *rest = line.split()
        words = dict(word.split("=", 1) for word in rest)
        versions = {what: words.get(what, version) for what, version in _SOFTWARE.items()}
        new = Machine(name, words.get("boot", f"boot of {name}"), words.get("machine", f"id of {name}"), versions)
        try:
            found = addresses_in(name, addresses.split(","), cluster["networks"])
            wish = {"cluster": "lab", "id": words.get("cluster", "lab"), "datastore": "/srv/ftkvm",
                    "first": config is None, "host": {"name": name, **found}}  # fmt: skip
            after = entered(config, wish)
            if config is None or name not in config.hosts:
                require_may_join(new, there)
        except FtkvmError as error:
            yield f"refused: {error}"
            continue
        config, there = after, [each for each in there if each.name != name] + [new]
        yield f"configuration {config.version} of cluster {config.settings[ID_SETTING]}: {', '.join(config.joined())}"


def migration(cluster: dict[str, Any], script: tuple[str, ...]) -> Iterator[str]:
    """Lines ``VM HOST``: which host takes a VM that runs on HOST, and why the others cannot."""
    hosts = [
        HostFacts(
            each["name"], bool(each.get("alive", True)), DatastoreState(each.get("datastore", "ok")),
            each.get("qemu", _SOFTWARE["QEMU"]), _SOFTWARE["libvirt"], each.get("cpu", "one"), each["memory_mb"],
            maintenance=bool(each.get("maintenance", False)), bridges=frozenset(each.get("bridges", ["br-vm"])),
        )
        for each in cluster["host"]
    ]  # fmt: skip
    vms = {each["name"]: each for each in cluster["vm"]}
    for line in script:
        name, source = line.split()
        vm = vms[name]
        xml = (f"<domain><memory unit='KiB'>{vm['memory_mb'] * 1024}</memory><devices><interface type='bridge'>"
               f"<source bridge='{vm.get('bridge', 'br-vm')}'/></interface></devices></domain>")  # fmt: skip
        target, why = choose(hosts, source, xml)
        yield f"> {line}"
        yield f"{name} goes to {target}" if target is not None else f"{name} stays on {source}"
        for host, reasons in sorted(why.items()):
            yield f"  not to {host}: {', '.join(reasons)}"
