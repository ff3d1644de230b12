"""Temporary directories, and the removal of those that killed processes left behind."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from functools import cache

__all__ = [
    "is_running",
    "make_temporary_directory",
    "remove_left_behind",
    "remove_temporary_directory",
]

OLD_ENOUGH = 3600.0
"""Seconds without a change of a directory after which it may be removed."""

NAME = re.compile(r"sk_easytensor-(?:[a-z]+)-([0-9a-f]{8})-(\d{1,10})-\w+")
"""What it is for, the machine, the process that made it, and something at random."""


def make_temporary_directory(purpose):
    """Make a temporary directory, and remove old ones of processes that are not there any more.

    Parameters
    ----------
    purpose : str
        Lower-case letters; a part of the name.

    Returns
    -------
    str
        Path, for :func:`remove_temporary_directory`.
    """
    _remove_once(os.getpid())
    prefix = f"sk_easytensor-{purpose}-{this_machine()}-{os.getpid()}-"
    return tempfile.mkdtemp(prefix=prefix)


def remove_temporary_directory(path):
    """Remove a temporary directory, unless a process made it that this one was forked from.

    Parameters
    ----------
    path : str or Path
        As :func:`make_temporary_directory` returned it.
    """
    match = NAME.fullmatch(os.path.basename(path))
    if match is not None and int(match[2]) == os.getpid():
        shutil.rmtree(path, ignore_errors=True)


def remove_left_behind(folder=None):
    """Remove the temporary directories that were left behind when processes were killed.

    Only directories are removed whose name is of the library's own pattern, that belong to this
    user, that have not changed for an hour, and whose process ran on this machine and has ended.
    Symbolic links are not followed.

    Parameters
    ----------
    folder : str or None, default=None
        Where to look; by default where temporary directories are made.
    """
    # Elsewhere nothing tells whose a directory is, or a link may take its place meanwhile.
    if not (hasattr(os, "getuid") and shutil.rmtree.avoids_symlink_attacks):
        return
    try:
        with os.scandir(tempfile.gettempdir() if folder is None else folder) as entries:
            left = [entry.path for entry in entries if _is_left_behind(entry)]
    except OSError:
        return
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _is_left_behind(entry):
    match = NAME.fullmatch(entry.name)
    if match is None or match[1] != this_machine():
        return False
    try:
        about = entry.stat(follow_symlinks=False)
        return (
            entry.is_dir(follow_symlinks=False)
            and about.st_uid == os.getuid()
            and time.time() - about.st_mtime > OLD_ENOUGH
            and not is_running(int(match[2]))
        )
    except OSError:
        return False


@cache
def _remove_once(process):
    remove_left_behind()


@cache
def this_machine():
    """Return a digest of what tells where process numbers are those of this process."""
    try:
        # Containers with a common directory may have the same name.
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def is_running(process):
    """Tell whether there is a process of some number on this machine; POSIX only.

    Parameters
    ----------
    process : int
        Its number.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
