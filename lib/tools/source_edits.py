"""Edits of a Python file's text by the positions of its syntax tree.

Owns positions and replacements. Everything outside a replaced span stays as it is: comments, blank lines,
line ends.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass
class SourceEdits:
    """The text of a file with replacements to come. They must not overlap."""

    text: str
    _replacements: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])

    def __post_init__(self) -> None:
        self._starts = [0, *(end.end() for end in _LINE_END.finditer(self.text))]
        first = _LINE_END.search(self.text)
        self.line_end = first[0] if first else "\n"

    def span(self, node: ast.expr | ast.stmt | ast.alias) -> tuple[int, int]:
        """The first character of `node` and the one after its last."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def indent(self, statement: ast.stmt) -> str | None:
        """The white space before a statement that is alone on its lines; None if it isn't."""
        begin, end = self.span(statement)
        before = self.text[self._starts[statement.lineno - 1] : begin]
        after = _LINE_END.split(self.text[end:], maxsplit=1)[0].strip()
        return before if not before.strip() and (not after or after.startswith("#")) else None

    def replace(self, begin: int, end: int, text: str) -> None:
        """Replace the characters from `begin` to `end`."""
        if self.text[begin:end] != text:
            self._replacements[begin, end] = text

    def result(self) -> str:
        """The text with all replacements."""
        parts: list[str] = []
        at = 0
        for (begin, end), text in sorted(self._replacements.items()):
            parts += [self.text[at:begin], text]
            at = end
        return "".join([*parts, self.text[at:]])

    def _at(self, line: int, column_bytes: int) -> int:
        """The position of a byte of a line, counted as UTF-8."""
        start = self._starts[line - 1]
        line_bytes = self.text[start : start + column_bytes].encode()  # at least as many bytes as characters
        return start + len(line_bytes[:column_bytes].decode())
