"""How much work an OpenAI request is, in tokens that the model server may generate (workers.md, openai).

Owns the formula of each route. Their unit is one: the time in which a loaded server generates a token. What
is only read, heard or drawn is converted into it, so that the load of different routes adds up. The factors
are rough on purpose: the engine needs sizes that compare, not predictions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

# Tokens of an answer to a request that doesn't say how many it wants (workers.md).
DEFAULT_TOKENS = 256
# The names that the routes have for that number.
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

# English text in the common vocabularies.
CHARACTERS_PER_TOKEN = 4
# A prompt's tokens are read all at once: about so many in the time of generating one.
READ_PER_GENERATED = 8
# An image that is only looked at, a `data:` URI in a message: as much as one of 1024 x 1024 pixels.
IMAGE_TOKENS = 785

# Speech: so many characters are a second of it, for which models generate about 50 tokens of sound.
SPOKEN_CHARACTERS_PER_S = 15
SPEECH_TOKENS_PER_S = 50
# Recordings: a second is about 16 kB (128 kbit/s). It is 50 frames to read, 50 / 8, and 4 tokens to write.
SOUND_BYTES_PER_S = 16_000
HEARD_TOKENS_PER_S = 10

# An image that is made, as OpenAI counts images: a base, and so many for each tile of 512 x 512 pixels.
IMAGE_BASE_TOKENS = 85
TILE_TOKENS = 175
TILE_PIXELS = 512
DEFAULT_SIDE_PIXELS = 1024
_SIZE = re.compile(r"(\d{1,18})x(\d{1,18})")

# No request is no work, but one that only asks what there is.
LEAST = 1.0


def of_generation(request: Mapping[str, Any]) -> float:
    """Completions, chat and responses: the tokens of an answer x `n` x the number of prompts.

    The tokens are the largest of `max_tokens`, `max_completion_tokens` and `max_output_tokens`, 256 where
    there is none: engines differ in which one wins.
    """
    limits = [request[name] for name in TOKEN_FIELDS if request.get(name) is not None]
    return float(max(limits, default=DEFAULT_TOKENS) * _n(request) * number_of_prompts(request.get("prompt")))


def of_reading(*texts: Any) -> float:
    """Embeddings: the tokens of the input / 8. Texts are strings, lists of tokens, or lists of either."""
    return max(LEAST, tokens_in(list(texts)) / READ_PER_GENERATED)


def of_pairs(queries: Any, documents: Any) -> float:
    """Rerank and score: the tokens of all pairs / 8, since each document is read with its query."""
    times = max(1, _count(documents) / max(1, _count(queries)))
    return max(LEAST, (tokens_in(queries) * times + tokens_in(documents)) / READ_PER_GENERATED)


def of_speech(text: str) -> float:
    """Speech: its seconds x 50, a second being 15 characters."""
    return max(LEAST, len(text) / SPOKEN_CHARACTERS_PER_S * SPEECH_TOKENS_PER_S)


def of_recording(size_bytes: int) -> float:
    """Transcriptions and translations: the recording's seconds x 10, a second being 16 kB."""
    return max(LEAST, size_bytes / SOUND_BYTES_PER_S * HEARD_TOKENS_PER_S)


def of_images(request: Mapping[str, Any]) -> float:
    """Images made or edited: (85 + 175 x tiles of 512 x 512 pixels) x `n`, 785 for 1024 x 1024 pixels."""
    width, height = image_size(request.get("size")) or (DEFAULT_SIDE_PIXELS, DEFAULT_SIDE_PIXELS)
    tiles = -(-width // TILE_PIXELS) * -(-height // TILE_PIXELS)
    return float((IMAGE_BASE_TOKENS + TILE_TOKENS * tiles) * _n(request))


def image_size(size: Any) -> tuple[int, int] | None:
    """Width and height in pixels of a size like "1024x768"; None for "auto" and whatever else."""
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def number_of_prompts(prompt: Any) -> int:
    """How many answers a `prompt` asks for: a list of texts or of lists of tokens is a batch."""
    batch = cast("list[Any]", prompt) if isinstance(prompt, list) else []
    return len(batch) if batch and isinstance(batch[0], (str, list)) else 1


def tokens_in(value: Any) -> float:
    """About how many tokens are in `value`: texts, lists of tokens, and messages of them, at any depth."""
    tokens = 0.0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            tokens += IMAGE_TOKENS if item.startswith("data:") else len(item) / CHARACTERS_PER_TOKEN
        elif isinstance(item, dict):
            pending.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            items = cast("list[Any]", item)
            if items and isinstance(items[0], int):  # tokens already; not looked at one by one
                tokens += len(items)
            else:
                pending.extend(items)
    return tokens


def _n(request: Mapping[str, Any]) -> int:
    n = request.get("n")
    return 1 if n is None else n


def _count(texts: Any) -> int:
    return len(cast("list[Any]", texts)) if isinstance(texts, list) else 1
