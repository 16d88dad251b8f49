"""Recordings from anywhere: read, brought to one rate, refused with a reason, looked at and listened to."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from datasets import Audio, Dataset

from ftnb.audio import clips
from ftnb.audio.clips import as_wav, check_clips, clip_digest, clip_seconds, read_clip, store_clips, stored_clip
from ftnb.audio.examples import ClipExamples, clip_rows
from ftnb.audio.show import ClipTable, clip_html, player_html, spectrogram_png
from ftnb.audio.sources import load_clip_splits, normalise_transcript, read_recordings, read_transcripts
from ftnb.builtin.speech import COMMANDS, DIGITS, babble, spoken_commands, spoken_digits
from ftnb.builtin.voices import PHONEMES, make_voice
from ftnb.tables import DataError, Table
from tests.tiny_audio import RATE, song_folder, songs, tone, tone_folder, tones, write_wav

RNG = np.random.default_rng(0)
WAVE = tone(440.0, 0.5, RNG)


def pitch(samples: np.ndarray, rate: int) -> float:
    """The loudest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "kinds"),
    [
        (".wav", {"subtype": "PCM_16"}),
        (".wav", {"subtype": "FLOAT"}),
        (".wav", {"subtype": "PCM_U8"}),
        (".flac", {}),
        (".ogg", {}),
        (".mp3", {}),
    ],
)
def test_usual_formats_are_read(tmp_path, suffix, kinds):
    path = write_wav(tmp_path / f"a{suffix}", WAVE, **kinds)
    for source in (path, str(path), path.read_bytes(), {"path": str(path)}, {"path": None, "bytes": path.read_bytes()}):
        samples = read_clip(source, RATE)
        assert samples.dtype == np.float32
        assert abs(len(samples) - len(WAVE)) <= 2500  # MP3 pads its ends
        assert pitch(samples, RATE) == pytest.approx(pitch(WAVE, RATE), abs=5)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_every_rate_becomes_the_models_and_keeps_pitch_and_length(tmp_path, rate):
    time = np.arange(rate) / rate
    path = write_wav(tmp_path / "a.wav", 0.3 * np.sin(2 * np.pi * 440 * time), rate)
    samples = read_clip(path, RATE)
    assert len(samples) == pytest.approx(RATE, abs=2)
    assert pitch(samples, RATE) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.03)


def test_channels_are_averaged(tmp_path):
    both = np.stack([WAVE, np.zeros_like(WAVE)], 1)
    path = write_wav(tmp_path / "stereo.wav", both, subtype="FLOAT")
    assert np.allclose(read_clip(path, RATE), WAVE / 2, atol=1e-6)
    assert np.allclose(read_clip((both, RATE), RATE), WAVE / 2, atol=1e-6)
    assert np.allclose(read_clip({"array": WAVE, "sampling_rate": RATE}, RATE), WAVE)
    whole = (WAVE * 32767).astype(np.int16)
    assert np.allclose(read_clip((whole, RATE), RATE), WAVE, atol=1e-3)


def bad_files(folder: Path) -> dict[str, tuple[object, str]]:
    (folder / "text.wav").write_text("no sound", encoding="utf-8")
    (folder / "empty.wav").write_bytes(b"")
    write_wav(folder / "nothing.wav", np.zeros(0, dtype=np.float32))
    whole = write_wav(folder / "whole.flac", WAVE).read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 3])
    nan = np.full(800, np.nan, dtype=np.float32)
    return {
        "missing": (folder / "nowhere.wav", "there is no recording"),
        "text": (folder / "text.wav", "no recording that can be read"),
        "no bytes": (folder / "empty.wav", "no recording that can be read"),
        "no samples": (folder / "nothing.wav", "is empty"),
        "truncated": (folder / "cut.flac", "damaged|no recording that can be read"),
        "not a number": ((nan, RATE), "no finite numbers"),
        "samples alone": (WAVE, "do not say how fast"),
        "rate as text": ((WAVE, "16k"), "whole number of samples"),
        "rate zero": ((WAVE, 0), "whole number of samples"),
        "channels first": ((np.zeros((2, 900)), RATE), "channels come last"),
        "three axes": ((np.zeros((2, 3, 4)), RATE), "expected"),
        "a number": (7, "expected a path"),
    }


