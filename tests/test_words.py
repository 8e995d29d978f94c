"""Numbers as people say them."""

from __future__ import annotations

import pytest

from emaseg.words import bytes_of, first_line, rate


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0.0123, "0.0123"), (9.871, "9.87"), (123.4, "123"), (999.4, "999"), (999.7, "1000"), (1390.2, "1390")],
)
def test_a_rate_has_no_exponent(per_second: float, text: str) -> None:
    """Protects the progress line of a fast data source from `1.39e+03 images/s`; small rates keep three digits."""
    assert rate(per_second) == text


def test_the_first_line_of_an_exception() -> None:
    """Protects messages from pages of a library's own code, and from no reason at all."""
    assert first_line(ValueError("\n a reason\nand more")) == "a reason"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert first_line(ValueError("x" * 300)) == "x" * 200


def test_bytes_beyond_all_numbers_are_none() -> None:
    """Protects --max-memory from an OverflowError: 400 digits, or 300 of them with a unit, are no size."""
    assert bytes_of("9" * 400) is None
    assert bytes_of("9" * 300 + "T") is None
    assert bytes_of("1.5GB") == 1_500_000_000
