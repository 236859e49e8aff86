"""Finds an agent that lives and talks to it; hosts that died silently cost no more than a second."""

import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from urllib.parse import quote

from ftkvm.adapters.peers import HttpsPeers
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.output import Reporter
from ftkvm.cli.patience import stretched
from ftkvm.config import HostEntry
from ftkvm.home import ClusterFile, Home
from ftkvm.ports import Json, PeerUnknown, PeerUnreachable

_FIND_TIMEOUT_S = 3.0
_POLL_S = 0.15
_PATIENCE_S = 20.0
"""How long an operation whose host does not answer is waited for."""


class AgentClient:
    """Requests to the cluster, through whichever agent answers first."""

    def __init__(self, home: Home | None = None) -> None:
        self.home = home or Home()
        self.cluster: ClusterFile = self.home.load()
        if not self.cluster.hosts:
            raise FtkvmError("FTKVM-608")
        self._peers = HttpsPeers(self._entry, self.home.client_context())
        self._agent: str | None = None

    def _entry(self, host: str) -> HostEntry:
        # one address only: from the operator's network the FT network is usually not reachable
        entry = self.cluster.entry(host)
        return replace(entry, ft=entry.management)

    def call(self, method: str, path: str, json: Json | None = None, timeout_s: float = 20.0) -> Json:
        """Ask an agent; when the one found before is gone, the next.

        :raises FtkvmError: its message; FTKVM-607 none answers; FTKVM-211 no answer, outcome unknown
        """
        for _attempt in range(2):
            agent = self._agent or self._find()
            try:
                return self._peers.call(agent, method, path, json, stretched(timeout_s))
            except PeerUnreachable as error:
                if error.params.get("host") != agent:
                    raise
                self._agent = None
            except PeerUnknown:
                self._agent = None
                if method != "GET":
                    raise
        raise FtkvmError("FTKVM-607", cluster=self.cluster.cluster, hosts=", ".join(sorted(self.cluster.hosts)))

    def ask(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 10.0) -> Json:
        """Ask one host's agent, and no other.

        :raises FtkvmError: its message; FTKVM-202, 321 it is not reached; FTKVM-211 outcome unknown
        """
        return self._peers.call(host, method, path, json, stretched(timeout_s))

    def _find(self) -> str:
        """The first agent that answers and is well; else one that answers at all."""
        names = sorted(self.cluster.hosts)
        pool = ThreadPoolExecutor(len(names))
        futures: dict[Future[Json], str] = {pool.submit(self._health, name): name for name in names}
        answering = None
        try:
            for future in as_completed(futures, stretched(_FIND_TIMEOUT_S)):
                if future.exception() is None:
                    answering = answering or futures[future]
                    if not future.result()["error"]:
                        answering = futures[future]
                        break
        except FutureTimeout:
            pass
        pool.shutdown(wait=False, cancel_futures=True)
        if answering is None:
            raise FtkvmError("FTKVM-607", cluster=self.cluster.cluster, hosts=", ".join(names))
        self._agent = answering
        return answering

    def _health(self, host: str) -> Json:
        return self._peers.call(host, "GET", "/v1/health", None, stretched(_FIND_TIMEOUT_S))

    def wait(self, operation: Json, reporter: Reporter) -> Json:
        """Follow an operation to its end; returns it when it is done.

        :raises FtkvmError: it failed or was interrupted; FTKVM-502 its host is gone
        """
        deadline = time.monotonic() + stretched(_PATIENCE_S)
        with reporter.progress(f"{operation['kind']} {operation['vm']}") as show:
            while True:
                show(int(operation["step"]), int(operation["steps"]), str(operation["text"]))
                if operation["state"] == "done":
                    return operation
                if operation["state"] != "running":
                    raise FtkvmError.from_json(operation["error"])
                time.sleep(_POLL_S)
                try:
                    operation = self.call("GET", f"/v1/operations/{quote(str(operation['id']))}", timeout_s=5.0)
                    deadline = time.monotonic() + stretched(_PATIENCE_S)
                except FtkvmError as error:
                    if error.code not in ("FTKVM-202", "FTKVM-211", "FTKVM-607") or time.monotonic() > deadline:
                        raise
