"""The page at ``/`` in a real Chromium, before the real gateway and stub upstreams."""

import asyncio
import re
import time

import pytest
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from irlops_serving.gateway.keys import hash_key
from support.gateway_rig import rig

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

RIGHT = "April: 48 clips.\nMay: 48 / 2 = 24 clips.\nTogether: 48 + 24 = 72 clips.\n#### 72"
WRONG = "April: 48 clips.\nMay: 48 * 2 = 96 clips.\nTogether: 48 + 96 = 144 clips.\n#### 144"
UNSURE = "April: 48 clips.\nI don't know about May."
SOLUTIONS = [WRONG, RIGHT, WRONG, RIGHT, RIGHT, UNSURE, RIGHT, WRONG]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
WIDER_PHONE = {**PHONE, "viewport": {"width": 390, "height": 844}}
SELECTOR_CELLS = {
    "majority": re.compile("^Majority of 8: "),
    "reward": re.compile("^Highest reward of 8: "),
    "first": re.compile("^First of 8: "),
    "weighted_majority": re.compile("^Weighted majority of 8: "),
}
WORTH = {"24": 2.0, "72": 2.4, "*": -2.2, "96": -2.6, "144": -1.7, "know": -1.2, "48": 0.7, "/": 1.1, "+": 0.5}


def reward(word):
    return WORTH.get(word.strip(), 0.2)


def upstreams(**policy):
    return {"policy": {"solutions": SOLUTIONS, **policy}, "critic": {"reward": reward}}


async def ask(page, **fields):
    for name, value in fields.items():
        await page.get_by_label(name).fill(value)
    await page.get_by_role("button", name="Ask").click()


def chosen(page):
    return page.locator("details.chosen")


async def candidate_order(page):
    return await page.locator("details.candidate").evaluate_all("all => all.map(one => one.dataset.candidate)")


async def test_candidates_are_asked_for_and_the_chosen_one_stands_on_top(open_page):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await ask(page)
        await expect(page.locator(".verdict .answer")).to_have_text("72")
        await expect(page.locator("details.candidate")).to_have_count(8)
        order = await candidate_order(page)
        await expect(chosen(page)).to_contain_text("★ Chosen")
    # The four that answer 72 lead, then those that answer 144, then the one without an answer.
    assert order == ["1", "3", "4", "6", "0", "2", "7", "5"]


async def test_candidates_are_shown_while_others_are_still_written(open_page):
    solutions = ["It is 1. #### 1", " ".join(["word"] * 60)]
    async with rig(policy={"solutions": solutions, "token_delay_s": 0.05}) as r, open_page(r.url) as page:
        await page.get_by_label("Candidates (N)").fill("2")
        await ask(page)
        await expect(page.locator("details.candidate")).to_have_count(1)
        await expect(page.get_by_role("status")).to_contain_text("1 of 2 written")
        assert r.policy.running == 1


async def test_stop_ends_the_sampling_at_the_policy(open_page):
    async with rig(**upstreams(delay_s=30)) as r, open_page(r.url) as page:
        await ask(page)
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        async with asyncio.timeout(5):
            while r.policy.cancelled == 0:  # noqa: ASYNC110 - the stub is polled like any server
                await asyncio.sleep(0.01)


async def test_a_wrong_step_is_marked_and_its_tokens_carry_colours_and_numbers(open_page):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await ask(page)
        wrong = page.locator('[data-candidate="0"]')
        await wrong.locator("summary").click()
        await expect(wrong.locator("li.suspected")).to_contain_text("May: 48 * 2 = 96 clips.")
        token = wrong.get_by_text("96", exact=False).locator("xpath=self::span[@data-token]").first
        await token.hover()
        await expect(wrong.locator(".readout")).to_contain_text("\N{MINUS SIGN}2.60")
        assert "level-4" in await token.get_attribute("class")


async def test_the_text_of_a_solution_is_shown_whole(open_page):
    text = "One 🧮 is 1.\n\n  Two: \N{MATHEMATICAL DOUBLE-STRUCK DIGIT TWO} done.\n#### 3"
    async with rig(policy={"solutions": [text]}) as r, open_page(r.url) as page:
        await ask(page)
        parts = (
            await chosen(page)
            .locator(".step-text")
            .evaluate_all(
                "all => all.map(one => [...one.childNodes].filter(n => n.className !== 'mark').map(n => n.textContent).join(''))"
            )
        )
    assert "".join(parts) == text


async def test_selectors_and_sizes_are_compared_without_sampling_again(open_page):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await ask(page)
        cell = page.get_by_role("button", name="First of 8: 144, candidate 0")
        await cell.click()
        await expect(cell).to_have_attribute("aria-pressed", "true")
        await expect(chosen(page)).to_have_attribute("data-candidate", "0")
        await page.get_by_role("button", name="Majority of 4: 144").first.click()
        await expect(page.locator("details.candidate")).to_have_count(4)
        await page.get_by_role("button", name="Back to the gateway's choice").click()
        await expect(chosen(page)).to_have_attribute("data-candidate", "1")
        assert len(r.policy.requests) == 1


