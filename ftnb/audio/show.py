"""Recordings to look at and to listen to: a spectrogram and a player each, in a notebook and in its saved copy."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import soundfile
from PIL import Image
from scipy.signal import spectrogram

from ftnb.audio.clips import Samples, read_clip
from ftnb.tasks.display import TextTable

HEIGHT = 56  # pixels of a spectrogram
_DARK, _LIGHT = np.array([250, 250, 252]), np.array([28, 38, 92])  # quiet is light, loud is dark


def spectrogram_png(samples: Samples, rate: int, seconds: float) -> bytes:
    """A spectrogram as a small picture: time to the right, pitch upwards to 8 kHz, the louder the darker.

    Args:
        samples: shape (n,).
        rate: samples a second.
        seconds: the length that fills the picture's width of 240 pixels.
    """
    window = round(0.016 * rate)
    padded = np.pad(samples, (0, max(0, 4 * window - len(samples))))
    _, _, power = spectrogram(padded, rate, nperseg=window, noverlap=window // 2, nfft=2 * window)
    loud = np.clip(1 + np.log10(power / max(power.max(), 1e-12) + 1e-9) / 5, 0, 1)[: round(8000 / rate * 2 * window)]
    shade = (_DARK + loud[::-1, :, None] * (_LIGHT - _DARK)).astype(np.uint8)
    width = max(8, round(240 * len(samples) / rate / max(seconds, 1e-3)))
    with io.BytesIO() as file:
        Image.fromarray(shade).resize((width, HEIGHT), Image.Resampling.BILINEAR).quantize(48).save(file, "PNG")
        return file.getvalue()


def player_html(samples: Samples, rate: int, name: str) -> str:
    """A player that needs no file beside it: MP3 where soundfile can write it (a tenth of a WAV's size), else WAV."""
    mp3 = "MP3" in soundfile.available_formats()
    loudest = max(float(np.abs(samples).max()), 1e-6)
    with io.BytesIO() as file:
        soundfile.write(file, 0.9 * samples / loudest, rate, format="MP3" if mp3 else "WAV")
        sound = base64.b64encode(file.getvalue()).decode()
    kind = "mpeg" if mp3 else "wav"
    style = "height:32px;width:240px;vertical-align:middle"
    source = f"data:audio/{kind};base64,{sound}"
    return f'<audio controls preload="none" style="{style}" title="{escape(name)}" src="{source}"></audio>'


def clip_html(content: bytes, name: str) -> str:
    """An encoded recording as a spectrogram above a player.

    Raises:
        DataError: if it cannot be read.
    """
    samples = read_clip({"path": name, "bytes": content}, 16_000)
    png = base64.b64encode(spectrogram_png(samples, 16_000, len(samples) / 16_000)).decode()
    image = f'<img alt="spectrogram of {escape(name)}" style="display:block" src="data:image/png;base64,{png}">'
    return f"<div>{image}{player_html(samples, 16_000, name)}</div>"


@dataclass(frozen=True)
class ClipTable:
    """Recordings with what is known of them; a terminal gets the same as a plain table.

    Args:
        columns: the heading of each further column.
        rows: the further cells of each recording, as text.
        clips: the samples of each.
        rate: samples a second.
        caption: a sentence above the table.
        html_cells: the further cells as HTML, where they hold more than text.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    clips: Sequence[Samples]
    rate: int
    caption: str = ""
    html_cells: Sequence[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_html_(self) -> str:
        longest = max((len(clip) / self.rate for clip in self.clips), default=1.0)
        head = "".join(f'<th style="text-align:left">{escape(column)}</th>' for column in ("recording", *self.columns))
        lines = []
        for i, (clip, row) in enumerate(zip(self.clips, self.rows, strict=True)):
            cells = [escape(cell) for cell in row] if self.html_cells is None else self.html_cells[i]
            png = base64.b64encode(spectrogram_png(clip, self.rate, longest)).decode()
            alt = f"spectrogram, {len(clip) / self.rate:.1f} seconds"
            image = f'<img alt="{alt}" style="height:{HEIGHT}px;display:block" src="data:image/png;base64,{png}">'
            sound = player_html(clip, self.rate, row[0] if row else "")
            further = "".join(f'<td style="text-align:left;vertical-align:middle">{cell}</td>' for cell in cells)
            lines.append(f'<tr><td style="text-align:left">{image}{sound}</td>{further}</tr>')
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    def __repr__(self) -> str:
        cells = [(f"{len(clip) / self.rate:.2f} s", *row) for clip, row in zip(self.clips, self.rows, strict=True)]
        return repr(TextTable(("recording", *self.columns), cells, self.caption))
