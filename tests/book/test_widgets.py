"""explore(): choices, frames, budgets, and the two halves of its output. What readers see is tested in a browser."""

import inspect
import json
import re

import pytest
import traitlets
import widget_example
from matplotlib.figure import Figure

from quantlib.book import frames, widgets
from quantlib.book.choices import choice, steps
from quantlib.book.widgets import Frame, explore


@pytest.fixture
def notebook(monkeypatch):
    """A reader's session: nothing is being built."""
    monkeypatch.setattr(widgets, "_building", lambda: False)


def data(html):
    """The JSON in a widget's page."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def unpacked(packed, place):
    """A frame's picture, put together as the script does."""
    ends = (run.split("-") for run in packed["frames"][place]["p"].split())
    return "".join(piece for start, *end in ends for piece in packed["table"][int(start) : int(*end or (start,)) + 1])


# choices


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (range(2, 9), "slider"), ([0.0, 3.5], "slider"), (["tensor", "row"], "segments"), ({32: "32 weights", 64: "64 weights"}, "segments"),
        (["Llama-2-7B", "Llama-2-13B", "Llama-2-70B"], "select"), ([True, False], "segments"),
    ],
)  # fmt: skip
def test_values_find_their_kind_of_control(values, kind):
    assert choice(values).kind == kind


def test_a_choice_speaks_in_words_and_keys():
    made = choice([-0.5, 1.0], unit="%", start=1.0)
    assert (made.words, made.keys, made.said(0), made.start) == (
        ("\u22120.5", "1"),
        ("-0.5", "1"),
        "\u22120.5\u2009%",
        1,
    )
    assert choice({"a, b": "A and B"}).keys == ("a%2C%20b",), "a comma separates the values in an address"
    assert steps(range(3)).kind == "steps"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: choice([]), "needs at least one value"), (lambda: choice([1, 1.0]), "each value once"),
        (lambda: choice([1, 2], start=3), "must be one of 1, 2, got 3"), (lambda: choice([1], kind="dial"), "kind must be one of slider"),
    ],
)  # fmt: skip
def test_impossible_choices_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# frames


def test_the_shortest_call_works():
    def draw(bits, threshold):
        figure = Figure()
        figure.subplots().plot([bits, threshold])
        return figure

    widget = explore(draw, bits=range(2, 9), threshold=[0.5, 6.0])
    assert widget.setting == {"bits": 2, "threshold": 0.5}
    assert len(data(widget.static())["frames"]) == 14
    assert 'id="bits-threshold"' in widget.static()
    assert widget.frame["finding"] == "bits 2, threshold 0.5"


def test_packed_frames_unpack_to_what_was_drawn():
    widget = widget_example.rounding()
    packed = data(widget.static())
    every = frames.settings(widget._choices)
    assert len(every) == len(packed["frames"]) == 24
    for place, at in enumerate(every):
        widget.at = list(at)
        labelled = unpacked(packed, place).replace('aria-label=""', f'aria-label="{widget.frame["finding"]}"', 1)
        assert labelled == widget.frame["picture"], "live and static show the same frame"
        assert packed["frames"][place]["f"] == widget.frame["finding"]
        assert [[n, v] for n, v in zip(packed["readouts"], packed["frames"][place]["v"], strict=True)] == widget.frame[
            "readouts"
        ]
        assert packed["frames"][place]["b"] == widget.frame["best"]


def test_what_frames_share_is_stored_once():
    widget = widget_example.rounding()
    alone = sum(len(unpacked(data(widget.static()), place)) for place in range(24))
    assert sum(map(len, data(widget.static())["table"])) < alone / 4


def test_html_and_tables_are_pictures_too():
    class Table:
        def _repr_html_(self):
            return "<table></table>"

    assert explore(lambda n: Table(), n=[1, 2]).frame["picture"] == "<table></table>"
    assert explore(lambda n: Frame(f"<p>{n}</p>", "words"), n=[1, 2]).frame["picture"] == "<p>1</p>"


@pytest.mark.parametrize("wrong", [None, 3, Frame(None)])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(
        RuntimeError, match=r"draw\(n=1\) failed .*: draw must return a Frame, a matplotlib Figure or HTML, got (NoneType|int)"
    ):
        explore(lambda n: wrong, n=[1])


def test_frames_must_agree_on_their_readouts():
    with pytest.raises(ValueError, match="the same readouts: one has a, another b"):
        explore(lambda n: Frame("", "words", {n: "1"}), n=["a", "b"])


def test_best_must_name_a_choice_and_a_stop():
    for best in ({"m": 1}, {"n": 5}):
        with pytest.raises(RuntimeError, match="best names 'm'|n must be one of 1, 2, got 5"):
            explore(lambda n, best=best: Frame("", "words", best=best), n=[1, 2])