def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path):
    for case, (source, expected) in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=expected):
            pytest.fail(f"{case} was read: {read_clip(source, RATE)}")


def test_an_hour_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "MAX_SECONDS", 0.1)
    with pytest.raises(DataError, match="Cut it into sentences"):
        read_clip(write_wav(tmp_path / "long.wav", WAVE), RATE)


def test_rows_keep_recordings_undecoded(tmp_path):
    path = write_wav(tmp_path / "a.wav", WAVE)
    assert stored_clip("a.wav", tmp_path, "row 1") == {"path": str(path), "bytes": None}
    assert stored_clip(path.read_bytes(), None, "row 1")["bytes"] == path.read_bytes()
    assert np.allclose(read_clip(stored_clip((WAVE, RATE), None, ""), RATE), WAVE, atol=1e-4)
    for wrong in (None, 3, "", float("nan")):
        with pytest.raises(DataError, match="row 1: expected a recording"):
            stored_clip(wrong, None, "row 1")
    frame = pd.DataFrame({"audio": ["a.wav", None]}, index=[1, 2])
    with pytest.raises(DataError, match=r"train \(t.csv\), row 2"):
        store_clips(frame, Table(frame, "t.csv", folder=tmp_path), "train")
    assert clip_digest({"path": str(path), "bytes": None}) == clip_digest({"bytes": path.read_bytes()})
    assert clip_seconds({"path": str(path)}) == (0.5, RATE, 1)
    assert clip_seconds((np.zeros((800, 2)), 8000)) == (0.1, 8000, 2)


def test_the_check_counts_what_is_odd_and_names_what_is_broken(tmp_path):
    sources = [
        as_wav(np.stack([WAVE, WAVE], 1), RATE),
        as_wav(WAVE, 8000),
        as_wav(WAVE, 44100),
        as_wav(np.zeros(8000), RATE),
        as_wav(np.clip(WAVE * 50, -1, 1), RATE),
        as_wav(WAVE[:100], RATE),
    ]
    said = " ".join(check_clips(sources, "train", range(1, 7), RATE))
    for expected in (
        "have 2 channels, which are averaged",
        "above 4000 Hz there is nothing",
        "44100 samples a second and are brought to the model's 16000",
        "are silent, for example 'row 4'",
        "overdriven",
        "shorter than 0.05 seconds",
    ):
        assert expected in said
    assert "1 of 6" in said
    assert check_clips([as_wav(WAVE, RATE)] * 9, "train", range(9), RATE, limit=3) == [
        "train: 3 of 9 recordings were read to check them."
    ]
    with pytest.raises(DataError, match=r"(?s)valid, row 1.*\nvalid, row 3") as caught:
        check_clips([{"path": "no.wav"}, as_wav(WAVE, RATE), {"bytes": b"x"}], "valid", [1, 2, 3], RATE)
    assert len(str(caught.value).splitlines()) == 2


# -- sources ----------------------------------------------------------------------------------------------------------


def test_class_folders_and_split_folders(tmp_path):
    data = tone_folder(tmp_path / "words", each=6)
    splits = load_clip_splits(data, roles=("audio", "label"), valid_fraction=0.25)
    assert set(splits.train["label"]) == {"low", "high"}
    assert splits.train["row"][0].startswith("high/")
    for name in ("train", "test"):
        tone_folder(tmp_path / "split" / name, each=2)
    assert set(read_recordings(tmp_path / "split")) == {"train", "test"}
    (tmp_path / "flat").mkdir()
    write_wav(tmp_path / "flat" / "a.wav", WAVE)
    with pytest.raises(DataError, match="nothing says what is on them"):
        read_recordings(tmp_path / "flat")
    (tmp_path / "words" / "empty").mkdir()
    with pytest.raises(DataError, match="no recording in the class folder 'empty'"):
        read_recordings(data)


