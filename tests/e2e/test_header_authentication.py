"""Authentication by a header; the body is the payload (docs/protocol.md, "Header authentication")."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lib.local.faults import Fault
from tests.fakes import varied_routes
from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.system import (
    System,
    engine_and_model_server,
    with_worker_process,
    with_worker_task,
    worker_process,
)

AUTH_FIELDS = ("signature", "cost", "endpoint", "reqnum", "url")


def token_of(raw: object) -> str:
    data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return base64.urlsafe_b64encode(data).decode()


async def ask(
    system: System, headers: dict[str, str], body: Any = None, path: str = "/echo"
) -> tuple[int, Any]:
    """Status and JSON of the answer to a POST of `body`, bytes or JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    kind = {"Content-Type": "application/json"} | headers
    async with system.http.post(system.url + path, data=io.BytesIO(data), headers=kind) as answer:
        return answer.status, await answer.json()


# The header and its form


@pytest.mark.parametrize("name", ["Authorization", "X-Vast-Auth"])
@pytest.mark.parametrize("padding", ["", "="])
async def test_either_header_authenticates_with_or_without_padding(
    tmp_path: Path, name: str, padding: str
) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        auth = system.auth(3.0)
        while "=" not in token_of(auth):
            auth["__request_id"] += "x"  # one of these lengths needs padding, which may be omitted
        token = token_of(auth).rstrip("=") + padding * (token_of(auth).count("="))
        value = f"bearer  vast.{token}" if name == "Authorization" else token
        body = {"workload": 3.0, "data": {"a": 1}}
        status, seen = await ask(system, {name: value}, body)
        assert (status, json.loads(seen["body"])) == (200, body)
        assert not {"authorization", "x-vast-auth"} & {header.lower() for header in seen["headers"]}
        await system.reported(served=3.0)


async def test_two_headers_with_different_tokens_are_refused(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        token = system.bearer().removeprefix("vast.")
        both = {"Authorization": f"Bearer vast.{token}", "X-Vast-Auth": token}
        assert (await ask(system, both))[0] == 200
        other = {**both, "X-Vast-Auth": system.bearer().removeprefix("vast.")}
        assert await ask(system, other) == (422, {"auth_data": "Authorization and X-Vast-Auth differ"})


async def test_two_headers_with_one_token_agree_with_or_without_padding(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, scheme="url") as system:
        token = system.bearer().removeprefix("vast.")
        for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
            headers = {"Authorization": f"{scheme} vast.{token}==", "X-Vast-Auth": f" {token} "}
            assert (await ask(system, headers))[0] == 200
        assert (await ask(system, {"Authorization": f"Bearer VAST.{token}"}))[0] == 422


async def test_other_bearer_tokens_are_ignored(tmp_path: Path) -> None:
    """Official clients send their API key in this header."""
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        for value in ("Bearer sk-123", "Bearer", "Basic vast.abc", "", "vast.abc"):
            headers = {"Authorization": value}
            assert (await ask(system, headers, system.envelope()))[0] == 200
            status, answer = await ask(system, headers, {"workload": 1.0})
            assert (status, answer) == (422, {"auth_data": "field missing", "payload": "field missing"})


async def test_an_envelope_is_a_plain_payload_if_a_header_authenticates(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        envelope = {**system.envelope(9.0), "workload": 2.0}
        status, seen = await ask(system, system.header(), envelope)
        assert (status, json.loads(seen["body"])) == (200, {"workload": 2.0, "data": {}})
        await system.reported(served=2.0)


# Refusals


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xff\xfe", "not JSON: "),
        (b"{", "not JSON: "),
        (b"[]", "must be a JSON object"),
        (b"", "empty"),
        ({}, dict.fromkeys(AUTH_FIELDS, "missing parameter")),
        (
            b'{"cost": NaN, "reqnum": "1", "signature": "s", "endpoint": "e", "url": "u"}',
            {"cost": "must be finite", "reqnum": "must be an integer"},
        ),
    ],
    ids=["bytes", "cut", "list", "empty", "no fields", "wrong fields"],
)
async def test_an_invalid_token_is_refused_with_the_reason(
    tmp_path: Path, raw: object, expected: Any
) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        AUTHOR_CALLS.clear()
        status, answer = await ask(system, {"X-Vast-Auth": token_of(raw)})
        assert (status, list(answer)) == (422, ["auth_data"])
        if isinstance(expected, str):
            assert answer["auth_data"].startswith(expected)
        else:
            assert answer["auth_data"] == expected
        assert not AUTHOR_CALLS


@pytest.mark.parametrize("token", ["%%%", "a", "\xfc", "a b"])
async def test_a_token_that_is_not_base64_is_refused(tmp_path: Path, token: str) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        await client.post("/echo", b"{}", {"X-Vast-Auth": token})
        head, body = await client.answer()
        assert head.status == 422
        assert json.loads(body)["auth_data"].startswith("not base64url of JSON: ")


