"""Parquet, a table in columns, cut into groups of rows that can be read one at a time.

Most large collections of text are published in it. Only the column that is asked for is read, a
few rows at a time. The reading is done by the library pyarrow, which npgpt needs for nothing else.
"""

from npgpt.corpus.sources import clean
from npgpt.errors import UserError

BUFFER = 1 << 20  # bytes of a column read at a time, however large its groups are
BATCH = 256  # rows at a time


def open_parquet(file, path, field):
    """Read a table's outline, which stands at the end of its file.

    Args:    file, open in binary mode, or anything that reads and seeks; path, for messages;
             field, the column that is wanted.
    Returns: a pyarrow.parquet.ParquetFile.
    Raises:  UserError if pyarrow is missing, the file is damaged, or there is no such column.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} is read with the library pyarrow: python -m pip install pyarrow"
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER)
    except (pyarrow.ArrowException, OSError) as error:
        what = f"{path} is damaged, or no parquet file"
        raise UserError(f"{what} ({_first_line(error)}): get it anew") from None
    if field not in parquet.schema_arrow.names:
        columns = ", ".join(map(repr, parquet.schema_arrow.names))
        raise UserError(f"{path} has no column {field!r}; the columns there are: {columns}")
    kind = str(parquet.schema_arrow.field(field).type)
    if not kind.removeprefix("dictionary<values=").startswith(("string", "large_string")):
        raise UserError(f"the column {field!r} of {path} holds no text, but {kind}")
    return parquet


def row_group_documents(parquet, group, path, field):
    """Read the documents of one group of rows.

    Args:    parquet, from open_parquet; group, its number; path, for messages; field.
    Returns: an iterator of bytes, one for each row; a null is an empty document.
    Raises:  UserError if the group is damaged.
    """
    import pyarrow

    try:
        batches = parquet.iter_batches(
            BATCH, row_groups=[group], columns=[field], use_threads=False
        )
        for batch in batches:
            for value in batch.column(0):
                yield clean((value.as_py() or "").encode())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"{path} is damaged in row group {group}"
        raise UserError(f"{what} ({_first_line(error)}): get it anew") from None


def parquet_documents(file, path, field):
    """Read the documents of a whole table, group by group; see the two functions above."""
    parquet = open_parquet(file, path, field)
    for group in range(parquet.num_row_groups):
        yield from row_group_documents(parquet, group, path, field)


def _first_line(error):
    return str(error).strip().partition("\n")[0]
