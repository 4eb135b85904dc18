"""The forecast: its counts are those of the run, and what is done already is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from attar import casting, export, forecast, measure, pipeline, schooling
from attar.errors import LayerError
from attar.forecast import Forecast, Stage
from attar.setting import Book, Setting, begin
from attar.store import Store, stores

CLASSES, WIDTH = 4, 16
WORDS = [f"w{n}" for n in range(20)]

RECIPE = """
task: {text.classification: {dataset: WORLD/data, max_length: 16, labelled_per_class: 6}}
teacher: {finetune: {model: WORLD/model, epochs: 2, batch_size: 5, lr: 1e-3, train: 1}}
student: {encoder: {layers: 1, width: 8}}
teach: offline
losses:
  - response.kl: {temperature: 2}
  - feature.mse: {weight: 0.1, layers: auto}
steps:
  - distill: {epochs: 3, lr: 1e-3, batch_size: 8}
  - export.transformers
  - quantize.int8_dynamic
baselines: [labels_only, pseudo_labels]
measure: [score]
engine: {local: {precision: fp32}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of four classes, a BERT of two layers that knows nothing of it, and a recipe."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data").mkdir()
    for split, count in (("train", 100), ("test", 20)):
        rows = [f"{' '.join(WORDS[: 1 + n % 9])} {n},c{n % CLASSES}" for n in range(count)]
        (folder / f"data/{split}.csv").write_text("\n".join(["text,label", *rows]))
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.train_from_iterator(WORDS, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "model")
    config = BertConfig(
        vocab_size=22,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(folder)))
    return folder


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in its own empty folder, with its own cache, and little time to look."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(forecast, "BUDGET", 0.02)


def setting(world: Path, *overrides: str) -> Setting:
    return begin(world / "recipe.yaml", overrides=overrides)


def foreseen(world: Path, *overrides: str) -> Forecast:
    return forecast.forecast(setting(world, *overrides))


def stages(found: Forecast) -> dict[str, Stage]:
    return {each.name: each for each in found.stages}


def done(here: Setting) -> dict[str, Any]:
    """What of a run costs time, but the report."""
    book = Book()
    teacher = pipeline.find_teacher(here, book)
    student = casting.build_student(here, teacher)
    taught = schooling.teaching(here, teacher, student, book)
    schooling.fill_store(here, teacher, taught, book)
    _, begun = pipeline.follow_steps(here, teacher, student, taught, book)
    assert begun is not None
    pipeline.train_baselines(here, teacher, taught, book, *begun)
    return {"book": book, "teacher": teacher, "student": student}


def test_a_training_within_an_epoch_asks_about_what_it_will_be_shown(world: Path) -> None:
    here = setting(world, "steps.0.distill={steps: 7, batch_size: 8}")
    drawn = [batch for _, batch in zip(range(8), here.task.batches(batch_size=8), strict=False)]
    shown = {key for batch in drawn for key in batch.keys}
    book = done(here)["book"]
    assert 8 * 7 <= len(shown) < here.task.size("train") == 90
    # The store was full before the training, which added nothing.
    (store,) = stores(here.cache / "knowledge")
    known = Store.found(store, {})
    assert book.plan["knowledge"]["rows"] == len(known) == len(shown)
    assert known.missing(sorted(shown)) == []


@pytest.mark.parametrize("how", ["named", "everything"])
def test_a_store_for_others_is_filled_whole(world: Path, tmp_path: Path, how: str) -> None:
    named = f"teach.offline.store={tmp_path / 'mine'}"
    here = setting(world, "steps.0.distill={steps: 2, batch_size: 8}", *[named] * (how == "named"))
    book = Book()
    teacher = pipeline.find_teacher(here, book)
    student = casting.build_student(here, teacher)
    taught = schooling.teaching(here, teacher, student, book)
    schooling.fill_store(here, teacher, taught, book, everything=how == "everything")
    assert book.plan["knowledge"]["rows"] == here.task.size("train") == 90


