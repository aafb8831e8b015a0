// Makes the pictures of docs/console.md, on a service of its own with runs, triggers and webhooks as people have them.
//
//   node tests/console/pictures.js [PROGRAM [FOLDER]]     target/debug/workflow-api and docs/console; another folder gets all pictures in both themes
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Page } from "./page.js";
import { Service, step } from "./service.js";

const DOCS = new URL("../../docs/console", import.meta.url).pathname;
/** Those of the documents. */
const KEPT = ["runs-light", "run-dark", "trigger-light", "webhook-dark", "system-light", "narrow-light"];
const QUALITY = 45;

/** @param {Service} service */
async function fill(service) {
    const put = (/** @type {string} */ name, /** @type {any} */ body) => service.call("PUT", `/workflow-names/${name}`, body);
    const start = (/** @type {string} */ name, /** @type {any} */ input) => service.call("POST", `/workflow-names/${name}/execute`, { input_data: input });
    await service.call("POST", "/agents", { name: "mailer", url: `${service.demo}/upper?fail=503`, retry_config: { max_retries: 1, initial_delay_ms: 100, max_delay_ms: 1000 } });
    await put("order-fulfilment", { start_step: "read", steps: {
        read: step("read", "demo-upper", { text: "${workflow.input.order}" }, "checks"),
        checks: { id: "checks", type: "fork_join", next_step: "ship", fork_join_config: { branches: { stock: { steps: ["stock"] }, credit: { steps: ["credit"] } } } },
        stock: step("stock", "demo-upper", { text: "${read.output.text}" }), credit: step("credit", "demo-count", { text: "two words" }),
        ship: step("ship", "demo-reverse", { text: "${read.output.text}" }, "confirm"), confirm: step("confirm", "demo-upper", { text: "done" }) } });
    await put("nightly-report", { start_step: "collect", steps: { collect: step("collect", "demo-count", { text: "all of the day" }, "mail"), mail: step("mail", "mailer", { text: "report" }) } });
    await put("weekly-report", { start_step: "collect", steps: { collect: step("collect", "demo-count", { text: "all of the week" }) } });
    await put("expense-approval", { start_step: "note", steps: { note: step("note", "demo-upper", { text: "${workflow.input.what}" }, "approve"),
        approve: { id: "approve", type: "callback", next_step: "pay", input_mapping: { what: "${workflow.input.what}", question: "Pay for it?" }, callback_config: { timeout_seconds: 86_400, approval: { role: "admin" } } },
        pay: step("pay", "demo-count", { text: "paid" }) } });
    const hook = await service.call("POST", "/webhooks", { name: "billing", url: `${service.demo}/there-is-none`, event_types: ["run.completed", "run.failed"] });
    const trigger = await service.call("POST", "/triggers", { name: "monday-report", kind: "schedule", workflow_name: "weekly-report", input: { at: "${trigger.scheduled_at}" },
        config: { cron: ["0 9 * * 1"], time_zone: "Europe/Berlin", exclude: ["2026-12-28"] } });
    await service.call("POST", "/triggers", { name: "nightly", kind: "schedule", workflow_name: "nightly-report", config: { cron: ["0 3 * * *"], time_zone: "Europe/Berlin" } });
    const order = await service.run("order-fulfilment", { order: "A-1042" });
    for (const number of [1043, 1044, 1045]) {
        await service.run("order-fulfilment", { order: `A-${number}` });
        await service.run("nightly-report", { day: number });
    }
    await service.call("POST", `/triggers/${trigger.id}/backfills`, { from: "2026-11-01T00:00:00Z", to: "2026-11-25T00:00:00Z", dry_run: false });
    await service.call("POST", `/triggers/${trigger.id}/fire`, {});
    const cancelled = await start("expense-approval", { what: "a second chair" });
    await service.call("POST", `/runs/${cancelled.id}/cancel`, { reason: "not needed" });
    for (const what of ["books", "train to Bern"]) await start("expense-approval", { what });
    return { order, hook, trigger };
}

/** @param {Page} page @param {{ order: any, hook: any, trigger: any }} made @returns {Record<string, () => Promise<unknown>>} */
const pictures = (page, made) => ({
    runs: () => page.go("/console/runs"),
    run: async () => {
        await page.go(`/console/runs/${made.order.id}?step=ship`);
        await page.sees(".panel");
        await page.reads("HTTP status");
    },
    trigger: () => page.go(`/console/triggers/${made.trigger.id}`),
    webhook: async () => {
        await page.go(`/console/webhooks/${made.hook.id}`);
        await page.sees("tr[data-row]");
    },
    system: async () => {
        await page.go("/console/system");
        await page.reads("Body of a request");
    },
    narrow: async () => {
        await page.size(390, 844);
        await page.go("/console/runs?name=expense-approval&status=RUNNING");
        await page.press("expense-approval", "td a");
        await page.reads("Pay for it?");
    },
});

const [program = "target/debug/workflow-api", folder = DOCS] = process.argv.slice(2);
mkdirSync(folder, { recursive: true });
const service = await Service.start(program);
try {
    const made = await fill(service);
    const page = await Page.open(service.url);
    try {
        await page.signIn(service.key);
        for (const [name, show] of Object.entries(pictures(page, made))) {
            for (const theme of ["light", "dark"]) {
                if (folder === DOCS && !KEPT.includes(`${name}-${theme}`)) continue;
                await page.theme(theme);
                await page.size(1280);
                await show();
                await page.settled();
                const { data } = await page.browser.call("Page.captureScreenshot", { format: "webp", quality: QUALITY });
                writeFileSync(join(folder, `${name}-${theme}.webp`), Buffer.from(data, "base64"));
            }
        }
    } finally {
        await page.browser.stop();
    }
} finally {
    await service.stop();
}
