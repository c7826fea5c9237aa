"""Checks the limits and pauses that the documents name against the constants of the code."""

from __future__ import annotations

import re

import pytest

from lib.access import body, envelope, refusals, scanner, signatures
from lib.engine import journal, journal_records, key, reports
from lib.http import shares
from lib.metrics import MAX_UNDELIVERED, MAX_WORKLOAD, SAMPLES_AT_MOST, SECONDS_AT_MOST
from lib.model import (
    benchmark_keeper,
    failure_probe,
    failure_row,
    health_override,
    log_tail,
    reach_watch,
    watch,
)
from lib.request import sessions
from tests.docs.blocks import document

MIB = 1024 * 1024
WORDS = {3: "three", 5: "five", 10: "ten"}
UNITS = {1.0: "second", 60.0: "minute", 3600.0: "hour"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("is read for {} s more", log_tail.LINGER_POLLS * log_tail.POLL_INTERVAL_S),
        ("A line of more than {} MiB counts as several", log_tail.MAX_LINE_BYTES / MIB),
        ("a health check that has answered 2xx for {} s without a failure", health_override.WELL_FOR_S),
        ("the next request follows {} s later", health_override.RETRY_S),
        ("after {} failures in a row, 10 s apart", WORDS.get(watch.FAILURES_UNTIL_ERROR)),
        ("after three failures in a row, {} s apart", watch.HEALTH_INTERVAL_S),
        ("with the next success; it is checked every {} s", watch.HEALTH_INTERVAL_LOADING_S),
        ("two such failures at least {} s apart", reach_watch.APART_S),
        ("a check at once and then every {} s", reach_watch.SUSPECT_INTERVAL_S),
        ("or check that succeeds; it is checked every {} s", reach_watch.DOWN_INTERVAL_S),
        ("after {} in a row and nothing else", WORDS.get(failure_row.LENGTH)),
        ("the request of the benchmark, repeated every {} s,", failure_probe.RETRY_S),
        ("a successful benchmark; it is repeated every {} s", benchmark_keeper.RETRY_S),
        ("`refused_signatures_last_{}`", UNITS.get(refusals.RECENT_S)),
        ("What ended more than an {} before the start", UNITS.get(journal_records.OLDEST_S)),
        ("A file of more than {} MiB is written anew", journal.MAX_BYTES / MIB),
        ("tries again every {} s; requests are served", journal.RETRY_S),
    ],
)
def test_limits_in_operating(text: str, value: float | str | None) -> None:
    assert_documented("operating", text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("In an envelope larger than {} KiB, `auth_data` is", envelope.PARSED_WHOLE_BYTES / 1024),
        ("keys of the envelope, of which there are at most {}. It", scanner.MAX_KEYS),
        ("It has at most {} KiB.", scanner.AUTH_DATA_BYTES / 1024),
        ("has at most {} values (else 413)", scanner.MAX_VALUES),
        ("and is nested at most {} levels deep", scanner.MAX_DEPTH),
        ("has come more slowly than {} KiB/s on average", body.FLOOR_BYTES_S / 1024),
        ("once the worker has waited {} s for it", body.FLOOR_AFTER_S),
        ("or takes {} times as long, is answered with 408", WORDS.get(body.WHOLE_BODY_FACTOR)),
        ("Strangers share {} MiB for", shares.STRANGERS_BYTES / MIB),
        ("`on_close_payload` has at most {} KiB", sessions.MAX_CLOSE_PAYLOAD_BYTES / 1024),
        ("and `auth_data` {} KiB", sessions.MAX_AUTH_BYTES / 1024),
        ("a `reqnum` more than {} behind the highest accepted one", signatures.WINDOW),
        ("a request that waits for it at most once a {}, and", UNITS.get(key.REFETCH_INTERVAL_S)),
        ("while signatures are refused every {} s", key.LOOK_AGAIN_S),
        ("The request then waits at most {} s for the new key", key.REFETCH_LIMIT_S),
        ("An address that has not answered within {} s,", key.FETCH_TIMEOUT_S),
        ("or with more than {} KiB, has no key", key.MAX_KEY_BYTES / 1024),
        ("they are asked again, after at most {} s", key.LAST_RETRY_S),
        ("until one answers with a 2xx within {} s", reports.DELIVERY_TIMEOUT_S),
        ("it is sent again, with newer numbers, after at most {} s", reports.LAST_RETRY_S),
        ("requests that have ended, once a {} while", UNITS.get(reports.COMPLETIONS_INTERVAL_S)),
        ("At most {} entries wait for delivery", MAX_UNDELIVERED),
        ("Workload is a number from 0 to {}, in the", MAX_WORKLOAD),
        ("at most the larger of {} times the benchmark's payload", SAMPLES_AT_MOST),
        ("and of an {} at `max_perf`", UNITS.get(SECONDS_AT_MOST)),
    ],
)
def test_limits_in_protocol(text: str, value: float | str | None) -> None:
    assert_documented("protocol", text, value)


def assert_documented(name: str, text: str, value: float | str | None) -> None:
    """The document has `text` with `value` in place of the braces."""
    prose = re.sub(r"\s+", " ", document(name).prose)
    shown = f"{value:,.15g}" if isinstance(value, (int, float)) else str(value)
    assert text.format(shown) in prose