def test_a_forecast_writes_nothing(world: Path, tmp_path: Path) -> None:
    foreseen(world)
    assert list(tmp_path.iterdir()) == []


def test_the_stages_stand_in_the_order_of_the_run(world: Path) -> None:
    assert [each.name for each in foreseen(world).stages] == [
        "reading and loading",
        "teacher",
        "asking the teacher",
        "student",
        "export.transformers",
        "quantize.int8_dynamic",
        "labels_only",
        "pseudo_labels",
        "measuring",
    ]


def test_steps_and_epochs_are_those_of_the_recipe(world: Path) -> None:
    found = foreseen(world)
    trainings = found.trainings
    # 24 labelled texts in fives are 5 steps an epoch; of 100 rows 10 serve validation, and 90 in
    # eights are 12 steps. The baseline takes as many, though it has only 24 texts in 3 steps.
    assert (found.data["train"], found.data["labelled"]) == (90, 24)
    assert (trainings["teacher"].steps, trainings["teacher"].epochs) == (10, 2.0)
    assert (trainings["student"].steps, trainings["student"].epochs) == (36, 3.0)
    assert (trainings["labels_only"].steps, trainings["labels_only"].epochs) == (36, 12.0)
    assert trainings["pseudo_labels"].part == "train"
    assert foreseen(world, "steps.0.distill={steps: 7}").trainings["student"].steps == 7


def test_validation_scores_and_patience_do_not_end_the_look(world: Path) -> None:
    plain = "steps.0.distill={steps: 50"
    found = foreseen(world, f"{plain}, evaluate: 1, patience: 1, keep: best}}")
    assert found.trainings["student"].steps == 50


def test_parameters_are_counted_as_the_report_counts_them(world: Path) -> None:
    here = setting(world)
    cast = pipeline.cast(here, Book())
    assert cast.teacher is not None
    found = forecast.forecast(here)
    teacher, student = measure.parameters(cast.teacher), measure.parameters(cast.student)
    assert found.parameters["teacher"] == teacher
    assert found.parameters["student"] == student
    assert found.parameters["bridges"] == 8 * WIDTH + WIDTH
    # One of two blocks is trained, and what comes behind it; embeddings and the first are not.
    frozen = [*cast.teacher.bert.embeddings.parameters()]  # type: ignore[union-attr, operator]
    frozen += [*cast.teacher.bert.encoder.layer[0].parameters()]  # type: ignore[union-attr, index]
    assert found.trainings["teacher"].trained == teacher - sum(p.numel() for p in frozen)
    assert found.trainings["student"].trained == student


def test_tokens_are_counted_without_padding(world: Path) -> None:
    here = setting(world)
    longs = [len(text.split()) for text in here.task.texts]
    found = forecast.forecast(here)
    assert found.tokens == pytest.approx(sum(longs) / len(longs))
    assert found.trainings["teacher"].tokens == int(found.tokens * 5 * 10)


def test_what_a_run_did_is_found_done_and_takes_no_time(world: Path) -> None:
    before = stages(foreseen(world))
    assert not any(each.done for each in before.values())
    done(setting(world))
    after = stages(foreseen(world))
    found = {name for name, each in after.items() if each.done}
    assert found == {"teacher", "asking the teacher", "student", "labels_only", "pseudo_labels"}
    assert all(after[name].seconds == 0 < before[name].seconds for name in found)
    assert all(after[name].bytes == before[name].bytes for name in found)
    again = stages(foreseen(world, "steps.0.distill.lr=0.002"))
    assert again["teacher"].done
    assert not again["student"].done