async def test_a_bad_signature_is_refused_without_reading_the_body_or_counting(tmp_path: Path) -> None:
    """The body is not read, no author code runs, no counter changes."""
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        AUTHOR_CALLS.clear()
        used = system.header(request_idx=70)
        assert (await ask(system, used))[0] == 200
        AUTHOR_CALLS.clear()
        forged = {**system.auth(50.0, request_idx=71), "signature": "AAAA"}
        elsewhere = system.auth(50.0, url="http://127.0.0.1:1", request_idx=72)
        for headers, what in (
            (used, "replay"),
            ({"X-Vast-Auth": token_of(forged)}, "the signature is invalid"),
            ({"X-Vast-Auth": token_of(elsewhere)}, "another worker's URL"),
        ):
            async with connected(system.url) as client:  # answered although the body is never sent
                whole = request_bytes("/echo", b"x" * 100, {"Content-Type": "application/json", **headers})
                await client.send(whole[:-100])
                head, body = await client.answer()
            assert (head.status, what in json.loads(body)["error"]) == (401, True)
        assert not AUTHOR_CALLS
        await system.reported(served=1.0)
        await system.engine.wait_for(lambda: system.engine.finished)
        assert (system.totals.new_load, system.totals.rej_load) == (1.0, 0.0)
        assert [f.request.request_idx for f in system.engine.finished] == [70]


async def test_the_url_form_can_be_used_repeatedly(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, scheme="url") as system:
        headers = system.header()
        for _ in range(5):
            assert (await ask(system, headers, {"workload": 2.0}))[0] == 200
        await system.reported(served=10.0)


async def test_the_setting_decides_which_form_is_accepted(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, auth_scheme="full") as system:
        url_form = system.engine.sign(url=system.url, scheme="url")
        assert (await ask(system, {"X-Vast-Auth": token_of(url_form)}))[0] == 401
        assert (await ask(system, system.header()))[0] == 200


async def test_an_unsecured_worker_still_checks_the_tokens_shape(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, unsecured=True) as system:
        unsigned = {**system.auth(), "signature": "AAAA"}
        assert (await ask(system, {"X-Vast-Auth": token_of(unsigned)}))[0] == 200
        assert (await ask(system, {"X-Vast-Auth": token_of({})}))[0] == 422


# After authentication


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", {"body": "not JSON: "}),
        (b"[1]", {"body": "must be a JSON object"}),
        ({"workload": "much", "data": 5}, {"payload": {"workload": "must be a number"}}),
    ],
)
async def test_a_bad_body_counts_as_errored(tmp_path: Path, body: Any, expected: Any) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        status, answer = await ask(system, system.header(request_idx=70), body)
        assert (status, list(answer)) == (422, list(expected))
        await system.engine.wait_for(lambda: system.engine.finished)
        finished = system.engine.finished[0].request
        assert (finished.request_idx, finished.status, finished.success) == (70, "Error", False)


async def test_without_a_body_the_query_is_the_payload(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        system.http.post(system.url + "/echo?workload=4.5&api_key=secret", headers=system.header()) as answer,
    ):
        assert answer.status == 200
        seen = await answer.json()
        assert json.loads(seen["body"]) == {"workload": 4.5, "data": {}}
        await system.reported(served=4.5)