def test_tables_and_the_hubs_audio_columns(tmp_path):
    tone_folder(tmp_path, each=3)
    rows = [f"{label}/{p.name},{label}" for label in ("low", "high") for p in sorted((tmp_path / label).iterdir())]
    (tmp_path / "table.csv").write_text("\n".join(["audio,label", *rows]), encoding="utf-8")
    splits = load_clip_splits(tmp_path / "table.csv", roles=("audio", "label"), valid_fraction=0.3)
    assert Path(splits.train[0]["audio"]["path"]).is_file()
    dataset = Dataset.from_list(tones(8)).cast_column("audio", Audio(sampling_rate=RATE))
    splits = load_clip_splits(dataset, roles=("audio", "label"), valid_fraction=0.3)
    assert len(read_clip(splits.train[0]["audio"], RATE)) > 1000


def lj_speech(folder: Path) -> None:
    (folder / "wavs").mkdir(parents=True)
    for i, row in enumerate(songs(4)):
        (folder / "wavs" / f"LJ{i}.wav").write_bytes(row["audio"]["bytes"])
    lines = [f"LJ{i}|raw {i}|{row['text']}" for i, row in enumerate(songs(4))]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


def librispeech(folder: Path) -> None:
    (folder / "84" / "121").mkdir(parents=True)
    for i, row in enumerate(songs(4)):
        (folder / "84" / "121" / f"84-121-{i}.flac").write_bytes(row["audio"]["bytes"])
    lines = [f"84-121-{i} {row['text'].upper()}" for i, row in enumerate(songs(4))]
    (folder / "84" / "121" / "84-121.trans.txt").write_text("\n".join(lines), encoding="utf-8")


