"""Which hosts a secondary could be made on, by whether they are reached over the FT network."""

import socket
from pathlib import Path
from typing import Any, cast

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cluster import ClusterReader, commit_config
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ft_network import reached, unreached
from ftkvm.agent.workers import Workers
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths


def test_reached_and_not(tmp_path: Path) -> None:
    datastore = DirectoryDatastore(tmp_path / "ds", "h1")
    datastore.root.mkdir()
    datastore.initialise()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as gone:
        ports = {"h1": 1, "h2": listening.getsockname()[1], "h3": gone.getsockname()[1]}
        gone.close()
        hosts = {
            name: HostEntry(name, "127.0.0.1", "127.0.0.1", "127.0.0.1", api_port=port) for name, port in ports.items()
        }
        assert commit_config(datastore, ClusterConfig(1, "lab", hosts, {}))
        workers, nobody = Workers(), cast(Any, None)
        reader = ClusterReader(datastore, workers, tmp_path / "cache.json")

        def context(ft: str) -> AgentContext:
            config = HostConfig("h1", "127.0.0.1", ft, "127.0.0.1", tmp_path / "ds", paths=Paths(tmp_path))
            return AgentContext(config, "boot", datastore, nobody, nobody, workers, reader)

        here = context("127.0.0.1")
        assert reached(here, ["h2", "h3", "left the cluster"]) == {"h2"}
        assert unreached(here, "h2") is None
        error = unreached(here, "h3")
        assert error is not None and error.code == "FTKVM-405"
        assert reached(context("192.0.2.1"), ["h2", "h3"]) == frozenset(), "our own FT address is gone"
