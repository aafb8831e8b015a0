import { html, use, useMemo, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { readWhole } from "../parts/attempts.js";
import { Table, Typing } from "../parts/list.js";
import { useLoad } from "../parts/load.js";
import { place, setQuery, to } from "../parts/router.js";
import { took } from "../parts/run-list.js";
import { align, differences, placeOf, tree } from "../parts/steps.js";
import { clipped, diff, hunks, pretty } from "../parts/text.js";
import { duration, figure, span } from "../parts/time.js";
import { Head, Loading, Problem, Status, Time } from "../parts/ui.js";

/** Attempts of each run that are compared. */
const ATTEMPTS = 1000;
/** Lines of a difference that are shown, and characters of a line. */
const LINES = 2000;
const WIDTH = 1000;

/** @param {string} id @param {AbortSignal} signal */
async function read(id, signal) {
    if (!id) return null;
    const path = { run_id: id };
    const [run, { items, isCut }] = await Promise.all([api("GET", "/runs/{run_id}", { path, signal }), readWhole(id, ATTEMPTS, signal)]);
    return { run, rows: tree(items), isCut };
}

export function Compare() {
    const { query } = use(place);
    const [a, b] = [query.get("a") ?? "", query.get("b") ?? ""];
    const left = useLoad((signal) => read(a, signal), [a]);
    const right = useLoad((signal) => read(b, signal), [b]);
    return html`<${Head} title="Compare runs" back=${[to("runs"), "Runs"]} />
        <div class="filters"><${Choice} name="a" label="Run A" value=${a} /><${Choice} name="b" label="Run B" value=${b} />
        ${a && b && html`<button type="button" onClick=${() => setQuery({ a: b, b: a })}>Swap</button>`}</div>
        <${Problem} error=${left.error} retry=${left.reload} /><${Problem} error=${right.error} retry=${right.reload} />
        ${left.data && right.data ? html`<${Both} left=${left.data} right=${right.data} />`
            : a && b ? !left.error && !right.error && html`<${Loading} what="both runs" />`
            : html`<p class="faint">Name two runs, or select two in <a href=${to("runs")}>the list</a>.</p>`}`;
}

/** @param {{ name: string, label: string, value: string }} props */
function Choice({ name, label, value }) {
    const id = `run-${name}`;
    return html`<div class="filter wide"><label for=${id}>${label}</label><${Typing} id=${id} class="mono" value=${value} placeholder="run-…"
        data-search=${name === "a" ? "" : undefined} change=${(/** @type {string} */ text) => setQuery({ [name]: text })} /></div>`;
}

/** @param {{ left: any, right: any }} props */
function Both({ left, right }) {
    const [only, setOnly] = useState(false);
    const [open, setOpen] = useState("");
    const pairs = useMemo(() => align(left.rows, right.rows).map((pair) => ({ ...pair, changes: differences(pair) })), [left, right]);
    const shown = only ? pairs.filter((pair) => pair.changes.length) : pairs;
    const changed = pairs.filter((pair) => pair.changes.length).length;
    const took2 = (/** @type {any} */ row) => (row ? duration(span(row.last.started_at, row.last.completed_at, Date.now())) : "");
    return html`${(left.isCut || right.isCut) && html`<p class="banner">Only the first ${ATTEMPTS} attempts of each run are compared.</p>`}
        <${Table} label="Both runs" columns=${["", "A", "B"]}>
            <tr><th scope="row">Run</th>${[left, right].map(({ run }) => html`<td><a class="mono" href=${to("runs", run.id)}>${run.id}</a></td>`)}</tr>
            <tr><th scope="row">Workflow</th>${[left, right].map(({ run }) => html`<td>${run.workflow_name}</td>`)}</tr>
            <tr><th scope="row">Status</th>${[left, right].map(({ run }) => html`<td><${Status} status=${run.status} /></td>`)}</tr>
            <tr><th scope="row">Created</th>${[left, right].map(({ run }) => html`<td><${Time} at=${run.created_at} absolute /></td>`)}</tr>
            <tr><th scope="row">Duration</th>${[left, right].map(({ run }) => html`<td>${took(run, Date.now())}</td>`)}</tr></${Table}>
        <h2>Steps</h2><p>${changed ? `${changed} of ${pairs.length} steps differ.` : "All steps are the same."}
            <label class="check"> <input type="checkbox" checked=${only} onChange=${() => setOnly(!only)} /> Only what differs</label></p>
        <${Table} label="Steps of both runs" columns=${["Step", "A", "B", "Duration A", "Duration B", "Attempts", "Differs in"]}>
            ${shown.slice(0, 1000).map((pair) => {
                const row = pair.left ?? pair.right;
                return row && html`<tr data-row key=${pair.key} class=${pair.changes.length ? "changed" : ""}>
                    <td class=${`indent-${Math.min(row.depth, 6)}`}><button type="button" class="link" aria-expanded=${open === pair.key}
                        onClick=${() => setOpen(open === pair.key ? "" : pair.key)}>${placeOf(row)}</button></td>
                    <td>${pair.left && html`<${Status} status=${pair.left.last.status} />`}</td><td>${pair.right && html`<${Status} status=${pair.right.last.status} />`}</td>
                    <td class="number">${took2(pair.left)}</td><td class="number">${took2(pair.right)}</td>
                    <td class="number">${pair.left?.attempts.length ?? 0} / ${pair.right?.attempts.length ?? 0}</td><td>${pair.changes.join(", ")}</td></tr>
                    ${open === pair.key && html`<tr key=${`${pair.key} open`}><td colspan="7"><div class="columns">
                        <section><h3>Input</h3><${Difference} before=${pair.left?.last.input_data} after=${pair.right?.last.input_data} /></section>
                        <section><h3>Output</h3><${Difference} before=${pair.left?.last.output_data} after=${pair.right?.last.output_data} /></section></div></td></tr>`}`;
            })}</${Table}>
        <div class="columns"><section><h2>Input</h2><${Difference} before=${left.run.input_data} after=${right.run.input_data} /></section>
            <section><h2>Output</h2><${Difference} before=${left.run.output_data} after=${right.run.output_data} /></section></div>`;
}

/** @param {{ before: unknown, after: unknown }} props */
export function Difference({ before, after }) {
    const lines = useMemo(() => hunks(diff(pretty(before ?? null), pretty(after ?? null))), [before, after]);
    if (!lines.some((line) => line && line.kind !== "same")) return html`<p class="faint">The same.</p>`;
    return html`<div class="diff mono" tabindex="0" role="group" aria-label="Differences">${lines.slice(0, LINES).map((line, index) => line === null
        ? html`<div class="gap" key=${index}>…</div>`
        : html`<div class=${line.kind} key=${index}><span class="sign">${line.kind === "added" ? "+" : line.kind === "removed" ? "−" : " "}</span>${clipped(line.text, WIDTH)}</div>`)}</div>
        ${lines.length > LINES && html`<p class="faint">These are the first ${figure(LINES)} of ${figure(lines.length)} lines.</p>`}`;
}
