"""`start_server.sh` as an instance runs it: boots, wrong settings, failures, TLS, repositories."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import aiohttp
import anyio
import pytest
from cryptography import x509

from lib.launch.boot import this_boot
from lib.local.authority import DEFAULT_LIFETIME_S
from lib.local.processes import free_port
from lib.server import EXIT_FAILED, EXIT_PORT_TAKEN, EXIT_SETTINGS
from tests.fakes.process import RunningProcess
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.start_script import (
    CRASHING_WORKER,
    FAKE_WORKER,
    Instance,
    Repository,
    make_wheel,
    replace_in,
    with_instance,
    write_wheel,
)
from tests.system import CONTAINER_ID, MASTER_TOKEN, ROOT

pytestmark = pytest.mark.one_python

NOBODY = 65534
DAY_S = 86400.0


async def wait_until_ready(instance: Instance, script: RunningProcess) -> None:
    """Return once the worker serves and has reported that it is ready."""
    await script.until("listening on port")
    await instance.system.ready()


def last_error(instance: Instance) -> str:
    """The error of the last report."""
    last = instance.system.last_report
    assert last is not None
    assert (last.id, last.mtoken, last.url) == (CONTAINER_ID, MASTER_TOKEN, instance.system.url)
    return last.error_msg


# Boots


async def test_first_boot_installs_and_a_second_one_does_not(tmp_path: Path) -> None:
    async with with_instance(tmp_path) as instance:
        calls = instance.use_uv()
        async with instance.started() as first:
            await wait_until_ready(instance, first)
            assert (await instance.system.call("/echo", 3.0))[0] == 200
            await instance.system.reported(served=3.0)
        assert first.process.returncode == 0
        venv = instance.workspace / "pyworker-venv"
        assert calls.read_text().splitlines() == [
            f"venv -q --python >=3.10 {venv}",
            f"pip install -q --python {venv}/bin/python -e {instance.script.parent}",
        ]
        assert "installing into" in first.output
        assert "listening on port" in instance.log.read_text()

        async with instance.started() as second:
            await second.until("listening on port")
        assert second.process.returncode == 0
        assert "installing" not in second.output
        assert len(calls.read_text().splitlines()) == 2

        # The requirements have changed, and the environment's Python is gone.
        (instance.script.parent / "pyproject.toml").write_text("")
        (venv / "bin" / "python").unlink()
        async with instance.started() as third:
            await third.until("listening on port")
        assert len(calls.read_text().splitlines()) == 4


def make_old(log: Path) -> None:
    """Make the file one that was last written before this boot."""
    boot = this_boot()
    assert boot is not None
    os.utime(log, (boot.at - 60, boot.at - 60))


async def test_the_log_of_the_last_boot_is_renamed_once(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="") as instance:
        log, old = instance.system.model_log, instance.system.model_log.with_suffix(".log.old")
        log.write_text("stale: model is ready\n")
        make_old(log)
        with log.open("a") as model:  # as a model server holds it open
            assert (await instance.run())[0] == EXIT_SETTINGS
            model.write("fresh: model is ready\n")
        assert log.read_text() == "fresh: model is ready\n"
        assert old.read_text() == "stale: model is ready\n"

        await instance.run()
        assert log.read_text() == "fresh: model is ready\n"

        (marker,) = instance.workspace.glob(".rotated*")
        marker.write_text("another boot\n")
        make_old(log)
        instance.alter("boot.py", "OLD_MODEL_LOG_BYTES = 64 * 1024 * 1024", "OLD_MODEL_LOG_BYTES = 9")
        await instance.run()
        assert (log.read_text(), old.read_text()) == ("", "is ready\n")


async def test_a_model_server_that_was_up_before_the_script_is_seen(tmp_path: Path) -> None:
    """The only signal that the model is loaded is a line that was in the log at the first start."""
    async with with_instance(tmp_path) as instance:
        instance.setup = Setup(log=str(instance.system.model_log))
        instance.system.write_log()
        async with instance.started() as script:
            await wait_until_ready(instance, script)
        assert instance.system.model_log.read_text() == "model is ready\n"
        assert f"{instance.system.model_log} was written in this boot" in script.output


async def test_a_log_created_during_a_boot_is_left_alone(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="nothing") as instance:
        await instance.run()
        instance.system.write_log()
        await instance.run()
        assert instance.system.model_log.read_text() == "model is ready\n"


async def test_the_log_of_a_ready_made_worker_is_found(tmp_path: Path) -> None:
    async with with_instance(tmp_path, MODEL_LOG="", BACKEND="own", CONTAINER_ID="") as instance:
        instance.add_worker("own", f'MODEL_LOG = "{instance.system.model_log}"\n')
        instance.system.write_log("stale\n")
        make_old(instance.system.model_log)
        await instance.run()
        assert instance.system.model_log.read_text() == ""


# Starts that fail


async def test_everything_missing_is_one_message_and_one_report(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="", USE_SSL="maybe", PYWORKER_VENV="/none") as instance:
        port = instance.system.url.rsplit(":", 1)[1]
        instance.env |= {"PUBLIC_IPADDR": "", f"VAST_TCP_PORT_{port}": "", "MASTER_TOKEN": 'a"b\\c'}
        instance.env["REPORT_ADDR"] = f"{instance.system.engine_url}/ , {instance.system.engine_url}/e/other"
        status, output = await instance.run()
        assert status == EXIT_SETTINGS
        last = instance.system.last_report
        for text in (output, instance.log.read_text(), last.error_msg):
            for name in ("BACKEND", "PUBLIC_IPADDR", f"VAST_TCP_PORT_{port}", "PYWORKER_VENV"):
                assert f"- {name}: " in text
            assert "USE_SSL: 'maybe' is none of" in text
        assert (last.url, last.mtoken) == ("", 'a"b\\c')
        assert last.disk_usage > 0
        assert instance.system.totals.reports == 2
        assert {r.endpoint for r in instance.system.engine.worker(CONTAINER_ID).reports} == {"local", "other"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fka", "there is no worker 'fka' in {}: set it to one of fake"),
        ("../x", "'../x' is not a worker's name"),
    ],
)
async def test_an_unknown_worker_is_refused(tmp_path: Path, name: str, said: str) -> None:
    async with with_instance(tmp_path, BACKEND=name) as instance:
        assert (await instance.run())[0] == EXIT_SETTINGS
        assert said.format(instance.script.parent) in last_error(instance)


async def test_exactly_the_variables_its_readme_calls_required_are_required(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="needy", HF_TOKEN="") as instance:
        folder = instance.add_worker("needy", FAKE_WORKER)
        row = "| `{}` | {} | for models behind a licence |\n"
        readme = folder / "README.md"
        readme.write_text("HF_TOKEN is required here.\n\n" + row.format("HF_TOKEN", ""))
        async with instance.started() as script:
            await script.until("listening on port")
        readme.write_text(row.format("HF_TOKEN", "required") + row.format("PUBLIC_IPADDR", "required"))
        status, output = await instance.run()
        assert status == EXIT_SETTINGS
        assert "- HF_TOKEN: missing: set it (for models behind a licence)" in output
        assert "PUBLIC_IPADDR" not in output


async def test_comfyui_requires_a_default_workflow(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="comfyui", COMFY_MODEL="", BENCHMARK_JSON_PATH="") as instance:
        folder = instance.add_worker("comfyui", FAKE_WORKER)
        assert (await instance.run())[0] == EXIT_SETTINGS
        assert "COMFY_MODEL: missing" in last_error(instance)
        (folder / "misc").mkdir()
        (folder / "misc" / "benchmark.json").write_text("{}")
        async with instance.started() as script:
            await script.until("listening on port")


@pytest.mark.parametrize("command", ["python3", "openssl", "curl"])
async def test_a_missing_command_is_named(tmp_path: Path, command: str) -> None:
    async with with_instance(
        tmp_path, USE_SSL="true", MASTER_TOKEN='a"\\\n\tü', PYWORKER_VENV=""
    ) as instance:
        (instance.bin / command).unlink()
        status, output = await instance.run()
        assert status == EXIT_SETTINGS
        assert f"- {command} is missing" in output
        if command != "curl":
            assert f"- {command} is missing" in instance.system.last_report.error_msg


async def test_no_token_is_a_commands_argument(tmp_path: Path) -> None:
    """Every user of the machine can read them."""
    async with with_instance(tmp_path, BACKEND="fka", USE_SSL="true", MASTER_TOKEN="a-secret") as instance:
        calls = instance.record_arguments()
        status, _ = await instance.run()
        assert (status, instance.system.last_report.mtoken) == (EXIT_SETTINGS, "a-secret")
        assert "/worker_status/" in calls.read_text()
        assert "a-secret" not in calls.read_text()


async def test_a_workspace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file")
    async with with_instance(tmp_path) as instance:
        status, output = await instance.run()
        assert (status, "WORKSPACE_DIR: " in output) == (EXIT_SETTINGS, True)
        assert "WORKSPACE_DIR: " in last_error(instance)


@pytest.mark.parametrize(
    ("fails", "said"),
    [("venv", "no Python environment could be made in"), ("pip", "packages could not be installed")],
)
async def test_an_installation_that_fails_is_reported_with_its_lines(
    tmp_path: Path, fails: str, said: str
) -> None:
    async with with_instance(tmp_path, TEST_UV_FAILS=fails) as instance:
        calls = instance.use_uv()
        instance.hurry()
        assert (await instance.run())[0] == EXIT_FAILED
        assert last_error(instance).startswith(said)
        assert last_error(instance).endswith("\nuv fails\nuv fails\nuv fails")

        calls.unlink()
        instance.env["TEST_UV_FAILS"] = ""
        async with instance.started() as script:
            await script.until("listening on port")
        assert [line.split()[0] for line in calls.read_text().splitlines()][-1] == "pip"


async def test_without_git_the_code_to_be_fetched_is_named(tmp_path: Path) -> None:
    async with with_instance(tmp_path, PYWORKER_REPO="https://me:secret@nowhere.example/mine") as instance:
        (instance.bin / "git").unlink()
        said = "git is missing: install it, to fetch https://nowhere.example/mine"
        assert (await instance.run())[0] == EXIT_SETTINGS
        assert last_error(instance) == said


async def test_a_repository_without_a_name_is_refused(tmp_path: Path) -> None:
    async with with_instance(tmp_path, PYWORKER_REPO="https://nowhere.example/..") as instance:
        assert (await instance.run())[0] == EXIT_SETTINGS
        assert "PYWORKER_REPO: 'https://nowhere.example/..' does not end in a name" in last_error(instance)


async def test_without_a_network_the_failed_download_is_named(tmp_path: Path) -> None:
    async with with_instance(tmp_path) as instance:
        instance.hurry()
        with free_port() as port:
            instance.env["REPORT_ADDR"] = f"http://127.0.0.1:{port}, http://127.0.0.1:{port}/e/x"
            instance.env["PYWORKER_REPO"] = f"http://me:secret@127.0.0.1:{port}/mine.git"
            status, output = await instance.run()
        assert status == EXIT_FAILED
        assert f"start_server.sh: http://127.0.0.1:{port}/mine.git could not be fetched" in output
        assert output.count("could not be reported to") == 2
        assert not list(instance.workspace.glob("mine*/worker*"))


# Python


OLD_PYTHON = """#!/bin/sh
[ "$1" = -V ] && echo "Python 3.8.18"
exit 1
"""
# An installer that has a newer Python, once it was asked to fetch one.
UV_WITH_PYTHON = """#!/bin/sh
case "$1 $2" in
  "python find") [ -e "$TEST_FETCHED" ] && echo "$TEST_PYTHON" ;;
  "python install") : >"$TEST_FETCHED" ;;
