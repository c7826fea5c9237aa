from __future__ import annotations

from array import array

from lib.tools.load_tally import (
    BETWEEN_CHUNKS,
    FIRST_BYTE,
    LATE,
    LATENCY,
    MAX_SLICES,
    OK,
    ROUTING,
    Sample,
    Tally,
)


def served(due_s: float, ended_s: float, worker: str = "http://a") -> Sample:
    gaps_s = array("d", [0.25, 0.75])
    return Sample(due_s, 0.5, 5.0, worker, routed_s=0.1, first_byte_s=0.2, ended_s=ended_s, gaps_s=gaps_s)


def refused(due_s: float = 0.0, worker: str = "http://b", result: str = "HTTP 429") -> Sample:
    return Sample(due_s, 1.5, 5.0, worker, result, "busy", routed_s=0.1, first_byte_s=9.0, ended_s=9.0)


def tally_of(*samples: Sample) -> Tally:
    tally = Tally()
    for sample in samples:
        tally.add(sample)
    return tally


def test_only_successes_count_as_work_and_latency() -> None:
    tally = tally_of(served(0.0, 1.0), served(1.0, 2.0, "http://b"), refused())

    assert (tally.ended, tally.ok, tally.failed, tally.workload) == (3, 2, 1, 10.0)
    assert {name: times.maximum for name, times in tally.times.items()} == {
        ROUTING: 0.1,
        FIRST_BYTE: 0.2,
        BETWEEN_CHUNKS: 0.75,
        LATENCY: 2.0,
        LATE: 1.5,
    }
    assert tally.times[BETWEEN_CHUNKS].count == 4


def test_failures_are_counted_by_kind_and_by_worker() -> None:
    tally = tally_of(served(0.0, 1.0), refused(), refused(), refused(worker="", result="engine HTTP 401"))

    assert tally.failures == [("HTTP 429", 2), ("engine HTTP 401", 1)]
    assert {url: (w.requests, dict(w.failures)) for url, w in tally.workers.items()} == {
        "http://a": (1, {}),
        "http://b": (2, {"HTTP 429": 2}),
    }


def test_the_first_answer_of_each_result_is_stored() -> None:
    other = Sample(0.0, 0.0, 5.0, "http://b", "HTTP 429", "later")

    assert tally_of(refused(), other, served(0.0, 1.0)).excerpts == {"HTTP 429": "busy", OK: ""}


def test_slices_count_requests_by_the_time_of_their_end() -> None:
    tally = tally_of(served(0.0, 0.1), served(0.0, 1.2), refused(-8.0))

    assert tally.slice_s == 0.5
    assert [(s.ok, s.failed, s.latency.maximum) for s in tally.slices] == [
        (1, 0, 0.1),
        (0, 0, 0.0),
        (1, 1, 1.2),
    ]


def test_in_a_long_test_slices_get_longer_and_not_more() -> None:
    tally = Tally()
    for second in range(1000):
        tally.add(served(float(second), 0.25))

    assert tally.slice_s == 16.0
    assert len(tally.slices) == 63 <= MAX_SLICES
    assert sum(s.ok for s in tally.slices) == 1000
    assert {s.ok for s in tally.slices[:-1]} == {16}
