"""Spoken words made by a synthesiser: commands, strings of digits, and babble, each split by who speaks."""

from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftnb.audio.clips import as_wav
from ftnb.builtin.voices import PHONEMES, RATE, make_voice, say
from ftnb.tables import DataError

Split = Literal["train", "valid", "test"]

DIGITS = {
    "zero": "Z IY R OW", "one": "W AH N", "two": "T UW", "three": "TH R IY", "four": "F AO R", "five": "F AY V",
    "six": "S IH K S", "seven": "S EH V AH N", "eight": "EY T", "nine": "N AY N",
}  # fmt: skip
COMMANDS = {
    "yes": "Y EH S", "no": "N OW", "up": "AH P", "down": "D AW N", "left": "L EH F T", "right": "R AY T",
    "on": "AA N", "off": "AO F", "stop": "S T AA P", "go": "G OW",
}  # fmt: skip
VOICES = {"train": 24, "valid": 8, "test": 24}  # how many people speak in each split; nobody speaks in two of them
_VOWELS = [name for name, p in PHONEMES.items() if p.buzz == 1.0]
_CONSONANTS = [name for name in PHONEMES if name not in _VOWELS]


def spoken_commands(
    split: Split, num_clips: int, seed: int = 0, *, num_voices: int | None = None
) -> list[dict[str, Any]]:
    """Single commands ("yes", "no", "up" …), each word equally often.

    Clip i depends on split, seed, number of voices and i alone: fewer clips are the beginning of more.

    Args:
        split: "train", "valid" or "test"; its voices are heard in no other.
        num_clips: how many clips.
        seed: another seed gives other voices and clips.
        num_voices: how many people speak; None is 24 in training and test, 8 in validation.

    Returns:
        One dictionary a clip: "audio" (a stored WAV, see `ftnb.audio.clips.as_wav`) and "label".

    Raises:
        DataError: if the split is unknown or a number impossible.
    """
    words = list(COMMANDS)
    clips = []
    for i, (voice, rng) in enumerate(_speakers(split, num_clips, seed, num_voices)):
        word = words[i % len(words)]
        clips.append({"audio": as_wav(_clip([COMMANDS[word]], voice, rng), RATE), "label": word})
    return clips


def spoken_digits(
    split: Split, num_clips: int, seed: int = 0, *, num_voices: int | None = None
) -> list[dict[str, Any]]:
    """Strings of two to five digits, such as "four seven one".

    Args:
        split: as for `spoken_commands`.
        num_clips: how many clips.
        seed: as for `spoken_commands`.
        num_voices: as for `spoken_commands`.

    Returns:
        One dictionary a clip: "audio" and "text".

    Raises:
        DataError: if the split is unknown or a number impossible.
    """
    clips = []
    for voice, rng in _speakers(split, num_clips, seed, num_voices):
        words = [rng.choice(list(DIGITS)) for _ in range(rng.randint(2, 5))]
        clips.append(
            {"audio": as_wav(_clip([DIGITS[word] for word in words], voice, rng), RATE), "text": " ".join(words)}
        )
    return clips


def babble(num_clips: int, seed: int = 0) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Words that mean nothing, each clip in a voice of its own: sound without any label, to pretrain on.

    Returns:
        For each clip the samples without noise and with it, of equal length.
    """
    clips = []
    for i in range(num_clips):
        rng = Random(f"babble-{seed}-{i}")
        words = [" ".join(_syllable(rng) for _ in range(rng.randint(1, 2))) for _ in range(rng.randint(1, 3))]
        speech = _speech(words, f"babble-{seed}-{i}", rng)
        clips.append((speech, add_noise(speech, rng)))
    return clips


def add_noise(speech: NDArray[np.float32], rng: Random) -> NDArray[np.float32]:
    """Speech 3 to 20 decibels above white noise (a busy street, a quiet room), and further from the microphone."""
    noise = np.random.default_rng(rng.getrandbits(63)).standard_normal(len(speech))
    mixed = speech + noise * np.sqrt(np.mean(speech**2)) * 10 ** (-rng.uniform(3, 20) / 20)
    return np.clip(mixed * rng.uniform(0.3, 1.0), -1, 1).astype(np.float32)


def _syllable(rng: Random) -> str:
    before = [rng.choice(_CONSONANTS)] if rng.random() < 0.85 else []
    after = [rng.choice(_CONSONANTS)] if rng.random() < 0.5 else []
    return " ".join([*before, rng.choice(_VOWELS), *after])


def _speakers(split: str, num_clips: int, seed: int, num_voices: int | None) -> list[tuple[str, Random]]:
    if split not in VOICES:
        raise DataError(f"split {split!r} is unknown; there are 'train', 'valid' and 'test'.")
    voices = VOICES[split] if num_voices is None else num_voices
    if num_clips < 0 or voices < 1:
        raise DataError(f"num_clips must not be negative and num_voices at least 1; got {num_clips} and {voices}.")
    rngs = [Random(f"speech-{split}-{seed}-{voices}-{i}") for i in range(num_clips)]
    return [(f"{split}-{seed}-{rng.randrange(voices)}", rng) for rng in rngs]


def _clip(words: list[str], voice: str, rng: Random) -> NDArray[np.float32]:
    return add_noise(_speech(words, voice, rng), rng)


def _speech(words: list[str], voice: str, rng: Random) -> NDArray[np.float32]:
    speech = say([word.split() for word in words], make_voice(voice), rng)
    return np.pad(speech, [int(rng.uniform(0, 0.25) * RATE) for _ in range(2)])
