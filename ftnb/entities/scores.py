"""Scores of found entities, by seqeval; nothing else here knows that library."""

import warnings
from collections.abc import Sequence

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from ftnb.entities.tags import to_bio


def entity_scores(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of whole entities: one is right if its first word, its last word and its type are.

    seqeval counts in its strict mode with the scheme IOB2 (BIO), in which an "I-" that continues nothing is no entity.
    Both sides are therefore read as predictions are: such an "I-" begins an entity.

    Args:
        truth: per sentence, the tag of each word.
        predicted: the same of a model.

    Returns:
        "all" (every entity counts the same) and each type → "precision", "recall", "f1" and "support", the number of
        true entities. A score whose denominator is 0 is 0.

    Source: Nakayama (2018), seqeval; the measure is that of Tjong Kim Sang and De Meulder (2003), "Introduction to the
        CoNLL-2003 shared task".
    """
    sides = [[to_bio(tags) for tags in side] for side in (truth, predicted)]
    if all(tag == "O" for side in sides for tags in side for tag in tags):
        return {"all": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each score that has a denominator of 0
        report = classification_report(*sides, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
    averages = ("macro avg", "weighted avg", "micro avg")
    names = {"all": "micro avg", **{name: name for name in report if name not in averages}}
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    return {name: {ours: float(report[of][theirs]) for ours, theirs in keys.items()} for name, of in names.items()}
