"""Secrets that stand in addresses must not be recorded."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*://[^\s/:@'\"]*):[^\s@'\"]+@")
_QUERY = re.compile(
    r"(?P<before>[?&;](?:[\w-]*(?:password|passwd|secret|token|signature|credential|api_?key|access_?key)[\w-]*)=)[^&\s'\"]+",
    re.I,
)


def mask_secrets(text: str) -> str:
    """`text` with the passwords and tokens of all addresses in it replaced by ***.

    `postgresql://ann:pass@host/db` becomes `postgresql://ann:***@host/db`, `s3://b/k?secret_key=x` ends in `=***`.
    """
    return _QUERY.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>:***@", text))