esac
"""


def write_command(instance: Instance, name: str, text: str) -> None:
    (instance.bin / name).unlink(missing_ok=True)
    (instance.bin / name).write_text(text)
    (instance.bin / name).chmod(0o755)


async def test_a_python_that_is_too_old_is_refused_unless_there_is_another(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="quick", MASTER_TOKEN='a"b\\c', CONTAINER_ID="12") as instance:
        instance.add_worker("quick", "")
        python3 = (instance.bin / "python3").read_text()
        write_command(instance, "python3", OLD_PYTHON)
        assert (await instance.run())[0] == 0  # PYWORKER_VENV has a newer one

        # Its environment is never touched: the worker runs in the one that is there.
        venv, instance.env["PYWORKER_VENV"] = Path(instance.environment()["PYWORKER_VENV"]), ""
        status, output = await instance.run()
        assert status == EXIT_SETTINGS
        expected = "cannot start:\n  - python3 is Python 3.8.18, older than 3.10: install a newer one, or uv"
        assert expected in output
        assert expected in instance.log.read_text()
        last = instance.system.engine.worker(12).last
        assert last is not None
        assert last.error_msg.startswith(expected)
        assert (last.mtoken, last.disk_usage > 0) == ('a"b\\c', True)

        instance.env["TEST_FETCHED"] = str(tmp_path / "fetched")
        instance.env["TEST_PYTHON"] = str(venv / "bin" / "python")
        write_command(instance, "uv", UV_WITH_PYTHON)
        instance.env["PUBLIC_IPADDR"] = ""  # the launcher has its say
        status, output = await instance.run()
        assert (status, "PUBLIC_IPADDR: missing" in output) == (EXIT_SETTINGS, True)
        assert "fetching a Python, 3.10 or newer" in output

        (instance.bin / "uv").unlink()
        write_command(instance, "python3.11", python3)
        status, output = await instance.run()
        assert (status, "PUBLIC_IPADDR: missing" in output) == (EXIT_SETTINGS, True)
        assert "fetching" not in output


async def test_without_python3_the_given_environment_or_uv_has_a_python(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="quick") as instance:
        instance.add_worker("quick", "")
        (instance.bin / "python3").unlink()
        assert (await instance.run())[0] == 0  # PYWORKER_VENV has one

        python = Path(instance.environment()["PYWORKER_VENV"]) / "bin" / "python"
        instance.env |= {"PYWORKER_VENV": "", "PUBLIC_IPADDR": ""}  # the launcher has its say
        instance.env |= {"TEST_FETCHED": str(tmp_path / "fetched"), "TEST_PYTHON": str(python)}
        write_command(instance, "uv", UV_WITH_PYTHON)
        status, output = await instance.run()
        assert (status, "PUBLIC_IPADDR: missing" in output) == (EXIT_SETTINGS, True)
        assert "fetching a Python, 3.10 or newer" in output


# The framework of a piped script


def framework_files(version: str) -> dict[str, str]:
    """The files of the framework's launcher, and of a worker that says its version."""
    names = ["__init__", "launch/*", "runtime/__init__", "runtime/exit_status", "runtime/intervals"]
    files = [file for name in names for file in (ROOT / "lib").glob(f"{name}.py")]
    code = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    return {**code, "workers/own/server.py": f"print({version!r})"}


