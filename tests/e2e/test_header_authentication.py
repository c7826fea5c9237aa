"""Authentication by a header: the body is the payload itself, or there is none (protocol.md §2)."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lib.local.faults import Fault
from tests.fakes import shapes
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


# Where it is, and what it looks like


@pytest.mark.parametrize("name", ["Authorization", "X-Vast-Auth"])
@pytest.mark.parametrize("padding", ["", "="])
async def test_either_header_padded_or_not(tmp_path: Path, name: str, padding: str) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        auth = here.auth(3.0)
        while "=" not in token_of(auth):
            auth["__request_id"] += "x"  # some length has padding, to send or to leave out
        token = token_of(auth).rstrip("=") + padding * (token_of(auth).count("="))
        value = f"bearer  vast.{token}" if name == "Authorization" else token
        body = {"workload": 3.0, "data": {"a": 1}}
        status, seen = await ask(here, {name: value}, body)
        assert (status, json.loads(seen["body"])) == (200, body)
        assert not {"authorization", "x-vast-auth"} & {header.lower() for header in seen["headers"]}
        await here.told(served=3.0)


async def test_both_headers_must_agree(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        token = here.bearer().removeprefix("vast.")
        both = {"Authorization": f"Bearer vast.{token}", "X-Vast-Auth": token}
        assert (await ask(here, both))[0] == 200
        other = {**both, "X-Vast-Auth": here.bearer().removeprefix("vast.")}
        assert await ask(here, other) == (422, {"auth_data": "Authorization and X-Vast-Auth differ"})


async def test_the_same_in_both_is_the_same_padded_or_not(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, scheme="url") as here:
        token = here.bearer().removeprefix("vast.")
        for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
            headers = {"Authorization": f"{scheme} vast.{token}==", "X-Vast-Auth": f" {token} "}
            assert (await ask(here, headers))[0] == 200
        assert (await ask(here, {"Authorization": f"Bearer VAST.{token}"}))[0] == 422


async def test_any_other_bearer_token_means_nothing(tmp_path: Path) -> None:
    """Clients of the official kind send their API key along."""
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        for value in ("Bearer sk-123", "Bearer", "Basic vast.abc", "", "vast.abc"):
            headers = {"Authorization": value}
            assert (await ask(here, headers, here.envelope()))[0] == 200
            status, answer = await ask(here, headers, {"workload": 1.0})
            assert (status, answer) == (422, {"auth_data": "field missing", "payload": "field missing"})


async def test_an_envelope_is_no_envelope_where_a_header_authenticates(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        envelope = {**here.envelope(9.0), "workload": 2.0}
        status, seen = await ask(here, here.header(), envelope)
        assert (status, json.loads(seen["body"])) == (200, {"workload": 2.0, "data": {}})
        await here.told(served=2.0)


# What is refused


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
async def test_what_is_wrong_is_named(tmp_path: Path, raw: object, expected: Any) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        AUTHOR_CALLS.clear()
        status, answer = await ask(here, {"X-Vast-Auth": token_of(raw)})
        assert (status, list(answer)) == (422, ["auth_data"])
        if isinstance(expected, str):
            assert answer["auth_data"].startswith(expected)
        else:
            assert answer["auth_data"] == expected
        assert not AUTHOR_CALLS


@pytest.mark.parametrize("token", ["%%%", "a", "\xfc", "a b"])
async def test_what_is_not_base64_is_refused(tmp_path: Path, token: str) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        await client.post("/echo", b"{}", {"X-Vast-Auth": token})
        head, body = await client.answer()
        assert head.status == 422
        assert json.loads(body)["auth_data"].startswith("not base64url of JSON: ")


async def test_a_bad_signature_costs_nothing_and_leaves_no_trace(tmp_path: Path) -> None:
    """Lessons 2, 3 and 6: nothing of the body is read, no author's code runs, no number changes."""
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        AUTHOR_CALLS.clear()
        used = here.header(request_idx=70)
        assert (await ask(here, used))[0] == 200
        AUTHOR_CALLS.clear()
        forged = {**here.auth(50.0, request_idx=71), "signature": "AAAA"}
        elsewhere = here.auth(50.0, url="http://127.0.0.1:1", request_idx=72)
        for headers, what in (
            (used, "replay"),
            ({"X-Vast-Auth": token_of(forged)}, "the signature is invalid"),
            ({"X-Vast-Auth": token_of(elsewhere)}, "another worker's URL"),
        ):
            async with connected(here.url) as client:  # the answer comes though the body never does
                whole = request_bytes("/echo", b"x" * 100, {"Content-Type": "application/json", **headers})
                await client.send(whole[:-100])
                head, body = await client.answer()
            assert (head.status, what in json.loads(body)["error"]) == (401, True)
        assert not AUTHOR_CALLS
        await here.told(served=1.0)
        await here.engine.wait_for(lambda: here.engine.finished)
        assert (here.totals.new_load, here.totals.rej_load) == (1.0, 0.0)
        assert [f.request.request_idx for f in here.engine.finished] == [70]


