"""One change on a host."""

from dataclasses import dataclass

from ftkvm.agent.join import NOT_IN

NOT_DONE = NOT_IN
"""The exit status by which a step's question says no."""


@dataclass(frozen=True)
class Step:
    """One change on a host. Shell commands; ``proof`` succeeds when the change is there, ``undo`` takes it back.

    ``question``: of a step that others see, asked when nobody knows whether it was done: it ends with 0 if it was,
    with :data:`NOT_DONE` if it was not and will not be, else if that cannot be told. It gets ``stdin``, too.
    """

    name: str
    text: str
    command: str
    proof: str
    undo: str
    stdin: bytes = b""
    timeout_s: float = 60.0
    question: str = ""
