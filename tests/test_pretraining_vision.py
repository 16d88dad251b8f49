"""The shipped image checkpoints are what their cards say, load offline and transfer; and can be made again."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import ftnb
from ftnb.builtin.digits import digit_images
from ftnb.builtin.glyphs import LABELS as GLYPHS
from ftnb.pretraining import weights_hash
from ftnb.pretraining_vision import (
    SETTINGS,
    VisionPretraining,
    as_inputs,
    digit_batch,
    finetuned_accuracy,
    fit_ridge,
    glyph_accuracy,
    image_processor,
    main,
    new_model,
    pooled_features,
    pretrain,
    probe_accuracy,
    save_checkpoint,
    scores,
    shuffled_batches,
    zero_shot_accuracy,
)

SHIPPED = {name: Path(ftnb.__file__).parent / "weights" / f"{name}-glyphs" for name in ("resnet", "vit")}
both = pytest.mark.parametrize("name", ["resnet", "vit"])
KINDS = ("fine-tuned", "from scratch", "probe", "probe, random weights")


# -- what is shipped --------------------------------------------------------------------------------------------------


@both
def test_card_names_the_file_the_licence_and_the_measured_scores(name):
    card = (SHIPPED[name] / "README.md").read_text()
    assert weights_hash(SHIPPED[name]) in card
    assert "license: apache-2.0" in card
    table = json.loads((SHIPPED[name] / "scores.json").read_text())
    assert f"{table['zero-shot']:.3f}" in card
    for kind in KINDS:
        for entry in table[kind].values():
            assert f"{entry['mean']:.3f} ± {entry['plus_minus']:.3f}" in card


@both
def test_log_belongs_to_the_shipped_file_and_to_the_default_settings(name):
    log = json.loads((SHIPPED[name] / "training_log.json").read_text())
    assert log["sha256"] == weights_hash(SHIPPED[name])
    assert log["settings"] == asdict(SETTINGS[name])
    assert log["rows"][-1]["step"] == SETTINGS[name].num_steps


@both
def test_figures_are_of_five_fresh_seeds_and_show_the_gap(name):
    table = json.loads((SHIPPED[name] / "scores.json").read_text())
    assert min(table["seeds"]) >= 1000
    assert len(table["seeds"]) >= 5
    for number in ("3", "10"):
        tuned, scratch = table["fine-tuned"][number], table["from scratch"][number]
        assert len(tuned["values"]) == len(table["seeds"])
        assert tuned["mean"] - tuned["plus_minus"] > scratch["mean"] + scratch["plus_minus"]


@both
def test_checkpoint_is_small_and_holds_no_pickle(name):
    assert sum(path.stat().st_size for path in SHIPPED[name].iterdir()) <= 4_000_000
    assert not [path for path in SHIPPED[name].iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


@both
def test_checkpoint_loads_with_every_weight_and_the_names_of_its_classes(name):
    model, info = AutoModelForImageClassification.from_pretrained(SHIPPED[name], output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.model_type == name
    assert model.config.id2label == dict(enumerate(GLYPHS))  # another generator's classes need another checkpoint
    backbone = AutoModel.from_pretrained(SHIPPED[name])
    assert torch.isfinite(backbone(torch.zeros(1, 3, 32, 32)).last_hidden_state).all()


@both
@pytest.mark.parametrize(("mode", "size"), [("L", (8, 8)), ("RGB", (64, 64)), ("CMYK", (50, 20))])
def test_shipped_processor_takes_images_of_any_mode_and_size(name, mode, size):
    processor = AutoImageProcessor.from_pretrained(SHIPPED[name])
    pixel_values = processor(Image.new("L", size).convert(mode), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)
    assert torch.equal(pixel_values, torch.full_like(pixel_values, -1.0))
    assert processor.to_dict() == image_processor().to_dict()


@both
def test_shipped_model_reads_print_and_some_handwriting_as_it_is(name):
    model = AutoModelForImageClassification.from_pretrained(SHIPPED[name])
    assert glyph_accuracy(model) > 0.4  # of 51 classes, at full distortion
    assert zero_shot_accuracy(model, "valid") > 0.5


def test_fine_tuning_beats_scratch_on_few_handwritten_digits():
    # A seed that no figure of the card or the lessons uses.
    tuned, scratch = (
        finetuned_accuracy(SHIPPED["resnet"], 5001, pretrained=pretrained, num_per_class=3, split="valid", num_steps=40)
        for pretrained in (True, False)
    )
    assert tuned > 0.75
    assert tuned > scratch + 0.05


# -- the pieces -------------------------------------------------------------------------------------------------------


def test_inputs_keep_grey_or_get_two_colours_a_picture():
    grey = torch.tensor([[[0, 255], [51, 255]]], dtype=torch.uint8).repeat(200, 1, 1)
    plain = as_inputs(grey, 0.0, torch.Generator())
    assert plain.shape == (200, 3, 2, 2)
    torch.testing.assert_close(plain[7, 1], torch.tensor([[-1.0, 1.0], [-0.6, 1.0]]))
    coloured = as_inputs(grey, 0.5, torch.Generator().manual_seed(0))
    is_coloured = (coloured != plain).flatten(1).any(1)
    assert 0.35 < is_coloured.float().mean() < 0.65
    assert coloured.abs().max() <= 1
    assert torch.equal(coloured[:, :, 0, 1], coloured[:, :, 1, 1])  # equal grey stays equal
    torch.testing.assert_close(coloured[:, :, 1, 0], 0.8 * coloured[:, :, 0, 0] + 0.2 * coloured[:, :, 0, 1])


def test_glyphs_and_digits_reach_the_model_in_the_same_form():
    image = digit_images("train", 1)[0]["image"].resize((32, 32), Image.Resampling.BILINEAR)
    processed = image_processor()(image, return_tensors="pt")["pixel_values"]
    ours = as_inputs(torch.from_numpy(np.array(image))[None], 0.0, torch.Generator())
    torch.testing.assert_close(processed, ours)


def test_ridge_separates_what_is_separable_and_centres_the_features():
    labels = torch.arange(10).repeat(3)
    features = 100 + 5 * torch.nn.functional.one_hot(labels, 10).float()
    classify = fit_ridge(features, labels)
    assert torch.equal(classify(features).argmax(1), labels)
    torch.testing.assert_close(classify(features).sum(1), torch.ones(30, dtype=torch.double))
    assert classify(features + 0.1).argmax(1).equal(labels)


@both
def test_measuring_changes_neither_weights_nor_mode(name):
    model = new_model(name, seed=3).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    X, _ = digit_batch("train", 1)
    assert pooled_features(model, X).ndim == 2
    values = [probe_accuracy(model, 1, 3), zero_shot_accuracy(model, "valid"), glyph_accuracy(model, 50)]
    assert all(0 <= value <= 1 for value in values)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("num_examples", "batch_size", "num_batches"), [(30, 32, 4), (100, 32, 5), (7, 7, 3)])
def test_batches_show_every_example_equally_often(num_examples, batch_size, num_batches):
    batches = list(shuffled_batches(num_examples, batch_size, num_batches))
    assert [len(batch) for batch in batches] == [batch_size] * num_batches
    counts = torch.bincount(torch.cat(batches), minlength=num_examples)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", ["perceiver", "ResNet"])
def test_unknown_architecture_is_refused(name):
    with pytest.raises(ValueError, match=f"architecture '{name}' is unknown; choose 'resnet' or 'vit'"):
        new_model(name, seed=1)
    with pytest.raises(ValueError, match=f"architecture '{name}' is unknown; choose 'resnet' or 'vit'"):
        VisionPretraining(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": 0}, "seed must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"coloured": 1.5}, "coloured is a share, from 0 to 1; got 1.5"),
        ({"easy_start": -1.0}, "easy_start is a share, from 0 to 1; got -1.0"),
        ({"probe_every": 0}, "probe_every must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        VisionPretraining(**wrong)


# -- the run ----------------------------------------------------------------------------------------------------------


def test_a_short_run_learns_and_one_seed_gives_the_same_weights_twice(tmp_path):
    settings = VisionPretraining("resnet", num_steps=30, batch_size=32, lr=3e-3, easy_start=1.0, probe_every=15)
    hashes = []
    for folder in ("first", "second"):
        model = new_model("resnet", settings.seed)
        rows = list(pretrain(model, settings))
        hashes.append(save_checkpoint(model, tmp_path / folder))
    assert [row["step"] for row in rows] == [15, 30]
    assert rows[-1]["loss"] < rows[0]["loss"]  # though the glyphs become harder
    assert rows[-1]["zero_shot"] > 0.2  # of handwriting, with no labelled digit; chance is 0.1
    assert hashes[0] == hashes[1]


def test_a_vit_runs_too_and_the_last_row_comes_when_steps_do_not_divide():
    settings = VisionPretraining("vit", num_steps=3, batch_size=4, probe_every=2)
    rows = list(pretrain(new_model("vit", 1), settings))
    assert [row["step"] for row in rows] == [2, 3]
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_command_writes_a_folder_that_loads(tmp_path):
    lines = []
    arguments = [str(tmp_path / "vit"), "--model", "vit", "--steps", "2", "--score-seeds", "0"]
    main(arguments, report=lines.append)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert len(model.config.id2label) == len(GLYPHS)
    log = json.loads((tmp_path / "vit" / "training_log.json").read_text())
    assert log["settings"] == {**asdict(SETTINGS["vit"]), "num_steps": 2}
    assert log["sha256"] == weights_hash(tmp_path / "vit")
    assert log["sha256"] in lines[-1]


def test_command_refuses_a_single_seed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--score-seeds", "1"])
    assert "one seed has no standard error" in capsys.readouterr().err


def test_scores_hold_every_seed_its_mean_and_two_standard_errors(monkeypatch):
    def fake(folder, seed, *, pretrained=True, num_per_class):
        return seed / 10 + pretrained / 100 + num_per_class / 1000

    monkeypatch.setattr("ftnb.pretraining_vision.finetuned_accuracy", fake)
    table = scores(SHIPPED["resnet"], [1, 3])
    assert table["seeds"] == [1, 3]
    assert table["fine-tuned"]["10"] == {"mean": 0.22, "plus_minus": 0.2, "values": [0.12, 0.32]}
    assert table["from scratch"]["3"]["mean"] == pytest.approx(0.203)
    assert set(table) == {"seeds", "zero-shot", *KINDS}
    assert set(table["probe"]) == {"3", "10", "30"}
