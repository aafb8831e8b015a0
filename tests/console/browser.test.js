// Journeys in a real browser, on a real service.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { hookJourneys } from "./hook-journeys.js";
import { Page } from "./page.js";
import { ATTACK, fill, Service } from "./service.js";

const require = createRequire(`${process.env.CONSOLE_TOOLS}/node_modules/`);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** @type {Service} */
let service;
/** @type {Page} */
let page;
let made;

before(async () => {
    service = await Service.start(process.env.CONSOLE_PROGRAM);
    made = await fill(service);
    page = await Page.open(service.url);
});

after(async () => {
    await page?.browser.stop();
    await service?.stop();
});

/** A page of the administrator. @param {string} path */
async function at(path) {
    await page.go(path);
    const needsKey = await page.browser.until("document.querySelector('#credential') ? 'sign in' : document.querySelector('main h1') && 'in'");
    if (needsKey === "sign in") await page.signIn(service.key, path);
}

test("a wrong key is refused in words, a right one opens the address that was asked for, signing out closes it", async () => {
    await page.go("/console/workflows");
    await page.fill("API key or token", "wf_live_wrong");
    await page.press("Sign in");
    await page.reads("not valid");
    await page.fill("API key or token", service.key);
    await page.press("Sign in");
    await page.reads("order");
    assert.match(await page.browser.evaluate("location.pathname"), /\/workflows$/);
    assert.equal(await page.browser.evaluate("JSON.stringify({...localStorage}).includes('wf_') || document.cookie"), "");
    await page.press("Sign out");
    await page.sees("#credential");
    await page.browser.complaints.splice(0);
});

test("a failing run is repaired from its step with another input", async () => {
    await at(`/console/runs/${made.runs.repairable.id}`);
    await page.browser.until("[...document.querySelectorAll('.box')].some((box) => box.dataset.step === 'mail')", "the graph");
    await page.reads("failed");
    await page.browser.evaluate("document.querySelector('.box[data-step=mail]').dispatchEvent(new MouseEvent('click', { bubbles: true }))");
    await page.reads("This step has not begun");
    await page.press("Retry");
    await page.browser.evaluate("$field('With another input').click()");
    await page.fill("Input", "{ \"address\": ");
    await page.press("Retry", "dialog button");
    await page.reads("Line 1");
    await page.fill("Input", JSON.stringify({ address: "ann@example.org" }));
    await page.press("Retry", "dialog button");
    await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of the run");
    const run = await service.call("GET", `/runs/${made.runs.repairable.id}`);
    assert.deepEqual([run.status, run.input_data], ["COMPLETED", { address: "ann@example.org" }]);
});

test("an approval is given in the inbox, and its run goes on without a reload", async () => {
    await at(`/console/runs/${made.runs.approval.id}`);
    await page.reads("waiting for approval by admin");
    await page.browser.evaluate("[...document.querySelectorAll('nav a')].find((a) => a.innerText.includes('Approvals')).click()");
    await page.reads(made.runs.approval.id);
    await page.fill("Comment", `fine ${ATTACK}`);
    const section = `[...document.querySelectorAll('section.waiting')].find((one) => one.innerText.includes('${made.runs.approval.id}'))`;
    await page.browser.evaluate(`[...${section}.querySelectorAll('button')].find((one) => one.innerText === 'Approve').click()`);
    await page.browser.until(`!${section}`, "the approval leaving the inbox");
    await page.go(`/console/runs/${made.runs.approval.id}`);
    await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of the run");
});

test("a run that waits tells of its end by the event stream, and its log grows", async () => {
    await at(`/console/runs/${made.runs.rejected.id}?tab=log`);
    await page.reads("live");
    const [callback] = await service.call("GET", `/runs/${made.runs.rejected.id}/callbacks`);
    await service.call("POST", `/callbacks/${callback.url.split("/").pop()}`, { approved: false, comment: "too dear" });
    await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('failed')", "the end of the run");
    await page.browser.until("document.querySelector('[role=log]').innerText.includes('Run failed')", "the last entry of the log");
});

