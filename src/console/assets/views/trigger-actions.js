// Dialogs of a trigger: fire, pause, backfill.
import { html, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Finish, jsonOf, Line, Text, useBlame, useKey } from "../parts/form.js";
import { named } from "../parts/hooks.js";
import { go, to } from "../parts/router.js";
import { fromField } from "../parts/time.js";
import { Action, Dialog, Json, Problem, say, Time } from "../parts/ui.js";

/** @param {{ trigger: any, onClose: () => void }} props */
export function Fire({ trigger, onClose }) {
    const [members, setMembers] = useState("");
    const [shown, setShown] = useState(/** @type {any} */ (null));
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const { blame, problem } = useBlame();
    const key = useKey();
    const path = { trigger_id: trigger.id };
    const body = () => (members.trim() ? { trigger: jsonOf("trigger", members) } : {});
    const look = async () => {
        setError(null);
        blame(null);
        try {
            setShown(await api("POST", "/triggers/{trigger_id}/preview", { path, body: body() }));
        } catch (cause) {
            setError(cause);
            blame(cause);
        }
    };
    const fire = async () => {
        const { run_id } = await api("POST", "/triggers/{trigger_id}/fire", { path, body: body(), headers: key(body()) });
        say("The run has started");
        go(to("runs", run_id));
    };
    return html`<${Dialog} title=${`Fire ${trigger.name}`} onClose=${onClose} wide><p class="faint">A run starts now, once, also if the trigger is paused or another run of it is under way.</p>
        <${Text} id="members" label=${html`Members that the input refers to <span class="faint">as JSON, such as {"body": {}}; empty: none</span>`} rows=${4} value=${members} problem=${problem("trigger")} change=${setMembers} />
        <p><${Action} onClick=${look}>Preview</${Action}></p><${Problem} error=${error} />
        ${shown && html`<div role="status">${shown.reason ? html`<p class="bad"><strong>No run would start:</strong> ${shown.detail ?? named(shown.reason)}</p>` : html`<h3>Input of the run</h3><${Json} value=${shown.input} label="Input of the run" />`}</div>`}
        <${Finish} work=${fire} permission="runs:write" blame=${blame} onClose=${onClose}>Fire</${Finish}></${Dialog}>`;
}

/** @param {{ trigger: any, onClose: () => void, done: () => void }} props */
export function Pause({ trigger, onClose, done }) {
    const [note, setNote] = useState(trigger.note ?? "");
    const { blame, problem } = useBlame();
    const work = async () => {
        await api("POST", "/triggers/{trigger_id}/pause", { path: { trigger_id: trigger.id }, body: note.trim() ? { note: note.trim() } : {} });
        say(`${trigger.name} is paused`);
        done();
    };
    return html`<${Dialog} title=${`Pause ${trigger.name}`} onClose=${onClose}><p class="faint">What would be due meanwhile is not made up for. Runs under way continue.</p>
        <${Line} id="note" label="Note" value=${note} maxlength="500" problem=${problem("note")} change=${setNote} />
        <${Finish} work=${work} permission="runs:write" blame=${blame} onClose=${onClose}>Pause</${Finish}></${Dialog}>`;
}

/** First counted, then started. @param {{ trigger: any, onClose: () => void }} props */
export function Backfill({ trigger, onClose }) {
    const [from, setFrom] = useState("");
    const [until, setUntil] = useState("");
    const [overlap, setOverlap] = useState("");
    const [force, setForce] = useState(false);
    const [counted, setCounted] = useState(/** @type {any} */ (null));
    const { blame, problem } = useBlame();
    const key = useKey();
    const change = (/** @type {(value: any) => void} */ set) => (/** @type {string} */ value) => (set(value), setCounted(null));
    const send = (/** @type {boolean} */ dry) => {
        const body = { from: fromField(from), to: fromField(until), force, dry_run: dry, ...(overlap ? { overlap } : {}) };
        return api("POST", "/triggers/{trigger_id}/backfills", { path: { trigger_id: trigger.id }, body, headers: dry ? {} : key(body) });
    };
    const work = async () => {
        if (!counted) return setCounted(await send(true));
        await send(false);
        say("The backfill has begun");
        onClose();
    };
    return html`<${Dialog} title="Start runs of a range of time" onClose=${onClose}><${Line} id="from" label="From (UTC, inclusive)" type="datetime-local" value=${from} problem=${problem("from")} change=${change(setFrom)} />
        <${Line} id="until" label="To (UTC, exclusive)" type="datetime-local" value=${until} problem=${problem("to")} change=${change(setUntil)} />
        <${Choice} id="overlap" label="Runs" value=${overlap} problem=${problem("overlap")} change=${change(setOverlap)} options=${[["", "as the schedule has it"], ["allow", "as fast as possible"], ["buffer_all", "one after the other"]]} />
        <label class="check"><input type="checkbox" checked=${force} onChange=${() => (setForce(!force), setCounted(null))} /> Also where there is a run</label>
        ${counted && html`<div role="status"><p><strong>${counted.total} ${counted.total === 1 ? "run" : "runs"} would start.</strong></p><ol class="times">${counted.first.map((/** @type {string} */ at) => html`<li key=${at}>
            <${Time} at=${at} absolute /></li>`)}</ol>${counted.total > counted.first.length && html`<p class="faint">… the last one at <${Time} at=${counted.last} absolute /></p>`}</div>`}
        <${Finish} work=${work} permission="runs:write" disabled=${!from || !until || counted?.total === 0} blame=${blame} onClose=${onClose}>${counted ? `Start ${counted.total}` : "Count them"}</${Finish}></${Dialog}>`;
}
