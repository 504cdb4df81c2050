"""Figures: the house style, their SVG, and what a page shows."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from quantlib.book import figures, svg
from quantlib.book.figures import (
    ERROR,
    EXACT,
    GRID,
    HAIR,
    INK,
    MUTED,
    Stage,
    axes,
    comb,
    fade,
    label,
    new,
    number,
    picture,
    show,
    ticks,
)

ALT = "The error falls by 6 dB for each further bit."
EXAMPLE = """
from quantlib.book.figures import *
figure, (a, b) = new("text", 2, 1, sharex=True)
comb(a, [1, 2, 3], 0, [3, 2, 1])
label(a, 2, 2, "two & <three>\\nlines", EXACT)
b.plot([1, 2, 3], [-1, 0, 1], "o", color=ERROR, alpha=.5)
b.imshow([[1, 2], [3, 4]], cmap=fade(GRID), interpolation="none", aspect="auto", extent=(1, 3, -1, 1))
axes(a, y="signal to error", unit="dB")
axes(b, x="weight", xunit="1/σ")
"""


def example():
    names = {}
    exec(EXAMPLE, names)
    return names["figure"]


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="size must be one of text, wide, margin, got 'huge'"):
        new("huge")


def test_a_figure_is_not_pyplots():
    before = "matplotlib.pyplot" in sys.modules
    new("text")
    assert ("matplotlib.pyplot" in sys.modules) == before, "a notebook would show the figure a second time"


def test_the_svg_is_lean_and_takes_the_pages_colours_and_font():
    text = picture(example()).svg(ALT)
    root = ET.fromstring(text)
    assert root.get("viewBox") == "0 0 432 223.2"
    assert (root.get("role"), root.get("aria-label")) == ("img", ALT)
    assert "var(--sans" in root.get("style")
    for colour, variable in svg.VARIABLES.items():
        assert f"var({variable},{colour})" in text or colour == INK, "each house colour is a variable with a fallback"
    outside = re.sub(r"var\(--\w+,#\w{6}\)", "", text)
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"base64,[^\"]*", "", outside)), "no other colour"
    for unwanted in ("<style", "<script", "DejaVu", "xmlns:", "ns0:", "font-family:'", "Date"):
        assert unwanted not in text
    assert {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")} >= {
        "two & <three>",
        "lines",
        "weight (1/σ)",
        "signal to error (dB)",
    }


def test_ids_inside_can_be_kept_apart():
    one = picture(example())
    ids = re.findall(r' id="([^"]+)"', "".join(one.elements))
    text = "".join(one.within("fig-1").elements)
    assert ids
    for name in ids:
        assert f'id="fig-1-{name}"' in text
        assert f"#{name}" not in text, "a reference would miss what was renamed"


def test_the_same_figure_gives_the_same_bytes_in_every_process():
    script = f"{EXAMPLE}\nimport hashlib; print(hashlib.sha256(picture(figure).svg('a b c d').encode()).hexdigest())"
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=2, max_size=12))
def test_short_paths_still_go_through_their_points(points):
    d = "M {} {} ".format(*points[0]) + "".join(f"L {x} {y} \n" for x, y in points[1:])
    seen, x, y = [], None, None
    for letter, rest in re.findall(r"([MLHV])([^MLHV]*)", svg._path(d)):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", rest)]
        for pair in (
            [numbers[i : i + 2] for i in range(0, len(numbers), 2)] if letter in "ML" else [[n] for n in numbers]
        ):
            x, y = pair if letter in "ML" else (pair[0], y) if letter == "H" else (x, pair[0])
            seen.append((x, y))
    assert np.allclose(seen, points, atol=0.0501)


def test_curves_and_closed_paths_are_kept():
    assert svg._path("M 0 0 \nC 1 2 3 4 5 6 \nL 5 7 \nz") == "M0 0C1 2 3 4 5 6V7z"
    assert svg._path("M -0.04 1 \nL -0.02 1 ") == "M0 1H0"


@pytest.mark.parametrize("colour", [EXACT, GRID, ERROR, INK, MUTED, HAIR])
@pytest.mark.parametrize("ground", ["#ffffff", "#111111", "#212121"])
def test_fallback_colours_read_on_light_and_on_dark(colour, ground):
    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(rgb)]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def test_fade_starts_from_the_page():
    assert fade(ERROR)(0.0)[3] == 0
    assert fade(ERROR)(1.0) == (*to_rgb(ERROR), 1.0)


def test_axes_have_names_units_and_true_minus_signs_and_keep_words():
    figure, (left, right) = new("text", 1, 2, sharey=True)
    left.set(xlim=(-2, 2), ylim=(0, 2))
    left.set_yticks([0, 1], ["low", "high"])
    axes(left, x="weight", y="share", unit="%")
    axes(right, x="bits")
    text = picture(figure).svg(ALT)
    for word in ("weight", "share (%)", ">low<", ">high<", "\u22122<"):
        assert word in text


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    figure, ax = new("text")
    ax.set(xscale="log", yscale="log", xlim=(0.005, 20), ylim=(0.5, 20000))
    ticks(ax, x=[0.01, 1], y=[1, 10_000])
    axes(ax, x="time", y="tokens")
    said = re.findall(r">([^<>]+)</text>", picture(figure).svg(ALT))
    assert sorted(said) == sorted(["0.01", "1", "1", "10,000", "time", "tokens"])


def test_a_comb_is_one_path():
    figure, ax = new("text")
    ax.axis("off")
    comb(ax, range(10), 0, 1)
    assert len(re.findall("<path", "".join(e for e in picture(figure).elements if "defs" not in e))) == 1


@pytest.mark.parametrize(
    ("x", "unit", "words"),
    [
        (13_478_000_000, "B", "13.5\u2009GB"), (0, "", "0"), (999.6, "", "1.00\u2009k"), (-0.0321, "", "\u22120.0321"), (0.5, "%", "0.5\u2009%"),
        (25.71, "%", "25.7\u2009%"), (1.2e-7, "", "1.20·10⁻⁷"), (106_168_320, "", "106\u2009M"), (float("nan"), "", "undefined"), (-float("inf"), "", "\u2212∞"),
    ],
)  # fmt: skip
def test_numbers_for_people(x, unit, words):
    assert number(x, unit) == words


@pytest.fixture
def displayed(monkeypatch):
    """What show hands to the notebook: (data, metadata) of each output."""
    outputs = []
    monkeypatch.setattr(figures, "display", lambda data, metadata, raw: outputs.append((data, metadata)))
    return outputs


def test_show_gives_one_svg_and_a_caption_for_notebooks(displayed):
    figure, _ = new("text")
    show(figure, alt=f"  {ALT}\n", caption="Drawn [in blue]{.exact}, *once*.", columns=[("8", "7.00 GB")])
    (data, metadata), (words, role) = displayed
    assert set(data) == {"image/svg+xml", "text/plain"}, "a second copy as PNG would double the page"
    assert metadata["image/svg+xml"] == {
        "alt": ALT,
        "caption": "Drawn [in blue]{.exact}, *once*.",
        "columns": [["8", "7.00 GB"]],
    }
    assert data["text/plain"] == f"Figure: {ALT}"
    assert words["text/markdown"] == "Drawn in blue, *once*."
    assert role == {"text/markdown": {"role": "caption"}}


def test_show_without_a_caption_is_one_output(displayed):
    show(new("margin")[0], alt=ALT)
    assert [metadata for _, metadata in displayed] == [{"image/svg+xml": {"alt": ALT}}]


@pytest.mark.parametrize("alt", ["", "   ", None, "plot", "error by bits"])
def test_an_alt_text_is_required_and_is_a_sentence(alt, displayed):
    with pytest.raises(ValueError, match="alt must say what the figure shows"):
        show(new("text")[0], alt=alt)
    with pytest.raises(TypeError):
        show(new("text")[0])
    assert not displayed


def test_a_stage_paints_over_its_axes_and_is_clean_afterwards():
    figure, ax = new("text")
    ax.set(xlim=(0, 10), ylim=(0, 10))
    axes(ax, x="weight")
    stage = Stage(figure)
    with stage as (ax,):
        empty = stage.picture()
        comb(ax, [1, 2000], 0, 1, ERROR)
        full = stage.picture()
        assert ax.get_xlim() == (0, 10), "limits stay, whatever is added"
    assert full.elements[: len(empty.elements)] == empty.elements
    assert "--error" in "".join(full.elements[len(empty.elements) :])
    with pytest.raises(RuntimeError), stage as (ax,):
        comb(ax, [1], 0, 1, ERROR)
        raise RuntimeError
    with stage:
        assert stage.picture() == empty, "what a failed frame added is gone"


def test_a_stage_draws_what_the_whole_figure_would():
    figure, ax = new("text")
    ax.set(xlim=(0, 10), ylim=(0, 10))
    stage = Stage(figure)
    with stage as (ax,):
        comb(ax, [1, 2, 3], 0, 5, GRID)
        label(ax, 5, 5, "words")
        staged = stage.picture()
        whole = picture(figure)
    assert sorted(staged.elements) == sorted(whole.elements)


def test_a_clip_and_a_marker_are_defined_once_whoever_uses_them():
    figure, ax = new("text")
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.plot([1, 2, 3], [1, 3, 2], "o-")
    stage = Stage(figure)
    with stage as (ax,):
        ax.plot(2, 3, "o", color=ERROR)
        ax.plot(2, 4, "D", color=ERROR)
        drawn = "".join(stage.picture().elements)
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert len(ids) == len(set(ids)) >= 3, ids
    assert set(re.findall(r"#(\w+)", " ".join(re.findall(r'(?:href="|url\()(#\w+)', drawn)))) <= set(ids)
