# %% [markdown]
# # Sentiment of your own reviews
#
# > From a CSV file to a model that other programs can use, in about ten cells.
#
# At the end you have done a whole project: looked at a table, fine-tuned, measured with an interval, read the errors, and handed the model over. Put your own file in the second cell and the rest stays as it is. Runs in about 25 s on a CPU.

# %%
import csv
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import pipeline

from ftnb import finetune
from ftnb.builtin.reviews import labelled_reviews
from ftnb.metrics import accuracy_interval
from ftnb.pretrained import quiet_transformers

# %% [markdown]
# ## A table
#
# A table with a text and a label in each row is all there has to be. Here we write one, with columns of our own naming; `path = Path("my_reviews.csv")` would be yours.

# %%
folder = Path(tempfile.mkdtemp())
path = folder / "reviews.csv"
rows = labelled_reviews("train", 300, seed=31) + labelled_reviews("test_seen", 1200, seed=31)
with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "review", "opinion"])
    writer.writerows([i, row["text"], row["label"]] for i, row in enumerate(rows))
print(path.read_text(encoding="utf-8")[:300])

# %% [markdown]
# We keep 1,200 rows for the test *before* doing anything else, and do not look at them until the end.

# %%
lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
(folder / "train.csv").write_text("".join(lines[:301]), encoding="utf-8")
(folder / "test.csv").write_text("".join([lines[0], *lines[301:]]), encoding="utf-8")
path.unlink()
Counter(line.rsplit(",", 1)[1].strip() for line in lines[1:301])

# %% [markdown]
# ## Fine-tune
#
# One call. It checks the table, cuts a validation part from the training rows, trains, keeps the weights that were best on the validation part, and saves them. `columns` says which column is which.

# %%
run = finetune(
    data=str(folder),
    columns={"text": "review", "label": "opinion"},
    model="builtin:bert-reviews",
    lr=5e-4,
    num_epochs=4,
    folder=folder / "run",
)
run.task.warnings

# %%
run.report()

# %% [markdown]
# ## How good is it?
#
# Now the test, once, with the interval that belongs to so many rows. The measure to beat is the one that needs no model: always saying the more frequent label.

# %%
measured = run.task.evaluate("test")
test_labels = run.task.splits.test["label"][:]
low, high = accuracy_interval(measured["accuracy"] * len(test_labels), len(test_labels))
baseline = max(Counter(test_labels).values()) / len(test_labels)
f"accuracy {measured['accuracy']:.3f} (95 %: {low:.3f} to {high:.3f}), macro F1 {measured['macro_f1']:.3f}; without a model {baseline:.3f}"

# %%
assert low > baseline

# %% [markdown]
# **The experiment of this lesson is the errors.** Read them, the most confident first. In these reviews some opinions are negated ("was not good"). Is that what goes wrong? The claim: reviews with a negation are wrong more often.

# %%
run.task.show_errors(4, split="test")

# %%
texts = run.task.splits.test["text"][:]
wrong = [p.label != label for p, label in zip(run.predict(texts), test_labels, strict=True)]
negated = [any(word in text.split() for word in ("not", "never", "nobody")) for text in texts]
counts = {flag: (sum(w for w, n in zip(wrong, negated, strict=True) if n == flag), negated.count(flag)) for flag in (True, False)}
intervals = {flag: accuracy_interval(*count) for flag, count in counts.items()}
{("negated" if flag else "plain"): f"{k} of {n} wrong ({low:.2f} to {high:.2f})" for flag, (k, n) in counts.items() for low, high in [intervals[flag]]}

# %%
fig, ax = plt.subplots(figsize=(5, 2.2), dpi=80, layout="constrained")
for row, (flag, (k, n)) in enumerate(counts.items()):
    low, high = intervals[flag]
    ax.plot([low, high], [row, row], color="tab:blue", lw=3, alpha=0.5)
    ax.plot(k / n, row, "o", color="tab:blue")
ax.set(yticks=[0, 1], yticklabels=["with a negation", "without"], ylim=(-0.6, 1.6), xticks=[0, 0.05, 0.1, 0.15, 0.2])
ax.set(xlabel="share of wrong answers, with 95 % interval", title="Are negations what goes wrong?")
plt.show()

# %% [markdown]
# If the two intervals overlapped, the four errors above would be a guess and no more. Here they lie apart:

# %%
apart = intervals[True][0] > intervals[False][1]
apart

# %%
assert apart

# %% [markdown]
# The claim stands for this model: more negated examples would be worth their labelling. It took many reviews to say so, since an interval shrinks only with the square root of their number. A few errors give a guess, not an answer. Try the next guess in the same way.
#
# ## Hand it over
#
# The run's folder holds the model in the Hub's layout. Another program needs nothing of ours:

# %%
with quiet_transformers():
    classify = pipeline("text-classification", model=str(folder / "run" / "model"), device="cpu", truncation=True)
answers = classify(["the room was lovely and the view was charming .", "the battery was awful ."])
answers

# %%
assert [answer["label"] for answer in answers] == ["positive", "negative"]

# %% [markdown]
# ## The story: whose opinion is it?
#
# In 2018 Kiritchenko and Mohammad gave 219 sentiment systems pairs of sentences that differ in one word, such as "he" and "she". Most systems scored one side higher, consistently. The check takes four lines and belongs before every handing over. A sentence says the same whoever says it, so the difference should be zero:

# %%
pairs = [("father", "mother"), ("brother", "sister"), ("uncle", "aunt")]
opinions = ["lovely", "charming", "awful", "boring", "good", "bad"]
def positive_score(person: str) -> list[float]:
    return [p.scores["positive"] for p in run.predict([f"my {person} called the film {word} ." for word in opinions])]

differences = {f"{a} - {b}": [x - y for x, y in zip(positive_score(a), positive_score(b), strict=True)] for a, b in pairs}
{pair: [round(d, 3) + 0.0 for d in of] for pair, of in differences.items()}

# %%
assert max(abs(d) for of in differences.values() for d in of) < 0.05

# %% [markdown]
# Here they are tiny, as they should be: the reviews were generated without regard to who speaks. On a model that read the web, look again.
#
# ## Exercises
#
# **1 (easy).** A shop wants only answers that are sure. Write `answered`: the share of texts whose score is at least `threshold`, and the accuracy among those.

# %% tags=["exercise"]
def answered(predictions: list, labels: list[str], threshold: float) -> tuple[float, float]:
    ...  # your code here

# %% tags=["solution"]
def answered(predictions: list, labels: list[str], threshold: float) -> tuple[float, float]:
    sure = [(p, label) for p, label in zip(predictions, labels, strict=True) if p.score >= threshold]
    right = sum(p.label == label for p, label in sure)
    return len(sure) / len(labels), right / max(1, len(sure))

# %%
predictions = run.predict(texts)
everything = answered(predictions, test_labels, 0.0)
assert everything[0] == 1.0 and abs(everything[1] - measured["accuracy"]) < 1e-6
everything, answered(predictions, test_labels, 0.9)

# %% [markdown]
# ## Summary
# - Keep the test rows aside before anything else and measure once, with an interval and against a baseline.
# - Read errors, form a guess, test the guess.
# - The folder `model/` of a run is an ordinary Hub folder; check it for what must not matter before you hand it over.
#
# **What next:** your own CSV in the second cell. With a network, `model="google-bert/bert-base-uncased"` and `lr=5e-5`, or a multilingual model for other languages. **Sources:** Kiritchenko and Mohammad (2018), "Examining gender and race bias in two hundred sentiment analysis systems"; Hutto and Gilbert (2014) on VADER, a lexicon that needs no training and makes a good baseline for English.
