// An action on many runs: on those that are chosen, or on all that the filters match.
import { html, useEffect, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Line } from "../parts/form.js";
import { each } from "../parts/load.js";
import { allows } from "../parts/run-list.js";
import { counted as amount, figure } from "../parts/time.js";
import { Action, Dialog, Problem, say, words } from "../parts/ui.js";

/** @type {Record<string, string>} */
const DONE = { cancel: "cancelled", pause: "paused", resume: "resumed", retry: "started again" };
export const ACTIONS = Object.keys(DONE);
/** Runs of a request. */
const PAGE = 100;
/** Refusals that are shown. */
const SHOWN = 100;

/** @param {string} action @param {string} id */
function act(action, id) {
    const path = { run_id: id };
    switch (action) {
        case "cancel": return api("POST", "/runs/{run_id}/cancel", { path, body: {} });
        case "pause": return api("POST", "/runs/{run_id}/pause", { path });
        case "resume": return api("POST", "/runs/{run_id}/resume", { path });
        default: return api("POST", "/runs/{run_id}/retry", { path, body: {} });
    }
}

/** First the dry run, then the work. @param {{ action: string, runs: any[], onClose: () => void, done: () => void }} props */
export function Bulk({ action, runs, onClose, done }) {
    const able = runs.filter((run) => allows(run, action));
    const [failed, setFailed] = useState(/** @type {string[] | null} */ (null));
    const work = async () => {
        const results = await each(able, 4, async (run) => {
            try {
                await act(action, run.id);
                return "";
            } catch (error) {
                return `${run.id}: ${words(error)}`;
            }
        });
        const problems = results.filter(Boolean);
        say(`${able.length - problems.length} of ${amount(able.length, "runs")} ${DONE[action]}`, problems.length > 0);
        if (problems.length) setFailed(problems);
        else done();
    };
    return html`<${Dialog} title=${`${action} runs`} onClose=${failed ? done : onClose}>
        ${failed ? html`<p>These could not be ${DONE[action]}:</p><ul class="plain">${failed.map((text) => html`<li key=${text}>${text}</li>`)}</ul>
            <button type="button" onClick=${done}>Close</button>`
        : html`<p>${able.length} of ${amount(runs.length, "selected runs")} would be ${DONE[action]}.
            ${able.length < runs.length ? " The others are in another state." : ""}</p>
            <ul class="plain">${able.slice(0, 20).map((run) => html`<li key=${run.id}><span>${run.workflow_name}</span>
                <span class="mono faint"> ${run.id}</span></li>`)}${able.length > 20 && html`<li>and ${able.length - 20} more</li>`}</ul>
            <div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${work}>${action} ${able.length}</${Action}>
            <button type="button" onClick=${onClose}>Keep them</button></div>`}</${Dialog}>`;
}

/**
 * First the service counts, then it works through the pages, until it is done or somebody stops it.
 * @param {{ filters: Record<string, string>, onClose: () => void }} props
 */
export function AllOfFilter({ filters, onClose }) {
    const { sort_by, sort_order, ...query } = filters;
    const [action, setAction] = useState("cancel");
    const [reason, setReason] = useState("");
    const [counted, setCounted] = useState(/** @type {any} */ (null));
    const [progress, setProgress] = useState(/** @type {{ done: number, not: number, refused: any[], state: string } | null} */ (null));
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const stop = useRef(false);
    useEffect(() => () => void (stop.current = true), []);
    const body = (/** @type {boolean} */ dry) => ({ action, dry_run: dry, ...(action === "cancel" && reason.trim() ? { reason: reason.trim() } : {}) });
    const guarded = (/** @type {() => Promise<void>} */ work) => async () => {
        setError(null);
        try {
            await work();
        } catch (cause) {
            setError(cause);
            setProgress((before) => before && { ...before, state: "stopped" });
        }
    };
    const count = guarded(async () => setCounted(await api("POST", "/runs/bulk", { query, body: body(true) })));
    const start = guarded(async () => {
        stop.current = false;
        let [done, not] = [0, 0];
        /** @type {any[]} */
        const refused = [];
        /** @type {string | null} */
        let cursor = null;
        setProgress({ done, not, refused, state: "running" });
        do {
            const answer = await api("POST", "/runs/bulk", { query: { ...query, page_size: PAGE, cursor }, body: body(false), quiet: cursor !== null });
            done += answer.done;
            not += answer.refused.length;
            refused.push(...answer.refused.slice(0, SHOWN - refused.length));
            cursor = answer.next_cursor;
            setProgress({ done, not, refused: [...refused], state: cursor ? stop.current ? "stopped" : "running" : "ended" });
        } while (cursor && !stop.current);
        say(`${amount(done, "runs")} ${DONE[action]}`, not > 0);
    });
    const least = counted?.total_is_exact === false ? "more than " : "";
    const total = counted && `${least}${figure(counted.total)}`;
    const all = counted && `${least}${amount(counted.total, "runs")}`;
    const shown = Object.entries(query).map(([name, value]) => `${name} ${value}`).join(", ");
    return html`<${Dialog} title="Act on all runs of the filters" wide onClose=${onClose}>
        <p>${shown ? html`Runs with <span class="mono break">${shown}</span>` : html`<strong>There is no filter: all runs of the organisation.</strong>`}</p>
        ${progress ? html`<div role="status"><p><strong>${figure(progress.done)} of ${all} ${DONE[action]}</strong>
                <span class="faint"> ${{ running: "going on…", stopped: "stopped; the others are as they were", ended: "done" }[progress.state]}</span></p>
                <progress max=${Math.max(1, counted.total)} value=${Math.min(progress.done + progress.not, counted.total)} aria-label="Progress"></progress></div>
            ${progress.not > 0 && html`<h3>Not possible with ${figure(progress.not)}</h3><ul class="plain">${progress.refused.map((one) => html`<li key=${one.run_id}>
                <span class="mono">${one.run_id}</span>: ${one.detail}</li>`)}</ul>`}
            <${Problem} error=${error} /><div class="buttons">${progress.state === "running" ? html`<button type="button" class="danger" onClick=${() => void (stop.current = true)}>Stop</button>`
                : html`<button type="button" class="primary" onClick=${onClose}>Close</button>`}</div>`
        : html`<${Choice} id="all-action" label="Action" value=${action} options=${ACTIONS.map((name) => [name, name])} change=${(/** @type {string} */ value) => (setAction(value), setCounted(null))} />
            ${action === "cancel" && html`<${Line} id="all-reason" label="Reason" value=${reason} maxlength="500" change=${setReason} />`}
            <div role="status">${counted && html`<p><strong>${all} would be ${DONE[action]}.</strong> <span class="faint">Others are in another state.</span></p>`}</div>
            <${Problem} error=${error} /><div class="buttons">${counted ? html`<${Action} kind="danger" permission="runs:write" disabled=${counted.total === 0} onClick=${start}>${action} ${total}</${Action}>`
                : html`<${Action} kind="primary" permission="runs:write" onClick=${count}>Count them</${Action}>`}
            <button type="button" onClick=${onClose}>Keep them</button></div>`}</${Dialog}>`;
}