def framework_in(folder: Path) -> Repository:
    """Make a repository with the launcher and the worker of `framework_files`."""
    return Repository(folder, framework_files("one"))


async def test_a_framework_from_an_index_is_kept_updated_and_replaced(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for version in ("1.0", "1.1"):
        write_wheel(index, "pyworker", version, framework_files(f"version {version}"))
    async with with_instance(tmp_path, BACKEND="own", PIP_NO_INDEX="1") as instance:

        async def run(framework: str, **variables: str) -> tuple[int, str]:
            instance.env |= {"PYWORKER_FRAMEWORK": framework, "PIP_FIND_LINKS": str(index), **variables}
            return await instance.run(instance.script)

        instance.hurry()
        status, output = await run("pyworker==1.0")
        assert (status, "version 1.0\n" in output) == (0, True), output
        assert "fetching pyworker==1.0\n" in output
        status, output = await run("pyworker==1.0", PIP_FIND_LINKS="")
        assert (status, "version 1.0\n" in output, "fetching" in output) == (0, True, False)
        status, output = await run("pyworker >= 1")
        assert (status, "version 1.1\n" in output) == (0, True), output

        write_wheel(index, "pyworker", "1.2", framework_files("version 1.2"))
        instance.force_update.touch()
        status, output = await run("pyworker >= 1")
        assert (status, "version 1.2\n" in output, instance.force_update.exists()) == (0, True, False)
        instance.force_update.touch()
        status, output = await run("pyworker >= 1", PIP_FIND_LINKS="")
        assert (status, "version 1.2\n" in output) == (0, True)
        assert "could not be updated: it runs unchanged" in output

        status, output = await run("pyworker == 9")
        assert status == EXIT_FAILED
        error = instance.system.last_report.error_msg
        assert error.startswith(
            "pyworker == 9 could not be fetched: check the network and PYWORKER_FRAMEWORK"
        )
        assert "No matching distribution found for pyworker==9" in error
        status, output = await run("pyworker==1.0", PYWORKER_REF="main")
        assert (status, "PYWORKER_REF: a package has no git references" in output) == (EXIT_SETTINGS, True)

        calls = instance.use_uv()  # which installs nothing
        status, output = await run("other[gpu]==2")
        said = "other[gpu]==2 has no lib/launch: check PYWORKER_FRAMEWORK"
        assert (status, said in output) == (EXIT_SETTINGS, True)
        assert re.fullmatch(
            rf"pip install --python {instance.bin}/python3 -q --no-deps --target \S+/code other\[gpu\]==2\n",
            calls.read_text(),
        )
    assert not [name for name in os.listdir(instance.workspace) if name.startswith(".pyworker-start")]


NO_FRAMEWORK = ("my-framework", "pyworker", "-rreqs.txt", "-rreqs==1", "~", "..", " ", "pyworker==1.0#main")


async def test_a_mistyped_folder_is_no_package(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for name in ("pyworker", "my_framework"):
        write_wheel(index, name, "1.0", framework_files("a stranger's"))
    async with with_instance(
        tmp_path, BACKEND="own", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index)
    ) as instance:
        for framework in NO_FRAMEWORK:
            instance.env["PYWORKER_FRAMEWORK"] = framework
            status, output = await instance.run(instance.script)
            assert (status, "fetching" in output) == (EXIT_SETTINGS, False), output
            said = (
                f"cannot start:\n  - PYWORKER_FRAMEWORK: there is no folder '{framework}' with lib/launch, "
            )
            assert said in output
            assert instance.system.last_report.error_msg.startswith(said)
        assert os.listdir(instance.workspace) == ["pyworker.log"]


async def test_the_launcher_refuses_a_mistyped_folder_that_an_older_script_installed(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="own", PYWORKER_FRAMEWORK="my-framework") as instance:
        replace_in(instance.script, "PACKAGE='^", "PACKAGE='|")
        code = instance.workspace / "pyworker-framework-my-framework"
        for name, text in framework_files("a stranger's").items():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(text)
        status, output = await instance.run(instance.script)
        said = "  - PYWORKER_FRAMEWORK: there is no folder 'my-framework' with lib/launch, and "
        assert (status, said in output) == (EXIT_SETTINGS, True), output
        assert "a stranger's" not in output


async def test_a_piped_script_fetches_the_framework_from_its_variable(tmp_path: Path) -> None:
    source = framework_in(tmp_path / "fork")
    first = source.commit({"workers/own/server.py": "print('two')"})
    source.commit({"workers/own/server.py": "print('three')"})
    workspace = str(tmp_path / "work space")
    async with with_instance(tmp_path, BACKEND="own", WORKSPACE_DIR=workspace) as instance:
        instance.hurry()
        instance.env["PYWORKER_FRAMEWORK"] = f"{source.url}#{first}"
        status, output = await instance.run(instance.script)
        assert (status, "two\n" in output) == (0, True)
        assert f"fetching {source.url} at {first}\n" in output

        status, output = await instance.run(instance.script)
        assert (status, "two\n" in output, "fetching" in output) == (0, True, False)

        # Another reference, an update, and a repository that is gone.
        instance.env["PYWORKER_REF"] = "main"
        status, output = await instance.run(instance.script)
        assert (status, f"fetching {source.url} at main in place of {first}\n" in output) == (0, True)
        assert "three\n" in output
        source.commit({"workers/own/server.py": "print('four')"})
        instance.force_update.touch()
        status, output = await instance.run(instance.script)
        assert (status, "four\n" in output, instance.force_update.exists()) == (0, True, False)
        source.folder.rename(tmp_path / "gone")
        status, output = await instance.run(instance.script)
        assert (status, "four\n" in output) == (0, True)

        instance.env["PYWORKER_FRAMEWORK"] = "file:///elsewhere/fork"
        status, output = await instance.run(instance.script)
        assert (status, "is a clone of file:///" in output) == (EXIT_SETTINGS, True)
    assert not [name for name in os.listdir(workspace) if name.startswith(".pyworker-start")]


async def test_the_framework_is_installed_from_its_variable_beside_own_code(tmp_path: Path) -> None:
    source = framework_in(tmp_path / "fork")
    mine = Repository(tmp_path / "fork.git", {"worker.py": "print('mine')"})
    async with with_instance(tmp_path, PYWORKER_REPO=mine.url, PYWORKER_FRAMEWORK=source.url) as instance:
        calls = instance.use_uv()
        # A Python that has none of the tests' packages, so no framework either.
        instance.env |= {"TEST_PYTHON": sys._base_executable, "PYTHONPATH": ""}  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportPrivateUsage]
        status, output = await instance.run(instance.script)
        assert (status, "mine\n" in output) == (0, True), output
        framework, venv = instance.workspace / "pyworker-framework", instance.workspace / "pyworker-venv"
        pip = f"pip install -q --python {venv}/bin/python"
        assert calls.read_text().splitlines()[1:] == [f"{pip} -e {framework}"]

        source.commit({"lib/server.py": "", "lib/new.py": ""})
        instance.force_update.touch()
        instance.env["PYTHONPATH"] = str(framework)  # as the real installer makes it importable
        assert (await instance.run(instance.script))[0] == 0
        assert calls.read_text().splitlines()[2:] == [f"{pip} --upgrade -e {framework}"]
        assert (framework / "lib" / "new.py").exists()
        assert not instance.force_update.exists()


