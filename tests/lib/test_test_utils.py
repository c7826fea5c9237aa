from __future__ import annotations

import argparse
import sys

import pytest

from lib import client, test_harness, test_utils
from workers.hello_world.data_types import InputData


def run_by_test_utils() -> None:
    test_utils.test_load_cmd(InputData, "/generate", arg_parser=test_utils.test_args)


def run_by_harness() -> None:
    test_harness.run(InputData.for_test(), "/generate")


def exit_code(*args: str, monkeypatch: pytest.MonkeyPatch, harness: bool = False) -> object:
    monkeypatch.setattr(sys, "argv", ["test_load", *args])
    command = run_by_harness if harness else run_by_test_utils
    with pytest.raises(SystemExit) as raised:
        command()
    return raised.value.code


@pytest.mark.parametrize("harness", [False, True])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "-k KEY and -e NAME"),
        (("-l", "-n", "0"), "argument -n: must be an integer, 1 or more"),
        (("-l", "-rps", "0"), "argument -rps: must be a finite number above 0"),
        (("-l", "-rps", "nan"), "argument -rps"),
        (("-l", "-n", "many"), "argument -n: must be an integer, 1 or more"),
        (("-l", "-rps", "many"), "argument -rps: must be a finite number above 0"),
        (("-l", "-c", "0"), "argument -c/--concurrency: must be an integer, 1 or more"),
        (("-l", "-c", "2", "-rps", "1"), "argument -c: not allowed with argument -rps"),
        (("-l", "--duration", "0"), "argument --duration: must be a finite number above 0"),
        (("-l", "--plot", "picture.txt"), "argument --plot: picture.txt must end in one of .pdf, .png, .svg"),
        (("-l", "--plot", "no/such/folder/a.png"), "argument --plot: no/such/folder/a.png cannot be written"),
    ],
)
def test_wrong_arguments_are_reported(
    args: tuple[str, ...],
    message: str,
    harness: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(*args, monkeypatch=monkeypatch, harness=harness) == 2
    assert message in capsys.readouterr().err


def test_help_lists_every_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("-h", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    arguments = ("-k", "-e", "-l", "-i", "--engine", "-n", "-rps", "--duration", "--json", "--plot")
    assert all(f"  {argument} " in text for argument in arguments)
    assert "--concurrency N" in text


def test_the_shared_parser_is_not_changed() -> None:
    args = test_utils.test_args.parse_args(["-k", "KEY", "-e", "mine"])

    names = {"api_key": "KEY", "endpoint_group_name": "mine"}
    engine = {"instance": "prod", "server_url": "https://run.vast.ai", "engine": None}
    assert args == argparse.Namespace(**names, **engine)


@pytest.mark.parametrize(
    ("options", "instance", "server_url"),
    [
        ([], "prod", "https://run.vast.ai"),
        (["-i", "prod"], "prod", "https://run.vast.ai"),
        (["-i", "alpha"], "alpha", "https://run-alpha.vast.ai"),
        (["-i", "candidate"], "candidate", "https://run-candidate.vast.ai"),
        (["-i", "local"], "local", "http://127.0.0.1:8081"),
        (["-l"], "local", "http://127.0.0.1:8081"),
        (["-i", "alpha", "-l"], "local", "http://127.0.0.1:8081"),
        (["--engine", "http://127.0.0.1:1"], "local", "http://127.0.0.1:1"),
        (["--engine", "http://127.0.0.1:1", "-l"], "local", "http://127.0.0.1:1"),
        (["-i", "prod", "--engine", "http://127.0.0.1:1"], "local", "http://127.0.0.1:1"),
    ],
)
def test_an_example_client_reads_the_engine_of_the_arguments(
    options: list[str], instance: str, server_url: str
) -> None:
    shared = test_utils.test_args
    for parser in (shared, argparse.ArgumentParser(parents=[shared], add_help=False)):
        args = parser.parse_args(["-k", "KEY", "-e", "mine", *options])
        assert (args.instance, args.server_url) == (instance, server_url)
        target = client.target_from_args(parser, args)
        assert target == client.Target(server_url, "mine", "KEY")


def test_an_unknown_instance_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        test_utils.test_args.parse_args(["-i", "beta"])
    assert "argument -i: invalid choice: 'beta'" in capsys.readouterr().err


def test_an_authors_own_arguments_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(parents=[test_utils.test_args], add_help=False)
    parser.add_argument("-c", dest="chapter", help="the author's chapter")
    parser.add_argument("--json", help="the author's file")
    args = ["--engine", "http://127.0.0.1:1", "-c", "ten", "--json", "file"]
    monkeypatch.setattr(sys, "argv", ["test_load", *args])
    with pytest.raises(SystemExit) as raised:
        test_utils.test_load_cmd(InputData, "/generate", parser)

    assert raised.value.code == 1
    assert capsys.readouterr().out.startswith("1 of 1 requests")


def test_pytest_collects_nothing_from_these_modules() -> None:
    assert not getattr(test_utils.test_load_cmd, "__test__", True)
    assert not any((test_utils.__test__, test_harness.__test__))


def test_long_answers_are_printed_without_their_middle(capsys: pytest.CaptureFixture[str]) -> None:
    test_utils.print_truncate_res("short")
    test_utils.print_truncate_res("a" * 50 + "b" * 500 + "c" * 100)

    assert capsys.readouterr().out == "short\n" + "a" * 50 + "...." + "c" * 100 + "\n"