@pytest.mark.parametrize("aggregation", ["mean", "min", "last"])
async def test_another_choice_on_the_page_orders_as_the_gateway_would(open_page, aggregation):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await page.get_by_label("Reward of a solution").select_option(aggregation)
        await ask(page)
        for selector in ("majority", "reward", "first", "weighted_majority"):
            body = await r.rerank(
                {"seed": 0}, candidates=8, selector=selector, aggregation=aggregation, return_candidates=True
            )
            await page.get_by_role("button", name=SELECTOR_CELLS[selector]).click()
            await expect(chosen(page)).to_have_attribute("data-candidate", str(body["rerank"]["chosen_index"]))
            shown = await chosen(page).locator(".numbers").inner_text()
            rewards = {one["index"]: one["reward"] for one in body["rerank"]["candidates"]}
            reward_shown = f"{rewards[body['rerank']['chosen_index']]:+.2f}".replace("-", "\N{MINUS SIGN}")
            assert f"reward {reward_shown}" in shown


@pytest.mark.parametrize("selector", ["first", "majority", "reward", "weighted_majority"])
async def test_the_page_chooses_as_the_gateway_does(open_page, selector):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await page.get_by_label("Selector").select_option(selector)
        await ask(page)
        cell = page.locator('td button[aria-pressed="true"]')
        await expect(cell).to_have_count(1)
        label = await cell.get_attribute("aria-label")
        body = await r.rerank({"seed": 0}, candidates=8, selector=selector)
    assert label.endswith(f"candidate {body['rerank']['chosen_index']}")


async def test_a_pasted_solution_is_scored(open_page):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await page.get_by_role("tab", name="Score a solution").click()
        await page.get_by_label("Your solution").fill(WRONG)
        await page.get_by_role("button", name="Score").click()
        await expect(page.locator(".facts")).to_contain_text("suspected first error in step 2")
        await expect(page.locator("#scored-title .answer")).to_have_text("144")


async def test_everything_can_be_done_with_the_keyboard(open_page):
    async with rig(**upstreams()) as r, open_page(r.url) as page:
        await page.get_by_label("API key").focus()
        await page.keyboard.press("Tab")  # the tabs
        await page.keyboard.press("Tab")  # the question
        await page.keyboard.press("ControlOrMeta+A")
        await page.keyboard.type("How many clips?")
        await page.keyboard.press("Control+Enter")
        await expect(chosen(page)).to_have_count(1)
        for _ in range(60):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.classList.contains('tokens')"):
                break
        await page.keyboard.press("End")
        await expect(chosen(page).locator(".readout")).to_contain_text("+2.40")  # the last token, 72
        assert r.policy.requests[0]["messages"][0]["content"] == "How many clips?"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
async def test_axe_finds_nothing_serious(open_page, scheme, width):
    look = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "reduced_motion": "reduce"}
    async with rig(**upstreams()) as r, open_page(r.url, **look) as page:
        await ask(page)
        await page.locator('[data-candidate="0"] summary').click()
        await expect(page.locator("li.suspected")).to_have_count(1)
        found = await Axe().run(page)
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"] if one["impact"] != "minor"]
    assert serious == []


@pytest.mark.parametrize("phone", [PHONE, WIDER_PHONE], ids=["360 px", "390 px"])
async def test_a_phone_never_scrolls_sideways_even_with_long_words(open_page, phone):
    solutions = [RIGHT, "x" * 400 + "\n#### " + "9" * 300]
    async with rig(policy={"solutions": solutions}) as r, open_page(r.url, **phone) as page:
        await page.get_by_label("Candidates (N)").fill("2")
        await ask(page)
        await page.locator("details.candidate:not([open]) summary").click()
        widths = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]


@pytest.mark.parametrize("phone", [PHONE, WIDER_PHONE], ids=["360 px", "390 px"])
async def test_a_phone_shows_every_choice_of_every_selector_whole(open_page, phone):
    solutions = [*SOLUTIONS[:-1], "#### " + "9" * 300]
    async with rig(policy={"solutions": solutions}) as r, open_page(r.url, **phone) as page:
        await ask(page)
        cells = page.locator("td button")
        await expect(cells).to_have_count(16)  # four selectors of 1, 2, 4 and 8
        places = await cells.evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        numbers = await cells.locator("small").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().right <= one.parentElement.getBoundingClientRect().right)"
        )
        frame = await page.get_by_role("region", name="Other selectors, fewer candidates").bounding_box()
    assert max(places) <= frame["x"] + frame["width"]
    assert numbers == [True] * 16


