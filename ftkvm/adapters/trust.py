"""One side of mutual TLS that lives: contexts that take a renewed certificate and a new revocation list while in use.

Nothing is restarted for it, and connections that are open go on: a VM's protection never hangs on a renewal.
"""

import logging
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from ftkvm.adapters import pki
from ftkvm.adapters.local_file import remove_durably, rename_durably
from ftkvm.adapters.pki import TlsFiles, write_private
from ftkvm.catalogue import FtkvmError
from ftkvm.core.trust import Identity, require_valid

log = logging.getLogger(__name__)
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which ``ssl`` has no name."""


class Trust:
    """The files of one host, as contexts and as a judge of certificates.

    Servers let an expired or revoked certificate of our authority through the handshake, and refuse its holder right
    after, since only then can the reason be said and logged. Clients refuse in the handshake: before anything is sent.

    safety: a revocation list that is there and cannot be read is not taken for none. Until a good one is found (on the
    datastore, where the agent looks at its start and every 30 s; or `ftkvm host add`) nobody's certificate counts.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._lock = threading.Lock()
        self._servers: list[ssl.SSLContext] = []
        self._clients: list[ssl.SSLContext] = []
        self._revoked: frozenset[str] = frozenset()
        self._number = -1
        self._unreadable = ""
        try:
            self._read_list()
        except (OSError, ValueError) as error:
            self._unreadable = str(error) or type(error).__name__
            log.error("%s: %s; nobody is trusted until there is a good one", self.files.revoked, self._unreadable)
        self._seen = self._stamp()

    # contexts

    def server_context(self) -> ssl.SSLContext:
        """For a listening socket; the client must show a certificate of our authority.

        :raises OSError: a file is missing or no good
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= _NO_CHECK_TIME
        context.sslobject_class = _LoudObject
        context.load_cert_chain(str(self.files.certificate), str(self.files.key))
        context.load_verify_locations(str(self.files.authority))
        self._servers.append(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For connections we open.

        :raises OSError: a file is missing or no good
        """
        context = self.files.client_context(with_list=not self._unreadable)
        if self._unreadable:
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF  # and no list: it refuses everybody
        self._clients.append(context)
        return context

    # judging

    def peer(self, transport_object: Any) -> Identity:
        """Who is at the other end of a connection (its ``ssl_object``), if the certificate counts.

        :raises FtkvmError: FTKVM-322 expired, FTKVM-323 revoked, FTKVM-324 nobody we know, FTKVM-337 it cannot be told
        """
        if self._unreadable:
            raise FtkvmError("FTKVM-337", path=self.files.revoked, detail=self._unreadable)
        raw = transport_object.getpeercert(binary_form=True) if transport_object is not None else None
        try:
            identity = pki.identity_of(raw or b"")
        except ValueError as error:
            raise FtkvmError("FTKVM-324", who="a client", detail=f"its certificate says nothing: {error}") from error
        require_valid(identity, self._revoked, time.time())
        return identity

    def own(self) -> Identity:
        """What this host's own certificate says.

        :raises OSError, ValueError: it cannot be read
        """
        return pki.identity_of(self.files.certificate.read_bytes())

    @property
    def revoked(self) -> frozenset[str]:
        """Serial numbers that count no more, hex."""
        return self._revoked

    @property
    def list_number(self) -> int:
        """The number of the revocation list in force; -1: none was ever made."""
        return self._number

    # changes

    def request(self) -> bytes:
        """A request to certify a new key of this host, which stays here; the certificate in use is not touched."""
        key, request = pki.signing_request(self.own().name)
        write_private(_new(self.files.key), key)
        return request

    def install(self, certificate: bytes) -> Identity:
        """Take a certificate for the key of the last :meth:`request`, from now on.

        :raises FtkvmError: FTKVM-330, it is not for that key, not of our authority, or not of this host
        """
        try:
            identity, own = pki.identity_of(certificate), self.own()
            key = _new(self.files.key).read_bytes()
            good = pki.fits_key(certificate, key) and pki.issued_by(certificate, self.files.authority.read_bytes())
            require_valid(identity, self._revoked, time.time())
        except (OSError, ValueError, FtkvmError) as error:
            raise FtkvmError("FTKVM-330", detail=str(error) or type(error).__name__) from error
        if not good or (identity.name, identity.role) != (own.name, own.role):
            raise FtkvmError("FTKVM-330", detail="it is for another key, another host, or of another authority")
        write_private(_new(self.files.certificate), certificate)  # from here on it is decided: see finish_renewal
        finish_renewal(self.files)
        self.refresh()
        return identity

    def take_list(self, content: bytes) -> bool:
        """Take a revocation list, if it is newer than ours; whether it was.

        :raises FtkvmError: FTKVM-333, it is none, or of another authority
        """
        try:
            number, _serials = pki.read_revoked(content, self.files.authority.read_bytes())
        except (OSError, ValueError) as error:
            raise FtkvmError("FTKVM-333", detail=str(error) or type(error).__name__) from error
        with self._lock:
            if number <= self._number:
                return False
            write_private(self.files.revoked, content)
        self.refresh()
        return True

    def list_text(self) -> str:
        """The revocation list in force, PEM; empty: none."""
        try:
            return self.files.revoked.read_text()
        except FileNotFoundError:
            return ""

    def refresh(self) -> None:
        """Look whether files changed, and have all contexts use them for connections from now on. Never raises."""
        with self._lock:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            try:
                for context in (*self._servers, *self._clients):
                    context.load_cert_chain(str(self.files.certificate), str(self.files.key))
                self._read_list()
                if self.files.revoked.exists():
                    for context in self._clients:
                        context.load_verify_locations(cafile=str(self.files.revoked))
                        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            except (OSError, ValueError) as error:  # half written by somebody: the contexts keep what they have
                log.error("certificates: %s; going on with those from before", error or type(error).__name__)
                return
            self._seen = stamp
            log.info("certificates: taken anew")

    def _read_list(self) -> None:
        if self.files.revoked.exists():
            authority = self.files.authority.read_bytes()
            self._number, self._revoked = pki.read_revoked(self.files.revoked.read_bytes(), authority)
            self._unreadable = ""

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        found = []
        for path in (self.files.certificate, self.files.key, self.files.revoked):
            try:
                seen = path.stat()
                found.append((seen.st_mtime_ns, seen.st_ino))
            except OSError:
                found.append((0, 0))
        return tuple(found)


