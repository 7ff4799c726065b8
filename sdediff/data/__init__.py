"""Training data of every kind: arrays, tables, images, Hugging Face datasets, and data that come along."""

from sdediff.data.augmentation import Augment, Compose
from sdediff.data.digits import Split, dequantise, digits
from sdediff.data.opening import open_dataset, read, split
from sdediff.data.patches import patches
from sdediff.data.readers import Table, read_csv
from sdediff.data.rows import RowDataset
from sdediff.data.streams import Stream, stream
from sdediff.data.toys import toy

__all__ = [
    "Augment",
    "Compose",
    "RowDataset",
    "Split",
    "Stream",
    "Table",
    "dequantise",
    "digits",
    "open_dataset",
    "patches",
    "read",
    "read_csv",
    "split",
    "stream",
    "toy",
]
