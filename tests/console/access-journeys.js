// Who sees what: organisations, roles, without authentication, and the screen of the operator; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Page } from "./page.js";
import { Service } from "./service.js";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any, key: string }} context
 * @param {(path: string) => Promise<void>} at */
export function accessJourneys(context, at) {
    test("system shows the processes with their versions, the schema and the limits", async () => {
        const { page, service } = context();
        await at("/console/system");
        const row = (/** @type {string} */ label, /** @type {string} */ words) => `[...document.querySelectorAll('[aria-label=${label}] tr[data-row]')].find((row) => row.innerText.includes(${JSON.stringify(words)}))?.innerText`;
        await page.browser.until(row("Processes", "has answered"), "the answering process");
        await page.browser.until(`/alive[\\s\\S]*\\d+\\.\\d+\\.\\d+/.test(${row("Processes", "executor")})`, "the executor with its version");
        const { schema } = await service.call("GET", "/system/processes");
        await page.reads(String(schema.version));
        assert.match(await page.browser.evaluate(row("Limits", "Body of a request")), /Requests\s+1\.0 MiB\s+–/);
        assert.match(await page.browser.evaluate(row("Limits", "Entries of a page at most")), /100\s+MAX_PAGE_SIZE/);
        assert.match(await page.browser.evaluate(row("Limits", "Requests from an address")), /none\s+RATE_LIMIT_PER_ADDRESS/);
    });

    test("what one organisation has is not in another one's console", async () => {
        const { page, made, key } = context();
        await page.fresh();
        await page.signIn(key, "/console/runs?name_prefix=host");
        await page.reads("hostile");
        await page.fresh();
        await page.signIn(made.acme, "/console/runs");
        await page.reads("There are no runs yet");
        for (const path of ["", "/workflows", "/agents", "/triggers", "/webhooks", "/approvals", "/audit", "/keys"]) {
            await page.go(`/console${path}`);
            await page.settled();
            const text = await page.text();
            for (const word of ["hostile", "repairable", "demo-upper", "nightly", "incoming", "receiver", "refused"]) assert.ok(!text.includes(word), `${path} shows ${word}`);
        }
        for (const path of [`runs/${made.runs.order.id}`, `triggers/${made.triggers.incoming.id}`, `webhooks/${made.hooks.good.id}`, `webhooks/${made.hooks.bad.id}/deliveries/${made.delivery}`,
            `workflows/${made.order.id}`, `agents/${made.broken.id}`]) {
            await page.go(`/console/${path}`);
            await page.reads("not found");
        }
        // Organisations are managed by the operator alone.
        await page.go("/console/organisations/acme");
        await page.browser.until("document.querySelector('h1')?.innerText.startsWith('Acme')", "the own organisation");
        assert.deepEqual(await page.browser.evaluate("[...document.querySelectorAll('.actions button')].slice(0, 2).map((one) => [one.ariaDisabled, one.title])"),
            [["true", "Needs an administrator of the organisation default"], ["true", "Needs an administrator of the organisation default"]]);
        await page.go("/console/keys");
        await page.press("New key");
        assert.deepEqual(await page.browser.evaluate("[$field('Organisation').readOnly, $field('Organisation').value]"), [true, "acme"]);
        await page.press("Close");
        page.browser.complaints.splice(0);
    });

    test("another tab that signs in as another caller gets nothing of what was typed here", async () => {
        const { page, made, key, service } = context();
        // What another tab of this browser does.
        const signInElsewhere = (/** @type {string} */ credential) => page.browser.evaluate(`fetch("/console/session", { method: "POST", headers: { "x-api-key": ${JSON.stringify(credential)} } }).then((answer) => answer.status)`);
        const who = (/** @type {string} */ organization) => page.browser.until(`document.querySelector(".who")?.innerText.endsWith(${JSON.stringify(organization)})`, organization);
        await page.fresh();
        await page.signIn(key, "/console/agents");
        await page.press("New agent");
        await page.fill("Name", "typed-for-default");
        await page.fill("Address", `${service.demo}/upper`);
        assert.equal(await signInElsewhere(made.acme), 201);
        await page.press("Store");
        await who("acme");
        await page.reads("There are no agents here");
        assert.equal(await page.browser.evaluate("Boolean(document.querySelector('dialog'))"), false);
        const found = await page.browser.evaluate("fetch('/api/v1/agents?name=typed-for-default').then((answer) => answer.json())");
        assert.equal(found.items.length, 0);
        // A page that does nothing meanwhile is told.
        assert.equal(await signInElsewhere(key), 201);
        await page.browser.evaluate("new BroadcastChannel('wf-session').postMessage('')");
        await who("default");
        await page.browser.evaluate("fetch('/console/session', { method: 'DELETE' }).then((answer) => answer.status)");
        await page.browser.evaluate("new BroadcastChannel('wf-session').postMessage('')");
        await page.sees(".alone #credential");
        assert.ok(!(await page.text()).includes("demo-upper"));
        page.browser.complaints.splice(0);
    });

    test("the keyboard is never lost, Enter stores, and what was typed is not given up without a question", async () => {
        const { page, key, service } = context();
        const focused = () => page.browser.evaluate("document.activeElement.innerText?.split('\\n')[0] ?? document.activeElement.id");
        const enter = async () => {
            for (const type of ["keyDown", "keyUp"]) await page.browser.call("Input.dispatchKeyEvent", { type, key: "Enter", code: "Enter", windowsVirtualKeyCode: 13, text: type === "keyDown" ? "\r" : undefined });
        };
        await page.fresh();
        await page.signIn(key, "/console/runs?page_size=2");
        await page.press("Next");
        await page.browser.until("document.activeElement.getAttribute('aria-label') === 'Runs'", "the keyboard in the table of the next page");
        const trigger = (await service.call("GET", "/triggers")).items.find((/** @type {any} */ one) => one.enabled);
        await page.go(`/console/triggers/${trigger.id}`);
        await page.press("Pause");
        await page.press("Pause", "dialog button");
        await page.browser.until("$find('button', 'Resume')", "the trigger paused");
        assert.notEqual(await page.browser.evaluate("document.activeElement === document.body"), true, await focused());
        await page.press("Resume");
        await page.browser.until("$find('button', 'Pause')", "the trigger resumed");
        assert.notEqual(await page.browser.evaluate("document.activeElement === document.body"), true, await focused());
        await page.go("/console/agents");
        await page.press("New agent");
        await page.fill("Name", "by-enter");
        page.leaves = false;
        await page.press("Close");
        assert.ok(await page.browser.evaluate("Boolean(document.querySelector('dialog'))"), "it was asked, and stays");
        page.leaves = true;
        await page.fill("Address", `${service.demo}/upper`);
        await enter();
        await page.browser.until("location.pathname.startsWith('/console/agents/')", "the agent, stored");
        await page.reads("by-enter");
    });

    test("whoever may only look sees what they may not do, and which role has it", async () => {
        const { page, made } = context();
        await page.fresh();
        await page.signIn(made.viewer, `/console/runs/${made.runs.failing.id}`);
        await page.reads("failed");
        const retry = "[...document.querySelectorAll('button')].find((one) => one.innerText.startsWith('Retry'))";
        assert.deepEqual(await page.browser.evaluate(`(() => { const button = ${retry}; button.focus(); button.click(); return [button.ariaDisabled, button.title, document.activeElement === button, Boolean(document.querySelector("dialog"))]; })()`),
            ["true", "Needs runs:write: operator, admin", true, false]);
        assert.equal(await page.browser.evaluate(`${retry}.innerText.replace(/\\s+/g, " ")`), "Retry . Needs runs:write: operator, admin");
        assert.match(await page.browser.evaluate("[...document.querySelectorAll('nav .off')].map((one) => one.title).join()"), /Needs keys:manage: admin/);
        await page.go("/console/keys");
        await page.reads("You may not see this");
        await page.go("/console/system");
        await page.reads("Body of a request");
        await page.reads("Processes and sizes of the tables: Needs organizations:manage");
        await page.fresh();
    });

    test("without authentication a banner says so, nobody signs in, and commands need no key", async () => {
        const open = await Service.start(process.env.CONSOLE_PROGRAM, true);
        const other = await Page.open(open.url);
        try {
            await other.go("/console");
            await other.reads("Authentication is off.");
            assert.equal(await other.browser.evaluate("[...document.querySelectorAll('button')].some((one) => one.innerText === 'Sign out')"), false);
            await other.press("API keys", "nav a");
            await other.sees("main .banner");
            await other.press("API");
            await other.reads("curl -sS");
            assert.ok(!(await other.text()).includes("$KEY"));
            assert.deepEqual([other.unknown, other.browser.reports], [[], []]);
        } finally {
            await other.browser.stop();
            await open.stop();
        }
    });

    test("a view of the organisation is changed only by whoever may, and views that cannot be read say so", async () => {
        const { page, made, service } = context();
        const { id } = await service.call("POST", "/views", { screen: "runs", name: "for all", query: "status=FAILED", shared: true });
        await page.fresh();
        await page.signIn(made.viewer, "/console/runs");
        await page.press("Save view");
        await page.fill("Store it as", id);
        const refused = await page.browser.until(`(() => { const found = [...document.querySelectorAll("dialog button")].filter((one) => /^(Save|Delete)/.test(one.innerText)); return found.length === 2 && found.map((one) => [one.ariaDisabled, one.title]); })()`, "the buttons");
        assert.deepEqual(refused, [["true", "Needs workflows:write: editor, admin"], ["true", "Needs workflows:write: editor, admin"]]);
        await page.fill("Store it as", "");
        await page.fill("Name of the view", "my own");
        await page.press("Save", "dialog button");
        await page.browser.until("!document.querySelector('dialog')", "the end of the dialog");
        await failing("*/api/v1/views?*", async () => {
            await page.go("/console/runs");
            await page.browser.until("document.querySelector('.actions .problem')?.innerText.includes('out of order')", "why there are no views");
        });
        await service.call("DELETE", `/views/${id}`);
        await page.fresh();
    });

    /** What is done while requests of this kind fail. @param {string} pattern @param {() => Promise<void>} work @param {number} [code] @param {any} [body] */
    const failing = async (pattern, work, code = 500, body = { detail: "out of order" }) => {
        const { page } = context();
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: pattern }] });
        const stop = page.browser.on("Fetch.requestPaused", ({ requestId }) => page.browser.call("Fetch.fulfillRequest", { requestId, responseCode: code,
            responseHeaders: [{ name: "content-type", value: "application/json" }], body: Buffer.from(JSON.stringify(body)).toString("base64") }));
        try {
            await work();
        } finally {
            stop();
            await page.browser.call("Fetch.disable");
            page.browser.complaints.splice(0);
        }
    };

    test("calls of agents that cannot be counted are no calls that are still awaited", async () => {
        const { page } = context();
        await failing("*/stats", async () => {
            await at("/console/agents");
            await page.browser.until("document.querySelector('main .problem')?.innerText.includes('out of order')", "the problem");
            assert.ok(!(await page.browser.evaluate("document.querySelector('main .table').innerText")).includes("…"));
        });
        await page.press("Try again");
        await page.browser.until("!document.querySelector('main .problem') && /\\d/.test(document.querySelector('td.number').innerText)", "the numbers");
    });

    test("a key that is bound to workflows asks for nothing that it may not see", async () => {
        const { page, service } = context();
        const { key } = await service.call("POST", "/api-keys", { name: "bound to order", role: "admin", workflows: ["order"] });
        await page.fresh();
        await page.signIn(key, "/console/system");
        await page.browser.until("document.querySelectorAll('.tile').length > 1", "the parts");
        assert.equal(await page.browser.evaluate("document.querySelector('main .problem')"), null);
        await page.press("Home", "nav a");
        await page.reads("bound to workflows");
        await page.reads("order.");
        assert.equal(await page.browser.evaluate("document.querySelector('main .problem')"), null);
        await page.fresh();
    });

    test("a name that turns the direction of what is written turns only itself", async () => {
        const { page, key } = context();
        await page.fresh();
        await page.signIn(key, "/console/system");
        const turned = await page.browser.evaluate(`["a", "button", "code", "label", "li", "span", "strong", "time", "summary"].filter((tag) => {
            const line = document.createElement("p");
            const name = document.createElement(tag);
            name.textContent = "\u202Eabc";
            const rest = document.createTextNode(" is paused");
            line.append(name, rest);
            document.querySelector("main").append(line);
            const at = (place) => { const range = document.createRange(); range.setStart(rest, place); range.setEnd(rest, place + 1); return range.getBoundingClientRect().left; };
            const found = at(1) > at(8);
            line.remove();
            return found;
        })`);
        assert.deepEqual(turned, []);
    });

    test("a service that is not ready says which part is not", async () => {
        const { page, made } = context();
        await page.fresh();
        await page.signIn(made.viewer, "/console/system");
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/health/*" }] });
        const body = Buffer.from(JSON.stringify({ status: "not_ready", ready: false, checks: { database: "connected", kafka: "disconnected" }, timestamp: new Date().toISOString() }));
        const stop = page.browser.on("Fetch.requestPaused", ({ requestId }) => page.browser.call("Fetch.fulfillRequest", { requestId, responseCode: 503,
            responseHeaders: [{ name: "content-type", value: "application/json" }], body: body.toString("base64") }));
        try {
            await page.go("/console/system");
            await page.reads("kafka");
            await page.reads("disconnected");
        } finally {
            stop();
            await page.browser.call("Fetch.disable");
        }
        page.browser.complaints.splice(0);
    });
}
