"""A model server's log, read once more with a worker's rules: which line fires which, and what looks wrong.

Owns the judgement of rules by a log. How a worker reads one is lib/model/log_tail.py's, which reads it here
too; what a rule means is lib/model/watch.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.data_types import LogAction
from lib.model.log_tail import LogTail
from lib.tools.findings import Findings

KINDS = {LogAction.ModelLoaded: "load rule", LogAction.ModelError: "error rule", LogAction.Info: "info rule"}
# So many of a rule's lines are shown.
SHOWN = 3
# A "loaded" line that comes more often than a server is restarted is about something else.
MAX_LOADS = 3
# A server that has broken down doesn't write so many lines more.
HEALTHY_LINES = 20
MAX_TEXT = 120


@dataclass
class RuleMatches:
    """A rule, and the lines it matched by number, from 1; `near` are those that differ in letters' case."""

    action: LogAction
    text: str
    numbers: list[int] = field(default_factory=list[int])
    shown: list[str] = field(default_factory=list[str])
    near: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return f"{KINDS[self.action]} {self.text!r}"

    def look_at(self, number: int, line: str) -> None:
        if self.text in line:
            self.numbers.append(number)
            if len(self.shown) < SHOWN:
                self.shown.append(f"line {number}: {_cut(line)}")
        elif not self.near and _folded(self.text) in _folded(line):
            self.near.append(f"line {number}: {_cut(line)}")


def check_rules(rules: Sequence[tuple[LogAction, str]], found: Findings) -> None:
    """What can be said of rules without a log."""
    for action, text in rules:
        name = f"{KINDS[action]} {text!r}"
        if "\n" in text or "\r" in text:
            found.problem(
                "log", f"{name} can never match: it has a line end, and lines are looked at one by one"
            )
        elif text != text.strip():
            found.warning("log", f"{name} begins or ends with white space: is it in the log, too?")


def replay(path: Path, rules: Sequence[tuple[LogAction, str]], found: Findings) -> None:
    """Show what each rule makes of the log at `path`, and what is wrong with it by that."""
    matches = [RuleMatches(action, text) for action, text in rules]
    total, tail = 0, LogTail(path)
    for total, line in enumerate(_lines(tail), 1):
        for rule in matches:
            rule.look_at(total, line)
    tail.close()
    if tail.trouble:
        found.problem("log", f"{path} {tail.trouble}")
        return
    found.ok("log", f"{path}: {total:,} lines")
    if _last_line_is_cut(path):
        found.note("log", "the last line has no end: no rule looks at it")
    if not total:
        found.warning("log", f"{path} has no whole line")
        return
    loads = sorted(n for rule in matches if rule.action is LogAction.ModelLoaded for n in rule.numbers)
    for rule in matches:
        _judge(rule, loads, total, found)
    if not loads and any(action is LogAction.ModelLoaded for action, _ in rules):
        found.problem("log", "no load rule matches: with this log the worker would never be ready")


def _judge(rule: RuleMatches, loads: Sequence[int], total: int, found: Findings) -> None:
    if not rule.numbers:
        if rule.near:
            found.problem(
                "log", f"{rule.name} matches no line, but for its letters' case or spaces: {rule.near[0]}"
            )
        else:
            found.note("log", f"{rule.name} matches no line")
        return
    for line in rule.shown:
        found.ok("log", f"{rule.name} fires on {line}")
    if more := len(rule.numbers) - len(rule.shown):
        found.ok("log", f"{rule.name} fires on {more:,} more lines, the last {rule.numbers[-1]}")
    if rule.action is LogAction.ModelLoaded and len(rule.numbers) > MAX_LOADS:
        found.warning(
            "log",
            f"{rule.name} matches {len(rule.numbers):,} lines: each takes errors back; is there a line that "
            "comes once, when the model is loaded?",
        )
    if rule.action is LogAction.ModelError:
        _judge_error(rule, loads, total, found)


def _judge_error(rule: RuleMatches, loads: Sequence[int], total: int, found: Findings) -> None:
    """Whether lines of a healthy run would put the worker into *errored*."""
    last_load = loads[-1] if loads else 0
    before = [n for n in rule.numbers if n < last_load]
    after = [n for n in rule.numbers if loads and n > last_load and total - n >= HEALTHY_LINES]
    if before:
        found.warning("log", f"{rule.name} matches line {before[0]}, but the model is loaded at {last_load}")
    if after:
        found.warning(
            "log",
            f"{rule.name} matches line {after[0]}, but the log goes on for {total - after[0]:,} lines: was "
            "the model really broken?",
        )


def _lines(tail: LogTail) -> Iterator[str]:
    """The lines as a worker reads them: without one that has no end yet."""
    yield from tail.poll()
    while tail.behind:
        yield from tail.poll()


def _last_line_is_cut(path: Path) -> bool:
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 1))
        return log.read(1) not in (b"", b"\n", b"\r")


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _cut(line: str) -> str:
    line = line.strip()
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