async def test_a_local_framework_is_used_where_it_is(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="quick") as instance:
        instance.add_worker("quick", "import os; print('in', os.getcwd())")
        instance.env["PYWORKER_FRAMEWORK"] = str(instance.script.parent)
        status, output = await instance.run(instance.script)
        assert (status, f"in {instance.script.parent}\n" in output) == (0, True)


@pytest.mark.parametrize(
    ("framework", "said"),
    [
        ("file:///nowhere/fork#x", "file:///nowhere/fork at x could not be fetched: check the network"),
        ("http://me:secret@127.0.0.1:1/fork", "http://127.0.0.1:1/fork could not be fetched"),
        ("/nowhere", "/nowhere could not be fetched"),
    ],
)
async def test_a_framework_that_cannot_be_fetched_is_reported(
    tmp_path: Path, framework: str, said: str
) -> None:
    async with with_instance(tmp_path, PYWORKER_FRAMEWORK=framework) as instance:
        instance.hurry()
        status, output = await instance.run(instance.script)
        assert (status, f"start_server.sh: {said}" in output) == (EXIT_FAILED, True)
        assert output.count("fatal: ") >= 3
        assert said in instance.log.read_text()
        assert "secret" not in output
        last = instance.system.last_report
        assert (last.id, last.mtoken) == (CONTAINER_ID, MASTER_TOKEN)
        assert last.error_msg.startswith(said)
        assert "\nfatal: " in last.error_msg
        assert os.listdir(instance.workspace) == ["pyworker.log"]


