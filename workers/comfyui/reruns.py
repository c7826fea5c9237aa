"""Jobs whose output files exist: a job is run again if ComfyUI named a cached file that was deleted.

ComfyUI doesn't check whether the files of cached outputs still exist. Owns how such a job is found, and the
change of its graph that keeps ComfyUI from answering from its cache.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from workers.comfyui.jobs import Job, Progress
from workers.comfyui.outputs import files_of

# An input that no node has. ComfyUI ignores it, but a node with another value isn't in the cache.
CACHE_INPUT = "__cache"


async def follow(job: Job) -> AsyncGenerator[Progress | None, None]:
    """Yield the progress of `job` until it is finished. If files are missing, it is run once more.

    Raises the errors of `Job.follow` and of `Job.submitted`.
    """
    async with aclosing(job.follow()) as news:
        async for progress in news:
            yield progress
    missing = await _nodes_without_files(job)
    if missing:
        await job.run_again(_uncached(job.graph, missing))
        async with aclosing(job.follow()) as news:
            async for progress in news:
                yield progress


async def finished(job: Job) -> dict[str, Any]:
    """Wait as `follow` does, and return the history. Raises the errors of `follow`."""
    async for _ in follow(job):
        pass
    return job.entry


async def _nodes_without_files(job: Job) -> set[str]:
    """The cached nodes of which a file is missing."""
    cached = _cached_nodes(job.entry)
    return {
        output.node_id
        for output in files_of(job)
        if output.sent is None and output.node_id in cached and not await job.api.exists(output.file)
    }


def _cached_nodes(entry: dict[str, Any]) -> set[str]:
    status: dict[str, Any] = entry.get("status") or {}
    messages = cast("list[tuple[str, dict[str, Any]]]", status.get("messages") or [])
    return {node for kind, data in messages if kind == "execution_cached" for node in data.get("nodes", [])}


def _uncached(graph: dict[str, Any], nodes: set[str]) -> dict[str, Any]:
    """`graph`, of which `nodes` are executed anew; all nodes if one of them is not in the graph itself."""
    changed = nodes if nodes <= set(graph) else set(graph)
    new: dict[str, Any] = {CACHE_INPUT: uuid.uuid4().hex}
    return {
        node_id: {**node, "inputs": {**node.get("inputs", {}), **new}} if node_id in changed else node
        for node_id, node in graph.items()
    }
