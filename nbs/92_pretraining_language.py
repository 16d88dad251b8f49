# %% [markdown]
# # How the built-in language model was made
#
# > A small Llama that has read generated stories, and what of them is left once it follows instructions.
#
# At the end you can pretrain a language model on text of your own, watch more than its loss, and say what a fine-tuned model knows from where. Runs in about 20 s on a CPU; the pretraining itself took the time that its log says.

# %%
#| default_exp pretraining_language

# %%
#| export
import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftnb.builtin.instructions import READ, by_kind, instructions
from ftnb.builtin.stories import stories
from ftnb.pretraining import weights_hash
from ftnb.tasks.text_generation import TextGeneration
from ftnb.train import Training

# %%
import itertools
import math
from random import Random

import matplotlib.pyplot as plt

import ftnb
from ftnb.builtin.instructions import facts
from ftnb.builtin.stories import COLOURS, NAMES, THINGS
from ftnb.language.generation import generate
from ftnb.language.models import load_language_model

# %% [markdown]
# ## The text
#
# A language model learns what its text repeats. Ours repeats three things: who has what (said again within a story), facts that hold in all stories (a cow moos), and words that one person says after another. All of it is generated, so it costs nothing and nobody's text is in it.

# %%
list(itertools.islice(stories(6, seed=3), 6))

# %% [markdown]
# ## The tokenizer
#
# Byte pair encoding starts from the 256 bytes and joins, again and again, the pair that stands beside each other most often. So no text is unknown to it, and words that are frequent end up as one token. Five special tokens come on top: padding, the end, and marks for the three roles of a conversation. The roles' marks are in no story: what they mean is learned in fine-tuning.

# %%
#| export
END, PAD, ROLES = "<|end|>", "<|pad|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(num_documents: int = 2000, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on stories, with a chat template; no text is unknown to it.

    Args:
        num_documents: stories to count pairs in.
        vocab_size: tokens at most, with the 256 bytes and the special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f" {text}" for text in stories(num_documents, seed=0)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLES),
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

# %%
tokenizer = build_tokenizer()
[tokenizer.tokenize(text) for text in (" Mia has a purple umbrella.", " Zürich")]

# %% [markdown]
# ## The model and its settings
#
# A Llama of three layers. Its output matrix is its embedding matrix: a fifth of so small a model would otherwise be spent twice.

