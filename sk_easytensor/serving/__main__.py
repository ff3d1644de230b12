"""Serve an exported model over HTTP: ``python -m sk_easytensor.serving model.onnx``."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from sk_easytensor.serving.limits import Limits, prepared_keys

KEY_VARIABLE = "SK_EASYTENSOR_API_KEY"
"""Environment variable with an API key."""


def make_parser():
    """Return the parser of the command line, which has an option for each limit."""
    parser = argparse.ArgumentParser(
        "python -m sk_easytensor.serving",
        description="Serve a model that to_onnx wrote: rows as JSON in, predictions out.",
    )
    parser.add_argument("model", help="file that to_onnx wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free port (%(default)s)")
    parser.add_argument("--n-jobs", type=int, help="threads of the model, -1 for all cores (1)")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        help=f"file with the API keys of clients, one a line; otherwise {KEY_VARIABLE} has one, "
        "and without both the service needs no key",
    )
    parser.add_argument("--log-level", default="warning", help="log level of uvicorn (%(default)s)")
    for field in fields(Limits):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="(%(default)s)",
        )
    return parser


def api_key(file):
    """Return the API keys in a file or in the environment; None if there is neither.

    Raises
    ------
    ValueError
        If the file has no key, or the environment variable is empty.
    """
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise ValueError(f"{file} has no key; write one a line, or omit --api-key-file")
        return keys
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise ValueError(f"{KEY_VARIABLE} is empty; set it to a key, or unset it")
    return key


def main(arguments=None):
    """Read the command line and serve."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
        key = api_key(options.api_key_file)
        prepared_keys(key)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    from sk_easytensor.serving.app import serve

    serve(
        options.model,
        host=options.host,
        port=options.port,
        limits=limits,
        api_key=key,
        n_jobs=options.n_jobs,
        log_level=options.log_level,
    )


if __name__ == "__main__":
    main()
