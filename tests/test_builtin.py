"""The generated reviews: the same from one seed, honest splits, errors that say what to do."""

import pytest

from ftnb.builtin.reviews import LABELS, labelled_reviews, polar_words, unlabelled_reviews
from ftnb.builtin.words import PEOPLE, PLACES, PLAIN, POLAR_WORDS, SUBJECTS, TIMES, all_words

FIRST_TRAINING_REVIEW = "the narrator was good and marvellous . the finale was poor . nobody loved it ."
FIRST_UNLABELLED_REVIEW = (
    "a clumsy and dull novel . the villain was rather bad . i found the plot clumsy and poor . "
    "my dentist hated the style . the hero was lousy and horrible . the cover was never charming ."
)


def words_in(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


def texts(split: str, num: int, seed: int = 0, **options: float) -> list[str]:
    return [review["text"] for review in labelled_reviews(split, num, seed, **options)]


ALL_POLAR = {word for label in LABELS for word in polar_words(label)}
UNSEEN = {word for label in LABELS for word in polar_words(label, "unseen")}


def test_first_review_is_the_same_on_every_machine():
    # The shipped checkpoint and all figures rest on this text; a change of the generator must be a decision.
    assert labelled_reviews("train", 1, seed=0) == [{"text": FIRST_TRAINING_REVIEW, "label": "negative"}]
    assert next(unlabelled_reviews(1, seed=0)) == FIRST_UNLABELLED_REVIEW


def test_one_seed_gives_one_text_and_another_seed_another():
    assert labelled_reviews("test", 50, seed=3) == labelled_reviews("test", 50, seed=3)
    assert texts("test", 50, seed=3) != texts("test", 50, seed=4)
    assert list(unlabelled_reviews(20, seed=3)) == list(unlabelled_reviews(20, seed=3))


@pytest.mark.parametrize(("split", "size"), [("train", 128), ("valid", 200), ("test", 400), ("test_seen", 400)])
def test_default_sizes_and_balanced_labels(split, size):
    labels = [review["label"] for review in labelled_reviews(split)]
    assert len(labels) == size
    assert labels.count("positive") == labels.count("negative") == size // 2
    assert labels[: size // 2].count("positive") not in (0, size // 2)  # shuffled, not sorted


def test_test_words_never_occur_in_labelled_training_or_validation_reviews():
    for split in ("train", "valid", "test_seen"):
        assert not words_in(texts(split, 200)) & UNSEEN
    assert words_in(texts("test", 200)) & ALL_POLAR <= UNSEEN


def test_unlabelled_text_holds_every_polar_word_and_nothing_outside_the_vocabulary():
    words = words_in(list(unlabelled_reviews(5000)))
    assert words >= ALL_POLAR
    assert words <= set(all_words())


def test_every_review_has_a_polar_word_at_every_difficulty():
    for difficulty in (0.0, 1.0):
        assert all(set(text.split()) & ALL_POLAR for text in texts("train", 100, difficulty=difficulty))


def test_without_difficulty_every_polar_word_agrees_with_the_label():
    for review in labelled_reviews("test", 100, difficulty=0.0):
        other = "negative" if review["label"] == "positive" else "positive"
        assert not set(review["text"].split()) & set(polar_words(other))


def test_splits_share_no_text_whatever_their_seeds():
    splits = ("train", "valid", "test", "test_seen")
    found = {split: {text for seed in range(2) for text in texts(split, 200, seed)} for split in splits}
    found["unlabelled"] = set(unlabelled_reviews(2000))
    names = list(found)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            assert not found[name] & found[other], (name, other)
    assert all(len(set(texts(split, 200))) == 200 for split in splits)


def test_polar_words_occur_nowhere_else_and_on_one_side_only():
    neutral = {*PEOPLE, *PLAIN, *PLACES, *" ".join(TIMES).split()}
    for subject in SUBJECTS.values():
        neutral |= {*subject.names, *subject.aspects, *" ".join(subject.facts).split()}
    assert not neutral & ALL_POLAR
    assert len(ALL_POLAR) == sum(len(words) for kinds in POLAR_WORDS.values() for words in kinds.values())


def test_seen_and_unseen_words_make_up_all():
    for label in LABELS:
        seen, unseen = polar_words(label, "seen"), polar_words(label, "unseen")
        assert sorted(seen + unseen) == sorted(polar_words(label))
        assert len(seen) == len(unseen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: labelled_reviews("dev"), "split 'dev' is unknown; choose one of 'train', 'valid'"),
        (lambda: labelled_reviews("train", -1), "num_examples must not be negative, got -1"),
        (lambda: labelled_reviews("train", difficulty=1.5), "difficulty must be between 0 .* got 1.5"),
        (lambda: unlabelled_reviews(-5), "num_documents must not be negative, got -5"),
        (lambda: polar_words("neutral"), "polarity 'neutral' is unknown"),
        (lambda: polar_words("positive", "some"), "part 'some' is unknown"),
    ],
)
def test_wrong_arguments_are_named_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()
