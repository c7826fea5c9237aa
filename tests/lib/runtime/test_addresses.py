"""Addresses: one client's count together, and only trusted proxies may name others."""

from __future__ import annotations

import pytest

from lib.runtime.addresses import Proxies, group_of, networks_in


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("::ffff:127.0.0.2", "127.0.0.2"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:3:3:4:5:6", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("a:b", "a:b"),
    ],
)
def test_the_group_of_an_address(address: str, group: str) -> None:
    assert group_of(address) == group


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("", "10.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("6.6.6.6, 192.0.2.7", "192.0.2.7"),
        ("6.6.6.6, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.7,", "10.0.0.1"),
        ("unknown", "unknown"),
    ],
)
def test_the_client_of_a_proxy(forwarded_for: str, client: str) -> None:
    assert Proxies(networks_in("10.0.0.0/8")).client_of("10.0.0.1", forwarded_for) == client


def test_which_addresses_are_proxies() -> None:
    proxies = Proxies(networks_in("10.1.2.3/8, 2001:db8::/32,192.0.2.1"))
    for address in ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8::5", "192.0.2.1"):
        assert proxies.has(address)
    for address in ("11.0.0.1", "2001:db9::5", "192.0.2.2", "", "x"):
        assert not proxies.has(address)
    assert not Proxies().has("10.0.0.1")


@pytest.mark.parametrize("text", ["x", "10.0.0.1/33", "10.0.0.1;10.0.0.2"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="neither an IP address nor a network"):
        networks_in(text)
