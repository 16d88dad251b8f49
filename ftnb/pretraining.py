# Exported from nbs/90_pretraining.py: edit the lesson, then run `make export`.
"""How the built-in BERT was made, and why for a while nothing seems to happen."""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
)

from ftnb.builtin.reviews import LABELS, Split, labelled_reviews, polar_words, unlabelled_reviews
from ftnb.builtin.words import all_words

__all__ = [
    "SPECIAL_TOKENS",
    "build_tokenizer",
    "mask_probabilities",
    "mask_tokens",
    "pretraining_loss",
    "TEST_SPLITS",
    "pad_batch",
    "pooled_features",
    "probe_accuracy",
    "Pretraining",
    "new_model",
    "length_batches",
    "pretrain",
    "finetuned_accuracy",
    "save_checkpoint",
    "weights_hash",
    "scores",
    "main",
]


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_tokenizer() -> BertTokenizer:
    """A lower-casing WordPiece tokenizer that knows every word of the generated reviews as one token.

    Letters, digits and their `##` continuations are in the vocabulary too, so that a word it does not know becomes
    pieces rather than `[UNK]`.
    """
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = list(".,!?'\"-:;()&/$%")
    words = SPECIAL_TOKENS + marks + list(characters) + [f"##{c}" for c in characters]
    words += [word for word in all_words() if word not in words]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=128)


def mask_probabilities(tokenizer: BertTokenizer, polar: float = 0.3, other: float = 0.1) -> Tensor:
    """How often each token is masked, shape (vocab_size,): special tokens never, polar words most."""
    probabilities = torch.full((len(tokenizer),), other)
    probabilities[tokenizer.all_special_ids] = 0.0
    words = [word for label in LABELS for word in polar_words(label)]
    probabilities[tokenizer.convert_tokens_to_ids(words)] = polar
    return probabilities


def mask_tokens(
    input_ids: Tensor, probabilities: Tensor, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict; of these, 80 % become `[MASK]`, 10 % a random token, 10 % stay.

    Args:
        input_ids: token ids, shape (B, T).
        probabilities: per token id, from `mask_probabilities`.
        mask_id: id of `[MASK]`.
        generator: the source of chance.

    Returns:
        The changed ids (B, T) and a boolean tensor (B, T) of the chosen places.

    Source: Devlin et al. (2019), "BERT", section 3.1.
    """
    chosen = torch.rand(input_ids.shape, generator=generator) < probabilities[input_ids]
    how = torch.rand(input_ids.shape, generator=generator)
    usual_ids = probabilities.nonzero().squeeze(1)
    random_ids = usual_ids[torch.randint(len(usual_ids), input_ids.shape, generator=generator)]
    masked = torch.where(chosen & (how < 0.8), mask_id, input_ids)
    return torch.where(chosen & (how >= 0.9), random_ids, masked), chosen


def pretraining_loss(
    model: BertForPreTraining, input_ids: Tensor, masked: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses of our pretraining, each a mean over the chosen tokens in nats.

    The first predicts a masked word from its place, the second from the pooled vector of the whole review: the
    pooler learns to say which words a review holds, hence also which side it is on.

    Args:
        model: BERT with a language-model head.
        input_ids: the true ids, shape (B, T).
        masked: what the model sees, shape (B, T).
        chosen: places to predict, bool, shape (B, T).

    Returns:
        (masked-word loss, sentence loss).
    """
    outputs = model.bert(masked, attention_mask=(input_ids != 0).long())
    words = input_ids[chosen]  # (M,)
    word_loss = nn.functional.cross_entropy(model.cls.predictions(outputs.last_hidden_state[chosen]), words)
    review_of_word = chosen.nonzero()[:, 0]
    log_p = model.cls.predictions(outputs.pooler_output).log_softmax(-1)  # (B, V)
    return word_loss, -log_p[review_of_word, words].mean()


TEST_SPLITS: dict[str, Split] = {"seen": "valid", "unseen": "test"}  # polar words → reviews that use them


def pad_batch(token_ids: list[list[int]]) -> Tensor:
    """Lists of token ids as one tensor (B, T), filled up with 0, the id of `[PAD]`."""
    return nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True)


