"""This host's beat keys: taken from the operator or from another host, put on the disk, then used by HA and keeper.

safety: a host answers that it has keys only when they are on its disk, and its keeper and its HA part use them. On that
word the operator's side goes to the next step (``ftkvm/keeper/keys.py``), so a host that then loses its power, or whose
daemons are started again, still accepts what the others sign. If anything of it fails the answer is an error, and
everybody stays where they are, with keys that all accept.

The keys are never on the datastore, which is mounted elsewhere too. Only their number is: from it a host that was away
learns that there are newer ones, and asks the others for them, over TLS with certificates on both sides.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ftkvm.adapters.pki import write_private
from ftkvm.agent.cluster import ClusterReader
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.keeper import keys as files
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Datastore, Json, Peers

log = logging.getLogger(__name__)
NUMBER_FILE = "security/beat-keys.json"
_LOOK_EVERY_S = 30.0
_AGAIN_S = 4.0
"""After a look that did not end well, then twice that and so on: a host with old keys may not be heard by others."""
_ASK_TIMEOUT_S = 3.0


class Keeper(Protocol):
    """What is asked of this host's keeper (:class:`ftkvm.keeper.client.KeeperClient`)."""

    def set_keys(self, keys: BeatKeys) -> None: ...


def load(path: Path) -> BeatKeys:
    """The keys in this host's file.

    :raises FtkvmError: FTKVM-601
    """
    try:
        return files.load(path)
    except (OSError, ValueError) as error:
        raise FtkvmError("FTKVM-601", path=path, detail=str(error)) from error


class Keyring:
    """One per agent. ``use``: has the HA part sign and accept by other keys."""

    def __init__(
        self, host: str, path: Path, datastore: Datastore, workers: Workers, cluster: ClusterReader, peers: Peers,
        keeper: Keeper, use: Callable[[BeatKeys], None],
    ) -> None:  # fmt: skip
        self._host, self._path, self._use, self._keeper = host, path, use, keeper
        self._datastore, self._workers, self._cluster, self._peers = datastore, workers, cluster, peers
        self._lock = threading.Lock()
        self._keys = load(path)
        self._told_keeper = False
        self._look_at, self._again_s = float("-inf"), _AGAIN_S

    @property
    def number(self) -> int:
        """Of the keys in use."""
        return self._keys.number

    def text(self) -> str:
        """The keys themselves: for hosts of the cluster only."""
        return self._keys.text()

    def take(self, text: str) -> Json:
        """Use these keys. The same ones again are fine: whether everybody here uses them is then made sure anew.

        :raises FtkvmError: FTKVM-338 they are older than those in use, or none; FTKVM-240, 241 the keeper does not
            take them: it goes on with those of before, which count for all others as long as this is not answered
        """
        with self._lock:
            try:
                keys = BeatKeys.parse(text)
                newer = keys.require_after(self._keys)
            except ValueError as error:
                raise FtkvmError("FTKVM-338", host=self._host, detail=str(error)) from error
            if newer:
                self._told_keeper = False
                self._write(keys)
                self._keys = keys
            self._use(keys)
            self._tell_keeper()
            if newer:
                log.warning("beat keys: number %d", keys.number)
        if newer:
            self._publish(keys.number)
        return self.state()

    def state(self) -> Json:
        """The number of the keys in use; ``keeper`` false: its keeper has not confirmed them yet."""
        return {"number": self._keys.number, "keeper": self._told_keeper}

    def refresh(self) -> None:
        """Look for newer keys, and have the keeper use ours. Called every few seconds; never raises."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._again_s
        try:
            with self._lock:
                if not self._told_keeper:
                    self._tell_keeper()
            published = self._published()
            if published > self._keys.number:
                self._fetch()
            elif published < self._keys.number:
                self._publish(self._keys.number)
            self._look_at, self._again_s = now + _LOOK_EVERY_S, _AGAIN_S
        except FtkvmError as error:
            self._again_s = min(2 * self._again_s, _LOOK_EVERY_S)
            log.warning("beat keys: %s", error)

    def _write(self, keys: BeatKeys) -> None:
        try:
            write_private(self._path, keys.text().encode())  # returns when it is on the disk
        except OSError as error:
            raise FtkvmError("FTKVM-338", host=self._host, detail=str(error)) from error

    def _tell_keeper(self) -> None:
        """A keeper that is started later reads the file, which was written before."""
        self._keeper.set_keys(self._keys)
        self._told_keeper = True

    def _publish(self, number: int) -> None:
        """safety: only a hint, so one that is not written, or older than another host's, does no harm: see refresh."""
        try:
            self._workers.run(
                lambda: self._datastore.replace(NUMBER_FILE, {"number": number}), 2.0, "write the beat keys' number"
            )
        except FtkvmError as error:
            log.warning("the beat keys' number is not on the datastore: %s", error)

    def _published(self) -> int:
        document = self._workers.run_alone(
            lambda: self._datastore.read_json(NUMBER_FILE), 1.0, "read the beat keys' number"
        )
        number = (document or {}).get("number", 0)
        return number if isinstance(number, int) else 0

    def _fetch(self) -> None:
        """Take the newest that another host has; what is none of ours is refused by its number.

        :raises FtkvmError: nobody has newer ones, or they are not taken here
        """
        failed: FtkvmError | None = None
        for host in sorted(set(self._cluster.hosts()) - {self._host}):
            try:
                text = str(self._peers.call(host, "POST", "/v1/peer/beat-keys", {}, _ASK_TIMEOUT_S)["keys"])
                if BeatKeys.parse(text).number > self._keys.number:
                    self.take(text)
                    log.warning("beat keys: taken from %s", host)
                    return
            except (FtkvmError, ValueError, KeyError) as error:
                failed = FtkvmError("FTKVM-338", host=self._host, detail=f"{host}: {error}")
        raise failed or FtkvmError("FTKVM-338", host=self._host, detail="no other host has the newer ones")
