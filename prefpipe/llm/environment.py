"""The way to a server, checked before the first request: key, base URL, proxy, certificates.

The libraries below raise errors of their own for what stands wrong in the environment, many without
saying where it stands; here each has a sentence. All raise SystemExit.
"""

import functools
import os
import re
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import httpx2

_SECRET_NAME = re.compile(r"key|token|secret|password|passwd|sig|signature|auth|code", re.I)
_SENT_IN_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


@dataclass(frozen=True)
class Route:
    """How a base URL is reached."""

    base_url: str
    """Without its query."""
    query: dict[str, object]
    """What goes with every call, as ?api-version=... does."""
    proxy: str | None
    verify: ssl.SSLContext | bool
    name: str
    """For a person: the URL, and the proxy with the variable that names it, without secrets."""

    @property
    def client_options(self) -> dict[str, Any]:
        """What both kinds of httpx2's client take; nothing else of the environment is read."""
        return {"proxy": self.proxy, "verify": self.verify, "trust_env": False}


def check_key(key: str) -> None:
    """A header takes plain ASCII only; copied keys bring line ends, quotes and invisible signs."""
    if not (key.isascii() and key.isprintable()):
        raise SystemExit("OPENAI_API_KEY: found a line end, or not only ASCII; copy it again")
    for name in _SENT_IN_HEADERS:
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isprintable()):
            raise SystemExit(f"{name}: found a line end, or not only ASCII; copy it again")


@functools.cache
def route_to(url: str) -> Route:
    """The way to that base URL."""
    parts = _split(url)
    name, proxy = printable_url(url), None
    direct = urllib.request.getproxies().get("no", "").replace("[", "").replace("]", "")
    # the library takes the last part of an IPv6 address for a port
    is_direct = parts.hostname in [host.strip() for host in direct.split(",")]
    if not is_direct and not urllib.request.proxy_bypass(parts.netloc):
        variable, proxy = _proxy_of(parts.scheme)
        if proxy:
            _check_proxy(variable, proxy, parts.hostname or "")
            name += f" through the proxy {printable_url(proxy)} of {variable}"
    needscertificates = "https" in (parts.scheme, urlsplit(proxy or "").scheme)
    query = dict[str, object](parse_qsl(parts.query, keep_blank_values=True))
    base_url = parts._replace(query="").geturl()
    return Route(base_url, query, proxy, certificates() if needscertificates else False, name)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:  # brackets of IPv6, a port that is none
        raise SystemExit(f"base URL {printable_url(url)!r}: {error}") from None
    if "@" in parts.netloc:
        raise SystemExit("base URL: found one with a user or password; leave both out")
    shown = f"base URL {printable_url(url)!r}"
    if not is_whole or parts.fragment or not url.isprintable() or " " in url:
        raise SystemExit(f"{shown}: wanted http://host:port/v1 or https://...")
    if parts.netloc.count(":") > 1 and not parts.netloc.startswith("["):
        raise SystemExit(f"{shown}: an IPv6 address stands in brackets: http://[::1]:8000/v1")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise SystemExit(f"{shown}: leave /chat/completions out; it is added to each base URL")
    return parts


def _proxy_of(scheme: str) -> tuple[str, str | None]:
    """The variable that names a proxy for URLs of that scheme, and the proxy; None: there is none."""
    proxies = urllib.request.getproxies()
    for kind in (scheme, "all"):
        if proxy := proxies.get(kind):
            names = (f"{kind}_proxy", f"{kind}_proxy".upper())
            variable = next(
                (name for name in names if os.environ.get(name)), "the system's settings"
            )
            return variable, proxy if "://" in proxy else f"http://{proxy}"
    return "", None


def _check_proxy(variable: str, proxy: str, host: str) -> None:
    way_out = f"correct it, unset it, or set NO_PROXY={host} where the server needs no proxy"
    try:
        parts = urlsplit(proxy)
        is_whole = bool(parts.hostname) and parts.port != 0
        httpx2.Proxy(proxy if parts.scheme in ("http", "https") else "http://a")
    except (ValueError, httpx2.InvalidURL):
        raise SystemExit(f"{variable}: found no URL of a proxy; {way_out}") from None
    if parts.scheme not in ("http", "https") or not is_whole:
        raise SystemExit(
            f"{variable}: found {printable_url(proxy)!r}; wanted http://host:port, other proxies "
            f"are not supported; {way_out}"
        )


@functools.cache
def certificates() -> ssl.SSLContext:
    """For all connections: reading them takes longer than a whole generate() of a few requests."""
    path = os.environ.get("SSL_CERT_FILE", "")
    try:
        return httpx2.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        why = (
            "no such file" if isinstance(error, FileNotFoundError) else f"no certificates: {error}"
        )
        raise SystemExit(f"SSL_CERT_FILE {path}: {why}; correct it, or unset it") from None


def printable_url(url: str) -> str:
    """The URL without a user's name and password, and without its query."""
    before, slashes, behind = url.partition("://")
    place = re.split(r"[?#]", behind, maxsplit=1)[0]
    host, slash, path = place.partition("/")
    shown = f"{host.rpartition('@')[2]}{slash}{path}" if slashes else re.split("[?#]", before)[0]
    return (
        "".join(c if c.isprintable() else " " for c in f"{before}{slashes}{shown}" if slashes)
        or shown
    )


def secrets_of(url: str) -> list[str]:
    """The values in a URL's query that are passwords by their names."""
    query = url.partition("?")[2]
    return [value for name, value in parse_qsl(query) if _SECRET_NAME.search(name)]
