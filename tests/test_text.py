"""Texts from outside reach the terminal as text, whatever they hold."""

import io

from rich.console import Console

from tether._text import cell, printable, quoted


def test_control_characters_are_written_out_and_others_stay():
    assert printable("a\x1b[31mred\nb\x07\x9b") == "a\\x1b[31mred\\nb\\x07\\x9b"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert printable(b"\xff.png".decode("utf-8", "surrogateescape")) == "\\udcff.png"
    for text in ("grün [v2] — Ελληνικά", "👩\u200d🚒", "می\u200cخواهم", "[bold]x[/y]"):
        assert printable(text) == text


def test_a_cell_shows_square_brackets():
    console = Console(width=60, file=io.StringIO())
    console.print(cell("[bold]a[/b] \x1b[2J"))
    assert console.file.getvalue() == "[bold]a[/b] \\x1b[2J\n"


def test_paths_are_quoted_for_a_shell():
    assert quoted("runs/tiny-001") == "runs/tiny-001" and quoted("my runs/it's") == "'my runs/it'\"'\"'s'"
