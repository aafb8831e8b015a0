import { html, use } from "../parts/runtime.js";
import { Table } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { can, isOperator, needs, session } from "../parts/session.js";
import { bytes, duration, figure } from "../parts/time.js";
import { prefix, root } from "../parts/api.js";
import { Facts, Head, Problem, Status, Time } from "../parts/ui.js";

/** @type {Record<string, string>} */
const NAMES = { response_ms: "answers in", pending: "messages waiting", lag_seconds: "oldest waits", active: "runs driven", consumer_lag: "records behind" };
/** @type {Record<string, string>} */
const GROUPS = { requests: "Requests", rates: "Rates, of one process", lists: "Lists", streams: "Streams", organization: "This organisation", runs: "Runs" };

export function System() {
    const who = use(session);
    // A key that is bound to workflows sees only these and their runs.
    const isBound = Boolean(who?.workflows);
    const manages = can("organizations:manage") && isOperator() && !isBound;
    const health = useGet(can("runs:read") && isOperator() && !isBound ? "/health/detailed" : "/health/ready");
    const processes = useGet(manages ? "/system/processes" : null);
    const limits = useGet(can("runs:read") && !isBound ? "/system/limits" : null);
    const storage = useGet(manages ? "/system/storage" : null);
    // Also what is not ready says what it lacks, with 503.
    const state = health.error?.body ?? health.data;
    const parts = state?.components ?? Object.fromEntries(Object.entries(state?.checks ?? {}).map(([name, status]) => [name, { status }]));
    const good = ["connected", "current", "running"];
    return html`<${Head} title="System"><button type="button" onClick=${() => [health, processes, limits, storage].forEach((one) => one.reload())}>Read again</button></${Head}>
        <${Facts} items=${[["Version", who?.version], ["State", state?.status?.replaceAll("_", " ") ?? (health.error ? "–" : "…")], ["Up for", health.data?.uptime_seconds === undefined ? "–" : duration(health.data.uptime_seconds * 1000)],
            ["Service's time", html`<${Time} at=${state?.timestamp} absolute />`], ["API", html`<a href=${`${root}/docs`} target="_blank" rel="noreferrer">${prefix}</a>`]]} />
        <${Problem} error=${health.error} retry=${health.reload} />
        <ul class="tiles" aria-label="Parts">${Object.entries(parts).map(([name, part]) => html`<li key=${name} class="tile still"><${Status} status=${part.status} as=${good.includes(part.status) ? "COMPLETED" : "FAILED"} /><strong>${name}</strong>
            <span class="faint">${Object.entries(part).filter(([key]) => key in NAMES).map(([key, value]) => `${NAMES[key]} ${key === "response_ms" ? duration(Number(value)) : key === "lag_seconds" ? duration(Number(value) * 1000) : value}`).join(", ")}
                ${part.pool ? `; ${part.pool.in_use} of ${part.pool.max} connections` : ""}</span></li>`)}</ul>
        ${manages ? html`<${Processes} processes=${processes} />` : html`<p class="faint">Processes and sizes of the tables: ${needs("organizations:manage")}, in the default organisation.</p>`}
        <${Limits} limits=${limits} />${manages && html`<${Storage} storage=${storage} />`}`;
}

