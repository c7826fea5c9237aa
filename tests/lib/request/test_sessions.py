"""Sessions on a manual clock, and properties of any sequence of calls."""

from __future__ import annotations

import gc
import json
import posixpath
import weakref
from contextlib import ExitStack
from typing import Any, cast
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib.errors import Invalid, TooBusy, Unauthorized
from lib.request.sessions import (
    MAX_AUTH_BYTES,
    MAX_CLOSE_PAYLOAD_BYTES,
    MAX_CLOSE_ROUTE_CHARS,
    REMEMBERED_ENDED,
    Session,
    SessionEnd,
    Sessions,
    SessionTerms,
    close_path,
    same_json,
)
from tests.manual_clock import ManualClock

AUTH: dict[str, Any] = {"cost": 1.0, "reqnum": 1, "url": "http://w", "signature": "s"}
TERMS = SessionTerms(lifetime_s=10.0)


class RecordedSessions:
    """Sessions on a manual clock, and their ends with reasons."""

    def __init__(self, max_sessions: int | None = None) -> None:
        self.clock = ManualClock()
        self.sessions = Sessions(max_sessions, self.clock)
        self.ended: list[tuple[Session, SessionEnd]] = []
        self.sessions.on_end = lambda session, reason: self.ended.append((session, reason))

    def create(self, number: int = 1, lifetime_s: float = 10.0) -> Session:
        return self.sessions.create({**AUTH, "reqnum": number}, SessionTerms(lifetime_s))


# Terms


@pytest.mark.parametrize(
    ("payload", "terms"),
    [
        ({}, SessionTerms(60.0)),
        ({"lifetime": None, "on_close_route": None, "on_close_payload": None}, SessionTerms(60.0)),
        ({"lifetime": 5, "more": 1}, SessionTerms(5.0)),
        ({"lifetime": 24 * 3600}, SessionTerms(86400.0)),
        (
            {"lifetime": 0.5, "on_close_route": "/a/b?c=1", "on_close_payload": {}},
            SessionTerms(0.5, "/a/b?c=1", {}),
        ),
    ],
)
def test_terms_are_read(payload: dict[str, Any], terms: SessionTerms) -> None:
    assert SessionTerms.from_json(payload) == terms


@pytest.mark.parametrize("lifetime", [0, -1, 86400.1, float("nan"), float("inf"), True, "60", [], {}])
def test_a_wrong_lifetime_is_refused(lifetime: Any) -> None:
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"lifetime": lifetime})
    assert list(refused.value.fields["payload"]) == ["lifetime"]


@pytest.mark.parametrize(
    "route",
    [
        *("http://a/b", "//a/b", "/\\a", "a", "", 5, ["/a"], "?a", "/a#b"),
        *("/../x", "/..", "/a/../../x", "/./../x", "/%2e%2e/x", "/%2E./x", "/.%2e", "/a/%2e%2e/%2e%2e/x"),
        *(
            "/..%2fx",
            "/a%2f..%2f..%2fx",
            "/%252e%252e/x",
            "/a\\..\\..\\x",
            "/..%5cx",
            "/.\n./x",
            "/.%0a./x",
            "/%2e%09%2e/x",
        ),
        "/" + "a" * MAX_CLOSE_ROUTE_CHARS,  # one too many
    ],
)
def test_a_route_that_is_no_path_is_refused(route: Any) -> None:
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"on_close_route": route, "on_close_payload": 5, "lifetime": 0})
    assert list(refused.value.fields["payload"]) == ["lifetime", "on_close_route", "on_close_payload"]


