"""The targets for the worker's speed, with a run's figures for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.results import Results, Spread, ratio

MIB = 1024 * 1024


@dataclass(frozen=True)
class SpeedTarget:
    """A figure that should be at most `limit`, shown as `limit_text`. `value` is None if not measured."""

    load: str
    figure: str
    limit: float
    limit_text: str
    value: Spread | None

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit; None if it was not measured."""
        return None if self.value is None else self.value.median <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def targets(results: Results) -> list[SpeedTarget]:
    """The targets of all loads that were run."""
    titles = {load.name: load.title for load in results.loads}
    every = (*_of_requests(results), *_of_memory(results), *_of_refusals(results))
    return [replace(target, load=titles[target.load]) for target in every if target.load in titles]


def _of_requests(results: Results) -> Iterator[SpeedTarget]:
    for form, share in (("url", 12), ("full", 8)):
        name = f"plain-32-{form}"
        value = results.ratio(name, "cpu_us_per_request", "worker", "official_worker")
        yield SpeedTarget(name, "CPU a request ÷ the official worker's", 1 / share, f"1/{share}", value)
    name = "plain-1-url"
    added = (results.added(name, "p50_us", subject) for subject in ("worker", "official_worker"))
    yield SpeedTarget(name, "p50 added to direct ÷ the official worker's", 1 / 8, "1/8", ratio(*added))
    value = results.ratio("paced", "cpu_us_per_event", "worker", "nginx")
    yield SpeedTarget("paced", "CPU an event ÷ nginx's", 1.5, "1.5", value)
    value = results.ratio("paced", "completion_p50_s", "worker", "direct")
    yield SpeedTarget("paced", "p50 ÷ direct", 1.03, "1.03", value)
    value = results.spread("gpu", "cores", "worker")
    yield SpeedTarget("gpu", "cores in use", 0.5, "1/2", value)


def _of_memory(results: Results) -> Iterator[SpeedTarget]:
    value = results.ratio("idle", "memory_kib_per_stream", "worker", "official_worker")
    yield SpeedTarget("idle", "memory a stream ÷ the official worker's", 1 / 2, "1/2", value)
    value = results.spread("idle", "memory_kib_per_stream", "worker")
    yield SpeedTarget("idle", "memory a stream", 40.0, "40 KiB", value)
    for load in results.loads:
        if load.body_bytes:
            extra = results.values(load.name, "extra_memory_mib", "worker")
            bodies = Spread.of([mib * MIB / load.body_bytes for mib in extra.values()])
            yield SpeedTarget(load.name, "extra memory ÷ the body", 3.0, "3", bodies)
            wait = results.spread(load.name, "longest_wait_ms", "worker")
            yield SpeedTarget(load.name, "longest wait of a small request", 150.0, "150 ms", wait)


def _of_refusals(results: Results) -> Iterator[SpeedTarget]:
    bare = results.values("refused", "verification_us", "worker")
    rows: Sequence[tuple[str, str, float]] = (
        ("the check", "check_us", 1.5),
        ("CPU a request", "cpu_us_per_request", 4.0),
    )
    for text, figure, limit in rows:
        value = ratio(results.values("refused", figure, "worker"), bare)
        yield SpeedTarget("refused", f"{text} ÷ one bare verification", limit, f"{limit:g}", value)
