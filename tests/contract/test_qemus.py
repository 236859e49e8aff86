"""The QEMUs of a host as its process list shows them, from the first moment of each."""

from pathlib import Path

from ftkvm.adapters.qemus import Qemus

STAT = "{pid} (qemu-system-x86) S 1 " + "0 " * 17 + "4711 0\n"
WORDS = "/usr/bin/qemu-system-x86_64\0-name\0guest=vm1,debug-threads=on\0-uuid\0u-1\0"


def process(proc: Path, pid: int, words: str) -> Path:
    (proc / str(pid) / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "stat").write_text(STAT.format(pid=pid))
    (proc / str(pid) / "cmdline").write_text(words)
    return proc / str(pid) / "cmdline"


def test_a_qemu_whose_words_are_not_there_yet_is_seen_at_the_next_look(tmp_path: Path) -> None:
    """The kernel gives a process its new name some time before its new words."""
    words = process(tmp_path, 7, "")
    qemus = Qemus(tmp_path, tmp_path)
    assert qemus.look() == {}
    words.write_text(WORDS)
    assert [qemu.pid for qemu in qemus.look().values()] == [7]


def test_words_are_read_once(tmp_path: Path) -> None:
    """Reading them can hang when the process's memory does."""
    words = process(tmp_path, 7, WORDS)
    qemus = Qemus(tmp_path, tmp_path)
    assert list(qemus.look()) == ["u-1"]
    words.unlink()
    assert list(qemus.look()) == ["u-1"]


def test_a_qemu_without_a_vm_is_none(tmp_path: Path) -> None:
    process(tmp_path, 7, "/usr/bin/qemu-system-x86_64\0-machine\0none\0")
    assert Qemus(tmp_path, tmp_path).look() == {}
