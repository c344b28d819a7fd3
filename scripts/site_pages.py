"""Add the pages outside `docs/` to the documentation site: a hook of MkDocs, see `mkdocs.yml`.

GitHub shows `README.md`, `SECURITY.md` and a few others where they are, so they stay there. The site shows the same
files under the paths in `PAGES`. Links work in both places: a link to one of these files, or from one of them into
`docs/`, becomes a link within the site. A link to a file without a page becomes plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]

# Path in the repository -> path in the site.
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "explanation/security.md",
    "client/README.md": "how-to/client.md",
    "demo_model/curves.png": "images/demo-model-curves.png",
}
_SOURCES: Final = {page: source for source, page in PAGES.items()}

_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)")
_FENCE: Final = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and pictures outside `docs/`."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert the links of a page to links of the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Convert the links of a page to links of the site.

    Args:
        markdown: The page's text. Fenced code is left unchanged.
        page: The page's path in the site.

    Returns:
        The text, with links relative to the page's place in the site.
    """
    source = _SOURCES.get(page, f"docs/{page}")
    parts = _FENCE.split(markdown)
    return "".join(
        part if index % 2 else _LINK.sub(lambda link: _site_link(link, source, page), part)
        for index, part in enumerate(parts)
    )


def _site_link(link: re.Match[str], source: str, page: str) -> str:
    image, text, address = link.groups()
    path, mark, anchor = address.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    target = os.path.normpath(PurePosixPath(source).parent / path)
    if target in PAGES:
        site_target = PAGES[target]
    elif target.startswith("docs/"):
        site_target = target.removeprefix("docs/")
    elif (ROOT / target).exists() and not image:
        return text
    else:
        return link[0]  # MkDocs reports it
    return f"{image}[{text}]({os.path.relpath(site_target, PurePosixPath(page).parent)}{mark}{anchor})"