def test_a_store_that_is_half_full_takes_half_the_time(world: Path) -> None:
    here = setting(world)
    book = Book()
    teacher = pipeline.find_teacher(here, book)
    student = casting.build_student(here, teacher)
    taught = schooling.teaching(here, teacher, student, book)
    assert teacher is not None
    first = next(here.task.sweep("train", batch_size=45))
    next(iter(schooling.lessons(here, teacher, taught, iter([first]), student, here.engine, 1)))
    look = forecast._look(here, pipeline.cast(here, Book()))
    assert forecast._knowledge(look).seconds == pytest.approx(45 * look.asking)


def test_the_room_on_disk_is_what_the_run_takes(world: Path) -> None:
    here = setting(world)
    found = stages(forecast.forecast(here))
    really = done(here)
    knowledge = really["book"].plan["knowledge"]["bytes"]
    assert found["asking the teacher"].bytes == pytest.approx(knowledge, rel=0.3)
    kept = here.out.glob("arms/student-*/*.safetensors")
    written = export.transformers(really["student"], here.out / "again")
    # Of so small a file the names of the tensors are a good part, and are left out of account.
    for name, path in (
        ("student", next(kept)),
        ("export.transformers", written / "model.safetensors"),
    ):
        weights = sum(tensor.nbytes for tensor in load_file(path).values())
        assert found[name].bytes == pytest.approx(weights, rel=0.1)


def test_a_teacher_that_is_asked_live_has_no_stage_of_its_own(world: Path) -> None:
    assert "asking the teacher" not in stages(foreseen(world, "teach=online"))


def test_a_recipe_without_a_teacher_has_only_its_student(world: Path) -> None:
    found = foreseen(
        world,
        "teacher=null",
        "teach=null",
        f"student={{pretrained: {{model: {world}/model}}}}",
        "losses=[task]",
        "baselines=[]",
    )
    assert list(found.trainings) == ["student"]
    assert found.parameters["teacher"] == 0


def test_memory_counts_the_gradients_of_what_is_trained(world: Path) -> None:
    found = foreseen(world)
    most = max(each.trained for each in found.trainings.values())
    assert found.memory["gradients and optimizer"] == 12 * most
    assert found.memory["activations"] == max(t.activations for t in found.trainings.values()) > 0
    larger = foreseen(world, "steps.0.distill.batch_size=64")
    assert larger.trainings["student"].activations > 2 * found.trainings["student"].activations


def test_a_run_that_would_fail_fails_at_once(world: Path) -> None:
    with pytest.raises(LayerError, match="nowhere"):
        foreseen(world, "losses=[feature.mse: {layers: {nowhere: nowhere}}]")


def test_the_lines_are_a_table_of_all_stages(world: Path) -> None:
    found = foreseen(world)
    lines = found.lines()
    top, total = (n for n, line in enumerate(lines) if line.startswith(("stage", "total")))
    table = lines[top : total + 1]
    assert len({len(line) for line in table}) == 1
    assert [line.split("  ")[0].strip() for line in table[1:-1]] == [
        each.name for each in found.stages
    ]
    assert any("<-" in line and "feature.mse" in line for line in lines)


def test_the_lines_say_what_is_found_done(world: Path) -> None:
    here = setting(world)
    pipeline.find_teacher(here, Book())
    (teacher,) = (line for line in foreseen(world).lines() if line.startswith("teacher"))
    assert teacher.endswith("found done")


def test_on_a_busy_machine_the_lines_say_that_it_is(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(load: float) -> bool:
        monkeypatch.setattr(forecast.machine, "load", lambda: load)
        return any("Others compute here" in line for line in foreseen(world).lines())

    assert told(2.0)
    assert not told(0.5)


def test_the_plan_is_plain_data_with_its_sums(world: Path) -> None:
    found = foreseen(world)
    plan = json.loads(json.dumps(found.plan))
    assert plan["total"]["seconds"] == pytest.approx(sum(s["seconds"] for s in plan["stages"]))
    assert plan["total"]["disk"] == sum(s["bytes"] for s in plan["stages"])
    assert plan["stages"][1]["training"]["steps"] == 10
