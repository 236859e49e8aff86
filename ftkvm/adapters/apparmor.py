"""libvirt's AppArmor profile of a domain, where a merge needs what it forbids.

libvirt's helper forbids QEMU to write what a domain only reads when it starts, the images below its top one among it
(``deny "PATH" w,``: libvirt, ``src/security/virt-aa-helper.c``). A block commit makes libvirt add a rule that allows it
for the image that is merged into, and the kernel take the profile anew, but in AppArmor a ``deny`` wins: *Could not
open: Permission denied*, in every domain that was started on an overlay, as a promoted secondary is. Seen with libvirt
11.3 and AppArmor 4.1 (Debian 13).
"""

import logging
from pathlib import Path

from .local_file import replace_volatile

log = logging.getLogger(__name__)

PROFILES = Path("/etc/apparmor.d/libvirt")


def let_write(uuid: str, image: str, profiles: Path = PROFILES) -> bool:
    """Take back what forbids a domain's QEMU to write an image below its top one; whether there was anything.

    It counts from when libvirt next has the kernel take the profile: the block commit that follows begins with that.

    safety: this opens one file to one QEMU, the image its own disk is merged into, just before libvirt itself allows
    it; nothing else in the profile changes, and libvirt writes it anew when the domain starts again. A host without
    AppArmor has no such file. What fails here is logged only: the block commit tells it for certain.
    """
    rules = profiles / f"libvirt-{uuid}.files"
    try:
        lines = rules.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.strip() != f'deny "{image}" w,']
        if kept == lines:
            return False
        replace_volatile(rules, "".join(kept).encode(), 0o644, like=rules)
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("AppArmor's profile of %s still forbids writing to %s: %s", uuid, image, error)
        return False
    log.info("AppArmor's profile of %s lets it write to %s, for a merge", uuid, image)
    return True