async def test_the_url_form_is_good_again_and_again(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, scheme="url") as here:
        headers = here.header()
        for _ in range(5):
            assert (await ask(here, headers, {"workload": 2.0}))[0] == 200
        await here.told(served=10.0)


async def test_which_form_is_accepted_can_be_told(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, auth_scheme="full") as here:
        url_form = here.engine.sign(url=here.url, scheme="url")
        assert (await ask(here, {"X-Vast-Auth": token_of(url_form)}))[0] == 401
        assert (await ask(here, here.header()))[0] == 200


async def test_unsecured_it_is_still_checked_for_its_shape(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, unsecured=True) as here:
        unsigned = {**here.auth(), "signature": "AAAA"}
        assert (await ask(here, {"X-Vast-Auth": token_of(unsigned)}))[0] == 200
        assert (await ask(here, {"X-Vast-Auth": token_of({})}))[0] == 422


# After authentication


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", {"body": "not JSON: "}),
        (b"[1]", {"body": "must be a JSON object"}),
        ({"workload": "much", "data": 5}, {"payload": {"workload": "must be a number"}}),
    ],
)
async def test_a_bad_body_is_an_errored_request(tmp_path: Path, body: Any, expected: Any) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        status, answer = await ask(here, here.header(request_idx=70), body)
        assert (status, list(answer)) == (422, list(expected))
        await here.engine.wait_for(lambda: here.engine.finished)
        told = here.engine.finished[0].request
        assert (told.request_idx, told.status, told.success) == (70, "Error", False)


async def test_without_a_body_the_urls_parameters_are_the_payload(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=shapes.build) as here,
        here.http.post(here.url + "/echo?workload=4.5&api_key=secret", headers=here.header()) as answer,
    ):
        assert answer.status == 200
        seen = await answer.json()
        assert json.loads(seen["body"]) == {"workload": 4.5, "data": {}}
        await here.told(served=4.5)


