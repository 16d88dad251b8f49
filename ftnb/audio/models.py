"""Audio classifiers: transformers' models, and a small network on a log-mel spectrogram that starts from nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import SequenceClassifierOutput

from ftnb.pretrained import NO_WEIGHTS, ModelError, load_pretrained, read_config
from ftnb.saving import save_pretrained
from ftnb.vision.torchvision_models import CONFIG, WEIGHTS, save_folder

LOGMEL = "logmel-cnn"
WINDOW, HOP, MELS = 400, 160, 40  # samples, samples, bands: 25 and 10 ms at 16,000 samples a second


@dataclass(frozen=True)
class AudioModel:
    """An audio model and what belongs to it.

    Attributes:
        model: in eval mode, in float32.
        extractor: transformers' feature extractor: from samples to the model's input.
        labels: the classes, in the order of its outputs.
        new_parameters: names of the parameters that start from random numbers.
        notices: what a reader of the result should know.
    """

    model: nn.Module
    extractor: Any
    labels: list[str]
    new_parameters: frozenset[str] = frozenset()
    notices: list[str] = field(default_factory=list)

    @property
    def rate(self) -> int:
        """Samples a second that the model expects."""
        return int(self.extractor.sampling_rate)


class LogMelCNN(nn.Module):
    """Four convolutions over a log-mel spectrogram, averaged over time.

    Args:
        num_labels: number of classes.
        rate: samples a second.
        width: channels of the first convolution; the others have twice and four times as many.
        dropout: before the head.
    """

    mel: Tensor
    window: Tensor

    def __init__(self, num_labels: int, rate: int = 16_000, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        mel = mel_filter_bank(WINDOW // 2 + 1, MELS, 60.0, 0.95 * rate / 2, rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("mel", torch.tensor(mel, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        widths = (1, width, 2 * width, 2 * width, 4 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * width, num_labels)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """Logits of shape (batch, classes).

        Args:
            input_values: samples, shape (batch, n), each row with mean 0 and deviation 1.
            attention_mask: 1 for samples, 0 for padding, shape (batch, n); None is all samples.
        """
        x = self.spectrogram(input_values)[:, None]  # (batch, 1, bands, frames)
        for block in self.blocks:
            x = block(x)
        shares = torch.ones_like(x[:, 0, 0])
        if attention_mask is not None:
            lengths = attention_mask.sum(-1, keepdim=True) / (HOP * 2 ** len(self.blocks))
            steps = torch.arange(x.shape[-1], device=x.device)
            shares = (steps < lengths.clamp(min=1)).to(x.dtype)  # (batch, frames)
        x = (x.amax(2) * shares[:, None]).sum(-1) / shares.sum(-1, keepdim=True)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(x)))

    def spectrogram(self, samples: Tensor) -> Tensor:
        """The log-mel spectrogram of samples (batch, n), shape (batch, bands, frames); see `log_mel`."""
        return log_mel(samples, self.mel, self.window)


def log_mel(samples: Tensor, mel: Tensor, window: Tensor) -> Tensor:
    """How loud each band of frequencies is, every 10 ms, on a logarithmic scale.

    Args:
        samples: shape (batch, n).
        mel: the bands, shape (frequencies, bands).
        window: of the Fourier transform.

    Returns:
        Shape (batch, bands, frames).
    """
    padded = nn.functional.pad(samples.float(), (0, max(0, 17 * HOP + WINDOW - samples.shape[-1])))
    power = torch.stft(padded, len(window), HOP, window=window, center=False, return_complex=True).abs() ** 2
    return (mel.T @ power).clamp(min=1e-5).log() / 4


def load_audio_classifier(name: str, labels: Sequence[str], *, scratch: bool = False, seed: int = 0) -> AudioModel:
    """Load a model with a head for the labels.

    Args:
        name: "builtin:wav2vec2-babble", "logmel-cnn" (a small network that starts from random numbers), a folder
            (transformers' layout, or one that `save_audio_model` wrote) or a Hub id.
        labels: the classes; their order is that of the outputs unless the checkpoint has the same classes already.
        scratch: random weights in place of the pretrained ones.
        seed: of the new parameters' random numbers.

    Raises:
        ModelError: if the model is not there, damaged, or does not fit the task.
    """
    if name == LOGMEL:
        return _small_network(list(labels), seed)
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file() and "architecture" in read_config(folder):
        return _from_saved(folder, labels, scratch, seed)
    found = load_pretrained(name, "audio-classification", labels, scratch=scratch, seed=seed)
    notices = [*found.notices, *without_masking(found.model)]
    names = {int(i): label for i, label in found.model.config.id2label.items()}  # type: ignore[union-attr]
    order = [names[i] for i in range(len(names))]
    return AudioModel(found.model, found.processor, order, found.new_parameters, notices)


def without_masking(model: Any) -> list[str]:
    """Switch off the masking that wav2vec2's family does in training: NumPy's global generator decides it, no seed.

    Returns:
        A notice, if it was on.
    """
    config = model.config
    on = getattr(config, "apply_spec_augment", False) and max(
        getattr(config, "mask_time_prob", 0), getattr(config, "mask_feature_prob", 0)
    )
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    return ["SpecAugment (masked stretches in training) is off: no seed would decide it."] if on else []


def _small_network(labels: list[str], seed: int) -> AudioModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LogMelCNN(len(labels)).eval()
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    return AudioModel(model, extractor, labels, frozenset(n for n, _ in model.named_parameters()), [NO_WEIGHTS])


def _from_saved(folder: Path, labels: Sequence[str], scratch: bool, seed: int) -> AudioModel:
    config = read_config(folder)
    if config.get("architecture") != LOGMEL:
        raise ModelError(f"{folder} holds a model for {config.get('task')}, not for audio-classification.")
    names = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
    new = _small_network(list(labels), seed)
    if scratch:
        return new
    saved = _small_network(names, seed)
    try:
        load_model(saved.model, str(folder / WEIGHTS))
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be loaded: {str(error)[:300]}") from None
    if set(names) == set(labels):
        return AudioModel(saved.model, saved.extractor, names)
    saved.model.classifier = new.model.classifier
    head = frozenset(n for n, _ in saved.model.named_parameters() if n.startswith("classifier."))
    notices = ["the checkpoint's head was made for other labels; the head starts new."]
    return AudioModel(saved.model, saved.extractor, list(labels), head, notices)


def save_audio_model(audio: AudioModel, folder: str | Path, task: str = "audio-classification") -> Path:
    """Save a model as a folder: transformers' layout for its models, else what `load_audio_classifier` reads.

    Returns:
        The folder.
    """
    folder = Path(folder)
    if isinstance(audio.model, LogMelCNN):
        labels = dict(enumerate(audio.labels))
        config = {"library_name": "ftnb", "task": task, "architecture": LOGMEL, "id2label": labels}
        save_folder(folder, audio.model, config)
    else:
        save_pretrained(folder, audio.model, audio.extractor)
    return folder


def loading_code(audio: AudioModel, folder: str | Path) -> str:
    """The lines of Python that use a saved model; without this package for a transformers model."""
    if isinstance(audio.model, LogMelCNN):
        return f'from ftnb.saved import load_task\n\nload_task({str(folder)!r}).predict(["clip.wav"])'
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("audio-classification", {str(folder)!r})\nclassify("clip.wav")'
    )
