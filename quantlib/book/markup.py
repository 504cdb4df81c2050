"""The HTML of a widget, one for both views. Start from :func:`figure`.

Ids start with @id@: a page puts the widget's name there, a notebook a name of its own for every view of a widget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from quantlib.book.choices import Choice

STATIC = Path(__file__).parent / "static"
_SAID = 11  # a ruler with more stops names only its ends and, where there is one, its middle
_PLAY = (
    '<div class="play"><button type="button" class="quiet" data-step="-1">Back</button>'
    '<button type="button" class="quiet" data-play>Play</button>'
    '<button type="button" class="quiet" data-step="1">Step</button></div>'
)


def figure(choices: Mapping[str, Choice], words: Mapping[str, str], first: Mapping, data: Mapping) -> str:
    """The widget at its first setting.

    words  title, question and caption
    first  the message of that setting, as `frames.message` gives it, or its error
    data   what the script needs besides: all frames for a page, nothing for a notebook
    """
    said = (("h3", words["title"]), ("p", words["question"]))
    head = "".join(f"<{tag}>{_inline(text)}</{tag}>" for tag, text in said if text)
    offers, controls = [], ""
    for name, made in choices.items():
        said = [made.said(stop) for stop in range(len(made.values))]
        offers.append({"name": name, "kind": made.kind, "keys": made.keys, "said": said})
        controls += control(made, name)
    return (
        f'<figure class="explore" id="@id@">{f"<header>{head}</header>" * bool(head)}'
        f'<div class="bench">{_bench(first)}'
        f'<form class="controls" autocomplete="off">{controls}'
        f'<p class="try remark">{escape(first.get("remark", ""))}</p>'
        f'<button class="quiet" type="reset">Start over</button></form></div>'
        f'<figcaption>{_inline(words["caption"])}</figcaption><p class="status" role="status"></p>'
        f'<script type="application/json">{_json({"choices": offers} | data)}</script></figure>'
    )


def still(words: Mapping[str, str], first: Mapping) -> str:
    """One frame without controls, for a notebook that was saved before all could be drawn."""
    remark = '<p class="try">One setting of a widget. Run the notebook to choose others.</p>'
    words = f"{remark}<figcaption>{_inline(words['caption'])}</figcaption>"
    return f'<figure class="explore" id="@id@"><div class="bench">{_bench(first)}</div>{words}</figure>'


def page(markup: str, name: str, script: bool) -> str:
    """Markup as HTML that stands alone: with its style and, if it has controls, its script."""
    html = f"<style>{_lean('explore.css')}</style>{markup.replace('@id@', name)}"
    return html + f'<script type="module">{_lean("explore.js")}\nstill("{name}");</script>' if script else html


def _bench(first: Mapping) -> str:
    if "error" in first:
        stage = f'<div class="stage"><p class="failed" role="alert">{escape(first["error"])}</p></div>'
        return f'<div>{stage}<dl class="readouts"></dl></div>'
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in first["readouts"])
    if first["meaning"]:  # of the first readout
        pairs = pairs.replace("<dd>", f'<dd class="{first["meaning"]}">', 1)
    stage = f'<div class="stage" data-finding="{escape(first["finding"])}">{first["picture"]}</div>'
    return f'<div>{stage}<dl class="readouts">{pairs}</dl></div>'


def _inline(text: str) -> str:
    """Words as HTML, with *emphasis*, `code` and [coloured words]{.exact}, as captions of figures have them."""
    text = re.sub(r"\[([^\]]*)\]\{\.(exact|grid|error)\}", r'<span class="\2">\1</span>', escape(text, quote=False))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text))


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!--", "<\\u0021--")  # neither may end or hide the script that holds it


def _lean(name: str) -> str:
    """A style sheet or script without indents, empty lines and lines of comment."""
    lines = (line.strip() for line in (STATIC / name).read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


def control(made: Choice, name: str) -> str:
    """The control as HTML, where it starts."""
    about = f' aria-describedby="@id@-{name}-help"' * bool(made.help)
    help = f'<p class="try" id="@id@-{name}-help">{escape(made.help)}</p>' * bool(made.help)
    label = f'<label for="@id@-{name}">{escape(made.label)}</label>'
    stops = [(i, escape(made.said(i)), i == made.start) for i in range(len(made.values))]
    if made.kind == "segments":
        radio = f'<input type="radio" name="{name}" value='
        radios = "".join(f'<label>{radio}"{i}"{" checked" * on}>{said}</label>' for i, said, on in stops)
        segments = f'<legend>{escape(made.label)}</legend><div class="segments">{radios}</div>'
        return f"<fieldset{about}>{segments}</fieldset>{help}"
    if made.kind == "select":
        options = "".join(f'<option value="{i}"{" selected" * on}>{said}</option>' for i, said, on in stops)
        return f'<div>{label}<select id="@id@-{name}" name="{name}"{about}>{options}</select></div>{help}'
    last, said = len(stops) - 1, stops[made.start][1]
    named = range(last + 1) if last < _SAID else (0, last // 2, last) if last % 2 == 0 else (0, last)
    scale = "".join(f"<span>{escape(made.words[i])}</span>" for i in named)
    place = f'min="0" max="{last}" value="{made.start}" style="--steps:{max(last, 1)}" aria-valuetext="{said}"'
    return (
        f'<div class="slider"><span>{label}<output for="@id@-{name}" data-said="{name}">{said}</output></span>'
        f'<input type="range" id="@id@-{name}" name="{name}" {place}{about}>'
        f'<div class="scale" aria-hidden="true">{scale}<i data-best="{name}" hidden></i></div>'
        f"{_PLAY * (made.kind == 'steps')}</div>{help}"
    )
