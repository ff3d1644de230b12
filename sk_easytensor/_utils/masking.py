"""Mask passwords and tokens of URLs in everything that is displayed or stored."""

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
    # One slash is left if the URL was converted to a path.
    r"(:/{1,3})(?:"
    # A password, which may contain slashes; but not a port, as in http://host:80/a@b.
    r"[^\s/?#:@\"<>]*:(?!\d+(?:[/?#\s\"'<>]|$))[^\s\"<>]*"
    # A user name alone, which may be a token.
    r"|[^\s/?#:@\"<>]+"
    r")@"
)

QUERY = re.compile(
    r"([?&;][^\s?&;=\"'<>]*(?:token|secret|passw|pwd|key|sig|credential|auth|jwt|sas)[^\s?&;=\"'<>]*=)"
    r"[^\s&;#\"'<>]*",
    re.IGNORECASE,
)


def masked(value):
    """Return a text in which user names, passwords and tokens of URLs are masked.

    Parameters
    ----------
    value : object
        Object whose ``str`` is masked.

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
    """URL with a password or token, which is masked in its ``repr``."""

    def __repr__(self):
        return repr(masked(self))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        # The same object, because `clone` compares parameters by identity.
        return self

    def __reduce__(self):
        return type(self), (str(self),)


def with_mask(value):
    """Return a URL with a password as a :class:`MaskedUrl`, and other values unchanged."""
    if isinstance(value, (str, os.PathLike)) and not isinstance(value, MaskedUrl):
        with suppress(TypeError):
            text = os.fspath(value)
            if isinstance(text, str) and masked(text) != text:
                return MaskedUrl(text)
    return value


class UrlParameter:
    """Descriptor of a parameter that may be a URL with a password.

    The password is masked wherever scikit-learn displays estimators.
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
    """Mask URLs in the messages of an error and of its causes.

    Parameters
    ----------
    error : BaseException
        Error that is modified in place.
    """
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [
            current.__cause__,
            current.__context__,
            *getattr(current, "exceptions", ()),
            *current.args,
        ]
        for value in vars(current).values():
            # Dictionaries may hold further errors, such as those of Ray's workers.
            pending += value.values() if isinstance(value, dict) else [value]
        arguments = tuple(map(_masked_argument, current.args))
        if arguments != current.args:
            current.args = arguments
        for name in {*vars(current), "filename", "filename2", "strerror"}:
            value = getattr(current, name, None)
            masked_value = _masked_argument(value)
            if isinstance(value, (str, list)) and masked_value != value:
                with suppress(AttributeError, TypeError):
                    setattr(current, name, masked_value)


def _masked_argument(value):
    if isinstance(value, str):
        return masked(value)
    if type(value) is list and all(isinstance(item, str) for item in value):
        return [masked(item) for item in value]
    return value


@contextmanager
def masked_errors():
    """Mask URLs in the errors that leave the context."""
    try:
        yield
    except BaseException as error:
        mask_error(error)
        raise
