"""Facts about JSON that has not been parsed: its depth, its number of values, and the text of `auth_data`.

Owns scanning bodies as they arrive, by regular expressions over pieces: it builds nothing, since a body of
nothing but `{}` takes thirty times its size once parsed (docs/protocol.md, "Bodies"). It does not check
that a body is JSON: the parser does.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate

from lib.errors import BodyTooLarge, Invalid

# The most that is scanned at a time: at most about 1.5 ms, during which the event loop stands still.
SLICE_BYTES = 32 * 1024
# Levels of nesting, and values (members of objects and arrays). A million take up to 200 MiB once parsed.
MAX_DEPTH = 500
MAX_VALUES = 1_000_000
# Keys beside `auth_data`. Envelopes have three.
MAX_KEYS = 256
# Size of the text of `auth_data`, and of a key beside it with its quotation marks.
AUTH_DATA_BYTES = 64 * 1024
MAX_KEY_BYTES = 1024

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STRING_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
# Behind a piece, it closes a string that is open, whose last byte may be a backslash. Otherwise it stays.
_SENTINEL = b'\x00"'
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The first piece of a value that is searched for its end; while there is none, the pieces double.
_FIRST_WINDOW_BYTES = 256


class JsonMeter:
    """Follows JSON text in pieces. `depth` is the number of open objects and arrays, `values` that of
    all values.

    `max_values` and `max_depth` are the bounds. `feed` raises `Invalid` (422) for text nested more deeply,
    and `BodyTooLarge` (413) for more values.
    """

    __slots__ = ("_is_escaped", "_is_in_string", "_max_depth", "_max_values", "depth", "values")

    def __init__(self, max_values: int = MAX_VALUES, max_depth: int = MAX_DEPTH) -> None:
        self.depth = 0
        self.values: int = 0
        self._max_values = max_values
        self._max_depth = max_depth
        self._is_in_string: bool = False
        self._is_escaped: bool = False  # the next byte follows a backslash in a string

    def feed(self, data: bytes) -> int:
        """Follow the next piece; return the lowest depth in it."""
        start = self._skip_string(data) if self._is_in_string else 0
        if start == len(data):
            return self.depth
        plain = self._without_strings(data[start:] if start else data)
        brackets = plain.translate(None, _NO_BRACKETS)
        lowest = self._follow(brackets) if brackets else self.depth
        self.values += plain.count(b",") + plain.count(b"[") + plain.count(b"{")
        if self.values > self._max_values:
            raise BodyTooLarge(f"the body has more than {self._max_values} values")
        return lowest

    def _follow(self, brackets: bytes) -> int:
        """Follow the depth through `brackets`; return the lowest."""
        depths = list(accumulate(map(_STEPS.__getitem__, brackets), initial=self.depth))
        self.depth = depths[-1]
        if max(depths) > self._max_depth:
            raise Invalid({"body": "nested too deeply"})
        return min(depths)

    def feed_until(self, data: bytes, depth: int) -> int | None:
        """Follow `data` to the end of the value that brings the depth back to `depth`.

        Returns the position behind it; None if it does not end in `data`, which is then followed as a whole.
        """
        before = self.depth, self.values, self._is_in_string, self._is_escaped
        if self.feed(data) > depth:
            return None
        self.depth, self.values, self._is_in_string, self._is_escaped = before
        end = self._end_of(data, depth)
        self.feed(data[:end])
        return end

    def end_string(self, data: bytes) -> int | None:
        """Follow `data` to the end of the string that is open; return the position behind it, or None."""
        end = self._skip_string(data)
        return None if self._is_in_string else end

    def _end_of(self, data: bytes, depth: int) -> int:
        """The position in `data` behind the bracket that brings the depth to `depth`."""
        now = self.depth
        start = _string_end(data, self._is_escaped) + 1 if self._is_in_string else 0
        for token in _TOKEN.finditer(data, start):
            now += _STEPS.get(data[token.start()], 0)
            if now == depth:
                return token.end()
        return len(data)

    def _skip_string(self, data: bytes) -> int:
        """The position in `data` behind the string that is open; its length if that doesn't end in it."""
        end = _string_end(data, self._is_escaped)
        self._is_in_string = not data.startswith(b'"', end)
        self._is_escaped = end < len(data)  # it is read in a string only
        return len(data) if self._is_in_string else end + 1

    def _without_strings(self, data: bytes) -> bytes:
        """The part of `data`, which begins outside of a string, that is outside of strings."""
        if b'"' not in data:
            return data
        plain = _STRING.sub(b"", data + _SENTINEL)
        if plain.endswith(_SENTINEL):
            return plain[: -len(_SENTINEL)]
        self._is_in_string = True
        self._is_escaped = (len(data) - len(data.rstrip(b"\\"))) % 2 == 1
        return plain


def _string_end(data: bytes, is_escaped: bool) -> int:
    """The position of the quotation mark that ends the string in which `data` begins.

    If it is not in `data`, the position of a last backslash that escapes what follows, or else the length.
    """
    end = data.find(b'"')
    if b"\\" not in data[: end if end >= 0 else len(data)] and not is_escaped:
        return end if end >= 0 else len(data)
    found = _STRING_REST.match(data, 1 if is_escaped else 0)
    return found.end() if found else len(data)


