"""Settings from the environment, with all problems in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib.errors import SettingsError
from lib.runtime.settings import DEFAULT_REPORT_ADDR, STATUS_ONLY_ADDR, Settings

REQUIRED = {"CONTAINER_ID": "7", "PUBLIC_IPADDR": "1.2.3.4", "VAST_TCP_PORT_3000": "40123"}


def read(**environ: str) -> Settings:
    return Settings.from_env({**REQUIRED, **environ})


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env(environ)
    assert all(problem in str(raised.value) for problem in raised.value.problems)
    return raised.value.problems


def test_defaults_are_those_of_the_instance() -> None:
    settings = read()
    assert settings == Settings(container_id=7, public_url="http://1.2.3.4:40123")
    assert (settings.worker_port, settings.worker_http_port) == (3000, 3001)
    assert settings.report_addrs == (DEFAULT_REPORT_ADDR,)
    assert (settings.ssl_cert, settings.ssl_key) == (Path("/etc/instance.crt"), Path("/etc/instance.key"))
    assert (settings.max_json_bytes, settings.max_request_bytes) == (64 * 2**20, 2**30)
    assert (settings.max_spool_bytes, settings.trusted_proxies) == (4 * 2**30, ())
    assert settings.max_body_memory_bytes is None
    assert (settings.drain_timeout_s, settings.model_timeout_s) == (30.0, None)
    assert settings.model_load_timeout_s is None
    assert not settings.unsecured


def test_trusted_proxies_are_addresses_and_networks() -> None:
    read_proxies = read(TRUSTED_PROXIES="10.0.0.0/8, 192.0.2.1,2001:db8::/32").trusted_proxies
    assert [str(network) for network in read_proxies] == ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]
    [problem] = problems({**REQUIRED, "TRUSTED_PROXIES": "10.0.0.0/8,proxy"})
    assert "'proxy', which is neither an IP address nor a network" in problem


def test_further_names_of_the_loopback_port() -> None:
    assert read().worker_http_names == ()
    names = read(WORKER_HTTP_NAMES="Worker.Example, metrics.example.,[FD00::1]").worker_http_names
    assert names == ("worker.example", "metrics.example", "fd00::1")


@pytest.mark.parametrize("wrong", ["a:80", "http://a", "a/b", "*", "*.example", "a b", "user@a", "fd00::1"])
def test_what_is_no_name_of_the_loopback_port(wrong: str) -> None:
    [problem] = problems({**REQUIRED, "WORKER_HTTP_NAMES": f"worker.example,{wrong}"})
    assert problem.startswith("WORKER_HTTP_NAMES: ")
    assert f"{wrong!r} is not the name of a host, without a port" in problem


def test_files_may_be_elsewhere() -> None:
    settings = read(SSL_CERT="/c", SSL_KEY="/k", FORCE_UPDATE_FILE="/u", WORKSPACE_DIR="/w")
    assert (settings.ssl_cert, settings.ssl_key) == (Path("/c"), Path("/k"))
    assert (settings.force_update_file, settings.workspace_dir) == (Path("/u"), Path("/w"))


def test_all_missing_variables_are_named_with_their_purpose() -> None:
    assert problems({}) == (
        "CONTAINER_ID: missing (the instance's id, an integer)",
        "PUBLIC_IPADDR: missing (the instance's public address)",
        "VAST_TCP_PORT_3000: missing (the public port that leads to WORKER_PORT 3000)",
    )


def test_all_malformed_variables_are_named_too() -> None:
    wrong = {
        "CONTAINER_ID": "seven",
        "WORKER_PORT": "3000",
        "VAST_TCP_PORT_3000": "70000",
        "UNSECURED": "perhaps",
        "AUTH_SCHEME": "none",
        "DRAIN_TIMEOUT_S": "nan",
        "REPORT_ADDR": "run.vast.ai",
        "LOG_FORMAT": "xml",
        "MAX_JSON_BYTES": "0",
    }
    found = problems(wrong)
    assert {line.split(":")[0] for line in found} == {*wrong, "PUBLIC_IPADDR"} - {"WORKER_PORT"}
    assert "UNSECURED: 'perhaps' is none of true, false, 1, 0, yes, no, on, off (accept unsigned" in str(
        found
    )


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        *((raw, True) for raw in ("true", "1", "YES", "On")),
        *((raw, False) for raw in ("False", "0", "no", "OFF")),
    ],
)
def test_booleans(raw: str, value: bool) -> None:
    assert read(USE_SSL=raw).use_ssl is value


def test_empty_is_unset_and_white_space_is_ignored() -> None:
    assert read(CONTAINER_ID=" 8\n", REPORT_ADDR="", LOG_LEVEL=" debug ").container_id == 8
    assert read(LOG_LEVEL=" debug ").log_level == "DEBUG"
    assert read(REPORT_ADDR="").report_addrs == (DEFAULT_REPORT_ADDR,)


@pytest.mark.parametrize(
    ("host", "url"),
    [("5.6.7.8", "http://5.6.7.8:40123"), ("::1", "http://[::1]:40123"), ("[::1]", "http://[::1]:40123")],
)
def test_the_public_url(host: str, url: str) -> None:
    assert read(PUBLIC_IPADDR=host).public_url == url
    assert read(PUBLIC_IPADDR=host, USE_SSL="1").public_url == url.replace("http", "https")


@pytest.mark.parametrize(
    "host", ["a b", "a/b", "user@host", "host:1:2:x", "a..b", "x" * 64 + ".com", "[::1]:80", "[::1]x"]
)
def test_a_public_address_that_is_no_host(host: str) -> None:
    assert len(problems({**REQUIRED, "PUBLIC_IPADDR": host})) == 1


@pytest.mark.parametrize(
    ("raw", "addrs"),
    [
        ("http://one", ("http://one",)),
        ("http://one/, https://two:8081/e/x/ ,", ("http://one", "https://two:8081/e/x")),
        ("http://[::1]:80", ("http://[::1]:80",)),
    ],
)
def test_report_addresses(raw: str, addrs: tuple[str, ...]) -> None:
    assert read(REPORT_ADDR=raw).report_addrs == addrs


@pytest.mark.parametrize(
    "raw",
    [
        *(
            ",",
            "one",
            "ftp://one",
            "http://",
            "http://one:0",
            "http://one:x",
            "http://one:99999",
            "http://[::1",
        ),
        *("http://one,two", "http://one?x=1", "http://a b", "http://a..b", "http://" + "x" * 64 + ".com"),
    ],
)
def test_a_report_address_that_is_no_http_url(raw: str) -> None:
    (problem,) = problems({**REQUIRED, "REPORT_ADDR": raw})
    assert problem.startswith("REPORT_ADDR: ")


def test_an_address_without_a_public_key_is_not_enough() -> None:
    (problem,) = problems({**REQUIRED, "REPORT_ADDR": STATUS_ONLY_ADDR})
    assert "no public key" in problem
    assert read(REPORT_ADDR=STATUS_ONLY_ADDR, UNSECURED="true").key_addrs == ()


def test_the_two_ports_differ() -> None:
    assert "is the public port too" in problems({**REQUIRED, "WORKER_HTTP_PORT": "3000"})[0]
    (problem,) = problems({**REQUIRED, "WORKER_PORT": "65535", "VAST_TCP_PORT_65535": "1"})
    assert problem.startswith("WORKER_HTTP_PORT: ")


@pytest.mark.parametrize(
    "name",
    [
        "DRAIN_TIMEOUT_S",
        "MODEL_TIMEOUT_S",
        "MODEL_LOAD_TIMEOUT_S",
        "MODEL_STALL_TIMEOUT_S",
        "BENCHMARK_TIME_LIMIT_S",
        "REQUEST_BODY_TIMEOUT_S",
    ],
)
@pytest.mark.parametrize("raw", ["-1", "inf", "soon", "1e999"])
def test_durations_are_finite_and_positive(name: str, raw: str) -> None:
    (problem,) = problems({**REQUIRED, name: raw})
    assert problem.startswith(f"{name}: {raw!r} is not a ")


@pytest.mark.parametrize(("raw", "limit_s"), [("", None), ("0", 0.0), ("0.5", 0.5), ("120", 120.0)])
def test_the_limit_of_stalls_can_be_unset_or_none(raw: str, limit_s: float | None) -> None:
    assert read(MODEL_STALL_TIMEOUT_S=raw).model_stall_timeout_s == limit_s


def test_the_model_name_is_in_either_variable() -> None:
    names: list[dict[str, Any]] = [{"MODEL_NAME": "tiny"}, {"MODEL_ID": "tiny"}]
    assert [read(**n).model_name for n in names] == ["tiny", "tiny"]
    assert read(MODEL_NAME="a", MODEL_ID="b").model_name == "a"


def test_engine_none_needs_no_other_variable() -> None:
    settings = Settings.from_env({"ENGINE": "none"})
    assert settings == Settings(
        engine="none", container_id=0, public_url="http://127.0.0.1:3000", worker_host="127.0.0.1"
    )


@pytest.mark.parametrize("raw", ["NONE", " none "])
def test_the_engine_is_read_in_any_case(raw: str) -> None:
    assert Settings.from_env({"ENGINE": raw}).engine == "none"
    assert read(ENGINE="").engine == read(ENGINE="Vast").engine == "vast"


def test_an_unknown_engine_is_a_problem() -> None:
    (problem,) = problems({**REQUIRED, "ENGINE": "other"})
    assert problem.startswith("ENGINE: 'other' is none of vast, none")


@pytest.mark.parametrize("name", ["REPORT_ADDR", "MASTER_TOKEN"])
def test_variables_of_an_engine_contradict_none(name: str) -> None:
    (problem,) = problems({"ENGINE": "none", name: "http://127.0.0.1"})
    assert problem == f"{name}: must be unset with ENGINE=none, where no reports are sent"


HOSTS = [
    ("0.0.0.0", "0.0.0.0", "http://0.0.0.0:3000"),
    ("worker.example", "worker.example", "http://worker.example:3000"),
    ("::1", "::1", "http://[::1]:3000"),
    ("[::1]", "::1", "http://[::1]:3000"),
    ("::", "::", "http://[::]:3000"),
]


@pytest.mark.parametrize(("raw", "host", "url"), HOSTS)
def test_the_hosts_that_ports_are_bound_to(raw: str, host: str, url: str) -> None:
    settings = Settings.from_env({"ENGINE": "none", "WORKER_HOST": raw, "WORKER_HTTP_HOST": raw})
    assert (settings.worker_host, settings.worker_http_host, settings.public_url) == (host, host, url)
    settings = read(WORKER_HOST=raw, WORKER_HTTP_HOST=raw)
    assert (settings.worker_host, settings.worker_http_host) == (host, host)
    assert settings.public_url == "http://1.2.3.4:40123"  # the host doesn't change the public address


def test_the_default_hosts() -> None:
    settings = read()
    assert (settings.worker_host, settings.worker_http_host) == (None, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:3009"),
        ("localhost", "http://localhost:3009"),
        ("::1", "http://[::1]:3009"),
        ("0.0.0.0", "http://127.0.0.1:3009"),
        ("::", "http://127.0.0.1:3009"),
        ("192.0.2.7", ""),
        ("worker.example", ""),
    ],
)
def test_how_the_machine_itself_reaches_the_loopback_port(host: str, url: str) -> None:
    assert read(WORKER_HTTP_HOST=host, WORKER_HTTP_PORT="3009").loopback_url == url


@pytest.mark.parametrize("name", ["WORKER_HOST", "WORKER_HTTP_HOST"])
@pytest.mark.parametrize("engine", ["vast", "none"])
@pytest.mark.parametrize(
    "raw",
    ["a b", "a/b", "user@host", "127.0.0.1:80", "[::1]:80", "[::1", "::1]", "[1.2.3.4]", "::g", "http://a"],
)
def test_a_host_that_no_port_can_be_bound_to(name: str, engine: str, raw: str) -> None:
    (problem,) = problems({**REQUIRED, "ENGINE": engine, name: raw})
    assert problem.startswith(f"{name}: {raw!r} is not a host name or an IP address")


def test_the_model_servers_key_is_in_no_message() -> None:
    assert read().model_api_key == ""
    settings = read(MODEL_API_KEY=" sk-1/+=~ ")
    assert settings.model_api_key == "sk-1/+=~"
    assert "sk-1" not in repr(settings)
    for wrong in ("secret key", "secret\r\nHost: m", "sécret", "secret\x00"):
        (problem,) = problems({**REQUIRED, "MODEL_API_KEY": wrong})
        assert problem.startswith("MODEL_API_KEY: ")
        assert "secret" not in problem
        assert "cret" not in problem
