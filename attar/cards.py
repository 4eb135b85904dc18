"""A model card beside every model that a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.lineage import teachers
from attar.report import Report, sentences
from attar.report.card import MARK, About, card
from attar.students import PAPER

if TYPE_CHECKING:
    from attar.setting import Setting

ASKED = "How do I top up?"
"""What the card's lines ask: anything will do, and nothing from the data may stand there."""

ONNX = """import onnxruntime, transformers
text = transformers.AutoTokenizer.from_pretrained("tokenizer")("{asked}", return_tensors="np")
session = onnxruntime.InferenceSession("{name}")
asked = {{each.name: text[each.name] for each in session.get_inputs()}}
print(session.run(None, asked)[0].argmax())
"""

OPENVINO = """import openvino, transformers
text = transformers.AutoTokenizer.from_pretrained("tokenizer")("{asked}", return_tensors="np")
precise = {{"INFERENCE_PRECISION_HINT": "f32"}}  # as it was scored; left out, some processors round
model = openvino.Core().compile_model("{name}", "CPU", precise)
asked = {{each.any_name: text[each.any_name] for each in model.inputs}}
print(model(asked)[0].argmax())
"""

EXECUTORCH = """import json, pathlib, transformers
from executorch.runtime import Runtime
text = transformers.AutoTokenizer.from_pretrained("tokenizer")("{asked}", return_tensors="pt")
program = Runtime.get().load_program(pathlib.Path("{name}"))
facts = json.loads(program.load_method("facts").execute([])[0])
asked = [text[each] for each in facts["inputs"]]
print(program.load_method("forward").execute(asked)[0].argmax())
"""

TRANSFORMERS = """from transformers import pipeline
classify = pipeline("text-classification", model=".")
print(classify("{asked}"))
"""

ATTAR = """from attar import students
model = students.load(".")
text = model.tokenizer("{asked}", return_tensors="pt")
print(model(input_ids=text["input_ids"], attention_mask=text["attention_mask"]).argmax())
"""

PICTURE = """import json
import numpy
from PIL import Image
pixels = Image.open("picture.png").convert("RGB").resize(({width}, {height}))
pixels = numpy.asarray(pixels, numpy.float32) / 255
"""
"""What a picture's pixels are before they are normalized."""

PICTURE_ONNX = """import onnxruntime
how = json.load(open("preprocessing/preprocessor_config.json"))
pixels = (pixels - how["image_mean"]) / how["image_std"]
asked = {{"pixel_values": pixels.transpose(2, 0, 1)[None].astype(numpy.float32)}}
print(onnxruntime.InferenceSession("{name}").run(None, asked)[0].argmax())
"""

PICTURE_TRANSFORMERS = """from transformers import pipeline
print(pipeline("image-classification", model=".")("picture.png"))
"""

PICTURE_ATTAR = """import torch
from attar import students
model = students.load(".")
how = model.normalization
pixels = torch.tensor((pixels - how["mean"]) / how["std"]).float()
print(model(pixel_values=pixels.permute(2, 0, 1)[None]).argmax())
"""

TEXTS = {
    ".onnx": ("onnx", ONNX, "`tokenizer/`; the number is a place in the metadata's `classes`"),
    ".xml": ("openvino", OPENVINO, "`tokenizer/`; the number is a place in `rt_info`'s `classes`"),
    ".pte": (
        "executorch",
        EXECUTORCH,
        "`tokenizer/`; the number is a place in `classes`, of which its method `facts` tells",
    ),
    "attar": ("attar", ATTAR, "this folder"),
    "transformers": ("transformers", TRANSFORMERS, "this folder"),
}
"""By a file's ending or a folder's kind: its library, how it loads, where its tokenizer lies."""

PICTURES = {
    ".onnx": ("onnx", PICTURE + PICTURE_ONNX, ""),
    ".xml": ("openvino", "", ""),
    ".pte": ("executorch", "", ""),
    "attar": ("attar", PICTURE + PICTURE_ATTAR, ""),
    "transformers": ("transformers", PICTURE_TRANSFORMERS, ""),
}
"""The same for pictures."""


STATE_ONNX = """import json, numpy, onnxruntime
shown = json.load(open("observation/observation.json"))["observation"]
asked = {{"observation": numpy.zeros([1, *shown], numpy.float32)}}  # as the environment shows it
print(onnxruntime.InferenceSession("{name}").run(None, asked)[0])
"""

STATE_ATTAR = """import torch
from attar import students
model = students.load(".")
print(model(observation=torch.zeros({observation})))  # as the environment shows it
"""

STATES = {
    ".onnx": ("onnx", STATE_ONNX, ""),
    ".xml": ("openvino", "", ""),
    ".pte": ("executorch", "", ""),
    "attar": ("attar", STATE_ATTAR, ""),
}
"""The same for the states of an environment."""


def write_cards(here: Setting, report: Report, paths: Mapping[str, Path]) -> list[Path]:
    """Write a card into each folder of the run that holds models, for all of them there.

    paths: by row, its file or folder; what lies outside of the run's own folder is left alone
    """
    places: dict[Path, list[str]] = {}
    for name, path in paths.items():
        folder = path.parent if path.is_file() else path
        if folder.is_dir() and folder.resolve().is_relative_to(here.out.resolve()):
            places.setdefault(folder, []).append(name)
    written = []
    for folder, names in places.items():
        target = _free(folder)
        shown = sentences.best([row for row in report.rows if row.name in names])
        chosen = paths[shown.name if shown is not None else names[-1]]
        target.write_text(card(report, names, _about(here, chosen)), encoding="utf-8", newline="\n")
        written.append(target)
    return written


def _free(folder: Path) -> Path:
    """Where the card goes: README.md, unless one that attar did not write is there."""
    target = folder / "README.md"
    if target.is_file() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        return folder / "MODEL_CARD.md"
    return target


def _about(here: Setting, path: Path) -> About:
    library, load, tokenizer = _loading(path, here.task.facts)
    said = here.recipe.task.options
    data = said.get("dataset", said.get("environment", here.recipe.task.name))
    return About(
        kind=here.task.tag,
        classes=len(here.task.classes),
        limit=here.task.limit,
        data=Path(str(data)).name,
        library=library,
        load=load,
        tokenizer=tokenizer,
        teachers=teachers(here.plan, here.trust),
    )


def _loading(path: Path, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """The library that loads it, how, and where its tokenizer lies.

    facts: of the task, which tell what it is shown
    """
    height, width = facts.get("shape") or (0, 0)
    papers = {PAPER: "attar", "config.json": "transformers"}
    folder = next((kind for paper, kind in papers.items() if (path / paper).is_file()), "")
    known = PICTURES if width else STATES if "observation" in facts else TEXTS
    library, lines, tokenizer = known.get(path.suffix or folder, ("other", "", ""))
    more = {"observation": [1, *facts.get("observation", [])]}
    said = lines.format(asked=ASKED, name=path.name, width=width, height=height, **more)
    return library, said, tokenizer
