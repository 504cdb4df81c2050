"""quantlib.zoo.hub: models from folders, and by hub name from a cache that looks as the hub's own downloads leave it."""

import json
import shutil

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from quantlib import RTN, Grid, LLMInt8, quantize_model
from quantlib.zoo import hub
from quantlib.zoo.fetch import FetchError
from quantlib.zoo.hub import weights_checksum
from quantlib.zoo.zoo import load_model
from tests.tiny import save_tiny_model

TOKENS = torch.tensor([[3, 4, 5, 6, 3, 7]])
REQUEST = httpx.Request("GET", "https://huggingface.co")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny"


@pytest.fixture
def no_hub(monkeypatch):
    """A machine without network, at once (the true one takes half a minute to say so)."""

    def refuse(*args, **kwargs):
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder(folder, dtype, capfd):
    model, _ = save_tiny_model(folder, dtype)
    capfd.readouterr()
    loaded = load_model(folder, "cpu")
    assert capfd.readouterr() == ("", "")
    assert loaded.model.dtype == torch.float32 and loaded.name == "tiny"
    assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.encode("the cat sat on the mat") == TOKENS[0].tolist()
    assert loaded.tokenizer.decode(TOKENS[0]) == "the cat sat on the mat"
    assert not loaded.is_lesson_model and load_model(str(folder)).checksum == loaded.checksum


def test_the_checksum_is_of_weights_and_config(folder, monkeypatch):
    save_tiny_model(folder)
    first = weights_checksum(folder)
    (folder / "README.md").write_text("no part of the model")
    assert weights_checksum(folder) == first and len(first) == 64
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = weights_checksum(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("10000.0", "500000.0"))
    assert len({first, second, weights_checksum(folder)}) == 3


def test_the_checksum_samples_a_large_file_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SAMPLE_BYTES", 16)
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"

    def checksum_with_a_change_at(position):
        content = bytearray(100_000)
        content[position] = 1
        weights.write_bytes(content)
        return weights_checksum(tmp_path)

    unseen = checksum_with_a_change_at(100)
    assert len({checksum_with_a_change_at(position) for position in (0, 99_999, 100)}) == 3
    weights.write_bytes(bytes(100_000))
    assert weights_checksum(tmp_path) == unseen


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer"])
def test_a_folder_that_lacks_a_part(folder, part):
    save_tiny_model(folder)
    for path in folder.glob(f"{part}*"):
        path.unlink()
    with pytest.raises(FetchError, match=r"the folder '.*tiny' holds no .*: write it with model.save_pretrained"):
        load_model(folder)


def test_a_folder_that_would_have_to_be_unpickled(folder):
    save_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(FetchError, match=r"holds no \*\.safetensors"):
        load_model(folder)


def test_truncated_weights(folder):
    save_tiny_model(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        FetchError, match=r"^the weight files of '.*tiny' are damaged or do not fit its config.json: .*\.$"
    ):
        load_model(folder)


def test_weights_of_another_shape(folder):
    save_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(FetchError, match="are damaged or do not fit its config.json"):
        load_model(folder)


def test_weights_that_are_missing_are_not_made_up(folder):
    save_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FetchError, match=r"lacks 1 of its weights, model.norm.weight among them: "):
        load_model(folder)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "no-such-architecture"}, "is not a causal language model that transformers .* loads by itself"),
    ({"model_type": "vit"}, "is not a causal language model that transformers .* loads by itself"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is already quantized: give load_model the float model"),
])  # fmt: skip
def test_a_model_that_cannot_be_measured(folder, change, message):
    save_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [RTN(Grid(8)), RTN(Grid(4, 8)), LLMInt8()], ids=str)
