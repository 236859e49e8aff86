"""Facts of disk images that a suitability check needs, from qemu-img."""

import json
import subprocess

from ftkvm.core.suitability import ImageFacts


def image_facts(path: str, timeout_s: float = 5.0) -> ImageFacts | None:
    """Format and number of internal snapshots of an image that may be in use; None if qemu-img cannot tell.

    :raises subprocess.TimeoutExpired: the storage does not answer
    """
    command = ["qemu-img", "info", "--force-share", "--output=json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        return None
    document = json.loads(done.stdout)
    return ImageFacts(str(document["format"]), len(document.get("snapshots", [])))
