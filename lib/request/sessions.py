"""Sessions: their ids, terms and expiry (docs/protocol.md, "Sessions").

Owns the open sessions and the memory of ended ones. Their entries in the ledger and the call at their end
belong to session_life.py, which `on_end` calls.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast
from urllib.parse import quote, unquote

from lib.errors import Invalid, TooBusy, Unauthorized
from lib.runtime.clock import Clock, Timer

DEFAULT_LIFETIME_S = 60.0
MAX_LIFETIME_S = 24 * 3600.0
# Number of ended sessions whose `auth_data` is remembered, to distinguish late requests from replays.
REMEMBERED_ENDED = 1000
# What a session keeps, as JSON, until its end.
MAX_CLOSE_PAYLOAD_BYTES = 64 * 1024
MAX_AUTH_BYTES = 16 * 1024
MAX_CLOSE_ROUTE_CHARS = 2048

_ENCODED_DOT = re.compile("%2e", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class SessionEnd(Enum):
    """The reason for the end of a session."""

    ENDED = "ended"
    EXPIRED = "expired"
    DRAINED = "drained"


@dataclass(frozen=True)
class SessionTerms:
    """The terms of a session: its lifetime after each request, in seconds, and the call at its end."""

    lifetime_s: float = DEFAULT_LIFETIME_S
    on_close_route: str | None = None
    on_close_payload: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> SessionTerms:
        """Read the terms in `payload`; null counts as absent. Raises `Invalid` (422) for wrong fields."""
        given = {k: v for k, v in payload.items() if v is not None}
        lifetime = given.get("lifetime", DEFAULT_LIFETIME_S)
        route = given.get("on_close_route")
        close_payload = given.get("on_close_payload")
        problems: dict[str, str] = {}
        if isinstance(lifetime, bool) or not isinstance(lifetime, (int, float)):
            problems["lifetime"] = "must be a number"
        elif not 0 < lifetime <= MAX_LIFETIME_S:
            problems["lifetime"] = f"must be more than 0 and at most {MAX_LIFETIME_S:g} seconds"
        path = None if route is None else close_path(route)
        if route is not None and path is None:
            problems["on_close_route"] = "must be a path on the model server"
        if close_payload is not None and not isinstance(close_payload, dict):
            problems["on_close_payload"] = "must be an object"
        elif not _is_within(close_payload, MAX_CLOSE_PAYLOAD_BYTES):
            problems["on_close_payload"] = f"must be at most {MAX_CLOSE_PAYLOAD_BYTES} bytes of JSON"
        if problems:
            raise Invalid({"payload": problems})
        return cls(float(lifetime), path, cast("dict[str, Any] | None", close_payload))


@dataclass(eq=False)
class Session:
    """One session; `digest` is the digest of `raw_auth`.

    `expiration` and `created_at` are Unix times in seconds, `expires_s` is a monotonic time.
    """

    id: str
    raw_auth: dict[str, Any]
    digest: bytes
    terms: SessionTerms
    created_at: float
    expiration: float
    expires_s: float
    in_flight: int = 0
    timer: Timer | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer to `/session/get` (docs/protocol.md, "Sessions")."""
        return {
            "session_id": self.id,
            "auth_data": self.raw_auth,
            "lifetime": self.terms.lifetime_s,
            "expiration": self.expiration,
            "created_at": self.created_at,
            "on_close_route": self.terms.on_close_route,
            "on_close_payload": self.terms.on_close_payload,
        }


@dataclass(frozen=True)
class DueEnd:
    """The call that is due at a session's end: `payload` to `route` on the model server, or none.

    `digest` is that of the `auth_data` with which the session was opened.
    """

    session_id: str
    digest: bytes
    route: str | None
    payload: dict[str, Any] | None

    @classmethod
    def of(cls, session: Session) -> DueEnd:
        """Make the one of `session`."""
        terms = session.terms
        return cls(session.id, session.digest, terms.on_close_route, terms.on_close_payload)


