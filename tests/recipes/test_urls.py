"""URLs: which protocols and hosts are asked, and what allows more."""

import json
from pathlib import Path

import pytest

from recipes.data import storage, urls
from recipes.data.decode import BrokenClip, open_clip
from recipes.data.index import load_index


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What a user has who set nothing."""
    for name in (urls.VARIABLE, urls.PRIVATE):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


REFUSED = [
    "python://os", "local:///etc/passwd", "file:///etc/passwd", "ssh://host/x", "ftp://host/x", "http://example.org/x",
    "blockcache::file:///etc/passwd", "simplecache::https://example.org/x", "https://example.org/x::file:///etc/passwd",
    "memory://x", "zip://x", "github://a:b@/x",
]  # fmt: skip
OWN = [
    "https://127.0.0.1/x", "https://localhost/x", "https://10.0.0.1/x", "https://192.168.1.1:8443/x", "https://[::1]/x",
    "https://169.254.169.254/latest/meta-data", "https://[fd00::1]/x", "https://0.0.0.0/x", "https://2130706433/x",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_other_protocols_and_chains_are_not_opened(url: str, strict: pytest.MonkeyPatch) -> None:
    for act in (lambda: storage.open_bytes(f"{url}.mp4"), lambda: storage.listing(url, "*")):
        with pytest.raises(PermissionError, match=r"chains of protocols|allows it"):
            act()
    with pytest.raises(BrokenClip, match="cannot be opened"), open_clip(url):
        pass


def test_a_storage_without_its_package_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(OSError, match="s3://bucket: Install s3fs"):
        storage.listing("s3://bucket", "*.tar")


@pytest.mark.parametrize("url", [url for url in OWN if "[" not in url] + ["https://[::1]/x"])
def test_hosts_of_the_own_network_are_not_asked(url: str, strict: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionError, match=r"private network|chains"):
        urls.require_allowed(url)
    strict.setenv(urls.PRIVATE, "1")
    if "[" not in url:
        urls.require_allowed(url)


def test_variables_widen_it(strict: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionError, match="HARMONY_PROTOCOLS=https,s3,gs,hf,http allows it"):
        urls.require_allowed("http://8.8.8.8/x")
    strict.setenv(urls.VARIABLE, "http")
    urls.require_allowed("http://8.8.8.8/x")
    with pytest.raises(PermissionError, match="https:// is none of http://"):
        urls.require_allowed("https://8.8.8.8/x")


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a", "video": "a.mp4", "text": "x", "start": ' + "9" * 400 + "}",
        '{"id": "a", "video": "a.mp4", "text": "x", "start": ' + "9" * 5000 + "}",
        '{"id": "a", "video": "a.mp4", "narrations": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"id": "a", "video": "a.mp4", "narrations": "' + "[" * 100_000 + '"}',
        '{"id": "a", "video": "a.mp4", "narrations": [{"start": ' + "9" * 400 + ', "end": 1, "text": "x"}]}',
        '{"id": ' + "[" * 100_000 + "}",
    ],
)
def test_numbers_and_nesting_of_any_size_are_refused_by_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({"id": "ok", "video": "b.mp4", "text": "y"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 2: ") as refused:
        load_index(path)
    assert len(str(refused.value)) < 1000


def test_names_from_anywhere_do_not_command_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    line = {"id": "a\x1b[2J\x9b1m", "video": "a.mp4", "text": "one\x07 two\x1b]0;x"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    (row,) = load_index(tmp_path / "manifest.jsonl").to_list()
    assert row["id"].isprintable() and row["narrations"][0]["text"].isprintable()
    with pytest.raises(BrokenClip) as broken, open_clip("no\x1b[31m\u009bsuch.mp4"):
        pass
    assert str(broken.value).isprintable()
