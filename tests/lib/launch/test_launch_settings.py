"""The launcher's settings: defaults, wrong values, and the address in reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.launch.settings import LaunchSettings, without_password

INSTANCE = {"CONTAINER_ID": "7", "PUBLIC_IPADDR": "192.0.2.1", "VAST_TCP_PORT_3000": "41000"}


def read(**variables: str) -> LaunchSettings:
    return LaunchSettings.from_env({**INSTANCE, **variables})


def test_an_instances_own_variables_are_enough() -> None:
    settings = read()
    assert settings.problems == ()
    assert settings.public_url == "https://192.0.2.1:41000"
    assert (settings.container_id, settings.worker_port) == (7, 3000)
    assert settings.report_addrs == ("https://run.vast.ai",)
    assert settings.workspace == Path("/workspace")
    assert (settings.venv, settings.code) == (None, None)


def test_everything_missing_is_named_once() -> None:
    names = [problem.partition(":")[0] for problem in LaunchSettings.from_env({}).problems]
    assert names == ["CONTAINER_ID", "PUBLIC_IPADDR", "VAST_TCP_PORT_3000"]
    assert LaunchSettings.from_env({}).public_url == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("USE_SSL", value) for value in ("maybe", "2", "tru")),
        *(("CONTAINER_ID", value) for value in ("x", "-1", "1.0", "007", "1" * 19)),
        *(("PUBLIC_IPADDR", value) for value in ("a b", "http://x", "x/y", " ")),
        *(("WORKER_PORT", value) for value in ("0", "65536", "http", "-1", "3000x")),
    ],
)
def test_a_malformed_variable_is_a_problem(name: str, value: str) -> None:
    (problem,) = read(**{name: value}).problems
    assert problem.startswith(f"{name}: ")


@pytest.mark.parametrize("value", ["false", "0", "no", "OFF", "False"])
def test_tls_is_on_unless_it_is_turned_off(value: str) -> None:
    assert read(USE_SSL=value).public_url == "http://192.0.2.1:41000"
    assert read(USE_SSL="").use_ssl
    assert read(USE_SSL="Yes").use_ssl


@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_an_ipv6_address_has_brackets_in_the_url_only(address: str) -> None:
    settings = read(PUBLIC_IPADDR=address)
    assert (settings.address, settings.public_url) == ("::1", "https://[::1]:41000")


def test_report_addresses_are_read_as_the_worker_reads_them() -> None:
    assert read(REPORT_ADDR="http://a/ , ,http://b/e/x//").report_addrs == ("http://a", "http://b/e/x")


def test_relative_paths_are_those_of_the_launchers_folder() -> None:
    settings = read(WORKSPACE_DIR="ws", PYWORKER_VENV="venv")
    assert (settings.workspace, settings.venv) == (Path.cwd() / "ws", Path.cwd() / "venv")


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("https://example.org/me/mine", "mine"),
        ("https://example.org/me/mine.git/", "mine"),
        ("git@example.org:mine.git", "mine"),
        ("git@example.org:me/mine", "mine"),
        ("file:///srv/a b", "a b"),
        ("https://example.org/..", None),
        ("https://example.org/.git", None),
    ],
)
def test_the_code_is_in_a_folder_of_the_repositorys_name(repo: str, name: str | None) -> None:
    assert read(PYWORKER_REPO=repo).code == (name and Path("/workspace") / name)


@pytest.mark.parametrize(
    ("url", "logged"),
    [
        ("https://me:secret@example.org/x", "https://example.org/x"),
        ("https://token@example.org/x", "https://example.org/x"),
        ("ssh://git@example.org/x", "ssh://example.org/x"),
        ("https://example.org/x@y", "https://example.org/x@y"),
        ("git@example.org:x", "git@example.org:x"),
        ("/srv/x", "/srv/x"),
    ],
)
def test_no_password_is_logged(url: str, logged: str) -> None:
    assert without_password(url) == logged
