"""Data sets of Hugging Face's ``datasets``, from local files only."""

import builtins
import io
import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.data import Data, load_data
from secateur.errors import DataError, MissingExtra

datasets = pytest.importorskip("datasets")

IDS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]] * 10
COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No address is ever asked for; caches go to a place of their own."""

    def refuse(*_, **__):
        pytest.fail("reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "png")
    return buffer.getvalue()


def pictures(count: int, **more) -> "datasets.Dataset":
    labels = [i % 2 for i in range(count)]
    files = [{"bytes": encoded(list(COLOURS.values())[label]), "path": None} for label in labels]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS)), **more.get("features", {})}
    )
    return datasets.Dataset.from_dict({"image": files, "label": labels, **more.get("columns", {})}, features=features)


def sizes(data: Data) -> list[int]:
    return [len(loader.positions) for loader in (data.train, data.validation, data.test)]


def saved(rows, path: Path) -> str:
    rows.save_to_disk(path / "set")
    return f"hf:{path / 'set'}"


# images


def red(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[:, 0].mean((1, 2)) > 0


def test_images_of_a_directory_with_splits(tmp_path):
    rows = datasets.DatasetDict({"train": pictures(20), "validation": pictures(6), "test": pictures(8)})
    rows["unlabelled"] = pictures(2)
    data = load_data(saved(rows, tmp_path), image_size=4, batch_size=5)
    assert sizes(data) == [20, 6, 8]
    for inputs, labels in [*data.train, *data.validation, *data.test]:
        assert inputs.shape[1:] == (3, 4, 4)
        assert red(inputs).tolist() == labels.bool().tolist()
    image = next(iter(data.test))[0][1]
    assert torch.allclose(
        image[:, 0, 0], torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]), atol=1e-5
    )
    assert data.classes == 2
    assert "2 classes at 4x4, augment=flip: 20 train, 6 validation, 8 test; not used: unlabelled" in data.description


def test_images_without_splits_are_held_out_by_class(tmp_path):
    data = load_data(saved(pictures(40), tmp_path), image_size=4)
    assert sizes(data) == [28, 6, 6]
    assert data.test.labels().tolist().count(1) == 3
    assert not set(data.train.positions) & set(data.test.positions)


def test_rows_that_were_chosen_and_shuffled(tmp_path):
    rows = pictures(60).shuffle(seed=0).select(range(40))
    for inputs, labels in load_data(saved(rows, tmp_path), image_size=4).train:
        assert red(inputs).tolist() == labels.bool().tolist()


def test_parquet_files_by_split(tmp_path):
    for name, count in (("train-00000-of-00002", 10), ("train-00001-of-00002", 10), ("valid-0", 4), ("test", 6)):
        pictures(count).to_parquet(tmp_path / f"{name}.parquet")
    assert sizes(load_data(f"hf:{tmp_path}", image_size=4)) == [20, 4, 6]


def test_folders_name_splits_too(tmp_path):
    for name, count in (("train", 20), ("test", 6)):
        (tmp_path / "data" / name).mkdir(parents=True)
        pictures(count).to_parquet(tmp_path / "data" / name / "part.parquet")
    assert sizes(load_data(f"hf:{tmp_path}", image_size=4)) == [16, 4, 6]


def test_one_file_of_paths(tmp_path):
    lines = ["file_name,label"]
    for i in range(40):
        name = list(COLOURS)[i % 2]
        (tmp_path / f"{i}.png").write_bytes(encoded(COLOURS[name]))
        lines.append(f"{i}.png,{name}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = load_data(f"hf:{tmp_path / 'table.csv'}", image_size=4)
    assert sizes(data) == [28, 6, 6]
    for inputs, labels in data.train:
        assert red(inputs).tolist() == labels.bool().tolist()


def test_files_and_bytes_without_a_type(tmp_path):
    rows = pictures(40).cast_column("image", {"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    assert sizes(load_data(saved(rows, tmp_path), image_size=4)) == [28, 6, 6]


def test_augmentation_reaches_images(tmp_path):
    spec = saved(pictures(40), tmp_path)
    one, other = (load_data(spec, image_size=4, augment="standard") for _ in range(2))
    assert "augment=standard" in one.description
    assert torch.equal(next(iter(one.train))[0], next(iter(other.train))[0])
    assert one.test.source.augment == "none"


def test_columns_can_be_chosen(tmp_path):
    images = pictures(40)["image"]
    more = {
        "features": {"second": datasets.Image(), "fine_label": datasets.Value("int64")},
        "columns": {"second": list(images), "fine_label": [i % 4 for i in range(40)]},
    }
    spec = saved(pictures(40, **more), tmp_path)
    with pytest.raises(DataError, match="several columns of images, image, second: choose one by --data-args"):
        load_data(spec)
    with pytest.raises(DataError, match="several columns that may be labels, label, fine_label"):
        load_data(spec, image_column="second")
    data = load_data(spec, image_column="second", label_column="fine_label", image_size=4)
    assert data.classes == 4
    with pytest.raises(DataError, match="has no column 'third'"):
        load_data(spec, image_column="third")
    with pytest.raises(DataError, match="'hf' takes no option 'depth'"):
        load_data(spec, depth=3)


def test_images_elsewhere_are_not_fetched(tmp_path):
    rows = datasets.Dataset.from_dict({"image": ["https://example.org/a.png"] * 40, "label": [0, 1] * 20})
    data = load_data(saved(rows, tmp_path), image_size=4)
    with pytest.raises(DataError, match=r"holds 'https://example.org/a.png' instead of an image: only files on this"):
        next(iter(data.train))
    rows = rows.map(lambda row: {"image": {"bytes": None, "path": row["image"]}})
    data = load_data(saved(rows, tmp_path / "stored"), image_size=4)
    with pytest.raises(DataError, match="only files on this machine are read"):
        next(iter(data.train))


def test_broken_images_are_named(tmp_path):
    rows = pictures(40).cast_column("image", datasets.Image(decode=False))
    rows = rows.map(lambda row: {"image": {"bytes": row["image"]["bytes"][:40], "path": None}})
    data = load_data(saved(rows, tmp_path), image_size=4, batch_size=1)
    with pytest.raises(DataError, match=r"image in row \d+ of the split train of .* can't be read as an image"):
        next(iter(data.test))


def test_labels_that_will_not_do(tmp_path):
    base = pictures(40).remove_columns("label")
    for number, (labels, message) in enumerate(
        (
            ([None, *[0, 1] * 19, 1], "label is empty in some rows of train"),
            ([i / 2 for i in range(40)], "label is of float64: classes are whole numbers"),
        )
    ):
        path = tmp_path / str(number)
        with pytest.raises(DataError, match=message):
            load_data(saved(base.add_column("label", labels), path))
    with pytest.raises(DataError, match="has no column label, among image: choose one by --data-args.label-column"):
        load_data(saved(base, tmp_path / "none"))


def test_names_of_classes_that_training_lacks(tmp_path):
    def named(names):
        return pictures(len(names)).remove_columns("label").add_column("label", names)

    rows = datasets.DatasetDict({"train": named(["a", "b"] * 10), "test": named(["a", "c"])})
    with pytest.raises(DataError, match="classes that the training split lacks: c"):
        load_data(saved(rows, tmp_path))


def test_classes_that_are_numbered_in_another_way(tmp_path):
    other = pictures(20).cast_column("label", datasets.ClassLabel(names=["red", "blue"]))
    with pytest.raises(DataError, match="label numbers the classes of test in another way than those of train"):
        load_data(saved(datasets.DatasetDict({"train": pictures(20), "test": other}), tmp_path))


# tokens


def tokens(ids=IDS, **columns) -> "datasets.Dataset":
    return datasets.Dataset.from_dict({"input_ids": ids, **columns})


def test_tokens_are_padded_on_the_right(tmp_path):
    mask = [[1] * len(ids) for ids in IDS]
    data = load_data(saved(tokens(attention_mask=mask, labels=IDS), tmp_path), batch_size=50)
    batch = next(iter(data.validation))
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    for place, row in enumerate(data.validation.positions):
        known, pad = len(IDS[row]), batch["input_ids"].shape[1] - len(IDS[row])
        assert batch["input_ids"][place].tolist() == IDS[row] + [0] * pad
        assert batch["attention_mask"][place].tolist() == [1] * known + [0] * pad
        assert batch["labels"][place].tolist() == IDS[row] + [-100] * pad
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert data.classes is None
    assert data.train.label_range() == (1, 10)
    assert "tokens (input_ids, attention_mask, labels): 28 train, 6 validation, 6 test" in data.description


def test_a_mask_is_made_where_lengths_differ(tmp_path):
    batch = next(iter(load_data(saved(tokens(), tmp_path), batch_size=40).train))
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] > 0)


def test_no_mask_where_there_is_nothing_to_mask(tmp_path):
    assert list(next(iter(load_data(saved(tokens([[1, 2]] * 40), tmp_path)).train))) == ["input_ids"]


def test_one_label_for_each_text(tmp_path):
    rows = tokens(label=[i % 2 for i in range(40)], text=["words"] * 40)
    data = load_data(saved(rows, tmp_path))
    batch = next(iter(data.test))
    assert batch["labels"].tolist() == [row % 2 for row in data.test.positions]
    assert data.classes == 2
    assert data.example(2)["labels"].shape == (2,)


def test_token_batches_hang_on_the_epoch_and_can_be_skipped(tmp_path):
    spec = saved(tokens(), tmp_path)
    whole, resumed = (load_data(spec, batch_size=3, seed=2) for _ in range(2))
    list(whole.train)
    resumed.train.set_epoch(1)
    for batch, other in zip(list(whole.train)[4:], resumed.train.skip(4), strict=True):
        assert torch.equal(batch["input_ids"], other["input_ids"])


def test_json_lines_of_tokens(tmp_path):
    text = "\n".join(json.dumps({"input_ids": ids, "label": len(ids) % 2}) for ids in IDS)
    (tmp_path / "train.jsonl").write_text(text)
    assert sizes(load_data(f"hf:{tmp_path}")) == [28, 6, 6]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attention_mask": [[1]] * 40}, "row 0 of the split train of .* has 3 input_ids and 1 attention_mask"),
        ({"labels": [[1] * 4] * 40}, "row 0 .* has 3 input_ids and 4 labels"),
        ({"labels": [None] + [1] * 39}, "labels in the split train .*: some rows are empty"),
        ({"labels": ["good"] * 40}, r"labels \(string\) in .*: tokens are lists of whole numbers"),
        ({"input_ids": [[], *IDS[1:]]}, "row 0 .* has 0 input_ids: every row needs tokens"),
        ({"input_ids": [[-1], *IDS[1:]]}, "hold numbers below 0: tokens are numbered from 0"),
        ({"input_ids": [[0.5]] * 40}, r"input_ids .*lists of whole numbers"),
        ({"input_ids": [3] * 40}, r"input_ids .*lists of whole numbers"),
    ],
)
def test_tokens_that_will_not_do(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        load_data(
            saved(tokens(**{"ids": IDS, **{"ids" if k == "input_ids" else k: v for k, v in columns.items()}}), tmp_path)
        )


def test_image_options_are_not_for_tokens(tmp_path):
    spec = saved(tokens(), tmp_path)
    for options in ({"image_size": 32}, {"augment": "flip"}):
        with pytest.raises(DataError, match="holds tokens: image_size and augment are for images"):
            load_data(spec, **options)


def test_bars_are_off_while_reading_only(tmp_path, capsys):
    text = "\n".join(json.dumps({"input_ids": ids}) for ids in IDS)
    (tmp_path / "train.json").write_text(text)
    load_data(f"hf:{tmp_path}")
    assert "Generating" not in capsys.readouterr().err
    assert not datasets.are_progress_bars_disabled()


def test_raw_text_is_explained(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["some words"] * 40, "label": [0, 1] * 20})
    with pytest.raises(
        DataError, match=r"Text has to be tokenized first: .*tokenizer\(row\['text'\], truncation=True\)"
    ):
        load_data(saved(rows, tmp_path))


# what is no such data set


def test_columns_of_other_kinds(tmp_path):
    rows = datasets.Dataset.from_dict({"height": [1.0] * 40, "label": [0, 1] * 20})
    with pytest.raises(
        DataError, match="columns height, label: there is neither image nor input_ids. For anything else"
    ):
        load_data(saved(rows, tmp_path))


def test_splits_that_differ(tmp_path):
    rows = datasets.DatasetDict({"train": tokens(), "test": tokens(label=[1] * 40)})
    with pytest.raises(
        DataError, match=r"splits differ in their columns, train has input_ids and test input_ids, label"
    ):
        load_data(saved(rows, tmp_path / "a"))
    rows = datasets.DatasetDict({"train": tokens(), "test": tokens([[1]] * 4)})
    with pytest.raises(DataError, match="the splits differ, one has input_ids, another input_ids and attention_mask"):
        load_data(saved(rows, tmp_path / "b"))
    rows = datasets.DatasetDict({"validation": tokens(), "test": tokens()})
    with pytest.raises(DataError, match="has the splits validation, test: one of them must be called train"):
        load_data(saved(rows, tmp_path / "c"))
    rows = datasets.DatasetDict({"train": tokens(), "valid": tokens(), "dev": tokens()})
    with pytest.raises(DataError, match="'dev' is a second validation split"):
        load_data(saved(rows, tmp_path / "d"))


def test_places_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match=r"no file or directory 'glue': hf: reads local files only.*save_to_disk"):
        load_data("hf:glue")
    with pytest.raises(DataError, match=r"holds no .parquet, .csv, .json, .jsonl file"):
        load_data(f"hf:{tmp_path}")
    (tmp_path / "a.csv").write_text("label\n1\n")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="holds files of several formats"):
        load_data(f"hf:{tmp_path}")
    (tmp_path / "c.txt").write_text("words")
    with pytest.raises(DataError, match=r"c.txt is none of .parquet"):
        load_data(f"hf:{tmp_path / 'c.txt'}")


def test_damaged_files(tmp_path):
    pictures(20).to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"data.parquet can't be read by datasets"):
        load_data(f"hf:{tmp_path / 'data.parquet'}")
    spec = saved(tokens(), tmp_path)
    for file in (tmp_path / "set").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match="can't be read by datasets"):
        load_data(spec)


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"reading hf:PATH needs datasets.*pip install 'secateur\[data\]'"):
        load_data(f"hf:{tmp_path}")
