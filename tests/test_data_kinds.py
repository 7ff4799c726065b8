"""Training data of every kind: their rows, read when asked for, and what is said when they are wrong."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from sdediff import data


def both(rows: data.RowDataset, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows by `take`, which items and a DataLoader must equal."""
    x, cond = rows.take(numbers)
    items = [rows[i] for i in numbers]
    loaded = next(iter(DataLoader(Subset(rows, numbers), batch_size=len(numbers))))
    if cond is None:
        assert torch.equal(torch.stack(items), x) and torch.equal(loaded, x)
    else:
        assert torch.equal(torch.stack([item[0] for item in items]), x) and torch.equal(loaded[0], x)
        assert torch.equal(torch.stack([item[1] for item in items]), cond) and torch.equal(loaded[1], cond)
    return x, cond


# -- arrays


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(7, 6, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "column.npz", "packed.npz", "a.pt", "an array"])
def test_arrays_are_rows_with_their_conditions(tmp_path: Path, images: np.ndarray, name: str) -> None:
    labels, options = np.arange(7) % 3, {"key": "x", "cond": "y"}
    if name == "packed.npz":
        np.savez_compressed(tmp_path / name, x=images, y=labels)
    elif name.endswith("npz"):
        np.savez(tmp_path / name, y=labels, x=np.asfortranarray(images) if name == "column.npz" else images)
    elif name == "a.pt":
        torch.save({"x": torch.from_numpy(images), "y": torch.from_numpy(labels)}, tmp_path / name)
    elif name == "a.npy":
        np.save(tmp_path / name, images)
        options = {}
    source = tmp_path / name if "." in name else images
    rows = data.open_dataset(source, **(options if "." in name else {"cond": labels}))
    x, cond = both(rows, [5, 0, 5, -1])
    assert torch.equal(x, torch.from_numpy(images[[5, 0, 5, 6]]).movedim(3, 1)) and x.dtype == torch.uint8
    assert cond is None if name == "a.npy" else cond is not None and cond.tolist() == [2, 0, 2, 0]
    assert (rows.shape, rows.levels, len(rows)) == ((3, 6, 5), 256, 7)
    again = pickle.loads(pickle.dumps(rows))
    assert torch.equal(again.take([3])[0], rows.take([3])[0])
    assert torch.equal(rows.load().take([1, 6])[0], rows.take([1, 6])[0])
    with pytest.raises(IndexError, match="has rows 0 to 6"):
        rows[7]


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_mapped_array_is_neither_read_nor_sent_whole(tmp_path: Path, name: str) -> None:
    values = np.zeros((200_000, 8), np.float32)
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, values)
    tracemalloc.start()
    rows = data.open_dataset(tmp_path / name)
    train, val = data.split(rows, 0.25, seed=1)
    assert train.take(range(100))[0].shape == (100, 8) and len(val) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes / 2  # the permutation: 8 bytes a row, and its copies
    assert len(pickle.dumps(rows)) < 2000


def test_nan_in_a_mapped_row_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    values = np.ones((50, 3))
    values[31, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    rows = data.open_dataset(tmp_path / "a.npy")
    assert rows.take([0, 30])[0].shape == (2, 3)
    for view in (rows, rows.subset([5, 31]), *data.split(rows, 0.5, seed=0)):
        if view is not rows and 31 not in view.numbers:
            continue
        with pytest.raises(ValueError, match=r"a\.npy has NaN or infinite values, first in row 31"):
            view.take(range(len(view)))


def test_shapes_can_be_chosen_and_must_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(24.0).reshape(4, 6))
    assert data.open_dataset(tmp_path / "a.npy", shape=(1, 2, 3))[1].tolist() == [[[6, 7, 8], [9, 10, 11]]]
    assert data.open_dataset(tmp_path / "a.npy").reshaped((1, 3, 2)).take([0])[0].shape == (1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"has 6 columns where rows of shape \(1, 2, 2\) are needed"):
        data.open_dataset(tmp_path / "a.npy", shape=(1, 2, 2))
    with pytest.raises(ValueError, match=r"shape \(0, 3\) and so no rows"):
        data.open_dataset(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"4 rows and conditions of shape \(3,\)"):
        data.open_dataset(np.zeros((4, 3)), cond=np.zeros(3))


