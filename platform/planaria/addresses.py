"""Secrets that stand in addresses: never recorded, and taken from the environment."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*://[^\s/:@'\"]*):[^\s@'\"]+@")
_QUERY = re.compile(
    r"(?P<before>[?&;](?:[\w-]*(?:password|passwd|secret|token|signature|credential|api_?key|access_?key)[\w-]*)=)[^&\s'\"]+",
    re.I,
)
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def mask_secrets(text: str) -> str:
    """`text` with the passwords and tokens of all addresses in it replaced by ***.

    `postgresql://ann:pass@host/db` becomes `postgresql://ann:***@host/db`, `s3://b/k?secret_key=x` ends in `=***`.
    """
    return _QUERY.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>:***@", text))


def holds_secret(text: str) -> bool:
    """Whether an address in `text` has a password or a token written out, rather than as ${NAME}."""
    bare = _VARIABLE.sub("", text)
    return mask_secrets(bare) != bare


def filled(address: str) -> str:
    """`address` with every ${NAME} replaced by that environment variable, percent-encoded. For use, not for records.

    Raises KeyError with the name of a variable that is not set.
    """
    return _VARIABLE.sub(lambda found: quote(os.environ[found[1]], safe=""), address)
