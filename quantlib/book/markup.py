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

    words  title, question and caption, with *emphasis*, `code` and [coloured words]{.exact}
    first  the message of that setting, as `frames.message` gives it, or its error
    data   what the script needs besides: all frames for a page, nothing for a notebook
    """
    said = (("h3", words["title"]), ("p", words["question"]))
    head = "".join(f"<{tag}>{_inline(text)}</{tag}>" for tag, text in said if text)
    offers = [
        {"name": name, "kind": made.kind, "keys": made.keys, "said": [made.said(i) for i in range(len(made.values))]}
        for name, made in choices.items()
    ]
    controls = "".join(control(made, name, made.start) for name, made in choices.items())
    return (
        f'<figure class="explore" id="@id@">{f"<header>{head}</header>" * bool(head)}'
        f'<div class="bench">{_bench(first)}'
        f'<form class="controls" autocomplete="off">{controls}'
        f'<p class="try remark">{escape(first.get("remark", ""))}</p>'
        f'<button class="quiet" type="reset">Start over</button></form></div>'
        f'{_caption(words)}<p class="status" role="status"></p>'
        f'<script type="application/json">{_json({"choices": offers} | data)}</script></figure>'
    )


def still(words: Mapping[str, str], first: Mapping) -> str:
    """One frame without controls, for a notebook that was saved before all could be drawn."""
    remark = '<p class="try">One setting of a widget. Run the notebook to choose others.</p>'
    return (
        f'<figure class="explore" id="@id@"><div class="bench">{_bench(first)}</div>{remark}{_caption(words)}</figure>'
    )


def page(markup: str, name: str, script: bool) -> str:
    """Markup as HTML that stands alone: with its style and, if it has controls, its script."""
    html = f"<style>{_lean('explore.css')}</style>{markup.replace('@id@', name)}"
    return html + f'<script type="module">{_lean("explore.js")}\nstill("{name}");</script>' if script else html


def _bench(first: Mapping) -> str:
    if "error" in first:
        failed = f'<p class="failed" role="alert">{escape(first["error"])}</p>'
        return f'<div><div class="stage">{failed}</div><dl class="readouts"></dl></div>'
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in first["readouts"])
    if first["meaning"]:  # of the first readout
        pairs = pairs.replace("<dd>", f'<dd class="{first["meaning"]}">', 1)
    stage = f'<div class="stage" data-finding="{escape(first["finding"])}">{first["picture"]}</div>'
    return f'<div>{stage}<dl class="readouts">{pairs}</dl></div>'


def _caption(words: Mapping[str, str]) -> str:
    return f"<figcaption>{_inline(words['caption'])}</figcaption>"


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


def control(made: Choice, name: str, at: int) -> str:
    """The control as HTML, at one of its stops. Ids start with @id@, which the page's own name replaces."""
    about, help = "", ""
    if made.help:
        about = f' aria-describedby="@id@-{name}-help"'
        help = f'<p class="try" id="@id@-{name}-help">{escape(made.help)}</p>'
    offer = {"segments": _segments, "select": _select}.get(made.kind, _ruler)
    return offer(made, name, at, about) + help


def _segments(made: Choice, name: str, at: int, about: str) -> str:
    radios = "".join(
        f'<label><input type="radio" name="{name}" value="{i}"{" checked" * (i == at)}>{escape(made.said(i))}</label>'
        for i in range(len(made.values))
    )
    return f'<fieldset{about}><legend>{escape(made.label)}</legend><div class="segments">{radios}</div></fieldset>'


def _select(made: Choice, name: str, at: int, about: str) -> str:
    options = "".join(
        f'<option value="{i}"{" selected" * (i == at)}>{escape(made.said(i))}</option>' for i in range(len(made.values))
    )
    label = f'<label for="@id@-{name}">{escape(made.label)}</label>'
    return f'<div>{label}<select id="@id@-{name}" name="{name}"{about}>{options}</select></div>'


def _ruler(made: Choice, name: str, at: int, about: str) -> str:
    last, said = len(made.values) - 1, escape(made.said(at))
    named = range(last + 1) if last < _SAID else (0, last // 2, last) if last % 2 == 0 else (0, last)
    scale = "".join(f"<span>{escape(made.words[i])}</span>" for i in named)
    label = f'<label for="@id@-{name}">{escape(made.label)}</label>'
    output = f'<output for="@id@-{name}" data-said="{name}">{said}</output>'
    stops = f'min="0" max="{last}" value="{at}" style="--steps:{max(last, 1)}" aria-valuetext="{said}"'
    return (
        f'<div class="slider"><span>{label}{output}</span>'
        f'<input type="range" id="@id@-{name}" name="{name}" {stops}{about}>'
        f'<div class="scale" aria-hidden="true">{scale}<i data-best="{name}" hidden></i></div>'
        f"{_PLAY * (made.kind == 'steps')}</div>"
    )
