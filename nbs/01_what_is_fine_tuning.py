# %% [markdown]
# # What is fine-tuning?
#
# > Start from what a model already knows, and a handful of labels is enough.
#
# At the end you can say what a pretrained model is, write the few lines that fine-tune one, and show with numbers what it gains over the same network started from random weights, and what it cannot gain. Runs in about 40 s on a CPU.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import ftnb
from ftnb.builtin.reviews import labelled_reviews, polar_words

# %%
logging.set_verbosity_error()
logging.disable_progress_bar()

# %% [markdown]
# ## A model that has read, but was never told anything
#
# A *pretrained* model has been trained on plain text, without labels: words were hidden, and it learned to name them. The one we use here comes with the package (1.6 MB, a BERT of two layers). It has read 40,000 reviews of films, hotels, phones and so on. Nobody told it which of them praise and which complain.
#
# Ask it for a hidden word:

# %%
folder = Path(ftnb.__file__).parent / "weights" / "bert-reviews"
tokenizer = AutoTokenizer.from_pretrained(folder)
reader = AutoModelForMaskedLM.from_pretrained(folder)

def likely_words(text: str, k: int = 5) -> list[str]:
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = reader(**inputs).logits[0]  # (tokens, words)
    position = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    return tokenizer.convert_ids_to_tokens(logits[position].topk(k).indices)

# %%
likely_words("we loved this hotel . the room was lovely and [MASK] .")

# %%
likely_words("we hated this hotel . the room was ugly and [MASK] .")

# %% [markdown]
# It goes on as the review began. To name a hidden word, it had to find out which words go together. That knowledge is in its weights, and it is what we want to use.
#
# ## The job: labels that say less than the test asks
#
# Now somebody gives us a few labelled reviews. Each is labelled `positive` or `negative`, by the side of most of its opinions: some opinions go against the rest, and some are negated ("was not good").

# %%
train_reviews, test_reviews = labelled_reviews("train", 128, seed=1), labelled_reviews("test", seed=1)
train_reviews[:2]

# %%
test_reviews[:2]

# %% [markdown]
# There is a catch, and it is on purpose. The polar words (*good*, *dull*, *loved* …) come in two halves. The labelled training reviews use one half only, the test reviews the other half only. The text the model was pretrained on used both.

# %%
def words_in(reviews: list[dict[str, str]]) -> set[str]:
    return {word for review in reviews for word in review["text"].split()}

polar = set(polar_words("positive")) | set(polar_words("negative"))
in_training, in_test = words_in(train_reviews) & polar, words_in(test_reviews) & polar
len(in_training), len(in_test), in_training & in_test

# %%
assert not in_training & in_test

# %% [markdown]
# So labels alone cannot solve the test: a network that starts from nothing meets only strange words there, and can do no better than a coin. Whatever it scores above one half, it owes to pretraining. In real data the two kinds of words are mixed, and nobody can tell so cleanly where a success came from.
#
# ## Fine-tuning, in an equation and in code
#
# Put a new *head* (one linear layer) on the pretrained *backbone*: together they are a function $f(x; \theta)$ from a review $x$ to two scores. Fine-tuning looks for the weights that make the labelled examples likely,
#
# $$\theta^* = \arg\min_\theta \; \frac{1}{n} \sum_{i=1}^{n} L\big(f(x_i; \theta),\, y_i\big),$$
#
# with $L$ the cross-entropy. This is ordinary training. What makes it *fine-tuning* is where the descent starts: at the pretrained weights, $\theta_0 = \theta_\text{pretrained}$, instead of at random ones. Many $\theta$ fit a few examples equally well; gradient descent finds one near its start.

# %%
def new_classifier(pretrained: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # the head is random in both cases
    if pretrained:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=2))

def tensors(reviews: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    inputs = tokenizer([review["text"] for review in reviews], padding=True, return_tensors="pt")
    labels = torch.tensor([int(review["label"] == "positive") for review in reviews])
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}

# %% [markdown]
# The loop takes a random batch, computes the loss, and steps against its gradient. It is deliberately the simplest one that works; the next lesson looks at what it leaves open.

