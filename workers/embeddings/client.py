"""An example client: `python -m workers.embeddings.client -k KEY -e NAME embed`.

It shows the similarity of texts by their vectors, and the ranks of texts by a reranker; an argument selects
one of these, as a server has one model. With `-l` it uses the local engine, which needs neither a key nor a
name. `ask` shows the two steps of every call: get a worker and a signature, then call the worker.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import aiohttp

from lib.client import (
    RouteClient,
    add_target_arguments,
    print_waiting,
    raise_unless_ok,
    run_client,
    target_from_args,
)
from workers.openai.workload import of_pairs, of_reading

QUERY = "How do bees find flowers?"
TEXTS = (
    "A bee sees colours and smells scents, which lead it to blossoms.",
    "The stock market closed higher on Friday.",
    "Insects visit plants for nectar.",
)


async def ask(engine: RouteClient, path: str, request: Mapping[str, Any], cost: float) -> Any:
    """Return the JSON of the worker's answer at `path`."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit: an eighth of the tokens to read.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=cost, on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": the request}.
    async with engine.call(worker, path, request) as response:
        await raise_unless_ok(response)
        return await response.json()


async def embed(engine: RouteClient) -> None:
    """Print how similar each text is to the query, by the vectors of OpenAI's format."""
    texts = [QUERY, *TEXTS]
    answer = await ask(engine, "/embeddings", {"input": texts}, of_reading(texts))
    query, *others = [item["embedding"] for item in answer["data"]]
    for text, vector in zip(TEXTS, others, strict=True):
        print(f"{cosine(query, vector):.3f}  {text}")


async def rerank(engine: RouteClient) -> None:
    """Print the texts in the order of their relevance. The list has another name on each server."""
    texts = list(TEXTS)
    request = {"query": QUERY, "texts": texts, "documents": texts}
    answer: Any = await ask(engine, "/rerank", request, of_pairs(QUERY, texts))
    # TEI answers with a list; infinity with an object, and another name of the score.
    ranks = cast("list[dict[str, Any]]", answer if isinstance(answer, list) else answer["results"])
    for rank in ranks:
        score = rank["score"] if "score" in rank else rank["relevance_score"]
        print(f"{score:.3f}  {TEXTS[rank['index']]}")


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of the angle between two vectors: 1.0 for texts of the same meaning."""
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.hypot(*a) * math.hypot(*b))


SHOWS = {"embed": embed, "rerank": rerank}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare texts by a worker for embeddings.")
    add_target_arguments(parser)
    parser.add_argument(
        "what", nargs="?", default="embed", choices=SHOWS, help="the example to run (default embed)"
    )
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        await SHOWS[args.what](RouteClient(http, target_from_args(parser, args)))


if __name__ == "__main__":
    run_client(main)
