"""A tiny model folder and a small table, laid out as a user's own are; for tests of whole runs."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ftnb.pretrained import find_model

GOOD, BAD = ["good", "fine", "bright", "warm"], ["bad", "dull", "grey", "cold"]
REST = "a the film was not very it plot cast and so they we sound light room food staff tea garden".split()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *REST]


def tiny_bert(folder: Path) -> str:
    """Save a random BERT of about 8,000 parameters with its tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", model_max_length=32, **special)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_llama(folder: Path, tied: bool = True) -> str:
    """A random Llama of two layers with the built-in tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(find_model("builtin:lm-stories")[0])
    torch.manual_seed(7)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    special: dict[str, Any] = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=96, tie_word_embeddings=tied, **sizes, **special
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def reviews(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences of known words with one polar word each; all different."""
    draw, rows = random.Random(seed), {}
    while len(rows) < count:
        label = draw.choice(["positive", "negative"])
        words = draw.sample(REST, draw.randint(4, 8))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label == "positive" else BAD))
        rows[" ".join(words)] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


def write_csv(path: Path, count: int = 80, seed: int = 0) -> str:
    """Write reviews to a CSV file with a header."""
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in reviews(count, seed))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
