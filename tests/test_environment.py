"""llm.environment: what stands wrong in the environment has a sentence that names it, and no secret."""

import ssl

import pytest

from prefpipe.llm.environment import certificates, check_key, printable_url, route_to, secrets_of

VARIABLES = [f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in [*VARIABLES, *map(str.lower, VARIABLES), "SSL_CERT_FILE", "SSL_CERT_DIR"]:
        monkeypatch.delenv(name, raising=False)
    route_to.cache_clear()
    certificates.cache_clear()
    yield
    route_to.cache_clear()
    certificates.cache_clear()


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://a/v1", "http://", "http:///v1", "http://a:port/v1", "http://a:99999/v1", "http://[::1/v1",
        "http://::1:8000/v1", "http://a b/v1", "http://a/v1#x", "http://a/v1\n", "http://me:HUSH@a/v1",
        "http://a/v1/chat/completions", "http://a/v1/chat/completions/",
    ],
)  # fmt: skip
def test_a_base_url_that_is_none_is_a_sentence(url):
    with pytest.raises(SystemExit, match="base URL") as end:
        route_to(url)
    assert len(str(end.value)) < 300 and "HUSH" not in str(end.value)


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "http://localhost", "https://a.b/v1/"])
def test_a_base_url_is_taken_as_it_is(url):
    assert route_to(url).base_url == url and route_to(url).query == {}


def test_a_query_goes_with_every_call_and_not_to_the_screen():
    route = route_to("https://a/deployments/x?api-version=2024-10-21&api-key=SECRET1")
    assert route.base_url == "https://a/deployments/x"
    assert route.query == {"api-version": "2024-10-21", "api-key": "SECRET1"}
    assert "?" not in route.name and secrets_of("http://a?api-version=1&key=SECRET1") == ["SECRET1"]


def test_a_url_is_printed_without_what_may_be_secret():
    assert printable_url("https://user:word@host:8000/v1?key=1") == "https://host:8000/v1"
    assert printable_url("http://a@b@c/v1#x") == "http://c/v1"
    assert printable_url("host/v1?key=1") == "host/v1"


@pytest.mark.parametrize("key", ["sk-ä", "sk-\u200b1", "sk-1\nx", "“sk-1”", "sk\x00"])
def test_a_key_that_no_header_takes_is_a_sentence_without_it(key):
    with pytest.raises(SystemExit, match="OPENAI_API_KEY") as end:
        check_key(key)
    assert "sk" not in str(end.value)


def test_other_variables_that_go_into_headers_are_checked_too(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ü")
    with pytest.raises(SystemExit, match="OPENAI_ORG_ID"):
        check_key("sk-1")


@pytest.mark.parametrize(
    "proxy", ["socks5://h:9", "socks://h:9/", "http://h:port", "http://", "http://[::"]
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named_and_no_proxy_helps(monkeypatch, proxy, variable):
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(SystemExit, match=rf"(?i){variable}: found .*NO_PROXY=10\.0\.0\.1") as end:
        route_to("http://10.0.0.1:80/v1")
    assert len(str(end.value)) < 300
    monkeypatch.setenv("NO_PROXY", "10.0.0.1")
    assert route_to("http://10.0.0.1:80/v1").proxy is None


@pytest.mark.parametrize("hosts", ["::1", "a, [::1]", "*"])
def test_an_ipv6_address_needs_no_proxy_where_no_proxy_says_so(monkeypatch, hosts):
    monkeypatch.setenv("HTTP_PROXY", "http://h:9")
    monkeypatch.setenv("NO_PROXY", "::2")
    assert route_to("http://[::1]:8000/v1").proxy
    route_to.cache_clear()
    monkeypatch.setenv("NO_PROXY", hosts)
    assert route_to("http://[::1]:8000/v1").proxy is None


def test_a_proxy_is_part_of_the_name_and_its_password_is_not(monkeypatch):
    monkeypatch.setenv("http_proxy", "me:HUSH@h:9")
    route = route_to("http://10.0.0.1/v1")
    assert route.proxy == "http://me:HUSH@h:9"
    assert route.name == "http://10.0.0.1/v1 through the proxy http://h:9 of http_proxy"
    monkeypatch.setenv("HTTPS_PROXY", "socks5://h:9")  # of no request to http://
    route_to.cache_clear()
    assert route_to("http://10.0.0.1/v1").proxy


def test_certificates_are_read_for_https_only_and_a_file_that_is_none_is_named(
    monkeypatch, tmp_path
):
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path, why in ((tmp_path / "gone.pem", "no such file"), (empty, "no certificates")):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert route_to("http://a/v1").verify is False
        with pytest.raises(SystemExit, match=f"SSL_CERT_FILE .*{path.name}: {why}"):
            route_to("https://a/v1")
    monkeypatch.delenv("SSL_CERT_FILE")
    assert isinstance(route_to("https://a/v1").verify, ssl.SSLContext)
