// What people see of steps, attempts, versions and exact values; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { step } from "./service.js";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function stepJourneys(context, at) {
    const plan = (/** @type {string} */ text) => ({ start_step: "a", steps: { a: step("a", "demo-upper", { text }) } });

    test("a deleted workflow is not in the list, whatever versions it had, and the dialog says what stays", async () => {
        const { page, service } = context();
        await service.call("PUT", "/workflow-names/short-lived", plan("1"));
        const { id } = await service.call("PUT", "/workflow-names/short-lived", plan("2"));
        await at("/console/workflows?name_prefix=short-");
        await page.press("short-lived");
        await page.press("Delete");
        await page.reads("version 2 cannot be executed, older ones can by their ids");
        await page.press("Delete", "dialog button");
        await page.browser.until("location.pathname.endsWith('/workflows')", "the list");
        await page.go("/console/workflows?name_prefix=short-");
        await page.reads("There are no workflows here");
        await page.go("/console/workflows?name_prefix=short-&status=deleted");
        await page.browser.until(`document.querySelector('tr[data-row] a')?.href.endsWith('${id}')`, "the deleted workflow");
        assert.equal(await page.browser.evaluate("document.querySelectorAll('tr[data-row]').length"), 1);
    });

    test("numbers stay as they were written: in a run, and in a definition that is stored again", async () => {
        const { page, service } = context();
        const input = '{"price": 1.10, "number": 12345678901234567890}';
        const send = (/** @type {string} */ method, /** @type {string} */ path, /** @type {string} */ body) => fetch(`${service.url}/api/v1${path}`, { method, headers: { "x-api-key": service.key, "content-type": "application/json" }, body }).then((answer) => answer.json());
        const run = await send("POST", "/workflow-names/approval/execute", `{"input_data": ${input}}`);
        await at(`/console/runs/${run.id}?tab=data`);
        await page.reads("12345678901234567890");
        await page.reads("1.10");
        await service.call("POST", `/runs/${run.id}/cancel`, {});
        const { id } = await send("PUT", "/workflow-names/exact", JSON.stringify(plan("x")).replace('"x"', "1.10"));
        await page.go(`/console/workflows/${id}/edit`);
        await page.browser.until("document.querySelector('.lines textarea')?.value.includes('1.10')", "the definition");
        await page.browser.evaluate("(() => { const area = document.querySelector('.lines textarea'); area.value = area.value.replace('1.10', '2.50'); area.dispatchEvent(new Event('input', { bubbles: true })); })()");
        await page.reads("The definition is valid");
        await page.press("Store");
        await page.reads("is stored as version 2");
        const stored = await fetch(`${service.url}/api/v1/workflows/${id}`, { headers: { "x-api-key": service.key } });
        assert.match(await stored.text(), /"text": ?2\.50\b/);
    });

    test("a run that goes on changes its graph in place, its table has the steps that have not begun, and data are read when they are looked at", async () => {
        const { page, service } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        page.browser.requests.splice(0, page.browser.requests.length - 500);
        await at(`/console/runs/${run.id}?tab=table`);
        await page.browser.until("[...document.querySelectorAll('tr[data-row]')].some((row) => /pay\\s+not begun/.test(row.innerText))", "the step that has not begun");
        await page.press("Graph");
        await page.sees(".box[data-step=pay]");
        await page.browser.until("document.querySelector('.live')?.innerText === 'live'", "the stream");
        await page.browser.evaluate("window.$boxes = [...document.querySelectorAll('.box')]");
        const [callback] = await service.call("GET", `/runs/${run.id}/callbacks`);
        await service.call("POST", `/callbacks/${callback.url.split("/").pop()}`, { approved: true });
        await page.browser.until("window.$boxes.every((box) => box.isConnected && box.classList.contains('s-COMPLETED'))", "the same boxes with the new states");
        const about = page.browser.requests.filter((url) => url.includes(`${run.id}/steps`));
        assert.ok(about.length && about.every((url) => url.includes("data=false")), about.join("\n"));
        await page.browser.evaluate("document.querySelector('.box[data-step=pay]').dispatchEvent(new MouseEvent('click', { bubbles: true }))");
        await page.browser.until("document.querySelector('[aria-label=\"Input of attempt 1\"]')?.innerText.includes('paid')", "the input of the attempt");
        assert.ok(page.browser.requests.some((url) => url.includes(`${run.id}/steps?id=`)));
        await page.go(`/console/runs/${run.id}?tab=raw`);
        await page.reads('"paid"');
    });

    test("an agent that is tried again is told of: which attempt of how many, and the error", async () => {
        const { page, service } = context();
        await service.call("POST", "/agents", { name: "tired", url: `${service.demo}/upper?fail=503`, retry_config: { max_retries: 10, initial_delay_ms: 60_000, max_delay_ms: 60_000 } });
        await service.call("PUT", "/workflow-names/tired", { start_step: "mail", steps: { mail: step("mail", "tired", { text: "x" }) } });
        const run = await service.call("POST", "/workflow-names/tired/execute", { input_data: {} });
        await at(`/console/runs/${run.id}?tab=table`);
        await page.browser.until("/attempt \\d+ of 10 has failed, next (in [^:]+|is due): .*503/.test(document.querySelector('.run-words')?.innerText)", "the words");
        await page.browser.until("/attempt \\d+ of 10, next (in|is due)/.test(document.querySelector('tr[data-row]')?.innerText)", "the row");
        await page.go("/console/runs?name=tired");
        await page.browser.until("/next attempt .*step mail is tried again after attempt \\d+: .*503/s.test(document.querySelector('td.c-error')?.innerText)", "the row of the list");
        await service.call("POST", `/runs/${run.id}/cancel`, {});
    });

    test("a log can be of one step, has dates, and is not read out entry by entry", async () => {
        const { page, made } = context();
        await at(`/console/runs/${made.runs.repairable.id}?tab=log`);
        await page.browser.until("document.querySelectorAll('[role=log] .entry').length > 3", "the log");
        assert.match(await page.browser.evaluate("document.querySelector('[role=log] time').innerText"), /^\d{4}-\d\d-\d\d \d\d:/);
        assert.equal(await page.browser.evaluate("document.querySelector('[role=log]').getAttribute('aria-live')"), "off");
        await page.fill("Step", "read");
        await page.browser.until("(() => { const all = [...document.querySelectorAll('[role=log] .entry')]; return all.length > 0 && all.every((one) => one.innerText.includes(\"'read'\")); })()", "the entries of the step");
    });

    test("who may not answer sees what a run waits for, and who may", async () => {
        const { page, service, made } = context();
        const run = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
        await page.fresh();
        await page.signIn(made.viewer, `/console/runs/${run.id}`);
        await page.reads("waiting for approval by admin at step approve");
        await page.reads("To answer it: Needs runs:write");
        await page.fresh();
        await service.call("POST", `/runs/${run.id}/cancel`, {});
    });

    test("a refused input is told at its field, and what is sent again has the same key", async () => {
        const { page, service } = context();
        const { id } = await service.call("PUT", "/workflow-names/strict", { ...plan("x"), input_schema: { type: "object", properties: { amount: { type: "number", maximum: 10 } } } });
        await at(`/console/workflows/${id}?tab=run`);
        await page.fill("amount", "99");
        await page.browser.evaluate("(() => { window.$sent = []; const real = window.fetch; window.fetch = (url, init) => { const key = init?.headers?.['idempotency-key']; if (key) window.$sent.push(key); return real(url, init); }; })()");
        const start = async (/** @type {number} */ count) => {
            await page.press("Start the run");
            await page.browser.until(`window.$sent.length === ${count} && document.querySelector('.member .bad') && !document.querySelector('[aria-busy=true]')`, "the refusal at the field");
        };
        await start(1);
        await start(2);
        await page.fill("amount", "98");
        await start(3);
        const [first, second, third] = await page.browser.evaluate("window.$sent");
        assert.ok(first === second && second !== third);
        page.browser.complaints.splice(0);
    });

    test("the editor names the line of a fault, says nothing of a text that is not checked yet, and asks before a file replaces a text", async () => {
        const { page } = context();
        await at("/console/workflows/new");
        await page.fill("Definition as JSON", JSON.stringify({ name: "one", ...plan("x") }));
        await page.reads("The definition is valid");
        await page.browser.evaluate("(() => { const area = document.querySelector('.lines textarea'); area.value = area.value.replace('one', 'other'); area.dispatchEvent(new Event('input', { bubbles: true })); })()");
        await page.browser.until("document.querySelector('#findings p').className !== 'valid'", "the end of what was said");
        await page.reads("The definition is valid");
        await page.fill("Definition as JSON", '{\n "name": "x",\n "start_step": "a"\n "steps": {}\n}\n');
        await page.browser.until("document.querySelector('.gutter .error')?.innerText.trim() === '4'", "the mark at line 4");
        await page.reads('Expected a comma or }, found "steps"');
        assert.equal(await page.browser.evaluate("document.querySelector('.gutter').innerText.replace(/\\s+/g, ' ').trim()"), "1 2 3 4 5 6");
        const give = "(() => { const files = new DataTransfer(); files.items.add(new File(['{\"name\": \"of a file\"}'], 'a.json')); const picker = document.querySelector('input[type=file]'); picker.files = files.files; picker.dispatchEvent(new Event('change', { bubbles: true })); })()";
        page.leaves = false;
        await page.browser.evaluate(give);
        assert.match(await page.browser.evaluate("document.querySelector('.lines textarea').value"), /start_step/);
        page.leaves = true;
        await page.browser.evaluate(give);
        await page.browser.until("document.querySelector('.lines textarea').value.includes('of a file')", "the text of the file");
        assert.equal(await page.browser.evaluate("document.querySelector('.graph svg').getAttribute('aria-label').includes('table')"), false, "there is no table here");
    });
}
