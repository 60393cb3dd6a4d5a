"""Headless Chromium: photographs of a page, and axe-core over it. Tests that need it skip where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# axe's answer is written into the page, which is then dumped.
_RUN = """
<script>
axe.run(document, {resultTypes: ["violations", "incomplete"]}).then((found) => {
  const told = document.createElement("pre");
  told.id = "axe-found";
  told.textContent = JSON.stringify({violations: found.violations, passes: found.passes.length, engine: found.testEngine});
  document.body.append(told);
});
</script>
"""


def photograph(url: str, png: Path, *, width: int = 1280, height: int = 1700, dark: bool = False) -> Path:
    """A screenshot of a page that is served, after its scripts have had a moment."""
    _chromium(png.parent, f"--screenshot={png}", f"--window-size={width},{height}", "--virtual-time-budget=2500", url, dark=dark)
    assert png.stat().st_size > 5000
    return png


def dumped(url: str, folder: Path, *, moment: int = 4000) -> str:
    """The page as its scripts have left it after so many milliseconds; 0: when it was loaded."""
    return _chromium(folder, *([f"--virtual-time-budget={moment}"] if moment else []), "--dump-dom", url)


def accessibility(page: str, style: str, folder: Path, *, dark: bool = False, width: int = 1280) -> dict[str, Any]:
    """axe-core's findings over a page that was saved with its style sheet in it.

    Returns:
        `violations`, each with `id`, `impact` and `nodes`; the number of `passes`; `engine`.
    """
    try:
        axe = Path(str(distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js")))
    except PackageNotFoundError:
        pytest.skip("axe-playwright-python, which carries axe-core, is not installed (make install)")
    saved = re.sub(r'<link rel="stylesheet"[^>]*>', lambda _: f"<style>{style}</style>", page)
    saved = re.sub(r"<script[^>]*></script>", "", saved)
    assert "</body>" in saved
    path = folder / "saved.html"
    path.write_text(saved.replace("</body>", f'<script src="{axe.as_uri()}"></script>{_RUN}</body>'), encoding="utf-8")
    found = _chromium(
        folder, "--allow-file-access-from-files", "--virtual-time-budget=20000", f"--window-size={width},1200", "--dump-dom",
        path.as_uri(), dark=dark,
    )  # fmt: skip
    match = re.search(r'<pre id="axe-found">(.*?)</pre>', found, re.DOTALL)
    assert match, "axe-core has not answered"
    answer: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert answer["passes"] > 3  # it did look
    return answer


def grave(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Serious and critical violations: (rule, help, the first element at fault)."""
    bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["help"], v["nodes"][0]["html"]) for v in bad]


def _chromium(folder: Path, *arguments: str, dark: bool = False) -> str:
    assert CHROMIUM
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", *scheme, *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