def audio_folder(folder: Path) -> None:
    song_folder(folder, 4)
    lines = [f'{i:03d}.wav,"{row["text"]}"' for i, row in enumerate(songs(4))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription", *lines]), encoding="utf-8")
    for path in folder.glob("*.txt"):
        path.unlink()


@pytest.mark.parametrize("make", [lj_speech, librispeech, audio_folder, lambda folder: song_folder(folder, 4)])
def test_the_usual_layouts_of_transcribed_speech(tmp_path, make):
    make(tmp_path / "data")
    splits = load_clip_splits(tmp_path / "data", roles=("audio", "text"), valid_fraction=0.25)
    found = [*splits.train["text"], *splits.valid["text"]]
    assert sorted(normalise_transcript(t) for t in found) == sorted(row["text"] for row in songs(4))
    assert len(read_clip(splits.train[0]["audio"], RATE)) > 1000


def test_what_is_no_transcribed_speech_is_refused(tmp_path):
    for name, expected in (("nothing", "holds no recording"), ("alone", "and no transcripts")):
        (tmp_path / name).mkdir()
        if name == "alone":
            write_wav(tmp_path / name / "a.wav", WAVE)
        with pytest.raises(DataError, match=expected):
            read_transcripts(tmp_path / name)
    lj_speech(tmp_path / "lj")
    table = tmp_path / "lj" / "metadata.csv"
    table.write_text(table.read_text(encoding="utf-8") + "\nLJ9|x|y", encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata.csv, line 5: there is no recording 'LJ9'"):
        read_transcripts(tmp_path / "lj")
    (tmp_path / "splits" / "test").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder 'train'"):
        read_transcripts(tmp_path / "splits")
    for read, name in ((read_recordings, "builtin:commands"), (read_transcripts, "builtin:spoken-digits")):
        with pytest.raises(DataError, match=name):
            read("builtin:else")
    data = song_folder(tmp_path / "half", 4)
    (tmp_path / "half" / "000.txt").unlink()
    assert "1 recordings without a .txt" in read_transcripts(data)["train"].notices[0]


def test_transcripts_are_normalised():
    assert normalise_transcript("  It’s  8,000 Hz — “really”?") == "it's 8 000 hz really"
    assert normalise_transcript("Ça va_bien!") == "ça va bien"


# -- built in ---------------------------------------------------------------------------------------------------------


def test_spoken_words_depend_on_split_seed_and_number_alone():
    few, more = spoken_commands("train", 4, seed=3), spoken_commands("train", 8, seed=3)
    assert few == more[:4]
    assert [row["label"] for row in more[:3]] == list(COMMANDS)[:3]
    assert spoken_commands("test", 4, seed=3) != few != spoken_commands("train", 4, seed=4)
    digits = spoken_digits("valid", 5)
    assert all(set(row["text"].split()) <= set(DIGITS) and 2 <= len(row["text"].split()) <= 5 for row in digits)
    clean, noisy = babble(1)[0]
    assert clean.shape == noisy.shape
    assert np.abs(noisy).max() <= 1
    for wrong in (
        lambda: spoken_commands("dev", 3),
        lambda: spoken_digits("train", -1),
        lambda: spoken_commands("train", 1, num_voices=0),
    ):
        with pytest.raises(DataError):
            wrong()


def test_voices_differ_and_every_word_can_be_said():
    assert make_voice("a") == make_voice("a") != make_voice("b")
    assert all(p in PHONEMES for word in (*DIGITS.values(), *COMMANDS.values()) for p in word.split())
    low, high = (min(make_voice(str(i)).pitch for i in range(50)), max(make_voice(str(i)).pitch for i in range(50)))
    assert 70 < low < 130
    assert 180 < high < 330


# -- examples and views -----------------------------------------------------------------------------------------------


def test_examples_are_cut_filled_and_kept():
    rows = Dataset.from_list([{"audio": as_wav(WAVE, RATE)}, {"audio": as_wav(WAVE[:100], RATE)}])
    examples = ClipExamples(rows, RATE, max_seconds=0.25, targets=[0, 1])
    assert len(examples[0]["samples"]) == RATE // 4
    assert len(examples[1]["samples"]) == RATE // 10  # filled with silence
    assert examples.lengths() == [4000, 100]
    assert examples.clip(0) is examples.clip(0)
    for wrong in ("a.wav", b"x", (WAVE, RATE), 5):
        with pytest.raises(DataError, match="takes a list of recordings"):
            clip_rows(wrong)
    with pytest.raises(DataError, match="recording 2|no recording"):
        clip_rows([as_wav(WAVE, RATE)["bytes"], b"nothing"])


def test_a_table_of_recordings_can_be_seen_heard_and_printed():
    table = ClipTable(("label",), [("<b>",), ("two",)], [WAVE, WAVE[:4000]], RATE, "Two & more")
    html = table._repr_html_()
    assert html.count("<audio controls") == html.count('alt="spectrogram') == 2
    assert "&lt;b&gt;" in html
    assert "Two &amp; more" in html
    assert len(html) < 40_000
    assert "0.50 s" in repr(table)
    assert "0.25 s" in repr(table)
    assert repr(ClipTable(("a",), [], [], RATE, "None.")).startswith("None.")
    assert spectrogram_png(WAVE[:50], RATE, 1.0).startswith(b"\x89PNG")


@pytest.mark.parametrize("mp3", [True, False])
def test_the_player_holds_the_sound(monkeypatch, mp3):
    if not mp3:
        monkeypatch.setattr(soundfile, "available_formats", dict)
    found = re.search(r"data:audio/(\w+);base64,([^\"]+)", player_html(WAVE, RATE, "x"))
    assert found is not None
    assert found[1] == ("mpeg" if mp3 else "wav")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(found[2])))
    assert rate == RATE
    assert pitch(samples, rate) == pytest.approx(pitch(WAVE, RATE), abs=5)
    assert "spectrogram of a&amp;b" in clip_html(as_wav(WAVE, RATE)["bytes"], "a&b")
