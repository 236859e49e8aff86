"""Every message a user can see: a stable code, its text, its cause and its remedy.

A message is raised as ``FtkvmError("FTKVM-101", vm="vm1")``; the CLI prints text, cause and remedy and exits
with the message's exit status. A code never changes its meaning.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One catalogue entry; ``text``, ``cause`` and ``remedy`` are ``str.format`` templates."""

    code: str
    text: str
    cause: str
    remedy: str
    exit_status: int = 1


def _m(code: str, text: str, cause: str, remedy: str, exit_status: int = 1) -> tuple[str, Message]:
    return code, Message(code, text, cause, remedy, exit_status)


# 1xx virtual machines · 2xx hosts · 3xx datastore · 4xx FT preconditions · 5xx FT operations · 6xx cluster · 7xx lab · 9xx internal
CATALOGUE: dict[str, Message] = dict(
    [
        _m("FTKVM-101", "no VM named {vm}", "No VM of that name or UUID is registered in the cluster.",
           "`ftkvm vm list` shows the VMs; `ftkvm vm register DOMAIN` adds one."),
        _m("FTKVM-900", "unexpected failure: {detail}", "An operation met an error nobody foresaw.",
           "Look at `journalctl -u ftkvm-agent` on the host named; nothing is left half done that `ftkvm status` does not show."),
    ]
)


class FtkvmError(Exception):
    """A message of the catalogue with its parameters; ``str()`` gives code and text."""

    def __init__(self, code: str, **params: object) -> None:
        self.code = code
        self.params = params
        self.message = CATALOGUE[code]
        super().__init__(f"{code}: {self.text}")

    @property
    def text(self) -> str:
        return self.message.text.format(**self.params)

    @property
    def cause(self) -> str:
        return self.message.cause.format(**self.params)

    @property
    def remedy(self) -> str:
        return self.message.remedy.format(**self.params)

    def to_json(self) -> dict[str, object]:
        """The form in which the API and ``--output json`` carry it."""
        return {"code": self.code, "text": self.text, "cause": self.cause, "remedy": self.remedy,
                "params": {k: str(v) for k, v in self.params.items()}}
