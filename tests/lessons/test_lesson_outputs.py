"""The comparison of printed outputs: numbers within a tolerance, words exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lesson_outputs import comparable, differences, text_differences


@pytest.mark.parametrize(
    ("recorded", "computed", "rtol"),
    [
        ("error 1.2345", "error 1.2350", 1e-3),
        ("ppl 29.20 after 8 windows", "ppl 29.21 after 8 windows", None),  # one unit of the last printed digit
        ("1.2e-03", "1.3e-3", 0.1),
        ("1e-5", "9.9e-6", 0.02),
        ("9,012,345.6 bytes", "9,012,346.1 bytes", 1e-6),
        ("9\u2009012\u2009345.6", "9\u2009012\u2009346.1", 1e-6),
        ("999.96 s", "1,000.01 s", 1e-3),
        ("\u22120.5000", "-0.5001", 1e-3),
        ("22.61 %", "22.62%", 1e-3),
        ("1.50x faster, 98.04MB", "1.501x faster, 98.05MB", 1e-3),
        ("[ 9.99, 1.00]", "[10.01, 1.00]", 1e-2),
        ("| ppl  |   9.99 |", "| ppl  |  10.01 |", 1e-2),
        ("nan and inf and -inf", "nan and inf and -inf", 0.0),
        ("0.0", "-0.0", 0.0),
        ("1 bit", "0.99999 bit", None),  # %g prints either
        ("16777216.5000000", "16777217.5000000", None),  # 1e-5 of itself, however many digits are printed
    ],
)
def test_agree(recorded, computed, rtol):
    assert text_differences(recorded, computed, rtol) == []


@pytest.mark.parametrize(
    ("recorded", "computed", "rtol"),
    [
        ("error 1.2345", "error 1.2360", 1e-3),
        ("ppl 29.20", "ppl 29.22", None),
        ("ppl 29.20", "ppl 29.21", 1e-4),  # a stated tolerance is all there is
        ("1.2e-03", "1.2e-02", 0.1),
        ("12 groups", "13 groups", 0.5),  # whole numbers count things
        ("1,024", "1024", 0.5),
        ("-0.5", "0.5", 0.5),
        ("nan", "3.5", 0.5),
        ("inf", "3.5", 0.5),
        ("inf", "-inf", 0.5),
        ("3.5", "nan", 0.5),
        ("0.0", "0.001", 0.5),
        ("4096x11008", "4096x11009", 0.5),
        ("v1.2", "v1.3", 0.5),
        ("torch 2.13.0", "torch 2.13.1", 0.5),
        ("2.13.0", "2.14.0", 0.5),
        ("Q4_1", "Q4_2", 0.5),
        ("model.layers.0.5", "model.layers.0.6", 0.5),
        ("0x1e5", "0x1e6", 0.5),
        ("59e10644ab", "58e10644ab", 0.5),
        ("It is 5.", "It is 6.", 0.5),
        ("scale", "scales", 0.5),
        ("a  b", "a b", 0.5),  # spaces away from numbers are text
        ("1.0\n2.0", "1.0 2.0", 0.5),  # a line break is
        ("1.0 2.0", "1.0", 0.5),
    ],
)
def test_differ(recorded, computed, rtol):
    assert text_differences(recorded, computed, rtol)


@given(value=st.floats(1e-6, 1e6), relative=st.floats(0, 0.2), rtol=st.sampled_from([0.0, 1e-4, 1e-2, 0.1]))
def test_the_stated_tolerance_is_what_decides(value, relative, rtol):
    if abs(relative - rtol) < 1e-7:
        return  # on the edge, rounding decides
    agree = text_differences(f"x = {value!r}", f"x = {value * (1 + relative)!r}", rtol) == []
    assert agree == (relative < rtol or value * (1 + relative) == value)


def test_a_difference_names_both_numbers_and_where():
    (line,) = text_differences("a 1.0\nerror 1.2345 m", "a 1.0\nerror 1.2360 m", 1e-3)
    assert line == "1.2345 was recorded, 1.2360 is computed (0.0015 apart, 0.0012 allowed), in: error 1.2360 m"


def test_changed_words_are_shown_as_a_diff():
    (difference,) = text_differences("W8 fits\nW4 too", "W8 fits\nW4 not", None)
    assert difference.splitlines()[-2:] == ["-W4 too", "+W4 not"]


SHOWN = [
    {"output_type": "stream", "name": "stdout", "text": "8 bits\n"},
    {"output_type": "stream", "name": "stderr", "text": "a warning"},
    {
        "output_type": "display_data",
        "metadata": {"image/svg+xml": {"alt": "error falls 6.02 dB a bit"}},
        "data": {"image/svg+xml": "<svg/>", "text/plain": "<Figure>"},
    },
    {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBOR", "text/plain": "<Figure>"}},
    {
        "output_type": "display_data",
        "metadata": {},
        "data": {"application/vnd.jupyter.widget-view+json": {}, "text/html": "<input>", "text/plain": "explore"},
    },
    {"output_type": "execute_result", "metadata": {}, "data": {"text/html": "<b>2.0</b>", "text/plain": "2.0"}},
    {"output_type": "error", "ename": "ValueError", "evalue": "bits must be", "traceback": ["…"]},
]


def test_pictures_widgets_and_stderr_are_left_out_and_alt_text_is_kept():
    assert comparable(SHOWN) == (
        {"stdout": "8 bits\n"},
        {"alt": "error falls 6.02 dB a bit"},
        {"text/html": "<b>2.0</b>", "text/plain": "2.0"},
        {"error": "ValueError: bits must be"},
    )


def test_another_number_or_kind_of_outputs_differs():
    printed, shown = {"stdout": "1.0"}, {"text/plain": "1.0"}
    assert differences([printed, shown], [printed, shown], None) == []
    assert differences([printed], [printed, shown], None) == [
        "recorded were stdout, but the cell shows stdout; text/plain"
    ]
    assert differences([printed], [], None) == ["recorded were stdout, but the cell shows nothing"]
    assert differences([printed, shown], [printed, {"text/plain": "1.5"}], None)