class EnvelopeScanner:
    """Finds the text of `auth_data` among the keys of an envelope that arrives in pieces.

    `auth_text` is that text, None until its end was seen; `has_payload` says whether there was a "payload".
    `feed` raises `Invalid` (422) for what is no envelope, and what `JsonMeter.feed` raises.
    """

    def __init__(self, meter: JsonMeter | None = None) -> None:
        self.auth_text: bytes | None = None
        self.has_payload = False
        self._meter = meter or JsonMeter()
        self._rest = b""  # a token whose end has not arrived
        self._next = self._take_start
        self._key = ""
        self._keys = 0
        self._captured: bytearray | None = None  # of `auth_data`, as far as it has arrived
        self._window_bytes = _FIRST_WINDOW_BYTES

    def feed(self, data: bytes) -> None:
        """Follow the next piece, which should be at most `SLICE_BYTES` long."""
        data = self._rest + data if self._rest else data
        position = 0
        while position < len(data):
            if self._next not in (self._take_inside, self._take_string):
                position = _space_end(data, position)
                if position == len(data):
                    break
            after = self._next(data, position)
            if after is None:
                break
            position = after
        self._rest = data[position:]

    @property
    def held_bytes(self) -> int:
        """Bytes of the envelope that the scanner keeps: of `auth_data`, or of a key."""
        return len(self._rest) + len(self._captured or b"")

    @property
    def values(self) -> int:
        """The number of values so far."""
        return self._meter.values

    def missing(self) -> Invalid:
        """The error for an envelope that has ended without `auth_data`."""
        problems = {"auth_data": "field missing"}
        return Invalid(problems if self.has_payload else {**problems, "payload": "field missing"})

    # Each takes what it expects at a position of `data`, and returns the position behind it; None if the end
    # of what it expects has not arrived.

    def _take_start(self, data: bytes, position: int) -> int | None:
        if _BYTE_ORDER_MARK.startswith(data[position : position + 3]):
            if len(data) - position < 3:
                return None
            position = _space_end(data, position + 3)
        if position == len(data):
            return position
        if data[position] != ord("{"):
            raise Invalid({"body": "must be a JSON object"})
        self._next = self._take_key
        self._meter.feed(b"{")
        return position + 1

    def _take_key(self, data: bytes, position: int) -> int | None:
        if data[position] == ord("}"):
            self._next = self._take_end
            return position + 1
        if data[position] != ord('"'):
            raise _not_json("a key is expected")
        found = _STRING.match(data, position)
        if found is None:
            if len(data) - position > MAX_KEY_BYTES:
                raise _long_key()
            return None
        if len(found[0]) > MAX_KEY_BYTES:
            raise _long_key()
        self._keys += 1
        if self._keys > MAX_KEYS:
            raise Invalid({"body": f"has more than {MAX_KEYS} keys"})
        self._key = _decoded(found[0])
        self.has_payload = self.has_payload or self._key == "payload"
        self._next = self._take_colon
        return found.end()

    def _take_colon(self, data: bytes, position: int) -> int:
        if data[position] != ord(":"):
            raise _not_json("a colon is expected")
        self._next = self._take_value
        return position + 1

    def _take_value(self, data: bytes, position: int) -> int:
        first = data[position]
        if self._key == "auth_data":
            if self.auth_text is not None:
                raise Invalid({"auth_data": "given twice"})
            if first != ord("{"):
                raise Invalid({"auth_data": "must be an object"})
            self._captured = bytearray()
        self._window_bytes = _FIRST_WINDOW_BYTES
        if first in b'"[{':
            self._meter.feed(data[position : position + 1])
            self._next = self._take_inside if first != ord('"') else self._take_string
            if self._captured is not None:
                self._captured += b"{"
            return position + 1
        found = _SCALAR.match(data, position)
        if found is None:
            raise _not_json("a value is expected")
        self._next = self._take_more
        return found.end()

    def _take_string(self, data: bytes, position: int) -> int:
        """Take the rest of a string, which may be most of the body."""
        end = self._meter.end_string(data[position:])
        if end is None:
            return len(data)
        self._next = self._take_comma
        return position + end

    def _take_more(self, data: bytes, position: int) -> int:
        """Take the rest of a number or a literal, which may have arrived in parts."""
        found = _SCALAR.match(data, position)
        end = found.end() if found else position
        if end < len(data):
            self._next = self._take_comma
        return end

    def _take_inside(self, data: bytes, position: int) -> int:
        """Take a part of an object or an array."""
        piece = data[position : position + self._window_bytes]
        self._window_bytes = min(2 * self._window_bytes, SLICE_BYTES)
        end = self._meter.feed_until(piece, 1)
        if self._captured is not None:
            self._captured += piece[:end]
            if len(self._captured) > AUTH_DATA_BYTES:
                raise Invalid({"auth_data": f"is larger than {AUTH_DATA_BYTES} bytes"})
        if end is None:
            return position + len(piece)
        if self._captured is not None:
            self.auth_text, self._captured = bytes(self._captured), None
        self._next = self._take_comma
        return position + end

    def _take_comma(self, data: bytes, position: int) -> int:
        if data[position] == ord(","):
            self._next = self._take_key
        elif data[position] == ord("}"):
            self._next = self._take_end
        else:
            raise _not_json("a comma is expected")
        return position + 1

    def _take_end(self, data: bytes, position: int) -> int:
        raise _not_json("there is more behind the object")


def _space_end(data: bytes, position: int) -> int:
    found = _SPACE.match(data, position)
    return found.end() if found else position


def _decoded(key: bytes) -> str:
    """The key with this text, in quotation marks; "" if it is no JSON."""
    if b"\\" not in key:
        return key[1:-1].decode(errors="replace")
    try:
        return str(json.loads(key))
    except ValueError:
        return ""


def _long_key() -> Invalid:
    return Invalid({"body": f"has a key of more than {MAX_KEY_BYTES} bytes"})


def _not_json(problem: str) -> Invalid:
    return Invalid({"body": f"not JSON: {problem}"})
