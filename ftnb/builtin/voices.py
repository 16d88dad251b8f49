"""A small formant synthesiser: words from phonemes, in as many voices as a seed can name.

A buzz (for voiced sounds) and noise (for whispered ones) pass through a filter with the resonances, called formants, of
a vocal tract; the formants move from one phoneme's to the next. Formant frequencies of vowels after Peterson and Barney
(1952), "Control methods used in a study of the vowels", men's averages; consonants after Klatt (1980), "Software for a
cascade/parallel formant synthesizer". Nobody would take it for a person; it has what speech recognition must cope with:
voices of different pitch, size, speed and accent, and sounds that run into each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # samples a second
_HOP, _WINDOW = 80, 400  # of the filter: 5 and 25 ms
_LEAD = 0.03  # seconds of silence around a word


@dataclass(frozen=True)
class Phoneme:
    """One sound: resonances in Hz at its start and end, milliseconds, and how strong buzz, breath and hiss are.

    `hiss` is noise made at the teeth or lips, around `hiss_at` Hz; `closed` milliseconds of near silence come first.
    """

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    duration: float
    buzz: float = 1.0
    breath: float = 0.0
    hiss: float = 0.0
    hiss_at: float = 4000.0
    closed: float = 0.0


def _vowel(f1: float, f2: float, f3: float, duration: float = 130, to: tuple[float, float, float] | None = None) -> Any:
    return Phoneme((f1, f2, f3), to or (f1, f2, f3), duration)


def _noise(at: float, hiss: float, f: tuple[float, float, float], duration: float = 90, **kinds: float) -> Phoneme:
    return Phoneme(f, f, duration, **{"buzz": 0.0, **kinds}, hiss=hiss, hiss_at=at)


_REST = (500.0, 1500.0, 2500.0)  # of a tongue that does nothing
_TONGUE, _LIPS, _BACK = (350.0, 1700.0, 2600.0), (350.0, 1000.0, 2300.0), (300.0, 1900.0, 2300.0)
PHONEMES: dict[str, Phoneme] = {
    "IY": _vowel(270, 2290, 3010),
    "IH": _vowel(390, 1990, 2550, 100),
    "EH": _vowel(530, 1840, 2480, 120),
    "AE": _vowel(660, 1720, 2410),
    "AA": _vowel(730, 1090, 2440, 150),
    "AO": _vowel(570, 840, 2410, 150),
    "UH": _vowel(440, 1020, 2240, 100),
    "UW": _vowel(300, 870, 2240),
    "AH": _vowel(640, 1190, 2390, 100),
    "ER": _vowel(490, 1350, 1690),
    "EY": _vowel(480, 1900, 2500, 160, (310, 2200, 2900)),
    "OW": _vowel(540, 950, 2400, 170, (350, 800, 2250)),
    "AY": _vowel(730, 1150, 2440, 190, (340, 2050, 2700)),
    "AW": _vowel(720, 1200, 2440, 190, (360, 850, 2250)),
    "W": Phoneme((300, 650, 2150), (350, 750, 2200), 60, 0.7),
    "Y": Phoneme((270, 2200, 3000), (300, 2100, 2900), 60, 0.7),
    "R": Phoneme((320, 1100, 1500), (380, 1200, 1650), 70, 0.7),
    "L": Phoneme((350, 1050, 2800), (400, 1100, 2700), 70, 0.7),
    "M": Phoneme((260, 950, 2200), (260, 950, 2200), 80, 0.45),
    "N": Phoneme((260, 1550, 2600), (260, 1550, 2600), 80, 0.45),
    "S": _noise(5900, 0.55, _TONGUE, 110),
    "Z": _noise(5600, 0.3, _TONGUE, 90, buzz=0.35),
    "SH": _noise(3200, 0.55, _BACK, 110),
    "F": _noise(4800, 0.16, _LIPS, 100),
    "V": _noise(4500, 0.1, _LIPS, 60, buzz=0.4),
    "TH": _noise(6400, 0.14, _TONGUE, 90),
    "H": _noise(2500, 0.0, (600, 1400, 2500), 60, breath=0.5),
    "P": _noise(1200, 0.35, _LIPS, 30, breath=0.3, closed=65),
    "B": _noise(900, 0.2, _LIPS, 20, buzz=0.4, closed=45),
    "T": _noise(4600, 0.5, _TONGUE, 35, breath=0.2, closed=60),
    "D": _noise(4200, 0.3, _TONGUE, 20, buzz=0.4, closed=40),
    "K": _noise(2300, 0.45, _BACK, 40, breath=0.3, closed=65),
    "G": _noise(2100, 0.3, _BACK, 25, buzz=0.4, closed=45),
}


@dataclass(frozen=True)
class Voice:
    """Who speaks.

    Args:
        pitch: middle frequency of the buzz in Hz.
        size: what all formants are multiplied by; a short vocal tract has high ones.
        speed: what all durations are divided by.
        breath: share of breath in voiced sounds.
        tilt: how fast high frequencies fall, in dB an octave beyond the source's own.
        melody: how much the pitch moves, as a share of it.
        accent: per phoneme, what its second formant is multiplied by.
    """

    pitch: float
    size: float
    speed: float
    breath: float
    tilt: float
    melody: float
    accent: dict[str, float]


def make_voice(name: str) -> Voice:
    """The voice of a name; another name gives another voice."""
    r = Random(f"voice-{name}")
    size = r.uniform(0.88, 1.2)  # from large to small people
    pitch = 115 * (size / 0.95) ** 2.6 * r.uniform(0.85, 1.2)
    accent = {phoneme: r.uniform(0.9, 1.1) for phoneme in PHONEMES}
    return Voice(
        pitch, size, r.uniform(0.8, 1.25), r.uniform(0.02, 0.15), r.uniform(0, 4), r.uniform(0.05, 0.25), accent
    )


def say(words: Sequence[Sequence[str]], voice: Voice, rng: Random, pause: float = 0.06) -> NDArray[np.float32]:
    """Speak words.

    Args:
        words: each as its phonemes, keys of `PHONEMES`.
        voice: who speaks.
        rng: how they happen to say it this time.
        pause: mean pause between words in seconds.

    Returns:
        Samples at `RATE`, shape (n,), with the largest magnitude 0.5.
    """
    times, rows, t = [_LEAD / 2], [[*_REST, 0.0, 0.0, 0.0, 4000.0]], _LEAD
    for i, word in enumerate(words):
        t += pause * rng.uniform(0.3, 1.8) if i else 0.0
        for phoneme in word:
            t = _lay(times, rows, t, phoneme, voice, rng)
        times += [t + 0.02]
        rows += [[*rows[-1][:3], 0.0, 0.0, 0.0, rows[-1][6]]]
        t += 0.02
    n = int((t + _LEAD) * RATE)
    grid = np.arange(n // _HOP + 1) * _HOP / RATE
    track = np.stack([np.interp(grid, times, column) for column in np.array(rows).T], 1)
    return _sound(track, n, voice, np.random.default_rng(rng.getrandbits(63)))


def _lay(times: list[float], rows: list[list[float]], t: float, name: str, voice: Voice, rng: Random) -> float:
    # Points (time → formants and strengths) of one phoneme; what lies between two points is interpolated.
    p = PHONEMES[name]
    stretch = rng.uniform(0.85, 1.18) / voice.speed / 1000

    slack = rng.uniform(0, 0.4)  # how far the tongue stays behind on its way to where the sound would be clearest

    def row(f: tuple[float, float, float], gain: float) -> list[float]:
        f1, f2, f3 = (((1 - slack) * x + slack * rest) * voice.size for x, rest in zip(f, _REST, strict=True))
        loud = gain * level
        return [
            f1,
            f2 * voice.accent[name],
            f3,
            p.buzz * loud,
            p.breath * loud,
            p.hiss * loud,
            p.hiss_at * voice.size**0.5,
        ]

    level = rng.uniform(0.8, 1.2)
    if p.closed:
        times += [t + 0.008, t + p.closed * stretch]
        rows += [row(p.start, 0.05), row(p.start, 0.05)]
        t += p.closed * stretch + 0.003
    length = p.duration * stretch
    edge = min(0.022, 0.3 * length)
    times += [t + edge, t + length - edge]
    rows += [row(p.start, 1.0), row(p.end, 1.0)]
    return t + length


def _sound(track: NDArray[Any], n: int, voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    seconds = np.arange(n) / RATE
    drift = 1 - 0.12 * seconds / max(seconds[-1], 1e-9)  # the voice sinks towards the end
    wave = 1 + voice.melody * np.sin(2 * np.pi * (rng.uniform(1, 2.5) * seconds + rng.random()))
    jitter = 1 + 0.01 * np.interp(seconds, seconds[::160], rng.standard_normal(len(seconds[::160])))
    phase = np.cumsum(voice.pitch * drift * wave * jitter / RATE) % 1
    glottis = np.where(phase < 0.6, 0.5 - 0.5 * np.cos(np.pi * phase / 0.4), 0.0)  # Rosenberg's pulse, simplified
    glottis = np.where(phase < 0.4, glottis, np.where(phase < 0.6, np.cos(np.pi * (phase - 0.4) / 0.4), 0.0))
    buzz = np.diff(glottis, prepend=0.0) * 6
    noise = rng.standard_normal(n)
    at = seconds * RATE / _HOP
    strength = [np.interp(at, np.arange(len(track)), track[:, i]) for i in (3, 4, 5)]
    voiced = strength[0] * (buzz + voice.breath * 0.5 * noise) + 0.25 * strength[1] * noise
    hissed = 0.35 * strength[2] * rng.standard_normal(n)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    spectrum = _stft(voiced) * _tract(track, frequency, voice) + _stft(hissed) * _mouth(track, frequency)
    sound = _overlap(spectrum, n)
    return (0.5 * sound / max(np.abs(sound).max(), 1e-9)).astype(np.float32)


def _tract(track: NDArray[Any], frequency: NDArray[Any], voice: Voice) -> NDArray[Any]:
    # The gain of four resonances in a row, shape (frames, frequencies).
    gain = np.ones((len(track), len(frequency)))
    fourth = np.full(len(track), 3500 * voice.size)
    for formant, width in zip((*track[:, :3].T, fourth), (70, 90, 140, 220), strict=True):
        f2, w2 = formant[:, None] ** 2, frequency[None, :] ** 2
        gain *= f2 / np.sqrt((f2 - w2) ** 2 + w2 * width**2)
    octaves = np.log2(np.maximum(frequency, 250) / 250)
    return gain * 10 ** (-voice.tilt * octaves / 20) * 2**octaves  # the lips radiate high tones better


def _mouth(track: NDArray[Any], frequency: NDArray[Any]) -> NDArray[Any]:
    away = (frequency[None, :] - track[:, 6:7]) / 1500
    return np.exp(-0.5 * away**2) * 1.6


def _frames(x: NDArray[Any]) -> NDArray[Any]:
    padded = np.pad(x, (_WINDOW // 2, _WINDOW))
    return np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][: len(x) // _HOP + 1]


_HANN = np.hanning(_WINDOW + 1)[:-1]


def _stft(x: NDArray[Any]) -> NDArray[Any]:
    return np.fft.rfft(_frames(x) * _HANN, axis=1)


def _overlap(spectrum: NDArray[Any], n: int) -> NDArray[Any]:
    frames = np.fft.irfft(spectrum, _WINDOW, axis=1)
    out = np.zeros(n + 2 * _WINDOW)
    for i, frame in enumerate(frames):  # windows of squared cosine sum to a constant
        out[i * _HOP : i * _HOP + _WINDOW] += frame
    return out[_WINDOW // 2 : _WINDOW // 2 + n] / (_WINDOW / _HOP / 2)
