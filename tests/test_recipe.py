"""Recipes: what is accepted, what is refused and in which words, and that a file gives back what was written."""

import math
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.recipe import SCHEDULES, Recipe, RecipeError, rules, without_memory
from ftnb.toml import toml_value

NAMES = st.text(min_size=1).filter(str.strip)
POSITIVE = st.floats(min_value=1e-12, max_value=10, allow_nan=False)
RECIPES = st.builds(
    Recipe,
    data=NAMES | st.dictionaries(st.sampled_from(["train", "valid", "test"]), NAMES, min_size=1),
    model=NAMES,
    columns=st.dictionaries(NAMES, NAMES | st.integers(0, 10**6)),
    lr=POSITIVE,
    num_epochs=st.integers(1, 10**9),
    max_length=st.none() | st.integers(1, 10**6),
    max_grad_norm=POSITIVE | st.just(math.inf),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(SCHEDULES),
    patience=st.none() | st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
    device=st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:3"]),
)


def finetune(**settings):
    return Recipe(**settings)


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_file_and_line_of_code_give_the_recipe_back(recipe):
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe.from_toml(recipe.to_toml(comments=True)) == recipe
    assert eval(recipe.code(), {"finetune": finetune, "inf": math.inf}) == recipe
    assert hash(Recipe.from_toml(recipe.to_toml())) == hash(recipe)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_survives_toml(text):
    assert tomllib.loads(f"value = {toml_value(text)}") == {"value": text}


@given(st.dictionaries(st.sampled_from([*rules(), "lrr"]), st.none() | st.booleans() | st.integers() | st.text()))
@settings(max_examples=80, deadline=None)
def test_any_settings_make_a_recipe_or_name_what_is_wrong(data):
    data.pop("strategy", None)  # judged by the strategies, below
    try:
        recipe, problems = Recipe.from_dict(data), ""
    except RecipeError as error:
        recipe, problems = Recipe(), str(error)
    assert not problems or any(key in problems for key in data)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", -1e-4, "a number, above 0"),
        ("lr", 0, "above 0"),
        ("lr", math.nan, "above 0"),
        ("lr", math.inf, "at most 10"),
        ("lr", "1e-4", "without quotes"),
        ("lr", True, "got True"),
        ("num_epochs", 0, "at least 1"),
        ("num_epochs", 2.5, "a whole number"),
        ("num_epochs", True, "a whole number"),
        ("num_epochs", "3", "without quotes"),
        ("batch_size", -1, "at least 1"),
        ("warmup", 1.5, "at most 1"),
        ("warmup", -0.1, "at least 0"),
        ("patience", 0, "or nothing"),
        ("seed", -1, "at least 0"),
        ("task", "text-clasification", "'text-classification'"),
        ("schedule", "cosin", "Did you mean 'cosine'?"),
        ("precision", "fp8", "'bf16'"),
        ("device", "gpu", "cuda"),
        ("device", "cuda:", "cuda"),
        ("model", "", "not empty"),
        ("model", 3, "not empty"),
        ("model", "\ud800", "UTF-8"),
        ("data", {}, "'train'"),
        ("data", {"train": 3}, "data.train"),
        ("columns", "text", "a table"),
        ("columns", {"text": True}, "columns.text"),
        ("columns", {"text": -1}, "columns.text"),
        ("columns", {"label": ["angry", "polite"]}, "joined (\"a;b\"), with label_separator=';'"),
        ("columns", {"text": ["title", "body"]}, "columns.text must be one column; got ['title', 'body']."),
        ("strategy", 3, "a name"),
        ("strategy", "ful", "strategy"),
        ("strategy", {"name": "top-k", "k": -1}, "strategy"),
        ("strategy", {"name": "top-k", "kk": 1}, "strategy"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value, expected):
    with pytest.raises(RecipeError) as caught:
        Recipe(**{key: value})
    assert key in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("num_epoch", "num_epochs"), ("learning_rate", "lr"), ("batchsize", "batch_size"), ("LR", "lr")],
)
def test_unknown_settings_come_with_the_nearest_one(wrong, right):
    with pytest.raises(RecipeError, match=f"{wrong}.*Did you mean '{right}'"):
        Recipe.from_dict({wrong: 1})
    with pytest.raises(RecipeError, match=f"Did you mean '{right}'"):
        Recipe().replace(**{wrong: 1})


def test_all_problems_come_at_once():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml('lrr = 1\nbatch_size = "16"\nwarmup = 10')
    assert [word for word in ("3 problems", "'lrr'", "batch_size", "warmup") if word not in str(caught.value)] == []


def test_numbers_of_other_libraries_become_plain_ones():
    recipe = Recipe(lr=np.float32(0.5), num_epochs=np.int64(2), warmup=0)
    assert (type(recipe.lr), type(recipe.num_epochs), type(recipe.warmup)) == (float, int, float)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_recipe_cannot_be_changed_through_what_it_was_made_from():
    columns = {"text": "sentence"}
    recipe = Recipe(columns=columns)
    columns["text"] = "other"
    assert recipe.columns == {"text": "sentence"}
    assert Recipe().columns is not Recipe().columns
    with pytest.raises(AttributeError):
        recipe.lr = 1.0


def test_strategies_in_all_spellings():
    by_table = Recipe(strategy={"name": "top-k", "k": 2})
    from ftnb.strategies import STRATEGIES, TopK

    assert Recipe(strategy=TopK(k=2)) == by_table
    assert Recipe(strategy={"name": "full"}) == Recipe(strategy="full") == Recipe()
    assert Recipe.from_toml('strategy = "full"') == Recipe()
    assert Recipe.from_toml('[strategy]\nname = "top-k"\nk = 2') == by_table
    assert all(name in rules()["strategy"].help for name in STRATEGIES)