@torch.no_grad()
def pooled_features(bert: BertModel, tokenizer: BertTokenizer, texts: list[str]) -> Tensor:
    """The pooled vector of each text, shape (len(texts), hidden), in eval mode; the mode is put back."""
    was_training = bert.training
    bert.eval()
    input_ids = pad_batch(tokenizer(texts, truncation=True)["input_ids"])
    pooled = bert(input_ids, attention_mask=(input_ids != 0).long()).pooler_output
    bert.train(was_training)
    return pooled


def probe_accuracy(bert: BertModel, tokenizer: BertTokenizer, seed: int, num_train: int = 128) -> dict[str, float]:
    """How well a *linear* classifier on the frozen pooled vector does, after a few labelled reviews.

    A ridge regression on ±1, solved exactly: no learning rate, no chance but the reviews'.

    Args:
        bert: the backbone, not changed.
        tokenizer: its tokenizer.
        seed: of the labelled reviews.
        num_train: labelled reviews to fit on.

    Returns:
        {"seen": accuracy on validation reviews, "unseen": accuracy on test reviews}.
    """
    def features_and_sides(split: Split, num: int) -> tuple[Tensor, Tensor]:
        reviews = labelled_reviews(split, num, seed)
        sides = torch.tensor([1.0 if review["label"] == "positive" else -1.0 for review in reviews])
        return pooled_features(bert, tokenizer, [review["text"] for review in reviews]), sides

    X, y = features_and_sides("train", num_train)
    mean = X.mean(0)
    covariance = (X - mean).T @ (X - mean)
    ridge = covariance.diagonal().mean() * torch.eye(len(covariance))
    w = torch.linalg.solve(covariance + ridge, (X - mean).T @ (y - y.mean()))
    accuracy = {}
    for name, split in TEST_SPLITS.items():
        X, y = features_and_sides(split, 400)
        accuracy[name] = (((X - mean) @ w > 0) == (y > 0)).float().mean().item()
    return accuracy


