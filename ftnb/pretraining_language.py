# Exported from nbs/92_pretraining_language.py: edit the lesson, then run `make export`.
"""A small Llama that has read generated stories, and what of them is left once it follows instructions."""

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

__all__ = [
    "END",
    "PAD",
    "ROLES",
    "CHAT_TEMPLATE",
    "build_tokenizer",
    "LanguagePretraining",
    "new_model",
    "text_rows",
    "next_token_loss",
    "cloze",
    "cloze_accuracy",
    "pretrain",
    "finetuned_accuracy",
    "scores",
    "save_checkpoint",
    "main",
]


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
