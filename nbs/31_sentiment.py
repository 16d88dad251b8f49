# %% [markdown]
# # Sentiment of your own reviews
#
# > From your CSV to a deployed pipeline in ten cells.
#
# At the end you have done a whole project: looked at a table, fine-tuned, measured with an interval, read the errors, and handed the model over to a program that answers requests. For your own file, change the path in the first cell, the size of the test in the second and the columns' names in the third. Runs in about 20 s on a CPU.

# %%
import csv
import http.client
import json
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import pipeline

from ftnb import TextClassification, finetune
from ftnb.builtin.reviews import labelled_reviews
from ftnb.metrics import accuracy_interval
from ftnb.pretrained import quiet_transformers

# %% [markdown]
# ## From your CSV to a deployed pipeline in ten cells
#
# **1. A table.** A text and a label in each row is all there has to be. Here we write one, with columns of our own naming; `path = Path("my_reviews.csv")` would be yours.

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
# **2. A test, kept aside.** We keep 1,200 rows for the test *before* doing anything else, and do not look at them until the end. They are drawn at random: many files are sorted, by label or by date.

# %%
with path.open(newline="", encoding="utf-8") as file:
    header, *table = csv.reader(file)
random.Random(31).shuffle(table)
parts = folder / "parts"
parts.mkdir()
for name, part in (("test", table[:1200]), ("train", table[1200:])):
    with (parts / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *part])
Counter(row[-1] for row in table[1200:])

# %% [markdown]
# **3. A look.** Loading runs all checks: empty rows, labels spelled two ways, texts that are in training and test. `columns` says which column is which. What the checks found, and what the model will see:

# %%
columns = {"text": "review", "label": "opinion"}
task = TextClassification.prepare(str(parts), "builtin:bert-reviews", columns=columns)
print(*task.warnings, sep="\n")
task.show_batch(3)

# %% [markdown]
# **4. Fine-tune.** One call. It loads and checks again, cuts a validation part from the training rows, trains, keeps the weights that were best on the validation part, and saves them.

# %%
run = finetune(
    data=str(parts),
    columns=columns,
    model="builtin:bert-reviews",
    lr=5e-4,
    num_epochs=4,
    folder=folder / "run",
)
run.report()

# %% [markdown]
# **5. How good is it?** Now the test, once, with the interval that belongs to so many rows. The measure to beat is the one that needs no model: always saying the more frequent label.

# %%
measured = run.task.evaluate("test")
test_labels = run.task.splits.test["label"][:]
low, high = accuracy_interval(measured["accuracy"] * len(test_labels), len(test_labels))
baseline = max(Counter(test_labels).values()) / len(test_labels)
f"accuracy {measured['accuracy']:.3f} (95 %: {low:.3f} to {high:.3f}), macro F1 {measured['macro_f1']:.3f}; without a model {baseline:.3f}"

# %%
assert low > baseline

# %% [markdown]
# **6. The errors**, the most confident first:

# %%
run.task.show_errors(4, split="test")

# %% [markdown]
# **7. What was saved.** The run's folder holds the model in the Hub's layout: weights, configuration, tokenizer. This is what you copy, or upload.

# %%
model_folder = folder / "run" / "model"
{file.name: f"{file.stat().st_size:,} bytes" for file in sorted(model_folder.iterdir())}

# %% [markdown]
# **8. Another program loads it.** It needs transformers, and nothing of ours:

# %%
with quiet_transformers():
    classify = pipeline("text-classification", model=str(model_folder), device="cpu", truncation=True)
answers = classify(["the room was lovely and the view was charming .", "the battery was awful ."])
answers

# %%
assert [answer["label"] for answer in answers] == ["positive", "negative"]

# %% [markdown]
# **9. Is it the same model?** Measure what you deploy, not what you trained: a tokenizer that was forgotten or another length limit would show here.

# %%
texts = run.task.splits.test["text"][:]
deployed = [answer["label"] for answer in classify(texts[:300], batch_size=32)]
ours = [prediction.label for prediction in run.predict(texts[:300])]
sum(a == label for a, label in zip(deployed, test_labels, strict=False)) / 300, deployed == ours

# %%
assert deployed == ours

# %% [markdown]
# **10. A function that serves it.** Bytes in, bytes out, and an answer to nonsense too. Whatever web framework you use calls this:

# %%
def serve(body: bytes) -> tuple[int, bytes]:
    """Answer a request such as {"texts": ["…"]} with a status and JSON."""
    try:
        asked = json.loads(body)["texts"]
        if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked) or len(asked) > 100:
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return 400, b'{"error": "expected {\\"texts\\": [up to 100 strings]}"}'
    return 200, json.dumps(classify(asked)).encode()

serve(b'{"texts": ["a boring film ."]}'), serve(b'{"texts": "a boring film ."}')

# %% [markdown]
# To see it answer over HTTP, Python's own server is enough; here it takes one request and is gone. For many users put a real one in front.

# %%
class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        status, answer = serve(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass

with HTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.handle_request).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("POST", "/", json.dumps({"texts": ["everyone loved this hotel ."]}))
    response = json.loads(connection.getresponse().read())
    connection.close()
response

# %%
assert response[0]["label"] == "positive"

# %% [markdown]
# ## The experiment: are negations what goes wrong?
#
# In these reviews some opinions are negated ("was not good"), and among the errors above there were some. The claim: the model is wrong more often on reviews with a negation.

# %%
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
# The claim stands for this model: more negated examples may be worth their labelling. It took many reviews to say so, since an interval shrinks only with the square root of their number. A few errors give a guess, not an answer. Try the next guess in the same way.
#
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
# **2 (medium).** For the next guess: write `error_rates`, which sorts texts by a property (any function of a text) and gives for each of its values the share of wrong answers.

# %% tags=["exercise"]
def error_rates(texts: list[str], wrong: list[bool], of: Callable[[str], object]) -> dict[object, float]:
    ...  # your code here

# %% tags=["solution"]
def error_rates(texts: list[str], wrong: list[bool], of: Callable[[str], object]) -> dict[object, float]:
    values = [of(text) for text in texts]
    counts = Counter(values)
    errors = Counter(value for value, is_wrong in zip(values, wrong, strict=True) if is_wrong)
    return {value: errors[value] / counts[value] for value in counts}

# %%
rates = error_rates(texts, wrong, lambda text: "not" in text.split())
assert abs(sum(rates[flag] * sum(("not" in text.split()) == flag for text in texts) for flag in rates) - sum(wrong)) < 1e-6
rates, dict(sorted(error_rates(texts, wrong, lambda text: min(len(text.split()) // 10 * 10, 40)).items()))  # by length, in tens of words

# %% [markdown]
# ## Summary
# - Keep the test rows aside before anything else and measure once, with an interval and against a baseline.
# - Read errors, form a guess, test the guess.
# - Measure what you deploy; answer nonsense with an error, not with a label.
# - The folder `model/` of a run is an ordinary Hub folder; check it for what must not matter before you hand it over.
#
# **What next:** your own CSV. With a network, `model="google-bert/bert-base-uncased"` and `lr=5e-5`, or a multilingual model for other languages. **Sources:** Kiritchenko and Mohammad (2018), "Examining gender and race bias in two hundred sentiment analysis systems"; Hutto and Gilbert (2014) on VADER, a lexicon that needs no training and makes a good baseline for English.