def test_what_was_quantized_here_is_recognised(folder, method):
    model, _ = save_tiny_model(folder)
    new, _ = quantize_model(model, method)
    new.save_pretrained(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()  # save_pretrained of a model writes none, and it is not what is wrong
    words = r"tiny' is already quantized, .*\.codes and \d+ more .* as quantlib keeps"
    with pytest.raises(ValueError, match=words) as caught:
        load_model(folder)
    said = str(caught.value)
    assert "give load_model the float model" in said and "again." in said and "\n" not in said


def test_one_quantized_layer_is_enough(folder):
    model, _ = save_tiny_model(folder)
    others = ["*gate_proj", "*o_proj", "*.up_proj", "*k_proj", "*v_proj", "*q_proj", "lm_head"]
    quantize_model(model, RTN(Grid(8)), skip=others)[0].save_pretrained(folder)
    with pytest.raises(ValueError, match="down_proj.codes and .* more of its tensors hold codes as quantlib keeps"):
        load_model(folder)


@pytest.mark.parametrize(
    ("part", "maker"), [("qweight", "GPTQ or AWQ"), ("weight_packed", "compressed-tensors"), ("SCB", "bitsandbytes")]
)
def test_codes_of_others_without_a_word_in_the_config(folder, part, maker):
    save_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name.replace("weight", part)] = weights.pop(name).to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"is already quantized, .*{part} and 0 more .* as {maker} keeps them: give"):
        load_model(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./tiny", "a/b/c", "", "two words", r"C:\models\tiny"])
def test_neither_folder_nor_name(name):
    with pytest.raises(
        FetchError, match=r"is neither an existing folder nor a model's name: use 'SmolLM2-135M-Instruct'"
    ):
        load_model(name)


@pytest.mark.parametrize("name", [None, 7, ["stories15M"]])
def test_what_is_not_a_name(name):
    with pytest.raises(TypeError, match=r"name_or_folder=.* is a name or a path: use 'SmolLM2-135M-Instruct'"):
        load_model(name)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Where the hub's downloads lie; call it to put a folder's files there as those of someone/tiny."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"

    def fill(folder, *patterns):
        snapshot = repository / "snapshots" / REVISION
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(REVISION)
        for pattern in patterns:
            for path in folder.glob(pattern):
                shutil.copy(path, snapshot)

    return fill


@torch.no_grad()
def test_a_hub_name_that_was_downloaded_before(folder, hub_cache, no_hub):
    model, _ = save_tiny_model(folder)
    hub_cache(folder, "*")
    loaded = load_model("someone/tiny", "cpu")
    assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)
    assert loaded.name == "someone/tiny" and loaded.checksum == weights_checksum(folder)


@pytest.mark.parametrize(
    "patterns", [["config.json"], ["config.json", "tokenizer*"], ["*.json"], ["config.json", "*.safetensors"]]
)
def test_a_hub_name_of_which_only_a_part_was_downloaded(folder, hub_cache, no_hub, patterns):
    save_tiny_model(folder)
    hub_cache(folder, *patterns)
    with pytest.raises(FetchError, match="the download from the Hugging Face hub failed"):
        load_model("someone/tiny", "cpu")


@torch.no_grad()
def test_a_hub_name_that_is_downloaded_now(folder, hub_cache, monkeypatch, capsys):
    model, _ = save_tiny_model(folder)
    offered = {
        "model.safetensors": 93_000_000,
        "config.json": 1,
        "onnx/model.safetensors": 10**9,
        "consolidated.safetensors": 10**9,
    }
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info_of(offered))
    asked = []

    def download(name, allow_patterns, ignore_patterns):
        asked.extend(filter_repo_objects(offered, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        hub_cache(folder, "*")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert torch.equal(load_model("someone/tiny", "cpu").model(TOKENS).logits, model(TOKENS).logits)
    assert "someone/tiny: 93 MB to download from the Hugging Face hub" in capsys.readouterr().err
    assert asked == ["model.safetensors", "config.json"]


@pytest.mark.parametrize("error, message", [
    (httpx.ReadError("connection reset"), r"^'someone/tiny' .* failed \(ReadError: connection reset\): .* run this again, which goes on"),
    (OSError(28, "No space left on device"), r"failed \(OSError: \[Errno 28\] No space left on device\): .* run this again"),
    (GatedRepoError("403", response=httpx.Response(403, request=REQUEST)), "is given only to those who accept its licence"),
])  # fmt: skip
def test_a_hub_download_that_fails(hub_cache, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info_of({"model.safetensors": 1}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FetchError, match=message):
        load_model("someone/tiny", "cpu")


def test_a_hub_model_that_would_have_to_be_unpickled(hub_cache, monkeypatch):
    offered = {"pytorch_model.bin": 1, "config.json": 1}
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info_of(offered))
    with pytest.raises(FetchError, match=r"'someone/tiny' offers no model\*\.safetensors files"):
        load_model("someone/tiny", "cpu")


def info_of(files):
    siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
    return huggingface_hub.ModelInfo(id="someone/tiny", siblings=siblings)


@pytest.mark.parametrize("error, message", [
    (httpx.ConnectError("Name or service not known"), "the Hugging Face hub failed .* connect to the internet"),
    (httpx.ReadTimeout("slow"), "the Hugging Face hub failed .ReadTimeout: slow."),
    (OfflineModeIsEnabled("HF_HUB_OFFLINE"), "the Hugging Face hub failed .OfflineModeIsEnabled"),
    (RepositoryNotFoundError("404", response=httpx.Response(404, request=REQUEST)), r"is not a model on the Hugging Face hub, .* check the spelling"),
    (GatedRepoError("403", response=httpx.Response(403, request=REQUEST)), "is given only to those who accept its licence"),
])  # fmt: skip
def test_what_the_hub_may_answer(monkeypatch, hub_cache, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(FetchError, match=message) as caught:
        load_model("someone/absent")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("'someone/absent'")
