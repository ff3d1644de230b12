"""Loading of saved estimators without running code: the types that :mod:`skops.io` may trust."""

from sk_easytensor._utils.skops import trusted_types

__all__ = [
    "trusted_types",
]
