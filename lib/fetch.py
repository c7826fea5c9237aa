"""Files by URL: fetched for a client, who must not reach through the worker what only this machine reaches.

Owns the limits of such a download, and the check of every address to which it connects. The check is made
when a socket is made for one address, after names are resolved. So a name that resolves to another address
the next time (DNS rebinding), a redirect, and an address in an unusual notation are all covered.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from anyio.to_thread import run_sync as in_thread

from lib.files import BadFile, safe_basename
from lib.runtime.addresses import Network, networks_in
from lib.runtime.hosts import address_in, is_public_address
from lib.runtime.settings import EnvironmentReader
from lib.runtime.urls import is_http_url

__all__ = ["FetchLimits", "FetchedFile", "fetched"]

MIB = 1024 * 1024
MAX_REDIRECTS = 5
CHUNK_BYTES = MIB
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "pyworker"}


@dataclass(frozen=True)
class FetchLimits:
    """The limits of a download: the file's size in bytes, and the seconds that it may take altogether.

    Addresses that are not on the Internet, such as loopback, private and link-local ones, are connected to
    only if they are in `networks`.
    """

    max_bytes: int = 256 * MIB
    max_s: float = 60.0
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_env(cls, read: EnvironmentReader) -> FetchLimits:
        """The limits in `INPUT_MAX_BYTES`, `INPUT_TIMEOUT_S` and `INPUT_NETWORKS`, comma-separated."""
        return cls(
            read.positive_int("INPUT_MAX_BYTES", cls.max_bytes, "the size of a request's input files"),
            read.seconds("INPUT_TIMEOUT_S", cls.max_s, "the time to fetch an input file"),
            read.value("INPUT_NETWORKS", networks_in, (), "networks from which input files may be fetched"),
        )


@dataclass(frozen=True)
class FetchedFile:
    """A file that was fetched. `filename` is safe, and has an extension if the type is known."""

    path: Path
    filename: str
    content_type: str


class _PrivateAddress(OSError):
    """The address is neither public nor listed."""


@asynccontextmanager
async def fetched(url: str, limits: FetchLimits) -> AsyncGenerator[FetchedFile, None]:
    """Fetch the http or https `url`. The file is on disk until the block ends.

    Up to 5 redirects are followed. No cookies, credentials of the environment or proxies are used. Raises
    `BadFile`, whose message names neither the URL nor an address.
    """
    if not is_http_url(url):
        raise BadFile("must be an http or https URL")
    descriptor, name = await in_thread(tempfile.mkstemp, "", "pyworker-fetch-")
    path = Path(name)
    try:
        os.close(descriptor)
        filename, content_type = await _fetch(url, path, limits)
        yield FetchedFile(path, filename, content_type)
    finally:
        _delete(path)


def _delete(path: Path) -> None:
    # Without a thread, for which a cancelled request would not wait.
    path.unlink(missing_ok=True)


async def _fetch(url: str, path: Path, limits: FetchLimits) -> tuple[str, str]:
    """Write the file at `url` to `path`; return its name and type. Raises `BadFile`."""
    sockets = _Sockets(limits.networks)
    connector = aiohttp.TCPConnector(force_close=True, socket_factory=sockets.make)
    timeout = aiohttp.ClientTimeout(total=limits.max_s)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), headers=_HEADERS
            ) as http,
            http.get(url, max_redirects=MAX_REDIRECTS) as answer,
        ):
            if answer.status != 200:
                raise BadFile(f"could not be fetched: its server answered {answer.status}")
            await _write(answer, path, limits.max_bytes)
            return _name_and_type(str(answer.url), answer.content_type)
    except (TimeoutError, asyncio.TimeoutError) as e:
        raise BadFile(f"could not be fetched within {limits.max_s:g} s") from e
    except aiohttp.TooManyRedirects as e:
        raise BadFile(f"could not be fetched: more than {MAX_REDIRECTS} redirects") from e
    except (aiohttp.ClientError, OSError, ValueError) as e:
        if isinstance(e, BadFile):
            raise
        if sockets.has_refused:
            raise BadFile("could not be fetched: its address is not a public one") from e
        # The error's text may name an address, from which a client could map the network.
        raise BadFile("could not be fetched: no connection, or no valid answer") from e


async def _write(answer: aiohttp.ClientResponse, path: Path, max_bytes: int) -> None:
    too_large = BadFile(f"has more than {max_bytes} bytes")
    if (answer.content_length or 0) > max_bytes:
        raise too_large
    size_bytes = 0
    with path.open("wb") as file:
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise too_large
            await in_thread(file.write, chunk)


def _name_and_type(url: str, content_type: str) -> tuple[str, str]:
    name = safe_basename(unquote(urlsplit(url).path)) or "file"
    if not Path(name).suffix:
        name += mimetypes.guess_extension(content_type) or ""
    return name, content_type


class _Sockets:
    """Makes the sockets of one download. `has_refused`: whether an address was not allowed."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        self._networks = networks
        self.has_refused = False

    def make(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for `address`, an item of `getaddrinfo`. Raises `_PrivateAddress` if it is not allowed."""
        family, kind, protocol, _, (host, *_) = address
        # aiohttp passes on a host of digits and dots without resolving it: "2130706433" is no address here.
        if not is_public_address(host) and not self._is_listed(host):
            self.has_refused = True
            raise _PrivateAddress("not a public address")
        return socket.socket(family, kind, protocol)

    def _is_listed(self, host: str) -> bool:
        address = address_in(host)
        return address is not None and any(address in network for network in self._networks)
