"""The keeper's unix socket: JSON lines from several clients, never blocking for any of them."""

import json
import logging
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 1024
BACKLOG_LIMIT = 256 * 1024
"""Bytes kept for a client that does not read; with more it is dropped (it reconnects and gets the state anew)."""


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.subscribed = False
        self.received = b""
        self.unsent = b""


class ClientServer:
    """``handle(request, client)`` answers each request; a dict is sent back as one line."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, handle: Callable[[Json, Client], Json]) -> None:
        self._selector = selector
        self._handle = handle
        self.clients: set[Client] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(16)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        client = Client(sock)
        self.clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(client, mask))

    def _ready(self, client: Client, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self.send(client, b"")
        if mask & selectors.EVENT_READ and client in self.clients:
            self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, client.received = (client.received + data).split(b"\n")
        if not data or len(client.received) > LINE_LIMIT:
            self._drop(client)
            return
        for line in lines:
            if client in self.clients:
                self.send_json(client, self._answer(line, client))

    def _answer(self, line: bytes, client: Client) -> Json:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")
            return self._handle(request, client)
        except ValueError as error:
            return {"ok": False, "error": str(error)}

    def send_json(self, client: Client, doc: Json) -> None:
        self.send(client, json.dumps(doc, separators=(",", ":")).encode() + b"\n")

    def send(self, client: Client, data: bytes) -> None:
        """Send, or keep what does not fit; a client with too much kept is dropped."""
        client.unsent += data
        try:
            client.unsent = client.unsent[client.sock.send(client.unsent) :] if client.unsent else b""
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.unsent) > BACKLOG_LIMIT:
            log.warning("a client does not read what it subscribed to: dropped")
            self._drop(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        key = self._selector.get_key(client.sock)
        if key.events != wanted:
            self._selector.modify(client.sock, wanted, key.data)

    def _drop(self, client: Client) -> None:
        self.clients.discard(client)
        self._selector.unregister(client.sock)
        client.sock.close()
