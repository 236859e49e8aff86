"""libvirt's AppArmor profile of a domain, where a merge needs what it forbids.

libvirt's helper forbids QEMU to write what a domain only reads when it starts, the images below its top one among it
(``deny "PATH" w,``: libvirt, ``src/security/virt-aa-helper.c``). A block commit makes libvirt add a rule that allows it
for the image that is merged into, but in AppArmor a ``deny`` wins: *Could not open: Permission denied*, in every domain
that was started on an overlay, as a promoted secondary is. Seen with libvirt 11.3 and AppArmor 4.1 (Debian 13).
"""

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

from .local_file import replace_volatile

log = logging.getLogger(__name__)

PROFILES = Path("/etc/apparmor.d/libvirt")
LOAD_TIMEOUT_S = 10.0


def load(profile: Path) -> None:
    """Have the kernel take a profile as it stands in its file; needs CAP_MAC_ADMIN.

    :raises OSError: there is no AppArmor here
    :raises subprocess.SubprocessError: refused, or too slow
    """
    command = ["apparmor_parser", "--replace", str(profile)]
    subprocess.run(command, capture_output=True, timeout=LOAD_TIMEOUT_S, check=True)


def let_write(uuid: str, image: str, profiles: Path = PROFILES, load: Callable[[Path], None] = load) -> bool:
    """Take back what forbids a domain's QEMU to write an image below its top one; whether there was anything.

    safety: this opens one file to one QEMU, the image its own disk is merged into, just before libvirt itself allows
    it; nothing else in the profile changes, and libvirt writes it anew when the domain starts again. A host without
    AppArmor has no such file. What fails here is logged only: the block commit that follows tells it for certain.
    """
    profile = profiles / f"libvirt-{uuid}"
    rules = profile.with_name(f"{profile.name}.files")
    try:
        lines = rules.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.strip() != f'deny "{image}" w,']
        if kept == lines:
            return False
        replace_volatile(rules, "".join(kept).encode(), 0o644, like=rules)
        load(profile)
    except FileNotFoundError:
        return False
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("AppArmor's profile of %s still forbids writing to %s: %s", uuid, image, error)
        return False
    log.info("AppArmor's profile of %s lets it write to %s, for a merge", uuid, image)
    return True