def finish_renewal(files: TlsFiles) -> None:
    """Put a renewed key and certificate in their places. Run again after a crash or a power loss it ends right.

    The new certificate's file is written last, and each file is on the disk before it has its name, so where it is, its
    key is whole: either there or in place already. What does not fit (a file that came back empty, a preparation over
    SSH that was cut off: it uses the same names) is thrown away, and what is in use stays in use.

    :raises OSError: the disk refuses
    """
    new_key, new_certificate = _new(files.key), _new(files.certificate)
    if not new_certificate.exists():
        return
    if not _fit(new_certificate, new_key if new_key.exists() else files.key):
        log.error("%s: not a certificate for the key beside it; going on with those from before", new_certificate)
        remove_durably(new_certificate)
        remove_durably(new_key)
        return
    if new_key.exists():
        rename_durably(new_key, files.key)  # on the disk before the next: it says that this one was done
    rename_durably(new_certificate, files.certificate)


def _fit(certificate: Path, key: Path) -> bool:
    try:
        return pki.fits_key(certificate.read_bytes(), key.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


class _LoudObject(ssl.SSLObject):
    """Logs a refused client: asyncio drops such connections without a word."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            log.warning("a client was refused: %s", error.verify_message)
            raise
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.warning("a client was refused: %s", error.reason or error)
            raise