async def test_an_answer_that_the_critic_doubts_is_said_to_be_doubtful(open_page):
    async with rig(policy={"solutions": [WRONG, RIGHT]}, critic={"reward": reward}) as r, open_page(r.url) as page:
        await page.get_by_label("Reward of a solution").select_option("min")
        await ask(page, **{"Candidates (N)": "1"})  # the wrong one, whose lowest reward is -2.6: exp(-2.6) = .074 to 1
        await expect(page.locator(".verdict")).to_contain_text("more likely wrong than right (7 %)")
        await expect(page.locator(".verdict")).to_contain_text("reward of a solution: lowest")
        await expect(page.locator(".legend")).to_contain_text(
            "The number before a step is the lowest reward of its tokens."
        )
        await ask(page, **{"Candidates (N)": "2"})
        await expect(page.locator(".verdict .answer")).to_have_text("72")
        await expect(page.locator(".doubt")).to_have_count(0)


async def test_dark_is_dark_and_light_is_light(open_page):
    brightness = []
    async with rig(**upstreams()) as r:
        for scheme in ("dark", "light"):
            async with open_page(r.url, color_scheme=scheme) as page:
                colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                brightness.append(sum(int(part) for part in colour.strip("rgb()").split(",")))
    assert brightness[0] < 150 < 600 < brightness[1]


async def brightness_of(page):
    colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.strip("rgb()").split(","))


@pytest.mark.parametrize(("system", "chosen_look"), [("light", "Dark"), ("dark", "Light")])
async def test_the_look_can_be_chosen_against_the_system_and_is_remembered(open_page, system, chosen_look):
    async with rig(**upstreams()) as r, open_page(r.url, color_scheme=system) as page:
        switch = page.get_by_role("group", name="Look of the page")
        await expect(switch.get_by_role("radio", name="System")).to_be_checked()
        before = await brightness_of(page)
        await switch.get_by_text(chosen_look, exact=True).locator("xpath=..").click()
        after = await brightness_of(page)
        await page.reload()
        await expect(switch.get_by_role("radio", name=chosen_look)).to_be_checked()
        assert (after, await page.evaluate("localStorage['irlops-look']")) == (
            await brightness_of(page),
            chosen_look.lower(),
        )
    assert (before < 150 < 600 < after) if system == "dark" else (after < 150 < 600 < before)


async def test_the_look_is_changed_with_the_keyboard_and_given_back_to_the_system(open_page):
    async with rig(**upstreams()) as r, open_page(r.url, color_scheme="light") as page:
        await page.keyboard.press("Tab")  # the first thing on the page
        await expect(page.get_by_role("radio", name="System")).to_be_focused()
        await page.keyboard.press("ArrowLeft")  # round to the last one, dark
        await expect(page.get_by_role("radio", name="Dark")).to_be_checked()
        assert await brightness_of(page) < 150
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("radio", name="System")).to_be_checked()
        assert (await brightness_of(page), await page.evaluate("localStorage.length")) == (
            244 + 245 + 248,
            0,
        )


async def test_long_solutions_stay_usable(open_page):
    solution = "\n".join(f"Step {index}: {index} + 1 = {index + 1}." for index in range(400)) + "\n#### 400"
    async with rig(policy={"solutions": [solution]}) as r, open_page(r.url) as page:
        await ask(page, **{"Candidates (N)": "1"})
        await expect(chosen(page).locator("[data-token]")).to_have_count(2802)
        box = await chosen(page).locator(".tokens").bounding_box()
    assert box["height"] <= 450


async def test_a_degraded_answer_is_said(open_page):
    critic = {"fail": lambda: web.Response(status=500)}
    async with rig(policy={"solutions": SOLUTIONS}, critic=critic) as r, open_page(r.url) as page:
        await ask(page)
        await expect(page.get_by_role("alert")).to_contain_text("The critic did not answer, so the majority vote chose")
        await expect(chosen(page)).to_contain_text("not scored")


async def test_a_missing_key_is_asked_for_kept_in_this_tab_only_and_then_used(open_page, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys:\n  - name: me\n    sha256: {hash_key('secret')}\n")
    async with rig(auth={"keys_file": keys}, **upstreams()) as r, open_page(r.url) as page:
        await ask(page)
        await expect(page.get_by_role("alert")).to_contain_text("The gateway needs a valid API key.")
        await expect(page.get_by_label("API key")).to_be_focused()
        await ask(page, **{"API key": "secret"})
        await expect(chosen(page)).to_have_count(1)
        kept = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 1, ""]


async def test_a_spent_budget_is_said_with_when_to_come_back(open_page):
    # Budgets are counted in minutes of the clock: of one request in the minute that just ended, a part is already forgiven.
    if (into_minute_s := time.time() % 60) > 40:
        await asyncio.sleep(60.5 - into_minute_s)
    async with rig(limits={"requests_per_minute": 1}, **upstreams()) as r, open_page(r.url) as page:
        await ask(page)
        await expect(chosen(page)).to_have_count(1)
        await ask(page)
        await expect(page.get_by_role("alert")).to_contain_text("You have used up what your key allows for now.")
        await expect(chosen(page)).to_have_count(1)  # the earlier answer stays


async def test_a_policy_that_is_down_is_named(open_page):
    policy = {"fail": lambda _: web.Response(status=503)}
    async with rig(policy=policy) as r, open_page(r.url) as page:
        await ask(page)
        await expect(page.get_by_role("alert")).to_contain_text("policy")
