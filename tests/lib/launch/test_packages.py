"""How the framework's package is named: the launcher and start_server.sh have one rule."""

from __future__ import annotations

import re
import subprocess

import pytest

from lib.launch.packages import REQUIREMENT, is_requirement
from tests.system import ROOT

PACKAGES = [
    *(f"pyworker{operator}1.2" for operator in ("==", ">=", "<=", "~=", "!=", "<", ">", "===", " >= ")),
    "pyworker>=1,<2",
    "py.worker_x-2[gpu, tls]==1",
    "pyworker [gpu] ~= 1.2",
]
OTHERS = [
    *(
        "",
        " ",
        "~",
        "..",
        "my-framework",
        "pyworker",
        "pyworker[gpu]",
        "pyworker 1.2",
        "pyworker=1.2",
        "pyworker@1",
    ),
    *("-rreqs.txt", "-rreqs==1", "--index-url=x", "-e.", ".hidden==1", "~user==1", "$HOME==1"),
    *("pyworker==1.2#main", "pyworker==1.2#", "#main", "pyworker[#]==1", "my-framework#main"),
]


@pytest.mark.parametrize("text", PACKAGES)
def test_a_package_with_a_version_is_a_requirement(text: str) -> None:
    assert is_requirement(text)


@pytest.mark.parametrize("text", OTHERS)
def test_what_may_be_a_folder_or_an_option_is_none(text: str) -> None:
    assert not is_requirement(text)


def test_the_script_has_the_same_rule() -> None:
    (pattern,) = re.findall("^readonly PACKAGE='(.*)'", (ROOT / "start_server.sh").read_text(), re.MULTILINE)
    assert pattern == REQUIREMENT
    script = 'for text in "${@:2}"; do if [[ $text =~ $1 ]]; then echo yes; else echo no; fi; done'
    command = ["bash", "-c", script, "bash", pattern, *PACKAGES, *OTHERS]
    answers = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert answers == ["yes"] * len(PACKAGES) + ["no"] * len(OTHERS)
