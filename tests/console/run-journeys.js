// What people do with runs, approvals, dead letters, keys and definitions; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ATTACK } from "./service.js";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function runJourneys(context, at) {
    test("a wrong key is refused in words, a right one opens the address that was asked for, signing out closes it", async () => {
        const { page, service } = context();
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
        page.browser.complaints.splice(0);
    });

    test("a failing run is repaired from its step with another input", async () => {
        const { page, service, made } = context();
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
        const { page, made } = context();
        await at(`/console/runs/${made.runs.approval.id}`);
        await page.reads("waiting for approval by admin");
        await page.browser.evaluate("[...document.querySelectorAll('nav a')].find((a) => a.innerText.includes('Approvals')).click()");
        await page.reads(made.runs.approval.id);
        await page.fill("Comment", `fine ${ATTACK}`);
        const section = `[...document.querySelectorAll('section.waiting')].find((one) => one.innerText.includes('${made.runs.approval.id}'))`;
        await page.browser.evaluate(`[...${section}.querySelectorAll('button')].find((one) => one.innerText === 'Approve').click()`);
        await page.browser.until(`${section}?.innerText.includes("does not wait any more")`, "the end of the approval");
        await page.go(`/console/runs/${made.runs.approval.id}`);
        await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of the run");
    });

    test("a run that waits tells of its end by the event stream, and its log grows", async () => {
        const { page, service, made } = context();
        await at(`/console/runs/${made.runs.rejected.id}?tab=log`);
        await page.reads("live");
        const [callback] = await service.call("GET", `/runs/${made.runs.rejected.id}/callbacks`);
        await service.call("POST", `/callbacks/${callback.url.split("/").pop()}`, { approved: false, comment: "too dear" });
        await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('failed')", "the end of the run");
        await page.browser.until("document.querySelector('[role=log]').innerText.includes('Run failed')", "the last entry of the log");
    });

    test("a dead letter is read and sent again with a corrected value", async () => {
        const { page, service, made } = context();
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
        const { page, service } = context();
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
        const { page, service, made } = context();
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
        const { page, service, made } = context();
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
        const { page } = context();
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
        const { page, service } = context();
        await at("/console/runs?status=COMPLETED&cols=run,input.order");
        await page.press("Save view");
        await page.fill("Name of the view", "finished orders");
        await page.press("Save", "dialog button");
        await page.reads("finished orders");
        await page.go("/console/runs");
        await page.browser.until("document.querySelector('#views option:nth-child(2)')", "the saved view");
        const [{ id }] = (await service.call("GET", "/views?screen=runs")).items;
        await page.fill("Saved view", id);
        await page.browser.until("location.search.includes('status=COMPLETED')", "the filters of the view");
        await page.go("/console/runs?status=FAILED&cols=run,version");
        await page.browser.until("document.querySelector('#views option:nth-child(2)')", "the saved view");
        await page.press("Save view");
        await page.fill("Store it as", id);
        await page.press("Save", "dialog button");
        await page.browser.until("!document.querySelector('dialog')", "the change of the view");
        const [changed, ...others] = (await service.call("GET", "/views?screen=runs")).items;
        assert.deepEqual([changed.name, changed.query, others.length], ["finished orders", "status=FAILED&cols=run%2Cversion", 0]);
        await page.browser.until("document.querySelector('#views').selectedOptions[0].innerText === 'finished orders'", "the changed view");
        await page.press("Save view");
        await page.press("Delete finished orders");
        await page.press("Keep it", "dialog button");
        await page.press("Delete finished orders");
        await page.press("Delete", "dialog button");
        await page.browser.until("!document.querySelector('#views')", "the end of the view");
        await page.go("/console");
        await page.browser.until("document.querySelectorAll('.hours li').length === 24", "a column for each hour");
        await page.browser.evaluate("document.querySelector('.hours li:last-child a').click()");
        await page.sees("tr[data-row]");
        assert.match(await page.browser.evaluate("location.search"), /created_after=.*created_before=/);
    });

    test("new runs are announced and not pushed in; chosen runs are acted on after a dry run", async () => {
        const { page, service } = context();
        // Also where the order was chosen.
        await at("/console/runs?cols=run,workflow,status&name=approval&sort_by=created_at&sort_order=desc");
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
        await page.reads("1 of 1 run cancelled");
        assert.equal((await service.call("GET", `/runs/${fresh.id}`)).status, "CANCELLED");
    });

    test("two runs are compared step by step", async () => {
        const { page, made } = context();
        await at(`/console/compare?a=${made.runs.order.id}&b=${made.runs.other.id}`);
        await page.reads("steps differ");
        await page.browser.evaluate("[...document.querySelectorAll('button.link')].find((one) => one.innerText === 'stock').click()");
        await page.browser.until("document.querySelectorAll('.diff .added').length > 0", "the difference");
    });

    test("the keyboard alone goes everywhere", async () => {
        const { page, made } = context();
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

    const waiting = (/** @type {import("./service.js").Service} */ service) => service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
    const statusOf = (/** @type {string} */ id) => `document.querySelector('tr[data-row] a[title="${id}"]').closest("tr").querySelector(".status").innerText`;

    test("what is being typed in a filter stays while the list is drawn again, and no row moves below the pointer", async () => {
        const { page, service } = context();
        await at("/console/runs?cols=run,workflow,status&name=approval");
        await page.sees("tr[data-row]");
        const top = "document.querySelector('tr[data-row]').getBoundingClientRect().top";
        const before = await page.browser.evaluate(top);
        const field = "document.querySelector('#filter-name_prefix')";
        await page.browser.evaluate(`${field}.focus()`);
        await page.browser.call("Input.insertText", { text: "app" });
        const run = await waiting(service);
        await page.reads("1 new run: show");
        assert.equal(await page.browser.evaluate(`${field}.value`), "app");
        assert.equal(await page.browser.evaluate(top), before, "the announcement has moved the rows");
        await page.press("1 new run: show");
        await page.browser.until(statusOf(run.id), "the new run");
        await page.browser.until("location.search.includes('name_prefix=app')", "what was typed, when the keyboard had left it");
        await page.browser.evaluate("document.querySelector('tr[data-row] input').click()");
        await page.reads("1 selected");
        assert.equal(await page.browser.evaluate(top), before, "the selection has moved the rows");
        // The filter follows the address.
        await page.browser.evaluate("history.back()");
        await page.browser.until(`${field}.value === ""`, "the filter of the address");
        await service.call("POST", `/runs/${run.id}/cancel`, {});
    });

    test("a run that ends leaves no running row: not in a list of running ones, and not on a later page", async () => {
        const { page, service } = context();
        const [first, second] = [await waiting(service), await waiting(service)];
        await at("/console/runs?cols=run,status&name=approval&status=PENDING,RUNNING");
        await page.browser.until(`/running|pending/.test(${statusOf(first.id)})`, "the run");
        await service.call("POST", `/runs/${first.id}/cancel`, {});
        await page.browser.until(`${statusOf(first.id)} === "cancelled"`, "the end of the run in its row");
        await at("/console/runs?cols=run,status&name=approval&page_size=1");
        const third = await waiting(service);
        await page.go("/console/runs?cols=run,status&name=approval&page_size=1");
        await page.browser.until(statusOf(third.id), "the first page");
        await page.press("Next");
        await page.browser.until(statusOf(second.id), "the second page");
        await service.call("POST", `/runs/${second.id}/cancel`, {});
        await page.browser.until(`${statusOf(second.id)} === "cancelled"`, "the end of the run on the second page");
        await service.call("POST", `/runs/${third.id}/cancel`, {});
    });

    test("keys go on from a box that was ticked, reach rows without a link, and find the first filter", async () => {
        const { page, made } = context();
        const row = "[...document.querySelectorAll('tr[data-row]')].indexOf(document.activeElement.closest('tr'))";
        await at("/console/runs?page_size=5");
        await page.sees("tr[data-row]");
        await page.browser.evaluate("(() => { const box = document.querySelector('tr[data-row] input'); box.focus(); box.click(); })()");
        await page.browser.press("j");
        assert.equal(await page.browser.evaluate(row), 1);
        await page.go("/console/system");
        for (const table of ["Processes", "Limits", "Tables"]) await page.sees(`[aria-label=${table}] tr[data-row]`);
        await page.browser.evaluate("document.activeElement.blur()");
        for (let turn = 0; turn < 3; turn++) await page.browser.press("j");
        assert.equal(await page.browser.evaluate(row), 2);
        await page.browser.press("k");
        assert.equal(await page.browser.evaluate(row), 1);
        await page.go("/console/approvals");
        await page.sees(".filters button");
        await page.browser.press("/");
        assert.equal(await page.browser.evaluate("Boolean(document.activeElement.closest('.filters'))"), true);
        await page.go(`/console/runs/${made.runs.order.id}`);
        await page.browser.until(`document.title === "Run …${made.runs.order.id.slice(-12)} · workflow-api"`, "the title of the run");
    });
}

/** From nothing to a run, and without the service. @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context */
export function firstJourneys(context) {
    test("an empty organisation has its first run a minute later", async () => {
        const { page, service } = context();
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
        const { page, service } = context();
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
        // The content policy stops it; that this is reported is held below.
        assert.ok((await page.browser.evaluate("fetch('https://example.org/').then(() => 'reached', () => 'cut')")) === "cut");
        page.browser.complaints.splice(0);
        page.browser.requests.splice(page.browser.requests.findIndex((url) => url.startsWith("https://example.org")), 1);
    });
}