async def test_a_repository_without_the_framework_is_refused(tmp_path: Path) -> None:
    other = Repository(tmp_path / "other", {"worker.py": ""})
    async with with_instance(tmp_path, PYWORKER_FRAMEWORK=other.url) as instance:
        status, output = await instance.run(instance.script)
        assert (status, "has no lib/launch: check PYWORKER_FRAMEWORK" in output) == (EXIT_SETTINGS, True)


HANGING_GIT = """#!/bin/sh
echo "git hangs" >&2
exec tail -f /dev/null
"""


async def test_the_script_says_what_it_waits_for_and_ends_at_a_signal(tmp_path: Path) -> None:
    async with with_instance(tmp_path, PYWORKER_FRAMEWORK="file:///x") as instance:
        write_command(instance, "git", HANGING_GIT)
        replace_in(instance.script, "WAITING_S=30", "WAITING_S=1")
        async with instance.started(instance.script) as script:
            await script.until("still fetching file:///x, for 1 s so far")
            script.process.terminate()
            assert (await script.end()).status == 128 + signal.SIGTERM
            assert "stopped by SIGTERM" in script.output
        assert os.listdir(instance.workspace) == ["pyworker.log"]


async def test_the_launcher_says_what_it_waits_for(tmp_path: Path) -> None:
    async with with_instance(tmp_path, TEST_UV_HANGS="1") as instance:
        instance.use_uv()
        instance.alter("log.py", "self._since_s + interval_s(0.0)", "self._since_s + 0.01")
        async with instance.started() as first:
            await first.until("still installing into")
            async with instance.started() as second:
                await second.until(f"still waiting for another start_server.sh in {instance.workspace}, for")
                for script in (second, first):
                    script.process.terminate()
                    assert (await script.end()).status == 128 + signal.SIGTERM


