"""Pairs that a keeper was told of, kept on the host's volatile storage so that its successor knows them too."""

import json
import logging
from pathlib import Path

from ftkvm.keeper.model import PairSpec

log = logging.getLogger(__name__)


class PairStore:
    """``<run>/pairs/<uuid>.json``, one per pair: survives the keeper, not a reboot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, PairSpec]:
        """All pairs. A file that cannot be read is reported and left: its taps stay gated as the kernel has them."""
        pairs = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                pair = PairSpec.from_json(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.error("%s: %s", path, error)
            else:
                pairs[pair.uuid] = pair
        return pairs

    def save(self, pair: PairSpec) -> None:
        """Replace the pair's file as a whole. Raises OSError.

        Without a sync: the directory is in memory, and the keeper's loop must not wait for a disk if it ever is not.
        """
        path = self._directory / f"{pair.uuid}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(pair.to_json()))
        temporary.replace(path)

    def remove(self, uuid: str) -> None:
        (self._directory / f"{uuid}.json").unlink(missing_ok=True)
