"""Lines of a log file across rotation, truncation, unfinished lines and any encoding."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.model.log_tail import LINES_PER_TURN, LINGER_POLLS, MAX_LINE_BYTES, POLL_BYTES, LogTail
from tests.manual_clock import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.log"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def rotate(path: Path) -> Path:
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    path.touch()
    return rotated


def test_a_file_is_read_from_its_beginning_once_it_exists(path: Path) -> None:
    tail = LogTail(path)
    assert (tail.trouble, tail.behind) == (None, False)
    assert tail.poll() == []
    assert (tail.trouble, tail.behind) == ("does not exist", False)
    path.touch()
    assert (tail.poll(), tail.trouble) == ([], None)
    append(path, b"one\ntwo\n")
    assert tail.poll() == ["one", "two"]
    assert tail.poll() == []
    assert tail.trouble is None


def test_it_counts_how_often_the_log_begins(path: Path) -> None:
    tail = LogTail(path)
    counts: list[int] = []
    for change in (lambda: None, lambda: append(path, b"one\n"), lambda: append(path, b"two\n")):
        change()
        tail.poll()
        counts.append(tail.beginnings)
    path.write_bytes(b"again\n")
    assert tail.poll() == ["again"]
    counts.append(tail.beginnings)
    rotate(path)
    tail.poll()
    assert [*counts, tail.beginnings] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_bytes_that_are_written_one_at_a_time_make_whole_lines(path: Path, end: bytes) -> None:
    tail = LogTail(path)
    lines: list[str] = []
    for byte in "größe 漢字 😀".encode() + end + b"next" + end:
        append(path, bytes([byte]))
        lines += tail.poll()
    assert lines == ["größe 漢字 😀", "next"]


def test_a_progress_bar_is_a_line_each_time_it_moves(path: Path) -> None:
    append(path, b"10%\r20%\r30%\ndone\r\n\r\n")
    assert LogTail(path).poll() == ["10%", "20%", "30%", "done", ""]


def test_empty_lines_at_the_beginning_are_lines(path: Path) -> None:
    append(path, b"\n\none\n")
    assert LogTail(path).poll() == ["", "", "one"]


def test_bytes_that_are_all_zero_are_skipped(path: Path) -> None:
    tail = LogTail(path)
    append(path, bytes(10))
    assert tail.poll() == []
    append(path, bytes(10) + b"one\n")
    assert tail.poll() == ["one"]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"caf\xe9 loaded", "café loaded"),
        ("loaded".encode("utf-16-le"), "loaded"),
        ("loaded".encode("utf-16-be"), "loaded"),
        (b"\xff\x80 loaded", "ÿ\x80 loaded"),
    ],
)
def test_any_encoding_is_read(path: Path, raw: bytes, line: str) -> None:
    append(path, raw + b"\n")
    append(path, "à côté\n".encode())
    assert LogTail(path).poll() == [line, "à côté"]


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(path: Path) -> None:
    append(path, b"one\n")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    append(path, b"two\n")
    rotate(path)
    append(path, b"three\n")
    assert tail.poll() == ["two", "three"]


def test_a_rotated_files_writer_may_finish_its_line_later(path: Path) -> None:
    append(path, b"one\nhal")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    rotated = rotate(path)
    append(path, b"new\n")
    assert tail.poll() == ["new"]
    append(rotated, b"f\nlate\n")
    assert tail.poll() == ["half", "late"]


def test_a_rotated_file_is_closed_with_its_unfinished_line(path: Path) -> None:
    append(path, b"last words")
    tail = LogTail(path)
    assert tail.poll() == []
    rotate(path)
    polls = [tail.poll() for _ in range(LINGER_POLLS + 10)]
    assert [lines for lines in polls if lines] == [["last words"]]
    assert polls[LINGER_POLLS - 1] == ["last words"]
    assert descriptors_of(path.parent) == 1
    tail.close()
    assert descriptors_of(path.parent) == 0


def test_a_file_renamed_back_is_not_read_twice(path: Path) -> None:
    append(path, b"one\n")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    rotated = rotate(path)
    append(path, b"two\n")
    assert tail.poll() == ["two"]
    rotated.rename(path)
    append(path, b"three\n")
    assert tail.poll() == ["three"]


def test_a_file_renamed_back_and_rotated_again_is_read_as_long_as_any_other(path: Path) -> None:
    append(path, b"one\n")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    rotated = rotate(path)
    for _ in range(LINGER_POLLS - 1):
        assert tail.poll() == []
    rotated.rename(path)
    assert tail.poll() == []
    rotate(path)
    for _ in range(LINGER_POLLS - 1):
        assert tail.poll() == []
    append(rotated, b"two\n")
    assert tail.poll() == ["two"]


def test_a_deleted_file_is_read_further_and_so_is_the_next(path: Path) -> None:
    append(path, b"one\n")
    tail = LogTail(path)
    with path.open("ab", buffering=0) as writer:
        assert tail.poll() == ["one"]
        path.unlink()
        writer.write(b"two\n")
        assert tail.poll() == ["two"]
        assert tail.trouble == "does not exist"
        writer.write(b"three\n")
        append(path, b"four\n")
        assert tail.poll() == ["three", "four"]


def test_a_link_with_a_new_target_is_a_rotation(path: Path) -> None:
    first, second = path.with_name("first"), path.with_name("second")
    append(first, b"one\n")
    append(second, b"two\n")
    path.symlink_to(first)
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    path.unlink()
    path.symlink_to(second)
    assert tail.poll() == ["two"]


@pytest.mark.parametrize("after", [b"short\n", b"longer than what was there before\n", b"12345678\n"])
def test_truncation_in_place_is_noticed_whatever_the_new_length(path: Path, after: bytes) -> None:
    append(path, b"one\ntwo\n")
    tail = LogTail(path)
    assert tail.poll() == ["one", "two"]
    os.truncate(path, 0)
    append(path, after)
    assert tail.poll() == [after.decode().strip()]


def test_truncation_is_noticed_when_only_the_bytes_before_the_offset_differ(path: Path) -> None:
    banner = b"=" * 3000
    append(path, banner + b"old\n")
    tail = LogTail(path)
    assert len(tail.poll()) == 1
    os.truncate(path, 0)
    append(path, banner + b"new\nmore\n")
    assert tail.poll() == [(banner + b"new").decode(), "more"]


def test_truncation_is_noticed_when_only_the_first_bytes_differ(path: Path) -> None:
    same = b"=" * 3000 + b"\n"
    append(path, b"old\n" + same)
    tail = LogTail(path)
    assert len(tail.poll()) == 2
    os.truncate(path, 0)
    append(path, b"new\n" + same + b"more\n")
    assert tail.poll() == ["new", same.decode().strip(), "more"]


def test_a_line_cut_by_truncation_continues_after_it(path: Path) -> None:
    append(path, b"one\nthe model is lo")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    os.truncate(path, 0)
    append(path, b"aded now\n")
    assert tail.poll() == ["the model is loaded now"]


def test_the_hole_left_by_a_writer_that_does_not_append_is_skipped(path: Path) -> None:
    append(path, b"one\n")
    tail = LogTail(path)
    assert tail.poll() == ["one"]
    for line in (b"two\n", b"three\n"):
        os.truncate(path, 0)
        with path.open("r+b") as writer:
            writer.seek(1 << 32)
            writer.write(line)
        assert tail.poll() == [line.decode().strip()]
        assert not tail.behind


def test_a_long_line_without_an_end_is_returned_in_pieces_of_whole_characters(path: Path) -> None:
    text = "x" + "漢" * MAX_LINE_BYTES
    append(path, text.encode())
    tail = LogTail(path)
    pieces = tail.poll()
    assert 2 <= len(pieces) <= 3
    append(path, b"\nnext\n")
    *rest, after = tail.poll()
    assert after == "next"
    assert "".join([*pieces, *rest]) == text
    assert all(len(piece.encode()) <= MAX_LINE_BYTES for piece in pieces + rest)


@pytest.mark.parametrize("before", range(4))
def test_a_long_line_is_never_cut_within_a_character(path: Path, before: int) -> None:
    line = "x" * before + "😀" * (MAX_LINE_BYTES // 4 + 10)
    append(path, f"{line}\n".encode())
    pieces = LogTail(path).poll()
    assert "".join(pieces) == line
    assert len(pieces) == 2


def test_a_line_of_the_greatest_length_is_not_cut(path: Path) -> None:
    append(path, b"x" * MAX_LINE_BYTES + b"\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\n")
    assert list(map(len, LogTail(path).poll())) == [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]


def test_a_long_line_that_is_no_utf_8_is_cut_at_about_the_limit(path: Path) -> None:
    line = b"\x80" * (MAX_LINE_BYTES + 10)
    append(path, line + b"\n")
    first, rest = LogTail(path).poll()
    assert first + rest == line.decode("latin-1")
    assert MAX_LINE_BYTES - 3 <= len(first) <= MAX_LINE_BYTES


def test_a_file_that_can_t_be_read_is_reported() -> None:
    tail = LogTail(Path("/proc/self/mem"))  # its first page is never mapped
    assert (tail.poll(), tail.trouble) == ([], "can't be read: Input/output error")
    tail.close()


def test_a_large_old_log_takes_several_polls(path: Path) -> None:
    count = 2 * POLL_BYTES // 100 + 7
    append(path, b"".join(b"%099d\n" % number for number in range(count)))
    tail = LogTail(path)
    first = tail.poll()
    assert tail.behind
    assert 0 < len(first) <= POLL_BYTES // 100
    rotate(path)
    append(path, b"new\n")
    rest: list[str] = []
    while tail.behind:
        rest += tail.poll()
    assert [*map(int, first), *map(int, rest[:-1])] == list(range(count))
    assert rest[-1] == "new"


def test_a_path_that_is_not_a_regular_file_is_reported_and_never_blocks(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    tail = LogTail(path)
    assert tail.poll() == []
    assert tail.trouble == "is a FIFO, not a regular file"
    path.unlink()
    append(path, b"one\n")
    assert tail.poll() == ["one"]

    directory = LogTail(tmp_path)
    assert directory.poll() == []
    assert directory.trouble == "is a directory, not a regular file"

    below_a_file = LogTail(path / "model.log")
    assert below_a_file.poll() == []
    assert below_a_file.trouble == "can't be opened: Not a directory"

    device = LogTail(Path("/dev/null"))
    assert device.poll() == []
    assert device.trouble == "is a device or socket, not a regular file"


def descriptors_of(directory: Path) -> int:
    """The number of this process's open descriptors of files in `directory`."""
    own = Path("/proc/self/fd")
    targets = [os.readlink(fd) for fd in own.iterdir() if fd.is_symlink()]
    return sum(target.startswith(f"{directory}/") for target in targets)


