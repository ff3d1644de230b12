"""Addresses without the passwords and tokens in them, for whatever is displayed or stored."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress

__all__ = [
    "MaskedUrl",
    "UrlParameter",
    "mask_error",
    "masked",
    "masked_errors",
    "with_mask",
]


MASK = "***"

USER = re.compile(
    # A path may have been made of the address, which leaves one slash.
    r"(:/{1,3})(?:"
    # A password, which may hold slashes; but a port, as in http://host:80/a@b, is none.
    r"[^\s/?#:@\"<>]*:(?!\d+(?:[/?#\s\"'<>]|$))[^\s\"<>]*"
    # A name alone, which may be a token.
    r"|[^\s/?#:@\"<>]+"
    r")@"
)

QUERY = re.compile(
    r"([?&;][^\s?&;=\"'<>]*(?:token|secret|passw|pwd|key|sig|credential|auth|jwt|sas)[^\s?&;=\"'<>]*=)"
    r"[^\s&;#\"'<>]*",
    re.IGNORECASE,
)


def masked(value):
    """Return a text in which the users, passwords and tokens of URLs are masked.

    Parameters
    ----------
    value : object
        Its ``str`` is used.

    Returns
    -------
    str

    Examples
    --------
    >>> masked("cannot read s3://key:secret@bucket/rows?versionId=3")
    'cannot read s3://***@bucket/rows?versionId=3'
    >>> masked("https://host/rows.parquet?X-Amz-Signature=12ab&part=3")
    'https://host/rows.parquet?X-Amz-Signature=***&part=3'
    """
    text = str(value)
    if ":/" in text and "@" in text:
        text = USER.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = QUERY.sub(rf"\1{MASK}", text)
    return text


class MaskedUrl(str):
    """A URL with a password or token, which its ``repr`` masks."""

    def __repr__(self):
        return repr(masked(self))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        # The same object: `clone` compares parameters by identity.
        return self

    def __reduce__(self):
        return type(self), (str(self),)


def with_mask(value):
    """Return a path or URL as a :class:`MaskedUrl` if it has a password, else as it is."""
    if isinstance(value, (str, os.PathLike)) and not isinstance(value, MaskedUrl):
        with suppress(TypeError):
            text = os.fspath(value)
            if isinstance(text, str) and masked(text) != text:
                return MaskedUrl(text)
    return value


class UrlParameter:
    """Attribute of a class for a parameter that may be a URL with a password.

    The parameter is displayed without it, wherever scikit-learn displays estimators.
    """

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        try:
            return vars(instance)[self._name]
        except KeyError:
            raise AttributeError(
                f"{type(instance).__name__!r} object has no attribute {self._name!r}"
            ) from None

    def __set__(self, instance, value):
        vars(instance)[self._name] = with_mask(value)

    def __delete__(self, instance):
        del vars(instance)[self._name]


def mask_error(error):
    """Mask addresses in the messages of an error and of all errors that it came from.

    Parameters
    ----------
    error : BaseException
        Changed in place.
    """
    left, seen = [error], set()
    while left:
        each = left.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ()), *each.args]
        for value in vars(each).values():
            # Such as the errors of Ray's workers by number.
            left += value.values() if isinstance(value, dict) else [value]
        arguments = tuple(map(_masked_argument, each.args))
        if arguments != each.args:
            each.args = arguments
        for name in {*vars(each), "filename", "filename2", "strerror"}:
            value = getattr(each, name, None)
            found = _masked_argument(value)
            if isinstance(value, (str, list)) and found != value:
                with suppress(AttributeError, TypeError):
                    setattr(each, name, found)


def _masked_argument(value):
    if isinstance(value, str):
        return masked(value)
    if type(value) is list and all(isinstance(item, str) for item in value):
        return [masked(item) for item in value]
    return value


@contextmanager
def masked_errors():
    """Mask addresses in the errors that leave the context."""
    try:
        yield
    except BaseException as error:
        mask_error(error)
        raise
