from __future__ import annotations

from pathlib import Path

import pytest

from lib.data_types import LogAction
from lib.tools.findings import Findings
from lib.tools.log_replay import HEALTHY_LINES, check_rules, replay

LOAD, ERROR, INFO = LogAction.ModelLoaded, LogAction.ModelError, LogAction.Info
GOES_ON = [f"served {i}" for i in range(HEALTHY_LINES)]


def findings(tmp_path: Path, lines: list[str], *rules: tuple[LogAction, str], end: str = "\n") -> list[str]:
    log = tmp_path / "model.log"
    log.write_text("\n".join(lines) + end)
    found = Findings("worker.py")
    replay(log, rules, found)
    return [line for line in found.lines()[:-1] if "model.log:" not in line]


def test_each_rule_is_shown_with_the_lines_that_it_matches(tmp_path: Path) -> None:
    lines = ["download 1", "download 2", "ready now", *(f"download {i}" for i in range(3, 7)), "Error: out"]
    assert findings(tmp_path, lines, (LOAD, "ready"), (ERROR, "Error:"), (INFO, "download")) == [
        "ok       log           load rule 'ready' matches line 3: ready now",
        "ok       log           error rule 'Error:' matches line 8: Error: out",
        "ok       log           info rule 'download' matches line 1: download 1",
        "ok       log           info rule 'download' matches line 2: download 2",
        "ok       log           info rule 'download' matches line 4: download 3",
        "ok       log           info rule 'download' matches 3 more lines, the last is line 7",
    ]


@pytest.mark.parametrize(
    ("lines", "rule", "level", "text"),
    [
        (["ready"], (INFO, "never"), "note", "info rule 'never' matches no line"),
        (
            ["the Server  Started"],
            (LOAD, "server started"),
            "problem",
            "differs only in case or spaces from line 1",
        ),
        (["other"], (LOAD, "ready"), "problem", "no load rule matches"),
        (["ready"] * 4, (LOAD, "ready"), "warning", "load rule 'ready' matches 4 lines"),
        (
            ["0 errors", "ready"],
            (ERROR, "error"),
            "warning",
            "matches line 1, but the model loads successfully at line 2",
        ),
        (
            ["ready", "error", *GOES_ON],
            (ERROR, "error"),
            "warning",
            f"but {HEALTHY_LINES} lines follow",
        ),
    ],
)
def test_suspicious_rules_are_reported(
    lines: list[str], rule: tuple[LogAction, str], level: str, text: str, tmp_path: Path
) -> None:
    found = findings(tmp_path, lines, rule, *([] if rule[0] is LOAD else [(LOAD, "ready")]))
    assert [line for line in found if line.startswith(level) and text in line], found


def test_an_error_at_the_end_of_the_log_is_no_warning(tmp_path: Path) -> None:
    found = findings(tmp_path, ["ready", "error: out of memory"], (LOAD, "ready"), (ERROR, "error"))
    assert all(line.startswith("ok ") for line in found)


def test_an_incomplete_last_line_matches_no_rule(tmp_path: Path) -> None:
    found = findings(tmp_path, ["first", "ready"], (LOAD, "ready"), end="")
    assert any("the last line is incomplete" in line for line in found)
    assert any("no load rule matches" in line for line in found)


def test_an_empty_log_is_a_warning(tmp_path: Path) -> None:
    assert findings(tmp_path, [""], (LOAD, "ready"), end="")[0].startswith("warning  log")


@pytest.mark.parametrize(("name", "why"), [("none.log", "does not exist"), ("", "is a directory")])
def test_a_log_that_cannot_be_read_is_a_problem(name: str, why: str, tmp_path: Path) -> None:
    found = Findings("worker.py")
    replay(tmp_path / name, [(LOAD, "ready")], found)
    assert found.failed
    assert why in found.lines()[0]


def test_an_impossible_rule_is_reported_without_a_log() -> None:
    found = Findings("worker.py")
    check_rules([(LOAD, "two\nlines"), (ERROR, " spaced ")], found)
    first, second, last = found.lines()
    assert first.startswith("problem  log           load rule 'two\\nlines' can never match")
    assert second.startswith("warning  log           error rule ' spaced ' begins or ends with white space")
    assert last == "worker.py: 1 problem, 1 warning"


@pytest.mark.parametrize(
    "rule",
    [
        "server .* started",
        "loaded in .+ s",
        r"loaded in \d+ s",
        r"\[INFO\] ready",
        "^ready",
        "ready$",
        "(ready|started)",
        "[0-9] workers",
        "[^a]",
        "(?i)ready",
    ],
)
def test_a_rule_that_looks_like_a_regular_expression_is_questioned(rule: str) -> None:
    found = Findings("worker.py")
    check_rules([(LOAD, rule)], found)
    (warning,) = found.lines()[:-1]
    assert f"load rule {rule!r} looks like a regular expression, but rules are substrings" in warning


@pytest.mark.parametrize(
    "rule",
    [
        "Application startup complete.",
        "[INFO] ready (took 3 s)...",
        "[vllm-server] $HOME | loaded: 100 %",
        "error: a + b * c = {x}",
        "C++ exception? yes",
        "ready [1/3]",
    ],
)
def test_a_plain_rule_is_not_questioned(rule: str) -> None:
    found = Findings("worker.py")
    check_rules([(ERROR, rule)], found)
    assert len(found.lines()) == 1
