// A whole service with authentication, as `workflow-api dev` starts it, filled with what the screens show.
import { execFileSync, spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What somebody could try to be executed, wherever a text of theirs is shown. */
export const ATTACK = `<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>"'><svg onload=window.hacked=1> javascript:window.hacked=1`;

/** A port that nobody uses. @returns {Promise<number>} */
function freePort() {
    return new Promise((resolve, reject) => {
        const server = createServer().on("error", reject).listen(0, "127.0.0.1", () => {
            const { port } = server.address();
            server.close(() => resolve(port));
        });
    });
}

/** The folder of PostgreSQL's programs. */
function psql() {
    const versions = existsSync("/usr/lib/postgresql") ? readdirSync("/usr/lib/postgresql").sort((a, b) => Number(b) - Number(a)) : [];
    const found = versions.map((version) => `/usr/lib/postgresql/${version}/bin/psql`).find((path) => existsSync(path));
    return found ?? "psql";
}

/** Until there is a result. @template T @param {string} what @param {() => Promise<T | undefined | null | false>} look @returns {Promise<T>} */
export async function until(what, look) {
    for (const begun = performance.now(); performance.now() - begun < 180_000; await new Promise((resolve) => setTimeout(resolve, 50))) {
        const found = await look();
        if (found) return found;
    }
    throw new Error(`${what} did not come`);
}

export class Service {
    /** @param {string} program @param {boolean} [isOpen] without authentication @returns {Promise<Service>} */
    static async start(program, isOpen = false) {
        const service = new Service();
        service.folder = mkdtempSync(join(tmpdir(), "console-service-"));
        const key = execFileSync(program, ["api-key"], { encoding: "utf8" }).match(/wf_\S+/)?.[0];
        service.key = key;
        // On a machine that has other work too, what is slow is not yet a failure.
        service.secret = randomBytes(32).toString("hex");
        const env = { ...process.env, DATABASE_ACQUIRE_TIMEOUT_MS: "8000", ...(isOpen ? {} : { JWT_SECRET: service.secret, BOOTSTRAP_API_KEY: key }), API_PORT: String(await freePort()) };
        service.child = spawn(program, ["dev", "--data-dir", join(service.folder, "dev")], { env, stdio: ["ignore", "pipe", "pipe"], cwd: service.folder });
        service.said = "";
        await new Promise((resolve, reject) => {
            const read = (chunk) => {
                service.said += chunk;
                if (/^Open$/m.test(service.said)) resolve(undefined);
            };
            service.child.stdout.on("data", read);
            service.child.stderr.on("data", read);
            service.child.on("exit", () => reject(new Error(`workflow-api dev ended:\n${service.said}`)));
        });
        service.url = service.said.match(/^API +(http\S+)/m)?.[1];
        service.demo = service.said.match(/^Demo agent +(http\S+)/m)?.[1];
        const [, address, database] = service.said.match(/^PostgreSQL +(127\S+), database (\w+)/m) ?? [];
        service.database = `postgresql://workflow_user@${address}/${database}`;
        service.password = readFileSync(join(service.folder, "dev/postgres.password"), "utf8").trim();
        return service;
    }

    /** A token with these claims. @param {any} claims */
    token(claims) {
        const part = (/** @type {any} */ value) => Buffer.from(JSON.stringify(value)).toString("base64url");
        const text = `${part({ alg: "HS256" })}.${part({ exp: Math.floor(Date.now() / 1000) + 3600, ...claims })}`;
        return `${text}.${createHmac("sha256", this.secret).update(text).digest("base64url")}`;
    }

    /** The answer of the API, or its error. */
    async call(method, path, body, key = this.key) {
        const response = await fetch(`${this.url}/api/v1${path}`, { method, headers: { "x-api-key": key, "content-type": "application/json" },
            body: body === undefined ? undefined : JSON.stringify(body) });
        const answer = await response.json();
        if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`);
        return answer;
    }

    /** A run that has come to this state; the service itself waits for the end. */
    async run(name, input, key) {
        const response = await fetch(`${this.url}/api/v1/workflow-names/${name}/execute`, { method: "POST",
            headers: { "x-api-key": key ?? this.key, "content-type": "application/json", prefer: "wait=20" }, body: JSON.stringify({ input_data: input }) });
        const run = await response.json();
        if (!response.ok) throw new Error(JSON.stringify(run));
        return run;
    }

    /** Waits for the end of a run: the event stream tells it. One that breaks off is resumed, as browsers do. @param {string} id */
    async ended(id) {
        let last = "";
        for (let turn = 0; turn < 100; turn++) {
            const response = await fetch(`${this.url}/api/v1/runs/${id}/events${last && `?last_event_id=${last}`}`, { headers: { "x-api-key": this.key } });
            const text = await response.text();
            if (text.includes("event: end")) return;
            last = [...text.matchAll(/^id: (\d+)$/gm)].at(-1)?.[1] ?? last;
        }
        throw new Error(`the stream of ${id} does not end`);
    }

    /** @param {string} query */
    sql(query) {
        return execFileSync(psql(), [this.database, "-v", "ON_ERROR_STOP=1", "-qAtc", query], { encoding: "utf8", env: { ...process.env, PGPASSWORD: this.password } }).trim();
    }

    async stop() {
        const ended = new Promise((resolve) => this.child.on("exit", resolve));
        this.child.kill("SIGTERM");
        await ended;
        rmSync(this.folder, { recursive: true, force: true });
    }
}

export const step = (id, agent, input, next) => ({ id, agent_name: agent, input_mapping: input, ...(next ? { next_step: next } : {}) });

/** Definitions, runs in all states, a dead letter, another organisation. @param {Service} service */
export async function fill(service) {
    const put = (name, body) => service.call("PUT", `/workflow-names/${name}`, body);
    const many = Object.fromEntries(Array.from({ length: 2000 }, (_, index) => [`s${index}`, { id: `s${index}`, type: "wait", wait_config: { duration_seconds: 0 },
        ...(index < 1999 ? { next_step: `s${index + 1}` } : {}) }]));
    const long = await put("long", { start_step: "s0", steps: many });
    // Before anybody wants their events.
    service.sql(`INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data, triggered_by, created_at, updated_at, completed_at, organization_id)
        SELECT 'run-many-' || n, '${long.id}', 'many', '${long.id}', 'COMPLETED', '{}', 'sql', now() AT TIME ZONE 'UTC' - n * interval '1 second', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', 'default'
            FROM generate_series(1, 10000) n`);
    // It goes on while the others are made; who needs its end waits for it.
    const longRun = await service.call("POST", "/workflow-names/long/execute", { input_data: {} });
    const hooks = {
        good: await service.call("POST", "/webhooks", { name: `receiver ${ATTACK}`, url: `${service.demo}/hooks`, event_types: ["run.*"], headers: { "x-team": "console" } }),
        bad: await service.call("POST", "/webhooks", { name: "refused", url: `${service.demo}/there-is-none`, event_types: ["run.failed"], filter: `\${event.data.status} != '<b>'` }),
        off: await service.call("POST", "/webhooks", { name: "switched off", url: `${service.demo}/hooks`, event_types: ["agent.*"], enabled: false }),
    };
    const broken = await service.call("POST", "/agents", { name: "broken", url: `${service.demo}/upper?fail=503`, description: ATTACK,
        retry_config: { max_retries: 1, initial_delay_ms: 100, max_delay_ms: 1000 } });
    const schema = { type: "object", required: ["order"], properties: { order: { type: "string", description: ATTACK }, amount: { type: "number" },
        channel: { enum: ["web", "shop"] }, "<b>odd</b>": { type: "string" } } };
    const order = await put("order", { description: "Checks and ships", input_schema: schema, start_step: "checks", steps: {
        checks: { id: "checks", type: "fork_join", next_step: "ship", fork_join_config: { branches: { stock: { steps: ["stock"] }, credit: { steps: ["credit"] } } } },
        stock: step("stock", "demo-upper", { text: "${workflow.input.order}" }), credit: step("credit", "demo-count", { text: "a b" }),
        ship: step("ship", "demo-reverse", { text: "${workflow.input.order}" }) } });
    // Fails without the member, and succeeds with it.
    const repairable = await put("repairable", { start_step: "read", steps: { read: step("read", "demo-upper", { text: "x" }, "mail"),
        mail: step("mail", "demo-upper", { text: "${workflow.input.address}" }) } });
    const approval = await put("approval", { start_step: "approve", steps: {
        approve: { id: "approve", type: "callback", next_step: "pay", input_mapping: { question: `Pay? ${ATTACK}` }, callback_config: { approval: { role: "admin" } } },
        pay: step("pay", "demo-count", { text: "paid" }) } });
    const hostile = await put("hostile", { description: ATTACK, start_step: "ask", steps: {
        ask: step("ask", "demo-upper", { text: "${workflow.input.text}", [ATTACK.slice(0, 60)]: ATTACK }, "fail"),
        fail: { id: "fail", type: "conditional", condition: { expression: "${ask.output.text} > 5" }, if_true_step: "never" },
        never: step("never", "demo-upper", { text: "x" }) } });
    const failing = await put("failing", { start_step: "mail", steps: { mail: step("mail", "broken", { text: ATTACK }) } });
    await put("order", { description: ATTACK, input_schema: schema, start_step: "stock", steps: { stock: step("stock", "demo-upper", { text: "${workflow.input.order}" }) } });
    // As above, with a form; the run has a member that the form does not have.
    await put("partial", { input_schema: { type: "object", properties: { order: { type: "string" }, address: { type: "string" } } }, start_step: "read",
        steps: { read: step("read", "demo-upper", { text: "x" }, "mail"), mail: step("mail", "demo-upper", { text: "${workflow.input.address}" }) } });
    await put("inbox", { start_step: "approve", steps: { approve: { id: "approve", type: "callback", input_mapping: { what: ATTACK }, callback_config: { approval: { role: "admin" } } } } });
    await put("asked", { start_step: "ask", steps: { ask: { id: "ask", type: "callback" } } });
    await service.call("POST", "/agents", { name: "speaker", url: `${service.demo}/upper?task_ms=1500` });
    await put("spoken", { start_step: "say", steps: { say: step("say", "speaker", { text: "${workflow.input.text}" }) } });
    await service.call("POST", "/agents", { name: "short speaker", url: `${service.demo}/upper?task_ms=300` });
    await put("brief", { start_step: "say", steps: { say: step("say", "short speaker", { text: "${workflow.input.text}" }) } });
    const inbox = [];
    for (const name of ["inbox", "inbox", "asked"]) inbox.push(await service.call("POST", `/workflow-names/${name}/execute`, { input_data: {} }));
    const [first, other, repaired, partial, attacked, failed] = await Promise.all([
        service.run("order", { order: "A-1", amount: 12.5, channel: "web" }), service.run("order", { order: "B-2" }), service.run("repairable", {}),
        service.run("partial", { order: "A-1", outside: { kept: true } }), service.run("hostile", { text: ATTACK, [ATTACK.slice(0, 40)]: [ATTACK] }), service.run("failing", {})]);
    const runs = { order: first, other, repairable: repaired, partial, hostile: attacked, failing: failed, long: longRun,
        approval: await service.call("POST", "/workflow-names/approval/execute", { input_data: { what: ATTACK } }),
        rejected: await service.call("POST", "/workflow-names/approval/execute", { input_data: {} }),
    };
    const cancelled = await service.call("POST", "/workflow-names/approval/execute", { input_data: {} });
    runs.cancelled = await service.call("POST", `/runs/${cancelled.id}/cancel`, { reason: ATTACK });
    // One run holds the only place, the other one waits for it.
    await put("limited", { description: ATTACK, start_step: "rest", steps: { rest: { id: "rest", type: "wait", wait_config: { duration_seconds: 86_400 } } },
        concurrency: { key: "${workflow.input.customer}", limit: 1 }, throttle: { limit: 100, period_seconds: 60, burst: 50 }, deadline_seconds: 3600, deadline_action: "notify", silence_hours: 24 });
    runs.holding = await service.call("POST", "/workflow-names/limited/execute", { input_data: { customer: "<b>acme</b>" } });
    runs.held = await service.call("POST", "/workflow-names/limited/execute", { input_data: { customer: "<b>acme</b>" } });
    const triggers = {
        nightly: await service.call("POST", "/triggers", { name: `nightly ${ATTACK}`, kind: "schedule", workflow_name: "order", note: ATTACK, labels: { "<b>team</b>": ATTACK },
            input: { order: "${trigger.at}", text: ATTACK }, config: { cron: ["0 3 * * *", "0 4 * * *"], time_zone: "Europe/Berlin", exclude: ["2030-12-25"] } }),
        paused: await service.call("POST", "/triggers", { name: "paused one", kind: "schedule", workflow_name: "nothing", enabled: false, note: `until ${ATTACK}`, config: { every: "PT1H" } }),
        incoming: await service.call("POST", "/triggers", { name: "incoming", kind: "webhook", workflow_name: "order", input: { order: "${trigger.body.order}" },
            config: { preset: "github", secrets: ["a secret of the test"], filter: "${trigger.body.order} != '<b>'" } }),
    };
    await fetch(`${service.url}/api/v1/hooks/default/incoming`, { method: "POST", headers: { "content-type": "application/json", "x-hub-signature-256": `sha256=${"0".repeat(64)}`, "x-github-delivery": "1" }, body: "{}" });
    const delivery = await until("a delivery", async () => (await service.call("GET", `/webhooks/${hooks.bad.id}/deliveries`)).items[0]);
    service.sql(`INSERT INTO dead_letters (id, topic, partition, record_offset, key, value, headers, digest, bytes, reason, detail, copy_at)
        VALUES (gen_random_uuid(), 'workflow.execution.requests', 0, 100000, 'k', convert_to($$${JSON.stringify({ broken: ATTACK })}$$, 'UTF8'),
            jsonb_build_array(jsonb_build_array('${"<b>h</b>"}', 'aGk=')), sha256('1'), 300, 'invalid_content', $$${ATTACK}$$, NULL)`);
    await service.call("POST", "/organizations", { id: "acme", name: "Acme <b>" });
    const acme = await service.call("POST", "/api-keys", { name: "acme-admin", role: "admin", organization_id: "acme" });
    const viewer = await service.call("POST", "/api-keys", { name: "viewer <i>", role: "viewer" });
    return { hooks, triggers, delivery: delivery.id, broken, order, repairable, approval, hostile, failing, long, inbox: inbox.slice(0, 2), runs, acme: acme.key, viewer: viewer.key };
}
