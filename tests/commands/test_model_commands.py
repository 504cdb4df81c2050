"""quantize, eval, inspect and report, as a user calls them: on a tiny model, offline, every ending."""

import re
import subprocess
import sys

import pytest
import torch

from quantlib import Grid, RTN, load_quantized, quantize_model, save_quantized
from quantlib.__main__ import main
from quantlib.commands import opening
from quantlib.commands.inspect import suspicious
from quantlib.layers.weight_only import Int4Linear
from quantlib.models.checkpoints.saving import quantized_layers
from quantlib.numerics.quantize import quantize
from tests.tiny import save_tiny_model

READ = ["--samples", "4", "--length", "16"]
WAYS = {  # words of the command -> the format that is written without --format
    ("rtn", "--group-size", "16"): "compressed-tensors",
    ("rtn", "--bits", "8", "--group-size", "row"): "compressed-tensors",
    ("gptq", "--group-size", "16"): "gptq",
    ("gptq", "--group-size", "16", "--plain"): "gptq",
    ("gptq", "--group-size", "16", "--refined"): "gptq",
    ("gptq", "--group-size", "16", "--asymmetric"): "gptq_v2",
    ("awq", "--group-size", "16"): "compressed-tensors",
    ("awq", "--group-size", "16", "--asymmetric"): "awq",
    ("llm-int8",): "bitsandbytes",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(folder of a float model, text file); another text beside it is other.txt."""
    folder = tmp_path_factory.mktemp("commands")
    save_tiny_model(folder / "float")
    words = ["the", "cat", "sat", "on", "mat"]
    for seed, name in enumerate(("text.txt", "other.txt")):
        chosen = torch.randint(len(words), (600,), generator=torch.Generator().manual_seed(seed))
        (folder / name).write_text(" ".join(words[i] for i in chosen))
    return folder / "float", folder / "text.txt"


def called(capsys, *words):
    """(exit status, stdout, stderr)."""
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_quantize_then_inspect_then_eval(tiny, tmp_path, capsys, way):
    model, text = tiny
    out = tmp_path / "out"
    method, *more = way
    status, said, _ = called(capsys, "quantize", model, out, "--method", method, *more, "--calibration", text, *READ)
    assert status == 0
    assert f"{out}: {method} as {WAYS[way]}, " in said and re.search(r"[\d.]+ bits a weight, 14 linear layers", said)
    assert "kB on disk; " in said and str(out) in said.splitlines()[1]
    assert len(quantized_layers(load_quantized(out))) == 14
    status, said, _ = called(capsys, "inspect", out)
    assert status == 0 and "LlamaForCausalLM" in said and "14 × " in said and "bits each" in said
    same = ["--text", text, "--windows", "3", "--length", "16"]
    status, said, _ = called(capsys, "eval", out, "--against", model, *same)
    assert status == 0 and said.count("perplexity") == 2 and "KL " in said
    assert re.search(r"nats a token.*: [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]: (tie|lower|higher)", said)
    status, said, _ = called(capsys, "eval", model, "--against", model, *same)
    assert status == 0 and "KL 0.0000 nats, the same token first in 100.0 %" in said


def test_the_rest_is_written_in_the_dtype_asked_for_and_layers_are_skipped(tiny, tmp_path, capsys):
    model, _ = tiny
    out = tmp_path / "out"
    words = "--method", "rtn", "--group-size", "16", "--dtype", "bfloat16", "--skip", "down_proj", "--with-head"
    assert called(capsys, "quantize", model, out, *words)[0] == 0
    loaded = load_quantized(out)
    assert loaded.model.norm.weight.dtype == torch.bfloat16
    names = quantized_layers(loaded)
    assert "lm_head" in names and not any("down_proj" in name for name in names) and len(names) == 13


REFUSED = {
    "the target exists": (["quantize", "{model}", "{model}", "--method", "rtn"], "exists already"),
    "no such model": (["quantize", "./nowhere", "{out}", "--method", "rtn"], "nowhere"),
    "bits": (["quantize", "{model}", "{out}", "--method", "rtn", "--bits", "9", "--group-size", "16"], "bits"),
    "a group that does not divide": (["quantize", "{model}", "{out}", "--method", "rtn", "--group-size", "7"], "7"),
    "a group that is a word": (["quantize", "{model}", "{out}", "--method", "rtn", "--group-size", "many"], "group_size"),
    "no calibration text": (
        ["quantize", "{model}", "{out}", "--group-size", "16", "--calibration", "{out}.txt"], "cannot be read"),
    "an empty one": (["quantize", "{model}", "{out}", "--group-size", "16", "--calibration", "{empty}"], "empty"),
    "no text at all": (["quantize", "{model}", "{out}", "--group-size", "16", "--calibration", "{bytes}"], "UTF-8"),
    "a short one": (
        ["quantize", "{model}", "{out}", "--group-size", "16", "--calibration", "{text}", "--samples", "900"],
        "take a longer text"),
    "a format that cannot hold it": (
        ["quantize", "{model}", "{out}", "--group-size", "16", "--asymmetric", "--format", "gptq"], "gptq"),
    "a file for llama.cpp": (
        ["quantize", "{model}", "{out}", "--group-size", "16", "--format", "gguf", "--calibration", "{text}"], "gguf"),
    "a float folder to inspect": (["inspect", "{model}"], "float model"),
    "nothing to inspect": (["inspect", "{out}"], "not a folder"),
    "eval of a short text": (["eval", "{model}", "--text", "{text}", "--length", "64", "--windows", "1"], None),
    "eval of no model": (["eval", "./nowhere", "--text", "{text}"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_ends_with_a_sentence_and_leaves_nothing(tiny, tmp_path, capsys, name):
    model, text = tiny
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.iterdir())
    places = {"model": model, "text": text, "out": tmp_path / "out", "empty": tmp_path / "empty", "bytes": tmp_path / "bytes"}
    words, sentence = REFUSED[name]
    status, _, complaint = called(capsys, *(word.format(**places) for word in words))
    if sentence is None:  # 600 words fill a window
        assert status == 0
    else:
        assert status == 1 and sentence in complaint and "Traceback" not in complaint
        assert complaint.strip().splitlines()[-1].startswith("not done: ")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_quantized_is_not_quantized_again(tiny, tmp_path, capsys):
    model, _ = tiny
    assert called(capsys, "quantize", model, tmp_path / "a", "--method", "rtn", "--group-size", "16")[0] == 0
    for words in (["quantize", tmp_path / "a", tmp_path / "b"], ["report", tmp_path / "a"]):
        status, _, complaint = called(capsys, *words)
        assert status == 1 and "quantized already" in complaint


@pytest.mark.parametrize(
    "words",
    [
        ["quantize"],
        ["quantize", "m", "o", "--method", "magic"],
        ["quantize", "m", "o", "--plain", "--refined"],
        ["quantize", "m", "o", "--method", "rtn", "--plain"],
        ["quantize", "m", "o", "--method", "llm-int8", "--bits", "4"],
        ["quantize", "m", "o", "--samples", "0"],
        ["eval", "m", "--windows", "none"],
        ["report", "m", "--out", "page.pdf"],
        ["report", "m", "--windows", "1"],
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense_end_with_2(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["quantize", "eval", "inspect", "report"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m quantlib {command} " in said.partition("example")[2]


@pytest.mark.parametrize("at", ["quantlib.models.convert.quantize_model", "quantlib.models.checkpoints.saving.write_json"])
def test_ctrl_c_leaves_nothing(tiny, tmp_path, capsys, monkeypatch, at):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupted)
    status, _, complaint = called(capsys, "quantize", tiny[0], tmp_path / "out", "--method", "rtn", "--group-size", "16")
    assert status == 130 and "nothing was written" in complaint and not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["html", "md", None])
def test_report(tiny, tmp_path, capsys, ending):
    model, text = tiny
    out = tmp_path / f"page.{ending}"
    other = text.with_name("other.txt")
    words = ["report", model, "--text", other, "--calibration", text, "--group-size", "16", "--windows", "2", *READ]
    status, said, complaint = called(capsys, *words, *(["--out", out] if ending else []))
    assert status == 0, complaint
    page = out.read_text() if ending else said
    for expected in ("float, as it is loaded", "LLM.int8()", "GPTQ", "AWQ", "a scale per 16", "perplexity", "16 tokens"):
        assert expected in page
    assert page.count("<tr>") == 7 if ending == "html" else page.count("\n|") == 8
    assert ending is None or called(capsys, *words, "--out", out)[0] == 1  # it exists


def test_report_refuses_to_calibrate_on_what_it_measures(tiny, tmp_path, capsys):
    model, text = tiny
    words = ["report", model, "--text", text, "--calibration", text, "--group-size", "16", "--windows", "2"]
    status, _, complaint = called(capsys, *words, "--samples", "2", "--length", "64", "--methods", "awq")
    assert status == 1 and "overlaps the evaluation text" in complaint


def test_what_inspect_finds_suspicious():
    torch.manual_seed(0)
    w = torch.randn(64, 64)
    assert list(suspicious("fine", Int4Linear.from_quantized(quantize(w, Grid(4, 32))))) == []
    dead = w.clone()
    dead[3] = 0
    assert "1 rows are all 0" in " ".join(suspicious("dead", Int4Linear.from_quantized(quantize(dead, Grid(4, 32)))))
    cut = quantize(w, Grid(4, 32), clip=0.2)
    assert "at the ends" in " ".join(suspicious("cut", Int4Linear.from_quantized(cut)))
    small = quantize(w * 1e-5, Grid(4, 32), scale_dtype=torch.float32)
    assert "few digits" in " ".join(suspicious("small", Int4Linear.from_quantized(small)))


def test_inspect_says_what_is_suspicious(tiny, tmp_path, capsys):
    from quantlib import load_model

    loaded = load_model(tiny[0])
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight[2] = 0
    save_quantized(quantize_model(loaded.model, RTN(Grid(4, 16)))[0], tmp_path / "out", "gptq", tokenizer=loaded.tokenizer)
    status, said, _ = called(capsys, "inspect", tmp_path / "out")
    assert status == 0 and "suspicious:" in said and "up_proj: 1 rows are all 0" in said


def test_models_that_split_text_otherwise_are_not_compared(tiny, capsys, monkeypatch):
    ids = iter([torch.zeros(48, dtype=torch.int64), torch.ones(48, dtype=torch.int64)])
    monkeypatch.setattr("quantlib.commands.evaluate.tokens_of", lambda *args: next(ids))
    model, text = tiny
    status, _, complaint = called(capsys, "eval", model, "--against", model, "--text", text, "--length", "16")
    assert status == 1 and "other tokens" in complaint


def test_windows_are_no_longer_than_the_model(tiny):
    opened = opening.open_model(str(tiny[0]))
    assert opening.length_for(opened, 1024) == 64 and opening.length_for(opened, 16) == 16


def test_the_list_of_commands(capsys):
    assert called(capsys, "--help")[0] == 0
    assert called(capsys)[0] == 2
    done = subprocess.run([sys.executable, "-m", "quantlib", "-h"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "quantize" in done.stdout