def test_opening_runs_no_code_and_knows_its_options(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="could run code"):
        data.open_dataset(tmp_path / "objects.npz")
    torch.save(TensorDataset(torch.eye(2)), tmp_path / "objects.pt")
    with pytest.raises(ValueError, match="could run code"):
        data.open_dataset(tmp_path / "objects.pt")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="real numbers are needed"):
        data.open_dataset(tmp_path / "words.npy")
    np.save(tmp_path / "a.npy", np.eye(2))
    with pytest.raises(
        TypeError, match=r"size= is no option of .*a\.npy, which is a file of arrays: it takes"
    ):
        data.open_dataset(tmp_path / "a.npy", size=3)
    with pytest.raises(TypeError, match="a list is no data that can be opened"):
        data.open_dataset([1, 2])
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.xlsx is of no kind that can be read"):
        data.open_dataset(tmp_path / "a.xlsx")


# -- tables


def write_table(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table(columns), path)
    else:
        lines = zip(*columns.values(), strict=True)
        text = [",".join(columns), *(",".join("" if c is None else str(c) for c in line) for line in lines)]
        path.write_text("\n".join(text) + "\n")
    return path


TABLE = {
    "a": [0.1, 2.5, -3.0],
    "kind": ["oak", "elm", "oak"],
    "n": [4, 5, 6],
    "gap": [1.0, None, None],
    "grade": [2, 0, 1],
}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_tables_by_the_names_of_columns(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, TABLE)
    rows = data.open_dataset(path, columns=["n", "a"], cond="kind")
    x, cond = both(rows, [2, 0])
    assert torch.equal(x, torch.tensor([[6, -3.0], [4, 0.1]])) and cond is not None
    assert (cond.tolist(), rows.classes, rows.columns) == ([1, 1], ["elm", "oak"], ["n", "a"])
    cases = {"grade": torch.tensor([2, 0, 1]), "a": torch.tensor([[0.1], [2.5], [-3.0]])}
    for cond_name, expected in cases.items():
        found = data.open_dataset(path, columns=["n"], cond=cond_name).take([0, 1, 2])[1]
        assert found is not None and torch.equal(found, expected) and found.dtype == expected.dtype
    found = data.open_dataset(path, columns=["n"], cond=["grade", "a"]).take([1])[1]
    assert found is not None and found.tolist() == [[0, 2.5]]
    few = write_table(tmp_path / f"few.{path.suffix}", {n: TABLE[n] for n in ("a", "n", "grade")})
    assert data.open_dataset(few, cond="grade").columns == ["a", "n"]
    assert torch.equal(data.read(few), data.open_dataset(few).take([0, 1, 2])[0])
    (batch,) = data.stream(few).batches()
    assert torch.equal(batch, data.read(few)) and data.stream(few).columns == ["a", "n", "grade"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, TABLE)
    rows = ("line 2", "line 3") if name == "t.csv" else ("row 0 (counted from 0)", "row 1 (counted from 0)")
    word = f"{rows[0]}, column 'kind': the value is 'oak', not a finite number, as in 3 of 3 rows"
    gap = f"{rows[1]}, column 'gap': the value is missing, as in 2 of 3 rows"
    for options, words in (
        ({}, word),
        ({}, "or read others by columns=['a', 'n', 'grade']"),
        ({"columns": ["a", "gap"]}, gap),
        ({"columns": ["a"], "cond": "gap"}, gap),
        ({"columns": ["a", "b"]}, "has no column 'b': it holds a, kind, n, gap, grade"),
        ({"columns": ["a"], "cond": "a"}, "'a' was asked for twice"),
        ({"columns": ["a"], "cond": ["kind", "n"]}, "a condition is words in every row, or numbers"),
    ):
        with pytest.raises(ValueError) as error:
            data.open_dataset(path, **options)
        assert words in str(error.value)
    empty = write_table(tmp_path / f"empty{path.suffix}", {"a": []})
    with pytest.raises(ValueError, match="no rows"):
        data.open_dataset(empty)
    (tmp_path / "no.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="damaged"):
        data.open_dataset(tmp_path / "no.parquet")


def test_a_ragged_or_long_csv_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 9000 + "3,4,5\n")
    with pytest.raises(ValueError, match="line 9002: 3 cells where 2 are needed"):
        data.open_dataset(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("a,b\n" + "1,2\n" * 9000 + "3,\n")
    with pytest.raises(
        ValueError, match=r"line 9002, column 'b': the value is missing, as in 1 of 9001 rows"
    ):
        data.open_dataset(tmp_path / "b.csv")
    assert len(data.open_dataset(tmp_path / "b.csv", columns=["a"])) == 9001


# -- images


@pytest.fixture
def pictures(tmp_path: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        folder = tmp_path / "pictures" / ("cat", "cow", "dog")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    (tmp_path / "pictures" / ".hidden.png").write_bytes(b"no image")
    return tmp_path / "pictures"


def test_a_folder_of_images(pictures: Path, images: np.ndarray) -> None:
    rows = data.open_dataset(pictures, cond="folder")
    order = [0, 3, 6, 1, 4, 2, 5]  # by folder
    x, cond = both(rows, [1, 6])
    assert torch.equal(x, torch.from_numpy(images[[3, 5]]).movedim(3, 1))
    assert cond is not None and cond.tolist() == [0, 2] and rows.classes == ["cat", "cow", "dog"]
    assert (rows.shape, rows.levels) == ((3, 6, 5), 256)
    assert torch.equal(rows.load().take(range(7))[0], torch.from_numpy(images[order]).movedim(3, 1))
    grey = data.open_dataset(pictures, mode="L")
    expected = np.asarray(Image.fromarray(images[6]).convert("L"))
    assert torch.equal(grey[2], torch.from_numpy(expected.copy())[None])
    assert torch.equal(next(data.stream(pictures).batches(2)), torch.from_numpy(images[[0, 3]]).movedim(3, 1))


def test_images_are_cut_about_their_middle_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((6, 30), np.uint8)
    wide[:, 6:24] = 200  # the middle square, and what the filter sees beside it
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "b.png")
    rows = data.open_dataset(tmp_path, size=3)
    assert rows.shape == (1, 3, 3) and bool((rows.take([0, 1])[0] == 200).all())
    assert data.open_dataset(tmp_path, size=(2, 6), mode="RGB").take([1])[0].shape == (1, 3, 2, 6)
    for size in (0, (3, 4, 5), 2.5):
        with pytest.raises(ValueError, match="give a positive height and width"):
            data.open_dataset(tmp_path, size=size)
    with pytest.raises(ValueError, match='give "L" for grey'):
        data.open_dataset(tmp_path, mode="HSV")


def test_photographs_are_upright_and_deep_grey_keeps_its_levels(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # held on its side
    for name in ("jpg", "deep"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "jpg" / "a.jpg", exif=turned)
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "jpg" / "b.jpg")
    assert data.open_dataset(tmp_path / "jpg").take([0, 1])[0].shape == (2, 1, 6, 4)
    deep = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    rows = data.open_dataset(tmp_path / "deep")
    assert rows.levels == 65536 and rows[0].tolist() == [deep.tolist()]


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images: give a folder of \.png"):
        data.open_dataset(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        data.open_dataset(tmp_path / "absent")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(pictures / "cow" / "other.png")
    words = r"images of several sizes and kinds, such as 0\.png \(6 x 5, RGB\) and other\.png \(9 x 8, L\)"
    with pytest.raises(ValueError, match=words + r": give size=, .* and mode=\"L\" or \"RGB\""):
        data.open_dataset(pictures)
    with pytest.raises(
        ValueError, match=r"several sizes, such as .*: give size=, to cut and resize all to one$"
    ):
        data.open_dataset(pictures, mode="L")
    assert len(data.open_dataset(pictures, mode="L", size=4)) == 8
    Image.fromarray(np.zeros((6, 5, 4), np.uint8)).save(pictures / "cow" / "other.png")
    with pytest.raises(ValueError, match="of mode RGBA: say how to read such images"):
        data.open_dataset(pictures)
    (pictures / "cow" / "other.png").write_bytes((pictures / "cat" / "0.png").read_bytes()[:60])
    cut = data.open_dataset(pictures)  # its header is whole
    with pytest.raises(ValueError, match=r"other\.png is no image that can be read"):
        cut.take(range(len(cut)))
    (pictures / "cow" / "other.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"other\.png is no image that can be read"):
        data.open_dataset(pictures)
    (pictures / "cow" / "other.png").rename(pictures / "other.txt")
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(pictures / "alone.png")
    with pytest.raises(ValueError, match=r"in a subfolder, but alone\.png is in none"):
        data.open_dataset(pictures, cond="folder")


# -- Hugging Face datasets


def test_huggingface_datasets(tmp_path: Path, images: np.ndarray) -> None:
    hub = pytest.importorskip("datasets")
    kinds = hub.ClassLabel(names=["even", "odd"])
    features = hub.Features(
        {"image": hub.Image(), "label": kinds, "a": hub.Value("float64"), "n": hub.Value("int32")}
        | {"v": hub.Sequence(hub.Value("float32")), "s": hub.Value("string")}
        | {"ragged": hub.Sequence(hub.Value("float32"))}
    )
    content = {
        "image": [Image.fromarray(image) for image in images],
        "label": [i % 2 for i in range(7)],
        "a": [0.5 * i for i in range(6)] + [None],
        "n": list(range(7)),
        "v": [[i, i + 1, i + 2] for i in range(7)],
        "s": ["x"] * 7,
        "ragged": [[1.0]] * 6 + [[1.0, 2.0]],
    }
    whole = hub.Dataset.from_dict(content, features=features)
    hub.DatasetDict({"train": whole, "test": whole.select([2])}).save_to_disk(str(tmp_path / "saved"))
    rows = data.open_dataset(tmp_path / "saved", key="train", cond="label")
    x, cond = both(rows, [3, 0])
    assert torch.equal(x, torch.from_numpy(images[[3, 0]]).movedim(3, 1)) and cond is not None
    assert (cond.tolist(), rows.classes, rows.levels) == ([1, 0], ["even", "odd"], 256)
    assert len(data.open_dataset(f"{tmp_path / 'saved'}:test")) == 1
    table = data.open_dataset(whole, columns=["n", "a"])
    assert torch.equal(both(table, [4, 1])[0], torch.tensor([[4, 2.0], [1, 0.5]])) and table.columns == [
        "n",
        "a",
    ]
    assert data.open_dataset(whole, columns=["v"]).take([2])[0].tolist() == [[2, 3, 4]]
    assert data.open_dataset(whole, columns=["v"], cond=["n"])[1][1].tolist() == [1.0]
    assert data.open_dataset(whole.remove_columns(["image", "a"])).columns == ["n"]
    with pytest.raises(ValueError, match=r"row 6 \(counted from 0\), column 'a': the value is missing"):
        table.take([0, 6])
    with pytest.raises(
        ValueError, match=r"rows 5 to 6, column 'ragged': the values are .* not as many in each"
    ):
        data.open_dataset(whole, columns=["ragged"]).take([5, 6])
    with pytest.raises(ValueError, match=r"no column 'b': it holds image \(image\), label \(label\)"):
        data.open_dataset(whole, columns=["b"])
    with pytest.raises(ValueError, match=r"s \(string\), .*: choose one column of images or arrays"):
        data.open_dataset(whole, columns=["s"])
    with pytest.raises(ValueError, match="has the parts train, test: choose one, such as key='train'"):
        data.open_dataset(tmp_path / "saved")
    with pytest.raises(ValueError, match="is empty"):
        data.open_dataset(whole.select([]))


# -- splits, and data that come along


def test_a_split_is_that_of_the_permutation_whatever_is_split(tmp_path: Path) -> None:
    x, order = np.arange(20.0)[:, None], np.random.default_rng(3).permutation(11)
    np.save(tmp_path / "a.npy", x[:11])
    tensor = torch.from_numpy(x[:11])
    pairs = data.split((tensor, torch.arange(11)), 0.2, seed=3)
    assert all(torch.equal(a[:, 0].long(), b) for a, b in pairs)
    for source in (x[:11], tensor, np.load(tmp_path / "a.npy", mmap_mode="r"), TensorDataset(tensor)):
        train, val = data.split(source, 0.2, seed=3)
        found = [[float(np.asarray(row[0]).squeeze()) for row in part] for part in (train, val)]
        assert found == [order[:8].tolist(), order[8:].tolist()]
    assert len(data.split(tensor, 0.0)[1]) == 0
    for fraction, words in ((1.0, "less than 1"), (0.95, "too few to train on")):
        with pytest.raises(ValueError, match=words):
            data.split(tensor, fraction)
    with pytest.raises(ValueError, match="parts of 11, 3 rows"):
        data.split((tensor, torch.zeros(3)))


def test_patches_share_no_pixel_between_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, test = data.patches(8, stride=8)
    assert train.dtype == torch.uint8 and len(train) == 416 * 16 and len(val) == len(test) == 52 * 16
    numbers = np.arange(2 * 96 * 64).reshape(2, 96, 64)  # photographs whose pixels are all different
    photographs = np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], axis=-1).astype(np.uint8)
    loaded = SimpleNamespace(images=list(photographs))
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: loaded)
    parts = [part.long() for part in data.patches(4, colour=True)]
    seen = [set((p[:, 0] * 65536 + p[:, 1] * 256 + p[:, 2]).flatten().tolist()) for p in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == numbers.size
    with pytest.raises(ValueError, match="from 1 to 64 pixels"):
        data.patches(0)


def test_data_that_come_along_are_opened_by_name() -> None:
    split = data.digits()
    for key in ("train", "val", "test"):
        rows = data.open_dataset(f"digits:{key}")
        assert torch.equal(rows.take(range(len(rows)))[0], getattr(split, key)) and rows.levels == 17
    assert len(data.open_dataset("digits")) == 1350
    with pytest.raises(ValueError, match="no part 'dev': choose one of train, val, test"):
        data.open_dataset("digits", key="dev")


def test_toys_are_functions_of_seed_and_row() -> None:
    for name, half in (("checkerboard", 4.0), ("moons", 2.6), ("spirals", 3.6), ("pinwheel", 6.0)):
        x = data.toy(name, 4000, seed=2, dtype=torch.float64)
        assert torch.equal(data.toy(name, 7, seed=2, dtype=torch.float64), x[:7])
        assert float(x.abs().max()) < half and not torch.equal(data.toy(name, 4000).double(), x)
    board = data.toy("checkerboard", 8000, dtype=torch.float64)
    squares = (board / 2).floor().long() + 2
    assert bool(((squares.sum(dim=1) % 2) == 0).all())
    counts = torch.bincount(squares[:, 0] * 4 + squares[:, 1], minlength=16)
    held = counts[counts > 0].double()
    # Chi-squared with 7 degrees of freedom is above 24.3 with probability 1e-3.
    assert len(held) == 8 and float(((held - 1000) ** 2 / 1000).sum()) < 24.3
    with pytest.raises(ValueError, match="there is no toy 'circle': choose one of checkerboard"):
        data.toy("circle", 3)