# Another process on the port


async def test_the_holder_of_the_port_is_named_and_left_alone(tmp_path: Path) -> None:
    async with (
        with_instance(tmp_path) as instance,
        await asyncio.start_server(hang_up, "127.0.0.1", port_of(instance)),
    ):
        status, output = await instance.run()
        assert status == EXIT_PORT_TAKEN
        assert f"port {port_of(instance)} is in use by process {os.getpid()} (" in output
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(instance))
        writer.close()
        await writer.wait_closed()
        assert instance.system.last_report is None


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def port_of(instance: Instance) -> int:
    """The worker's public port."""
    return int(instance.system.url.rsplit(":", 1)[1])


# The end of the worker


async def test_a_crash_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="crashing") as instance:
        instance.add_worker("crashing", CRASHING_WORKER)
        assert (await instance.run())[0] == 7
        lines = 'a first line\nthen "boom": ü, \\ and \x01'
        assert last_error(instance) == f"the worker ended with exit status 7\n{lines}"
        assert "the worker ended with exit status 7" in instance.log.read_text()


async def test_a_worker_that_is_killed_is_reported(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="crashing", TEST_KILLED="1") as instance:
        instance.add_worker("crashing", CRASHING_WORKER)
        assert (await instance.run())[0] == 128 + signal.SIGKILL
        assert last_error(instance).startswith("the worker was ended by SIGKILL\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_worker(tmp_path: Path, number: signal.Signals) -> None:
    async with with_instance(tmp_path) as instance, instance.started() as script:
        await wait_until_ready(instance, script)
        async with anyio.create_task_group() as calls:
            calls.start_soon(call_held, instance)
            await instance.system.model.until(lambda: instance.system.model.working == 1)
            script.process.send_signal(number)
            await script.until("draining")
            instance.system.model.release()
        assert (await script.end()).status == 0
        assert instance.system.totals.cur_perf == 5.0
        assert "the worker ended with exit status 0" in script.output


async def call_held(instance: Instance) -> None:
    assert (await instance.system.call("/held", 5.0))[0] == 200


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with with_instance(tmp_path, DRAIN_TIMEOUT_S="600") as instance, instance.started() as script:
        await wait_until_ready(instance, script)
        async with anyio.create_task_group() as calls:
            calls.start_soon(call_cut, instance)
            await instance.system.model.until(lambda: instance.system.model.working == 1)
            script.process.terminate()
            await script.until("draining")
            script.process.terminate()
        assert (await script.end()).status == EXIT_FAILED
        assert last_error(instance) == ""


async def call_cut(instance: Instance) -> None:
    with pytest.raises(aiohttp.ClientError):
        await instance.system.call("/held", 5.0)


async def test_a_second_start_waits_for_the_installation_of_the_first(tmp_path: Path) -> None:
    async with with_instance(tmp_path, TEST_UV_HANGS="1") as instance:
        instance.use_uv()
        async with instance.started() as first:
            await first.until("uv hangs")
            async with instance.started() as second:
                await second.until("waiting for another start_server.sh")
                first.process.terminate()
                await second.until("uv hangs")
                assert second.output.count("installing into") == 1
        async with instance.started() as first:
            await first.until("uv hangs")
            async with instance.started() as second:
                await second.until("waiting for another start_server.sh")
                for script in (second, first):
                    script.process.terminate()
                    assert (await script.end()).status == 128 + signal.SIGTERM


async def test_a_signal_ends_an_installation(tmp_path: Path) -> None:
    async with with_instance(tmp_path, TEST_UV_HANGS="1") as instance:
        instance.use_uv()
        async with instance.started() as script:
            await script.until("uv hangs")
            script.process.terminate()
            assert (await script.end()).status == 128 + signal.SIGTERM
            assert "stopped by SIGTERM" in script.output


TALKING_WORKER = """
for number in range(20000):
    print("line", number)
"""


async def test_the_worker_outlives_its_console_and_its_log_is_bounded(tmp_path: Path) -> None:
    async with with_instance(tmp_path, BACKEND="talking") as instance:
        instance.add_worker("talking", TALKING_WORKER)
        instance.alter("log.py", "LOG_BYTES = 64 * 1024 * 1024", "LOG_BYTES = 50000")
        reader, console = os.pipe()
        os.close(reader)
        process = await asyncio.create_subprocess_exec(
            instance.script, env=instance.environment(), stdout=console, stderr=console
        )
        os.close(console)
        with anyio.fail_after(GUARD_S):
            assert await process.wait() == 0
        assert "the worker ended with exit status 0" in instance.log.read_text()
        for log in (instance.log, instance.log.with_suffix(".log.old")):
            assert size(log) <= 50000 + 65536  # it is written in chunks


def size(path: Path) -> int:
    return path.stat().st_size


# TLS


async def trusted(instance: Instance) -> ssl.SSLContext:
    """The TLS context of a client that trusts the engine's authority only."""
    async with instance.system.http.get(instance.system.engine_url + "/static/jvastai_root.cer") as answer:
        assert answer.status == 200
        return ssl.create_default_context(cadata=await answer.text())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def certificate(instance: Instance, trust: ssl.SSLContext) -> str:
    """The worker's certificate, as PEM text."""
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(instance), ssl=trust)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(shown)


