"""A real Chromium for the playground's tests."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright, expect

# A machine that does other work beside the tests is slow, not wrong.
expect.set_options(timeout=20_000)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _chromium(playwright: Playwright) -> str | None:
    """The system's Chromium, or the one that `playwright install chromium` brought."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return found or (path if Path(path := playwright.chromium.executable_path).exists() else None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        executable = _chromium(playwright)
        if executable is None:
            pytest.skip("No Chromium here: install Debian's chromium, or run `playwright install chromium`.")
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def open_page(browser):
    """A page at a gateway; fails the test when a script fails, the policy blocks something or a request leaves."""

    @asynccontextmanager
    async def opened(url: str, **options) -> AsyncIterator[Page]:
        context: BrowserContext = await browser.new_context(**options)
        page = await context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda asked: None if asked.url.startswith(url) else complaints.append(asked.url))
        await page.goto(url + "/")
        yield page
        assert complaints == []
        await context.close()

    return opened
