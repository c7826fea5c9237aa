"""What the demo prints: colours on a terminal, the same words without them elsewhere.

Owns layout. What is said is demo.py's.
"""

from __future__ import annotations

from rich.console import Console

MAX_WIDTH = 100
_INDENT = "  "
_LABEL_WIDTH = 14


class Screen:
    """Lines on `console`, by default standard output; each is there at once."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._width = min(self._console.width, MAX_WIDTH) if self._console.is_terminal else MAX_WIDTH
        self._column = 0

    def title(self, text: str) -> None:
        """A heading, set off from what was before."""
        self.line()
        self._print(text, "bold")
        self.line()

    def line(self, text: str = "") -> None:
        self._print(text)

    def item(self, label: str, text: str) -> None:
        """`text` in a column, behind its label."""
        self._print(f"{_INDENT}{label:<{_LABEL_WIDTH}}", "cyan", end="")
        self._print(text)

    def command(self, text: str) -> None:
        """Something to copy into a shell: never broken over lines."""
        self._print(_INDENT + text, "green")

    def begin(self, prompt: str) -> None:
        """The text that an answer goes on from."""
        self._column = 0
        for word in prompt.split():
            self._flow(" " + word, "bold")

    def token(self, text: str) -> None:
        """The next piece of the answer, on a new line where this one is full."""
        self._flow(text, "")

    def end(self) -> None:
        """The answer is over."""
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