test("a dead letter is read and sent again with a corrected value", async () => {
    await at("/console/dead-letters");
    await page.reads("invalid content");
    await page.press("workflow.execution.requests 0:100000");
    await page.press("Send again");
    await page.browser.evaluate("$field('With a corrected value').click()");
    await page.fill("Value", JSON.stringify({ corrected: true }));
    await page.press("Send again", "dialog button");
    await page.reads("must be a message that executors can read");
    await page.fill("Value", JSON.stringify({ run_id: made.runs.cancelled.id, reason: "sent again" }));
    await page.press("Send again", "dialog button");
    await page.reads("sent again");
    const letters = await service.call("GET", "/dead-letters");
    assert.match(letters.items[0].status, /redriving|redriven/);
});

test("a key is shown once, works, and does not after it is revoked", async () => {
    await at("/console/keys");
    await page.press("New key");
    await page.fill("Name", "from the console");
    await page.press("Make the key");
    await page.reads("Copy it now");
    const key = await page.browser.evaluate("document.querySelector('dialog pre').innerText");
    await service.call("GET", "/runs?page_size=1", undefined, key);
    await page.press("Done");
    await page.reads("from the console");
    assert.ok(!(await page.text()).includes(key));
    await page.browser.evaluate("[...document.querySelectorAll('tr')].find((row) => row.innerText.includes('from the console')).querySelector('button').click()");
    await page.press("Revoke", "dialog button");
    await page.browser.until("[...document.querySelectorAll('tr')].some((row) => row.innerText.includes('from the console') && row.innerText.includes('revoked'))", "the revocation");
    await assert.rejects(service.call("GET", "/runs?page_size=1", undefined, key));
});

test("a run is started by the form of its schema, and what is wrong is said at the field", async () => {
    await at(`/console/workflows/${made.order.id}?tab=run`);
    await page.press("Start the run");
    await page.reads("A value is required");
    await page.fill("order", "C-3");
    await page.fill("amount", "many");
    await page.press("Start the run");
    await page.reads("This is no number");
    await page.fill("amount", "7");
    await page.press("Start the run");
    await page.browser.until("location.pathname.includes('/runs/')", "the page of the run");
    const id = await page.browser.evaluate("location.pathname.split('/').pop()");
    assert.deepEqual((await service.call("GET", `/runs/${id}`)).input_data, { order: "C-3", amount: 7 });
});

test("a definition is corrected at the line that is named, stored, compared and restored", async () => {
    await at("/console/workflows/new");
    await page.fill("Definition as JSON", '{\n "name": "by-hand",\n "start_step": "a",\n "steps": {\n  "a": {"id": "a", "type": "nonsense"}\n }\n}');
    await page.reads("line 5");
    await page.browser.until("document.querySelector('.gutter .error')?.innerText.trim() === '5'", "the mark at line 5");
    await page.fill("Definition as JSON", JSON.stringify({ name: "by-hand", start_step: "a", steps: { a: { id: "a", agent_name: "demo-upper", input_mapping: { text: "${workflow.input.t}" } } } }));
    await page.reads("The definition is valid");
    await page.press("Try it");
    await page.fill("Input (JSON)", '{"t": "dry"}');
    await page.press("Try", "dialog button");
    await page.reads('{"text":"dry"}');
    await page.press("Close");
    page.leaves = false;
    await page.browser.evaluate("document.querySelector('nav a').click()");
    assert.match(await page.browser.evaluate("location.pathname"), /workflows\/new$/, "what was typed is lost without a question");
    page.leaves = true;
    await page.press("Store");
    await page.reads("is stored as version 1");
    const item = await service.call("GET", "/workflow-names/by-hand");
    assert.equal(item.workflow_data.steps.a.agent_name, "demo-upper");
    await page.go(`/console/workflows/${made.order.id}?tab=versions`);
    await page.press("Compare with 2");
    await page.reads("Steps removed");
    await page.reads("checks");
    await page.press("Restore");
    await page.reads("is the newest one again");
    assert.equal((await service.call("GET", "/workflow-names/order")).workflow_data.start_step, "checks");
});

