"""Checkpoints of llama2.c as a folder that transformers loads: weights, tokenizer and configuration.

llama2.c (Karpathy, 2023) trains small Llamas and writes them as one file of numbers: seven whole numbers for the
sizes, then all matrices in float32, in the order of its `export.py` (version 0). Its tokenizer is a second file of
scored pieces.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftnb.pretrained import ModelError, quiet_transformers

HEADER = struct.Struct("7i")
SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def convert_llama2c(
    source: str | Path, folder: str | Path, *, weights: str | None = None, tokenizer: str | None = None
) -> Path:
    """Write a llama2.c checkpoint as a model folder of transformers.

    Args:
        source: the folder that holds both files.
        folder: what to write; made if it is not there.
        weights: name of the file with the weights; by default the one `.bin` that does not begin with "tok".
        tokenizer: name of the file with the pieces; by default the one that does.

    Returns:
        The folder, with config.json, model.safetensors and tokenizer.json.

    Raises:
        ModelError: if a file is not there, or its size is not what its header says.
    """
    source, folder = Path(source).expanduser(), Path(folder).expanduser()
    names = sorted(path.name for path in source.glob("*.bin"))
    paths = []
    for given, is_tokenizer in ((weights, False), (tokenizer, True)):
        fitting = [given] if given else [name for name in names if name.startswith("tok") == is_tokenizer]
        if len(fitting) != 1 or not (source / fitting[0]).is_file():
            what = "tokenizer (tok….bin)" if is_tokenizer else "weights (….bin)"
            raise ModelError(f"{source} holds {names or 'no .bin file'}; expected one file with the {what}. Name it.")
        paths.append(source / fitting[0])
    model = read_weights(paths[0])
    with quiet_transformers():
        model.save_pretrained(folder)
        read_tokenizer(paths[1], model.config.max_position_embeddings).save_pretrained(folder)
    return folder


def read_weights(path: Path) -> LlamaForCausalLM:
    """A model from a file of llama2.c, version 0, float32.

    Raises:
        ModelError: if the file's size is not what its header says.
    """
    raw = path.read_bytes()
    if len(raw) < HEADER.size:
        raise ModelError(f"{path} has {len(raw)} bytes; not even a header of llama2.c fits in.")
    size = dict(zip(SIZES, HEADER.unpack_from(raw), strict=True))
    tied, size["vocab_size"] = size["vocab_size"] > 0, abs(size["vocab_size"])
    if not all(0 < value < 10**6 for value in size.values()) or size["dim"] % size["n_heads"]:
        raise ModelError(f"{path} is no checkpoint of llama2.c (version 0): its header says {size}.")
    shapes = _shapes(size, tied)
    expected = HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(raw) != expected:
        raise ModelError(f"{path} has {len(raw)} bytes; by its header ({size}) it should have {expected}.")
    numbers, at, found = np.frombuffer(raw, dtype="<f4", offset=HEADER.size), 0, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        found[name], at = torch.from_numpy(numbers[at : at + count].copy()).view(shape), at + count
    config = LlamaConfig(
        vocab_size=size["vocab_size"], hidden_size=size["dim"], intermediate_size=size["hidden_dim"],
        num_hidden_layers=size["n_layers"], num_attention_heads=size["n_heads"], num_key_value_heads=size["n_kv_heads"],
        max_position_embeddings=size["seq_len"], rms_norm_eps=1e-5, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(_state(found, size, tied), strict=False)
    return model


def _shapes(size: dict[str, int], tied: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of the file in their order; each but the first and the last ones for all layers together."""
    dim, hidden, layers, head = size["dim"], size["hidden_dim"], size["n_layers"], size["dim"] // size["n_heads"]
    kv = head * size["n_kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (size["vocab_size"], dim),
        "attention_norm": (layers, dim),
        "q": (layers, dim, dim),
        "k": (layers, kv, dim),
        "v": (layers, kv, dim),
        "o": (layers, dim, dim),
        "mlp_norm": (layers, dim),
        "gate": (layers, hidden, dim),
        "down": (layers, dim, hidden),
        "up": (layers, hidden, dim),
        "norm": (dim,),
        "cos": (size["seq_len"], head // 2),  # both are computed anew
        "sin": (size["seq_len"], head // 2),
    }
    return shapes if tied else {**shapes, "output": (size["vocab_size"], dim)}


def _state(found: dict[str, Tensor], size: dict[str, int], tied: bool) -> dict[str, Tensor]:
    state = {
        "model.embed_tokens.weight": found["embedding"],
        "model.norm.weight": found["norm"],
        "lm_head.weight": found["embedding"] if tied else found["output"],
    }
    names = {
        "input_layernorm": "attention_norm", "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
        "self_attn.o_proj": "o", "post_attention_layernorm": "mlp_norm", "mlp.gate_proj": "gate",
        "mlp.down_proj": "down", "mlp.up_proj": "up",
    }  # fmt: skip
    heads = {"q": size["n_heads"], "k": size["n_kv_heads"]}
    for layer in range(size["n_layers"]):
        for ours, theirs in names.items():
            value = found[theirs][layer]
            value = _halves(value, heads[theirs]) if theirs in heads else value
            state[f"model.layers.{layer}.{ours}.weight"] = value
    return state


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder rows: llama2.c turns neighbouring features by an angle, transformers those half a head apart."""
    rows, dim = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def read_tokenizer(path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer from a file of llama2.c: scored pieces, where two are joined if what comes out scores highest.

    Raises:
        ModelError: if the file is no such tokenizer.
    """
    raw, at, pieces = path.read_bytes(), 4, []
    try:
        while at < len(raw):
            score, length = struct.unpack_from("fi", raw, at)
            pieces.append((raw[at + 8 : at + 8 + length].decode("utf-8"), score))
            at += 8 + length
        if at != len(raw) or len(pieces) < 259:
            raise ValueError(f"{len(pieces)} pieces in {at} of {len(raw)} bytes")
    except (struct.error, ValueError) as error:
        raise ModelError(f"{path} is no tokenizer of llama2.c: {error}.") from None
    names = ["<unk>", "<s>", "</s>", *(text.replace(" ", "▁") for text, _ in pieces[3:])]
    vocab = {name: i for i, name in enumerate(names)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=_merges(vocab, [s for _, s in pieces]), unk_token="<unk>",
                               fuse_unk=True, byte_fallback=True))  # fmt: skip
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        model_max_length=max_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All ways to make a piece of two others, the piece with the highest score first."""
    found = []
    for name, i in vocab.items():
        if i < 259:  # special tokens and bytes
            continue
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[i], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
