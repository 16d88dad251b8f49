"""Tables of what a text classifier gets wrong: whole texts, confused classes, each class by itself."""

from collections import Counter
from collections.abc import Sequence

from ftnb.tasks.display import TextTable


def confusion_table(truth: Sequence[str], predicted: Sequence[str], n: int, split: str) -> TextTable:
    """The `n` pairs of true and predicted class that were mistaken most often."""
    sizes = Counter(truth)
    wrong = Counter((a, b) for a, b in zip(truth, predicted, strict=True) if a != b)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    rows = [(a, b, f"{count} of {sizes[a]}") for (a, b), count in ranked[:n]]
    caption = f"{wrong.total()} of {len(truth)} {split} texts are wrong, in {len(wrong)} ways; the most frequent first."
    return TextTable(("label", "predicted", "texts"), rows, caption)


def class_table(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str], split: str
) -> TextTable:
    """For each label how many texts have it, how many of them were found, how often it was right, and F1.

    Args:
        truth: the labels of each text.
        predicted: the labels that each text was given.
        labels: all labels.
        split: what to call the texts.
    """
    rows = []
    for label in labels:
        has = [label in of for of in truth]
        given = [label in of for of in predicted]
        right = sum(a and b for a, b in zip(has, given, strict=True))
        f1 = 2 * right / (sum(has) + sum(given)) if any(has) or any(given) else 0.0
        found = f"{right / sum(has):.2f}" if any(has) else "–"
        precise = f"{right / sum(given):.2f}" if any(given) else "–"
        rows.append((label, str(sum(has)), found, precise, f"{f1:.2f}"))
    rows.sort(key=lambda row: (row[2] == "–", float(row[4])))
    columns = ("class", "texts", "found (recall)", "right (precision)", "F1")
    return TextTable(columns, rows, f"{split}, the worst first.")
