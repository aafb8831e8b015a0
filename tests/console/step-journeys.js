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
}