@pytest.mark.parametrize(
    ("route", "normalised"),
    [
        ("/", "/"),
        ("/a/b?c=../..", "/a/b?c=../.."),
        ("/a/", "/a/"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e/b/%2E%2e/c", "/a/c"),
        ("/a//b", "/a/b"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a%20b%23/c%2fd", "/a%20b%23/c%2fd"),
        ("/\t//a?b\r\nc", "/%09/a?b%0D%0Ac"),
        ("/" + "a" * (MAX_CLOSE_ROUTE_CHARS - 1), "/" + "a" * (MAX_CLOSE_ROUTE_CHARS - 1)),
    ],
)
def test_a_route_is_normalised(route: str, normalised: str) -> None:
    assert SessionTerms.from_json({"on_close_route": route}).on_close_route == normalised


@given(st.lists(st.sampled_from(["/", "..", ".", "a", "%2e", "%2f", "%5c", "%25", "\\", "?"]), max_size=12))
def test_no_route_leads_out_of_the_base_path(parts: list[str]) -> None:
    path = close_path("/" + "".join(parts))
    if path is None:
        return
    assert close_path(path) == path
    for decoded in (path, unquote(path), unquote(unquote(path))):
        plain = posixpath.normpath("/base/v1" + decoded.partition("?")[0].replace("\\", "/"))
        assert plain == "/base/v1" or plain.startswith("/base/v1/")


def test_a_large_payload_for_the_end_is_refused() -> None:
    largest = {"a": "x" * (MAX_CLOSE_PAYLOAD_BYTES - 8)}
    assert SessionTerms.from_json({"on_close_payload": largest}).on_close_payload == largest
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"on_close_payload": {"a": "x" * (MAX_CLOSE_PAYLOAD_BYTES - 7)}})
    assert refused.value.fields["payload"] == {"on_close_payload": "must be at most 65536 bytes of JSON"}


def test_a_payload_for_the_end_that_is_nested_too_deeply_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"on_close_payload": nested})
    assert list(refused.value.fields["payload"]) == ["on_close_payload"]


def test_the_ids_are_those_of_the_open_sessions() -> None:
    sessions = Sessions(None, ManualClock())
    one, two, three = (sessions.create({}, SessionTerms()) for _ in range(3))
    sessions.end(two)
    assert sessions.ids() == [one.id, three.id]


def test_a_session_keeps_no_large_auth_data() -> None:
    sessions = Sessions(None, ManualClock())
    with pytest.raises(Invalid) as refused:
        sessions.create({**AUTH, "x": "x" * MAX_AUTH_BYTES}, SessionTerms())
    assert refused.value.fields == {"auth_data": "must be at most 16384 bytes of JSON"}
    assert len(sessions) == 0


# Life


def test_it_expires_after_its_lifetime_and_not_before() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    recorded.clock.advance(9.999)
    assert recorded.sessions.find(session.id, session.raw_auth) is session
    recorded.clock.advance(0.001)
    assert recorded.ended == [(session, SessionEnd.EXPIRED)]
    assert recorded.sessions.find(session.id, session.raw_auth) is None


def test_each_request_puts_the_expiration_off() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    recorded.clock.advance(7.0)
    with recorded.sessions.used(session):
        assert session.expiration == recorded.clock.wall() + 10.0
    recorded.clock.advance(9.0)
    assert not recorded.ended
    recorded.clock.advance(1.0)
    assert recorded.ended == [(session, SessionEnd.EXPIRED)]


def test_expiry_waits_for_a_request_in_flight() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    with recorded.sessions.used(session):
        with recorded.sessions.used(session):
            recorded.clock.advance(1000.0)
        assert not recorded.ended
    assert recorded.ended == [(session, SessionEnd.EXPIRED)]


def test_ending_one_with_a_request_in_flight_ends_it_once() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    with recorded.sessions.used(session):
        recorded.sessions.end(session)
        recorded.sessions.end(session)
        recorded.clock.advance(1000.0)
    assert recorded.ended == [(session, SessionEnd.ENDED)]
    assert (len(recorded.sessions), recorded.clock.pending) == (0, 0)


@pytest.mark.parametrize("max_sessions", [None, 0])
def test_there_may_be_no_limit(max_sessions: int | None) -> None:
    recorded = RecordedSessions(max_sessions)
    for number in range(100):
        recorded.create(number)
    assert len(recorded.sessions) == 100


def test_more_than_the_limit_are_refused_until_the_soonest_end() -> None:
    recorded = RecordedSessions(2)
    recorded.create(1, 30.0)
    recorded.clock.advance(5.5)
    recorded.create(2, 60.0)
    with pytest.raises(TooBusy) as refused:
        recorded.create(3)
    assert refused.value.retry_after_s == 25
    recorded.clock.advance(24.5)
    recorded.create(3)