async def test_tls_from_the_request_to_the_renewal(tmp_path: Path) -> None:
    async with with_instance(tmp_path, USE_SSL="true") as instance:
        instance.system.url = instance.system.url.replace("http:", "https:")
        engine = instance.system.engine
        engine.authority.lifetime_s = DAY_S
        instance.alter("certificate.py", "CERTIFICATE_CHECK_S = 3600.0", "CERTIFICATE_CHECK_S = 1.0")
        set_time_ahead = instance.use_own_clock()
        async with instance.started() as script:
            first = await engine.wait_for(lambda: engine.certificates, GUARD_S)
            assert [c.instance_id for c in first] == [CONTAINER_ID]
            engine.authority.lifetime_s = DEFAULT_LIFETIME_S
            await wait_until_ready(instance, script)
            assert instance.system.last_report.url == instance.system.url
            assert mode(tmp_path / "instance.key") == 0o600

            trust, closing = await trusted(instance), {"Connection": "close"}
            assert (await instance.system.call("/echo", 3.0, ssl=trust, headers=closing))[0] == 200
            assert await certificate(instance, trust) == first[0].pem
            async with aiohttp.ClientSession() as strangers:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await strangers.get(instance.system.url + "/ping")
                elsewhere = instance.system.url.replace("127.0.0.1", "localhost")
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await strangers.get(elsewhere + "/ping", ssl=trust)

            set_time_ahead(0.7 * DAY_S)  # a third of the certificate's lifetime is left
            await engine.wait_for(lambda: len(engine.certificates) == 2, GUARD_S)
            with anyio.fail_after(GUARD_S):
                while await certificate(instance, trust) != engine.certificates[1].pem:
                    pass
            assert (await instance.system.call("/echo", 3.0, ssl=trust, headers=closing))[0] == 200


