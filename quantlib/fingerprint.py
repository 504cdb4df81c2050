"""What a piece of Python says, as a short hash that comments, docstrings and layout do not change.

Start from :func:`fingerprint`. A record is stale when code that produced it says something else; a better comment
must not cost an hour of recording. The hash is of tokens, which Python 3.11, 3.12 and 3.13 agree on (of a syntax
tree's dump, or of what ``ast.unparse`` prints, they do not).
"""

from __future__ import annotations

import ast
import hashlib
import io
import token
import tokenize
from collections.abc import Iterator

LENGTH = 16  # hexadecimal digits: 64 bits, plenty against accident, short enough to read


def fingerprint(source: str) -> str:
    """16 hexadecimal digits of what the source says. What is not Python (a cell with a magic) counts as it stands."""
    try:
        ast.parse(source)
        said = "\n".join(_meaning(source))
    except (SyntaxError, ValueError):  # ValueError: a null byte
        said = "\n".join(line.rstrip() for line in source.strip().splitlines())
    return hashlib.sha256(said.encode()).hexdigest()[:LENGTH]


def _meaning(source: str) -> Iterator[str]:
    """One text a logical line, without the lines that are nothing but a string (docstrings)."""
    line: list[str] = []
    only_strings = True
    for kind, text in _tokens(source):
        if kind in ("INDENT", "DEDENT"):
            yield kind
        elif kind == "NEWLINE":
            if not only_strings:
                yield "\t".join(line)
            line, only_strings = [], True
        else:
            line.append(text)
            only_strings &= kind == "STRING"


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token that says something. An f-string is one FSTRING, as it was before Python 3.12."""
    lines = io.StringIO(source).readlines()
    depth, begin = 0, (0, 0)
    for tok in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = token.tok_name[tok.type]
        if kind.endswith("STRING_START"):
            begin = begin if depth else tok.start
            depth += 1
        elif kind.endswith("STRING_END"):
            depth -= 1
            if not depth:
                yield "FSTRING", _between(lines, begin, tok.end)
        elif depth or kind in ("COMMENT", "NL", "ENDMARKER"):
            continue
        elif kind == "STRING" and "f" in tok.string.partition(tok.string[-1])[0].lower():
            yield "FSTRING", tok.string
        else:
            yield kind, "" if kind in ("NEWLINE", "INDENT", "DEDENT") else tok.string


def _between(lines: list[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from (line, column) to (line, column), lines counted from 1."""
    text = lines[begin[0] - 1 : end[0]]
    text[-1] = text[-1][: end[1]]
    text[0] = text[0][begin[1] :]
    return "".join(text)