def test_another_auth_data_is_refused_and_an_unknown_id_is_none() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    with pytest.raises(Unauthorized):
        recorded.sessions.find(session.id, {**AUTH, "cost": 2.0})
    assert recorded.sessions.find("x", AUTH) is None
    assert recorded.sessions.find(session.id, json.loads(json.dumps(AUTH))) is session


def test_ids_cannot_be_guessed_from_each_other() -> None:
    recorded = RecordedSessions()
    ids = {recorded.create(number).id for number in range(100)}
    assert len(ids) == 100
    assert {len(i) for i in ids} == {32}


def test_the_last_ended_sessions_are_remembered() -> None:
    recorded = RecordedSessions()
    assert not recorded.sessions.remembers(AUTH)
    for number in range(REMEMBERED_ENDED + 1):
        session = recorded.create(number)
        assert recorded.sessions.remembers(session.raw_auth)
        recorded.sessions.end(session)
    assert not recorded.sessions.remembers({**AUTH, "reqnum": 0})
    assert recorded.sessions.remembers({**AUTH, "reqnum": 1})


def test_auth_data_of_two_sessions_is_remembered_until_both_are_forgotten() -> None:
    """Signatures may be used again in the `url` form and at an unsecured worker."""
    recorded = RecordedSessions()
    first, second = recorded.create(1), recorded.create(1)
    assert first.id != second.id
    recorded.sessions.end(first)
    for number in range(2, REMEMBERED_ENDED + 2):
        recorded.sessions.end(recorded.create(number))
    assert recorded.sessions.remembers(AUTH)  # `second` lives
    recorded.sessions.end(second)
    assert recorded.sessions.remembers(AUTH)
    for number in range(2, REMEMBERED_ENDED + 2):
        recorded.sessions.end(recorded.create(number))
    assert not recorded.sessions.remembers(AUTH)


def test_a_use_that_raises_has_ended_too() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyError))
        stack.enter_context(recorded.sessions.used(session))
        recorded.clock.advance(20.0)
        raise KeyError("author's")
    assert recorded.ended == [(session, SessionEnd.EXPIRED)]


def test_a_request_that_outlives_the_lifetime_ends_the_session_unless_another_came() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    with recorded.sessions.used(session):
        recorded.clock.advance(100.0)
        with recorded.sessions.used(session):
            recorded.clock.advance(1.0)
    assert not recorded.ended
    recorded.clock.advance(8.999)
    assert not recorded.ended
    recorded.clock.advance(0.001)
    assert recorded.ended == [(session, SessionEnd.EXPIRED)]
    assert recorded.clock.pending == 0


def test_it_has_one_timer_however_much_it_is_used() -> None:
    recorded = RecordedSessions()
    session = recorded.create()
    for _ in range(100):
        with recorded.sessions.used(session), recorded.sessions.used(session):
            recorded.clock.advance(3.0)
        assert recorded.clock.pending == 1
    assert not recorded.ended


def test_end_all_ends_sessions_in_use_too() -> None:
    recorded = RecordedSessions()
    opened = [recorded.create(number) for number in range(5)]
    with recorded.sessions.used(opened[2]):
        recorded.sessions.end_all(SessionEnd.DRAINED)
        assert (len(recorded.sessions), recorded.clock.pending) == (0, 0)
    assert recorded.ended == [(session, SessionEnd.DRAINED) for session in opened]


def test_a_session_may_be_created_when_another_ends() -> None:
    """`on_end` is called after the session is removed."""
    recorded = RecordedSessions(1)
    first = recorded.create(1)

    def follow(session: Session, reason: SessionEnd) -> None:
        recorded.create(2)

    recorded.sessions.on_end = follow
    recorded.sessions.end(first)
    assert len(recorded.sessions) == 1
    assert recorded.sessions.find(first.id, first.raw_auth) is None


def test_the_json_of_a_session_has_its_public_fields() -> None:
    recorded = RecordedSessions()
    session = recorded.sessions.create(AUTH, SessionTerms(30.0, "/stop", {"a": 1}))
    assert session.to_json() == {
        "session_id": session.id,
        "auth_data": AUTH,
        "lifetime": 30.0,
        "expiration": recorded.clock.wall() + 30.0,
        "created_at": recorded.clock.wall(),
        "on_close_route": "/stop",
        "on_close_payload": {"a": 1},
    }


