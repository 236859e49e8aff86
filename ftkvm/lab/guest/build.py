"""Makes the guest's kernel and initramfs: compiles init.c, takes kernel and modules out of the hosts' image."""

import hashlib
import lzma
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names
from ftkvm.lab.system import run

MODULES = ("virtio_blk", "virtio_net", "button", "evdev")
"""What the cloud kernel does not have built in; what these need is found by itself."""

SOURCE = Path(__file__).with_name("init.c")


@dataclass(frozen=True)
class GuestFiles:
    """The two files a guest boots from."""

    kernel: Path
    initrd: Path


def build(image: Path) -> GuestFiles:
    """The guest's files for a hosts' image; built in two seconds, once per image and source."""
    mark = hashlib.sha256(SOURCE.read_bytes() + image.name.encode() + " ".join(MODULES).encode()).hexdigest()[:12]
    files = GuestFiles(names.GUESTS / mark / "vmlinuz", names.GUESTS / mark / "initrd")
    if files.initrd.exists():
        return files
    files.kernel.parent.mkdir(parents=True, exist_ok=True)
    init = files.kernel.with_name("init")
    try:
        run(["gcc", "-static", "-O2", "-o", str(init), str(SOURCE)])
    except FtkvmError as error:
        raise FtkvmError("FTKVM-728", detail=error.params["detail"]) from error
    kernels = sorted((image / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise FtkvmError("FTKVM-728", detail=f"no kernel in {image}/boot")
    shutil.copyfile(kernels[-1], files.kernel)
    release = kernels[-1].name.removeprefix("vmlinuz-")
    part = files.initrd.with_suffix(".partial")
    part.write_bytes(_initramfs(init.read_bytes(), image / "lib/modules" / release))
    part.rename(files.initrd)
    return files


def _initramfs(init: bytes, modules: Path) -> bytes:
    tree = {"init": init}
    order: list[str] = []
    for name in MODULES:
        _add_module(name, modules, tree, order)
    tree["modules/order"] = "".join(f"{name}\n" for name in order).encode()
    return cpio(tree, directories=("dev", "proc", "sys", "modules"))


def _add_module(name: str, modules: Path, tree: dict[str, bytes], order: list[str]) -> None:
    """Adds a module after those that it says it depends on."""
    if f"{name}.ko" in order:
        return
    found = [p for p in modules.rglob("*.ko*") if p.name.split(".")[0].replace("-", "_") == name]
    if not found:
        raise FtkvmError("FTKVM-728", detail=f"the kernel has no module {name}")
    data = found[0].read_bytes()
    if found[0].suffix == ".xz":
        data = lzma.decompress(data)
    needs = re.search(rb"\0depends=([^\0]*)\0", data)
    for other in needs[1].decode().split(",") if needs and needs[1] else []:
        _add_module(other.replace("-", "_"), modules, tree, order)
    tree[f"modules/{name}.ko"] = data
    order.append(f"{name}.ko")


def cpio(files: dict[str, bytes], directories: tuple[str, ...]) -> bytes:
    """An archive in the kernel's *newc* format (Documentation/driver-api/early-userspace/buffer-format)."""
    out = bytearray()
    entries = [(name, 0o040755, b"") for name in directories]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4)
        out += data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
