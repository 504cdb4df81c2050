"""What messages name exists: functions, arguments, commands of make and of python -m quantlib."""

import ast
import builtins
import re
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "quantlib").rglob("*.py"), *(ROOT / "site").glob("*.py")])
SNAKE = re.compile(r"(?<![\w/.-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b(?![/-])")
OF_OTHERS = {"c_attn", "qkv_proj", "v_proj", "npm_config_registry", "part_01"}  # layers, npm's option, a file
OF_OTHERS |= {"rope_type"}  # a field of transformers' configurations
OF_OTHERS |= {  # keys and tensors of checkpoints
    "checkpoint_format", "config_groups", "desc_act", "gptq_v2", "load_in_8bit", "num_bits", "quant_method",
    "quantization_config", "weight_format", "weight_shape",
}  # fmt: skip


def messages():
    """(file, line, text) of every string in a raise, a warning, an exit, or a word said to the reader."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"warn", "exit", "FetchError", "Check"}
            )
            for part in ast.walk(node) if said else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield path.relative_to(ROOT), part.lineno, part.value


def identifiers():
    """Every name that Python code here defines, takes or reads."""
    found = set(dir(builtins)) | set(dir(torch)) | set(dir(torch.Tensor)) | set(dir(torch.nn.Module))
    found |= set(dir(transformers.PreTrainedModel)) | set(dir(transformers.PreTrainedConfig))
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in ("id", "attr", "arg", "name"):
                if isinstance(value := getattr(node, name, None), str):
                    found.add(value)
    return found


def test_every_name_in_a_message_exists():
    known, unknown = identifiers() | OF_OTHERS, []
    strings = {text for _, _, text in messages()}
    assert len(strings) > 400, "messages are found"
    for path, line, text in messages():
        unknown += [f"{path}:{line}: {word}" for word in SNAKE.findall(text) if word not in known]
    assert not unknown, "\n".join(sorted(set(unknown)))


def test_every_command_in_a_message_exists():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    main = (ROOT / "quantlib" / "__main__.py").read_text(encoding="utf-8")
    for path, line, text in messages():
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in targets, f"{path}:{line}: make {target}"
        for command in re.findall(r"python -m quantlib ([a-z-]+)", text):
            assert f'"{command}"' in main, f"{path}:{line}: python -m quantlib {command}"


def test_names_that_do_not_exist_are_found():
    assert SNAKE.findall("open it with load_quantized.") == ["load_quantized"]
    assert "load_lesson_model" in identifiers() and "no_such_function" not in identifiers()