def test_overrides_read_values_as_a_shell_user_means_them(tmp_path):
    recipe = Recipe().override(["lr=1e-4", "strategy.name=top-k", "strategy.k=2", "model=2026", "columns.text=0"])
    assert (recipe.lr, recipe.strategy, recipe.model) == (1e-4, {"name": "top-k", "k": 2}, "2026")
    assert recipe.columns == {"text": 0}
    assert Recipe(patience=3).override(["patience=none"]).patience is None
    assert Recipe().override(["data=C:\\new\\reviews.csv"]).data == "C:\\new\\reviews.csv"
    assert Recipe().override(["model=a=b"]).model == "a=b"
    assert Recipe().override(['data={train = "a.csv", valid = "b.csv"}']).data == {"train": "a.csv", "valid": "b.csv"}
    for wrong, message in (("lr", "key=value"), ("lr.x=1", "no table"), ("lr=fast", "lr must"), ("lrr=1", "'lr'")):
        with pytest.raises(RecipeError, match=message):
            Recipe().override([wrong])


def test_data_in_memory_works_in_python_and_is_refused_by_a_file():
    frame, other = pd.DataFrame({"text": ["a"]}), pd.DataFrame({"text": ["a"]})
    recipe = Recipe(data=frame)
    assert recipe == Recipe(data=frame)
    assert recipe != Recipe(data=other)
    assert recipe != Recipe()
    assert recipe.replace(seed=1).data is frame
    assert recipe.code() == "finetune(data=data)"
    with pytest.raises(RecipeError, match="DataFrame"):
        recipe.to_toml()
    assert "DataFrame" in without_memory(recipe).to_toml()


def test_files(tmp_path):
    path = tmp_path / "recipe.toml"
    recipe = Recipe(lr=1e-4, data="reviews.csv")
    assert Recipe.load(recipe.save(path)) == recipe == Recipe.load(tmp_path)
    path.write_bytes("lr = 1e-3\r\n".encode("utf-8-sig"))
    assert Recipe.load(path).lr == 1e-3
    path.write_bytes(b"\xff\xfe")
    for place, message in ((path, "UTF-8"), (tmp_path / "none.toml", "none.toml")):
        with pytest.raises(RecipeError, match=message):
            Recipe.load(place)
    path.write_text("lr = fast")
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*line 1"):
        Recipe.load(path)


def test_reading_a_recipe_does_not_import_torch():
    code = "import sys, ftnb.recipe as r; r.Recipe.from_toml('lr = 1e-3').code(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_task_brings_its_own_data_and_model():
    text, image = Recipe(), Recipe(task="image-classification")
    assert (text.data, text.model) == ("builtin:reviews", "builtin:bert-reviews")
    assert (image.data, image.model) == ("builtin:digits", "builtin:resnet-glyphs")
    assert image.code() == "finetune(task='image-classification')"
    assert Recipe.from_toml(image.to_toml()) == image
    moved = Recipe(max_length=20, lr=1e-3).replace(task="image-classification")
    assert moved == image.replace(lr=1e-3)
    own = Recipe(data="mine.csv", model="some/folder", columns={"text": "a"}).replace(task="image-classification")
    assert (own.data, own.model, own.columns) == ("mine.csv", "some/folder", {"text": "a"})
    import pandas as pd

    frame = pd.DataFrame({"text": ["a"], "label": ["b"]})
    assert Recipe(data=frame).replace(task="image-classification").data is frame


def test_a_setting_of_another_task_is_refused():
    with pytest.raises(RecipeError, match="max_length is no setting of image-classification, which has image_size"):
        Recipe(task="image-classification", max_length=20)
    with pytest.raises(RecipeError, match="augment is no setting of text-classification"):
        Recipe.from_dict({"augment": "flip"})
    with pytest.raises(RecipeError, match="batch_norm must be one of 'moving', 'fixed'"):
        Recipe(batch_norm="frozen")


def test_the_names_of_augmentations_are_those_of_the_transform():
    from ftnb.recipe import AUGMENTATIONS
    from ftnb.transforms import AUGMENTATIONS as KNOWN

    assert AUGMENTATIONS == KNOWN


def test_each_task_brings_its_own_numbers_unless_somebody_says_others():
    boxes = Recipe(task="object-detection")
    assert (boxes.lr, boxes.num_epochs, boxes.batch_size) == (2e-3, 20, 8)
    assert boxes.code() == "finetune(task='object-detection')"
    assert Recipe().replace(task="object-detection") == boxes == Recipe().override(["task=object-detection"])
    assert Recipe(lr=3e-4).replace(task="object-detection").lr == 3e-4
    assert boxes.replace(task="text-classification") == Recipe()
    assert Recipe(task="object-detection", lr=None, num_epochs=None) == boxes
    assert Recipe.from_toml('task = "object-detection"') == boxes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lr = " + "9" * 400, "lr must be .* more than 64 bits"),
        ("num_epochs = " + "9" * 400, "num_epochs must be .* more than 64 bits"),
        ("num_epochs = " + "9" * 5000, "no TOML"),
        ("columns = " + "[" * 100_000, "no TOML"),
    ],
)
def test_numbers_and_depths_beyond_reason_are_refused(text, named):
    with pytest.raises(RecipeError, match=named):
        Recipe.from_toml(text)
