import { html, use } from "../parts/runtime.js";
import { Table } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { can, isOperator, needs, session } from "../parts/session.js";
import { bytes, duration } from "../parts/time.js";
import { prefix, root } from "../parts/api.js";
import { Facts, Head, Problem, Time } from "../parts/ui.js";

/** @type {Record<string, string>} */
const NAMES = { response_ms: "answers in", pending: "messages waiting", lag_seconds: "oldest waits", active: "runs driven", consumer_lag: "records behind" };

export function System() {
    const who = use(session);
    const health = useGet(can("runs:read") && isOperator() ? "/health/detailed" : "/health/ready");
    const storage = useGet(can("organizations:manage") ? "/system/storage" : null);
    const parts = health.data?.components ?? Object.fromEntries(Object.entries(health.data?.checks ?? {}).map(([name, status]) => [name, { status }]));
    const good = ["connected", "current", "running"];
    return html`<${Head} title="System"><button type="button" onClick=${() => (health.reload(), storage.reload())}>Read again</button></${Head}>
        <${Facts} items=${[["Version", who?.version], ["State", health.data?.status?.replaceAll("_", " ") ?? "…"], ["Up for", health.data?.uptime_seconds === undefined ? "–" : duration(health.data.uptime_seconds * 1000)],
            ["Service's time", html`<${Time} at=${health.data?.timestamp} absolute />`], ["API", html`<a href=${`${root}/docs`} target="_blank" rel="noreferrer">${prefix}</a>`]]} />
        <${Problem} error=${health.error} retry=${health.reload} />
        <ul class="tiles" aria-label="Parts">${Object.entries(parts).map(([name, part]) => html`<li key=${name} class="tile still"><span class=${`status ${good.includes(part.status) ? "s-COMPLETED" : "s-FAILED"}`}>
            <svg viewBox="0 0 12 12" aria-hidden="true"><path d=${good.includes(part.status) ? "M2 6.5 5 9.5 10 3" : "M3 3 9 9M9 3 3 9"} /></svg>${part.status}</span><strong>${name}</strong>
            <span class="faint">${Object.entries(part).filter(([key]) => key in NAMES).map(([key, value]) => `${NAMES[key]} ${key === "response_ms" ? duration(Number(value)) : key === "lag_seconds" ? duration(Number(value) * 1000) : value}`).join(", ")}
                ${part.pool ? `; ${part.pool.in_use} of ${part.pool.max} connections` : ""}</span></li>`)}</ul>
        ${can("organizations:manage") ? html`<${Storage} storage=${storage} />` : html`<p class="faint">Sizes of the tables: ${needs("organizations:manage")}.</p>`}`;
}

/** @param {{ storage: import("../parts/load.js").Loaded }} props */
function Storage({ storage }) {
    if (storage.error) return html`<${Problem} error=${storage.error} retry=${storage.reload} />`;
    if (!storage.data) return null;
    const { retention, tables, total_bytes: total } = storage.data;
    const daily = (/** @type {number | null} */ value, /** @type {(value: number) => string} */ words) => (value === null ? "–" : words(value));
    return html`<h2>Retention</h2><${Facts} items=${[["Ended runs are kept", retention.default_days ? `${retention.default_days} days` : "for ever"], ["Own settings", `${retention.organizations} organisations, ${retention.workflows} workflows`],
            ["Behind by", duration(retention.lag_seconds * 1000)], ["Last pass", html`<${Time} at=${retention.last_pass?.ended_at} />`], ["Deleted then", retention.last_pass?.runs ?? "–"],
            ["Next deletion", retention.next ? `${retention.next.runs} runs` : "none"], ["Archive", retention.archive ? retention.archive.error ?? retention.archive.location : "none"]]} />
        <h2>Tables <span class="faint">${bytes(total)}</span></h2><${Table} label="Tables" columns=${["Table", "Rows", "Size", "Indexes", "Large values", "Dead rows", "Rows a day", "Bytes a day"]}>
            ${tables.map((/** @type {any} */ table) => html`<tr data-row key=${table.name}><td class="mono">${table.name}</td><td class="number">${table.row_estimate.toLocaleString("en")}</td><td class="number">${bytes(table.bytes)}</td>
                <td class="number">${bytes(table.index_bytes)}</td><td class="number">${bytes(table.large_value_bytes)}</td><td class="number">${table.dead_row_estimate.toLocaleString("en")}</td>
                <td class="number">${daily(table.rows_per_day, (value) => Math.round(value).toLocaleString("en"))}</td><td class="number">${daily(table.bytes_per_day, bytes)}</td></tr>`)}</${Table}>`;
}
