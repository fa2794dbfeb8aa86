"""Folders of images, and how their images become tensors."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import Data, load_data
from secateur.data.batches import DRAWS
from secateur.data.images import ImageSource, middle, part_of
from secateur.errors import DataError


def paint(path: Path, colour: tuple[int, int, int], count: int, size: tuple[int, int] = (12, 8)) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, colour).save(path / f"{i:03}.png")


def paint_classes(path: Path, count: int) -> None:
    paint(path / "blue", (0, 0, 255), count)
    paint(path / "red", (255, 0, 0), count)


def sizes(data: Data) -> list[int]:
    return [sum(len(labels) for _, labels in loader) for loader in (data.train, data.validation, data.test)]


def paths(data: Data) -> list[Path]:
    loaders = (data.train, data.validation, data.test)
    return [path for loader in loaders for path in loader.source.locate(loader.positions)]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"": 20}, [28, 6, 6]),
        ({"train": 20}, [28, 6, 6]),
        ({"train": 20, "val": 6}, [40, 6, 6]),
        ({"train": 20, "test": 6}, [34, 6, 12]),
        ({"train": 20, "valid": 6, "test": 5}, [40, 12, 10]),
    ],
)
def test_image_folder_splits(tmp_path, folders, expected):
    for folder, count in folders.items():
        paint_classes(tmp_path / folder, count)
    data = load_data(f"imagefolder:{tmp_path}", image_size=4)
    assert sizes(data) == expected
    assert len(set(paths(data))) == len(paths(data)) == sum(expected)
    assert data.classes == 2
    assert f"{expected[0]} train" in data.description


def test_images_are_scaled_cut_and_normalised(tmp_path):
    paint_classes(tmp_path, 10)
    images, labels = next(iter(load_data(f"imagefolder:{tmp_path}", image_size=4).test))
    assert images.shape[1:] == (3, 4, 4)
    red = images[labels == 1][0, :, 0, 0]
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert torch.allclose(red, expected, atol=1e-5)


def test_images_keep_their_places(tmp_path):
    left_dark = Image.new("RGB", (16, 8))
    left_dark.paste((255, 255, 255), (8, 0, 16, 8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            left_dark.save(tmp_path / name / f"{i}.png")
    image = next(iter(load_data(f"imagefolder:{tmp_path}", image_size=8).test))[0][0]
    assert (image[:, :, 0] < 0).all()
    assert (image[:, :, -1] > 0).all()


def test_image_folder_is_deterministic(tmp_path):
    paint_classes(tmp_path, 10)
    first, second = (load_data(f"imagefolder:{tmp_path}", image_size=4, batch_size=4, seed=1) for _ in range(2))
    for (x, y), (other_x, other_y) in zip(first.train, second.train, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_image_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no folder '.*nowhere': give one with train and val"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")


def test_image_folder_with_empty_classes(tmp_path):
    paint_classes(tmp_path, 3)
    (tmp_path / "green").mkdir()
    (tmp_path / "grey").mkdir()
    with pytest.raises(DataError, match=r"no image in .*green, .*grey: every class needs some"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_one_class(tmp_path):
    paint(tmp_path / "red", (255, 0, 0), 3)
    with pytest.raises(DataError, match="one folder for each class, at least two; there is only 'red'"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_a_class_that_training_lacks(tmp_path):
    paint_classes(tmp_path / "train", 3)
    paint(tmp_path / "val" / "green", (0, 255, 0), 3)
    with pytest.raises(DataError, match="classes that the training images lack: green"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_too_few_images(tmp_path):
    paint_classes(tmp_path, 1)
    with pytest.raises(DataError, match="too few samples: none is left for validation and test"):
        load_data(f"imagefolder:{tmp_path}")


def test_broken_image_is_named(tmp_path):
    paint_classes(tmp_path, 10)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"00\d.png can't be read as an image \("):
        list(load_data(f"imagefolder:{tmp_path}").train)


# how an image becomes a tensor


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours, as in a photograph, that differ everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = np.stack([x, y, (np.sin(9 * x + 4 * y) + 1) / 2], -1)
    return Image.fromarray((255 * waves).astype(np.uint8))


def as_in_the_references(image: Image.Image, size: int) -> np.ndarray:
    """Resize(size * 256 / 224), then CenterCrop(size), as torchvision writes them."""
    shorter = int(size * 256 / 224)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(shorter * long / short)
    scaled = (shorter, longer) if width <= height else (longer, shorter)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2.0), round((scaled[1] - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=int)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (224, 224), (61, 90), (500, 50)])
@pytest.mark.parametrize("size", [224, 32])
def test_evaluation_is_that_of_torchvision(shape, size):
    image = photo(*shape)
    ours = np.asarray(middle(image, size), dtype=int)
    assert ours.shape == (size, size, 3)
    assert np.abs(ours - as_in_the_references(image, size)).max() <= 1


def test_one_pixel_and_one_line_will_do():
    for shape in ((1, 1), (4000, 1), (1, 4000)):
        assert middle(photo(*shape), 8).size == part_of(photo(*shape), 8, Random(0)).size == (8, 8)


def test_a_random_part_is_a_part():
    """Red grows from left to right and green from top to bottom, so pixels tell where they are from."""
    image, seen = photo(400, 400), []
    for seed in range(60):
        pixels = np.asarray(part_of(image, 16, Random(seed)), dtype=float) / 255
        wide, high = np.ptp(pixels[..., 0]), np.ptp(pixels[..., 1])
        seen.append((wide * high * (16 / 15) ** 2, wide / high))
    areas, aspects = np.array(seen).T
    assert 0.06 < areas.min() < 0.25
    assert 0.75 < areas.max() <= 1.05
    assert 0.7 < aspects.min() < 0.9 < 1.1 < aspects.max() < 1.4


def test_a_large_jpeg_looks_as_if_it_were_decoded_in_full(tmp_path):
    photo(1600, 1200).save(tmp_path / "large.jpg", quality=95)
    whole = Image.open(tmp_path / "large.jpg").convert("RGB")
    with Image.open(tmp_path / "large.jpg") as opened:
        assert np.abs(np.asarray(middle(opened, 64), int) - np.asarray(middle(whole, 64), int)).max() <= 3
        assert opened.size[0] < 1600
    with Image.open(tmp_path / "large.jpg") as opened:
        ours, plain = (np.asarray(part_of(i, 32, Random(4)), int) for i in (opened, whole))
        assert np.abs(ours - plain).max() <= 6


def source_of(image: Image.Image, path: Path, **options) -> ImageSource:
    image.save(path)
    return ImageSource(lambda places: [path for _ in places], [0], size=16, name=lambda _: path.name, **options)


def pixels(source: ImageSource, draw: int = 0) -> torch.Tensor:
    inputs, _ = source.fetch([0], torch.tensor([draw]))
    return (inputs[0] * source.deviation + source.mean) * 255


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode(tmp_path, mode):
    grey = Image.new("L", (20, 20), 255).convert("RGB")
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    assert pixels(source_of(grey.convert(mode), path)).round().eq(255).all()


def test_palettes_with_transparency_do_not_warn(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.info["transparency"] = bytes([0, 128])
    assert pixels(source_of(image, tmp_path / "image.png")).shape == (3, 16, 16)


def test_sixteen_bits_keep_their_shades(tmp_path):
    image = Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16))
    assert pixels(source_of(image, tmp_path / "deep.png")).round().eq(128).all()


def test_thirty_two_bits_have_no_black_and_white(tmp_path):
    image = Image.fromarray(np.full((20, 20), 0.5, dtype=np.float32))
    with pytest.raises(DataError, match=r"deep.tif can't be read as an image .*32 bits"):
        pixels(source_of(image, tmp_path / "deep.tif"))


def test_a_bomb_is_named(tmp_path, monkeypatch):
    source = source_of(photo(40, 40), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"bomb.png can't be read as an image \(DecompressionBombError"):
        pixels(source)


def test_what_each_augmentation_does(tmp_path):
    path = tmp_path / "image.png"
    plain, mirror = (pixels(source_of(photo(40, 40), path, augment="none"), draw) for draw in (0, 1))
    assert torch.equal(plain, mirror)
    even, odd = (pixels(source_of(photo(40, 40), path, augment="flip"), draw) for draw in (0, 1))
    assert torch.equal(even, plain)
    assert torch.equal(odd, plain.flip(-1))
    one, other, again = (pixels(source_of(photo(40, 40), path, augment="standard"), draw) for draw in (2, 4, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("augment", ["standard", "flip", "none"])
def test_augmented_batches_hang_on_the_epoch_not_on_threads(tmp_path, monkeypatch, augment):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            photo(30 + i, 40 - i).save(tmp_path / name / f"{i}.jpg")
    whole = load_data(f"imagefolder:{tmp_path}", image_size=16, batch_size=4, augment=augment)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = load_data(f"imagefolder:{tmp_path}", image_size=16, batch_size=4, augment=augment)
    list(whole.train)
    alone.train.set_epoch(1)
    rest = list(alone.train.skip(2))
    for (x, y), (other_x, other_y) in zip(list(whole.train)[2:], rest, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    (first, _), (second, _) = (next(iter(data.validation)) for data in (whole, alone))
    assert torch.equal(first, second)


def test_one_draw_decides_all(tmp_path):
    assert DRAWS - 1 < 2**63
    source = source_of(photo(40, 40), tmp_path / "image.png", augment="standard")
    assert torch.equal(pixels(source, DRAWS - 1), pixels(source, DRAWS - 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "colour"}, "unknown augment='colour': it is one of 'standard', 'flip', 'none'"),
        ({"image_size": 0}, "image_size=0: an image needs at least 1 pixel"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    paint_classes(tmp_path, 10)
    with pytest.raises(DataError, match=message):
        load_data(f"imagefolder:{tmp_path}", **options)


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "val", "valid"):
        paint_classes(tmp_path / name, 2)
    with pytest.raises(DataError, match="two folders for one split: val"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.shared
def test_real_image_folder(shared):
    data = load_data(f"imagefolder:{shared / 'data' / 'hymenoptera'}", image_size=32)
    assert sizes(data) == [244, 77, 76]
