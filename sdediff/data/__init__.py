"""Reading data: arrays, tables and the bundled digits."""

from sdediff.data.digits import Split, dequantise, digits
from sdediff.data.readers import Table, read, read_csv

__all__ = ["Split", "Table", "dequantise", "digits", "read", "read_csv"]