async def test_a_certificate_is_kept_until_the_address_changes(tmp_path: Path) -> None:
    async with with_instance(tmp_path, USE_SSL="true", BACKEND="quick") as instance:
        instance.add_worker("quick", "")
        engine = instance.system.engine
        for address, signed in (("127.0.0.1", 1), ("127.0.0.1", 1), ("[::1]", 2), ("a.internal", 3)):
            instance.env["PUBLIC_IPADDR"] = address
            assert (await instance.run())[0] == 0
            assert len(engine.certificates) == signed
        names = x509.load_pem_x509_certificate(engine.certificates[1].pem.encode())
        assert "::1" in str(names.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


async def test_a_certificate_that_has_expired_is_not_used(tmp_path: Path) -> None:
    async with with_instance(tmp_path, USE_SSL="true") as instance:
        instance.system.url = instance.system.url.replace("http:", "https:")
        instance.system.engine.authority.lifetime_s = -1.0
        instance.hurry()
        assert (await instance.run())[0] == EXIT_FAILED
        assert last_error(instance).startswith("no certificate for 127.0.0.1: check VAST_CONSOLE_URL")
        assert "has expired" in last_error(instance)
        assert "instance.crt" not in os.listdir(tmp_path)


async def test_a_certificate_due_for_renewal_is_used_if_renewal_fails(tmp_path: Path) -> None:
    async with with_instance(tmp_path, USE_SSL="true", BACKEND="quick") as instance:
        instance.add_worker("quick", "")
        instance.system.engine.authority.lifetime_s = 60.0
        instance.hurry()
        assert (await instance.run())[0] == 0
        instance.env["VAST_CONSOLE_URL"] = instance.system.engine_url + "/nothing"
        status, output = await instance.run()
        assert (status, "404" in output) == (0, True)


# A custom repository


OWN_WORKER = "import tiny; print('version', tiny.VERSION, flush=True)\n" + FAKE_WORKER


async def test_a_custom_repository_is_cloned_by_a_piped_script_and_updated_on_request(tmp_path: Path) -> None:
    paths = [sysconfig.get_path("purelib"), str(ROOT)]
    requirement = make_wheel(tmp_path, "tiny", "1.0", paths)
    mine = Repository(tmp_path / "mine", {"worker.py": OWN_WORKER, "requirements.txt": requirement})
    async with with_instance(
        tmp_path, PYWORKER_REPO=mine.url, PYWORKER_VENV="", PIP_NO_INDEX="1"
    ) as instance:
        instance.env |= {"BACKEND": "", "PYWORKER_FRAMEWORK": str(instance.script.parent)}
        async with instance.started(instance.script) as first:
            await first.until("listening on port")
        assert "version 1.0" in first.output

        mine.commit({"requirements.txt": make_wheel(tmp_path, "tiny", "2.0", paths)})
        async with instance.started(instance.script) as second:
            await second.until("listening on port")
        assert "version 1.0" in second.output
        assert "installing" not in second.output

        instance.force_update.touch()
        async with instance.started(instance.script) as third:
            await third.until("listening on port")
        assert "version 2.0" in third.output
        assert not instance.force_update.exists()


async def test_a_git_reference_is_fetched_and_a_failure_keeps_the_code(tmp_path: Path) -> None:
    mine = Repository(tmp_path / "mine", {"worker.py": "print('one')"})
    old = mine.commit({"worker.py": "print('two')"})
    mine.commit({"worker.py": "print('three')"})
    async with with_instance(tmp_path, PYWORKER_REPO=mine.url, PYWORKER_REF=old) as instance:
        instance.hurry()
        status, output = await instance.run()
        assert (status, "two\n" in output) == (0, True)
        for reference, before in (("main", old), ("", "main"), ("main", "the default branch")):
            instance.env["PYWORKER_REF"] = reference
            _, output = await instance.run()
            assert "three\n" in output
            assert f"in place of {before}\n" in output

        mine.folder.rename(tmp_path / "gone")
        instance.force_update.touch()
        status, output = await instance.run()
        assert (status, "three\n" in output) == (0, True)
        assert "could not be updated: it runs unchanged" in output
        assert instance.force_update.exists()

        instance.env["PYWORKER_REF"] = "other"
        instance.force_update.unlink()
        assert (await instance.run())[0] == EXIT_FAILED
        assert "at other could not be fetched: check the network" in last_error(instance)

        instance.env["PYWORKER_REPO"] = "file:///elsewhere/mine"
        assert (await instance.run())[0] == EXIT_SETTINGS
        assert "is a clone of file:///" in last_error(instance)


# Another user


def python_for_all() -> str:
    """Return a python3 that any user may run; skip the test if there is none."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        try:
            subprocess.run([path, "-V"], user=NOBODY, group=NOBODY, check=True, capture_output=True)
        except OSError:
            continue
        return path
    pytest.skip("there is no python3 that another user may run")


def give_away(root: Path) -> None:
    """Change the owner of the folder and of everything in it to the other user."""
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run the script as another user")
async def test_the_script_works_for_a_user_other_than_root(tmp_path: Path) -> None:
    python = python_for_all()
    async with with_instance(tmp_path, PYWORKER_REPO="https://nowhere.example/mine") as instance:
        with tempfile.TemporaryDirectory(prefix="pyworker-nobody-") as folder:
            root = Path(folder)
            for parts in (("venv", "bin"), ("workspace", "mine")):
                root.joinpath(*parts).mkdir(parents=True)
            (root / "venv" / "bin" / "python").symlink_to(python)
            (root / "venv" / "bin" / "python3").symlink_to(python)
            (root / "workspace" / "mine" / "worker.py").write_text("import os; print('user', os.getuid())")
            shutil.copytree(ROOT / "lib", root / "framework" / "lib")
            give_away(root)
            instance.env["WORKSPACE_DIR"] = str(root / "workspace")
            instance.env["PYWORKER_VENV"] = str(root / "venv")
            instance.env["PYWORKER_FRAMEWORK"] = str(root / "framework")
            instance.env["PATH"] = f"{root}/venv/bin:{instance.bin}:{os.environ['PATH']}"
            status, output = await instance.run(instance.script, user=NOBODY)
            assert (status, f"user {NOBODY}\n" in output) == (0, True), output