# Following


@asynccontextmanager
async def following(tail: LogTail, clock: ManualClock, lines: list[str]) -> AsyncGenerator[None]:
    task = asyncio.create_task(tail.follow(lines.append, clock))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def polls(clock: ManualClock, seconds: float) -> None:
    """Let `seconds` pass, with a poll each second; return after the last of them."""
    await clock.wait_for_timers()
    for _ in range(round(seconds)):
        clock.advance(1.0)
        await clock.wait_for_timers()


async def test_a_log_that_can_be_read_from_the_start_is_not_mentioned(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lib.model.log_tail")
    append(path, b"")
    clock = ManualClock()
    async with following(LogTail(path), clock, []):
        await polls(clock, 20)
    assert caplog.messages == []


async def test_follow_passes_lines_on_as_they_arrive_and_closes_when_cancelled(path: Path) -> None:
    clock, lines = ManualClock(), list[str]()
    async with following(LogTail(path), clock, lines):
        await polls(clock, 1)
        append(path, b"one\ntwo\nthr")
        await polls(clock, 1)
        assert lines == ["one", "two"]
        append(path, b"ee\n")
        await polls(clock, 1)
        assert lines == ["one", "two", "three"]
        assert descriptors_of(path.parent) == 1
    assert descriptors_of(path.parent) == 0


async def test_follow_does_not_pause_before_the_end_of_the_log(path: Path) -> None:
    count = 2 * POLL_BYTES // 1000
    append(path, (b"x" * 999 + b"\n") * count)
    clock, lines = ManualClock(), list[str]()
    async with following(LogTail(path), clock, lines):
        await clock.wait_for_timers()
        assert len(lines) == count


async def test_other_tasks_run_between_the_lines_of_a_poll(path: Path) -> None:
    count = 3 * LINES_PER_TURN
    append(path, b"x\n" * count)
    clock, lines, seen = ManualClock(), list[str](), set[int]()
    async with following(LogTail(path), clock, lines):
        while len(lines) < count:
            await asyncio.sleep(0)
            seen.add(len(lines))
    assert {LINES_PER_TURN, 2 * LINES_PER_TURN} <= seen


async def test_a_file_that_does_not_appear_causes_a_warning_now_and_then(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, lines = ManualClock(), list[str]()
    async with following(LogTail(path), clock, lines):
        await polls(clock, 9)
        assert not caplog.messages
        await polls(clock, 1)
        assert caplog.messages == [f"model log {path} does not exist (for 10 s)"]
        await polls(clock, 59)
        assert len(caplog.messages) == 1
        await polls(clock, 1)
        assert caplog.messages[1:] == [f"model log {path} does not exist (for 70 s)"]
        append(path, b"one\n")
        await polls(clock, 1)
        assert caplog.messages[2:] == [f"model log {path} can be read now"]
        assert lines == ["one"]
        await polls(clock, 2)
        os.unlink(path)
        await polls(clock, 10)
        assert len(caplog.messages) == 3
        await polls(clock, 1)
        assert caplog.messages[3:] == [f"model log {path} does not exist (for 10 s)"]


async def test_a_path_that_is_a_fifo_causes_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(path)
    clock = ManualClock()
    async with following(LogTail(path), clock, []):
        await polls(clock, 11)
    assert caplog.messages == [f"model log {path} is a FIFO, not a regular file (for 10 s)"]


# Any sequence of writes, rotations, truncations and polls

Op = tuple[str, int]

OP: st.SearchStrategy[Op] = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 40)),
    st.tuples(st.sampled_from(["write", "late"]), st.integers(1, 20)),
    st.tuples(st.sampled_from(["rotate", "truncate", "poll", "poll"]), st.just(0)),
)
# Lists without a least size have five operations on average: too few for a rotated file to be written to.
OPS = st.lists(OP, max_size=60) | st.lists(OP, min_size=15, max_size=60)
LINE = st.tuples(st.text("aé漢😀", max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))


