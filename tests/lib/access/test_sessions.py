"""Sessions on a clock moved by hand, and what holds for any sequence of calls."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.access.sessions import REMEMBERED_ENDED, Session, SessionEnd, Sessions, SessionTerms, same_json
from lib.errors import Invalid, TooBusy, Unauthorized
from tests.manual_clock import ManualClock

AUTH: dict[str, Any] = {"cost": 1.0, "reqnum": 1, "url": "http://w", "signature": "s"}
TERMS = SessionTerms(lifetime_s=10.0)


class Kept:
    """Sessions, and those that ended with how."""

    def __init__(self, most: int | None = None) -> None:
        self.clock = ManualClock()
        self.sessions = Sessions(most, self.clock)
        self.ended: list[tuple[Session, SessionEnd]] = []
        self.sessions.on_end = lambda session, how: self.ended.append((session, how))

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
def test_a_lifetime_that_is_none_is_refused(lifetime: Any) -> None:
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"lifetime": lifetime})
    assert list(refused.value.fields["payload"]) == ["lifetime"]


@pytest.mark.parametrize("route", ["http://a/b", "//a/b", "/\\a", "a", "", 5, ["/a"]])
def test_a_route_that_leads_elsewhere_is_refused(route: Any) -> None:
    with pytest.raises(Invalid) as refused:
        SessionTerms.from_json({"on_close_route": route, "on_close_payload": 5, "lifetime": 0})
    assert list(refused.value.fields["payload"]) == ["lifetime", "on_close_route", "on_close_payload"]


# Life


def test_it_expires_after_its_lifetime_and_not_before() -> None:
    kept = Kept()
    session = kept.create()
    kept.clock.advance(9.999)
    assert kept.sessions.find(session.id, session.raw_auth) is session
    kept.clock.advance(0.001)
    assert kept.ended == [(session, SessionEnd.EXPIRED)]
    assert kept.sessions.find(session.id, session.raw_auth) is None


def test_each_request_puts_the_expiration_off() -> None:
    kept = Kept()
    session = kept.create()
    kept.clock.advance(7.0)
    with kept.sessions.used(session):
        assert session.expiration == kept.clock.wall() + 10.0
    kept.clock.advance(9.0)
    assert not kept.ended
    kept.clock.advance(1.0)
    assert kept.ended == [(session, SessionEnd.EXPIRED)]


def test_expiry_waits_for_a_request_in_flight() -> None:
    """Lesson 34."""
    kept = Kept()
    session = kept.create()
    with kept.sessions.used(session):
        with kept.sessions.used(session):
            kept.clock.advance(1000.0)
        assert not kept.ended
    assert kept.ended == [(session, SessionEnd.EXPIRED)]


def test_ending_one_with_a_request_in_flight_ends_it_once() -> None:
    kept = Kept()
    session = kept.create()
    with kept.sessions.used(session):
        kept.sessions.end(session)
        kept.sessions.end(session)
        kept.clock.advance(1000.0)
    assert kept.ended == [(session, SessionEnd.ENDED)]
    assert (len(kept.sessions), kept.clock.pending) == (0, 0)


@pytest.mark.parametrize("most", [None, 0])
def test_there_may_be_no_limit(most: int | None) -> None:
    kept = Kept(most)
    for number in range(100):
        kept.create(number)
    assert len(kept.sessions) == 100


def test_more_than_the_limit_are_refused_until_the_soonest_end() -> None:
    kept = Kept(2)
    kept.create(1, 30.0)
    kept.clock.advance(5.5)
    kept.create(2, 60.0)
    with pytest.raises(TooBusy) as refused:
        kept.create(3)
    assert refused.value.retry_after_s == 25
    kept.clock.advance(24.5)
    kept.create(3)


def test_another_auth_data_is_refused_and_an_unknown_id_is_nobodys() -> None:
    kept = Kept()
    session = kept.create()
    with pytest.raises(Unauthorized):
        kept.sessions.find(session.id, {**AUTH, "cost": 2.0})
    assert kept.sessions.find("x", AUTH) is None
    assert kept.sessions.find(session.id, json.loads(json.dumps(AUTH))) is session


def test_ids_cannot_be_guessed_from_each_other() -> None:
    kept = Kept()
    ids = {kept.create(number).id for number in range(100)}
    assert len(ids) == 100
    assert {len(i) for i in ids} == {32}


def test_what_has_ended_is_remembered_but_not_for_ever() -> None:
    kept = Kept()
    assert not kept.sessions.remembers(AUTH)
    for number in range(REMEMBERED_ENDED + 1):
        session = kept.create(number)
        assert kept.sessions.remembers(session.raw_auth)
        kept.sessions.end(session)
    assert not kept.sessions.remembers({**AUTH, "reqnum": 0})
    assert kept.sessions.remembers({**AUTH, "reqnum": 1})


@given(st.lists(st.tuples(st.sampled_from(["create", "enter", "leave", "end", "wait"]), st.integers(0, 5))))
def test_any_sequence_ends_each_session_once_and_none_in_flight(steps: list[tuple[str, int]]) -> None:
    kept = Kept()
    opened: list[Session] = []
    uses: list[tuple[Session, ExitStack]] = []
    for step, number in steps:
        if step == "create":
            opened.append(kept.create(len(opened), 1.0 + number))
        elif step == "wait":
            kept.clock.advance(float(number))
        elif step == "leave" and uses:
            uses.pop(number % len(uses))[1].close()
        elif opened:
            session = opened[number % len(opened)]
            if step == "end":
                kept.sessions.end(session)
            elif kept.sessions.find(session.id, session.raw_auth) is session:
                stack = ExitStack()
                stack.enter_context(kept.sessions.used(session))
                uses.append((session, stack))
        expired = [session for session, how in kept.ended if how is SessionEnd.EXPIRED]
        assert not [session for session, _ in uses if session in expired]
        assert len(kept.sessions) == len(opened) - len(kept.ended)
    for _, stack in uses:
        stack.close()
    kept.clock.advance(100.0)
    assert (len(kept.sessions), kept.clock.pending) == (0, 0)
    assert sorted(map(id, opened)) == sorted(id(session) for session, _ in kept.ended)


# Equality of JSON


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.randoms())
def test_a_value_equals_itself_however_it_is_written(value: Any, random: Any) -> None:
    assert same_json(value, json.loads(json.dumps(value)))
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        names = list(fields)
        random.shuffle(names)
        assert same_json(value, {name: fields[name] for name in names})


@given(json_values, json_values)
def test_different_values_differ(one: Any, other: Any) -> None:
    """Python has `True == 1`, JSON has not; both have `1 == 1.0`."""
    if same_json(one, other):
        assert one == other


UNEQUAL: list[tuple[Any, Any]] = [
    *((1, True), (0, False), ("1", 1), ([1, 2], [2, 1]), ({}, []), (None, False), (1e300, 10**300)),
    *(({"a": 1}, {"a": 1, "b": None}), ("", None), (1, 1.5)),
]


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_what_python_or_a_reader_might_take_for_equal_is_not(one: Any, other: Any) -> None:
    assert not same_json(one, other)


def test_numbers_are_equal_by_value() -> None:
    assert same_json({"a": [2.0, 1]}, {"a": [2, 1.0]})
