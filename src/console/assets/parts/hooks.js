// Pure: what triggers and webhooks are made of, and what has become of them, in words.
import { exact } from "./text.js";
import { duration } from "./time.js";

/** A list of texts. @param {string} description @param {boolean} [rare] */
const lines = (description, rare = false) => ({ type: "array", items: { type: "string" }, description, "x-rare": rare });
/** @param {string} description @param {boolean} [rare] */
const text = (description, rare = false) => ({ type: "string", description, "x-rare": rare });
/** @param {string} description @param {boolean} [rare] */
const whole = (description, rare = false) => ({ type: "integer", description, "x-rare": rare });
/** @param {string} description @param {string[]} names @param {boolean} [rare] */
const choice = (description, names, rare = false) => ({ enum: names, description, "x-rare": rare });

/** Members of all triggers. */
export const TRIGGER = {
    type: "object", required: ["name", "workflow_name"], properties: {
        name: text("Unique in the organisation."),
        workflow_name: text("Workflow that it starts."),
        input: { type: "object", description: "Input of the runs as JSON, with references such as ${trigger.at}; empty: all that is known of the firing." },
        version: whole("Version of the workflow; empty: the newest one.", true),
        priority: whole("0 to 9; empty: 5.", true),
        note: text("For its owners.", true),
        labels: { type: "object", description: "Texts by name, as JSON.", "x-rare": true },
    },
};

/** The `config` of each kind that has a form; others are edited as JSON. @type {Record<string, any>} */
export const CONFIGS = {
    schedule: { type: "object", properties: {
        cron: lines("Cron expressions, one on each line, such as 0 9 * * 1."),
        every: text("Or a period as an ISO 8601 duration, such as PT15M."),
        time_zone: text("Name of the IANA database, such as Europe/Berlin; empty: UTC."),
        overlap: choice("If a run of it has not ended.", ["skip", "buffer_one", "buffer_all", "cancel_other", "allow"]),
        catch_up: choice("Of what was due while no process ran.", ["none", "latest", "all"], true),
        catch_up_window_seconds: whole("What was due longer ago is missed.", true),
        exclude: lines("Dates or cron expressions at which it does not fire.", true),
        start_at: text("Not before this time, such as 2027-01-01T00:00:00Z.", true),
        end_at: text("Not after this time.", true),
        jitter_seconds: whole("Each firing is late by up to this.", true),
        pause_after_failures: whole("Failed runs in a row after which it is paused; 0: never.", true),
        remaining: whole("Firings after which it ends; empty: no limit.", true),
        dst_gap: choice("Local times that do not exist.", ["next", "skip"], true),
        dst_fold: choice("Local times that exist twice.", ["auto", "first", "both"], true),
        anchor: text("Time from which the periods count.", true),
    } },
    kafka: { type: "object", required: ["topic"], properties: {
        topic: text("Topic whose records start runs."),
        filter: text("Condition such as ${trigger.value.kind} == 'order'; other records start no run."),
        format: choice("Of the values.", ["json", "text", "bytes_base64"], true),
        start: text("Where it begins: latest, earliest, or a time such as 2027-01-01T00:00:00Z.", true),
        idempotency: text("Expression whose value makes a record a repeat; empty: its place in the topic.", true),
        max_per_second: whole("Records a second; empty: no limit.", true),
        on_error: choice("If a record can start no run.", ["dead_letter", "stop"], true),
        group_id: text("Consumer group, which begins with wf-trigger-; empty: one of its own.", true),
    } },
    webhook: { type: "object", required: ["preset"], properties: {
        preset: choice("How deliveries are verified.", ["none", "github", "stripe", "slack", "standard", "hmac", "basic", "header"]),
        secrets: lines("One on each line, 3 at most; never shown. Empty in a change: those that are stored."),
        filter: text("Condition such as ${trigger.body.action} == 'opened'; other deliveries start no run."),
        header: text("hmac, header: name of the header with the signature or the secret.", true),
        prefix: text("hmac, header: text before it, such as sha256=.", true),
        algorithm: choice("hmac: hash function.", ["sha256", "sha512", "sha1"], true),
        encoding: choice("hmac: encoding of the signature.", ["hex", "base64"], true),
        signed: choice("hmac: what is signed.", ["{body}", "{timestamp}.{body}"], true),
        timestamp_header: text("hmac: name of the header with the time.", true),
        dedupe_header: text("Name of a header with the id of a delivery, for presets without an id.", true),
        dedupe: text("Or an expression such as ${trigger.body.id}.", true),
    } },
};

/** Outgoing webhooks. */
export const WEBHOOK = {
    type: "object", required: ["name", "url", "event_types"], properties: {
        name: text("For people."),
        url: text("Where deliveries are sent."),
        event_types: lines("One on each line: a type, a group such as run.*, or *."),
        workflow_names: lines("Only of these workflows; empty: all.", true),
        filter: text("Condition such as ${event.data.workflow.version} > 2.", true),
        payload: choice("full: with input and output of the run.", ["thin", "full"], true),
        ordering: choice("per_run: one after the other for each run.", ["none", "per_run"], true),
        headers: { type: "object", description: "Further headers as JSON; asterisks keep the stored value.", "x-rare": true },
        max_in_flight: whole("Deliveries at a time, 1 to 64; empty: 8.", true),
        rate_per_second: whole("Deliveries a second; empty: no limit.", true),
    },
};

