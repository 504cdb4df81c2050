"""llama.cpp beside our own decoding: same model file, same tokens, same threads. Start from :class:`LlamaCpp`.

It runs as a process of its own that loads the file once and then answers requests, so that a benchmark can take turns
between it and ours. Prompts are token ids: no template, and no token that begins a text unless it is given.

What differs from a float32 model besides the codes: llama.cpp rounds the inputs of its products to int8, blocks of 32
with a scale each (Q8_0, Q8_1), and keeps keys and values in float16.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.measure.node_llama_cpp import VERSION, available, install, installed, node_program, package_folder

__all__ = ["LlamaCpp", "LlamaCppRun", "LlamaCppScores", "available", "generate", "install", "installed"]

SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
PATIENCE_SECONDS = 10  # for a process that was asked to end


@dataclass(frozen=True)
class LlamaCppRun:
    """What llama.cpp wrote after a prompt, greedily.

    tokens             the new ids; the first comes out of reading the prompt
    seconds_per_token  of each further one, wall time around its evaluation: one fewer than tokens
    prefill_seconds    until the first new token
    build              version of the package, release of llama.cpp, and what it uses of the CPU
    """

    tokens: tuple[int, ...]
    seconds_per_token: tuple[float, ...]
    prefill_seconds: float
    build: str


@dataclass(frozen=True)
class LlamaCppScores:
    """What llama.cpp says of a text it is given, one value a prediction: entry i is about token i + 1.

    log_probabilities  of the token that stands there, in nats
    top                the id it holds likeliest instead
    """

    log_probabilities: tuple[float, ...]
    top: tuple[int, ...]


class LlamaCpp:
    """A GGUF file loaded by llama.cpp on the CPU. Close it, or use it in a with block: it holds the model's memory.

    >>> with LlamaCpp("smol.gguf", threads=2) as peer:      # doctest: +SKIP
    ...     run = peer.generate([504, 2470], count=50)
    """

    def __init__(self, gguf_file: str | os.PathLike[str], *, threads: int = 1, context: int = 2048) -> None:
        """Starts the process and waits until the model is loaded.

        threads  of every product
        context  the most tokens a request may have, prompt and answer together

        Raises FileNotFoundError without the file, ValueError for numbers below 1, and RuntimeError with the reason if
        llama.cpp is not there (available says the same) or does not load the file.
        """
        path = Path(gguf_file).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError(f"gguf_file must be a file, and there is none at {path}")
        if threads < 1 or context < 1:
            raise ValueError(f"threads and context must be at least 1, got {threads} and {context}")
        if reason := available():
            raise RuntimeError(reason)
        command = [node_program(), SCRIPT, package_folder(), path, threads, context]
        self.threads, self.context = threads, context
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115: see close
        self._process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
        )
        try:
            ready = self._answer(f"llama.cpp does not load {path}")
            if ready["threads"] != threads:
                raise RuntimeError(f"threads={threads}, but llama.cpp takes {ready['threads']}: ask for as many")
        except BaseException:
            self.close()
            raise
        self.build = f"node-llama-cpp {VERSION}, llama.cpp {ready['release']}, {ready['system'].strip(' |')}"

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the process. A second call does nothing."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:  # it had ended by itself
                pass
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    def generate(self, prompt_tokens: Sequence[int], count: int) -> LlamaCppRun:
        """The `count` tokens that greedy decoding gives after the prompt, a token that ends a text among them or not.

        Every call reads its prompt anew. Raises ValueError for an empty prompt, count < 1, and more tokens than the
        context holds; RuntimeError if the process has ended or refuses.
        """
        tokens = self._checked("prompt_tokens", prompt_tokens, 1, count)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        got = self._ask({"task": "generate", "tokens": tokens, "count": count})
        if len(got["tokens"]) != count:
            raise RuntimeError(f"llama.cpp wrote {len(got['tokens'])} tokens where {count} were asked for: ask for fewer")
        first, *rest = got["seconds"]
        return LlamaCppRun(tuple(got["tokens"]), tuple(rest), first, self.build)

    def score(self, tokens: Sequence[int]) -> LlamaCppScores:
        """What it holds of every token but the first, given those before it.

        Raises ValueError for fewer than two tokens or more than the context holds; RuntimeError if the process has
        ended or refuses.
        """
        got = self._ask({"task": "score", "tokens": self._checked("tokens", tokens, 2, 0)})
        return LlamaCppScores(tuple(got["logProbabilities"]), tuple(got["top"]))

    def _checked(self, name: str, tokens: Sequence[int], least: int, more: int) -> list[int]:
        found = [int(token) for token in tokens]
        if len(found) < least:
            raise ValueError(f"{name} must hold at least {least} token ids, got {len(found)}")
        if len(found) + more > self.context:  # llama.cpp would forget the oldest without a word
            raise ValueError(
                f"{name}: {len(found)} tokens and {more} new ones are more than context={self.context}: raise it"
            )
        return found

    def _ask(self, request: dict) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # it ended, or close() was called
            raise RuntimeError("llama.cpp has ended: make a new LlamaCpp") from error
        return self._answer("llama.cpp refused")

    def _answer(self, trouble: str) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{trouble}: its process ended. {self._last_words()}".strip())
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{trouble}: {answer['error']}. {self._last_words()}".strip())
        return answer

    def _last_words(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().strip().rpartition("\n")[2][:300]


def generate(
    gguf_file: str | os.PathLike[str], prompt_tokens: Sequence[int], count: int, threads: int = 1
) -> LlamaCppRun:
    """One LlamaCpp.generate by a process that loads the file for it alone. Raises what LlamaCpp raises."""
    with LlamaCpp(gguf_file, threads=threads, context=len(prompt_tokens) + count) as peer:
        return peer.generate(prompt_tokens, count)