async def test_a_session_is_opened_by_a_header_too(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        auth = here.auth(5.0)
        headers = {"X-Vast-Auth": token_of(auth)}
        status, created = await ask(here, headers, {"lifetime": 30}, "/session/create")
        assert status == 201
        body = {"session_id": created["session_id"], "session_auth": auth}
        assert (await ask(here, {}, body, "/session/get"))[1]["lifetime"] == 30
        status, answer = await ask(here, here.header(), {"lifetime": 0}, "/session/create")
        assert (status, list(answer["payload"])) == (422, ["lifetime"])
        status, answer = await ask(here, here.header(), b"{", "/session/create")
        assert (status, list(answer)) == (422, ["body"])
        await here.engine.wait_for(lambda: len(here.engine.finished) == 2)
        assert {f.request.status for f in here.engine.finished} == {"Error"}


async def test_no_token_reaches_the_log(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, Setup(health="/health"), {"LOG_LEVEL": "DEBUG"}) as here:
        secrets = [here.bearer().removeprefix("vast.") for _ in range(3)]
        await ask(here, {"X-Vast-Auth": secrets[0]}, {"workload": 1.0})
        await ask(here, {"Authorization": f"Bearer vast.{secrets[1]}"}, {"workload": "?"})
        await ask(here, {"X-Vast-Auth": secrets[2][5:]}, {"workload": 1.0})
        assert here.worker is not None
        output = here.worker.output()
        assert "/echo" in output
        assert not [secret for secret in secrets if secret[20:60] in output]


# Beside other ways in


async def test_a_guarded_route_is_given_an_envelope_as_it_came(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        body = {**here.envelope(9.0), "work": 2.0, "session_id": "unknown"}
        async with here.http.post(here.url + "/own", json=body, headers=here.header(4.0)) as answer:
            told = await answer.json(content_type=None)
        assert (answer.status, told) == (203, {"payload": body, "cost": 4.0})
        await here.told(served=2.0)


async def test_a_session_is_not_entered_by_a_header(tmp_path: Path) -> None:
    """Where a header authenticates, `session_id` is the payload's."""
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        auth = here.auth(50.0)
        async with here.http.post(
            here.url + "/session/create", headers={"X-Vast-Auth": token_of(auth)}
        ) as answer:
            assert answer.status == 201  # without a body, all is by default
            session_id = (await answer.json())["session_id"]
        inside = {"auth_data": auth, "payload": {"workload": 7.0}, "session_id": session_id}
        assert (await ask(here, {"Authorization": "Bearer sk-1"}, inside))[0] == 200
        assert (await ask(here, here.header(), {"workload": 3.0, "session_id": session_id}))[0] == 200
        assert (await ask(here, here.header(), {"workload": 4.0, "session_id": "unknown"}))[0] == 200
        await here.engine.wait_for(lambda: here.totals.cur_perf == 7.0)
        assert (here.totals.new_load, here.last_report.cur_load) == (57.0, 50.0)
        # The session's own signature opens no door beside it.
        assert (await ask(here, {"X-Vast-Auth": token_of(auth)}))[0] == 401


async def test_a_session_takes_terms_in_json_only(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        headers = {**here.header(5.0, request_idx=70), "Content-Type": "text/plain"}
        assert (await ask(here, headers, b"{}", "/session/create"))[0] == 415
        await here.engine.wait_for(lambda: here.engine.finished)
        assert [f.request.status for f in here.engine.finished] == ["Error"]
        assert here.totals.new_load == 0.0


# The order of the checks


async def test_the_url_form_alone(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, auth_scheme="url") as here:
        assert (await ask(here, here.header()))[0] == 401
        assert (await ask(here, here.header(scheme="url")))[0] == 200


async def test_without_a_key_nobody_is_told_more(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as here:
        here.engine.faults.pubkey = Fault(refuse=True)
        async with worker_process(here, tmp_path, Setup(health="/health")):
            await here.engine.wait_for(lambda: here.last_report)
            for headers in (here.header(), {"X-Vast-Auth": "%%%"}, {"X-Vast-Auth": token_of({})}):
                status, answer = await ask(here, headers)
                assert (status, answer["state"]) == (503, "no public key")


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
async def test_a_body_is_judged_only_after_its_sender(tmp_path: Path, kind: str) -> None:
    async with with_worker_task(
        tmp_path, make=shapes.build, max_json_bytes=10, max_request_bytes=10, request_body_timeout_s=0.05
    ) as here:
        large = {"Content-Length": "100", "Content-Type": kind}
        strange = {**large, "Content-Encoding": "br", "Content-Length": "1"}
        stalls = {**large, "Content-Length": "1"}
        forged = {"X-Vast-Auth": token_of({**here.auth(), "signature": "AAAA"})}
        for headers, status in ((large, 413), (strange, 415), (stalls, 408)):
            for auth, expected in ((forged, 401), ({"X-Vast-Auth": "%"}, 422), (here.header(), status)):
                async with connected(here.url) as client:
                    await client.post("/sound/echo", b"", {**headers, **auth})
                    assert (await client.head()).status == expected
        await here.engine.wait_for(lambda: len(here.engine.finished) == 3)
        assert [f.request.status for f in here.engine.finished] == ["Error"] * 3
        assert (here.totals.new_load, here.totals.rej_load, here.model.requests) == (0.0, 0.0, [])


async def test_no_key_and_no_token_reach_the_model_server(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        token = here.bearer().removeprefix("vast.")
        both = {"Authorization": f"Bearer vast.{token}", "X-Vast-Auth": token, "Cookie": f"a={token}"}
        assert (await ask(here, both, {}, "/echo?api_key=secret&a=1"))[0] == 200
        upload = {**here.header(), "Content-Type": "audio/wav"}
        assert (await ask(here, upload, b"x", "/sound/echo?api_key=secret&a=1"))[0] == 200
        async with here.http.get(here.url + "/own?api_key=secret&a=1", headers=here.header()) as answer:
            assert (await answer.json(content_type=None))["payload"] == {"a": "1"}
        passed = str([(r.path, r.headers, r.body) for r in here.model.requests])
        assert len(here.model.requests) == 2
        assert not [text for text in ("secret", "api_key", token[:20], "vast.") if text in passed]


async def test_a_drain_waits_for_no_body(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        headers = {**here.header(), "Content-Type": "application/json"}
        await client.send(request_bytes("/echo", b'{"workload": 1.0}', headers)[:-1])
        assert (await here.call("/echo"))[0] == 200  # by now it is read as far as it came
        assert here.stop is not None
        here.stop.ask()
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"]) == (503, "draining")
        await here.engine.wait_for(lambda: len(here.engine.finished) == 2)
        assert here.engine.finished[-1].request.status == "Rejected"