class Sessions:
    """The open sessions, at most `max_sessions` (None or 0: no limit). Each end calls `on_end` once."""

    def __init__(self, max_sessions: int | None, clock: Clock) -> None:
        self.on_end: Callable[[Session, SessionEnd], None] = _ignore_end
        self._max = max_sessions or math.inf
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        # The digests of `auth_data`: the number of open sessions of each, and those of ended sessions.
        self._auths: Counter[bytes] = Counter()
        self._ended: deque[bytes] = deque(maxlen=REMEMBERED_ENDED)

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, raw_auth: dict[str, Any], terms: SessionTerms) -> Session:
        """Create a session for a client that authenticated with `raw_auth`.

        Raises `TooBusy` (429) if too many are open, `Invalid` (422) if `raw_auth` is nested too deeply or
        larger than a session keeps.
        """
        if len(self._sessions) >= self._max:
            soonest_s = min(s.expires_s for s in self._sessions.values())
            left_s = soonest_s - self._clock.monotonic()
            raise TooBusy(f"{len(self)} sessions are open, the limit", left_s)
        digest = _digest(raw_auth)
        if digest is None:
            raise Invalid({"auth_data": "nested too deeply"})
        if not _is_within(raw_auth, MAX_AUTH_BYTES):
            raise Invalid({"auth_data": f"must be at most {MAX_AUTH_BYTES} bytes of JSON"})
        now_s, now = self._clock.monotonic(), self._clock.wall()
        session = Session(
            id=secrets.token_urlsafe(24),
            raw_auth=raw_auth,
            digest=digest,
            terms=terms,
            created_at=now,
            expiration=now + terms.lifetime_s,
            expires_s=now_s + terms.lifetime_s,
        )
        self._sessions[session.id] = session
        self._auths[digest] += 1
        self._wake_at_expiry(session)
        return session

    def remember_ended(self, digest: bytes) -> None:
        """Remember an ended session by the digest of its `auth_data`."""
        self._ended.append(digest)

    def ids(self) -> list[str]:
        """The ids of the open sessions, the oldest first."""
        return list(self._sessions)

    def find_by_id(self, session_id: str) -> Session | None:
        """The session with this id; None if it is unknown, has ended or has expired."""
        return self._sessions.get(session_id)

    def find(self, session_id: str, raw_auth: Any) -> Session | None:
        """The session with this id; None if it is unknown, has ended or has expired.

        Raises `Unauthorized` (401) if it was created with `auth_data` other than `raw_auth`.
        """
        session = self.find_by_id(session_id)
        if session is not None and not same_json(session.raw_auth, raw_auth):
            raise Unauthorized("the session was created with other auth_data")
        return session

    def remembers(self, raw_auth: Any) -> bool:
        """Whether an open session, or one of the last ended ones, was created with this `auth_data`."""
        if not self._auths and not self._ended:
            return False
        digest = _digest(raw_auth)
        return digest in self._auths or digest in self._ended

    @contextmanager
    def used(self, session: Session) -> Generator[None, None, None]:
        """Keep `session` open while the block runs a request inside it, and renew its lifetime."""
        session.in_flight += 1
        session.expires_s = self._clock.monotonic() + session.terms.lifetime_s
        session.expiration = self._clock.wall() + session.terms.lifetime_s
        try:
            yield
        finally:
            session.in_flight -= 1
            if session.timer is None and session.id in self._sessions:
                self._expire(session)

    def end(self, session: Session, reason: SessionEnd = SessionEnd.ENDED) -> None:
        """End `session`; do nothing if it has already ended."""
        if self._sessions.pop(session.id, None) is None:
            return
        if session.timer is not None:
            session.timer.cancel()
        self._auths[session.digest] -= 1
        if not self._auths[session.digest]:
            del self._auths[session.digest]
        self.remember_ended(session.digest)
        self.on_end(session, reason)

    def end_all(self, reason: SessionEnd) -> None:
        """End every open session, also those with requests in flight."""
        for session in list(self._sessions.values()):
            self.end(session, reason)

    def _expire(self, session: Session) -> None:
        """End `session` if it has expired and has no request in flight; otherwise check again later."""
        session.timer = None
        if self._clock.monotonic() < session.expires_s:
            self._wake_at_expiry(session)
        elif not session.in_flight:
            self.end(session, SessionEnd.EXPIRED)

    def _wake_at_expiry(self, session: Session) -> None:
        left_s = session.expires_s - self._clock.monotonic()
        session.timer = self._clock.call_later(left_s, lambda: self._expire(session))


def _ignore_end(session: Session, reason: SessionEnd) -> None:
    return None


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal (1 equals 1.0), compared in constant time.

    False if one is nested too deeply: no session was created with such a value.
    """
    first, second = _digest(one), _digest(other)
    return first is not None and second is not None and hmac.compare_digest(first, second)


def _digest(value: Any) -> bytes | None:
    """A digest that is the same for equal JSON values; None if `value` is nested too deeply."""
    try:
        return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).digest()
    except RecursionError:  # the JSON parser reads deeper values than Python code can walk
        return None


def _plain(value: Any) -> Any:
    """Convert whole floats to integers at any depth: clients write the same number either way."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(v) for v in cast("list[Any]", value)]
    return value


def _is_within(value: Any, limit_bytes: int) -> bool:
    """Whether `value` as JSON has at most `limit_bytes`; False too if it is nested too deeply."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return len(text.encode("utf-8", "surrogatepass")) <= limit_bytes
    except RecursionError:
        return False


def close_path(route: Any) -> str | None:
    """The path, with its query, of an `on_close_route`, without "." and ".." segments and empty ones.

    Control characters in it are percent-encoded. None for what is no path below the model server's URL, also
    as a server may read it that decodes it once more, or takes a backslash for a slash.
    """
    if not isinstance(route, str) or len(route) > MAX_CLOSE_ROUTE_CHARS or not route.startswith("/"):
        return None
    if route.startswith("//") or "#" in route:
        return None
    path, mark, query = _CONTROL.sub(_percent_encoded, route).partition("?")
    segments = _segments_within(_ENCODED_DOT.sub(".", path))
    # Some readers of URLs leave control characters out, and find ".." then.
    if segments is None or _segments_within(_CONTROL.sub("", _fully_decoded("/".join(segments)))) is None:
        return None
    return f"/{'/'.join(segments)}{mark}{query}"


def _percent_encoded(found: re.Match[str]) -> str:
    return quote(found[0])


def _segments_within(path: str) -> list[str] | None:
    """The segments of `path`; None if ".." leads out of it, or for a backslash."""
    if "\\" in path:
        return None
    segments: list[str] = []
    given = path.split("/")
    for segment in given:
        if segment == "..":
            if not segments:
                return None
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return [*segments, ""] if segments and given[-1] in ("", ".", "..") else segments


def _fully_decoded(path: str) -> str:
    """`path` without percent-encoding, however often it was encoded."""
    while (decoded := unquote(path)) != path:
        path = decoded
    return path
