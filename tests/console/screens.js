// Looks at every screen once, with all that it could show, and holds what was seen; browser.test.js runs them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";

const require = createRequire(`${process.env.CONSOLE_TOOLS}/node_modules/`);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
/** The rules whose result depends on the theme, which changes colours only. */
const COLOURS = ["color-contrast", "link-in-text-block"];

/** @param {any} made @returns {string[]} */
const screens = (made) => ["", "/runs", "/runs?status=PENDING&name=nothing", `/runs/${made.runs.order.id}`, `/runs/${made.runs.hostile.id}?step=ask`, `/runs/${made.runs.failing.id}?step=mail`,
    ...["timeline", "table", "log", "data", "lineage", "raw"].map((tab) => `/runs/${made.runs.hostile.id}?tab=${tab}`), `/runs/${made.runs.cancelled.id}`,
    `/compare?a=${made.runs.order.id}&b=${made.runs.hostile.id}`, "/workflows", `/workflows/${made.hostile.id}`,
    ...["run", "runs", "versions&from=1&to=2", "definition", "use"].map((tab) => `/workflows/${made.order.id}?tab=${tab}`), "/workflows/new", `/workflows/${made.hostile.id}/edit`,
    "/triggers", "/triggers?name_prefix=none", ...Object.values(made.triggers).map(({ id }) => `/triggers/${id}`), "/webhooks", ...Object.values(made.hooks).map(({ id }) => `/webhooks/${id}`),
    `/webhooks/${made.hooks.bad.id}/deliveries/${made.delivery}`, `/runs/${made.runs.held.id}`, `/runs?cols=run,trigger,due,deadline,flow`,
    "/agents", `/agents/${made.broken.id}`, "/approvals", "/dead-letters", "/keys", "/organisations", "/organisations/acme", "/audit", "/system", "/nowhere"];

