# %% [markdown]
# # Choosing a task
#
# > One page for all tasks: which lesson, which model to start from, how much data, which strategy first, what goes wrong.
#
# At the end you know which task your question is, and have the one line that starts it. Runs in about 10 s on a CPU.

# %%
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from IPython.display import Markdown

from ftnb import Recipe
from ftnb.tasks import TASKS

# %% [markdown]
# ## Which task is it?
#
# Ask what the *answer* to one example looks like:
#
# - one word out of a list, or several: a **classification**, of texts, pictures or recordings;
# - a mark on each word (names, places, parts of speech): **token classification**;
# - a box around each thing: **object detection**; a class for each pixel: **image segmentation**;
# - what was said, as text: **speech recognition**;
# - a text that did not exist before: **text generation**. If the answer is one word out of a list, a classifier is smaller, faster, and tells how sure it is.
#
# What each task reads, and what it starts from, stands in its registration, so this table cannot grow old. The lesson is the one that its module was exported from.

# %%
def lesson_of(task: str) -> str:
    spec = find_spec(TASKS[task].place.partition(":")[0])
    return re.search(r"nbs/(\w+)\.py", Path(spec.origin).read_text(encoding="utf-8").partition("\n")[0])[1]

def table(head: list[str], rows: list[list[str]]) -> Markdown:
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines))

def code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)

lessons = {task: lesson_of(task) for task in TASKS}
links = {task: f"[{lesson[:2]}]({lesson}.ipynb)" for task, lesson in lessons.items()}
table(
    ["task", "lesson", "columns that it knows", "settings of its own", "built-in data and model", "real models to start from"],
    [[task, links[task], code(e.roles), code(e.options), code((e.data, e.model)), code(e.models)] for task, e in TASKS.items()],
)

# %%
assert len(set(lessons.values())) == len(TASKS)

# %% [markdown]
# ## What to expect
#
# What a person should know beforehand is no part of a registration, so it is written here; an assert sees to it that no task is left out. **Measured** figures are those of the lessons, on small generated data, with small models: they say how much a pretrained start was worth *there*. The amounts under **plan for** are rules of thumb, ours and no more; a learning curve on your own data (train on a quarter, a half, all of it) replaces them.

# %%
NOTES = {  # task: (plan for, strategy to try first, main metric, measured in its lesson, traps)
    "text-classification": ("50 texts a class; 10 where a good encoder is near the subject", "full; top-k or layer-decay where texts are few", "accuracy; micro F1 with several labels", "128 reviews: see the cards below; 400 pairs: 0.88 to 0.95, at chance with the second text exchanged", "traces of how the data was made; equal texts in train and test; accuracy on rare labels"),
    "token-classification": ("100 to 1,000 texts, some hundred entities of each type", "full", "F1 of whole entities", "96 texts: F1 0.49 to 0.61 on new names, from scratch 0.14 to 0.16", "labels one piece off; upper case in training, lower in use; token accuracy, which is always high"),
    "image-classification": ("30 pictures a class; 10 where they are like the pretraining", "head, then full", "accuracy", "10 digits a class: see the cards below", "a background that gives the class away; BatchNorm with small batches; near-duplicates in the test"),
    "object-detection": ("some hundred boxes of each class", "full, long enough", "mAP", "40 scenes: mAP at 0.5 of 0.15 to 0.28, from scratch 0.05 to 0.09", "box formats mistaken for each other; objects without a box count as background; too few epochs"),
    "image-segmentation": ("50 to some hundred masks", "full", "mean IoU", "48 scenes: 0.32 to 0.47, from scratch 0.26", "index and colour masks; the ground, which flatters every mean of pixels; borders to be ignored"),
    "audio-classification": ("50 clips a class, of many speakers", "full", "accuracy", "100 clips, strangers' voices: see the cards below, and a small network on spectrograms in the lesson", "the same speakers in train and test; sampling rates; silence that gives the class away"),
    "automatic-speech-recognition": ("one hour for a model that transcribes the language already; many more for one that was only pretrained", "full; adapters for large models", "word error rate", "200 clips of spoken digits: see the cards below", "how numbers and marks are written; an alphabet that lacks letters; sampling rates; long recordings"),
    "text-generation": ("some hundred good answers for a form; facts need more", "lora; full for small models", "token accuracy of the answers while training; exact match to report", "168 instructions, 4 epochs: full 0.50 exactly right, LoRA 0.57 with a twelfth of the weights; more epochs: see the cards below", "loss on prompts; a chat template applied twice; what was known before and is forgotten"),
}
assert set(TASKS) <= set(NOTES)
table(
    ["task", "plan for (rule of thumb)", "strategy first", "main metric", "measured", "traps"],
    [[f"{task} ({links[task]})", *NOTES[task]] for task in TASKS],
)

