"""lib.http.chunked: the chunked coding is read the same way wherever its bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.http.chunked import MAX_LINE_BYTES, MAX_TRAILER_BYTES, BadChunk, ChunkScanner

EXTENSIONS = (b"", b";a", b";a=b", b' ;a="b c"', b"\t; \xff")
TRAILERS = (b"", b"X-Sum: 1\r\n", b"A:\r\nB: \xe9\t\r\n")


def scanned(parts: list[bytes]) -> tuple[bytes, int, bool]:
    """The data in `parts`, the number of bytes that the body has, and whether its end was seen."""
    scanner, pieces, used = ChunkScanner(), list[bytes](), 0
    for part in parts:
        used += scanner.scan(part, pieces)
    assert all(pieces)
    return b"".join(pieces), used, scanner.is_done


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` in parts, cut at `positions`."""
    ends = sorted({p for p in positions if p < len(data)} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def bytewise(data: bytes) -> list[bytes]:
    return cut(data, list(range(len(data))))


def refused(parts: list[bytes]) -> bool:
    try:
        scanned(parts)
    except BadChunk:
        return True
    return False


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and the same in the chunked coding."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    extensions = st.sampled_from(EXTENSIONS)
    sizes = st.sampled_from(("%x", "%X", "0%x", "00000%x"))
    coded = b"".join(
        (draw(sizes) % len(chunk)).encode() + draw(extensions) + b"\r\n" + chunk + b"\r\n" for chunk in chunks
    )
    last = draw(st.sampled_from((b"0", b"000"))) + draw(extensions) + b"\r\n"
    return b"".join(chunks), coded + last + draw(st.sampled_from(TRAILERS)) + b"\r\n"


@given(bodies(), st.lists(st.integers(0, 400)), st.binary(max_size=20))
def test_a_body_is_the_same_in_any_chunking_and_any_parts(
    both: tuple[bytes, bytes], positions: list[int], behind: bytes
) -> None:
    plain, coded = both
    assert scanned([coded + behind]) == (plain, len(coded), True)
    assert scanned(cut(coded, positions)) == (plain, len(coded), True)
    assert scanned(bytewise(coded + behind)) == (plain, len(coded), True)


@given(bodies(), st.data())
def test_a_changed_body_is_read_the_same_way_in_any_parts(
    both: tuple[bytes, bytes], data: st.DataObject
) -> None:
    coded = bytearray(both[1])
    position = data.draw(st.integers(0, len(coded) - 1))
    replacement = data.draw(
        st.binary(max_size=3) | st.sampled_from((b"\r\n", b"\n", b"\r", b"0", b" ", b";"))
    )
    coded[position : position + data.draw(st.integers(0, 2))] = replacement
    changed = bytes(coded)
    positions = data.draw(st.lists(st.integers(0, 400)))
    if refused([changed]):
        assert refused(cut(changed, positions))
        assert refused(bytewise(changed))
    else:
        assert scanned(cut(changed, positions)) == scanned(bytewise(changed)) == scanned([changed])


@pytest.mark.parametrize(
    "malformed",
    [
        b"x\r\n",
        b"\r\n",
        b"\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\r\n",
        b"1\r\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\r\r",
        b"1\ra",
        b"1;\x00\r\na\r\n",
        b"1;a\rb\r\n",
        b"1;a\nb\r\n",
        b"1_0\r\n",
        b"1.\r\na\r\n",
        b"\xb1\r\na\r\n",
        b"0\r\n\n",
        b"0\r\nno colon\r\n",
        b"0\r\nname\r\n",
        b"0\r\nname : x\r\n",
        b"0\r\n folded\r\n",
        b"0\r\nA: b\r\n folded\r\n",
        b"0\r\nA: \x01\r\n",
        b"0\r\n: x\r\n",
        b"0\r\nA: b\n",
        b"0\r\nA: b\rc\r\n",
    ],
)
def test_what_is_malformed_is_refused_as_soon_as_it_can_be(malformed: bytes) -> None:
    for before in (b"", b"3\r\nabc\r\n"):
        body = before + malformed
        assert refused([body])
        assert refused(bytewise(body))
        for position in range(len(body)):
            assert refused([body[:position], body[position:]])


@pytest.mark.parametrize("begin", [b"size", b"1 x", b"1\rx", b"0\r\nA b", b"0\r\n\rx", b"1\r\nabc"])
def test_a_wrong_line_is_not_waited_for(begin: bytes) -> None:
    assert refused([begin])
    assert refused(bytewise(begin))


def test_a_size_has_at_most_fifteen_digits() -> None:
    scanner = ChunkScanner()
    largest = b"f" * 15 + b"\r\n"
    assert scanner.scan(largest, []) == len(largest)
    assert not scanner.is_done
    assert refused([b"0" * 16 + b"\r\n\r\n"])
    assert refused(bytewise(b"0" * 16))


def test_a_line_with_a_size_has_a_limit() -> None:
    longest = b"0;" + b"x" * (MAX_LINE_BYTES - 4) + b"\r\n\r\n"
    for parts in ([longest], bytewise(longest)):
        assert scanned(parts) == (b"", len(longest), True)
    too_long = b"0;" + b"x" * (MAX_LINE_BYTES - 3) + b"\r\n\r\n"
    endless = b"0;" + b"x" * MAX_LINE_BYTES
    for body in (too_long, endless):
        assert refused([body])
        assert refused(bytewise(body))


def test_trailers_have_a_limit_together() -> None:
    field = b"A: " + b"x" * 1019 + b"\r\n"  # 1 KiB
    whole = b"0\r\n" + field * 7 + b"A: " + b"x" * 1017 + b"\r\n" + b"\r\n"
    assert len(whole) - 3 == MAX_TRAILER_BYTES
    for parts in ([whole], bytewise(whole)):
        assert scanned(parts) == (b"", len(whole), True)
    too_long = b"0\r\n" + field * 7 + b"A: " + b"x" * 1018 + b"\r\n" + b"\r\n"
    endless = b"0\r\nA: " + b"x" * MAX_TRAILER_BYTES
    for body in (too_long, endless):
        assert refused([body])
        assert refused(bytewise(body))


def test_nothing_is_taken_behind_the_end() -> None:
    scanner, pieces = ChunkScanner(), list[bytes]()
    assert scanner.scan(b"1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", pieces) == 11
    assert scanner.is_done
    assert scanner.scan(b"1\r\nb\r\n", pieces) == 0
    assert pieces == [b"a"]


def test_data_is_passed_on_before_its_chunk_is_whole() -> None:
    scanner, pieces = ChunkScanner(), list[bytes]()
    scanner.scan(b"5\r\nab", pieces)
    scanner.scan(b"cde", pieces)
    scanner.scan(b"\r", pieces)
    scanner.scan(b"\n", pieces)
    assert pieces == [b"ab", b"cde"]