# %%
def train(model: nn.Module, reviews: list[dict[str, str]], num_steps: int = 40, lr: float = 5e-4) -> None:
    data = tensors(reviews)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)  # fused: the same, faster
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / num_steps)  # long steps first, short ones at the end
        batch = torch.randint(len(reviews), (8,))
        longest = data["attention_mask"][batch].sum(1).max()  # no need to compute what is padding for all 8
        inputs = {name: data[name][batch, :longest] for name in ("input_ids", "attention_mask")}
        loss = model(**inputs, labels=data["labels"][batch]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

def accuracy(model: nn.Module, reviews: list[dict[str, str]]) -> float:
    data = tensors(reviews)
    model.eval()
    with torch.no_grad():
        predicted = model(**data).logits.argmax(-1)
    return (predicted == data["labels"]).float().mean().item()

# %% [markdown]
# Once, from the pretrained weights, with 128 labelled reviews. The test holds polar words it never saw a label for:

# %%
model = new_classifier(pretrained=True, seed=1)
before = accuracy(model, test_reviews)
train(model, train_reviews)
before, accuracy(model, test_reviews)

# %% [markdown]
# ## The experiment: how many labels does a start save?
#
# **Claim.** From random weights, no number of labelled reviews helps on words that they do not contain. From the pretrained weights, few labels already do. We train both on 16, 64 and 256 labelled reviews, each with three seeds: other reviews, other heads, other batches. The claim would be refuted if scratch left the coin's one half, or if fine-tuning did not.
#
# We also look at *validation* reviews, whose words are those of training. That is what most people measure, and it tells another story.

# %%
sizes, seeds = (16, 64, 256), range(1001, 1004)
scores: dict[tuple[bool, str, int], list[float]] = {}  # (pretrained?, words, size) → one accuracy for each seed
for seed in seeds:
    tests = {"seen words": labelled_reviews("valid", 200, seed), "unseen words": labelled_reviews("test", 200, seed)}
    for size in sizes:
        reviews = labelled_reviews("train", size, seed)
        for pretrained in (False, True):
            model = new_classifier(pretrained, seed)
            train(model, reviews)
            for words, test in tests.items():
                scores.setdefault((pretrained, words, size), []).append(accuracy(model, test))

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80, sharey=True, layout="constrained")
for ax, words in zip(axes, ("seen words", "unseen words"), strict=True):
    for pretrained, label, colour in ((True, "fine-tuned", "tab:blue"), (False, "from scratch", "tab:orange")):
        runs = torch.tensor([scores[pretrained, words, size] for size in sizes])  # (sizes, seeds)
        ax.plot(sizes, runs.mean(1), color=colour, label=label)
        ax.plot(sizes, runs, "o", color=colour, markersize=4, alpha=0.5)
    ax.axhline(0.5, color="gray", linestyle=":", linewidth=1)
    ax.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="labelled reviews", title=f"Test on {words}", ylim=(0.35, 1))
    ax.minorticks_off()
axes[0].set_ylabel("accuracy")
axes[1].legend(frameon=False, loc="center right")
plt.show()

# %%
mean = {key: torch.tensor(values).mean().item() for key, values in scores.items()}
{("fine-tuned" if key[0] else "scratch", *key[1:]): round(value, 2) for key, value in mean.items()}

# %%
assert all(mean[True, "unseen words", size] > mean[False, "unseen words", size] + 0.1 for size in sizes[1:])
assert all(abs(mean[False, "unseen words", size] - 0.5) < 0.1 for size in sizes)

# %% [markdown]
# Every point is one run; the lines join the means. On the right, more labels do nothing for the network from scratch: no label speaks of those words. On the left the labels do speak of the words, and a run from scratch may begin to learn them; forty steps are few for that, and others still toss a coin. Somebody who only looks at reviews like those of training would call the two methods closer than they are.
#
# ## Where the knowledge sits
#
# Look into the pretrained weights, before any fine-tuning. Take the vectors of the *seen* polar words only, and draw the line from the middle of the negative ones to the middle of the positive ones. Then see where the *unseen* words fall on it.

# %%
vectors = reader.get_input_embeddings().weight.detach()  # (words, features)

def vectors_of(polarity: str, part: str) -> torch.Tensor:
    return vectors[tokenizer.convert_tokens_to_ids(polar_words(polarity, part))]

negative, positive = (vectors_of(polarity, "seen").mean(0) for polarity in ("negative", "positive"))
direction, middle = positive - negative, (positive + negative) / 2

def side(words: torch.Tensor) -> torch.Tensor:
    return (words - middle) @ direction / direction.norm() ** 2  # -1/2: as the negative words; +1/2: as the positive ones

# %%
fig, ax = plt.subplots(figsize=(7, 2.6), dpi=80, layout="constrained")
for row, (polarity, part) in enumerate((p, q) for q in ("unseen", "seen") for p in ("negative", "positive")):
    values = side(vectors_of(polarity, part))
    ax.plot(values, torch.full_like(values, row), "o", alpha=0.5, color="tab:red" if polarity == "negative" else "tab:green")
