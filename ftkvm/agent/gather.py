"""Asking all hosts at once, and living with those that do not answer."""

from concurrent.futures import TimeoutError as FutureTimeout

from ftkvm.agent.context import AgentContext
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import Json, PeerUnreachable

Answers = dict[str, Json | FtkvmError]


def gather(ctx: AgentContext, path: str, timeout_s: float = 2.0, hosts: list[str] | None = None) -> Answers:
    """GET ``path`` from all hosts of the cluster (our own included) in parallel: the answer, or why there is none."""
    names = sorted(ctx.cluster.hosts()) if hosts is None else hosts

    def ask(name: str) -> Json | FtkvmError:
        try:
            return ctx.peers.call(name, "GET", path, None, timeout_s)
        except FtkvmError as error:
            return error

    futures = {name: ctx.workers.submit(lambda name=name: ask(name), f"ask {name}") for name in names}  # type: ignore[misc]
    answers: Answers = {}
    for name, future in futures.items():
        try:
            answers[name] = future.result(2 * timeout_s + 1)
        except FutureTimeout:
            answers[name] = PeerUnreachable("FTKVM-202", host=name, detail=f"no answer in {2 * timeout_s + 1} s")
    return answers
