"""Ways to spoil a file: single bits, pieces, numbers, types, depth, encodings. What a seed does, it does again."""

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

HUGE = (
    "1e999",
    "-1e999",
    "9" * 400,
    "9" * 5000,
    "-1",
    "0",
    "2147483648",
    "9223372036854775808",
    "1e-400",
    "NaN",
    "-Infinity",
    "0x10",
    "1_000",
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**200, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", "nan",
    "inf", "\ud800", "\x00", "a" * 10_000, [], [1], {}, {"dict": []}, {"dict": [[1]]}, {"dict": 3},
    {"tensor": "nowhere"}, {"tensor": []}, [[["deep"]]], {"a": {"b": 1}},
)  # fmt: skip


def flip_bits(data: bytes, random: Random) -> bytes:
    """One to eight bits."""
    spoilt = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        spoilt[random.randrange(len(spoilt))] ^= 1 << random.randrange(8)
    return bytes(spoilt)


def cut(data: bytes, random: Random) -> bytes:
    """The end, or a piece inside, is gone."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return random.choice((data[:a], data[:a] + data[b:]))


def insert(data: bytes, random: Random) -> bytes:
    """Foreign bytes."""
    at, size = random.randrange(len(data) + 1), random.choice((1, 1, 3, 40))
    piece = random.choice(
        (random.randbytes(size), b"\0" * size, b'"' * size, b"\n" * size, b"\r", b"\xff", b"{", b"]", b",")
    )
    return data[:at] + piece + data[at:]


def swap(data: bytes, random: Random) -> bytes:
    """Two pieces change places, or one is there twice."""
    a, b, c = sorted(random.randrange(len(data) + 1) for _ in range(3))
    return random.choice((data[:a] + data[b:c] + data[a:b] + data[c:], data[:b] + data[a:b] + data[b:]))


def numbers(data: bytes, random: Random) -> bytes:
    """A number becomes a huge, negative or impossible one."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data[:200_000]))
    if not places:
        return insert(data, random)
    place = random.choice(places)
    return data[: place.start()] + random.choice(HUGE).encode() + data[place.end() :]


def words(data: bytes, random: Random) -> bytes:
    """A quoted word becomes something of another type."""
    places = list(re.finditer(rb'"[^"\n]*"', data[:200_000]))
    if not places:
        return insert(data, random)
    place = random.choice(places)
    new = random.choice(
        (b"3", b"true", b"null", b"[]", b'["x", 1]', b"{}", b'""', b'"\\ud800"', b"2026-01-01", b'"\\u0000"')
    )
    return data[: place.start()] + new + data[place.end() :]


def nest(data: bytes, random: Random) -> bytes:
    """Very deep brackets."""
    at, depth = random.randrange(len(data) + 1), random.choice((60, 2_000, 100_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"[[", b"]]")))
    return data[:at] + opening * depth + random.choice((b"", closing * depth)) + data[at:]


def encode(data: bytes, random: Random) -> bytes:
    """Another encoding, or a mark at the beginning."""
    text = data.decode("utf-8", errors="replace")
    text = text.replace("a", "ä", 3) if random.random() < 0.5 else text
    encoding = random.choice(("utf-16", "utf-32", "utf-16-be", "latin-1", "cp1252", "utf-8-sig", "utf-7", "cp037"))
    return text.encode(encoding, errors="replace")


def rows(data: bytes, random: Random) -> bytes:
    """Lines are mixed up, doubled, or end otherwise."""
    lines = data.split(b"\n")
    how = random.randrange(4)
    if how == 0:
        random.shuffle(lines)
    elif how == 1:
        lines += random.choices(lines, k=min(len(lines), 5))
    elif how == 2:
        del lines[random.randrange(len(lines))]
    return (b"\r\n" if how == 3 else random.choice((b"\n", b"\n\n", b"\r"))).join(lines)


def values(data: bytes, random: Random) -> bytes:
    """A value somewhere inside JSON (or inside one of its lines) is replaced, removed, or put in twice."""
    lines = data.split(b"\n") if data.count(b"\n") > 2 else [data]
    at = random.randrange(len(lines))
    try:
        tree = json.loads(lines[at])
    except (ValueError, RecursionError):
        return numbers(data, random)
    for _ in range(random.choice((1, 1, 1, 3))):
        _replace_one(tree, random)
    lines[at] = json.dumps(tree).encode("utf-8", errors="surrogatepass")
    return b"\n".join(lines)


def _replace_one(tree: Any, random: Random) -> None:
    """Change one value, chosen by walking down from the top."""
    while isinstance(tree, dict | list) and tree:
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        inner = tree[key]
        if not (isinstance(inner, dict | list) and inner) or random.random() < 0.15:
            fate = random.random()
            if fate < 0.15:
                del tree[key]
            elif fate < 0.25 and isinstance(tree, dict):
                tree[str(key) + random.choice(("", "_", "\u00e9"))] = copy.deepcopy(random.choice(ODD))
            elif fate < 0.25:
                tree.insert(0, inner)
            else:
                tree[key] = copy.deepcopy(random.choice(ODD))
            return
        tree = inner


MUTATORS: tuple[Mutator, ...] = (flip_bits, cut, insert, swap, numbers, words, nest, encode, rows, values)


def mutate(data: bytes, random: Random, mutators: tuple[Mutator, ...] = MUTATORS) -> bytes:
    """Spoil a file's content in one or two ways."""
    for _ in range(random.choice((1, 1, 1, 2))):
        data = random.choice(mutators)(data, random)
    return data
