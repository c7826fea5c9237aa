"""The workload of an OpenAI request, in tokens to generate.

Owns the formula of each route. All have the same unit, the time in which a loaded server generates a token,
so that the workloads of different routes can be added. Input, sound and images are converted to it. The
factors are rough, since the engine needs comparable sizes rather than predictions. Whatever JSON a request
is, its workload is finite and at least 0: the model server checks the fields, not the worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

# Tokens generated for a request without a limit.
DEFAULT_TOKENS = 256
# The names of that limit on the different routes.
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
# A larger number in a request counts as this one.
MOST = 2**40
# The longest text that is read as a number, in characters.
MAX_NUMBER = 32

# The average of English text in common vocabularies.
CHARACTERS_PER_TOKEN = 4
# A prompt's tokens are processed together: about this many in the time of generating one.
READ_PER_GENERATED = 8
# An input image, which is a `data:` URI in a message, counts like an image of 1024 x 1024 pixels.
IMAGE_TOKENS = 785

# A second of speech has about 15 characters, for which models generate about 50 tokens of sound.
SPOKEN_CHARACTERS_PER_S = 15
SPEECH_TOKENS_PER_S = 50
# A second of a recording has about 16 kB (128 kbit/s). It counts as 50 frames to read (50 / 8) and 4 tokens
# to generate.
SOUND_BYTES_PER_S = 16_000
HEARD_TOKENS_PER_S = 10

# An image to make counts as OpenAI counts images: a base, and an amount for each tile of 512 x 512 pixels.
IMAGE_BASE_TOKENS = 85
TILE_TOKENS = 175
TILE_PIXELS = 512
DEFAULT_SIDE_PIXELS = 1024
_SIZE = re.compile(r"(\d{1,18})x(\d{1,18})")

# The minimum, except for the list of models, which counts 0.
LEAST = 1.0


def of_generation(request: Mapping[str, Any]) -> float:
    """Completions, chat and responses: the tokens of an answer x `n` x the number of prompts.

    The tokens are the largest of `TOKEN_FIELDS`, since servers differ in which one they use; 256 if there is
    none, or none that is a number of 0 or more. With 0, which asks for the tokens of the prompt only, it is
    the prompt's tokens / 8.
    """
    limits = [n for name in TOKEN_FIELDS if (n := number_in(request.get(name))) is not None]
    prompt = request.get("prompt")
    generated = max(limits, default=DEFAULT_TOKENS) * _n(request) * number_of_prompts(prompt)
    return float(generated) or of_reading(prompt, request.get("messages"), request.get("input"))


def of_any(request: Mapping[str, Any]) -> float:
    """A request of an unknown kind: with a limit of tokens as `of_generation`, otherwise as `of_reading`."""
    if any(request.get(name) is not None for name in TOKEN_FIELDS):
        return of_generation(request)
    return of_reading(*request.values())


def of_reading(*texts: Any) -> float:
    """Embeddings: the tokens of the input / 8. Texts are strings, lists of tokens, or lists of either."""
    return max(LEAST, tokens_in(list(texts)) / READ_PER_GENERATED)


def of_pairs(queries: Any, documents: Any) -> float:
    """Rerank and score: the tokens of all pairs / 8. Each document is read together with its query."""
    times = max(1, _count(documents) / max(1, _count(queries)))
    return max(LEAST, (tokens_in(queries) * times + tokens_in(documents)) / READ_PER_GENERATED)


def of_speech(text: Any) -> float:
    """Speech: its seconds x 50. A second has 15 characters."""
    characters = len(text) if isinstance(text, str) else 0
    return max(LEAST, characters / SPOKEN_CHARACTERS_PER_S * SPEECH_TOKENS_PER_S)


def of_recording(size_bytes: int) -> float:
    """Transcriptions and translations: the recording's seconds x 10. A second has 16 kB."""
    return max(LEAST, size_bytes / SOUND_BYTES_PER_S * HEARD_TOKENS_PER_S)


def of_images(request: Mapping[str, Any]) -> float:
    """Image generations and edits: (85 + 175 x tiles of 512 x 512 pixels) x `n`; 785 for 1024 x 1024."""
    width, height = image_size(request.get("size")) or (DEFAULT_SIDE_PIXELS, DEFAULT_SIDE_PIXELS)
    tiles = -(-width // TILE_PIXELS) * -(-height // TILE_PIXELS)
    return float((IMAGE_BASE_TOKENS + TILE_TOKENS * tiles) * _n(request))


def image_size(size: Any) -> tuple[int, int] | None:
    """Width and height in pixels of a size like "1024x768"; None for any other value, such as "auto"."""
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def number_of_prompts(prompt: Any) -> int:
    """The number of prompts in `prompt`. A list of texts, or of lists of tokens, is a batch."""
    batch = cast("list[Any]", prompt) if isinstance(prompt, list) else []
    return len(batch) if batch and isinstance(batch[0], (str, list)) else 1


def tokens_in(value: Any) -> float:
    """The approximate number of tokens in `value`: a text, a list of tokens, or messages, nested at will."""
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
            if items and isinstance(items[0], int):  # a list of tokens
                tokens += len(items)
            else:
                pending.extend(items)
    return tokens


def number_in(value: Any) -> float | None:
    """The number that `value` is, or that its text is, at most `MOST`; None for any other, or one below 0."""
    if isinstance(value, str) and len(value) <= MAX_NUMBER:
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:  # NaN is not
        return None
    return min(value, MOST)


def _n(request: Mapping[str, Any]) -> float:
    n = number_in(request.get("n"))
    return 1 if n is None else n


def _count(texts: Any) -> int:
    return len(cast("list[Any]", texts)) if isinstance(texts, list) else 1