# %% [markdown]
# How much the pretrained start is worth depends on how near it is to your task. Each built-in checkpoint has a card with the scores of its own test, over several fresh seeds; here are their tables, as they stand in the cards:

# %%
def card_table(model: str) -> str:
    card = files("ftnb") / "weights" / model.removeprefix("builtin:") / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    scores = [line for line in lines if line.startswith("|")]
    return "\n".join([f"**{model}**", "", *scores]) if scores else ""

models = dict.fromkeys(m for e in TASKS.values() for m in (e.model, *e.models) if m.startswith("builtin:"))
Markdown("\n\n".join(filter(None, map(card_table, models))))

# %%
assert "fine-tuned" in card_table("builtin:bert-reviews")

# %% [markdown]
# ## In which order to try
#
# 1. **A baseline without a network**: the most frequent class, a bag of words with a logistic regression. If it is good enough, stop.
# 2. **The head alone** (`strategy="head"`): minutes, and it tells whether the checkpoint knows anything of your subject.
# 3. **Full fine-tuning** at a small rate. If the data is little or unlike the pretraining's, try `layer-decay`, `lp-ft` or `gradual`: the lower layers move less or later ([25](25_more_strategies.ipynb) measures them).
# 4. **An adapter** (`strategy="lora"`) where memory is short, or one backbone shall serve many tasks ([22](22_adapters.ipynb)). The recipe's rate stays: adapters learn at ten times of it by themselves.
# 5. Read the errors before you change a number. More often it is the data.
#
# ## One line each
#
# A recipe for each task with all its defaults, and the line of code that starts it. In a panel it is the same choice, in the first field.

# %%
for task in TASKS:
    print(Recipe(task=task).code())

# %%
recipes = [Recipe(task=task) for task in TASKS]
assert all(eval(recipe.code(), {"finetune": Recipe}) == recipe for recipe in recipes)

# %% [markdown]
# With your own data, a real model and a strategy it is still one line:

# %%
print(Recipe(task="image-classification", data="photos", model="microsoft/resnet-50", strategy="head", lr=5e-3).code())

# %% [markdown]
# A setting of another task is refused at once, with those that the task has:

# %%
try:
    Recipe(task="text-classification", image_size=64)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Exercise
#
# **1 (easy).** A friend has a folder of short voice messages and wants to know which of them are complaints. Two tasks could do it, one after the other, or one alone. Make the recipes.

# %% tags=["exercise"]
two_steps = ...  # a list of two recipes
one_step = ...

# %% tags=["solution"]
two_steps = [Recipe(task="automatic-speech-recognition"), Recipe(task="text-classification")]
one_step = Recipe(task="audio-classification")

# %%
assert [recipe.task for recipe in two_steps] == ["automatic-speech-recognition", "text-classification"]
assert one_step.task == "audio-classification"

# %% [markdown]
# The two steps need no labelled audio where a model already transcribes the language; the one step can hear the tone of voice, which a transcript loses.
#
# ## Summary
# - The form of the answer decides the task.
# - Defaults suit the built-in data; models, columns and settings of each task stand in the first table.
# - Amounts of data are rules of thumb until you have a learning curve of your own.
#
# **What next:** [10](10_data.ipynb) reads your data, then the lesson of your task. **Sources:** the lessons named in the tables; the list of tasks is that of the Hugging Face Hub (huggingface.co/tasks).
