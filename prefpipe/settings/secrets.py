"""What stands in a setting or an error and may stand nowhere else: passwords in URLs, the API key."""

import os
import re
from typing import Any

from dotenv import dotenv_values

_PASSWORD = re.compile(
    r"(?<=://)[^/@\s'\"]*(?=@)"
    r"|(?<=[?&])(?P<name>[\w.-]*(?:key|token|secret|passw|sig|auth|code)[\w.-]*=)[^&\s'\"#]+",
    re.IGNORECASE,
)
"""In a URL: user and password, and what its query calls a secret."""


def without_passwords(value: Any) -> Any:
    """The same settings, the secrets of each URL in them replaced by three stars."""
    if isinstance(value, dict):
        return {name: without_passwords(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_passwords(inner) for inner in value]
    return _PASSWORD.sub(_stars, value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """The text without passwords in URLs and without the API key, as it is set or as it is sent."""
    key = os.environ.get("OPENAI_API_KEY") or dotenv_values(".env").get("OPENAI_API_KEY") or ""
    for secret in filter(None, (key, key.strip(), repr(key)[1:-1])):
        text = text.replace(secret, "***")
    return _PASSWORD.sub(_stars, text)


def _stars(secret: re.Match[str]) -> str:
    return f"{secret['name'] or ''}***"
