// What is sent is what was meant: forms, the inbox, retries from a step; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function formJourneys(context, at) {
    /** The bodies of requests to an address while `work` is done. @param {import("./page.js").Page} page @param {RegExp} address @param {() => Promise<void>} work */
    const sent = async (page, address, work) => {
        /** @type {any[]} */
        const bodies = [];
        const stop = page.browser.on("Network.requestWillBeSent", ({ request }) => {
            if (request.postData && address.test(request.url)) bodies.push(JSON.parse(request.postData));
        });
        await work();
        stop();
        return bodies;
    };
    /** The field has the keyboard, is marked, and says why. @param {import("./page.js").Page} page @param {string} label @param {RegExp} why */
    const wrong = async (page, label, why) => {
        const field = `$field(${JSON.stringify(label)})`;
        await page.browser.until(`${field}.ariaInvalid === "true" && document.activeElement === ${field}`, `the keyboard in ${label}`);
        assert.match(await page.browser.evaluate(`${field}.getAttribute("aria-describedby").split(" ").map((id) => document.getElementById(id)?.innerText).join()`), why);
    };
    const inside = (words) => `[...document.querySelectorAll('section.waiting')].find((one) => one.innerText.includes('${words}'))`;

    test("a run is retried from a step that failed before it began, by the form, and members outside of the form stay", async () => {
        const { page, service, made } = context();
        const run = made.runs.partial;
        await at(`/console/runs/${run.id}?step=mail`);
        await page.reads("This step has not begun");
        await page.press("Retry from here");
        await page.reads("Everything from mail is repeated");
        await page.browser.evaluate("$field('With another input').click()");
        await page.fill("order", "A-2");
        await page.press("As JSON");
        await page.browser.until("$field('Input').value.includes('outside')", "the members outside of the form");
        await page.press("As a form");
        await page.fill("address", "ann");
        const [body] = await sent(page, /\/retry$/, async () => {
            await page.press("Retry", "dialog button");
            await page.browser.until("document.querySelector('.run-words .status')?.innerText.includes('completed')", "the end of the run");
        });
        const input = { order: "A-2", address: "ann", outside: { kept: true } };
        assert.deepEqual(body, { input_data: input, resume_from_step: "mail" });
        assert.deepEqual((await service.call("GET", `/runs/${run.id}`)).input_data, input);
        const steps = await service.call("GET", `/runs/${run.id}/steps`);
        assert.equal(steps.filter((one) => one.step_id === "read").length, 1, "a step before it was repeated");
    });

    test("a run is drawn with the version that it has executed, though there is a newer one", async () => {
        const { page, service } = context();
        const plan = (id) => ({ start_step: id, steps: { [id]: { id, agent_name: "demo-upper", input_mapping: { text: "x" } } } });
        await service.call("PUT", "/workflow-names/versioned", plan("first"));
        const run = await service.run("versioned", {});
        await service.call("PUT", "/workflow-names/versioned", plan("second"));
        await at(`/console/runs/${run.id}`);
        await page.sees(".box");
        assert.deepEqual(await page.browser.evaluate("[...document.querySelectorAll('.box')].map((box) => box.dataset.step)"), ["first"]);
        assert.match(await page.browser.evaluate("document.querySelector('.facts').innerText"), /Version\s+1/);
        await page.go("/console/runs?name=versioned&cols=run,version");
        await page.browser.until("document.querySelector('tr[data-row] td:last-child')?.innerText === '1'", "the version in the list");
    });

    test("an answer in the inbox leaves alone what was typed in others, and the history says who has answered", async () => {
        const { page, service, made } = context();
        await at("/console/approvals");
        const [one, other] = made.inbox.map((run) => inside(run.id));
        await page.browser.until(`Boolean(${one} && ${other})`, "both approvals");
        const ids = await page.browser.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)");
        assert.equal(new Set(ids).size, ids.length, "ids are there twice");
        for (const [section, words] of [[one, "of the first"], [other, "of the second"]]) {
            await page.browser.evaluate(`(() => { const field = ${section}.querySelector("input"); field.value = "${words}"; field.dispatchEvent(new Event("input", { bubbles: true })); })()`);
        }
        await page.browser.evaluate(`[...${one}.querySelectorAll("button")].find((button) => button.innerText === "Reject").click()`);
        // It keeps its place, so that the others keep theirs.
        await page.browser.until(`${one}?.innerText.includes("does not wait any more")`, "the answer");
        assert.equal(await page.browser.evaluate(`[...${one}.querySelectorAll("button")].every((button) => button.ariaDisabled === "true")`), true);
        assert.equal(await page.browser.evaluate(`${other}.querySelector("input").value`), "of the second");
        // One that comes meanwhile appears by itself, after all others.
        const late = await service.call("POST", "/workflow-names/inbox/execute", { input_data: {} });
        await page.browser.until(`Boolean(${inside(late.id)})`, "the new approval");
        assert.equal(await page.browser.evaluate(`[...document.querySelectorAll("section.waiting")].indexOf(${inside(late.id)}) === document.querySelectorAll("section.waiting").length - 1`), true);
        await page.press("Hide what is over (1)");
        await page.browser.until(`!${one}`, "the end of what is over");
        assert.equal(await page.browser.evaluate(`${other}.querySelector("input").value`), "of the second");
        await page.press("Answered");
        await page.reads("of the first");
        const row = await page.browser.evaluate("[...document.querySelectorAll('tr[data-row]')].find((row) => row.innerText.includes('of the first')).innerText");
        assert.match(row, /inbox[\s\S]*approve[\s\S]*rejected/);
        await page.go("/console");
        await page.reads("answers are waited for");
    });

    test("a quota that is no number is refused, and only what was changed is sent", async () => {
        const { page, service } = context();
        await service.call("POST", "/organizations", { id: "limited", name: "Limited", quotas: { agents: 5, workflows: 6 } });
        await at("/console/organisations/limited");
        await page.press("Edit");
        await page.fill("Agents", "1 000");
        await page.press("Store");
        await page.browser.until("document.querySelector('dialog .problem')?.innerText.includes('quotas.agents')", "what is wrong");
        await wrong(page, "Agents", /integer/);
        await page.fill("Agents", "7");
        const [body] = await sent(page, /organizations\/limited$/, async () => {
            await page.press("Store");
            await page.browser.until("!document.querySelector('dialog')", "the end of the dialog");
        });
        assert.deepEqual(body, { quotas: { agents: 7 } });
        const { quotas } = await service.call("GET", "/organizations/limited");
        assert.deepEqual([quotas.agents, quotas.workflows], [7, 6]);
        page.browser.complaints.splice(0);
    });

    test("what is deleted of an agent's settings is removed, and the copied command has the version that it changed", async () => {
        const { page, service } = context();
        const agent = await service.call("POST", "/agents", { name: "described", url: `${service.demo}/upper`, description: "to be removed", circuit_breaker_config: { failure_threshold: 3 } });
        await at(`/console/agents/${agent.id}`);
        await page.press("Edit");
        const settings = JSON.parse(await page.browser.evaluate("$field('Other members').value"));
        assert.equal(settings.description, "to be removed");
        const { description, circuit_breaker_config, ...rest } = settings;
        await page.fill("Other members", JSON.stringify(rest));
        await page.press("Store");
        await page.browser.until("!document.querySelector('dialog') && !document.body.innerText.includes('to be removed')", "the change");
        const stored = await service.call("GET", `/agents/${agent.id}`);
        assert.deepEqual([stored.description, stored.timeout_ms], [null, agent.timeout_ms]);
        await page.press("API");
        const commands = await page.browser.evaluate("[...document.querySelectorAll('dialog pre')].map((one) => one.innerText)");
        assert.ok(commands.some((one) => one.includes("-X PUT") && /-H 'if-match: "[^']+'/.test(one)), commands.join("\n"));
        await page.press("Close");
    });

    test("what was changed elsewhere while a form was open is not overwritten, and the form says so", async () => {
        const { page, service } = context();
        const path = { trigger: "/triggers", hook: "/webhooks", agent: "/agents" };
        const made = {
            trigger: await service.call("POST", path.trigger, { name: "shared trigger", kind: "schedule", workflow_name: "order", config: { cron: ["0 0 1 1 *"] } }),
            hook: await service.call("POST", path.hook, { name: "shared hook", url: `${service.demo}/hooks`, event_types: ["agent.*"] }),
            agent: await service.call("POST", path.agent, { name: "shared agent", url: `${service.demo}/upper` }),
        };
        const workflow = await service.call("PUT", "/workflow-names/shared", { start_step: "a", steps: { a: { id: "a", agent_name: "demo-upper", input_mapping: { text: "x" } } } });
        /** Opens a form, changes what it is about elsewhere, types and stores. @param {string} screen @param {() => Promise<any>} elsewhere @param {() => Promise<void>} type */
        const conflict = async (screen, elsewhere, type) => {
            await at(screen);
            if (!screen.endsWith("/edit")) await page.press("Edit");
            await elsewhere();
            await type();
            await page.press("Store");
            await page.reads("has changed since it was read");
            // Also another attempt, and what was typed is still there.
            await page.press("Store");
            await page.reads("has changed since it was read");
        };
        await conflict(`/console/triggers/${made.trigger.id}`, () => service.call("PUT", `${path.trigger}/${made.trigger.id}`, { priority: 9 }), () => page.fill("workflow_name", "mine"));
        assert.equal(await page.browser.evaluate("$field('workflow_name').value"), "mine");
        const trigger = await service.call("GET", `${path.trigger}/${made.trigger.id}`);
        assert.deepEqual([trigger.priority, trigger.workflow_name], [9, "order"]);
        await conflict(`/console/webhooks/${made.hook.id}`, () => service.call("PATCH", `${path.hook}/${made.hook.id}`, { event_types: ["run.failed"] }), () => page.fill("name", "mine"));
        const hook = await service.call("GET", `${path.hook}/${made.hook.id}`);
        assert.deepEqual([hook.event_types, hook.name], [["run.failed"], "shared hook"]);
        await conflict(`/console/agents/${made.agent.id}`, () => service.call("PUT", `${path.agent}/${made.agent.id}`, { description: "theirs" }), () => page.fill("Address", `${service.demo}/reverse`));
        const agent = await service.call("GET", `${path.agent}/${made.agent.id}`);
        assert.deepEqual([agent.description, agent.url], ["theirs", `${service.demo}/upper`]);
        const text = (/** @type {string} */ word) => JSON.stringify({ name: "shared", start_step: "a", steps: { a: { id: "a", agent_name: "demo-upper", input_mapping: { text: word } } } });
        await conflict(`/console/workflows/${workflow.id}/edit`, () => service.call("PUT", "/workflow-names/shared", { ...JSON.parse(text("theirs")), name: undefined }), async () => {
            await page.browser.until("document.querySelector('.lines textarea')?.value.includes('demo-upper')", "the definition");
            await page.fill("Definition as JSON", text("mine"));
            await page.reads("The definition is valid");
        });
        assert.equal((await service.call("GET", "/workflow-names/shared")).workflow_data.steps.a.input_mapping.text, "theirs");
        assert.equal(await page.browser.evaluate("document.querySelector('.lines textarea').value"), text("mine"));
        await page.browser.evaluate("document.querySelector('nav a').click()");
        page.browser.complaints.splice(0);
    });

    test("a run without a version is told by its steps, in the list and on its screen", async () => {
        const { page, service, made } = context();
        // As the reference deployment writes it.
        service.sql(`INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data, triggered_by, created_at, updated_at)
            VALUES ('run-of-another-program', 'none', 'elsewhere', 'FAILED', '{"a": 1}', 'sql', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC');
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at, completed_at) VALUES ('exec-elsewhere', 'run-of-another-program', 'only', 'only', 'an-agent', 'COMPLETED', '{}', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')`);
        assert.equal((await service.call("GET", "/runs/run-of-another-program")).workflow_version, null);
        await at("/console/runs/run-of-another-program?step=only");
        await page.reads("Its version of the definition is not known");
        await page.reads("an-agent");
        assert.match(await page.browser.evaluate("document.querySelector('.facts').innerText"), /Version\s+–/);
        for (const tab of ["timeline", "table", "log", "data", "lineage", "raw"]) {
            await page.go(`/console/runs/run-of-another-program?tab=${tab}`);
            await page.browser.until("document.querySelector('main h1') && !document.querySelector('.loading')", tab);
            assert.equal(await page.browser.evaluate("document.querySelector('main .problem')?.innerText ?? ''"), "", tab);
        }
        await page.go("/console/runs?name=elsewhere&cols=run,version");
        await page.browser.until("document.querySelector('tr[data-row] td:last-child')?.innerText === ''", "no version in the list");
        await page.go(`/console/compare?a=run-of-another-program&b=${made.runs.order.id}`);
        await page.reads("steps differ");
        page.browser.complaints.splice(0);
    });

    test("a name in the editor that a workflow cannot have is not ignored", async () => {
        const { page, made } = context();
        await at(`/console/workflows/${made.order.id}/edit`);
        await page.browser.until("document.querySelector('.lines textarea')?.value.includes('order')", "the definition");
        const text = await page.browser.evaluate("document.querySelector('.lines textarea').value");
        await page.fill("Definition as JSON", text.replace('"name": "order"', '"name": "another"'));
        await page.reads("The definition is valid");
        await page.press("Store");
        await page.reads("A workflow keeps its name, which is order");
        await page.fill("Definition as JSON", text);
    });

    test("what somebody else has stored meanwhile is shown beside one's own text, which can be stored or dropped", async () => {
        const { page, service } = context();
        const plan = (text) => ({ start_step: "a", steps: { a: { id: "a", agent_name: "demo-upper", input_mapping: { text } } } });
        const { id } = await service.call("PUT", "/workflow-names/edited-by-two", plan("at first"));
        const text = () => page.browser.evaluate("document.querySelector('.lines textarea').value");
        const edit = async (words) => {
            await at(`/console/workflows/${id}/edit`);
            await page.browser.until("document.querySelector('.lines textarea')?.value.includes('edited-by-two')", "the definition");
            const before = await text();
            await service.call("PUT", "/workflow-names/edited-by-two", plan(`theirs beside ${words}`));
            await page.fill("Definition as JSON", before.replace(/"text": ".*?"/, `"text": "${words}"`));
            await page.reads("The definition is valid");
            await page.press("Store");
            await page.reads("From what is stored now to this text");
            assert.match(await page.browser.evaluate("document.querySelector('.diff').innerText"), new RegExp(`theirs beside ${words}`));
        };
        await edit("mine");
        await page.press("Store this text all the same");
        await page.reads("edited-by-two is stored as version 3");
        await edit("dropped");
        await page.press("Edit what is stored now");
        await page.browser.until("!document.querySelector('.diff, .problem')", "the end of the differences");
        assert.match(await text(), /theirs beside dropped/);
        const texts = [1, 2, 3, 4].map(async (version) => (await service.call("GET", `/workflows/${id}/versions/${version}`)).workflow_data.steps.a.input_mapping.text);
        assert.deepEqual(await Promise.all(texts), ["at first", "theirs beside mine", "mine", "theirs beside dropped"]);
        page.browser.complaints.splice(0);
    });

    test("a tab that there is not is the first one, and what is not found has a heading", async () => {
        const { page, made } = context();
        await at(`/console/runs/${made.runs.order.id}?tab=nonsense`);
        await page.browser.until("document.querySelector('[role=tab][aria-selected=true]')?.innerText === 'Graph'", "the first tab");
        for (const path of ["runs/run-nothing", "workflows/nothing", "agents/nothing", "triggers/nothing", "webhooks/nothing", "webhooks/nothing/deliveries/nothing", "organisations/nothing"]) {
            await page.go(`/console/${path}`);
            await page.browser.until("document.querySelector('main .problem') && document.querySelector('main h1')", `the heading of ${path}`);
        }
        page.browser.complaints.splice(0);
    });

    test("an export that is given up says nothing", async () => {
        const { page } = context();
        await at("/console/runs");
        await page.press("Export");
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*page_size=100*", requestStage: "Response" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await page.press("CSV", "dialog button");
        await paused;
        await page.press("Close");
        await page.browser.until("!document.querySelector('dialog')", "the end of the dialog");
        await page.browser.call("Fetch.disable");
        await page.press("Keyboard help");
        await page.sees("dialog[open]");
        assert.equal(await page.browser.evaluate("document.querySelector('.said').innerText"), "");
        await page.press("Close");
    });

    test("a role of a token answers what is for it, and what needs another one says so", async () => {
        const { page, service } = context();
        const runs = {};
        for (const role of ["manager", "treasurer"]) {
            await service.call("PUT", `/workflow-names/for-${role}`, { start_step: "approve", steps: { approve: { id: "approve", type: "callback", input_mapping: { what: "one\ntwo", more: { a: 1 } },
                callback_config: { approval: { role } } } } });
            runs[role] = await service.call("POST", `/workflow-names/for-${role}/execute`, { input_data: {} });
        }
        await page.fresh();
        await page.signIn(service.token({ sub: "ann", role: "operator", roles: ["manager"] }), "/console/approvals?show=all");
        const [mine, other] = [inside(runs.manager.id), inside(runs.treasurer.id)];
        await page.browser.until(`Boolean(${mine} && ${other})`, "both approvals");
        const approve = (/** @type {string} */ section) => `[...${section}.querySelectorAll("button")].find((one) => one.innerText.startsWith("Approve"))`;
        assert.deepEqual(await page.browser.evaluate(`[${approve(other)}.ariaDisabled, ${approve(other)}.title]`), ["true", "Needs the role treasurer"]);
        await page.press("For my role");
        await page.browser.until(`${mine} && !${other}`, "only what is for this role");
        await page.browser.evaluate(`${approve(mine)}.click()`);
        await page.browser.until(`${mine}?.innerText.includes("does not wait any more")`, "the answer");
        await page.press("API");
        const commands = await page.browser.evaluate("[...document.querySelectorAll('dialog pre')].map((one) => one.innerText)");
        assert.ok(commands.every((one) => one.includes('-H "Authorization: Bearer $TOKEN"')), commands.join("\n"));
        assert.ok(commands.some((one) => one.includes("/callbacks/CALLBACK_TOKEN") && one.includes('{"approved":true}')), commands.join("\n"));
        await page.press("Close");
        await page.fresh();
    });

    test("an answer without a schema is any JSON, and what is no JSON is said at its field", async () => {
        const { page, service } = context();
        const { id } = await service.call("POST", "/workflow-names/asked/execute", { input_data: {} });
        await at(`/console/runs/${id}`);
        await page.fill("Answer", "[1,");
        await page.press("Answer", "button");
        await wrong(page, "Answer", /Line 1/);
        await page.fill("Answer", '["yes", 2]');
        const [body] = await sent(page, /callbacks/, async () => {
            await page.press("Answer", "button");
            await service.ended(id);
        });
        assert.deepEqual(body, ["yes", 2]);
    });

    test("a retry keeps what was typed, though somebody else retries, and says at the input what the service refuses", async () => {
        const { page, service } = context();
        await service.call("PUT", "/workflow-names/retried-by-two", { input_schema: { type: "object", properties: { order: { type: "string" }, address: { type: "string" }, id: { type: "integer" } } }, start_step: "read",
            steps: { read: { id: "read", agent_name: "demo-upper", input_mapping: { text: "x" }, next_step: "mail" }, mail: { id: "mail", agent_name: "demo-upper", input_mapping: { text: "${workflow.input.address}" } } } });
        const run = await service.run("retried-by-two", { order: "A-9" });
        // The definition comes after the dialog was opened.
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: `*/workflows/${run.workflow_definition_id}`, requestStage: "Request" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await at(`/console/runs/${run.id}?step=mail`);
        const { requestId } = await paused;
        await page.press("Retry");
        await page.browser.evaluate("$field('With another input').click()");
        await page.browser.until("$field('Input')?.value.includes('A-9')", "the input as JSON");
        await page.browser.call("Fetch.continueRequest", { requestId });
        await page.browser.call("Fetch.disable");
        await page.browser.until("$field('order')?.value === 'A-9'", "the form with the input");
        await page.fill("id", "1.5");
        await page.press("Retry", "dialog button");
        await wrong(page, "id", /no whole number/);
        await page.press("Close");
        await page.press("Retry from here");
        await page.browser.evaluate("$field('With another input').click()");
        await page.press("As JSON");
        await page.fill("Input", '{"order": 5, "address": "ann"}');
        await page.press("Retry", "dialog button");
        await wrong(page, "Input", /order: .*string/);
        await service.call("POST", `/runs/${run.id}/retry`, { input_data: { order: "theirs", address: "bob" } });
        await service.ended(run.id);
        await page.fill("Input", '{"address": "ann"}');
        await page.press("Retry", "dialog button");
        await page.browser.until("document.querySelector('dialog .problem')", "that it is retried already");
        assert.match(await page.browser.evaluate("$field('Input').value"), /ann/);
        await page.press("Close");
        page.browser.complaints.splice(0);
    });

    test("what is fired again after a time-out starts one run, and what is no JSON is said at its field", async () => {
        const { page, service } = context();
        const trigger = await service.call("POST", "/triggers", { name: "fired twice", kind: "schedule", workflow_name: "order", input: { order: "once" }, config: { cron: ["0 0 1 1 *"] } });
        await at(`/console/triggers/${trigger.id}`);
        await page.press("Fire now");
        await page.fill("Members that", "{");
        await page.press("Fire", "dialog button");
        await wrong(page, "Members that", /Line 1/);
        await page.fill("Members that", "");
        // The service has done it, but its answer does not arrive.
        await page.browser.call("Fetch.enable", { patterns: [{ urlPattern: "*/fire", requestStage: "Response" }] });
        const paused = page.browser.next("Fetch.requestPaused");
        await page.press("Fire", "dialog button");
        await page.browser.call("Fetch.failRequest", { requestId: (await paused).requestId, errorReason: "TimedOut" });
        await page.browser.call("Fetch.disable");
        await page.browser.until("document.querySelector('dialog .problem')?.innerText.includes('cannot be reached')", "the time-out");
        await page.press("Fire", "dialog button");
        await page.browser.until("location.pathname.startsWith('/console/runs/')", "the run");
        assert.equal((await service.call("GET", `/runs?trigger_id=${trigger.id}`)).items.length, 1);
        page.browser.complaints.splice(0);
    });

    test("of many questions some are shown, which is said, and a page is not turned away from what was typed without a question", async () => {
        const { page, service } = context();
        await service.call("POST", "/organizations", { id: "crowd", name: "Crowd" });
        const { key } = await service.call("POST", "/api-keys", { name: "crowd-admin", role: "admin", organization_id: "crowd" });
        const names = Array.from({ length: 51 }, (_, index) => `ask${index}`);
        await service.call("PUT", "/workflow-names/many", { start_step: "all", steps: { all: { id: "all", type: "fork_join", fork_join_config: { branches: Object.fromEntries(names.map((name) => [name, { steps: [name] }])) } },
            ...Object.fromEntries(names.map((id) => [id, { id, type: "callback", callback_config: { approval: {} } }])) } }, key);
        const { id } = await service.call("POST", "/workflow-names/many/execute", { input_data: {} }, key);
        await page.fresh();
        await page.signIn(key, `/console/runs/${id}`);
        await page.reads("50 of 51 are shown");
        await page.go("/console/approvals");
        await page.fill("Comment", "of the first page");
        page.leaves = false;
        await page.press("Next");
        assert.equal(await page.browser.evaluate("$field('Comment').value"), "of the first page");
        page.leaves = true;
        await page.press("Next");
        await page.browser.until("document.querySelectorAll('section.waiting').length === 1", "the second page");
        await page.fresh();
    });

    test("a dead letter that is about to be sent is read until it is", async () => {
        const { page, service } = context();
        const [id] = service.sql(`INSERT INTO dead_letters (id, topic, partition, record_offset, value, digest, bytes, reason, detail, status, redrive_at, resolved_at, resolved_by)
            VALUES (gen_random_uuid(), 'workflow.execution.requests', 0, 100007, convert_to('{"id": 9007199254740993}', 'UTF8'), sha256('7'), 30, 'invalid_content', 'x', 'redriving', now() + interval '1 day', now(), 'ann') RETURNING id`).split("\n");
        await at(`/console/dead-letters/${id}`);
        await page.reads("redriving");
        await page.reads("9007199254740993");
        service.sql(`UPDATE dead_letters SET status = 'redriven', redrive_at = NULL WHERE id = '${id}'`);
        await page.reads("redriven");
    });
}
