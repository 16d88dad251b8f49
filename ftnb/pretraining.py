# Exported from nbs/90_pretraining.py: edit the lesson, then run `make export`.
"""How the built-in BERT was made: from counts to words in context, and the jump on the way."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel, BertTokenizer

from ftnb.builtin.reviews import LABELS, labelled_reviews, polar_words, unlabelled_reviews
from ftnb.builtin.words import all_words

__all__ = [
    "SPECIAL_TOKENS",
    "build_tokenizer",
    "word_vectors",
    "mask_probabilities",
    "mask_tokens",
    "pretraining_loss",
    "pad_batch",
    "pooled_features",
    "probe_accuracy",
    "Pretraining",
    "new_model",
    "set_word_vectors",
    "length_batches",
    "pretrain",
    "save_checkpoint",
    "weights_hash",
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


def word_vectors(token_ids: list[list[int]], vocab_size: int, dim: int) -> Tensor:
    """Word vectors by counting: positive pointwise mutual information of words in one review, factored by SVD.

    Args:
        token_ids: one list of token ids per review.
        vocab_size: number of rows of the result.
        dim: number of columns.

    Returns:
        Float tensor of shape (vocab_size, dim); words that co-occur have similar rows.

    Source: Levy and Goldberg (2014), "Neural word embedding as implicit matrix factorization".
    """
    together = torch.zeros(vocab_size, vocab_size)
    for start in range(0, len(token_ids), 1000):
        part = token_ids[start : start + 1000]
        occurs = torch.zeros(len(part), vocab_size)  # (reviews, words)
        for row, ids in enumerate(part):
            occurs[row, ids] = 1
        together += occurs.T @ occurs
    together.fill_diagonal_(0)
    count = together.sum(1)
    # One is added to every count: without it, pairs that never meet would weigh infinitely.
    pmi = ((together + 1) * count.sum() / (count[:, None] * count[None, :] + 1)).log().clamp(min=0)
    pmi[count == 0] = 0
    pmi[:, count == 0] = 0
    U, S, _ = torch.linalg.svd(pmi)
    return U[:, :dim] * S[:dim].sqrt()


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


def pretraining_loss(model: BertForPreTraining, input_ids: Tensor, masked: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
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
    def features_and_sides(split: Any, num: int) -> tuple[Tensor, Tensor]:
        reviews = labelled_reviews(split, num, seed)
        sides = torch.tensor([1.0 if review["label"] == "positive" else -1.0 for review in reviews])
        return pooled_features(bert, tokenizer, [review["text"] for review in reviews]), sides

    X, y = features_and_sides("train", num_train)
    mean = X.mean(0)
    covariance = (X - mean).T @ (X - mean)
    ridge = covariance.diagonal().mean() * torch.eye(len(covariance))
    w = torch.linalg.solve(covariance + ridge, (X - mean).T @ (y - y.mean()))
    accuracy = {}
    for name, split in (("seen", "valid"), ("unseen", "test")):
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
        start: "counts" (word vectors from `word_vectors`) or "random".
        difficulty: of the unlabelled reviews.
        seed: of the text, the weights and the masks.
        probe_every: steps between two measurements of transfer.
        probe_seed: of the labelled reviews of these measurements.
    """

    num_documents: int = 40_000
    num_epochs: int = 2
    batch_size: int = 64
    lr: float = 1e-3
    start: Literal["counts", "random"] = "counts"
    difficulty: float = 0.3
    seed: int = 1
    probe_every: int = 50
    probe_seed: int = 100


def new_model(tokenizer: BertTokenizer, seed: int) -> BertForPreTraining:
    """A BERT of two layers and 128 features with random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        # About 1 / sqrt(128). BERT's own 0.02 suits 768 features; here a layer would pass on next to nothing at first.
        initializer_range=0.08,
    )
    return BertForPreTraining(config)


def set_word_vectors(model: BertForPreTraining, vectors: Tensor, scale: float = 0.15) -> None:
    """Add `vectors` to the word embeddings, with a standard deviation of `scale` (the random ones: 0.08)."""
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight += vectors / vectors.std() * scale


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
    token_ids = tokenizer(list(unlabelled_reviews(settings.num_documents, settings.seed, settings.difficulty)))["input_ids"]
    if settings.start == "counts":
        set_word_vectors(model, word_vectors(token_ids, len(tokenizer), model.config.hidden_size))
    generator = torch.Generator().manual_seed(settings.seed)
    probabilities = mask_probabilities(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    num_steps = settings.num_epochs * -(-len(token_ids) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.05 * num_steps), 1 - step / num_steps)
    )
    start, step, losses = time.perf_counter(), 0, []

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


def save_checkpoint(model: BertForPreTraining, tokenizer: BertTokenizer, folder: str | Path) -> str:
    """Save backbone, pooler, language-model head and tokenizer as `from_pretrained` expects; return the weights' SHA-256."""
    folder = Path(folder)
    # The head for next-sentence prediction was not trained, so it is not saved.
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("cls.seq_relationship")}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    return weights_hash(folder)


def weights_hash(folder: str | Path) -> str:
    """SHA-256 of `model.safetensors` in `folder`, in hexadecimal."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Pretrain and save a checkpoint: `python -m ftnb.pretraining FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m ftnb.pretraining", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", choices=["counts", "random"], default="counts")
    parser.add_argument("--documents", type=int, default=Pretraining.num_documents)
    parser.add_argument("--epochs", type=int, default=Pretraining.num_epochs)
    parser.add_argument("--seed", type=int, default=Pretraining.seed)
    options = parser.parse_args(arguments)
    settings = Pretraining(options.documents, options.epochs, start=options.start, seed=options.seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, settings.seed)
    rows = []
    for row in pretrain(model, tokenizer, settings):
        rows.append(row)
        print(json.dumps(row), flush=True)
    digest = save_checkpoint(model, tokenizer, options.folder)
    log = {"settings": asdict(settings), "sha256": digest, "rows": rows}
    (options.folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(f"saved to {options.folder}, sha256 {digest}")


if __name__ == "__main__" and __spec__ is not None:  # with `python -m`; in a notebook there is no __spec__
    main()