test("filters, columns and order are in the address, and an input member is a column", async () => {
    await at("/console/runs?status=COMPLETED&name=order&cols=run,status,input.order");
    await page.reads("A-1");
    await page.reads("B-2");
    const head = await page.browser.evaluate("[...document.querySelectorAll('th')].map((one) => one.innerText).join()");
    assert.match(head, /Run,Status,input.order$/);
    await page.press("failed", "button");
    await page.browser.until("location.search.includes('status=COMPLETED%2CFAILED')", "the filter in the address");
    await page.go("/console/runs");
    await page.browser.until("[...document.querySelectorAll('th')].map((one) => one.innerText).join().endsWith('input.order')", "the columns of the last time");
    await page.go("/console/runs?cols=");
    await page.reads("Started by");
});

test("a view is saved, chosen again, and deleted; an hour of the chart leads to its runs", async () => {
    await at("/console/runs?status=COMPLETED&cols=run,input.order");
    await page.press("Save view");
    await page.fill("Name of the view", "finished orders");
    await page.press("Save", "dialog button");
    await page.reads("finished orders");
    await page.go("/console/runs");
    await page.browser.until("document.querySelector('#views option:nth-child(2)')", "the saved view");
    await page.fill("Saved view", (await service.call("GET", "/views?screen=runs")).items[0].id);
    await page.browser.until("location.search.includes('status=COMPLETED')", "the filters of the view");
    await page.press("Save view");
    await page.press("Delete finished orders");
    await page.browser.until("!document.querySelector('#views')", "the end of the view");
    await page.go("/console");
    await page.browser.until("document.querySelectorAll('.hours li').length === 24", "a column for each hour");
    await page.browser.evaluate("document.querySelector('.hours li:last-child a').click()");
    await page.sees("tr[data-row]");
    assert.match(await page.browser.evaluate("location.search"), /created_after=.*created_before=/);
});

test("new runs are announced and not pushed in; chosen runs are acted on after a dry run", async () => {
    await at("/console/runs?cols=run,workflow,status&name=approval");
    await page.sees("tr[data-row]");
    const first = "document.querySelector('tr[data-row] a').title";
    const before = await page.browser.evaluate(first);
    const fresh = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
    await page.reads("1 new run: show");
    assert.equal(await page.browser.evaluate(first), before);
    await page.press("1 new run: show");
    await page.browser.until(`${first} === ${JSON.stringify(fresh.id)}`, "the new run");
    await page.browser.evaluate("$field('Select all of this page').click()");
    await page.press("Cancel 1");
    await page.reads("1 of");
    await page.press("cancel 1", "dialog button");
    await page.reads("1 of 1 runs cancelled");
    assert.equal((await service.call("GET", `/runs/${fresh.id}`)).status, "CANCELLED");
});

test("two runs are compared step by step", async () => {
    await at(`/console/compare?a=${made.runs.order.id}&b=${made.runs.other.id}`);
    await page.reads("steps differ");
    await page.browser.evaluate("[...document.querySelectorAll('button.link')].find((one) => one.innerText === 'stock').click()");
    await page.browser.until("document.querySelectorAll('.diff .added').length > 0", "the difference");
});

test("the keyboard alone goes everywhere", async () => {
    await at("/console");
    for (const key of ["g", "r"]) await page.browser.press(key);
    await page.browser.until("location.pathname.endsWith('/runs')", "the list of runs");
    await page.sees("tr[data-row]");
    await page.browser.press("j");
    await page.browser.press("j");
    await page.browser.press("k");
    const place = await page.browser.evaluate("[...document.querySelectorAll('tr[data-row]')].indexOf(document.activeElement.closest('tr'))");
    assert.equal(place, 0);
    await page.browser.press("/");
    assert.equal(await page.browser.evaluate("document.activeElement.id"), "filter-name_prefix");
    await page.browser.evaluate("document.activeElement.blur()");
    await page.browser.press("?");
    await page.sees("dialog[open]");
    await page.browser.press("Escape");
    await page.browser.until("!document.querySelector('dialog[open]')", "the end of the help");
    await page.go(`/console/runs/${made.runs.order.id}`);
    await page.sees(".box");
    await page.browser.evaluate("document.querySelector('.box').focus()");
    await page.browser.press("ArrowRight");
    await page.browser.press("Enter");
    await page.sees(".panel");
    await page.browser.until("document.activeElement === document.querySelector('.panel h2')", "the keyboard in the panel");
});

