"""Recordings as people have them: WAV, FLAC, MP3; stereo; any rate; each as samples of one rate, or an error."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray

from ftnb.files import FileKind, file_digest
from ftnb.tables import DataError, Table

Samples = NDArray[np.float32]

RECORDINGS = FileKind("audio", "recording", (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"))
SILENT = 1e-4  # largest magnitude, of 1, below which nothing can be heard (−80 dB)
MAX_SECONDS = 600.0  # above it reading takes gigabytes


def clip_name(source: Any, place: str = "recording") -> str:
    """What to call a recording in a message: its file's name, or its place in the data."""
    path = source.get("path") if isinstance(source, Mapping) else source
    return Path(path).name if isinstance(path, str | os.PathLike) else place


def read_clip(source: Any, rate: int, *, place: str = "recording") -> Samples:
    """Read a recording as samples of one channel and one rate.

    Channels are averaged. Another rate is changed by a polyphase filter, which keeps what both rates can carry.

    Args:
        source: a path; an encoded file's bytes; a mapping with "bytes" or "path", as `datasets` gives it, or with
            "array" and "sampling_rate"; or a pair (samples, rate). Samples have the shape (n,) or (n, channels).
        rate: samples a second of the result.
        place: what to call it in a message when it has no file name, for example "train, row 3".

    Returns:
        Shape (n,), float32; a file's largest possible magnitude is 1.

    Raises:
        DataError: if there is no such file, or it is no recording, damaged, empty, too long or full of NaN.
    """
    name = clip_name(source, place)
    samples, own = _opened(source, name)
    if samples.ndim == 2:
        samples = samples.mean(1)
    if len(samples) == 0:
        raise DataError(f"{name} is empty: it holds no samples.")
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds samples that are no finite numbers. Record or export it again.")
    if own != rate:
        from scipy.signal import resample_poly  # takes a quarter of a second to import

        common = gcd(own, rate)
        samples = resample_poly(samples, rate // common, own // common)
    return np.ascontiguousarray(samples, dtype=np.float32)


def clip_seconds(source: Any, *, place: str = "recording") -> tuple[float, int, int]:
    """Length in seconds, rate and channels of a stored recording, by its file's head.

    Raises:
        DataError: if it cannot be read.
    """
    name = clip_name(source, place)
    if isinstance(source, tuple) or (isinstance(source, Mapping) and "array" in source):
        samples, rate = _opened(source, name)
        return len(samples) / rate, rate, 1 if samples.ndim == 1 else samples.shape[1]
    try:
        info = soundfile.info(_file_of(source, name))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise DataError(_unreadable(name, error)) from None
    return info.frames / info.samplerate, info.samplerate, info.channels


def _opened(source: Any, name: str) -> tuple[NDArray[Any], int]:
    if isinstance(source, Mapping) and "array" in source:
        return _from_array(source["array"], source.get("sampling_rate"), name)
    if isinstance(source, tuple) and len(source) == 2:
        return _from_array(*source, name)
    try:
        with soundfile.SoundFile(_file_of(source, name)) as file:
            seconds = file.frames / file.samplerate
            if seconds > MAX_SECONDS:
                what = f"{name} is {seconds / 60:.0f} minutes long; at most {MAX_SECONDS / 60:.0f} are read."
                raise DataError(f"{what} Cut it into sentences first: a model hears a few seconds at once.")
            samples = file.read(dtype="float32")
            if len(samples) < file.frames:
                raise DataError(f"{name} is damaged: {len(samples)} of {file.frames} samples could be read.")
            return samples, file.samplerate
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise DataError(_unreadable(name, error)) from None


def _file_of(source: Any, name: str) -> Any:
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(bytes(source))
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(
                f"there is no recording {str(path)!r}. Paths in a table are relative to the table's folder."
            )
        return str(path)
    what = "a path, bytes, a pair (samples, rate), or {'array', 'sampling_rate'}"
    hint = " Samples alone do not say how fast to play them." if isinstance(source, np.ndarray) else ""
    raise DataError(f"{name}: expected {what}; got {type(source).__name__}.{hint}")


def _from_array(array: Any, rate: Any, name: str) -> tuple[NDArray[Any], int]:
    samples = np.asarray(array)
    if not isinstance(rate, int | np.integer) or rate <= 0:
        raise DataError(f"{name}: the sampling rate must be a whole number of samples a second; got {rate!r}.")
    if samples.ndim == 2 and samples.shape[0] <= 8 < samples.shape[1]:
        raise DataError(f"{name}: samples of shape {samples.shape}; channels come last: array.T.")
    if samples.ndim not in (1, 2):
        raise DataError(f"{name}: samples of shape {samples.shape}; expected (n,) or (n, channels).")
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / np.iinfo(samples.dtype).max
    return samples.astype(np.float32), int(rate)


def _unreadable(name: str, error: Exception) -> str:
    why = str(error).rstrip(".")
    return f"{name} is no recording that can be read ({why}). Expected WAV, FLAC, OGG or MP3; convert anything else."


def stored_clip(source: Any, folder: Path | None, place: str) -> dict[str, Any]:
    """A recording as a row keeps it, not yet decoded: {"path": absolute path or None, "bytes": a file or None}.

    Args:
        source: whatever `read_clip` takes.
        folder: what a relative path is relative to; None is the working directory.
        place: where it stands, for messages.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(source, Mapping) and {"path", "bytes"} & set(source) and "array" not in source:
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str | os.PathLike) and str(source).strip():
        path = Path(str(source).strip()).expanduser()
        return {"path": str(path if path.is_absolute() else ((folder or Path.cwd()) / path)), "bytes": None}
    if isinstance(source, bytes | bytearray):
        return {"path": None, "bytes": bytes(source)}
    if isinstance(source, tuple) or (isinstance(source, Mapping) and "array" in source):
        samples, rate = _opened(source, place)
        return as_wav(samples, rate)
    raise DataError(
        f"{place}: expected a recording (a path, bytes, (samples, rate) or {{'array', 'sampling_rate'}}), got "
        f"{source!r:.60}."
    )


def as_wav(samples: NDArray[Any], rate: int) -> dict[str, Any]:
    """Samples as a stored recording: {"path": None, "bytes": a WAV file of 16 bits}."""
    with io.BytesIO() as file:
        soundfile.write(file, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
        return {"path": None, "bytes": file.getvalue()}


def store_clips(frame: pd.DataFrame, table: Table, split: str) -> pd.DataFrame:
    """A copy of a split's rows whose column "audio" holds what `stored_clip` makes of its cells.

    Raises:
        DataError: naming split and row of a cell that holds no recording.
    """
    place = f"{split} ({table.source}), row {{}}"
    clips = [stored_clip(value, table.folder, place.format(row)) for row, value in frame["audio"].items()]
    return frame.assign(audio=pd.Series(clips, index=frame.index, dtype=object))


def clip_digest(source: Any) -> bytes:
    """A fingerprint of a stored recording (see `ftnb.files.file_digest`)."""
    return file_digest(source.get("bytes") or source.get("path") if isinstance(source, Mapping) else source)


def check_clips(sources: Sequence[Any], split: str, rows: Sequence[Any], rate: int, limit: int = 5000) -> list[str]:
    """Read every recording once, before training; a damaged one would else stop the training in its tenth minute.

    Args:
        sources: stored recordings.
        split: the split's name, for messages.
        rows: what to call each one's row in the source.
        rate: the model's samples a second.
        limit: of more recordings than this, an evenly spaced part is read.

    Returns:
        What had to be done to recordings, and what is odd about them, as sentences.

    Raises:
        DataError: naming up to five recordings that cannot be read.
    """
    step = max(1, -(-len(sources) // limit))
    looked = list(zip(sources, rows, strict=True))[::step]
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    problems: list[str] = []
    for source, row in looked:
        try:
            for what in _findings(source, rate, f"row {row}"):
                counts[what] += 1
                examples.setdefault(what, clip_name(source, f"row {row}"))
        except DataError as error:
            problems.append(f"{split}, row {row}: {error}")
            if len(problems) == 5:
                break
    if problems:
        raise DataError("\n".join(problems))
    said = [
        f"{split}: {n} of {len(looked)} recordings {what}, for example {examples[what]!r}."
        for what, n in counts.items()
    ]
    part = [f"{split}: {len(looked)} of {len(sources)} recordings were read to check them."] if step > 1 else []
    return said + part


def _findings(source: Any, rate: int, place: str) -> list[str]:
    _, own, channels = clip_seconds(source, place=place)
    samples = read_clip(source, rate, place=place)
    found = []
    if channels > 1:
        found.append(f"have {channels} channels, which are averaged")
    if own < rate:
        found.append(f"were made at {own} samples a second, so that above {own // 2} Hz there is nothing to hear")
    elif own > rate:
        found.append(f"were made at {own} samples a second and are brought to the model's {rate}")
    loudest = float(np.abs(samples).max())
    if loudest < SILENT:
        found.append("are silent")
    elif float(np.mean(np.abs(samples) > 0.999)) > 0.01:
        found.append("are overdriven: over 1 % of their samples are at the limit")
    if len(samples) < rate // 20:
        found.append("are shorter than 0.05 seconds")
    return found
