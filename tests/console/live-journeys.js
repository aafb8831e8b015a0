// What stays while things change: the keyboard's place, what was typed, streams, sessions; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, cable: import("./cable.js").Cable, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function liveJourneys(context, at) {
    const focused = "document.activeElement";
    const ends = (words) => `document.querySelector('.run-words .status')?.innerText.includes('${words}')`;
    /** Whether the page is seen, as the browser would tell it. @param {boolean} hidden */
    const hide = (hidden) => `window.$hidden = ${hidden}; Object.defineProperty(document, "hidden", { configurable: true, get: () => window.$hidden });
        document.dispatchEvent(new Event("visibilitychange"))`;
    const streams = "window.$streams.size";
    const answer = async (service, run, body = { approved: true }) => {
        const [callback] = await service.call("GET", `/runs/${run.id}/callbacks`);
        await service.call("POST", `/callbacks/${callback.url.split("/").pop()}`, body);
    };

    test("the first link leads to the content, and a dialog gives the keyboard back", async () => {
        const { page } = context();
        await at("/console/keys");
        await page.browser.evaluate("document.querySelector('.skip').focus()");
        await page.browser.press("Enter");
        await page.browser.until(`${focused}.id === 'main'`, "the keyboard at the content");
        await page.press("New key");
        await page.sees("dialog[open]");
        await page.browser.press("Escape");
        await page.browser.until(`!document.querySelector("dialog") && ${focused}.innerText === 'New key'`, "the keyboard at the button");
        // What has the keyboard is not below the bar at the top.
        assert.equal(await page.browser.evaluate("parseInt(getComputedStyle(document.documentElement).scrollPaddingTop) >= document.querySelector('.top').offsetHeight"), true);
    });

    test("a dialog that was opened while its screen was loading stays modal, with what was typed", async () => {
        const { page } = context();
        await at("/console/system");
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/api-keys?*" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await page.press("API keys", "nav a");
        const { requestId } = await paused;
        await page.press("New key");
        await page.sees("dialog:modal");
        await page.fill("Name", "half a na");
        await page.browser.call("Fetch.continueRequest", { requestId });
        await page.browser.call("Fetch.disable");
        await page.sees("tr[data-row]");
        assert.deepEqual(await page.browser.evaluate(`[document.querySelector("dialog").matches(":modal"), ${focused}.value]`), [true, "half a na"]);
        await page.browser.press("Escape");
        await page.browser.until(`!document.querySelector("dialog") && ${focused}.innerText === 'New key'`, "the keyboard at the button");
    });

    test("the shell is drawn before it is known who is signed in, with one request for that", async () => {
        const { page } = context();
        await at("/console/system");
        await page.browser.go("about:blank");
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/console/session" }] });
        /** @type {string[]} */
        const asked = [];
        const stop = page.browser.on("Fetch.requestPaused", ({ requestId }) => asked.push(requestId));
        await page.browser.call("Page.navigate", { url: `${page.url}/console/runs` });
        await page.browser.until("$find('nav a', 'Runs')?.ariaCurrent === 'page' && document.querySelector('main .loading') && !document.querySelector('.who')", "the shell");
        assert.equal(asked.length, 1);
        await page.browser.call("Fetch.continueRequest", { requestId: asked[0] });
        await page.sees("tr[data-row]");
        await page.sees(".who");
        await page.browser.call("Fetch.disable");
        stop();
    });

    test("single keys can be switched off, and stay off", async () => {
        const { page } = context();
        await at("/console/system");
        await page.press("Keyboard help");
        await page.browser.evaluate("$field('Single keys do this').click()");
        await page.browser.press("Escape");
        await page.go("/console/system");
        await page.sees("main h1");
        for (const key of ["g", "r", "?"]) await page.browser.press(key);
        assert.equal(await page.browser.evaluate("location.pathname.endsWith('/system') && !document.querySelector('dialog')"), true);
        await page.press("Keyboard help");
        await page.browser.evaluate("$field('Single keys do this').click()");
        await page.browser.press("Escape");
        for (const key of ["g", "r"]) await page.browser.press(key);
        await page.browser.until("location.pathname.endsWith('/runs')", "the list of runs");
    });

    test("times are local or UTC, themes go round, and both are kept", async () => {
        const { page, made } = context();
        await page.browser.call("Emulation.setTimezoneOverride", { timezoneId: "America/New_York" });
        await at(`/console/runs/${made.runs.order.id}`);
        const time = "document.querySelector('.facts time').innerText";
        await page.press("Times in local time; change");
        await page.browser.until(`${time}.endsWith('UTC')`, "times in UTC");
        const utc = await page.browser.evaluate(time);
        await page.go(`/console/runs/${made.runs.order.id}`);
        await page.sees(".facts time");
        assert.equal(await page.browser.evaluate(time), utc);
        await page.press("Times in UTC; change");
        await page.browser.until(`!${time}.includes('UTC')`, "local times");
        assert.equal(new Date(`${(await page.browser.evaluate(time)).replace(" ", "T")}-05:00`).toISOString().slice(0, 19), utc.slice(0, 19).replace(" ", "T"));
        await page.browser.call("Emulation.setTimezoneOverride", { timezoneId: "" });
        const colour = "getComputedStyle(document.documentElement).colorScheme";
        /** @type {string[]} */
        const seen = [];
        for (const theme of ["auto", "light", "dark"]) {
            seen.push(await page.browser.evaluate(colour));
            await page.press(`Theme ${theme}; change`);
        }
        assert.deepEqual(seen, ["light dark", "light", "dark"]);
        assert.equal(await page.browser.evaluate(colour), "light dark");
    });

    test("a drawing that is drawn again keeps the keyboard at its step, and is told in words", async () => {
        const { page, made } = context();
        await at(`/console/runs/${made.runs.holding.id}?tab=timeline`);
        await page.sees(".track");
        await page.browser.evaluate("window.$old = document.querySelector('.track'), window.$old.focus()");
        await page.browser.until("!window.$old.isConnected", "the next drawing");
        assert.equal(await page.browser.evaluate(`${focused}.getAttribute('data-step')`), "rest");
        assert.match(await page.browser.evaluate("document.querySelector('.timeline svg').getAttribute('aria-label')"), /^Timeline: 1 steps in .*The table has the same as text/);
        assert.match(await page.browser.evaluate("document.querySelector('.legend').innerText"), /pending|running/);
        await page.go(`/console/runs/${made.runs.failing.id}`);
        await page.sees(".box");
        assert.match(await page.browser.evaluate("document.querySelector('.graph svg').getAttribute('aria-label')"), /1 steps: 1 failed/);
        assert.equal(await page.browser.evaluate("document.querySelector('.run-head [aria-live=polite]').innerText"), "The run is failed");
    });

    test("a step's panel shows its attempt and the attempt's log as soon as they are there", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        await at(`/console/runs/${run.id}?step=pay`);
        await page.reads("waiting for approval by admin");
        await page.reads("This step has not begun");
        await page.sees(".box");
        await page.browser.evaluate("document.querySelector('.box').focus()");
        await answer(service, run);
        await page.browser.until("document.querySelector('.panel')?.innerText.includes('HTTP status')", "what the log has of the attempt");
        await page.browser.until(ends("completed"), "the end of the run");
        assert.equal(await page.browser.evaluate(`${focused}.getAttribute('data-step')`), "approve", "the keyboard is where it was");
        assert.equal(await page.browser.evaluate("document.querySelector('.run-head [aria-live=polite]').innerText"), "The run is completed");
    });

    test("previews of an output appear in pieces and are gone when the output is there", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/spoken/execute", { input_data: { text: "all men are created equal" } });
        await at(`/console/runs/${run.id}?step=say`);
        await page.browser.until("document.querySelector('[aria-label=\"Preview of the output\"]')?.innerText.includes('ALL')", "the first piece");
        await page.browser.until(`${ends("completed")} && !document.querySelector('[aria-label="Preview of the output"]')`, "the output");
        await page.browser.until("document.querySelector('[aria-label=\"Output of attempt 1\"]')?.innerText.includes('ALL MEN ARE CREATED EQUAL')", "the output in the panel");
    });

    test("a page that nobody sees has no stream, and has missed nothing when it is seen again", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        await at(`/console/runs/${run.id}?tab=log`);
        await page.browser.until(`document.querySelector('.live')?.innerText === 'live' && ${streams} === 1`, "the stream");
        await page.browser.evaluate(hide(true));
        assert.equal(await page.browser.evaluate(streams), 0);
        await answer(service, run, { approved: false });
        await page.browser.evaluate(hide(false));
        await page.browser.until(ends("failed"), "the end of the run");
        await page.browser.until(`document.querySelector('[role=log]').innerText.includes('Run failed') && ${streams} === 0`, "the last entry");
    });

    /** The messages of a log, as the page shows them and as the service has them. @param {import("./page.js").Page} page @param {import("./service.js").Service} service @param {string} id */
    const logs = async (page, service, id) => [
        await page.browser.evaluate("[...document.querySelectorAll('[role=log] .entry')].map((one) => one.querySelector('time').dateTime + ' ' + one.querySelector('.message').innerText)"),
        (await service.call("GET", `/runs/${id}/logs?page_size=100`)).items.map((/** @type {any} */ one) => `${one.timestamp} ${one.message}${one.detail && one.detail !== one.message && !one.message.includes(one.detail) ? ` ${one.detail}` : ""}`)];

    test("a log that was cut off has each entry once when the connection is back", async () => {
        const { page, service, cable } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        await at(`/console/runs/${run.id}?tab=log`);
        await page.browser.until("document.querySelector('.live')?.innerText === 'live' && document.querySelectorAll('[role=log] .entry').length > 2", "the log");
        try {
            cable.cut();
            await page.browser.until("document.querySelector('.live')?.innerText !== 'live'", "the end of the stream");
            await answer(service, run);
            await service.ended(run.id);
        } finally {
            cable.mend();
        }
        await page.browser.until("document.querySelector('[role=log]').innerText.includes('Run completed')", "the last entry of the log");
        const [shown, there] = await logs(page, service, run.id);
        assert.deepEqual(shown, there);
        page.browser.complaints.splice(0);
    });

    test("what is written between the reading of a log and its stream is not missing", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        await at("/console/system");
        // The page of the log is there; where the stream begins is asked, and the answer to that is kept back.
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/logs?*page_size=1" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await page.go(`/console/runs/${run.id}?tab=log`);
        const { requestId } = await paused;
        await page.browser.until("document.querySelectorAll('[role=log] .entry').length > 2", "the page of the log");
        await answer(service, run);
        await service.ended(run.id);
        await page.browser.call("Fetch.continueRequest", { requestId });
        await page.browser.call("Fetch.disable");
        await page.browser.until("document.querySelector('[role=log]').innerText.includes('Run completed')", "the last entry of the log");
        const [shown, there] = await logs(page, service, run.id);
        assert.deepEqual(shown, there);
    });

    test("readings that are asked for in a burst are two: the one under way, and one more", async () => {
        const { page } = context();
        await at("/console/system");
        const result = await page.browser.evaluate(`(async () => {
            const base = document.querySelector("link[rel=stylesheet]").href.replace(/style\\.css$/, "parts/");
            const [{ html, render }, { useLoad }] = await Promise.all([import(base + "runtime.js"), import(base + "load.js")]);
            const reads = [];
            let loaded;
            const Reader = () => { loaded = useLoad((signal) => new Promise((resolve) => reads.push({ resolve, signal })), ["key"]); return html\`<p>\${loaded.data}</p>\`; };
            const target = document.createElement("div");
            const until = (look) => new Promise((resolve) => { const frame = () => (look() ? resolve() : requestAnimationFrame(frame)); frame(); });
            render(html\`<\${Reader} />\`, target);
            await until(() => reads.length === 1);
            for (let turn = 0; turn < 20; turn++) loaded.reload();
            const during = [reads.length, reads[0].signal.aborted];
            reads[0].resolve("first");
            await until(() => target.innerText === "first" && reads.length === 2);
            reads[1].resolve("second");
            await until(() => target.innerText === "second");
            const after = reads.length;
            loaded.reload();
            await until(() => reads.length === 3);
            render(null, target);
            return { during, after, given: reads[2].signal.aborted };
        })()`);
        assert.deepEqual(result, { during: [1, false], after: 2, given: true });
    });

    test("when the session ends, what was typed stays until somebody has signed in again, and another person finds nothing of it", async () => {
        const { page, service, made } = context();
        await page.fresh();
        await page.signIn(service.key, "/console/workflows/new");
        const text = JSON.stringify({ name: "unsaved", start_step: "a", steps: { a: { id: "a", agent_name: "demo-upper", input_mapping: { text: "x" } } } });
        await page.fill("Definition as JSON", text);
        await page.reads("The definition is valid");
        page.leaves = false;
        await page.press("Sign out");
        await page.browser.until("Boolean(document.querySelector('.lines textarea'))", "the editor");
        page.leaves = true;
        await page.browser.call("Network.clearBrowserCookies");
        await page.press("Store");
        await page.reads("The session has ended");
        assert.equal(await page.browser.evaluate("document.querySelector('.lines textarea').value"), text);
        await page.fill("API key or token", service.key);
        await page.press("Sign in", "dialog button");
        await page.browser.until("!document.querySelector('dialog')", "the session");
        await page.press("Store");
        await page.reads("is stored as version 1");
        await page.press("API");
        await page.reads("/api/v1/workflows");
        await page.press("Close");
        await page.browser.call("Network.clearBrowserCookies");
        await page.press("Runs", "nav a");
        await page.reads("The session has ended");
        await page.fill("API key or token", made.acme);
        await page.press("Sign in", "dialog button");
        await page.reads("There are no runs yet");
        await page.reads("X-API-Key: $KEY");
        await page.press("API");
        await page.sees("dialog[open]");
        const calls = await page.browser.evaluate("document.querySelector('dialog').innerText");
        assert.ok(calls.includes("/runs?") && !calls.includes("/workflows"), `the calls of another person are shown: ${calls}`);
        await page.fresh();
    });

    test("a run that is left open past the end of its session asks to sign in, and goes on", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        const own = await service.call("POST", "/api-keys", { name: "overnight", role: "admin" });
        await page.fresh();
        await page.signIn(own.key, `/console/runs/${run.id}`);
        await page.browser.until("document.querySelector('.live')?.innerText === 'live'", "the stream");
        service.sql(`DELETE FROM console_sessions WHERE api_key_id = '${own.id}'`);
        await page.reads("The session has ended");
        assert.equal(await page.browser.evaluate(streams), 0);
        await page.fill("API key or token", own.key);
        await page.press("Sign in", "dialog button");
        await page.browser.until("document.querySelector('.live')?.innerText === 'live'", "the stream again");
        await answer(service, run);
        await page.browser.until(ends("completed"), "the end of the run");
        await page.fresh();
        page.browser.complaints.splice(0);
    });

    test("back and forward lead to the place in the page that was left", async () => {
        const { page } = context();
        await at("/console/runs?page_size=100&cols=run");
        await page.browser.until("document.querySelectorAll('tr[data-row]').length > 20", "a long list");
        await page.browser.evaluate("scrollTo(0, 400)");
        await page.browser.evaluate("document.querySelectorAll('tr[data-row] a')[15].click()");
        await page.browser.until("location.pathname.includes('/runs/') && document.querySelector('.run-words') && scrollY === 0", "the run, from its top");
        await page.browser.evaluate("history.back()");
        await page.browser.until("document.querySelectorAll('tr[data-row]').length > 20 && scrollY === 400", "the place in the list");
        assert.equal(await page.browser.evaluate("document.activeElement.tagName"), "H1");
        // Once it is there, the page is whose it is.
        await page.browser.call("Input.dispatchMouseEvent", { type: "mouseWheel", x: 600, y: 400, deltaX: 0, deltaY: -150 });
        await page.browser.until("scrollY < 400", "the wheel");
        await page.browser.evaluate("history.forward()");
        await page.browser.until("location.pathname.includes('/runs/') && document.querySelector('.run-words') && scrollY === 0", "the run again");
        const loaded = page.browser.next("Page.loadEventFired");
        await page.browser.evaluate("history.back()");
        await page.browser.until("document.querySelectorAll('tr[data-row]').length > 20 && scrollY > 0", "the list");
        const there = await page.browser.evaluate("scrollY");
        await page.browser.call("Page.reload");
        await loaded;
        await page.browser.until(`document.querySelectorAll('tr[data-row]').length > 20 && scrollY === ${there}`, "the place after the page was loaded again");
    });

    test("what is said while a dialog is open is said in it", async () => {
        const { page } = context();
        await at("/console/system");
        await page.press("API");
        await page.press("Copy", "dialog button");
        await page.browser.until("document.querySelector('dialog .said[role=status] p')?.innerText", "the words in the dialog");
        const [inside, outside] = await page.browser.evaluate("['dialog .said', 'body :not(dialog) > .said'].map((one) => document.querySelector(one).innerText)");
        assert.equal(inside, outside);
        assert.equal(await page.browser.evaluate("(() => { const { left, top } = document.querySelector('dialog .said p').getBoundingClientRect(); return Boolean(document.elementFromPoint(left + 4, top + 4).closest('.said')); })()"), true);
        await page.press("Close");
        await page.browser.until("!document.querySelector('dialog')", "the end of the dialog");
        assert.equal(await page.browser.evaluate("document.querySelector('.said').innerText"), outside);
    });

    test("home is read again while it is seen, and says how much more there is", async () => {
        const { page, service } = context();
        await service.call("POST", "/organizations", { id: "overnight", name: "Overnight" });
        const { key } = await service.call("POST", "/api-keys", { name: "first of overnight", role: "admin", organization_id: "overnight" });
        await page.fresh();
        await page.signIn(key, "/console");
        await page.reads("There are none.");
        for (let count = 0; count < 10; count++) {
            await service.call("POST", "/triggers", { name: `paused ${count}`, kind: "schedule", workflow_name: "nothing", enabled: false, config: { every: "PT1H" } }, key);
        }
        await page.reads("and 2 more");
        await page.reads("10 triggers");
        await page.browser.evaluate(hide(true));
        await service.call("POST", "/triggers", { name: "seen later", kind: "schedule", workflow_name: "nothing", enabled: false, config: { every: "PT1H" } }, key);
        await page.browser.evaluate(hide(false));
        await page.reads("and 3 more");
        await page.press("11 triggers", "a");
        await page.browser.until("location.pathname.endsWith('/triggers')", "the triggers");
        await page.fresh();
    });
}
