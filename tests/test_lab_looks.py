"""How the lab tells what a silent guest shows."""

from ftkvm.lab import looks


def test_a_screen_is_read_from_vga_memory() -> None:
    """Every second byte is a character; empty lines, and what is empty at the end of a line, are left out."""
    dump = (
        "00000000000b8000: 0x4f 0x07 0x6f 0x07 0x70 0x07 0x73 0x07\r\n"
        "00000000000b8008: 0x20 0x07 0x20 0x07 0x00 0x07 0x20 0x07\r\n"
        "00000000000b8010: 0x35 0x07 0x20 0x07 0x20 0x07 0x20 0x07\r\n"
    )
    assert looks.screen_of(dump, 4) == "Oops\n5"


def test_a_dump_that_is_none_is_shown_as_it_is() -> None:
    assert looks.screen_of("Cannot access memory", 80) == "Cannot access memory"
    assert looks.screen_of("error: domain is not running", 80) == "error: domain is not running"
