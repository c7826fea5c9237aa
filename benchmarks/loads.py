"""The loads: their requests, how many are in flight at once, and when each load ends.

Owns the list of loads, and the sizes of a full and of a quick run. They are sent by
generator.py; the measuring is in measurement.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

ROUTE = "/v1/completions"
MIB = 1024 * 1024
EVENT_GAP_MS = 10
GPU_GAP_MS = 25
CURVE_CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)

# `url`: one signature for all requests. `full`: each request has a signature of its own. `refused`: each has
# another wrong one.
Form = Literal["url", "full", "refused"]
# `requests`: a number of requests in flight until they are used up. `probed`: the same, and small requests
# meanwhile, one after the other. `held`: streams that stay open until they are measured.
Kind = Literal["requests", "probed", "held"]


@dataclass(frozen=True)
class Load:
    """One load; `--loads` takes its `name` or its `group`.

    It ends after `count` requests, or sends no more after `limit_s` seconds. `model` names the answer
    (fast_model.py); it is a stream of `events` events, if any. The prompt has `prompt_bytes` bytes. A `fresh`
    load is measured on processes that have served only a warm-up, as memory that was used once may be kept.
    """

    name: str
    group: str
    title: str
    concurrency: int
    count: int
    limit_s: float
    form: Form = "url"
    kind: Kind = "requests"
    model: str = "plain"
    events: int = 0
    prompt_bytes: int = 280
    fresh: bool = False

    @property
    def body_bytes(self) -> int:
        """The size of a large body, in or out; 0 for other loads."""
        return _LARGE_BYTES.get(self.name, 0)


_LARGE_BYTES = {"large-in": 32 * MIB, "large-out": 32 * MIB}


def _plain(concurrency: int, form: Form, count: int) -> Load:
    at_once = "one at a time" if concurrency == 1 else f"{concurrency} at once"
    name = f"plain-{concurrency}-{form}"
    return Load(name, "plain", f"plain, {at_once}, `{form}` form", concurrency, count, 8.0, form)


def _paced(streams: int, events: int) -> Load:
    return Load(
        "paced",
        "streams",
        f"{streams} paced streams of {events} events",
        *(streams, streams, 60.0),
        model=f"stream/{events}/{EVENT_GAP_MS}",
        events=events,
    )


def _of_a_gpu(streams: int, events: int) -> Load:
    """The streams of a fast GPU: at 512, about 20,000 events a second."""
    title = f"{streams} paced streams, about {streams * 1000 // GPU_GAP_MS:,} events a second"
    model = f"stream/{events}/{GPU_GAP_MS}"
    return Load("gpu", "scale", title, streams, streams, 60.0, model=model, events=events)


def _saturating(streams: int, events: int) -> Load:
    title = f"{streams} streams of {events:,} events as fast as they go"
    model = f"stream/{events}/0"
    return Load("burst", "scale", title, streams, streams, 60.0, model=model, events=events)


def _idle(name: str, streams: int) -> Load:
    title = f"{streams:,} idle streams"
    return Load(name, "idle", title, streams, streams, 60.0, kind="held", model="held", fresh=True)


def _large(count: int) -> list[Load]:
    size = 32 * MIB
    return [
        Load("large-in", "large", "32 MiB in", 1, count, 60.0, kind="probed", prompt_bytes=size, fresh=True),
        Load(
            "large-out",
            "large",
            "32 MiB out",
            1,
            count,
            60.0,
            kind="probed",
            model=f"large/{size}",
            fresh=True,
        ),
    ]


# `idle-few`: the official worker passes on at most 100 streams at once; the others wait and need less memory.
FULL: tuple[Load, ...] = (
    *(_plain(1, form, 2000) for form in ("url", "full")),
    *(_plain(32, form, 5000) for form in ("url", "full")),
    _paced(256, 200),
    _of_a_gpu(512, 200),
    _saturating(64, 2000),
    _idle("idle", 1000),
    _idle("idle-few", 100),
    *_large(3),
    Load("refused", "refused", "refused signatures, 32 at once", 32, 2000, 8.0, form="refused"),
)
# Every load once, in seconds: whether the benchmark works, not how fast anything is.
QUICK: tuple[Load, ...] = (
    *(_plain(1, form, 20) for form in ("url", "full")),
    *(_plain(32, form, 64) for form in ("url", "full")),
    _paced(16, 20),
    _of_a_gpu(16, 20),
    _saturating(4, 50),
    _idle("idle", 50),
    _idle("idle-few", 20),
    *_large(1),
    Load("refused", "refused", "refused signatures, 32 at once", 32, 64, 8.0, form="refused"),
)
WARM_UP = (
    replace(_plain(32, "url", 500), name="warm-up"),
    replace(_paced(4, 20), name="warm-up of streams"),
)


def curve(quick: bool) -> tuple[Load, ...]:
    """The loads of the plot: plain requests at each concurrency."""
    return tuple(
        replace(_plain(n, "url", 4 * n if quick else 500 + 50 * n), name=f"curve-{n}", group="curve")
        for n in CURVE_CONCURRENCY
    )


def chosen(loads: Iterable[Load], names: Iterable[str]) -> list[Load]:
    """The loads that are named, or whose group is. Raises `ValueError` for a name of neither."""
    loads, wanted = list(loads), set(names)
    known = {load.name for load in loads} | {load.group for load in loads}
    if unknown := sorted(wanted - known):
        raise ValueError(f"no load is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [load for load in loads if load.name in wanted or load.group in wanted]