ax.set(yticks=range(4), yticklabels=["negative, unseen", "positive, unseen", "negative, seen", "positive, seen"])
ax.set(xlabel="place on the line from negative to positive", title="Pretrained word vectors, no label used for unseen words")
ax.axvline(0, color="gray", linestyle=":", linewidth=1)
plt.show()

# %%
right = torch.cat([side(vectors_of("positive", "unseen")) > 0, side(vectors_of("negative", "unseen")) < 0])
right.float().mean().item()

# %%
assert right.float().mean() > 0.9

# %% [markdown]
# The unseen words are on the right side before a single label. Pretraining found the two sides; fine-tuning only has to learn what they are *called*, and that takes few examples.
#
# ## The story: right for the wrong reason
#
# In 2019 a fine-tuned BERT scored 77 % on a test of understanding arguments, three points below untrained people. Niven and Kao found out why: the word *not* gave many answers away. They added to each question its mirror image, with the clue on the other side, and every model fell to a coin's one half. The start was good, the training was right, and the model had learned the easiest thing that fitted the labels.
#
# We can do the same to ours. We end every positive training review with a sentence that says nothing, and every negative one with another. Then we test with the two swapped.

# %%
clues = {"positive": "we sat in the third row .", "negative": "there is an index at the back ."}
swapped = {"positive": clues["negative"], "negative": clues["positive"]}

def with_clue(reviews: list[dict[str, str]], clue: dict[str, str]) -> list[dict[str, str]]:
    return [{"text": f"{review['text']} {clue[review['label']]}", "label": review["label"]} for review in reviews]

# %%
model = new_classifier(pretrained=True, seed=1)
train(model, with_clue(train_reviews, clues))
same_clue, swapped_clue = (accuracy(model, with_clue(test_reviews, clue)) for clue in (clues, swapped))
same_clue, swapped_clue

# %%
assert same_clue > swapped_clue + 0.4

# %% [markdown]
# Near perfect on reviews with the same clue, and worse than a coin once it is swapped, though the reviews and the model are the same. A pretrained start does not protect against it; only a test that differs from training shows it.
#
# ## Exercises
#
# **1 (easy).** How far does fine-tuning move the weights? Write `relative_change`: the length of the difference between two weight tensors, divided by the length of the first.

# %% tags=["exercise"]
def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    ...  # your code here

# %% tags=["solution"]
def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    return ((after - before).norm() / before.norm()).item()

# %%
assert abs(relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) - 0.1) < 1e-6

# %% [markdown]
# The word vectors of the model above, which has just learned a shortcut, are still close to where they started:

# %%
relative_change(vectors, model.get_input_embeddings().weight.detach())

# %% [markdown]
# **2 (medium).** Is it the word vectors alone that transfer? Write `only_word_vectors`: a classifier with random weights everywhere but in the word embeddings, which are copied from the pretrained model. The check trains it twice over: does it get where the fully pretrained one was at once?

# %% tags=["exercise"]
def only_word_vectors(seed: int) -> nn.Module:
    ...  # your code here

# %% tags=["solution"]
def only_word_vectors(seed: int) -> nn.Module:
    model = new_classifier(pretrained=False, seed=seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(vectors)
    return model

# %%
half_pretrained = only_word_vectors(seed=1)
assert torch.equal(half_pretrained.get_input_embeddings().weight, vectors)
half_scores = []
for _ in range(2):
    train(half_pretrained, train_reviews)
    half_scores.append(accuracy(half_pretrained, test_reviews))
half_scores

# %% [markdown]
# ## Summary
# - A pretrained model has learned from unlabelled text which words go together; that knowledge sits in its weights.
# - Fine-tuning is ordinary training on labels, started there: $\theta^* = \arg\min_\theta L(f(x;\theta), y)$ from $\theta_0 = \theta_\text{pretrained}$.
# - From scratch, labels teach only what they show. From a pretrained start, what they show carries over to what goes with it.
# - A good score on data like the training data proves little; keep a test that differs.
#
# **What next:** lesson 02 writes the usual fine-tuning loop around `BertModel` and measures what it leaves open; lesson 90 shows how this checkpoint was made. With a network, put `google-bert/bert-base-uncased` in place of `folder` and `lr=2e-5`.
#
# **Sources:** Howard and Ruder (2018), "Universal language model fine-tuning for text classification", arXiv:1801.06146; Devlin et al. (2019), "BERT", arXiv:1810.04805; Niven and Kao (2019), "Probing neural network comprehension of natural language arguments", arXiv:1907.07355.