@dataclass(frozen=True)
class Pretraining:
    """Everything that defines a pretraining run.

    Attributes:
        num_documents: unlabelled reviews; each is read `num_epochs` times, masked anew each time.
        num_epochs: passes over the text.
        batch_size: reviews per step.
        lr: peak learning rate of AdamW; rises over the first 5 % of the steps, then falls in a straight line.
        initializer_range: standard deviation of the random weights. BERT's own 0.02 suits 768 features; about
            1 / sqrt(128) suits ours.
        difficulty: of the unlabelled reviews.
        seed: of the text, the weights and the masks.
        probe_every: steps between two measurements of transfer.
        probe_seed: of the labelled reviews of these measurements.

    Raises:
        ValueError: if a number is impossible; the message names it.
    """

    num_documents: int = 40_000
    num_epochs: int = 4
    batch_size: int = 64
    lr: float = 1e-3
    initializer_range: float = 0.08
    difficulty: float = 0.3
    seed: int = 1
    probe_every: int = 50
    probe_seed: int = 100

    def __post_init__(self) -> None:
        for name in ("num_documents", "num_epochs", "batch_size", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("lr", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


def new_model(tokenizer: BertTokenizer, settings: Pretraining) -> BertForPreTraining:
    """A BERT of two layers and 128 features with random weights."""
    torch.manual_seed(settings.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        initializer_range=settings.initializer_range,
    )
    return BertForPreTraining(config)


def length_batches(token_ids: list[list[int]], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """One epoch of batches, as indices: reviews of like length together, batches in random order."""
    order = torch.randperm(len(token_ids), generator=generator).tolist()
    chunk = batch_size * 50
    batches = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda i: len(token_ids[i]))
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[i]


def pretrain(model: BertForPreTraining, tokenizer: BertTokenizer, settings: Pretraining) -> Iterator[dict[str, float]]:
    """Pretrain `model` in place; yield a row of the log every `probe_every` steps and at the end.

    A row holds step, seconds, the two losses (mean since the last row, in nats) and `probe_accuracy`.
    """
    texts = list(unlabelled_reviews(settings.num_documents, settings.seed, settings.difficulty))
    token_ids = tokenizer(texts)["input_ids"]
    generator = torch.Generator().manual_seed(settings.seed)
    probabilities = mask_probabilities(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    num_steps = settings.num_epochs * -(-len(token_ids) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.05 * num_steps), 1 - step / num_steps)
    )
    start, step = time.perf_counter(), 0
    losses: list[tuple[float, float]] = []

    def row() -> dict[str, float]:
        word_loss, sentence_loss = torch.tensor(losses).mean(0).tolist()
        accuracy = probe_accuracy(model.bert, tokenizer, settings.probe_seed)
        seconds = round(time.perf_counter() - start, 1)
        return {"step": step, "seconds": seconds, "word_loss": word_loss, "sentence_loss": sentence_loss, **accuracy}

    model.eval()  # no dropout: there is more text than so small a model can learn by heart
    for _ in range(settings.num_epochs):
        for batch in length_batches(token_ids, settings.batch_size, generator):
            input_ids = pad_batch([token_ids[i] for i in batch])
            masked, chosen = mask_tokens(input_ids, probabilities, tokenizer.mask_token_id, generator)
            word_loss, sentence_loss = pretraining_loss(model, input_ids, masked, chosen)
            (word_loss + 0.5 * sentence_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            losses.append((word_loss.item(), sentence_loss.item()))
            if step % settings.probe_every == 0:
                yield row()
                losses = []
    if losses:
        yield row()


def finetuned_accuracy(
    folder: str | Path, seed: int, *, pretrained: bool = True, num_train: int = 128
) -> dict[str, float]:
    """Fine-tune a checkpoint (or the same network from random weights) on labelled reviews, and test it.

    The whole model trains for 8 epochs in batches of 16, AdamW, rate falling in a straight line from 5e-4. These
    numbers were chosen on development seeds.

    Returns:
        {"seen": accuracy on 200 validation reviews, "unseen": accuracy on 400 test reviews}.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    if pretrained:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    else:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=2))

    def batch(reviews: list[dict[str, str]]) -> dict[str, Tensor]:
        inputs = tokenizer([review["text"] for review in reviews], padding=True, return_tensors="pt")
        return {**inputs, "labels": torch.tensor([LABELS.index(review["label"]) for review in reviews])}

    reviews = labelled_reviews("train", num_train, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    batches = [part for _ in range(8) for part in torch.randperm(num_train).split(16)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    model.train()
    for part in batches:
        model(**batch([reviews[i] for i in part.tolist()])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    accuracy = {}
    for name, split in TEST_SPLITS.items():
        test = batch(labelled_reviews(split, seed=seed))
        with torch.no_grad():
            right = model(**test).logits.argmax(-1) == test["labels"]
        accuracy[name] = right.float().mean().item()
    return accuracy


def save_checkpoint(model: BertForPreTraining, tokenizer: BertTokenizer, folder: str | Path) -> str:
    """Save backbone, pooler, language-model head and tokenizer for `from_pretrained`; return the weights' SHA-256."""
    folder = Path(folder)
    # The head for next-sentence prediction was not trained, so it is not saved.
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("cls.seq_relationship")}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    return weights_hash(folder)


def weights_hash(folder: str | Path) -> str:
    """SHA-256 of `model.safetensors` in `folder`, in hexadecimal."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def scores(folder: str | Path, seeds: Iterable[int]) -> dict[str, Any]:
    """`finetuned_accuracy` with and without the checkpoint's weights: every seed, the mean, two standard errors."""
    seeds = list(seeds)
    table: dict[str, Any] = {}
    for start, pretrained in (("fine-tuned", True), ("from scratch", False)):
        runs = [finetuned_accuracy(folder, seed, pretrained=pretrained) for seed in seeds]
        for words in ("seen", "unseen"):
            values = [round(run[words], 4) for run in runs]
            error = 2 * statistics.stdev(values) / len(values) ** 0.5
            table[f"{start}, {words} words"] = {
                "mean": round(statistics.mean(values), 3),
                "plus_minus": round(error, 3),
                "values": values,
            }
    return {"seeds": seeds, **table}


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Pretrain, save a checkpoint with its log, and score it on fresh seeds: `python -m ftnb.pretraining FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m ftnb.pretraining", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=Pretraining.num_documents)
    parser.add_argument("--epochs", type=int, default=Pretraining.num_epochs)
    parser.add_argument("--initializer-range", type=float, default=Pretraining.initializer_range)
    parser.add_argument("--seed", type=int, default=Pretraining.seed)
    parser.add_argument("--score-seeds", type=int, default=10, help="how many fresh seeds to score on (0: none)")
    options = parser.parse_args(arguments)
    settings = Pretraining(
        options.documents, options.epochs, initializer_range=options.initializer_range, seed=options.seed
    )
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
