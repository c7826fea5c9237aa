from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.tools.text_chart import HEIGHT, MAX_WIDTH, MIN_WIDTH, draw, shown

LEVELS = [(1, 60.0), (8, 480.0), (64, 1400.0), (256, 1300.0)]


def test_a_chart() -> None:
    assert draw(LEVELS, 64, 40, "utf-8") == [
        "1,400 │                       ◆····",
        "      │                     ··     ···●",
        "      │                    ·",
        "      │                   ·",
        "      │                 ··",
        "      │                ·",
        "  700 │              ··",
        "      │             ·",
        "      │          ··●",
        "      │       ···",
        "      │    ···",
        "      │●···",
        "    0 │",
        "      └────────────────────────────────",
        "       1           8         64      256",
    ]


def test_it_is_plain_where_the_output_is() -> None:
    text = "\n".join(draw(LEVELS, 64, 40, "ascii"))
    assert text.isascii()
    assert text.count("*") == 1
    assert text.count("o") == 3
    assert draw(LEVELS, 64, 40, None) == draw(LEVELS, 64, 40, "ascii") == draw(LEVELS, 64, 40, "no-such")


@pytest.mark.parametrize("points", [[], [(1, 0.0)], [(4, 2.5)]])
def test_little_is_drawn_too(points: list[tuple[int, float]]) -> None:
    lines = draw(points, 4, 40, "utf-8")
    assert len(lines) == HEIGHT + 3
    assert "\n".join(lines).count("●") + "\n".join(lines).count("◆") == len(points)


def test_values_of_many_digits_leave_room_for_the_drawing() -> None:
    lines = draw([(1, 1e18), (256, 4e18)], 256, 20, "utf-8")
    assert "\n".join(lines).count("●") + "\n".join(lines).count("◆") == 2


@given(st.dictionaries(st.integers(1, 256), st.floats(0, 1e9), min_size=1), st.integers(0, 200), st.data())
def test_it_fits_the_width(points: dict[int, float], width: int, data: st.DataObject) -> None:
    best = data.draw(st.sampled_from(sorted(points)))
    lines = draw(sorted(points.items()), best, width, "utf-8")
    assert max(map(len, lines)) <= max(MIN_WIDTH, min(width, MAX_WIDTH))
    assert sum(line.count("◆") for line in lines) == 1
    assert str(best) in lines[-1].split()


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2.5, "2.5"), (99.4, "99.4"), (12345.6, "12,346")])
def test_values_have_three_digits(value: float, text: str) -> None:
    assert shown(value) == text