# %%
#| export
@dataclass(frozen=True)
class LanguagePretraining:
    """Everything that defines a pretraining run.

    Attributes:
        num_documents: stories, each read once.
        row_length: tokens in a row; stories stand one after the other, cut where a row ends.
        batch_size: rows per step.
        lr: peak learning rate of AdamW; rises over the first 5 % of the steps, then falls in a line to a tenth.
        initializer_range: standard deviation of the random weights.
        seed: of the text, the weights and the order.
        probe_every: steps between two measurements.

    Raises:
        ValueError: if a number is impossible; the message names it.
    """

    num_documents: int = 60_000
    row_length: int = 128
    batch_size: int = 16
    lr: float = 4e-3
    initializer_range: float = 0.08
    seed: int = 1
    probe_every: int = 100

    def __post_init__(self) -> None:
        for name in ("num_documents", "row_length", "batch_size", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("lr", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


def new_model(tokenizer: PreTrainedTokenizerFast, settings: LanguagePretraining) -> LlamaForCausalLM:
    """A Llama of three layers and 128 features with random weights; its output matrix is its embedding matrix."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=settings.initializer_range,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)

# %%
settings = LanguagePretraining(num_documents=400, probe_every=20)
model = new_model(tokenizer, settings)
sum(p.numel() for p in model.parameters()), tokenizer.vocab_size * 128 / sum(p.numel() for p in model.parameters())

# %% [markdown]
# ## The objective
#
# Stories stand one after the other, each with an end token, cut into rows of 128 tokens. Every token is a target:
#
# $$\mathcal{L}(\theta) = -\frac{1}{T-1}\sum_{t=2}^{T} \log p_\theta(x_t \mid x_{<t})$$
#
# Before any training all tokens are about equally likely, so the loss is about the logarithm of their number.

# %%
#| export
def text_rows(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], row_length: int) -> Tensor:
    """Texts one after the other, each with an end token, cut into rows of equal length, shape (rows, row_length).

    What does not fill a row is left out.
    """
    ids = [i for row in tokenizer([f" {text}{END}" for text in texts])["input_ids"] for i in row]
    return torch.tensor(ids[: len(ids) // row_length * row_length]).view(-1, row_length)


def next_token_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """The mean cross-entropy of each token given those before it in its row, in nats; `rows` of shape (B, T)."""
    logits = model(rows, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

# %%
rows = text_rows(tokenizer, stories(40), 128)
next_token_loss(model, rows[:8]).item(), math.log(len(tokenizer))

# %%
assert abs(next_token_loss(model, rows[:8]).item() - math.log(len(tokenizer))) < 1

# %% [markdown]
# ## What to watch beside the loss
#
# Much of a story is chance (whose name comes next?), and no model can learn it. So the loss never comes near zero, and its value does not say what has been learned. Better to ask for what can be known: a text is begun, and its last word must come out. "Facts" stand in no text but in the stories read before; "read" stands in the text itself.

# %%
#| export
def cloze(row: dict[str, str]) -> str:
    """What an instruction asks for, said as a story says it: text to finish instead of a question to answer."""
    context = ""
    if row["kind"] in ("has", "where"):
        context = row["prompt"].rpartition(". ")[0] + ". "
    elif row["kind"] == "opposite":
        context = f"The room is not {row['prompt'].split()[-1].strip('.?')}. "
    return f" {context}{row['completion']}"


@torch.no_grad()
def cloze_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, float]:
    """How often the model finishes a text with the right last word, for what the instructions of the test ask.

    Returns:
        {"read": where the word stands in the text, "facts": where it does not}.
    """
    rows = [row for row in instructions("test", 140, seed) if row["kind"] != "repeat"]
    right: dict[bool, list[float]] = {True: [], False: []}
    was_training = model.training
    model.eval()
    for row in rows:
        text = cloze(row).removesuffix(".")
        start = len(tokenizer(text.rpartition(" ")[0])["input_ids"])
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        guesses = model(ids, use_cache=False).logits[0, start - 1 : -1].argmax(-1)
        right[row["kind"] in READ].append(float(torch.equal(guesses, ids[0, start:])))
    model.train(was_training)
    return {"read": round(statistics.mean(right[True]), 4), "facts": round(statistics.mean(right[False]), 4)}

# %%
{row["kind"]: cloze(row) for row in instructions("test", 14) if row["kind"] != "repeat"}

# %%
#| export
def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: LanguagePretraining
) -> Iterator[dict[str, float]]:
    """Pretrain `model` in place; yield a row of the log every `probe_every` steps and at the end.

    A row holds step, seconds, the loss (mean since the last row, in nats), the loss on 64 rows of other stories, and
    `cloze_accuracy`.
    """
    rows = text_rows(tokenizer, stories(settings.num_documents, settings.seed), settings.row_length)
    held_out = text_rows(tokenizer, stories(200, seed=10_000), settings.row_length)[:64]
    generator = torch.Generator().manual_seed(settings.seed)
    batches = torch.randperm(len(rows), generator=generator).split(settings.batch_size)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
    num_steps = len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.05 * num_steps), 1 - 0.9 * step / num_steps)
    )
    start, losses = time.perf_counter(), []
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = next_token_loss(model, rows[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % settings.probe_every == 0 or step == num_steps:
            with torch.no_grad():
                other = next_token_loss(model, held_out).item()
            yield {
                "step": step,
                "seconds": round(time.perf_counter() - start, 1),
                "loss": round(statistics.mean(losses), 4),
                "held_out_loss": round(other, 4),
                **cloze_accuracy(model, tokenizer, seed=100),
            }
            losses = []

# %%
list(pretrain(model, tokenizer, settings))

# %% [markdown]
# ## What fine-tuning makes of it
#
# The measure that counts is how the model does *after* fine-tuning, against the same network from random numbers. The test asks for facts that are in no training instruction. Whoever has not read the stories cannot know them.

# %%
{split: list(facts("sound", split).items())[:3] for split in ("train", "valid", "test")}

# %%
#| export
def finetuned_accuracy(
    folder: str | Path, seed: int, *, pretrained: bool = True, num_train: int = 168, num_test: int = 140
) -> dict[str, float]:
    """Fine-tune a checkpoint (or the same network from random weights) on instructions, and test it on fresh ones.

    Ten epochs in batches of 16, all weights, a peak rate of 1e-3; the best weights on the validation instructions.
    These numbers were chosen on development seeds.

    Args:
        folder: of the checkpoint.
        seed: of the instructions, their order and the random weights.
        pretrained: False starts from random numbers.
        num_train: training instructions.
        num_test: test instructions.

    Returns:
        The share of answers that are exactly right: "read" (they stand in the prompt), "facts" (they do not), "all",
        and of each kind of instruction ("has", "sound" …).
    """
    test = instructions("test", num_test, seed)
    data = {"train": instructions("train", num_train, seed), "valid": instructions("valid", seed=seed), "test": test}
    task = TextGeneration.prepare(data, str(folder), scratch=not pretrained, seed=seed)
    training = Training(task.learner(batch_size=16, seed=seed), lr=1e-3, num_epochs=10, seed=seed)
    for _ in training:
        pass
    training.load_best()
    right = [float(answer.text == expected) for _, _, expected, answer in task.answers("test", num_test)]
    kinds = [row["kind"] in READ for row in test]
    of = {name: [r for r, read in zip(right, kinds, strict=True) if read == wanted] for name, wanted in
          (("read", True), ("facts", False))}  # fmt: skip
    of |= {"all": right, **{kind: values for kind, values in by_kind(test, right).items() if values}}
    return {name: statistics.mean(values) for name, values in of.items()}


def scores(folder: str | Path, seeds: Iterable[int]) -> dict[str, Any]:
    """`finetuned_accuracy` with and without the checkpoint's weights: every seed, the mean, two standard errors."""
    seeds = list(seeds)
    table: dict[str, Any] = {}
    for start, pretrained in (("fine-tuned", True), ("from scratch", False)):
        runs = [finetuned_accuracy(folder, seed, pretrained=pretrained) for seed in seeds]
        for what in ("facts", "read", "all"):
            values = [round(run[what], 4) for run in runs]
            error = 2 * statistics.stdev(values) / len(values) ** 0.5
            table[f"{start}, {what}"] = {
                "mean": round(statistics.mean(values), 3), "plus_minus": round(error, 3), "values": values,
            }  # fmt: skip
    return {"seeds": seeds, **table}


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> str:
    """Save model and tokenizer for `from_pretrained`; return the weights' SHA-256."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return weights_hash(folder)


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Pretrain, save with the log, and score on fresh seeds: `python -m ftnb.pretraining_language FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m ftnb.pretraining_language", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=LanguagePretraining.num_documents)
    parser.add_argument("--seed", type=int, default=LanguagePretraining.seed)
    parser.add_argument("--score-seeds", type=int, default=5, help="how many fresh seeds to score on (0: none)")
    options = parser.parse_args(arguments)
    settings = LanguagePretraining(num_documents=options.documents, seed=options.seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, settings)
    rows = []
    for row in pretrain(model, tokenizer, settings):
        rows.append(row)
        report(json.dumps(row))
    digest = save_checkpoint(model, tokenizer, options.folder)
    log = {"settings": asdict(settings), "sha256": digest, "rows": rows}
    (options.folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    if options.score_seeds:
        result = scores(options.folder, range(1000, 1000 + options.score_seeds))
        (options.folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
        report(json.dumps(result, indent=1))
    report(f"saved to {options.folder}, sha256 {digest}")


if __name__ == "__main__" and __spec__ is not None:  # with `python -m`; in a notebook there is no __spec__
    main()

# %% [markdown]
# The shipped checkpoint was made by `python -m ftnb.pretraining_language FOLDER`, with nothing else. The hash identifies the file:

# %%
shipped = Path(ftnb.__file__).parent / "weights" / "lm-stories"
log = json.loads((shipped / "training_log.json").read_text())
log["settings"], f"{log['rows'][-1]['seconds']:.0f} s", weights_hash(shipped) == log["sha256"]

# %%
assert weights_hash(shipped) == log["sha256"] and log["settings"] == asdict(LanguagePretraining())

# %% [markdown]
# ## The experiment: does it transfer?
#
# **Claim.** Fine-tuned on 168 instructions, the pretrained model answers questions for facts that no instruction told it; from random numbers the same network does not. Five fresh seeds of instructions, whose scores come with the checkpoint. Beside them one run of each kind from now, on a seed of its own. The claim would be refuted if the two met.

# %%
table = json.loads((shipped / "scores.json").read_text())
now = {
    "fine-tuned": finetuned_accuracy(shipped, seed=2001, num_test=84),
    "from scratch": finetuned_accuracy(shipped, seed=2001, pretrained=False, num_test=84),
}
{start: {what: round(found[what], 2) for what in ("facts", "read", "all")} for start, found in now.items()}

# %%
fig, ax = plt.subplots(figsize=(6, 2.8), dpi=80, layout="constrained")
for i, (start, colour) in enumerate((("fine-tuned", "tab:blue"), ("from scratch", "tab:orange"))):
    for x, what in enumerate(("facts", "read", "all")):
        values = table[f"{start}, {what}"]["values"]
        ax.scatter([x + 0.2 * i - 0.1] * len(values), values, color=colour, alpha=0.6, label=start if x == 0 else None)
        ax.scatter([x + 0.2 * i - 0.1], [now[start][what]], color=colour, marker="x", s=60)
ax.set(xticks=range(3), xlabel="the answer stands …", ylabel="exactly right", ylim=(-0.03, 1))
ax.set(title="Test answers, five seeds (cross: the run above)")
ax.set_xticklabels(["only in the stories (facts)", "in the prompt (read)", "all"])
ax.legend(frameon=False)
plt.show()

# %%
assert min(table["fine-tuned, facts"]["values"]) > max(table["from scratch, facts"]["values"]) + 0.5
assert now["fine-tuned"]["facts"] > now["from scratch"]["facts"] + 0.5

# %% [markdown]
# ## The story: circuits that come late
#
# To go on with "Mia has a red ball … Mia has a red" a model must find the earlier "red" and copy what followed. Elhage et al. (2021) and Olsson et al. (2022) found attention heads that do just this, *induction heads*, and saw them appear in one short stretch of training, in models of all sizes that have two layers or more; the loss has a bump there. What does our log show? Facts are nearly all there a little after the middle of the training. What stands in the text is finished rightly in less than a third of the cases, and that hardly changes:

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), dpi=80, layout="constrained")
steps = [row["step"] for row in log["rows"]]
left.plot(steps, [row["loss"] for row in log["rows"]], label="text as it is read")
left.plot(steps, [row["held_out_loss"] for row in log["rows"]], label="other stories")
left.set(xlabel="step", ylabel="nats per token", title="Loss", ylim=(0.8, 2.2))
left.legend(frameon=False)
for what in ("facts", "read"):
    right.plot(steps, [row[what] for row in log["rows"]], label=what)
right.set(xlabel="step", ylabel="right last word", title="Sentences finished", ylim=(0, 1.05))
right.legend(frameon=False)
plt.show()

# %%
last = log["rows"][-1]
known_at = next(row["step"] for row in log["rows"] if row["facts"] > 0.9)
known_at / last["step"], last["facts"], last["read"]

# %%
assert 0.5 < known_at / last["step"] < 0.7 and last["facts"] > 0.9 and last["read"] < 0.5

# %% [markdown]
# Is there no copying at all? In the stories, what one person says another often says again. We let the model do that with 90 sentences of the form it knows, with the same words in a random order, and with lists of words:

# %%
pretrained = load_language_model("builtin:lm-stories").model

def sentence(form: str, rng: Random) -> str:
    words = [rng.choice(NAMES), "has", "a", rng.choice(COLOURS), rng.choice(THINGS)]
    if form == "a list":
        words = rng.sample([*NAMES, *COLOURS, *THINGS], 5)
    return " ".join(rng.sample(words, 5) if form == "its words in another order" else words) + "."

def repeated(sentences: list[str]) -> list[str]:
    prompts = tokenizer([f" Ida says: {one} Leo says:" for one in sentences])["input_ids"]
    written = generate(pretrained, prompts, stop=[tokenizer.eos_token_id], pad_id=0, max_new_tokens=12)
    return [tokenizer.decode(ids).partition(".")[0].strip() + "." for ids in written]

# %%
asked = {form: [sentence(form, Random(i)) for i in range(90)] for form in ("the known form", "its words in another order", "a list")}
said = {form: repeated(sentences) for form, sentences in asked.items()}
copied = {form: sum(a == b for a, b in zip(asked[form], said[form], strict=True)) / 90 for form in asked}
words_kept = {form: sum(set(a[:-1].split()) == set(b[:-1].split()) for a, b in zip(asked[form], said[form], strict=True)) / 90 for form in asked}
{form: f"copied {copied[form]:.2f}, the same words {words_kept[form]:.2f}; {asked[form][0]} → {said[form][0]}" for form in asked}

# %%
assert copied["the known form"] > 0.6 and max(copied["its words in another order"], copied["a list"]) < 0.1
assert words_kept["its words in another order"] > 0.6 and words_kept["a list"] < 0.1

# %% [markdown]
# It has a rule for one form: name, colour and thing go into their places, whatever order they came in. Copying as such has not come. With several times as much text it might; we did not try. The same shows after fine-tuning: an instruction "Repeat: …" asks for the form it knows, "What does Mia have?" for the right one of two or three people. So "read" above is mostly repeating; in the run from now:

# %%
{kind: round(now["fine-tuned"][kind], 2) for kind in READ}

# %%
assert now["fine-tuned"]["repeat"] > 0.9 and max(now["fine-tuned"]["has"], now["fine-tuned"]["where"]) < 1 / 3

# %% [markdown]
# ## What was tried
#
# On development seeds (text 101 to 104, instructions 500 to 502), in the order of trying; the runs differ in more than one thing, so they compare only roughly.
#
# | tried | facts | read |
# |---|---|---|
# | 4 layers, 404 steps of 32 rows, rate 2e-3, few sentences said again | 0.71 | 0.20 |
# | 4 layers, steps of 16 rows, more said again, stopped at step 500 | 0.70 | 0.15 |
# | 3 layers, rate 4e-3, still more said again, fewer facts, stopped at step 1,100 | 0.90 | 0.23 |
# | 3 layers, rate 3e-3, a quarter of the texts are lists said again, stopped at step 900 | 0.53 | 0.28 |
# | the last one with half as many lists and rate 4e-3, 2,142 steps: the checkpoint | 1.00 | 0.28 |
#
# Lists alone, and rotary positions with a base of 100 in place of 10,000, brought no copying within 400 steps either. The settings of fine-tuning were chosen on validation instructions: rates of 5e-4, 1e-3, 3e-3 and 6e-3, five or ten epochs.
#
# ## Exercises
#
# **1 (easy).** Write `perplexity`: among how many equally likely tokens would one have to choose, to lose as much?

# %% tags=["exercise"]
def perplexity(loss: float) -> float:
    ...  # your code here

# %% tags=["solution"]
def perplexity(loss: float) -> float:
    return math.exp(loss)

# %%
assert abs(perplexity(math.log(20)) - 20) < 1e-9
round(perplexity(log["rows"][0]["held_out_loss"]), 1), round(perplexity(last["held_out_loss"]), 1)

# %% [markdown]
# **2 (medium).** Byte pair encoding in a few lines: write `best_pair`, the pair of neighbours that occurs most often in a list of words, each a list of pieces.

# %% tags=["exercise"]
def best_pair(words: list[list[str]]) -> tuple[str, str]:
    ...  # your code here

# %% tags=["solution"]
def best_pair(words: list[list[str]]) -> tuple[str, str]:
    pairs = [pair for word in words for pair in itertools.pairwise(word)]
    return max(set(pairs), key=pairs.count)

# %%
assert best_pair([list("moo"), list("mood"), list("boot")]) == ("o", "o")

# %% [markdown]
# ## Summary
# - A language model learns what its text repeats; what is chance in the text stays in the loss for ever.
# - Measure what can be known (sentences to finish), not the loss alone.
# - What pretraining put there, 168 instructions bring out: facts that no instruction told, on every seed.
# - What it did not put there, they do not bring: this model repeats a sentence, and cannot tell which of two people has what.
#
# **What next:** lesson 39 fine-tunes this model. For text of your own, replace `stories`, and let the tokenizer be trained on it. **Sources:** Radford et al. (2019), "Language models are unsupervised multitask learners"; Sennrich et al. (2016), byte pair encoding, arXiv:1508.07909; Touvron et al. (2023), "LLaMA", arXiv:2302.13971; Eldan and Li (2023), "TinyStories", arXiv:2305.07759; Elhage et al. (2021), "A mathematical framework for transformer circuits"; Olsson et al. (2022), "In-context learning and induction heads", arXiv:2209.11895; Karpathy, llama2.c.
