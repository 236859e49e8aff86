"""What HA saw and did, for people: into the journal at once, and onto the datastore when that lets us."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from ftkvm.core.ha.model import Event
from ftkvm.ports import Datastore, Json

log = logging.getLogger(__name__)
_WAITING = 500
_SHOWN = 50
_RETRY_S = 2.0


class History:
    """One writer per file: ``history/<host>.jsonl``. While the datastore hangs, so many events wait and no more."""

    def __init__(self, datastore: Datastore, host: str, wall: Callable[[], float] = time.time) -> None:
        self._datastore = datastore
        self._host = host
        self._wall = wall
        self._queue: queue.Queue[Json] = queue.Queue(_WAITING)
        self._recent: deque[Json] = deque(maxlen=_SHOWN)

    def start(self) -> None:
        threading.Thread(target=self._run, name="ha-history", daemon=True).start()

    def tell(self, event: Event) -> None:
        """Note an event; never waits."""
        log.warning("%s: %s", event.kind, event.text)
        document: Json = {"at": self._wall(), "by": self._host, "event": event.kind, "text": event.text}
        document |= {"host": event.host} if event.host else {}
        document |= {"vm": event.vm} if event.vm else {}
        document |= {"detail": dict(event.detail)} if event.detail else {}
        self._recent.append(document)
        try:
            self._queue.put_nowait(document)
        except queue.Full:
            log.error("the datastore does not take the history: an event is in the journal only")

    def recent(self) -> list[Json]:
        """The newest events, newest last."""
        return list(self._recent)

    def _run(self) -> None:
        while True:
            document = self._queue.get()
            while True:
                try:
                    self._datastore.append_line(f"history/{self._host}.jsonl", document)
                    break
                except Exception as error:
                    log.warning("history: %s", error)
                    time.sleep(_RETRY_S)
