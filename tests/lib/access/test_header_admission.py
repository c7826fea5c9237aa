"""`auth_data` in a header, as both carriers hold it (docs/protocol.md, "Header authentication"). No HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from lib.access.authenticator import Admission
from lib.access.envelope import header_admission
from lib.data_types import AuthData
from lib.errors import Invalid
from lib.http.heads import parse_request
from lib.request.incoming import DirectRequest, IncomingRequest

AUTH: dict[str, Any] = {"signature": "s", "cost": 2.5, "endpoint": "e", "reqnum": 3, "url": "http://w:1"}
DIFFER = {"auth_data": "Authorization and X-Vast-Auth differ"}


def token_of(raw: object) -> str:
    data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return base64.urlsafe_b64encode(data).decode()


TOKEN, OTHER = token_of(AUTH), token_of({**AUTH, "cost": 7.0})


def carried_directly(headers: Mapping[str, str]) -> IncomingRequest:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = parse_request(f"POST /x HTTP/1.1\r\nHost: w\r\n{fields}\r\n".encode())
    return DirectRequest(cast(Any, None), head)


def carried_by_aiohttp(headers: Mapping[str, str]) -> IncomingRequest:
    return make_mocked_request("POST", "/x", headers)


both_carriers = pytest.mark.parametrize("carried", [carried_directly, carried_by_aiohttp])


@both_carriers
@pytest.mark.parametrize(
    ("headers", "cost"),
    [
        ({}, None),
        ({"X-Vast-Auth": TOKEN}, 2.5),
        ({"x-vast-auth": f"  {TOKEN}  "}, 2.5),
        ({"X-Vast-Auth": TOKEN.rstrip("=")}, 2.5),
        ({"Authorization": f"Bearer vast.{TOKEN}"}, 2.5),
        ({"authorization": f"bEARER   vast.{TOKEN.rstrip('=')}  "}, 2.5),
        ({"Authorization": f"Bearer vast.{TOKEN}", "X-Vast-Auth": TOKEN.rstrip("=")}, 2.5),
        ({"Authorization": "Bearer sk-123", "X-Vast-Auth": OTHER}, 7.0),
        ({"Authorization": f"Basic vast.{TOKEN}", "X-Vast-Auth": OTHER}, 7.0),
        ({"Authorization": f"Basic vast.{TOKEN}"}, None),
        ({"Authorization": "Bearer sk-vast.123"}, None),
        ({"Authorization": f"vast.{TOKEN}"}, None),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": ""}, None),
        ({"X-Other": TOKEN}, None),
    ],
)
def test_which_headers_authenticate(carried: Any, headers: Mapping[str, str], cost: float | None) -> None:
    admission = header_admission(carried(headers))
    if cost is None:
        assert admission is None
    else:
        raw = {**AUTH, "cost": cost}
        assert admission == Admission(AuthData("s", cost, "e", 3, "http://w:1", None), raw, None)


@both_carriers
def test_two_headers_with_different_tokens_are_refused(carried: Any) -> None:
    with pytest.raises(Invalid) as refused:
        header_admission(carried({"Authorization": f"Bearer vast.{TOKEN}", "X-Vast-Auth": OTHER}))
    assert refused.value.fields == DIFFER


@pytest.mark.parametrize(
    ("token", "beginning"),
    [
        ("", "empty"),
        ("%%%", "not base64url of JSON: "),
        ("a", "not base64url of JSON: "),
        (TOKEN[:10] + "!" + TOKEN[10:], "not base64url of JSON: "),
        (TOKEN[:10] + "\t" + TOKEN[10:], "not base64url of JSON: "),
        (token_of(b"\xff\xfe"), "not JSON: "),
        (token_of(b"{"), "not JSON: "),
        (token_of([]), "must be a JSON object"),
    ],
)
def test_an_invalid_token_is_refused_with_the_reason(token: str, beginning: str) -> None:
    with pytest.raises(Invalid) as refused:
        header_admission(carried_directly({"X-Vast-Auth": token}))
    assert list(refused.value.fields) == ["auth_data"]
    assert str(refused.value.fields["auth_data"]).startswith(beginning)


def test_wrong_fields_of_a_token_are_named() -> None:
    with pytest.raises(Invalid) as refused:
        header_admission(carried_directly({"X-Vast-Auth": token_of({**AUTH, "cost": -1, "reqnum": "3"})}))
    assert dict(refused.value.fields) == {
        "auth_data": {"cost": "must be 0 or more", "reqnum": "must be an integer"}
    }


@given(st.text(max_size=12), st.booleans(), st.booleans())
def test_any_auth_data_is_read_from_either_header(endpoint: str, is_padded: bool, is_bearer: bool) -> None:
    """Its length decides about the padding, and its characters about `-` and `_`."""
    token = token_of(json.dumps({**AUTH, "endpoint": endpoint}, ensure_ascii=False).encode())
    token = token if is_padded else token.rstrip("=")
    headers = {"Authorization": f"Bearer vast.{token}"} if is_bearer else {"X-Vast-Auth": token}
    admission = header_admission(carried_directly(headers))
    assert admission is not None
    assert admission.auth.endpoint == endpoint
