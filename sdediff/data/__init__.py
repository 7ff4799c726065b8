"""Reading data: arrays, tables and the bundled digits."""

from sdediff.data.digits import Split, dequantise, digits
from sdediff.data.readers import Table, read, read_csv
from sdediff.data.streams import Stream, stream

__all__ = ["Split", "Stream", "Table", "dequantise", "digits", "read", "read_csv", "stream"]
