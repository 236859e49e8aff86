"""Changing the cluster's configuration: the next version, made from the one that was read."""

from dataclasses import replace
from typing import Any

from ftkvm.agent.cluster import commit_config
from ftkvm.agent.context import AgentContext
from ftkvm.agent.storage import bounded
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig


def publish(ctx: AgentContext, config: ClusterConfig, **changes: Any) -> ClusterConfig:
    """Write ``config`` with ``changes`` (its fields) as the version after it, and return that.

    :raises FtkvmError: FTKVM-606, somebody else wrote that version first; FTKVM-30x
    """
    changed = replace(config, version=config.version + 1, **changes)
    if not bounded(ctx, lambda: commit_config(ctx.datastore, changed), "configuration"):
        raise FtkvmError("FTKVM-606")
    ctx.cluster.current(fresh=True)
    return changed
