import { html, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Finish, jsonOf, Sure, Text, useBlame } from "../parts/form.js";
import { choices, PagedTable, useFilters, usePage } from "../parts/list.js";
import { useEvery, useGet } from "../parts/load.js";
import { to } from "../parts/router.js";
import { parsed, pretty } from "../parts/text.js";
import { bytes } from "../parts/time.js";
import { Action, Dialog, Empty, Facts, Head, Json, Pending, say, Status, Time } from "../parts/ui.js";

const REASONS = ["empty", "invalid_json", "invalid_message", "unknown_kind", "invalid_content", "invalid_plan", "too_large", "refused_by_database", "record_unreadable",
    "expression_failed", "workflow_not_found", "workflow_not_active", "input_not_resolved", "input_invalid", "chain_too_long"];
/** While one is about to be sent again. */
const LOOK_MS = 2000;
const STATUSES = ["open", "redriving", "redriven", "discarded"];

export function DeadLetters() {
    const { asked, filter, isFiltered } = useFilters(["status", "reason", "topic", "run_id"]);
    const loaded = usePage("/dead-letters", { query: { ...asked, page_size: 50 } });
    useEvery(Boolean(loaded.data?.items.some((/** @type {any} */ letter) => letter.status === "redriving")), LOOK_MS, loaded.reload);
    return html`<${Head} title="Dead letters" /><div class="filters" role="search">${filter("run_id", "Run", undefined, true)}
        ${filter("status", "Status", choices(STATUSES))}${filter("reason", "Reason", choices(REASONS))}${filter("topic", "Topic")}</div>
        <${PagedTable} loaded=${loaded} label="Dead letters" what="dead letters" columns=${["Record", "Status", "Reason", "Run", "Size", "Arrived", "Detail"]}
            empty=${html`<${Empty}>No dead letters: executors could use all records${isFiltered ? " that match these filters" : ""}.</${Empty}>`}
            row=${(/** @type {any} */ letter) => html`<tr data-row key=${letter.id}><td><a class="mono" href=${to("dead-letters", letter.id)}>${letter.topic} ${letter.partition}:${letter.offset}</a></td>
                <td><${Status} status=${letter.status.toUpperCase()} /></td><td>${letter.reason.replaceAll("_", " ")}</td>
                <td>${letter.run_id && html`<a class="mono" href=${to("runs", letter.run_id)}>${letter.run_id}</a>`}</td><td class="number">${bytes(letter.bytes)}</td>
                <td><${Time} at=${letter.created_at} /></td><td><span class="clip" title=${letter.detail}>${letter.detail}</span></td></tr>`} />`;
}

/** @param {{ dead_letter_id: string }} props */
export function DeadLetter({ dead_letter_id: id }) {
    const path = { dead_letter_id: id };
    const loaded = useGet("/dead-letters/{dead_letter_id}", { path });
    const [open, setOpen] = useState("");
    useEvery(loaded.data?.status === "redriving", LOOK_MS, loaded.reload);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="dead letter" back=${[to("dead-letters"), "Dead letters"]} />`;
    const letter = loaded.data;
    const isOpen = letter.status === "open";
    const discard = async () => {
        await api("DELETE", "/dead-letters/{dead_letter_id}", { path });
        say("The record is discarded");
        setOpen("");
        loaded.reload();
    };
    return html`<${Head} title=${`Dead letter ${letter.partition}:${letter.offset}`} back=${[to("dead-letters"), "Dead letters"]}>
            ${isOpen && html`<${Action} kind="primary" permission="dead-letters:manage" onClick=${() => setOpen("redrive")}>Send again</${Action}>
                <${Action} kind="danger" permission="dead-letters:manage" onClick=${() => setOpen("discard")}>Discard</${Action}>`}</${Head}>
        <div class="problem"><strong>${letter.detail}</strong></div>
        <${Facts} items=${[["Status", html`<${Status} status=${letter.status.toUpperCase()} />`], ["Reason", letter.reason.replaceAll("_", " ")], ["Topic", letter.topic],
            ...(letter.trigger_id ? [["Trigger", html`<a class="mono" href=${to("triggers", letter.trigger_id)}>${letter.trigger_id}</a>`]] : []),
            ["Size", bytes(letter.bytes)], ["Sent", html`<${Time} at=${letter.sent_at} absolute />`], ["Arrived here", html`<${Time} at=${letter.created_at} absolute />`],
            ["Run", letter.run_id ? html`<a class="mono" href=${to("runs", letter.run_id)}>${letter.run_id}</a>` : "–"],
            ...(letter.resolved_at ? [["Settled", html`<${Time} at=${letter.resolved_at} absolute /> by ${letter.resolved_by}`]] : [])]} />
        <h2>Value ${letter.is_truncated && html`<span class="faint">cut off</span>`}</h2><${Octets} octets=${letter.value} label="Value" />
        ${letter.corrected && html`<h2>Corrected value</h2><${Octets} octets=${letter.corrected} label="Corrected value" />`}
        <h2>Headers</h2>${letter.headers.length ? html`<dl class="words">${letter.headers.map((/** @type {any} */ header, /** @type {number} */ index) => html`<div key=${index}><dt>${header.name}</dt>
            <dd class="mono">${header.value?.content ?? ""}</dd></div>`)}</dl>` : html`<p class="faint">none</p>`}
        ${open === "redrive" && html`<${Redrive} letter=${letter} onClose=${() => setOpen("")} done=${() => (setOpen(""), loaded.reload())} />`}
        ${open === "discard" && html`<${Sure} title="Discard the record" text="It is not sent again. Its row stays until retention deletes it." permission="dead-letters:manage" action="Discard" work=${discard}
            onClose=${() => setOpen("")} />`}`;
}

/** A record as it is, or with its lines in order if that changes nothing in it. @param {string} text */
function readable(text) {
    try {
        return pretty(parsed(text));
    } catch {
        return text;
    }
}

/** @param {{ octets: any, label: string }} props */
function Octets({ octets, label }) {
    if (!octets) return html`<p class="faint">none</p>`;
    if (octets.encoding !== "text") return html`<p class="faint">as base64</p><${Json} value=${octets.content} label=${label} />`;
    return html`<${Json} value=${readable(octets.content)} label=${label} />`;
}

/** @param {{ letter: any, onClose: () => void, done: () => void }} props */
function Redrive({ letter, onClose, done }) {
    const text = letter.value?.encoding === "text" ? letter.value.content : "";
    const [edits, setEdits] = useState(false);
    const [value, setValue] = useState(() => readable(text));
    const { blame, problem } = useBlame();
    const work = async () => {
        await api("POST", "/dead-letters/{dead_letter_id}/redrive", { path: { dead_letter_id: letter.id }, body: edits ? { value: jsonOf("value", value) } : {} });
        say("The record is sent again");
        done();
    };
    return html`<${Dialog} title="Send the record again" wide onClose=${onClose}><label class="check"><input type="checkbox" checked=${edits} onChange=${() => setEdits(!edits)} /> With a corrected value</label>
        ${edits && html`<${Text} id="corrected" label="Value (JSON)" rows=${14} value=${value} problem=${problem("value")} change=${setValue} />`}
        <${Finish} work=${work} permission="dead-letters:manage" blame=${blame} onClose=${onClose}>Send again</${Finish}></${Dialog}>`;
}
