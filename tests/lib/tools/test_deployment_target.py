"""The argument MODULE:APP, and what is said of one that is wrong."""

from __future__ import annotations

import re

import pytest

from lib.tools.deployment_target import parse_target

FILE = "must name a module, not a file: "


@pytest.mark.parametrize("text", ["app:app", "my.app:app", "_a.b1:x_y"])
def test_a_module_and_a_name_are_kept(text: str) -> None:
    assert str(parse_target(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("app.py:app", f"{FILE}app:app"),
        ("app.py", f"{FILE}app:app"),
        ("./app.py:x", f"{FILE}app:x"),
        ("my/app.py:x", f"{FILE}my.app:x"),
        ("my/../app:x", f"{FILE}app:x"),
        ("../x:y", f"{FILE}x:y, run in the folder .."),
        ("../../my/x.py:y", f"{FILE}x:y, run in the folder ../../my"),
        ("my-models/app.py:x", f"{FILE}app:x, run in the folder my-models"),
        ("/srv/app.py:x", f"{FILE}app:x, run in the folder /srv"),
        ("my-app.py:x", "must be MODULE:APP, such as "),
        ("..:x", "must be MODULE:APP, such as "),
        ("../:x", "must be MODULE:APP, such as "),
        ("app", "must be MODULE:APP, such as "),
        ("app:", "must be MODULE:APP, such as "),
    ],
)
def test_a_file_is_answered_with_its_module_and_its_folder(text: str, said: str) -> None:
    ending = "" if said.startswith("must be") else "$"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}{ending}"):
        parse_target(text)