test("every screen has the call behind it as a command that works", async () => {
    await at("/console/agents");
    await page.reads("broken");
    await page.press("API");
    await page.reads("curl -sS");
    const command = await page.browser.evaluate("document.querySelector('dialog pre').innerText");
    const url = command.match(/http[^' ]+/)[0];
    const answer = await fetch(url, { headers: { "x-api-key": service.key } });
    assert.equal(answer.status, 200);
});

hookJourneys(() => ({ service, page, made }), at);

test("an empty organisation has its first run a minute later", async () => {
    await service.call("POST", "/organizations", { id: "newcomers", name: "Newcomers" });
    const { key } = await service.call("POST", "/api-keys", { name: "first", role: "admin", organization_id: "newcomers" });
    await page.fresh();
    await page.signIn(key, "/console");
    await page.reads("There are no runs yet");
    await page.press("a workflow", "a");
    await page.press("the editor", "a");
    await page.fill("Definition as JSON", JSON.stringify({ name: "first", input_schema: { type: "object", required: ["text"], properties: { text: { type: "string" } } },
        start_step: "rest", steps: { rest: { id: "rest", type: "wait", input_mapping: { text: "${workflow.input.text}" }, wait_config: { duration_seconds: 0 } } } }));
    await page.reads("The definition is valid");
    await page.press("Store");
    await page.reads("is stored as version 1");
    await page.press("Run");
    await page.fill("text", "hello");
    await page.press("Start the run");
    await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of the first run");
    await page.press("Home", "nav a");
    await page.reads("Latest runs");
    await page.press("first", "td a");
    await page.browser.until("location.pathname.includes('/runs/')", "the run");
    await page.fresh();
});

test("without the service the console says so, keeps what it shows, and goes on when it is back", async () => {
    const offline = (/** @type {boolean} */ isOffline) => page.browser.call("Network.emulateNetworkConditions", { offline: isOffline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await page.signIn(service.key, "/console/agents");
    await page.reads("broken");
    try {
        await offline(true);
        await page.fill("Name begins with", "bro");
        await page.reads("The service cannot be reached");
        await page.press("Organisations", "nav a");
        await page.reads("This screen could not be loaded");
    } finally {
        await offline(false);
    }
    const loaded = page.browser.next("Page.loadEventFired");
    await page.press("Try again");
    await loaded;
    await page.reads("Acme");
    await page.press("Agents", "nav a");
    await page.reads("broken");
    page.browser.complaints.splice(0);
    assert.ok((await page.browser.evaluate("fetch('https://example.org/').then(() => 'reached', () => 'cut')")) === "cut");
    page.browser.complaints.splice(0);
    page.browser.requests.splice(page.browser.requests.findIndex((url) => url.startsWith("https://example.org")), 1);
});

const SCREENS = () => ["", "/runs", "/runs?status=PENDING&name=nothing", `/runs/${made.runs.order.id}`, `/runs/${made.runs.hostile.id}?step=ask`, `/runs/${made.runs.failing.id}?step=mail`,
    ...["timeline", "table", "log", "data", "lineage", "raw"].map((tab) => `/runs/${made.runs.hostile.id}?tab=${tab}`), `/runs/${made.runs.cancelled.id}`,
    `/compare?a=${made.runs.order.id}&b=${made.runs.hostile.id}`, "/workflows", `/workflows/${made.hostile.id}`,
    ...["run", "runs", "versions&from=1&to=2", "definition", "use"].map((tab) => `/workflows/${made.order.id}?tab=${tab}`), "/workflows/new", `/workflows/${made.hostile.id}/edit`,
    "/triggers", "/triggers?name_prefix=none", ...Object.values(made.triggers).map(({ id }) => `/triggers/${id}`), "/webhooks", ...Object.values(made.hooks).map(({ id }) => `/webhooks/${id}`),
    `/webhooks/${made.hooks.bad.id}/deliveries/${made.delivery}`, `/runs/${made.runs.held.id}`, `/runs?cols=run,trigger,due,deadline,flow`,
    "/agents", `/agents/${made.broken.id}`, "/approvals", "/dead-letters", "/keys", "/organisations", "/organisations/acme", "/audit", "/system", "/nowhere"];

/** The screen is there, and nothing is on its way any more. */
const settled = () => page.browser.until("document.querySelector('main h1') && !document.querySelector('.loading')", "the screen");

test("every screen is clean for axe in both themes, and at 390 pixels nothing scrolls sideways", async () => {
    await at("/console");
    const found = [];
    for (const theme of ["light", "dark"]) {
        await page.theme(theme);
        for (const screen of SCREENS()) {
            await page.go(`/console${screen}`);
            await settled();
            await page.browser.evaluate(axe);
            const result = await page.browser.evaluate(`axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] })
                .then(({ violations }) => violations.map(({ id, nodes }) => id + ": " + nodes.slice(0, 3).map((node) => node.html.slice(0, 160) + " " + (node.any[0]?.message ?? "")).join(" | ")))`);
            for (const violation of result) found.push(`${theme} ${screen}: ${violation}`);
        }
    }
    for (const [screen, button] of [["/keys", "New key"], ["/organisations", "New organisation"], ["/agents", "New agent"], ["/runs", "Columns"], ["/runs", "Export"],
        ["/runs", "Keyboard help"], [`/runs/${made.runs.failing.id}`, "Retry"], ["/workflows/new", "Try it"], ["/system", "API"],
        ["/runs?status=FAILED", "Act on all"], ["/runs", "Save view"], ["/triggers", "New trigger"], ["/webhooks", "New webhook"],
        ...["Fire now", "Pause", "Edit", "Delete", "Start runs of a range of time"].map((button) => [`/triggers/${made.triggers.nightly.id}`, button]), [`/triggers/${made.triggers.incoming.id}`, "Make another token"],
        ...["Test", "Recover", "Edit", "Rotate secret", "Disable"].map((button) => [`/webhooks/${made.hooks.good.id}`, button]), [`/webhooks/${made.hooks.off.id}`, "Enable"]]) {
        await page.go(`/console${screen}`);
        await settled();
        await page.press(button);
        await page.sees("dialog[open]");
        await page.browser.evaluate(axe);
        const result = await page.browser.evaluate("axe.run(document.querySelector('dialog')).then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes[0].html.slice(0, 200)))");
        for (const violation of result) found.push(`${screen} ${button}: ${violation}`);
    }
    await page.theme("light");
    await page.size(390, 844);
    for (const screen of SCREENS()) {
        await page.go(`/console${screen}`);
        await settled();
        const wide = await page.browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        if (wide > 0) found.push(`390 px ${screen}: ${wide} pixels too wide`);
    }
    await page.size(1280);
    assert.deepEqual(found, []);
});

test("nothing that somebody has stored is executed or becomes markup, on any screen", async () => {
    await at("/console");
    let seen = 0;
    for (const screen of SCREENS()) {
        await page.go(`/console${screen}`);
        await settled();
        const { hacked, marks, shown } = await page.browser.evaluate(`({ hacked: Boolean(window.hacked), shown: document.documentElement.outerHTML.includes("onerror=") || document.querySelector("textarea")?.value.includes("onerror="),
            marks: document.querySelectorAll("main img, main script, main b, main i, main svg[onload], a[href^='javascript']").length })`);
        assert.deepEqual([hacked, marks], [false, 0], screen);
        seen += shown ? 1 : 0;
    }
    assert.ok(seen > 12, `the texts were shown on ${seen} screens only`);
});

test("what one organisation has is not in another one's console", async () => {
    await page.fresh();
    await page.signIn(service.key, "/console/runs?name_prefix=host");
    await page.reads("hostile");
    await page.fresh();
    await page.signIn(made.acme, "/console/runs");
    await page.reads("There are no runs yet");
    for (const path of ["", "/workflows", "/agents", "/triggers", "/webhooks", "/approvals", "/audit", "/keys"]) {
        await page.go(`/console${path}`);
        await settled();
        const text = await page.text();
        for (const word of ["hostile", "repairable", "demo-upper", "nightly", "incoming", "receiver", "refused"]) assert.ok(!text.includes(word), `${path} shows ${word}`);
    }
    for (const path of [`runs/${made.runs.order.id}`, `triggers/${made.triggers.incoming.id}`, `webhooks/${made.hooks.good.id}`, `webhooks/${made.hooks.bad.id}/deliveries/${made.delivery}`,
        `workflows/${made.order.id}`, `agents/${made.broken.id}`]) {
        await page.go(`/console/${path}`);
        await page.reads("not found");
    }
    page.browser.complaints.splice(0);
});

test("whoever may only look sees what they may not do, and which role has it", async () => {
    await page.fresh();
    await page.signIn(made.viewer, `/console/runs/${made.runs.failing.id}`);
    await page.reads("failed");
    const retry = "[...document.querySelectorAll('button')].find((one) => one.innerText === 'Retry')";
    assert.deepEqual(await page.browser.evaluate(`[${retry}.disabled, ${retry}.title]`), [true, "Needs runs:write: operator, admin"]);
    assert.match(await page.browser.evaluate("[...document.querySelectorAll('nav .off')].map((one) => one.title).join()"), /Needs keys:manage: admin/);
    await page.go("/console/keys");
    await page.reads("You may not see this");
    await page.fresh();
});

test("ten thousand runs are walked through by keyset pages, each one once", async () => {
    service.sql(`INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data, triggered_by, created_at, updated_at, completed_at, organization_id)
        SELECT 'run-many-' || n, workflow_id, 'many', workflow_definition_id, 'COMPLETED', '{}', 'sql', created_at - n * interval '1 second', created_at, created_at, organization_id
        FROM workflow_runs, generate_series(1, 10000) n WHERE run_id = '${made.runs.order.id}'`);
    await page.signIn(service.key, "/console/runs?name=many&page_size=100&cols=run");
    const walked = await page.browser.evaluate(`(async () => {
        const ids = new Set(); let pages = 0, most = 0;
        const rows = () => [...document.querySelectorAll("tr[data-row] a")].map((one) => one.title);
        const until = (look) => new Promise((resolve) => { const observer = new MutationObserver(() => { if (look()) { observer.disconnect(); resolve(); } });
            observer.observe(document, { subtree: true, childList: true, attributes: true }); if (look()) { observer.disconnect(); resolve(); } });
        await until(() => rows().length > 0);
        for (;;) {
            const shown = rows(); pages++; most = Math.max(most, shown.length);
            for (const id of shown) ids.add(id);
            const next = $find("button", "Next");
            if (!next) return { ids: ids.size, pages, most };
            next.click();
            await until(() => rows().length > 0 && rows()[0] !== shown[0]);
        }
    })()`);
    assert.deepEqual(walked, { ids: 10_000, pages: 100, most: 100 });
});

test("a run of 2000 steps is drawn as fast as the browser makes that many elements", async () => {
    await at(`/console/runs/${made.runs.long.id}`);
    await page.browser.until("document.querySelectorAll('.box').length === 2000", "2000 boxes");
    assert.equal(await page.browser.evaluate("document.querySelectorAll('.edge').length"), 1999);
    const { drawn, bare, elements } = await page.browser.evaluate(`(async () => {
        const base = document.querySelector("link[rel=stylesheet]").href.replace(/style\\.css$/, "parts/");
        const [{ layout }, { drawGraph }] = await Promise.all([import(base + "layout.js"), import(base + "draw.js")]);
        const steps = Object.fromEntries(Array.from({ length: 2000 }, (_, n) => ["s" + n, { id: "s" + n, agent_name: "a", next_step: n < 1999 ? "s" + (n + 1) : null }]));
        const states = new Map(Object.keys(steps).map((id) => [id, { status: "COMPLETED", count: 1, failed: 0, attempts: 1 }]));
        const frame = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        document.body.append(frame);
        const time = (work) => { let best = Infinity; for (let turn = 0; turn < 7; turn++) { const from = performance.now(); work(); frame.getBoundingClientRect(); best = Math.min(best, performance.now() - from); } return best; };
        const drawn = time(() => drawGraph(frame, layout({ start_step: "s0", steps }), states, () => {}));
        const elements = frame.querySelectorAll("*").length;
        const bare = time(() => { const all = []; for (let n = 0; n < elements; n++) { const one = document.createElementNS("http://www.w3.org/2000/svg", n % 3 ? "text" : "rect");
            for (const name of ["x", "y", "class"]) one.setAttribute(name, n); one.textContent = "s" + n; all.push(one); } frame.replaceChildren(...all); });
        frame.remove();
        return { drawn, bare, elements };
    })()`);
    console.log(`2000 steps, ${elements} elements: drawn in ${drawn.toFixed(0)} ms, bare elements in ${bare.toFixed(0)} ms`);
    assert.ok(drawn < bare * 4, `${drawn} ms is more than four times ${bare} ms`);
});

test("a console that is left open keeps nothing: a hundred screens later there are as many nodes and listeners", async () => {
    const count = async () => {
        await page.browser.call("HeapProfiler.enable");
        await page.browser.call("HeapProfiler.collectGarbage");
        const { metrics } = await page.browser.call("Performance.getMetrics");
        const of = (name) => metrics.find((metric) => metric.name === name).value;
        return { nodes: of("Nodes"), listeners: of("JSEventListeners") };
    };
    await page.browser.call("Performance.enable");
    await at("/console/system");
    await settled();
    const round = `(async () => {
        const settled = (words) => new Promise((resolve) => { const look = () => document.querySelector("main h1")?.innerText === words && !document.querySelector(".loading");
            const observer = new MutationObserver(() => { if (look()) { observer.disconnect(); resolve(); } }); observer.observe(document, { subtree: true, childList: true, characterData: true });
            if (look()) { observer.disconnect(); resolve(); } });
        for (const words of ["Runs", "Approvals", "Agents", "Workflows", "System"]) { [...document.querySelectorAll("nav a")].find((a) => a.innerText.trim() === words).click(); await settled(words); }
    })()`;
    for (let turn = 0; turn < 3; turn++) await page.browser.evaluate(round);
    const first = await count();
    for (let turn = 0; turn < 20; turn++) await page.browser.evaluate(round);
    const last = await count();
    assert.ok(last.nodes < first.nodes * 1.3 + 300 && last.listeners < first.listeners * 1.3 + 60, `${JSON.stringify(first)} became ${JSON.stringify(last)}`);
});

test("no request left the service, none was unknown to the OpenAPI document, and the content policy had no report", () => {
    const foreign = page.browser.requests.filter((url) => !url.startsWith(service.url) && !/^(data|blob|about):/.test(url));
    assert.deepEqual(foreign, []);
    assert.ok(page.browser.requests.length > 500, `${page.browser.requests.length} requests`);
    assert.deepEqual([...new Set(page.unknown)], []);
    // The browser notes the 404 of the run that another organisation asked for.
    const unexpected = page.browser.complaints.filter(({ entry }) => !(entry?.text.includes("404") && entry.url?.includes(made.runs.order.id)));
    assert.deepEqual(unexpected.map((one) => JSON.stringify(one).slice(0, 400)), []);
});