async def test_a_header_can_open_a_session(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        auth = system.auth(5.0)
        headers = {"X-Vast-Auth": token_of(auth)}
        status, created = await ask(system, headers, {"lifetime": 30}, "/session/create")
        assert status == 201
        body = {"session_id": created["session_id"], "session_auth": auth}
        assert (await ask(system, {}, body, "/session/get"))[1]["lifetime"] == 30
        status, answer = await ask(system, system.header(), {"lifetime": 0}, "/session/create")
        assert (status, list(answer["payload"])) == (422, ["lifetime"])
        status, answer = await ask(system, system.header(), b"{", "/session/create")
        assert (status, list(answer)) == (422, ["body"])
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert {f.request.status for f in system.engine.finished} == {"Error"}


async def test_no_token_reaches_the_log(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, Setup(health="/health"), {"LOG_LEVEL": "DEBUG"}) as system:
        secrets = [system.bearer().removeprefix("vast.") for _ in range(3)]
        await ask(system, {"X-Vast-Auth": secrets[0]}, {"workload": 1.0})
        await ask(system, {"Authorization": f"Bearer vast.{secrets[1]}"}, {"workload": "?"})
        await ask(system, {"X-Vast-Auth": secrets[2][5:]}, {"workload": 1.0})
        assert system.worker is not None
        output = await system.worker.final_output()
        assert "/echo" in output
        assert not [secret for secret in secrets if secret[20:60] in output]


# Together with envelopes and sessions


async def test_a_bare_route_gets_an_envelope_unchanged(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        body = {**system.envelope(9.0), "work": 2.0, "session_id": "unknown"}
        async with system.http.post(system.url + "/own", json=body, headers=system.header(4.0)) as answer:
            result = await answer.json(content_type=None)
        assert (answer.status, result) == (203, {"payload": body, "cost": 4.0})
        await system.reported(served=2.0)


async def test_a_header_does_not_authenticate_requests_of_a_session(tmp_path: Path) -> None:
    """With a header, `session_id` in the body belongs to the payload."""
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        auth = system.auth(50.0)
        async with system.http.post(
            system.url + "/session/create", headers={"X-Vast-Auth": token_of(auth)}
        ) as answer:
            assert answer.status == 201  # without a body, every term has its default
            session_id = (await answer.json())["session_id"]
        inside = {"auth_data": auth, "payload": {"workload": 7.0}, "session_id": session_id}
        assert (await ask(system, {"Authorization": "Bearer sk-1"}, inside))[0] == 200
        assert (await ask(system, system.header(), {"workload": 3.0, "session_id": session_id}))[0] == 200
        assert (await ask(system, system.header(), {"workload": 4.0, "session_id": "unknown"}))[0] == 200
        await system.engine.wait_for(lambda: system.totals.cur_perf == 7.0)
        assert (system.totals.new_load, system.last_report.cur_load) == (57.0, 50.0)
        # The session's own signature is not accepted outside the session.
        assert (await ask(system, {"X-Vast-Auth": token_of(auth)}))[0] == 401


async def test_session_terms_must_be_json(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        headers = {**system.header(5.0, request_idx=70), "Content-Type": "text/plain"}
        assert (await ask(system, headers, b"{}", "/session/create"))[0] == 415
        await system.engine.wait_for(lambda: system.engine.finished)
        assert [f.request.status for f in system.engine.finished] == ["Error"]
        assert system.totals.new_load == 0.0


# The order of the checks


async def test_header_authentication_accepts_the_url_form_alone(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, auth_scheme="url") as system:
        assert (await ask(system, system.header()))[0] == 401
        assert (await ask(system, system.header(scheme="url")))[0] == 200


async def test_without_a_public_key_the_answer_gives_no_details(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        system.engine.faults.pubkey = Fault(refuse=True)
        async with worker_process(system, tmp_path, Setup(health="/health")):
            await system.engine.wait_for(lambda: system.last_report)
            for headers in (system.header(), {"X-Vast-Auth": "%%%"}, {"X-Vast-Auth": token_of({})}):
                status, answer = await ask(system, headers)
                assert (status, answer["state"]) == (503, "no public key")


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
async def test_the_sender_is_authenticated_before_the_body_is_checked(tmp_path: Path, kind: str) -> None:
    async with with_worker_task(
        tmp_path,
        make=varied_routes.build,
        max_json_bytes=10,
        max_request_bytes=10,
        request_body_timeout_s=0.05,
    ) as system:
        large = {"Content-Length": "100", "Content-Type": kind}
        strange = {**large, "Content-Encoding": "br", "Content-Length": "1"}
        stalls = {**large, "Content-Length": "1"}
        forged = {"X-Vast-Auth": token_of({**system.auth(), "signature": "AAAA"})}
        for headers, status in ((large, 413), (strange, 415), (stalls, 408)):
            for auth, expected in ((forged, 401), ({"X-Vast-Auth": "%"}, 422), (system.header(), status)):
                async with connected(system.url) as client:
                    await client.post("/sound/echo", b"", {**headers, **auth})
                    assert (await client.head()).status == expected
        await system.engine.wait_for(lambda: len(system.engine.finished) == 3)
        assert [f.request.status for f in system.engine.finished] == ["Error"] * 3
        assert (system.totals.new_load, system.totals.rej_load, system.model.requests) == (0.0, 0.0, [])


async def test_no_key_and_no_token_reach_the_model_server(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        token = system.bearer().removeprefix("vast.")
        both = {"Authorization": f"Bearer vast.{token}", "X-Vast-Auth": token, "Cookie": f"a={token}"}
        assert (await ask(system, both, {}, "/echo?api_key=secret&a=1"))[0] == 200
        upload = {**system.header(), "Content-Type": "audio/wav"}
        assert (await ask(system, upload, b"x", "/sound/echo?api_key=secret&a=1"))[0] == 200
        async with system.http.get(system.url + "/own?api_key=secret&a=1", headers=system.header()) as answer:
            assert (await answer.json(content_type=None))["payload"] == {"a": "1"}
        passed = str([(r.path, r.headers, r.body) for r in system.model.requests])
        assert len(system.model.requests) == 2
        assert not [text for text in ("secret", "api_key", token[:20], "vast.") if text in passed]


async def test_a_drain_waits_for_no_body(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        headers = {**system.header(), "Content-Type": "application/json"}
        await client.send(request_bytes("/echo", b'{"workload": 1.0}', headers)[:-1])
        assert (await system.call("/echo"))[0] == 200  # the worker has read what was sent by now
        assert system.stop is not None
        system.stop.ask()
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"]) == (503, "draining")
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert system.engine.finished[-1].request.status == "Rejected"