class LogFile:
    """One file on disk, the unwritten rest of its writer's line, and what a perfect reader has read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten = b""
        self.content = b""
        self.content_at_last_poll = b""
        self.stream = b""
        self.returned = 0

    def write(self, data: bytes) -> None:
        append(self.path, data)
        self.content += data

    def new_lines(self) -> list[str]:
        """The lines that the next poll must find."""
        known = self.content_at_last_poll
        self.stream += self.content[len(known) if self.content.startswith(known) else 0 :]
        self.content_at_last_poll = self.content
        lines = whole_lines(self.stream)
        lines, self.returned = lines[self.returned :], len(lines)
        return [text(line) for line in lines]

    def unfinished(self) -> list[str]:
        rest = self.stream.splitlines()[self.returned :]
        return [text(line) for line in rest]


def whole_lines(data: bytes) -> list[bytes]:
    return [line for line in data.splitlines(keepends=True) if line.endswith((b"\n", b"\r"))]


def text(line: bytes) -> str:
    line = line.rstrip(b"\r\n")
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


class RotationScenario:
    """A writer, a log rotation and a tail of one path. Runs operations and checks the lines found."""

    def __init__(self, directory: Path, lines: list[tuple[str, str]]) -> None:
        self.path = directory / "model.log"
        self.path.touch()
        self.tail = LogTail(self.path)
        self.files = [LogFile(self.path)]
        self.lines = [f"<{number}>{text}{end}".encode() for number, (text, end) in enumerate(lines)]
        self.found: list[str] = []
        self.expected: list[str] = []
        self.on_disk: set[str] = set()
        self.moved = False
        self.poll()

    def play(self, op: Op) -> None:
        kind, size = op
        if kind == "poll":
            self.poll()
        elif kind == "write":
            self.write(self.files[-1], size, new_lines=True)
        elif kind == "late":
            for file in self.files[:-1]:
                self.write(file, size, new_lines=False)
        else:
            if self.moved:
                self.poll()
            self.moved = True
            self.rotate() if kind == "rotate" else self.truncate()

    def write(self, file: LogFile, size: int, new_lines: bool) -> None:
        while new_lines and len(file.unwritten) < size and self.lines:
            file.unwritten += self.lines.pop(0)
        file.write(file.unwritten[:size])
        file.unwritten = file.unwritten[size:]

    def rotate(self) -> None:
        file = self.files[-1]
        # Lines of which nothing is written yet go to the new file.
        begun, *others = file.unwritten.splitlines(keepends=True) or [b""]
        file.unwritten, self.lines = begun, [b"".join(others), *self.lines]
        file.path = self.path.with_suffix(f".{len(self.files)}")
        self.path.rename(file.path)
        self.path.touch()
        self.files.append(LogFile(self.path))

    def truncate(self) -> None:
        os.truncate(self.path, 0)
        self.files[-1].content = b""

    def poll(self) -> None:
        self.moved = False
        for file in self.files:
            for line in whole_lines(file.content):
                self.on_disk.update(re.findall(r"<\d+>", text(line)))
            self.expected += file.new_lines()
        self.found += self.tail.poll()
        assert self.found == self.expected

    def finish(self) -> None:
        for _ in range(LINGER_POLLS + 1):
            self.found += self.tail.poll()
        for file in self.files[:-1]:
            self.expected += file.unfinished()
        assert self.found == self.expected


@settings(max_examples=150, deadline=None)
@given(ops=OPS, lines=st.lists(LINE, max_size=40) | st.lists(LINE, min_size=10, max_size=40))
@example(ops=[("write", 5), ("poll", 0), ("rotate", 0), ("late", 1)], lines=[("a", "\r\n")])
@example(ops=[("write", 4), ("poll", 0), ("truncate", 0), ("write", 9)], lines=[("a", "\r\n"), ("b", "\n")])
def test_every_line_is_found_once_and_in_order(ops: list[Op], lines: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        scenario = RotationScenario(Path(directory), lines)
        for op in ops:
            scenario.play(op)
        scenario.poll()
        scenario.finish()
        scenario.tail.close()
        everything = "\n".join(scenario.found)
        # Independent of `LogFile`: each line that was complete on disk at some poll is found once.
        assert {token: everything.count(token) for token in scenario.on_disk} == dict.fromkeys(
            scenario.on_disk, 1
        )
