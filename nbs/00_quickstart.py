# %% [markdown]
# # Quickstart
#
# > Fine-tune a pretrained model in one sitting: choose, start, steer, look, save.
#
# At the end you have fine-tuned a BERT on reviews, changed its learning rate while it trained, looked at what it gets wrong, and saved a model that other programs load. Runs in about 30 s on a CPU, without a network.

# %%
import tempfile
import time

import matplotlib.pyplot as plt
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging

from ftnb import Panel, Recipe, TextClassification, Training, finetune
from ftnb.events import Changed
from ftnb.panel import near

logging.disable_progress_bar()  # of transformers, while it reads a checkpoint

# %% [markdown]
# ## Choose
#
# A **recipe** is everything that defines a run, as plain data. This one takes the reviews and the small BERT that come with the package. With a network and a GPU, `model="google-bert/bert-base-uncased", lr=2e-5` is the only change; with your own file, `data="reviews.csv"`.

# %%
recipe = Recipe(data="builtin:reviews", model="builtin:bert-reviews", lr=5e-4, num_epochs=8)
print(recipe.to_toml())

# %% [markdown]
# What can the model do before it is trained? Its body has read a lot of reviews, its head is new. Two classes, so guessing gives about 0.5.

# %%
untrained = TextClassification.prepare(recipe.data, recipe.model)
before = untrained.evaluate("test")["accuracy"]
before

# %% [markdown]
# These are the texts as the model gets them. Note how short the padding is: texts of similar length share a batch.

# %%
untrained.show_batch(4)

# %% [markdown]
# ## Start and steer
#
# The **panel** edits the recipe, starts the run and draws it. Click *Start*; while it trains, move the live rate, pause, resume. The notebook stays free: the training has a thread of its own. If you only run the cells, the second one starts the run for you.

# %%
page = Panel(recipe, key="quickstart")
page

# %%
run = page.run or page.start()
run.set_lr(1e-3)  # what the slider does
run.pause()  # what the buttons do
time.sleep(0.5)
print(run.state, "at step", run.history.step)
run.resume()
run.wait()

# %% [markdown]
# Whatever was done by hand is in the run's journal, with the step at which it took effect.

# %%
[(event.step, event.what, event.new) for event in run.events if isinstance(event, Changed)]

# %%
run.report()

# %% [markdown]
# ## Look
#
# The number first. The words that carry the opinion in these test reviews do not occur in any labelled training review: what the model knows of them, it brought along from pretraining. That is what fine-tuning is for (lesson 01 shows the proof).

# %%
after = run.task.evaluate("test")["accuracy"]
before, after

# %%
assert after > before + 0.15

# %% [markdown]
# Then the errors, the most confident ones first. Reading twenty of them teaches more than the third digit of the score.

# %%
run.task.show_errors(4, split="test")

# %%
run.predict(["the food was wonderful and the waiter was charming", "a horrible , boring film"])

# %% [markdown]
# ## Save
#
# The best and the last model are on the disk already, in the run's folder, beside the recipe and the journal. The folder loads wherever transformers is.

# %%
sorted(path.name for path in run.folder.iterdir())

# %%
classify = pipeline("text-classification", model=str(run.folder / "model"))
classify("the food was wonderful and the waiter was charming")

# %%
assert classify("the food was wonderful and the waiter was charming")[0]["label"] == run.predict(["the food was wonderful and the waiter was charming"])[0].label

# %% [markdown]
# ## The same without a panel
#
# Everything a panel does is one line of code, and the panel shows that line. In a terminal, `ftnb run recipe.toml` does the same with a progress bar. Here only the new head trains, the BERT is frozen:

# %%
head_only = finetune(recipe.replace(strategy="head", lr=1e-2))
head_only.task.evaluate("test")["accuracy"]

# %% [markdown]
# ## The experiment: is it the pretraining?
#
# **Claim.** The accuracy on unseen words comes from the pretrained weights, not from the training. If a model of the same shape that starts from random weights came as far, the claim would be refuted.

# %%
def test_accuracy(seed: int, scratch: bool) -> float:
    task = TextClassification.prepare(recipe.data, recipe.model, seed=seed, scratch=scratch)
    for _ in Training(task.learner(seed=seed), lr=recipe.lr, num_epochs=4, seed=seed):
        pass
    return task.evaluate("test")["accuracy"]

# %%
seeds = (1, 2, 3)
pretrained = [test_accuracy(seed, scratch=False) for seed in seeds]
random = [test_accuracy(seed, scratch=True) for seed in seeds]

# %%
fig, ax = plt.subplots(figsize=(6, 1.9), dpi=80, layout="constrained")
for y, values in enumerate((random, pretrained)):
    ax.plot(values, [y] * len(seeds), "o", ms=9, alpha=0.7)
ax.axvline(0.5, color="0.6", ls=":", lw=1)
ax.set(yticks=[0, 1], yticklabels=["random weights", "pretrained weights"], ylim=(-0.6, 1.6), xlim=(0.4, 1))
ax.set(xlabel="accuracy on words that were never labelled", title="Four epochs each, three seeds; dotted: guessing")
plt.show()

# %%
assert min(pretrained) > max(random) + 0.1

# %% [markdown]
# ## The story: LABEL_1
#
# Many models on the Hub answer `LABEL_1`, and it takes a look into the model card, or a guess, to know whether that is good or bad. They were trained with numbers for labels, and nobody wrote the names into the configuration. People have deployed such models the wrong way round. Here is what a checkpoint says that was saved without names, beside ours.

# %%
folder = tempfile.mkdtemp()
nameless = AutoModelForSequenceClassification.from_pretrained(run.folder / "model", id2label={0: "LABEL_0", 1: "LABEL_1"})
nameless.save_pretrained(folder)
AutoTokenizer.from_pretrained(run.folder / "model").save_pretrained(folder)
text = "a horrible , boring film"
pipeline("text-classification", model=folder)(text)[0]["label"], classify(text)[0]["label"]

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Train on your own table. Write `train_on`: fine-tune the built-in BERT for two epochs on a list of dictionaries with the keys `review` and `stars`, and return the run. (`columns` says which column plays which role.)

# %% tags=["exercise"]
def train_on(rows: list[dict]):
    ...  # your code here

# %% tags=["solution"]
def train_on(rows: list[dict]):
    return finetune(data=rows, columns={"text": "review", "label": "stars"}, num_epochs=2)

# %%
rows = [{"review": f"{word} {thing}", "stars": stars} for thing in ("film", "meal", "hotel", "book", "phone", "garden") for word, stars in (("wonderful", "five"), ("dreadful", "one"))]
assert set(train_on(rows).task.labels) == {"five", "one"}

# %% [markdown]
# ## Summary
# - A recipe is the run as data; a panel edits it, starts it and steers it; a line of code does the same.
# - A live change takes effect at the next step and is written down.
# - Best and last model are on the disk, with names for the labels.
#
# **What next:** lesson 01 says what happened here and proves it; lesson 30 brings your own texts; lesson 56 takes the panel apart. To try a real model on a GPU: `Recipe(data="your.csv", model="google-bert/bert-base-uncased", lr=2e-5)`. **Sources:** Devlin et al. (2019), arXiv:1810.04805; the documentation of `transformers.pipeline`.

# %%
f"quickstart: accuracy {before:.2f} before, {after:.2f} after fine-tuning; the model is in {near(run.folder / 'model')}"
