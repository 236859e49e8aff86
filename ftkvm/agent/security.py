"""This host's certificate and the revocation list: told, renewed and spread without a restart of anything."""

import logging
import time

from ftkvm.adapters.trust import Trust
from ftkvm.agent.beat_keys import Keyring
from ftkvm.agent.context import AgentContext
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.host import CertificateSigns, judge_certificate
from ftkvm.core.checks.model import Severity
from ftkvm.core.trust import ALARM_DAYS
from ftkvm.ports import Json

log = logging.getLogger(__name__)
LIST_FILE = "security/revoked.pem"
_LIST_EVERY_S = 30.0
_ALARM_EVERY_S = 3600.0


class Security:
    """What the API and the checks ask about certificates; :meth:`refresh` is called every few seconds."""

    def __init__(self, ctx: AgentContext, trust: Trust, beat_keys: Keyring) -> None:
        self._ctx, self._trust, self.beat_keys = ctx, trust, beat_keys
        self._list_at = self._alarm_at = float("-inf")

    def state(self) -> Json:
        """This host's certificate: serial, end, whether it is revoked; ``error`` if it cannot be read."""
        base: Json = {"host": self._ctx.host, "list_number": self._trust.list_number,
                      "beat_keys": self.beat_keys.state()}  # fmt: skip
        try:
            own = self._trust.own()
        except (OSError, ValueError) as error:
            return {**base, "error": str(error) or type(error).__name__}
        return {**base, "error": None, "name": own.name, "role": str(own.role), "serial": own.serial,
                "not_after": own.not_after, "days_left": own.days_left(time.time()),
                "revoked": own.serial in self._trust.revoked}  # fmt: skip

    def require(self) -> None:
        """This host's certificate counts: else it is no host for a pair.

        :raises FtkvmError: FTKVM-329, 335, 336
        """
        for finding in judge_certificate(CertificateSigns.from_json(self.state())):
            if finding.severity is Severity.ERROR:
                raise FtkvmError(finding.code, host=self._ctx.host, **finding.params)

    def request(self) -> Json:
        """Make a new key, and a request to certify it."""
        return {"host": self._ctx.host, "request": self._trust.request().decode()}

    def install(self, certificate: str) -> Json:
        """Use a certificate for the key of the last request.

        :raises FtkvmError: FTKVM-330
        """
        identity = self._trust.install(certificate.encode())
        log.info("certificate renewed: serial %s, %d days", identity.serial, identity.days_left(time.time()))
        return self.state()

    def take_list(self, content: str) -> Json:
        """Take a revocation list, and leave it on the datastore for hosts that are not reached now.

        :raises FtkvmError: FTKVM-333
        """
        if self._trust.take_list(content.encode()):
            log.warning("certificates revoked by list %d: %d", self._trust.list_number, len(self._trust.revoked))
            try:
                self._ctx.workers.run(
                    lambda: self._ctx.datastore.replace_text(LIST_FILE, content), 2.0, "write revocation list"
                )
            except FtkvmError as error:
                log.warning("the revocation list is not on the datastore: %s", error)
        return self.state()

    def refresh(self) -> None:
        """Take changed files, a newer list on the datastore, and complain about a certificate near its end."""
        self._trust.refresh()
        self.beat_keys.refresh()
        now = time.monotonic()
        if now - self._list_at >= _LIST_EVERY_S:
            self._list_at = now
            self._look_for_list()
        if now - self._alarm_at >= _ALARM_EVERY_S:
            self._alarm_at = now
            self._alarm()

    def _look_for_list(self) -> None:
        try:
            text = self._ctx.workers.run_alone(
                lambda: self._ctx.datastore.read_text(LIST_FILE), 1.0, "read revocation list"
            )
            if text and self._trust.take_list(text.encode()):
                log.warning("revocation list %d taken from the datastore", self._trust.list_number)
        except FtkvmError as error:  # it is signed: whatever lies there, a forged one is refused
            log.warning("revocation list: %s", error)

    def _alarm(self) -> None:
        said = self.state()
        if said["error"]:
            log.error("this host's certificate cannot be read: %s", said["error"])
        elif said["revoked"] or said["days_left"] < ALARM_DAYS:
            what = "is revoked" if said["revoked"] else f"ends in {said['days_left']} days"
            log.error("this host's certificate %s: `ftkvm cert renew %s`", what, self._ctx.host)