/** @param {any} made @returns {[string, string[]][]} */
const dialogs = (made) => [["/keys", ["New key"]], ["/organisations", ["New organisation"]], ["/agents", ["New agent"]], ["/runs", ["Columns", "Export", "Keyboard help", "Save view"]],
    [`/runs/${made.runs.failing.id}`, ["Retry"]], ["/workflows/new", ["Try it"]], ["/system", ["API"]], ["/runs?status=FAILED", ["Act on all"]], ["/triggers", ["New trigger"]], ["/webhooks", ["New webhook"]],
    [`/triggers/${made.triggers.nightly.id}`, ["Fire now", "Pause", "Edit", "Delete", "Start runs of a range of time"]], [`/triggers/${made.triggers.incoming.id}`, ["Make another token"]],
    [`/webhooks/${made.hooks.good.id}`, ["Test", "Recover", "Edit", "Rotate secret", "Disable"]], [`/webhooks/${made.hooks.off.id}`, ["Enable"]]];

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any, key: string }} context */
export function screenJourneys(context) {
    /** What axe says about the page, or a part of it, in both themes. @param {string} name @param {string} [part] @returns {Promise<string[]>} */
    const faults = async (name, part = "document") => {
        const { page } = context();
        const run = (/** @type {string} */ options) => page.browser.evaluate(`axe.run(${part}, ${options}).then(({ violations }) => violations.map(({ id, nodes }) =>
            id + ": " + nodes.slice(0, 3).map((node) => node.html.slice(0, 160) + " " + (node.any[0]?.message ?? "")).join(" | ")))`);
        await page.browser.evaluate(`window.axe ? 0 : (() => { ${axe} })()`);
        const light = await run(JSON.stringify({ runOnly: TAGS, resultTypes: ["violations"] }));
        await page.theme("dark");
        const dark = await run(JSON.stringify({ runOnly: { type: "rule", values: COLOURS }, resultTypes: ["violations"] }));
        await page.theme("light");
        await page.size(360, 740);
        const narrow = await run(JSON.stringify({ runOnly: { type: "rule", values: ["target-size"] }, resultTypes: ["violations"] }));
        await page.size(1280);
        return [...narrow.map((one) => `narrow ${name}: ${one}`), ...light.map((one) => `light ${name}: ${one}`), ...dark.map((one) => `dark ${name}: ${one}`)];
    };
    /** How much wider than the window the page is at 320 pixels. @returns {Promise<number>} */
    const width = async () => {
        const { page } = context();
        await page.size(320, 640);
        // What is drawn for the width is drawn again in the next frames.
        const wide = await page.browser.evaluate(`new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() =>
            resolve(document.documentElement.scrollWidth - document.documentElement.clientWidth)))))`);
        await page.size(1280);
        return wide;
    };
    /** The commands of the dialog API. @returns {Promise<string[]>} */
    const commands = async () => {
        const { page } = context();
        await page.press("API");
        await page.reads("curl -sS");
        return page.browser.evaluate("[...document.querySelectorAll('dialog pre')].map((one) => one.innerText)");
    };

    /** @type {Promise<{ screen: string, faults: string[], wide: number, marks: any, commands: string[] }[]> | undefined} */
    let looks;
    const all = () => (looks ??= (async () => {
        const { page, made, key } = context();
        const found = [];
        await page.signIn(key);
        await page.theme("light");
        for (const screen of screens(made)) {
            await page.go(`/console${screen}`);
            await page.settled();
            const marks = await page.browser.evaluate(`({ hacked: Boolean(window.hacked), shown: document.documentElement.outerHTML.includes("onerror=") || document.querySelector("textarea")?.value.includes("onerror="),
                count: document.querySelectorAll("main img, main script, main b, main i, main svg[onload], a[href^='javascript']").length })`);
            found.push({ screen, marks, wide: await width(), faults: await faults(screen), commands: screen === "/nowhere" ? [] : await commands() });
        }
        return found;
    })());

    test("every screen is clean for axe in both themes, and so are dialogs and what is refused, not found or not signed in", async () => {
        const { page, made, key } = context();
        const found = (await all()).flatMap((look) => look.faults);
        for (const [screen, buttons] of dialogs(made)) {
            await page.go(`/console${screen}`);
            await page.settled();
            for (const button of buttons) {
                await page.press(button);
                await page.sees("dialog[open]");
                found.push(...await faults(`${screen} ${button}`, "document.querySelector('dialog')"));
                await page.browser.press("Escape");
                await page.browser.until("!document.querySelector('dialog')", "the end of the dialog");
            }
        }
        for (const screen of ["/runs/run-nothing", "/workflows/nothing", "/dead-letters/nothing", "/runs?created_after=nonsense"]) {
            await page.go(`/console${screen}`);
            await page.sees("main .problem");
            found.push(...await faults(screen));
        }
        await page.fresh();
        await page.signIn(made.viewer, "/console/keys");
        await page.reads("You may not see this");
        found.push(...await faults("refused"));
        await page.fresh();
        await page.go("/console");
        await page.sees("#credential");
        found.push(...await faults("sign-in"));
        await page.signIn(key);
        await page.browser.call("Network.clearBrowserCookies");
        await page.press("Runs", "nav a");
        await page.reads("The session has ended");
        found.push(...await faults("sign-in again", "document.querySelector('dialog')"));
        await page.signIn(key);
        assert.deepEqual(found, []);
    });

    test("at 320 pixels no screen scrolls sideways", async () => {
        const wide = (await all()).filter((look) => look.wide > 0);
        assert.deepEqual(wide.map((look) => `${look.screen}: ${look.wide} pixels too wide`), []);
    });

    test("nothing that somebody has stored is executed or becomes markup, on any screen", async () => {
        const seen = await all();
        for (const { screen, marks } of seen) assert.deepEqual([marks.hacked, marks.count], [false, 0], screen);
        const shown = seen.filter((look) => look.marks.shown).length;
        assert.ok(shown > 12, `the texts were shown on ${shown} screens only`);
    });

    test("every screen has the calls behind it as commands that work", async () => {
        const { service } = context();
        for (const { screen, commands } of await all()) {
            if (screen !== "/nowhere") assert.ok(commands.length > 0, `${screen} has no commands`);
            for (const command of commands.filter((one) => !one.includes("-X "))) {
                assert.ok(command.includes('-H "X-API-Key: $KEY"'), command);
                const url = command.match(/http[^' ]+/)?.[0] ?? "";
                if (url.endsWith("/events")) continue;
                const answer = await fetch(url, { headers: { "x-api-key": service.key } });
                await answer.body?.cancel();
                assert.ok(answer.status === 200, `${screen}: ${command} is ${answer.status}`);
            }
        }
    });
}
