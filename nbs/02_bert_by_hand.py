# %% [markdown]
# # BERT by hand
#
# > The loop everybody writes first: a pretrained BERT, a linear head, Adam, cross-entropy. Then what it leaves open, measured.
#
# At the end you can write the usual fine-tuning loop from memory, and name six things it does not say, with the size of each on data you can check. Runs in about 35 s on a CPU.

# %%
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from ftnb.builtin.reviews import labelled_reviews

logging.set_verbosity_error()
logging.disable_progress_bar()

# %% [markdown]
# ## A model of two parts
#
# A pretrained BERT turns a text into vectors: one for each token, and a *pooled* one for the whole text. We add one new layer, from the pooled vector $h \in \mathbb{R}^d$ to two scores, $z = W h + b$. The first part has read a lot of text, the second knows nothing yet.
#
# Our BERT is small, pretrained on generated reviews, and comes with the package (lesson 90 makes it). For a real one, change one line: `MODEL = "google-bert/bert-base-uncased"`.

# %%
MODEL = str(files("ftnb") / "weights" / "bert-reviews")
tokenizer = AutoTokenizer.from_pretrained(MODEL)

# %%
class BertClassifier(nn.Module):
    def __init__(self, num_labels: int = 2) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(MODEL)
        self.linear = nn.Linear(self.bert.config.hidden_size, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output  # (batch, hidden)
        return self.linear(pooled)  # (batch, labels)

# %%
model = BertClassifier()
inputs = tokenizer(["a wonderful film .", "a dreadful film ."], padding=True, return_tensors="pt")
model(inputs["input_ids"], inputs["attention_mask"]).softmax(-1)

# %% [markdown]
# ## The data
#
# Reviews with a label. The words that carry the opinion in the *test* reviews never occur in the labelled training reviews; only the pretraining text, which has no labels, holds them. So whatever is right on the test set, beyond chance, was carried over from pretraining.

# %%
train, test = labelled_reviews("train"), labelled_reviews("test", 200)
valid = labelled_reviews("valid")
len(train), len(valid), len(test), train[0]

# %%
def batches(reviews: list[dict], size: int = 8, shuffle: bool = True, max_length: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    order = torch.randperm(len(reviews)).tolist() if shuffle else range(len(reviews))
    chosen = [reviews[i] for i in order]
    padding = {"padding": "max_length", "max_length": max_length} if max_length else {"padding": True}
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        x = tokenizer([r["text"] for r in part], truncation=True, return_tensors="pt", **padding)
        yield x["input_ids"], x["attention_mask"], torch.tensor([int(r["label"] == "positive") for r in part])

# %% [markdown]
# ## The loop
#
# Fine-tuning looks for $\theta^* = \arg\min_\theta \sum_i L(f(x_i;\theta), y_i)$, where $L$ is the cross-entropy, and starts the search at the pretrained weights instead of at random ones. The usual loop takes Adam with a rate of $10^{-5}$ and ten epochs. This is all of it:

# %%
def train_as_usual(model: nn.Module, num_epochs: int = 10, lr: float = 1e-5) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(num_epochs):
        for input_ids, attention_mask, labels in batches(train):
            loss = F.cross_entropy(model(input_ids, attention_mask), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses

# %%
def accuracy(model: nn.Module, reviews: list[dict]) -> float:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        right = sum((model(x, mask).argmax(-1) == y).sum().item() for x, mask, y in batches(reviews, 50, shuffle=False))
    for module, mode in modes.items():  # leave the model as it was
        module.training = mode
    return right / len(reviews)

# %%
torch.manual_seed(0)
model = BertClassifier()
before = accuracy(model, test)
losses = train_as_usual(model)
before, accuracy(model, test), statistics.mean(losses[:16]), statistics.mean(losses[-16:])

# %% [markdown]
# It ran, and something was learned. How good is that? Could it be better, and was it luck? The loop does not say. It leaves open at least six things that decide the result, and we will now measure them one by one.
#
# Each is tried over three seeds, from the same baseline (two epochs at a rate of $10^{-3}$), with one thing changed.

# %%
@dataclass(frozen=True)
class Choices:
    """What the usual loop leaves open."""

    lr: float = 1e-3
    head_lr: float | None = None  # None: the same rate for old and new layers
    train_mode: bool = True
    schedule: bool = False
    num_epochs: int = 2

# %%
def fine_tune(seed: int, choices: Choices, watch: Callable[[nn.Module], float] | None = None) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(seed)
    model, watched = BertClassifier(), []
    groups = [{"params": model.bert.parameters(), "lr": choices.lr}, {"params": model.linear.parameters(), "lr": choices.head_lr or choices.lr}]
    optimizer = torch.optim.Adam(groups, fused=True)
    num_steps = choices.num_epochs * -(-len(train) // 8)
    rise = lambda step: min((step + 1) / (0.1 * num_steps), (num_steps - step) / (0.9 * num_steps)) if choices.schedule else 1.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rise)
    if choices.train_mode:
        model.train()
    for _ in range(choices.num_epochs):
        for input_ids, attention_mask, labels in batches(train):
            F.cross_entropy(model(input_ids, attention_mask), labels).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if watch:
            watched.append(watch(model))
    return model, watched

# %%
seeds = range(3)

def scores(choices: Choices) -> list[float]:
    return [accuracy(fine_tune(seed, choices)[0], test) for seed in seeds]

# %% [markdown]
# ## 1. The rate, and one rate for old and new layers
#
# The old layers should move little, the new one has everything to learn. One rate for both is a compromise.

# %%
results = {f"rate {lr:.0e}": scores(Choices(lr=lr)) for lr in (1e-5, 1e-4, 1e-3)}
results["rate 1e-4, head 1e-2"] = scores(Choices(lr=1e-4, head_lr=1e-2))
{name: round(statistics.mean(values), 3) for name, values in results.items()}

# %% [markdown]
# ## 2. The mode after `from_pretrained`
#
# `from_pretrained` returns the model in evaluation mode: dropout is off. A class of your own that *contains* it starts in training mode, but the BERT inside stays where it was. The usual loop never calls `model.train()`.

# %%
model = BertClassifier()
model.training, model.bert.training, model.bert.embeddings.dropout.training

# %%
assert model.training and not model.bert.training

# %%
results["without model.train()"] = scores(Choices(train_mode=False))
statistics.mean(results["rate 1e-03"]), statistics.mean(results["without model.train()"])

# %% [markdown]
# ## 3. No schedule
#
# At the first steps Adam's estimate of the gradient's size rests on few examples, and the new head sends random gradients into the old layers. A warm-up keeps these steps small; a decay lets the end settle.

# %%
results["warm-up and decay"] = scores(Choices(schedule=True))
statistics.stdev(results["rate 1e-03"]), statistics.stdev(results["warm-up and decay"])

# %% [markdown]
# ## 4. No validation
#
# Ten epochs: why not three, or thirty? Without a validation set nobody knows. Here is what it would have seen. Our validation reviews use the *training* words, as a split of your own labelled data would; the test reviews do not.

# %%
_, watched = fine_tune(0, Choices(num_epochs=5), watch=lambda model: (accuracy(model, valid), accuracy(model, test)))
by_valid = max(range(5), key=lambda i: watched[i][0])
f"best validation after epoch {by_valid + 1}: test {watched[by_valid][1]:.3f}; after the last: test {watched[-1][1]:.3f}"

# %% [markdown]
# ## 5. Padding
#
# The loop's data loader was left open. The most common way pads every text to a fixed length; a transformer then computes on padding. The time below is that of eight batches, in alternating pairs.

# %%
def batch_seconds(max_length: int | None) -> float:
    begin = time.perf_counter()
    for input_ids, attention_mask, labels in islice(batches(train, max_length=max_length), 8):
        F.cross_entropy(model(input_ids, attention_mask), labels).backward()
    return time.perf_counter() - begin

# %%
ratios = sorted(batch_seconds(128) / batch_seconds(None) for _ in range(3))
real = sum(mask.sum().item() for _, mask, _ in batches(train)) / sum(mask.numel() for _, mask, _ in batches(train, max_length=128))
f"padded to 128: {real:.0%} real tokens, {ratios[1]:.1f} times the time (median of 3 pairs, {ratios[0]:.1f} to {ratios[-1]:.1f})"

# %%
assert ratios[1] > 1

# %% [markdown]
# ## 6. One seed
#
# The same recipe, other dice: order of the data, dropout, the new head. Whoever reports one run reports the dice with it.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=80, width_ratios=(1.5, 1))
names = list(results)
for i, name in enumerate(names):
    left.plot(results[name], [i] * len(seeds), "o", color="C0", alpha=0.6)
    left.plot(statistics.mean(results[name]), i, "|", color="k", ms=16)
left.axvline(0.5, color="0.6", ls=":", lw=1)
left.set(yticks=range(len(names)), yticklabels=names, xlabel="test accuracy (unseen words)", title="Three seeds each; bar: mean; dotted: chance")
left.set_ylim(len(names) - 0.5, -0.5)
right.plot(range(1, 6), [v for v, _ in watched], label="validation")
right.plot(range(1, 6), [t for _, t in watched], label="test")
right.set(xticks=range(1, 6), xlabel="epoch", ylabel="accuracy", title="What a validation set sees")
right.legend(frameon=False)
fig.tight_layout()
plt.show()

# %%
spread = {name: max(values) - min(values) for name, values in results.items()}
{name: round(value, 3) for name, value in spread.items()}

# %% [markdown]
# ## The experiment: what matters most
#
# **Claim.** Of the things left open, the learning rate matters more than the seed: from $10^{-5}$ to $10^{-4}$, the mean moves by more than twice the standard deviation between seeds. It would be refuted if it moved by less.

# %%
gain = statistics.mean(results["rate 1e-04"]) - statistics.mean(results["rate 1e-05"])
round(gain, 3), round(statistics.stdev(results["rate 1e-04"]), 3), round(statistics.stdev(results["rate 1e-05"]), 3)

# %%
assert gain > 2 * statistics.stdev(results["rate 1e-04"])

# %% [markdown]
# The third number belongs to the claim, too: at the lower rate, two epochs are not enough, and how far a run gets is a matter of its dice. *That* is what an unlucky seed mostly is: a run that was not finished.
#
# The other differences in the figure are smaller, and with three seeds some of them are not told from chance. That is a result too: a difference that three seeds cannot show should not be believed from one.
#
# ## The story: the correction that was left out
#
# Adam keeps running means of the gradient and of its square. Both start at zero and are too small at first, so the algorithm divides them by $1-\beta_1^t$ and $1-\beta_2^t$. The code that BERT was published with leaves this out. It went unnoticed for two years while people wrote about how unstable the fine-tuning of BERT was: some seeds simply failed. Zhang et al. (2021) and Mosbach et al. (2021) found the omission to be one of the causes; with the correction, the standard deviation between seeds fell from 7.2 to 2.4 points on RTE (together with a warm-up and longer training; Mosbach et al.). How large is a first step without it, in units of the rate?

# %%
def first_step(corrected: bool, beta1: float = 0.9, beta2: float = 0.999) -> float:
    mean, square = (1 - beta1) * 1.0, (1 - beta2) * 1.0  # after one gradient of 1
    if corrected:
        mean, square = mean / (1 - beta1), square / (1 - beta2)
    return mean / square**0.5

first_step(corrected=True), first_step(corrected=False)

# %%
assert first_step(corrected=False) > 3 * first_step(corrected=True)

# %% [markdown]
# Three times too far, at the very moment when the new head sends its random gradients.
#
# ## Exercises
#
# **1 (easy).** Write `parameters_in`: how many parameters are in the pretrained part, and how many are in the new head?

# %% tags=["exercise"]
def parameters_in(model: BertClassifier) -> tuple[int, int]:
    ...  # your code here

# %% tags=["solution"]
def parameters_in(model: BertClassifier) -> tuple[int, int]:
    return sum(p.numel() for p in model.bert.parameters()), sum(p.numel() for p in model.linear.parameters())

# %%
assert parameters_in(BertClassifier())[1] == 2 * model.bert.config.hidden_size + 2

# %% [markdown]
# **2 (medium).** Freeze the BERT and train the head alone. What must happen besides `requires_grad = False`, so that the frozen part is constant? Write `freeze`.

# %% tags=["exercise"]
def freeze(model: BertClassifier) -> None:
    ...  # your code here

# %% tags=["solution"]
def freeze(model: BertClassifier) -> None:
    model.bert.requires_grad_(False)
    model.bert.eval()  # no dropout

# %%
frozen = BertClassifier().train()
freeze(frozen)
x, mask, _ = next(batches(test))
assert torch.equal(frozen(x, mask), frozen(x, mask)) and frozen.linear.weight.requires_grad

# %% [markdown]
# ## Summary
# - Fine-tuning is a search that starts from pretrained weights; the loop fits on half a screen.
# - `from_pretrained` leaves the model in evaluation mode, and your own class around it does not change that.
# - A loop without validation, schedule, seeds and a considered rate gives *a* number, not a result.
#
# **What next:** lesson 10 begins to build the parts that answer these six questions; lesson 25 compares what to train. To try a real model, set `MODEL` to `google-bert/bert-base-uncased` and the rate to 2e-5. **Sources:** Devlin et al. (2019), arXiv:1810.04805; Mosbach et al. (2021), arXiv:2006.04884; Zhang et al. (2021), arXiv:2006.05987.