@pytest.mark.parametrize("depth", [950, 5000, 100_000])
def test_a_value_nested_too_deeply_equals_no_other(depth: int) -> None:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    recorded = RecordedSessions(2)
    session = recorded.create()
    with pytest.raises(Unauthorized):
        recorded.sessions.find(session.id, {**AUTH, "deep": deep})
    assert not recorded.sessions.remembers({**AUTH, "deep": deep})
    if depth > 950:  # which may do, or not: it depends on reason deep the caller is
        with pytest.raises(Invalid) as refused:
            recorded.sessions.create({**AUTH, "deep": deep}, TERMS)
        assert refused.value.fields == {"auth_data": "nested too deeply"}
        assert len(recorded.sessions) == recorded.clock.pending == 1
        assert not any(same_json(*pair) for pair in ((deep, deep), (deep, 1), (1, deep)))
    while deep:  # taken apart by hand: not every Python does it without recursion
        deep = deep.pop()


def test_a_thousand_ended_sessions_leave_only_what_is_remembered() -> None:
    recorded, alive = RecordedSessions(), weakref.WeakSet[Session]()
    ends: list[SessionEnd] = []
    recorded.sessions.on_end = lambda session, reason: ends.append(reason)

    def live(number: int) -> None:
        session = recorded.create(number)
        alive.add(session)
        with recorded.sessions.used(session):
            recorded.clock.advance(0.01)

    for number in range(REMEMBERED_ENDED + 500):
        live(number)
    assert len(recorded.sessions) + len(ends) == REMEMBERED_ENDED + 500
    recorded.clock.advance(10.0)
    gc.collect()
    assert (len(recorded.sessions), recorded.clock.pending, len(alive)) == (0, 0, 0)
    assert ends == [SessionEnd.EXPIRED] * (REMEMBERED_ENDED + 500)
    remembered = [
        n for n in range(REMEMBERED_ENDED + 500) if recorded.sessions.remembers({**AUTH, "reqnum": n})
    ]
    assert remembered == list(range(500, REMEMBERED_ENDED + 500))


STEPS = st.tuples(
    st.sampled_from(["create", "create", "enter", "enter", "leave", "end", "end_all", "wait", "wait"]),
    st.integers(0, 11),
)


class SessionModel:
    """Sessions, and a simple model of them: open until when, and in use by which requests."""

    def __init__(self, max_sessions: int | None) -> None:
        self.recorded, self.max_sessions = RecordedSessions(max_sessions), max_sessions
        self.opened: list[Session] = []
        self.until: dict[Session, float] = {}
        self.uses: list[tuple[Session, ExitStack]] = []

    def step(self, what: str, number: int) -> None:
        sessions = self.recorded.sessions
        if what == "create":
            self.create(1.0 + number / 2)
        elif what == "wait":
            self.recorded.clock.advance(number / 2)
        elif what == "end_all" and number == 0:
            sessions.end_all(SessionEnd.DRAINED)
            self.until.clear()
        elif what == "leave" and self.uses:
            self.uses.pop(number % len(self.uses))[1].close()
        elif what == "end" and self.opened:
            sessions.end(self.opened[number % len(self.opened)])
            self.until.pop(self.opened[number % len(self.opened)], None)
        elif what == "enter" and self.until:
            self.enter(list(self.until)[number % len(self.until)])
        for session in list(self.until):
            if self.until[session] <= self.recorded.clock.monotonic() and session not in self.in_use():
                del self.until[session]

    def create(self, lifetime_s: float) -> None:
        if self.max_sessions and len(self.until) >= self.max_sessions:
            with pytest.raises(TooBusy):
                self.recorded.create(len(self.opened), lifetime_s)
            return
        session = self.recorded.create(len(self.opened), lifetime_s)
        self.opened.append(session)
        self.until[session] = self.recorded.clock.monotonic() + lifetime_s

    def enter(self, session: Session) -> None:
        stack = ExitStack()
        stack.enter_context(self.recorded.sessions.used(session))
        self.uses.append((session, stack))
        self.until[session] = self.recorded.clock.monotonic() + session.terms.lifetime_s

    def in_use(self) -> set[Session]:
        return {session for session, _ in self.uses}

    def check(self) -> None:
        sessions, clock = self.recorded.sessions, self.recorded.clock
        for session in self.opened:
            found = sessions.find(session.id, session.raw_auth)
            assert found is (session if session in self.until else None)
            assert sessions.remembers(session.raw_auth)
        for session, until_s in self.until.items():
            assert session.expiration - clock.wall() == until_s - clock.monotonic()
            assert session.in_flight == [s for s, _ in self.uses].count(session)
        assert len(sessions) == len(self.until)
        assert clock.pending <= len(sessions)
        ended = [session for session, _ in self.recorded.ended]
        assert len(ended) == len(set(ended)) == len(self.opened) - len(self.until)


