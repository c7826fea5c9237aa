"""Clients' addresses: which count as one client's, and what a proxy says of them.

Owns reading `X-Forwarded-For`, which only proxies that the operator trusts may set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

IPv6_PREFIX = 64
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def group_of(address: str) -> str:
    """The address as far as it names one client: of IPv6, the first 64 bits, which one client may have whole.

    A text that is no address is its own group.
    """
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(whole), IPv6_PREFIX), strict=False).network_address)


class Proxies:
    """The proxies at the addresses `networks`, whose `X-Forwarded-For` is believed."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    def has(self, address: str) -> bool:
        """Whether `address` is one of the proxies'."""
        if not self._networks:
            return False
        try:
            whole = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(whole, ipaddress.IPv6Address) and whole.ipv4_mapped is not None:
            whole = whole.ipv4_mapped
        return any(whole in network for network in self._networks)

    def client_of(self, proxy: str, forwarded_for: str) -> str:
        """The client of a request from `proxy`, by its `X-Forwarded-For`.

        That is the last address in it that is not a proxy's: each proxy appends the one that it saw, and what
        stands before may be made up.
        """
        client = proxy
        for address in reversed(forwarded_for.split(",")):
            address = _without_port(address.strip())
            if not address:
                break
            client = address
            if not self.has(address):
                break
        return client


def networks_in(text: str) -> tuple[Network, ...]:
    """The addresses and networks in `text`, comma-separated. Raises `ValueError` for what is neither."""
    networks: list[Network] = []
    for part in (part.strip() for part in text.split(",")):
        if part:
            try:
                networks.append(ipaddress.ip_network(part, strict=False))
            except ValueError as e:
                raise ValueError(f"has {part!r}, which is neither an IP address nor a network") from e
    return tuple(networks)


def _without_port(address: str) -> str:
    """`address` without a port, which some proxies add, and without brackets."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address
