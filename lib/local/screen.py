"""Terminal output of the commands: with colours on a terminal, the same text without them elsewhere.

Owns the layout. Does not own the text (demo.py, lib/tools/run_local.py and the commands in lib/tools/).
"""

from __future__ import annotations

from rich.console import Console

MAX_WIDTH = 100
_INDENT = "  "
_LABEL_WIDTH = 14


class Screen:
    """Writes lines to `console`, by default standard output, without buffering."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._width = min(self._console.width, MAX_WIDTH) if self._console.is_terminal else MAX_WIDTH
        self._column = 0

    def title(self, text: str) -> None:
        """Print a heading between empty lines."""
        self.line()
        self._print(text, "bold")
        self.line()

    def line(self, text: str = "") -> None:
        """Print a line."""
        self._print(text)

    def item(self, label: str, text: str) -> None:
        """Print `text` in a column after its label."""
        self._print(f"{_INDENT}{label:<{_LABEL_WIDTH}}", "cyan", end="")
        self._print(text)

    def command(self, text: str) -> None:
        """Print a command to copy into a shell; it is never wrapped."""
        self._print(_INDENT + text, "green")

    def begin(self, prompt: str) -> None:
        """Start an answer with its prompt."""
        self._column = 0
        for word in prompt.split():
            self._flow(" " + word, "bold")

    def token(self, text: str) -> None:
        """Print the next part of the answer; wrap when the line is full."""
        self._flow(text, "")

    def end(self) -> None:
        """End the answer."""
        self.line()

    def _flow(self, text: str, style: str) -> None:
        starts_word = text.startswith(" ")
        if self._column == 0 or (starts_word and self._column + len(text) > self._width):
            if self._column:
                self._print("")
            text = _INDENT + text.lstrip()
            self._column = 0
        self._column += len(text)
        self._print(text, style, end="")

    def _print(self, text: str, style: str = "", end: str = "\n") -> None:
        self._console.print(text, style=style or None, end=end, markup=False, emoji=False, soft_wrap=True)
