"""The cluster's configuration as an agent sees it: read from the datastore, kept locally for when that hangs."""

import json
import logging
import threading
import time
from pathlib import Path

from ftkvm.agent import numbered
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostEntry
from ftkvm.ports import CorruptFile, Datastore, DatastoreError, Json, WorkTimeout

log = logging.getLogger(__name__)
_READ_TIMEOUT_S = 0.7
_FRESH_S = 2.0


def latest_config(datastore: Datastore) -> ClusterConfig | None:
    """The newest version of the configuration on the datastore, or None if there is no cluster yet. Blocks.

    safety: a newest version that is not understood is never passed over for an older one.

    :raises CorruptFile: FTKVM-305, it is damaged, or of a newer ftkvm
    """
    version = numbered.newest(datastore.list("config"))
    if not version:
        return None
    path = numbered.path_of("config", version)
    document = datastore.read_json(path)
    return understood(path, document, ClusterConfig.from_json) if document is not None else None


def commit_config(datastore: Datastore, config: ClusterConfig) -> bool:
    """Publish ``config`` as the version it names; False if another change took that number. Blocks."""
    wanted = config.to_json()
    there = datastore.create_once(numbered.path_of("config", config.version), wanted)
    return {key: there.get(key) for key in wanted} == wanted


class ClusterReader:
    """Gives the configuration at once; goes to the datastore at most every two seconds and never waits long for it."""

    def __init__(self, datastore: Datastore, workers: Workers, cache: Path) -> None:
        self._datastore = datastore
        self._workers = workers
        self._cache = cache
        self._lock = threading.Lock()
        self._config: ClusterConfig | None = None
        self._read_at = float("-inf")

    def current(self, *, fresh: bool = False) -> ClusterConfig:
        """The newest configuration known.

        :param fresh: ask the datastore now, even if it was asked a moment ago
        :raises FtkvmError: FTKVM-602, none is known (no cluster, or the datastore has not answered since the boot);
            FTKVM-305, none is known and the newest one cannot be read
        """
        with self._lock:
            if fresh or time.monotonic() - self._read_at > _FRESH_S:
                self._refresh()
            if self._config is None:
                raise FtkvmError("FTKVM-602")
            return self._config

    def hosts(self) -> dict[str, HostEntry]:
        """All hosts of the cluster by name."""
        return self.current().hosts

    def host(self, name: str) -> HostEntry:
        """One host.

        :raises FtkvmError: FTKVM-201, no such host
        """
        entry = self.hosts().get(name) or self.current(fresh=True).hosts.get(name)
        if entry is None:
            raise FtkvmError("FTKVM-201", host=name)
        return entry

    def knows(self, name: str) -> bool:
        """Whether a name is a host of the configuration last read. Never waits."""
        config = self._config
        return config is not None and name in config.hosts

    def require_member(self, name: str) -> None:
        """A certificate's name is a host of the cluster; while no configuration is known the certificate suffices.

        :raises FtkvmError: FTKVM-324
        """
        try:
            self.host(name)
        except FtkvmError as error:
            if error.code == "FTKVM-201":
                raise FtkvmError("FTKVM-324", who=name, detail="it was removed, or never joined") from error

    def _refresh(self) -> None:
        self._read_at = time.monotonic()
        try:
            config = self._workers.run_alone(
                lambda: latest_config(self._datastore), _READ_TIMEOUT_S, "read configuration"
            )
        except (DatastoreError, CorruptFile, WorkTimeout) as error:
            log.warning("cluster configuration: %s; going on with what is known", error)
            config = self._config or self._read_cache()
            if config is None and isinstance(error, CorruptFile):
                raise
            self._read_at = time.monotonic() + 3.0  # storage that hangs is not asked again and again
        if config is not None and config != self._config:
            self._config = config
            self._write_cache(config.to_json())

    def _read_cache(self) -> ClusterConfig | None:
        try:
            return ClusterConfig.from_json(json.loads(self._cache.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("no cached configuration: %s", error)
            return None

    def _write_cache(self, document: Json) -> None:
        try:
            temporary = self._cache.with_suffix(".tmp")
            temporary.write_text(json.dumps(document))
            temporary.replace(self._cache)
        except OSError as error:
            log.warning("cannot keep a copy of the configuration: %s", error)