# explore


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explore(lambda: ""), "at least one choice"),
        (lambda: explore(lambda bits: "", bit=[1]), "draw and the choices do not fit.*the choices are bit"),
        (lambda: explore(lambda bits: "", bits=[1], name="2 words"), "name must be letters"),
        (
            lambda: explore(lambda a, b: "", a=range(11), b=range(11)),
            r"121 settings \(11 a × 11 b\), the budget is 120",
        ),
    ],
)
def test_a_widget_that_cannot_be_is_refused_at_once(call, message, notebook):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_setting_that_fails_fails_the_build():
    with pytest.raises(RuntimeError) as caught:
        widget_example.rounding(fails_at=3)
    line = (
        inspect.getsource(widget_example).splitlines().index('            raise ZeroDivisionError("no bits, no steps")')
        + 1
    )
    told = f"draw(bits=3, per='matrix', clip=0.5) failed in line {line}, `raise ZeroDivisionError(\"no bits, no steps\")`: ZeroDivisionError: no bits, no steps"
    assert str(caught.value).startswith(told)


def test_a_setting_that_fails_is_told_in_its_place_live(notebook):
    widget = widget_example.rounding(fails_at=3)
    assert "picture" in widget.frame
    widget.setting = {"bits": 3}
    assert "ZeroDivisionError: no bits, no steps" in widget.frame["error"]
    widget.setting = {"bits": 2}
    assert "picture" in widget.frame and "error" not in widget.frame


def test_an_oversize_widget_fails_the_build_with_figures_and_remedy(notebook, monkeypatch):
    def draw(n):
        return f"{n} " * 1000

    widget = explore(draw, n=range(1, 101))
    assert "One setting of a widget" in widget._repr_mimebundle_()[0]["text/html"], "live it still works"
    monkeypatch.setattr(widgets, "_building", lambda: True)
    with pytest.raises(
        ValueError,
        match=r"the widget n takes \d+ kB with its 100 frames, the budget is 200 kB: offer fewer stops \(n has 100\)",
    ):
        explore(draw, n=range(1, 101))


def test_the_setting_is_a_trait_that_can_be_assigned_and_watched():
    widget = widget_example.rounding()
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), "setting")
    widget.setting = {"bits": 5, "clip": 0.5}
    assert (widget.at, widget.setting) == ([3, 1, 0], {"bits": 5, "per": "row", "clip": 0.5})
    widget.at = [0, 0, 2]  # as the view does
    assert widget.setting == {"bits": 2, "per": "matrix", "clip": 1.0} == seen[-1]
    assert widget.frame["at"] == [0, 0, 2]
    for wrong, message in (
        ({"bits": 9}, "Bits per weight must be one of 2, 3, 4, 5, got 9"),
        ({"bit": 2}, "setting names 'bit'"),
    ):
        with pytest.raises(ValueError, match=message):
            widget.setting = wrong
    for at in ([0, 0], [0, 0, 3], [-1, 0, 0]):
        with pytest.raises((ValueError, traitlets.TraitError)):
            widget.at = at
    assert widget.setting == {"bits": 2, "per": "matrix", "clip": 1.0}


def test_a_frame_is_drawn_once(notebook):
    drawn = []
    widget = explore(lambda n: drawn.append(n) or f"<p>{n}</p>", n=range(3))
    assert drawn == [0], "the reader waits for one frame only"
    widget.setting = {"n": 2}
    widget.setting = {"n": 0}
    widget.setting = {"n": 2}
    assert drawn == [0, 2]


def test_the_output_has_both_halves_and_is_deterministic():
    one, other = widget_example.rounding(), widget_example.rounding()
    assert one.static() == other.static()
    bundle, _ = one._repr_mimebundle_()
    assert bundle["text/html"] == one.static()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == one.model_id
    assert (
        bundle["text/plain"]
        == repr(other)
        == "Widget rounding: Bits per weight 4, One scale per this row, The grid ends at 1"
    )


def test_a_slow_widget_keeps_no_reader_waiting(notebook, monkeypatch):
    monkeypatch.setattr(widgets, "_PATIENCE", 0.0)
    drawn = []
    widget = explore(lambda n: drawn.append(n) or f"<p>{n}</p>", n=range(50))
    html = widget._repr_mimebundle_()[0]["text/html"]
    assert len(drawn) < 50
    assert "<p>0</p>" in html and "<form" not in html and "<script" not in html


def test_words_are_words_in_html():
    widget = explore(
        lambda n: Frame("<p></p>", '"</script>" & <b>', {"a<b": "</script>"}), n=choice({1: "<i>", 2: "</script>"}, label="x & y"),
        title="a < b", question="is *this* `code`?", caption="[blue <]{.exact}", name="safe",
    )  # fmt: skip
    html = widget.static()
    assert html.count("</script>") == 2, "one for the data, one for the script"
    for words in (
        "<h3>a &lt; b</h3>",
        "<em>this</em> <code>code</code>",
        '<span class="exact">blue &lt;</span>',
        "x &amp; y",
        "<dt>a&lt;b</dt>",
    ):
        assert words in html
    assert data(html)["frames"][0]["f"] == '"</script>" & <b>'
    assert "@id@" not in html.partition('<script type="module">')[0], "ids carry the widget's name"


def test_building_is_outside_a_notebook_or_when_told(monkeypatch):
    monkeypatch.delenv("QUANTLIB_STATIC", raising=False)
    assert widgets._building()
    monkeypatch.setattr("IPython.get_ipython", lambda: type("Shell", (), {"kernel": None})())
    assert not widgets._building()
    monkeypatch.setenv("QUANTLIB_STATIC", "1")
    assert widgets._building()
