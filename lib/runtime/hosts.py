"""Checks of the host and the origin of requests: web pages must reach no port that is for this machine only.

Owns what `Host` and `Origin` may be, and which names are private. A name of an attacker's may resolve to
this machine (DNS rebinding), and any page may send requests here; a browser tells both by these fields.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from lib.errors import BadRequest, ForeignOrigin, Misdirected

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Host and port as browsers write them: no user information, no zone of an IPv6 address, no escapes.
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::(\d{1,5}))?")
_ORIGIN = re.compile(r"(https?)://([^/?#]+)")
_TARGET = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 addresses for machines that have IPv6 only
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4, and what IANA has assigned of it
# Domains that are never in public DNS: RFC 6761, RFC 6762, and ICANN's resolution of July 2024.
PRIVATE_DOMAINS = ("localhost", "local", "internal")


class HostPort(NamedTuple):
    """A host, in lower case and without brackets, and the port, None if it is not given."""

    host: str
    port: int | None

    def port_for(self, scheme: str) -> int:
        """The port of a URL with the `scheme` http or https."""
        return _DEFAULT_PORTS[scheme] if self.port is None else self.port


def parse_host_port(text: str) -> HostPort | None:
    """Return the host and the port in `text`, as in a `Host` field; None if it is malformed."""
    found = _AUTHORITY.fullmatch(text.lower())
    if found is None or (found[1] is not None and address_in(found[1]) is None):
        return None
    return HostPort(found[1] or found[2], None if found[3] is None else int(found[3]))


def parse_host_name(text: str) -> str:
    """Return the host in `text`, in lower case. Raises `ValueError` if `text` is anything else."""
    authority = parse_host_port(text)
    if authority is None or authority.port is not None:
        raise ValueError(f"{text!r} is not the name of a host, without a port")
    return authority.host


def address_in(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `host` is; an IPv4 address that is mapped into IPv6 is that IPv4 address."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def is_public_address(host: str) -> bool:
    """Whether `host` is the IP address of one machine on the Internet. False for any other text.

    An IPv4 address inside an IPv6 address (mapped, 6to4, NAT64) must be public itself.
    """
    address = address_in(host)
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            address = IPv4Address(int(address) & 0xFFFF_FFFF)
        elif address not in _GLOBAL_UNICAST:
            return False
        elif address.sixtofour is not None:
            address = address.sixtofour
    return address is not None and address.is_global and not address.is_multicast


def is_loopback(host: str) -> bool:
    """Whether `host` always means the machine that asks: an address, or `localhost` and names in it."""
    address = address_in(host)
    return host.rpartition(".")[2] == "localhost" if address is None else address.is_loopback


def is_loopback_url(url: str) -> bool:
    """Whether the host of `url` always means the machine that asks."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_private_name(host: str) -> bool:
    """Whether public DNS can't have the name `host`: of one label, in a private domain, or a service's."""
    return "." not in host or host.rpartition(".")[2] in (*PRIVATE_DOMAINS, "svc")


class HostGuard:
    """Refuses requests that are for another host, or from a page of another origin.

    The port is bound to the host `bound`. If that is a loopback address, `Host` must be one too, or
    `localhost`. Otherwise it may also be any IP address, which no DNS can turn to this machine, `bound` and
    this machine's name; and with `private_names` the names that public DNS can't have. `names` are allowed in
    any case, for `Host` and for `Origin`. An `Origin` must be that of the port itself.
    """

    def __init__(self, bound: str, names: Collection[str] = (), *, private_names: bool = False) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._is_loopback_only = is_loopback(bound.lower())
        self._own_names = frozenset({bound.lower(), socket.gethostname().lower()})
        self._private_names = private_names

    def check(self, request: web.Request) -> None:
        """Raise `Misdirected` (421), `ForeignOrigin` (403) or `BadRequest` (400) if `request` is refused."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1 or (not hosts and request.version >= HttpVersion11):
            raise BadRequest("the request must have one Host")
        target = _TARGET.match(request.raw_path.lower())
        for host in (*hosts, *([target[1]] if target else [])):
            authority = parse_host_port(host)
            if authority is None or not self.allows(authority.host):
                raise Misdirected
        for origin in request.headers.getall("Origin", []):
            if not self._is_own(origin, hosts[0] if hosts else ""):
                raise ForeignOrigin

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer with `handler` unless the request is refused; for aiohttp's applications."""
        self.check(request)
        return await handler(request)

    def allows(self, host: str) -> bool:
        """Whether a request may be for `host`, which is in lower case."""
        if host in self._names or is_loopback(host):
            return True
        if self._is_loopback_only:
            return False
        if address_in(host) is not None or host in self._own_names:
            return True
        return self._private_names and is_private_name(host)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether `origin` is an allowed one, or that of a page of this port, asked for as `host`."""
        found = _ORIGIN.fullmatch(origin.lower())
        theirs = parse_host_port(found[2]) if found else None
        if found is None or theirs is None:
            return False
        if theirs.host in self._names:
            return True
        ours, scheme = parse_host_port(host), found[1]
        if ours is None or ours.host != theirs.host:
            return False
        return ours.port_for(scheme) == theirs.port_for(scheme)
