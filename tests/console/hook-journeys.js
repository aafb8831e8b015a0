// Journeys through triggers, webhooks, flow control and actions on all runs of a filter; browser.test.js runs them.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { until } from "./service.js";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function hookJourneys(context, at) {
    const shown = (label) => `document.querySelector('dialog pre[aria-label=${label}]').innerText`;
    const rows = (words) => `[...document.querySelectorAll('tr[data-row]')].filter((row) => row.innerText.includes(${JSON.stringify(words)}))`;

    test("a schedule is made with a look at its next times, fires by itself and by hand, and is paused, resumed, changed and deleted", async () => {
        const { page, service } = context();
        await at("/console/triggers");
        await page.press("New trigger");
        await page.fill("name", "weekly");
        await page.fill("workflow_name", "order");
        await page.fill("input", '{"order": "${trigger.scheduled_at}"}');
        await page.fill("cron", "nonsense");
        await page.browser.until("document.querySelector('[aria-label=\"Preview of the times\"] .bad')", "what is wrong with the expression");
        await page.press("Store");
        await page.browser.until("document.querySelector('#config-cron')?.getAttribute('aria-invalid') === 'true'", "the mark at the field");
        await page.fill("cron", "30 2 28 3 *\n@daily");
        await page.reads("and every day at 00:00");
        await page.fill("time_zone", "Europe/Berlin");
        await page.browser.until("document.querySelectorAll('.times li').length === 10", "ten times");
        await page.press("Store");
        await page.reads("Last firings");
        const made = (await service.call("GET", "/triggers?name=weekly")).items[0];
        assert.deepEqual([made.config.cron, made.config.time_zone], [["30 2 28 3 *", "@daily"], "Europe/Berlin"]);
        await page.press("Fire now");
        await page.fill("Members that the input refers to", "{");
        await page.press("Preview", "dialog button");
        await page.reads("Line 1");
        await page.fill("Members that the input refers to", "");
        await page.press("Preview", "dialog button");
        await page.reads("Input of the run");
        await page.press("Fire", "dialog button");
        await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of its run");
        await page.press("schedule", "a");
        await page.reads("manual");
        await page.press("Pause");
        await page.fill("Note", "until the audit");
        await page.press("Pause", "dialog button");
        await page.reads("It is paused: until the audit");
        await page.press("Resume");
        await page.browser.until("!document.querySelector('main > .banner')", "the end of the pause");
        await page.press("Edit");
        await page.fill("cron", "");
        await page.fill("every", "PT1S");
        await page.press("Store");
        await page.browser.until(`${rows("event")}.some((row) => row.innerText.includes('started'))`, "a firing of its own");
        assert.match((await service.call("GET", `/triggers/${made.id}`)).config.every, /^PT1S$/);
        await page.press("Delete");
        await page.press("Keep it");
        await page.press("Delete");
        await page.press("Delete", "dialog button");
        await page.browser.until("location.pathname.endsWith('/triggers')", "the list");
        assert.deepEqual((await service.call("GET", "/triggers?name=weekly")).items, []);
        page.browser.complaints.splice(0);
    });

    test("a trigger whose topic is not there says so", async () => {
        const { page } = context();
        await at("/console/triggers");
        await page.press("New trigger");
        await page.fill("name", "by records");
        await page.fill("workflow_name", "order");
        await page.fill("Kind", "kafka");
        await page.fill("topic", "there-is-no-such-topic");
        await page.press("Store");
        await page.reads("When a record arrives.");
        await page.reads("wf-trigger-");
        await page.reads("The topic cannot be read:");
        await page.press("Delete");
        await page.press("Delete", "dialog button");
        await page.browser.until("location.pathname.endsWith('/triggers')", "the list");
        page.browser.complaints.splice(0);
    });

    test("the past of a schedule is made up for after it was counted", async () => {
        const { page, service } = context();
        const trigger = await service.call("POST", "/triggers", { name: "past", kind: "schedule", workflow_name: "order", input: { order: "${trigger.at}" }, config: { cron: ["0 * * * *"] } });
        await at(`/console/triggers/${trigger.id}`);
        await page.press("Start runs of a range of time");
        await page.fill("From (UTC", "2026-01-01T00:00");
        await page.fill("To (UTC", "2026-01-01T03:00");
        await page.fill("Runs", "allow");
        await page.press("Count them");
        await page.reads("3 runs would start.");
        assert.equal((await service.call("GET", `/runs?trigger_id=${trigger.id}`)).total, 0);
        await page.press("Start 3");
        await page.browser.until(`${rows("completed")}.some((row) => row.innerText.includes('3 of 3'))`, "the end of the backfill");
        await page.press("all its runs", "a");
        await page.browser.until("document.querySelectorAll('tr[data-row]').length === 3", "its three runs");
        assert.match(await page.browser.evaluate("location.search"), new RegExp(trigger.id));
        await service.call("DELETE", `/triggers/${trigger.id}`).catch((error) => assert.match(String(error), /JSON/));
    });

    test("the address of a webhook trigger is shown once; a signed delivery starts a run, another token ends the address", async () => {
        const { page, service } = context();
        await at("/console/triggers");
        await page.press("New trigger");
        await page.fill("name", "issues");
        await page.fill("workflow_name", "order");
        await page.fill("input", '{"order": "${trigger.body.title}"}');
        await page.fill("Kind", "webhook");
        await page.fill("preset", '"github"');
        await page.fill("secrets", "a secret that both know");
        await page.press("Store");
        await page.reads("Copy it now");
        const address = await page.browser.evaluate(shown("Address"));
        await page.press("Done");
        await page.reads("Refused deliveries");
        const body = '{"title": "it works"}';
        const deliver = (url, secret, id) => fetch(url, { method: "POST", body, headers: { "content-type": "application/json", "x-github-event": "issues", "x-github-delivery": id,
            "x-hub-signature-256": `sha256=${createHmac("sha256", secret).update(body).digest("hex")}` } });
        assert.equal((await deliver(address, "another secret", "1")).status, 401);
        const answer = await deliver(address, "a secret that both know", "2");
        assert.equal(answer.status, 202);
        await page.reads("the signature is not by one of the secrets");
        await page.press((await answer.json()).run_id, "a");
        await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of its run");
        await page.press("webhook", "a");
        assert.ok(!(await page.text()).includes(address) && !(await page.text()).includes("a secret that both know"));
        await page.press("Make another token");
        await page.press("Make another token", "dialog button");
        await page.reads("Copy it now");
        const other = await page.browser.evaluate(shown("Address"));
        assert.deepEqual([(await deliver(address, "a secret that both know", "3")).status, (await deliver(other, "a secret that both know", "3")).status], [404, 202]);
        await page.press("Done");
        // A change without secrets keeps them.
        await page.press("Edit");
        await page.fill("filter", "${trigger.body.title} == 'nothing'");
        await page.press("Store");
        await page.reads("with ${trigger.body.title} == 'nothing'");
        assert.equal((await deliver(other, "a secret that both know", "4")).status, 204);
    });

    test("a webhook is made with its secret shown once, tested, verified, switched off and on, and what was held arrives", async () => {
        const { page, service } = context();
        await at("/console/webhooks");
        await page.press("New webhook");
        await page.fill("name", "mine");
        await page.fill("url", "nonsense");
        await page.fill("event_types", "run.completed");
        await page.press("Store");
        await page.browser.until("document.querySelector('#webhook-url').getAttribute('aria-invalid') === 'true'", "the mark at the field");
        await page.fill("url", `${service.demo}/hooks`);
        await page.press("Store");
        await page.reads("Copy it now");
        const secret = await page.browser.evaluate(shown("Secret"));
        await page.press("Done");
        await page.press("Test");
        await page.browser.until("document.querySelector('#test-type option[value=\"run.failed\"]')", "the types of events");
        await page.fill("Type of the event", "run.failed");
        await page.press("Send it");
        await page.reads("HTTP 204");
        await page.press("Close");
        assert.ok(!(await page.text()).includes(secret));
        const id = await page.browser.evaluate("location.pathname.split('/').pop()");
        const [arrived] = await (await fetch(`${service.demo}/hooks`)).json();
        const delivery = await service.call("GET", `/webhooks/${id}/deliveries`);
        const { body } = await service.call("GET", `/webhook-deliveries/${delivery.items[0].id}`);
        assert.deepEqual([arrived.body, arrived.body.data.is_test], [body, true]);
        await page.press("Disable");
        await page.press("Disable", "dialog button");
        await page.reads("a user has disabled it");
        await service.run("order", { order: "while it is off" });
        // Its event is told a moment after its end.
        await until("the held delivery", async () => (await service.call("GET", `/webhooks/${id}/deliveries?state=held`)).items[0]);
        await page.press("Read again");
        await page.browser.until(`${rows("held")}.length > 0`, "the held delivery");
        await page.press("Enable");
        await page.press("Enable", "dialog button");
        await page.browser.until(`!${rows("held")}.length && ${rows("delivered")}.length > 1`, "its arrival");
        await page.press("Rotate secret");
        await page.fill("The secret before signs too for", "0");
        await page.press("Rotate", "dialog button");
        await page.reads("Copy it now");
        assert.notEqual(await page.browser.evaluate(shown("Secret")), secret);
        await page.press("Done");
        await page.browser.until(`${rows("run.completed")}.length > 0`, "its deliveries");
        await page.browser.evaluate(`${rows("run.completed")}[0].querySelector("a").click()`);
        await page.reads("Attempts");
        await page.press("Send again");
        await page.browser.until("document.querySelectorAll('article.card').length === 2", "the second attempt");
        await page.press("Webhook", "a.back");
        await page.press("Delete");
        await page.press("Delete", "dialog button");
        await page.browser.until("location.pathname.endsWith('/webhooks')", "the list");
        page.browser.complaints.splice(0);
    });

    test("a webhook that fails shows each attempt, and its deliveries are sent again after they were counted", async () => {
        const { page, service, made } = context();
        await at(`/console/webhooks/${made.hooks.bad.id}`);
        await page.reads("the answer is 404");
        await page.fill("HTTP status", "404");
        await page.browser.until("location.search.includes('status_code=404')", "the filter in the address");
        await page.browser.until(`${rows("run.failed")}.length > 0`, "its deliveries");
        await page.browser.evaluate(`${rows("run.failed")}[0].querySelector("a").click()`);
        await page.browser.until("document.querySelector('article.card')?.innerText.includes('HTTP 404')", "the attempt");
        await page.go(`/console/webhooks/${made.hooks.good.id}`);
        await page.press("Recover");
        await page.fill("Events since", "2020-01-01T00:00");
        await page.fill("What", "all");
        await page.press("Count them");
        await page.reads("would be sent again.");
        const before = (await (await fetch(`${service.demo}/hooks`)).json())[0]?.webhook_timestamp;
        await page.press(await page.browser.evaluate("[...document.querySelectorAll('dialog button')].find((one) => one.innerText.startsWith('Send ')).innerText"), "dialog button");
        await page.browser.until("document.querySelector('table')?.innerText.includes('completed')", "the end of the recovery");
        assert.ok(before);
    });

    test("a run that is held says why, and goes on without a reload when there is room", async () => {
        const { page, service, made } = context();
        await at(`/console/runs/${made.runs.held.id}`);
        await page.reads("1 of 1 runs with this key are under way");
        await page.reads("concurrency: queued");
        await page.reads("Deadline");
        await service.call("POST", `/runs/${made.runs.holding.id}/cancel`, {});
        await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('running')", "its begin");
        await page.go("/console/workflows?name_prefix=limited");
        await page.press("limited", "td a");
        await page.reads("1 run for each ${workflow.input.customer}; further ones wait");
        await page.press("Runs that wait", "a");
        await page.reads("No run matches these filters");
    });

    test("home says what waits, what is paused, ill, and what does not arrive", async () => {
        const { page, service, made } = context();
        await assert.rejects(service.call("POST", `/triggers/${made.triggers.paused.id}/fire`, {}), /workflow_not_found/);
        await at("/console/triggers?name_prefix=paused");
        await page.browser.until(`${rows("paused one")}.some((row) => /failing\\s+failed to start: /.test(row.innerText))`, "what ails it");
        await at("/console");
        for (const words of ["refused", "failing", "switched off", "paused one", "failed to start: ", "Backlog", "Waiting for people"]) await page.reads(words);
        await page.browser.until("!document.querySelector('.loading')", "all of it");
        await page.press("switched off", "a");
        await page.reads("a user has disabled it");
    });

    test("all runs of a filter are cancelled page by page after they were counted, and the work can be stopped", async () => {
        const { page, service, made } = context();
        service.sql(`INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data, triggered_by, created_at, updated_at, organization_id)
            SELECT 'run-crowd-' || n, workflow_id, 'crowd', workflow_definition_id, 'PENDING', '{}', 'sql', now() - n * interval '1 second', now(), organization_id
            FROM workflow_runs, generate_series(1, 120) n WHERE run_id = '${made.runs.order.id}'`);
        const left = () => service.sql("SELECT count(*) FROM workflow_runs WHERE workflow_name = 'crowd' AND status = 'PENDING'");
        await at("/console/runs?name=crowd");
        await page.press("Act on all");
        await page.fill("Reason", "not needed");
        await page.press("Count them");
        await page.reads("120 runs would be cancelled.");
        assert.equal(left(), "120");
        // The answer to the first page is kept back until somebody has pressed Stop.
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/runs/bulk*", requestStage: "Response" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await page.press("cancel 120", "dialog button");
        const { requestId } = await paused;
        await page.press("Stop", "dialog button");
        await page.browser.call("Fetch.continueRequest", { requestId });
        await page.reads("stopped; the others are as they were");
        await page.browser.call("Fetch.disable");
        // A page has 100 runs, or as many as the service does within five seconds.
        const rest = 120 - Number((await page.text()).match(/(\d+) of 120 runs cancelled/)?.[1]);
        assert.ok(rest >= 20 && rest < 120 && left() === String(rest), `${rest} and ${left()}`);
        await page.press("Close");
        await page.press("Act on all");
        await page.press("Count them");
        await page.press(`cancel ${rest}`, "dialog button");
        await page.reads(`${rest} of ${rest} runs cancelled`);
        await page.reads("done");
        assert.equal(left(), "0");
        await page.press("Close");
    });
}
