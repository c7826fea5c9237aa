"""The check of log rules: a model server's log is replayed to show which lines match which rule.

Owns the findings on rules. The log is read as a worker reads it, by lib/model/log_tail.py; the effect of a
match is in lib/model/watch.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.data_types import LogAction
from lib.model.log_tail import LogTail
from lib.tools.findings import Findings
from lib.tools.one_line import shorten

KINDS = {LogAction.ModelLoaded: "load rule", LogAction.ModelError: "error rule", LogAction.Info: "info rule"}
# How many matching lines of a rule are shown.
MAX_EXAMPLES = 3
# A load rule should match once per start of the server. More matches are probably about something else.
MAX_LOADS = 3
# If this many lines follow an error, the server probably was not broken.
HEALTHY_LINES = 20
# How much of a line is shown, in characters.
MAX_LINE = 120
# What is common in regular expressions and rare in logs: quantifiers, classes, escapes, anchors,
# alternatives.
_OF_REGEX = re.compile(
    r"""
    \.[*+?] | [)\]][*+?] | \[\^ | \[[^\]]*(?: a-z | A-Z | 0-9 )[^\]]*\] | \(\?
    | \\[dDwWsSbB.*+?()|^$\[\]{}]
    | ^\^ | \$$ | \([^()]*\|[^()]*\)
    """,
    re.VERBOSE,
)


@dataclass
class RuleMatches:
    """A rule and the lines that it matches.

    `numbers` are the numbers of the lines, from 1, and `examples` the first few of them. `near_miss` is the
    first line that would match but for case or white space.
    """

    action: LogAction
    text: str
    numbers: list[int] = field(default_factory=list[int])
    examples: list[str] = field(default_factory=list[str])
    near_miss: str | None = None

    @property
    def name(self) -> str:
        """The rule as findings name it, for instance `load rule 'model is ready'`."""
        return f"{KINDS[self.action]} {self.text!r}"

    def check_line(self, number: int, line: str) -> None:
        """Note whether the rule matches this line of the log."""
        if self.text in line:
            self.numbers.append(number)
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"line {number}: {shorten(line, MAX_LINE)}")
        elif self.near_miss is None and _folded(self.text) in _folded(line):
            self.near_miss = f"line {number}: {shorten(line, MAX_LINE)}"


def check_rules(rules: Sequence[tuple[LogAction, str]], found: Findings) -> None:
    """Check the rules themselves, without a log."""
    for action, text in rules:
        name = f"{KINDS[action]} {text!r}"
        if "\n" in text or "\r" in text:
            found.problem(
                "log",
                f"{name} can never match: it contains a line break, and each line is matched on its own",
            )
        elif text != text.strip():
            found.warning(
                "log", f"{name} begins or ends with white space, which the log's line must contain too"
            )
        if _OF_REGEX.search(text):
            found.warning(
                "log",
                f"{name} looks like a regular expression, but rules are substrings: no character is special",
            )


def replay(path: Path, rules: Sequence[tuple[LogAction, str]], found: Findings) -> None:
    """Replay the log at `path` with the rules; add which lines match, and what looks wrong."""
    matches = [RuleMatches(action, text) for action, text in rules]
    total, tail = 0, LogTail(path)
    for total, line in enumerate(_lines(tail), 1):
        for rule in matches:
            rule.check_line(total, line)
    tail.close()
    if tail.trouble:
        found.problem("log", f"{path} {tail.trouble}")
        return
    found.ok("log", f"{path}: {total:,} lines")
    if _last_line_is_incomplete(path):
        found.note("log", "the last line is incomplete (no line break), so no rule is applied to it")
    if not total:
        found.warning("log", f"{path} has no complete line")
        return
    loads = sorted(n for rule in matches if rule.action is LogAction.ModelLoaded for n in rule.numbers)
    for rule in matches:
        _report_rule(rule, loads, total, found)
    if not loads and any(action is LogAction.ModelLoaded for action, _ in rules):
        found.problem("log", "no load rule matches: this log would never make the worker ready")


def _report_rule(rule: RuleMatches, loads: Sequence[int], total: int, found: Findings) -> None:
    """Add the findings on one rule; `loads` are the lines that load rules match, `total` is all lines."""
    if not rule.numbers:
        if rule.near_miss:
            found.problem(
                "log",
                f"{rule.name} matches no line, but differs only in case or spaces from {rule.near_miss}",
            )
        else:
            found.note("log", f"{rule.name} matches no line")
        return
    for line in rule.examples:
        found.ok("log", f"{rule.name} matches {line}")
    if more := len(rule.numbers) - len(rule.examples):
        found.ok("log", f"{rule.name} matches {more:,} more lines, the last is line {rule.numbers[-1]}")
    if rule.action is LogAction.ModelLoaded and len(rule.numbers) > MAX_LOADS:
        found.warning(
            "log",
            f"{rule.name} matches {len(rule.numbers):,} lines, and each match clears errors: use a line that "
            "is logged only once, when the model is loaded",
        )
    if rule.action is LogAction.ModelError:
        _report_error_rule(rule, loads, total, found)


def _report_error_rule(rule: RuleMatches, loads: Sequence[int], total: int, found: Findings) -> None:
    """Warn of matches that would put a healthy worker into the state *errored*."""
    last_load = loads[-1] if loads else 0
    before = [n for n in rule.numbers if n < last_load]
    after = [n for n in rule.numbers if loads and n > last_load and total - n >= HEALTHY_LINES]
    if before:
        found.warning(
            "log",
            f"{rule.name} matches line {before[0]}, but the model loads successfully at line {last_load}",
        )
    if after:
        found.warning(
            "log",
            f"{rule.name} matches line {after[0]}, but {total - after[0]:,} lines follow: the model seems to "
            "work on, so use a line that is logged only when it is broken",
        )


def _lines(tail: LogTail) -> Iterator[str]:
    """The complete lines, as a worker reads them."""
    yield from tail.poll()
    while tail.behind:
        yield from tail.poll()


def _last_line_is_incomplete(path: Path) -> bool:
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 1))
        return log.read(1) not in (b"", b"\n", b"\r")


def _folded(text: str) -> str:
    """`text` without differences of case and white space."""
    return " ".join(text.casefold().split())
