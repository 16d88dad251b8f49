"""Speech recognisers of two families: wav2vec 2.0's (at every moment a letter or nothing, CTC) and Whisper's."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from ftnb.audio.models import without_masking
from ftnb.pretrained import (
    NO_WEIGHTS,
    TOKENIZER_FILES,
    ModelError,
    find_model,
    loading,
    read_checkpoint,
)
from ftnb.saving import save_pretrained

PAD, UNKNOWN, SPACE = "[PAD]", "[UNK]", "|"  # the padding token is CTC's blank, as in wav2vec 2.0's own vocabularies


@dataclass(frozen=True)
class Recogniser:
    """A model that writes down speech, and what belongs to it.

    Attributes:
        model: in eval mode, in float32.
        extractor: transformers' feature extractor.
        tokenizer: from text to labels and back.
        ctc: whether it is of wav2vec 2.0's family; else it writes token after token.
        upper: whether its vocabulary has capitals only.
        new_parameters: names of the parameters that start from random numbers.
        notices: what a reader of the result should know.
    """

    model: Any
    extractor: Any
    tokenizer: Any
    ctc: bool
    upper: bool = False
    new_parameters: frozenset[str] = frozenset()
    notices: list[str] = field(default_factory=list)

    @property
    def rate(self) -> int:
        """Samples a second that the model expects."""
        return int(self.extractor.sampling_rate)

    def labels(self, text: str) -> list[int]:
        """What a normalised transcript is to the model: letters, or tokens up to the one that ends a text."""
        ids: list[int] = self.tokenizer(text.upper() if self.upper else text).input_ids
        starts = not self.ctc and ids[:1] == [self.model.config.decoder_start_token_id]
        return ids[1:] if starts else ids  # the model puts that token in front itself


def load_recogniser(name: str, transcripts: Iterable[str], *, scratch: bool = False, seed: int = 0) -> Recogniser:
    """Load a speech recogniser.

    A model of wav2vec 2.0's family keeps its letters and its head if they can spell the transcripts; otherwise both are
    made new from the letters that occur.

    Args:
        name: "builtin:wav2vec2-babble", a local folder laid out as the Hub's, or a Hub id.
        transcripts: normalised (see `ftnb.audio.sources.normalise_transcript`); none for a model that is to predict.
        scratch: random weights in place of the pretrained ones.
        seed: of the new parameters' random numbers.

    Raises:
        ModelError: if the model is not there, damaged, or is no recogniser.
    """
    place, source = find_model(name)
    with loading(name, source, seed):
        config = AutoConfig.from_pretrained(place)
        extractor = AutoFeatureExtractor.from_pretrained(place)
        if config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
            found = _seq2seq(place, config, extractor, scratch)
        elif config.model_type in MODEL_FOR_CTC_MAPPING_NAMES:
            found = _ctc(place, source, config, extractor, list(transcripts), scratch)
        else:
            raise ModelError(f"a {config.model_type} model is no speech recogniser (wav2vec2, hubert, whisper …).")
    return found


def _ctc(place: str, source: str, config: Any, extractor: Any, transcripts: list[str], scratch: bool) -> Recogniser:
    tokenizer = _own_tokenizer(place, source)
    upper = tokenizer is not None and not any(len(t) == 1 and t.islower() for t in tokenizer.get_vocab())
    notices: list[str] = []
    letters = sorted({letter for text in transcripts for letter in text} - {" "})
    known = set(tokenizer.get_vocab()) if tokenizer is not None else set()
    missing = [letter for letter in letters if (letter.upper() if upper else letter) not in known]
    if tokenizer is None and not transcripts:
        raise ModelError(f"{place} has no letters (vocab.json), so it has nothing to write with. Fine-tune it first.")
    if missing:
        if tokenizer is not None:
            notices.append(f"the checkpoint's vocabulary lacks {', '.join(missing[:8])}; letters and head start new.")
        tokenizer, upper = make_tokenizer(letters), False
    assert tokenizer is not None
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True
    if scratch:
        model = AutoModelForCTC.from_config(config).eval()
        new = {parameter for parameter, _ in model.named_parameters()}
        notices.append(NO_WEIGHTS)
    else:
        model, new, _ = read_checkpoint(place, AutoModelForCTC, config)
        if missing:
            with torch.no_grad():
                model.lm_head.reset_parameters()
            new |= {"lm_head.weight", "lm_head.bias"}
    notices += without_masking(model)
    return Recogniser(model, extractor, tokenizer, True, upper, frozenset(new), notices)


def _own_tokenizer(place: str, source: str) -> Any:
    if source != "hub" and not any((Path(place) / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, TypeError, KeyError):  # a pretrained body without letters
        if source == "hub":
            return None
        raise


def _seq2seq(place: str, config: Any, extractor: Any, scratch: bool) -> Recogniser:
    tokenizer = AutoTokenizer.from_pretrained(place)
    if scratch:
        model = AutoModelForSpeechSeq2Seq.from_config(config).eval()
        new, notices = {parameter for parameter, _ in model.named_parameters()}, [NO_WEIGHTS]
    else:
        model, new, _ = read_checkpoint(place, AutoModelForSpeechSeq2Seq, config)
        notices = []
    return Recogniser(model, extractor, tokenizer, False, False, frozenset(new), notices + without_masking(model))


def make_tokenizer(letters: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """A tokenizer with these letters, a sign for the space between words, one for unknown letters, and CTC's blank."""
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, SPACE, *letters])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(path), pad_token=PAD, unk_token=UNKNOWN, word_delimiter_token=SPACE, bos_token=None, eos_token=None
        )


def frames_of(recogniser: Recogniser, num_samples: torch.Tensor) -> torch.Tensor:
    """How many answers a CTC model gives for so many samples, shape as given."""
    frames: torch.Tensor = recogniser.model._get_feat_extract_output_lengths(num_samples)
    return frames.long()


def save_recogniser(recogniser: Recogniser, folder: str | Path) -> Path:
    """Save model, feature extractor and tokenizer as a folder that transformers' `pipeline` loads.

    Returns:
        The folder.
    """
    own = (recogniser.extractor, recogniser.tokenizer)
    return save_pretrained(folder, recogniser.model, *((Wav2Vec2Processor(*own),) if recogniser.ctc else own))
