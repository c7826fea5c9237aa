"""The headers of an answer that are passed on, and its coding (RFC 9110, sections 7.6.1 and 12.5.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from lib.model.relay import accepts_coding, end_to_end_headers


def kept(*headers: tuple[str, str]) -> list[tuple[str, str]]:
    return list(end_to_end_headers(CIMultiDictProxy(CIMultiDict(headers))).items())


def test_end_to_end_headers_are_kept_as_often_as_they_come() -> None:
    headers = [
        ("Content-Type", "audio/wav"),
        ("Cache-Control", "no-store"),
        ("Content-Disposition", "attachment"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("X-Anything", ""),
    ]
    assert kept(*headers) == headers


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"),
        *("TE", "Trailer", "Transfer-Encoding", "Upgrade", "transfer-encoding"),
    ],
)
def test_hop_by_hop_headers_are_dropped(name: str) -> None:
    assert kept((name, "x"), ("X-End", "1")) == [("X-End", "1")]


def test_headers_named_by_connection_are_dropped_too() -> None:
    named = kept(("Connection", "close, X-Hop"), ("connection", "x-other"), ("x-HOP", "1"), ("X-Other", "2"))
    assert named == []


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.5", True),
        ("br,gzip ; q=0", False),
        ("gzip;q=0.000", False),
        ("*", True),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("*, gzip;q=0", False),
        ("identity", False),
        ("gzip;q=much", False),
        ("x-gzip", True),
    ],
)
def test_a_coding_is_accepted_if_the_client_says_so(field: str, accepted: bool) -> None:
    assert accepts_coding(field, "gzip") is accepted


CODINGS = st.builds(
    "{}{}".format,
    st.sampled_from(["gzip", "GZip", "x-gzip", "br", "*", "identity", "", "gzipped"]),
    st.sampled_from(["", ";q=0", ";q=0.5", " ; q=1", ";q=much", ";"]),
)


@given(
    st.lists(CODINGS, max_size=3).map(", ".join)
    | st.text(st.sampled_from("gzip*;q=,0. -") | st.characters(max_codepoint=255)),
    st.sampled_from(["gzip", "br"]),
)
def test_only_a_header_that_names_the_coding_accepts_it(field: str, coding: str) -> None:
    if accepts_coding(field, coding):
        assert coding in field.lower() or "*" in field or "x-gzip" in field.lower()