/** Members that only a new webhook has. */
export const NEW_WEBHOOK = {
    ...WEBHOOK, properties: {
        ...WEBHOOK.properties,
        signature: choice("It cannot be changed later.", ["hmac", "ed25519"], true),
        secret: text("whsec_… or whsk_…; empty: a random one.", true),
    },
};

/** The status of a run that looks like what has become of a firing, a delivery or a webhook. @type {Record<string, string>} */
export const LOOKS = {
    started: "COMPLETED", present: "COMPLETED", failed_to_start: "FAILED", missed: "FAILED",
    delivered: "COMPLETED", failed: "FAILED", pending: "PENDING", held: "PENDING", success: "COMPLETED", status: "FAILED", timeout: "FAILED",
    network: "FAILED", not_allowed: "FAILED", healthy: "COMPLETED", failing: "FAILED", disabled: "CANCELLED", running: "RUNNING", completed: "COMPLETED",
    stopped: "CANCELLED",
};

/** Why a trigger is ill, in words. @param {any} health @returns {string} */
export function illness({ status, error, outcome, detail, reason, run_status: run }) {
    if (status !== "failing") return "";
    return error ?? (run === "FAILED" ? "its last run has failed" : `${named(outcome)}${detail || reason ? `: ${detail ?? named(reason)}` : ""}`);
}

/** When a trigger fires, in one line. @param {any} trigger @returns {string} */
export function when({ kind, config }) {
    switch (kind) {
        case "schedule": return `${[...(config.cron ?? []), ...(config.every ? [`every ${config.every}`] : [])].join("; ")}, ${config.time_zone}`;
        case "webhook": return `deliveries${config.preset === "none" ? " to its address" : ` of ${config.preset}`}${config.filter ? ` with ${config.filter}` : ""}`;
        default: return typeof config?.topic === "string" ? `records of ${config.topic}` : JSON.stringify(config);
    }
}

/** @type {Record<string, string>} */
const FURTHER = { queue: "further ones wait", skip: "further ones are skipped", drop: "further ones are dropped", cancel_running: "the oldest ones are cancelled" };

/** Limits of a workflow in words. @param {any} item @returns {[string, string][]} */
export function limitWords(item) {
    const { concurrency: room, throttle: rate, debounce: quiet, deadline_seconds: deadline, silence_hours: silence } = item;
    const by = (/** @type {any} */ stage) => (stage.key ? ` for each ${stage.key}` : "");
    /** @type {[string, string][]} */
    const words = [];
    if (room) words.push(["At a time", `${room.limit} ${room.limit === 1 ? "run" : "runs"}${by(room)}; ${FURTHER[room.policy ?? "queue"]}`]);
    if (rate) words.push(["Rate", `${rate.limit} in ${duration(rate.period_seconds * 1000)}${rate.burst > 1 ? `, ${rate.burst} at once` : ""}${by(rate)}; ${FURTHER[rate.policy ?? "queue"]}`]);
    if (quiet) words.push(["Debounce", `after ${duration(quiet.period_seconds * 1000)} without a start${by(quiet)}${quiet.max_wait_seconds ? `, ${duration(quiet.max_wait_seconds * 1000)} at most` : ""}`]);
    if (deadline) words.push(["Deadline", `${duration(deadline * 1000)}${item.deadline_action === "cancel" ? ", then it is cancelled" : ", then an event tells of it"}`]);
    if (silence) words.push(["Silence", `an event after ${silence} h without a completed run`]);
    return words;
}

/** @param {string} name */
export const named = (name) => name.replaceAll("_", " ");

/** The problems that the service has found in members of an object, by member; "" for the rest. @param {any} error @param {string} prefix
 * @returns {Record<string, string>} */
export function problemsOf(error, prefix) {
    /** @type {Record<string, string>} */
    const found = {};
    for (const { field, message } of error?.errors ?? []) {
        if (typeof field === "string" && field.startsWith(`${prefix}.`)) found[field.slice(prefix.length + 1).split(/[.[]/)[0] ?? ""] = message;
    }
    return found;
}

/** What the service has found in a member of a body, or in a part of it. @param {any} error @param {string} member @returns {string | undefined} */
export function problemOf(error, member) {
    const name = `body.${member}`;
    return error?.errors?.find((/** @type {any} */ { field }) => field === name || field?.startsWith(`${name}.`) || field?.startsWith(`${name}[`))?.message;
}

/** What the service does not show again. */
const SECRETS = ["secret", "secrets", "auth_config", "headers"];

/** The body of a call without secrets. @param {import("./api.js").Call} call */
export function masked({ url, body }) {
    if (!body || !/\/(agents|triggers|webhooks)(\/|$)/.test(url)) return body;
    const hide = (/** @type {unknown} */ value) => JSON.parse(JSON.stringify(value, (_, inner) => (typeof inner === "string" ? "SECRET" : inner)));
    return JSON.stringify(exact(body), (name, value) => (SECRETS.includes(name) ? hide(value) : value));
}
