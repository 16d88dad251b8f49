"""Pictures as people have them: every odd kind is read right and counted, or refused by name."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftnb.files import duplicates
from ftnb.tables import DataError, Table
from ftnb.vision import images
from ftnb.vision.images import (
    ImageNotes,
    check_images,
    image_digest,
    read_image,
    store_images,
    stored_image,
)


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GREY = Image.fromarray(np.arange(0, 200, dtype=np.uint8).reshape(10, 20))


@pytest.mark.parametrize(
    ("image", "kind", "count"),
    [
        (GREY, "PNG", None),
        (photo().convert("P"), "PNG", None),
        (photo().convert("1"), "PNG", None),
        (photo(), "JPEG", None),
        (photo(), "WEBP", None),
        (photo(), "BMP", None),
        (photo().convert("CMYK"), "JPEG", "cmyk"),
        (GREY.convert("LA"), "PNG", None),
    ],
)
def test_usual_files_become_rgb(image, kind, count):
    notes = ImageNotes()
    read = read_image(encoded(image, kind), notes=notes)
    assert read.mode == "RGB"
    assert read.size == image.size
    assert list(notes.counts) == ([count] if count else [])


def test_transparent_parts_are_put_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    notes = ImageNotes()
    read = read_image(encoded(image, "PNG"), notes=notes)
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 1)) == (255, 0, 0)
    assert "have transparent parts" in notes.messages(1)[0]


def test_sixteen_bits_keep_their_upper_half():
    values = np.array([[0, 257, 65535], [128 * 257, 5 * 257, 1]], dtype=np.uint16)
    notes = ImageNotes()
    read = read_image(encoded(Image.fromarray(values), "PNG"), notes=notes)
    assert np.asarray(read)[..., 0].tolist() == [[0, 1, 255], [128, 5, 0]]
    assert notes.counts == {"16-bit": 1}


def test_a_photograph_is_turned_as_its_note_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    notes = ImageNotes()
    assert read_image(encoded(photo(40, 30), "JPEG", exif=exif), notes=notes).size == (30, 40)
    assert notes.counts == {"turned": 1}


def test_of_several_frames_the_first_counts():
    frames = [photo(seed=i) for i in range(3)]
    notes = ImageNotes()
    read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), notes=notes)
    assert notes.counts == {"frames": 1}


def test_arrays_and_stored_rows_are_read():
    array = np.asarray(photo())
    for source in (array, array.astype(np.float32), {"bytes": encoded(photo(), "PNG"), "path": None}, photo()):
        assert np.array_equal(np.asarray(read_image(source)), array)
    assert read_image(array[..., :1]).size == (40, 30)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere.jpg", "there is no picture 'nowhere.jpg'"),
        (b"not a picture", "is no picture that can be read"),
        (b"", "is no picture"),
        (encoded(photo(200, 200), "JPEG")[:2000], "is damaged and cannot be read in full"),
        (encoded(photo(200, 200), "PNG")[:2000], "is damaged"),
        (png_header(10_000, 10_000), "100 megapixels, at most 90"),
        (png_header(100_000, 100_000), "more than 90 megapixels|10000 megapixels"),
        (np.zeros((3, 20, 20), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((20, 20, 5), np.uint8), "is no picture"),
        (np.random.default_rng(0).random((8, 8)), r"values from 0 to 1: \(array \* 255\)"),
        (np.full((8, 8), 300), "expected whole numbers from 0 to 255"),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "measurements, not colours"),
        (7, "got int"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(source, expected):
    with pytest.raises(DataError, match=expected):
        read_image(source, place="row 3")


def test_pictures_are_checked_before_training_and_all_faults_named(tmp_path):
    for i in range(4):
        photo(seed=i).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"x")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    sources = [stored_image(f"{i}.png", tmp_path, "") for i in range(4)]
    assert check_images(sources[:2], "train", ["a", "b"]) == []
    with pytest.raises(DataError) as caught:
        check_images(sources, "train", [1, 2, 3, 4])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["train, row 3", "train, row 4"]
    many = check_images(sources[:2] * 10, "train", range(20), limit=5)
    assert many == ["train: 5 of 20 pictures were read to check them."]


def test_what_had_to_be_done_is_counted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "turned.jpg").write_bytes(encoded(photo(), "JPEG", exif=exif))
    sources = [{"path": str(tmp_path / "turned.jpg"), "bytes": None}, {"bytes": encoded(GREY, "PNG"), "path": None}]
    (message,) = check_images(sources, "valid", [1, 2])
    assert message == "valid: 1 of 2 pictures were turned as their EXIF note says, for example 'turned.jpg'."


def test_equal_pictures_have_equal_fingerprints(tmp_path):
    path = tmp_path / "a.png"
    photo().save(path)
    by_path, by_bytes = image_digest({"path": str(path)}), image_digest({"bytes": path.read_bytes()})
    (tmp_path / "b.png").write_bytes(path.read_bytes())
    assert image_digest(tmp_path / "b.png") == by_path
    assert by_path == by_bytes
    assert image_digest(photo()) == image_digest(photo()) != image_digest(photo(seed=1))
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(200_000))
    first = image_digest(large)
    large.write_bytes(bytes(199_999) + b"x")
    assert image_digest(large) != first


def test_twins_across_and_within_splits_are_reported():
    digests = {"train": [b"a", b"b", b"a"], "valid": [b"c"], "test": [b"b", b"d"]}
    found = duplicates(digests, {"train": ["x", "y", "z"], "valid": [1], "test": [1, 2]}, "pictures")
    assert "1 of 2 pictures are also in train (test = train: '1 = y')" in found[0]
    assert found[1] == "train: 1 of 3 pictures are there more than once."
    assert len(found) == 2


def test_rows_keep_paths_and_encode_what_is_in_memory(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(
        {"image": ["a.png", photo(), photo().convert("CMYK"), np.asarray(photo())]}, index=[2, 3, 4, 5]
    )
    rows = store_images(frame, Table(frame, "t.csv", folder=tmp_path), "train")["image"].tolist()
    assert rows[0] == {"path": str(tmp_path / "a.png"), "bytes": None}
    assert all(read_image(row).size == (40, 30) for row in rows[1:])
    frame.loc[3, "image"] = None
    with pytest.raises(DataError, match=r"train \(t.csv\), row 3: expected a picture.*None"):
        store_images(frame, Table(frame, "t.csv"), "train")


def test_the_limit_is_below_that_of_the_library():
    assert images.MAX_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS


def test_paths_beside_a_table_are_relative_to_it():
    assert Path(stored_image("x/y.png", Path("/data"), "")["path"]) == Path("/data/x/y.png")
    assert stored_image("/x/y.png", Path("/data"), "")["path"] == "/x/y.png"
