"""Terminal output: wrapping, colours, plain text."""

from __future__ import annotations

import io

from rich.console import Console

from lib.local.screen import MAX_WIDTH, Screen


def test_answers_wrap_between_words_and_are_not_buffered() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output))

    screen.begin("Once upon")
    screen.token(" a")
    assert output.getvalue() == "  Once upon a"
    for _ in range(30):
        screen.token(" time")
    screen.token(",")
    screen.end()

    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("  ") and len(line) <= MAX_WIDTH for line in lines)
    assert " ".join(output.getvalue().split()) == "Once upon a" + " time" * 30 + ","


def test_plain_text_has_no_colours_and_markup_is_text() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output))
    screen.title("A [bold]title[/bold]")
    screen.item("label", ":smile: " + "long " * 50)
    screen.command("run --this")

    assert output.getvalue() == (
        "\nA [bold]title[/bold]\n\n" + f"  {'label':<14}:smile: {'long ' * 50}\n" + "  run --this\n"
    )


def test_a_terminal_gets_colours_and_its_width() -> None:
    output = io.StringIO()
    screen = Screen(
        Console(file=output, force_terminal=True, color_system="standard", width=20, no_color=False)
    )
    screen.command("run")
    assert "\x1b[32m" in output.getvalue()

    output.seek(0)
    output.truncate()
    for _ in range(10):
        screen.token(" word")
    assert max(len(line) for line in output.getvalue().splitlines()) <= 20
