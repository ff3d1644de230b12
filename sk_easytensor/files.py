"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

__all__ = ["write_whole"]


def write_whole(path, data, owner):
    """Write a file under another name and rename it, so that no half of it is ever there.

    Parameters
    ----------
    path : str or path-like
        The file; its directory has to exist.
    data : bytes or str
        Strings are written as UTF-8.
    owner : str
        What writes, for the error.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        If the directory does not exist.
    OSError
        If it cannot be written; what the file had is still there then.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{owner}: directory {str(path.parent)!r} does not exist")
    if isinstance(data, str):
        data = data.encode("utf-8", errors="backslashreplace")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            # Renamed files may be empty after a power cut otherwise.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # What cannot be written cannot always be removed.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return path
