"""The documents that are committed: links, named files, the size of the README, the generated reference."""

import re
from collections import Counter
from pathlib import Path

import pytest

from scripts import cli_reference, site_pages
from support.processes import ROOT

_TOP_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "client/README.md")
PAGES = [*(ROOT / name for name in _TOP_PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
README_LIMIT_BYTES = 8192

_CODE = re.compile(r"^```.*?^```$|^    .*$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them; those that mkdocstrings adds to the site only are not among them."""
    counts: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for address in re.findall(r"\]\(([^()\s]+)\)", _CODE.sub("", page.read_text())):
        path, _, anchor = address.partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{address} does not exist"
        assert not anchor or anchor in headings(target), f"{address} has no such heading"


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    spans = re.findall(r"`((?:src|tests|docs|scripts|docker|benchmarks|client|demo)/[\w./-]*)`", page.read_text())
    assert [span for span in spans if not (ROOT / span).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_LIMIT_BYTES


def test_the_reference_of_the_commands_is_fresh() -> None:
    assert cli_reference.main(["--check"]) == 0


def test_a_stale_reference_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "cli.md"
    assert cli_reference.main(["--check", "--page", str(page)]) == 1
    assert cli_reference.main(["--page", str(page)]) == 0
    assert cli_reference.main(["--check", "--page", str(page)]) == 0
    page.write_text(page.read_text().replace("mlcls import", "mlcls inport"))
    assert cli_reference.main(["--check", "--page", str(page)]) == 1
    assert "make cli-reference" in capsys.readouterr().err


def test_the_reference_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cli_reference.render_page()
    for variable in ("MLCLS_MODEL_REPOSITORY", "MLCLS_URL", "MLCLS_LOG_FORMAT"):
        monkeypatch.setenv(variable, "elsewhere")
    monkeypatch.setenv("COLUMNS", "40")
    assert cli_reference.render_page() == plain


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/how-to/serve.md#x)", "[a](how-to/serve.md#x)"),
        ("index.md", "![a](docs/images/tuning.png)", "![a](images/tuning.png)"),
        ("index.md", "[a](SECURITY.md) [b](client/README.md)", "[a](explanation/security.md) [b](how-to/client.md)"),
        ("index.md", "[a](https://example.org/docs/x.md)", "[a](https://example.org/docs/x.md)"),
        ("index.md", "[license](LICENSE)", "license"),
        ("how-to/serve.md", "[a](../../SECURITY.md#b)", "[a](../explanation/security.md#b)"),
        ("how-to/serve.md", "[a](versions.md) [b](#c)", "[a](versions.md) [b](#c)"),
        ("explanation/demo-model.md", "![a](../../demo_model/curves.png)", "![a](../images/demo-model-curves.png)"),
        ("project/contributing.md", "[a](docs/architecture.md)", "[a](../architecture.md)"),
        ("index.md", "```md\n[a](docs/x.md)\n```", "```md\n[a](docs/x.md)\n```"),
    ],
)
def test_links_become_links_of_the_site(page: str, text: str, expected: str) -> None:
    assert site_pages.site_links(text, page) == expected
