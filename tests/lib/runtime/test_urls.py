from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.urls import is_http_base_url, is_http_url


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:5001",
        "https://example.com",
        "HTTPS://EXAMPLE.COM/",
        "http://localhost",
        "http://model_server:5001/v1",
        "http://example.com.",
        "http://[::1]",
        "http://[::1]:65535/path",
        "http://[fe80::1%eth0]:80",
        "http://host:",
        "http://host:1",
        "http://user:secret@host:80/",
        "http://bücher.example",
        "http://host/path%20with%20spaces",
    ],
)
def test_these_are_http_urls_and_base_urls(url: str) -> None:
    assert is_http_url(url)
    assert is_http_base_url(url)


@pytest.mark.parametrize("url", ["http://host?key=value", "http://host/path?key=value#part"])
def test_a_url_with_a_query_is_no_base_url(url: str) -> None:
    assert is_http_url(url)
    assert not is_http_base_url(url)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("here", id="no scheme"),
        pytest.param("127.0.0.1:5001", id="address without a scheme"),
        pytest.param("//host/path", id="relative to a scheme"),
        pytest.param("/path", id="a path"),
        pytest.param("ftp://host", id="another scheme"),
        pytest.param("ws://host", id="a WebSocket"),
        pytest.param("http:host", id="no authority"),
        pytest.param("http://", id="no host"),
        pytest.param("http:///path", id="no host, a path"),
        pytest.param("http://:80", id="no host, a port"),
        pytest.param("http://user@", id="no host, a user"),
        pytest.param("http://host:0", id="port 0"),
        pytest.param("http://host:65536", id="port 65536"),
        pytest.param("http://host:-1", id="a negative port"),
        pytest.param("http://host:http", id="a port in letters"),
        pytest.param("http://::1", id="IPv6 without brackets"),
        pytest.param("http://[::1", id="IPv6 without its end"),
        pytest.param("http://[::g]", id="no IPv6 address in brackets"),
        pytest.param("http://[host]", id="a name in brackets"),
        pytest.param("http://my host", id="a space in the host"),
        pytest.param("http://host/my path", id="a space in the path"),
        pytest.param(" http://host", id="a space before it"),
        pytest.param("http://host\n", id="a line end after it"),
        pytest.param("http://ho\tst", id="a tab within it"),
        pytest.param("http://a..b", id="an empty label"),
        pytest.param(f"http://{'a' * 64}.example", id="a label of 64 characters"),
    ],
)
def test_these_are_no_http_urls(text: str) -> None:
    assert not is_http_url(text)
    assert not is_http_base_url(text)


@given(st.text() | st.text().map("http://{}".format))
def test_no_text_raises(text: str) -> None:
    assert is_http_url(text) or not is_http_base_url(text)
