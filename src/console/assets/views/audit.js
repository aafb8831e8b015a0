import { html, use, useState } from "../parts/runtime.js";
import { address, api } from "../parts/api.js";
import { Between, choices, PagedTable, useFilters, usePage } from "../parts/list.js";
import { utc } from "../parts/settings.js";
import { zoneName } from "../parts/time.js";
import { Action, Dialog, Facts, Head, Json, say, Time } from "../parts/ui.js";
import { Difference } from "./compare.js";

const NAMES = ["user_id", "action", "entity_type", "entity_id", "outcome", "correlation_id", "created_after", "created_before"];
const TYPES = ["agent", "workflow", "run", "trigger", "api_key", "organization", "dead_letter", "webhook", "session", "saved_view", "request"];
const OUTCOMES = ["success", "denied"];

export function Audit() {
    const { asked, change, filter } = useFilters(NAMES);
    const loaded = usePage("/audit-logs", { query: { ...asked, page_size: 50 } });
    const [entry, setEntry] = useState(/** @type {any} */ (null));
    const [verified, setVerified] = useState(/** @type {any} */ (null));
    const verify = async () => {
        /** @type {any} */
        let result = null;
        let [entries, seals] = [0, 0];
        do {
            const query = result ? { from_seal: result.checked_to_seal + 1 } : {};
            result = await api("GET", "/audit-logs/verify", { query });
            entries += result.entries;
            seals += result.seals;
        } while (result.valid && !result.complete);
        setVerified({ ...result, entries, seals });
        say(result.valid ? "The audit trail is unchanged" : "The audit trail has been changed", !result.valid);
    };
    return html`<${Head} title="Audit"><${Action} kind="primary" permission="audit:read" onClick=${verify}>Verify the chain</${Action}>
            <a class="button quiet" download="audit.csv" href=${address("/audit-logs/export", { query: { ...asked, format: "csv" } })}>Export CSV</a></${Head}>
        <div aria-live="polite">${verified && html`<div class=${verified.valid ? "card good" : "problem"}><strong>${verified.valid ? "Unchanged." : "Changed!"}</strong>
            ${` ${verified.entries} entries in ${verified.seals} seals checked, ${verified.unsealed} not sealed yet.`}
            ${verified.head && html`<div class="faint">Head <span class="mono break">${verified.head}</span></div>`}
            ${verified.problems.map((/** @type {any} */ problem, /** @type {number} */ index) => html`<div key=${index} class="bad">${problem.kind.replaceAll("_", " ")} ${problem.entry_id ?? ""} ${problem.seal !== null ? `seal ${problem.seal}` : ""}</div>`)}</div>`}</div>
        <div class="filters" role="search">${filter("user_id", "Who", undefined, true)}${filter("action", "Action")}${filter("entity_type", "What", choices(TYPES))}${filter("entity_id", "Its id")}
            ${filter("outcome", "Outcome", choices(OUTCOMES))}${filter("correlation_id", "Request")}<${Between} after=${asked["created_after"]} before=${asked["created_before"]} change=${change} /></div>
        <${PagedTable} loaded=${loaded} label="Audit trail" what="entries" columns=${[`Time (${zoneName(use(utc))})`, "Who", "Action", "What", "Name", "Outcome", "From"]}
            row=${(/** @type {any} */ one) => html`<tr data-row key=${one.id}><td><button type="button" class="link" onClick=${() => setEntry(one)}><${Time} at=${one.created_at} absolute /></button></td>
                <td>${one.user_id ?? ""}</td><td>${one.action}</td><td>${one.entity_type.replaceAll("_", " ")}</td><td><span class="clip">${one.entity_name ?? one.entity_id}</span></td>
                <td class=${one.outcome === "success" ? "" : "bad"}>${one.outcome}</td><td class="mono">${one.address ?? ""}</td></tr>`} />
        ${entry && html`<${Dialog} title=${`${entry.action} ${entry.entity_type}`} wide onClose=${() => setEntry(null)}>
            <${Facts} items=${[["Time", html`<${Time} at=${entry.created_at} absolute />`], ["Who", entry.user_id ?? "–"], ["Outcome", entry.outcome], ["Entity", html`<span class="mono">${entry.entity_id}</span>`],
                ["Request", entry.correlation_id ?? "–"], ["Key", entry.key_id ?? "–"], ["Address", entry.address ?? "–"]]} />
            ${entry.before && entry.after ? html`<${Difference} before=${entry.before} after=${entry.after} />` : html`<${Json} value=${entry.after ?? entry.before} label="Content" />`}</${Dialog}>`}`;
}