/** @param {{ processes: import("../parts/load.js").Loaded }} props */
function Processes({ processes: { data, error, reload } }) {
    if (!data) return html`<${Problem} error=${error} retry=${reload} />`;
    const { schema, items } = data;
    const versions = new Set(items.map((/** @type {any} */ one) => one.version));
    return html`<h2>Processes</h2>${versions.size > 1 && html`<p class="banner">They are of different versions, as during an update.</p>`}
        <${Table} label="Processes" columns=${["Role", "State", "Host", "Version", "Started", "Heartbeat", "Runs driven", "Records behind", "Id"]}>${items.map((/** @type {any} */ one) => html`<tr data-row key=${one.id}>
            <td>${one.role}${one.has_answered ? html` <span class="faint">has answered</span>` : ""}</td><td><${Status} status=${one.is_alive ? "alive" : "silent"} as=${one.is_alive ? "COMPLETED" : "FAILED"} /></td><td>${one.host ?? "–"}</td><td>${one.version ?? "–"}</td>
            <td><${Time} at=${one.started_at} /></td><td><${Time} at=${one.heartbeat_at} /></td><td class="number">${one.active_runs ?? "–"}</td><td class="number">${one.consumer_lag ?? "–"}</td><td class="mono" title=${one.id}>…${one.id.slice(-12)}</td></tr>`)}</${Table}>
        <${Facts} items=${[["Migration", html`<span class="mono">${schema.version}</span>`], ["Run", html`<${Time} at=${schema.changed_at} absolute />`],
            ["Not run yet", schema.pending ? html`<span class="bad">${schema.pending}</span>` : "none"], ["Of a newer program", schema.unknown || "none"]]} />`;
}

/** @param {{ value: number | null, unit: string }} limit */
function amount({ value, unit }) {
    if (value === null) return "none";
    return unit === "bytes" ? bytes(value) : unit === "milliseconds" ? duration(value) : unit === "per_minute" ? `${figure(value)} a minute` : figure(value);
}

/** @param {{ limits: import("../parts/load.js").Loaded }} props */
function Limits({ limits: { data, error, reload } }) {
    if (!data) return html`<${Problem} error=${error} retry=${reload} />`;
    return html`<h2>Limits <span class="faint">as the answering process has them</span></h2>
        <${Table} label="Limits" columns=${["Limit", "Of", "Value", "Setting"]}>${data.items.map((/** @type {any} */ one) => html`<tr data-row key=${`${one.group} ${one.name}`}>
            <td>${one.description}</td><td>${GROUPS[one.group] ?? one.group}</td><td class="number">${amount(one)}</td><td class="mono">${one.setting ?? "–"}</td></tr>`)}</${Table}>`;
}

/** @param {{ storage: import("../parts/load.js").Loaded }} props */
function Storage({ storage: { data, error, reload } }) {
    if (!data) return html`<${Problem} error=${error} retry=${reload} />`;
    const { retention, tables, total_bytes: total } = data;
    const daily = (/** @type {number | null} */ value, /** @type {(value: number) => string} */ words) => (value === null ? "–" : words(value));
    return html`<h2>Retention</h2><${Facts} items=${[["Ended runs are kept", retention.default_days ? `${retention.default_days} days` : "for ever"], ["Own settings", `${retention.organizations} organisations, ${retention.workflows} workflows`],
            ["Behind by", duration(retention.lag_seconds * 1000)], ["Last pass", html`<${Time} at=${retention.last_pass?.ended_at} />`], ["Deleted then", retention.last_pass?.runs ?? "–"],
            ["Next deletion", retention.next ? `${retention.next.runs} runs` : "none"], ["Archive", retention.archive ? retention.archive.error ?? retention.archive.location : "none"]]} />
        <h2>Tables <span class="faint">${bytes(total)}</span></h2><${Table} label="Tables" columns=${["Table", "Rows", "Size", "Indexes", "Large values", "Dead rows", "Rows a day", "Bytes a day"]}>
            ${tables.map((/** @type {any} */ table) => html`<tr data-row key=${table.name}><td class="mono">${table.name}</td><td class="number">${figure(table.row_estimate)}</td><td class="number">${bytes(table.bytes)}</td>
                <td class="number">${bytes(table.index_bytes)}</td><td class="number">${bytes(table.large_value_bytes)}</td><td class="number">${figure(table.dead_row_estimate)}</td>
                <td class="number">${daily(table.rows_per_day, figure)}</td><td class="number">${daily(table.bytes_per_day, bytes)}</td></tr>`)}</${Table}>`;
}