# Lists without a least size have five steps on average: too few for a session to be used and to end.
@given(
    st.sampled_from([None, 0, 1, 3]),
    st.lists(STEPS, max_size=60) | st.lists(STEPS, min_size=30, max_size=60),
)
@example(  # ended in use, after its term was over and renewed
    None, [("create", 0), ("enter", 0), ("wait", 4), ("enter", 0), ("end", 0), ("leave", 0)]
)
def test_any_sequence_matches_the_model(max_sessions: int | None, steps: list[tuple[str, int]]) -> None:
    """Each session ends once, at its time and never in use, and none is left at the end."""
    model = SessionModel(max_sessions)
    for what, number in steps:
        model.step(what, number)
        model.check()
    for _, stack in model.uses:
        stack.close()
    model.recorded.clock.advance(100.0)
    assert (len(model.recorded.sessions), model.recorded.clock.pending) == (0, 0)
    assert {session for session, _ in model.recorded.ended} == set(model.opened)
    assert not any(session.in_flight for session in model.opened)


# Equality of JSON


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
# From a small set, so that two values are often equal, or nearly.
near_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, 0.0, -0.0, 1.0, 0.5, 2**53, 2.0**53, 2**53 + 1, "", "1", "true"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)


def marked(value: Any) -> Any:
    """Replace booleans in `value`, since `True == 1` in Python but not in JSON."""
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, dict):
        return {key: marked(inner) for key, inner in cast("dict[str, Any]", value).items()}
    return [marked(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value


def rewritten(value: Any) -> Any:
    """`value` as another client might write it: fields in reverse order, whole numbers as floats."""
    if isinstance(value, dict):
        pairs = reversed(list(cast("dict[str, Any]", value).items()))
        return {key: rewritten(inner) for key, inner in pairs}
    if isinstance(value, list):
        return [rewritten(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        return float(value)
    return value


@given(json_values | near_values)
def test_a_value_equals_itself_however_it_is_written(value: Any) -> None:
    assert same_json(value, value)
    assert same_json(value, json.loads(json.dumps(value)))
    assert same_json(value, rewritten(value))
    assert same_json(rewritten(value), value)


@given(st.one_of(st.tuples(near_values, near_values), st.tuples(json_values, json_values)))
def test_two_values_are_equal_where_python_says_so(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert same_json(one, other) is (marked(one) == marked(other))
    assert same_json(one, other) is same_json(other, one)


@given(near_values, near_values, near_values, st.booleans())
def test_equality_is_transitive(one: Any, other: Any, third: Any, is_same: bool) -> None:
    if is_same:
        other = rewritten(one)
    for last in (third, rewritten(one), rewritten(other)):
        if same_json(one, other) and same_json(other, last):
            assert same_json(one, last)


UNEQUAL: list[tuple[Any, Any]] = [
    *((1, True), (0, False), ("1", 1), ([1, 2], [2, 1]), ({}, []), (None, False), (1e300, 10**300)),
    *(({"a": 1}, {"a": 1, "b": None}), ("", None), (1, 1.5), (2**53 + 1, 2.0**53), ({"a": 1}, {"a": True})),
]


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_values_that_differ_only_in_type_are_not_equal(one: Any, other: Any) -> None:
    assert not same_json(one, other)


def test_numbers_are_equal_by_value() -> None:
    assert same_json({"a": [2.0, 1]}, {"a": [2, 1.0]})
