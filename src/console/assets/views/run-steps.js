import { html, use, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { drawTimeline, listen, redraw } from "../parts/draw.js";
import { Graph } from "../parts/graph.js";
import { Table } from "../parts/list.js";
import { useGet, useLoad } from "../parts/load.js";
import { follow, withPlan } from "../parts/layout.js";
import { now } from "../parts/settings.js";
import { attemptOf, under } from "../parts/run-words.js";
import { placeOf } from "../parts/steps.js";
import { pretty } from "../parts/text.js";
import { duration, span } from "../parts/time.js";
import { to } from "../parts/router.js";
import { Facts, Json, Legend, Loading, Problem, Status, Time } from "../parts/ui.js";
import { RetryFrom } from "./run-actions.js";

/** @typedef {import("../parts/steps.js").StepRow} StepRow */

/** The time of a run that has ended does not matter. */
const STILL = { value: 0, peek: () => 0 };
/** Rows of the timeline, and of the table, on a page. */
const ROWS = 300;

/** @param {any} props */
export function RunGraph({ definition, states, rows, run, loading, chosen, choose }) {
    if (definition.data) {
        return html`<${Graph} definition=${definition.data.workflow_data} states=${states} chosen=${chosen} choose=${choose}
            label=${`Graph of ${run.workflow_name}`} text="The table has the same as text." />`;
    }
    if (definition.loading || loading) return html`<${Loading} what="the graph" />`;
    return html`<p class="faint">Its version of the definition is not known, or not there any more. These are its steps:</p>
        <${RunTable} rows=${rows} run=${run} definition=${definition} chosen=${chosen} choose=${choose} />`;
}

/** @param {{ rows: StepRow[], run: any, definition: any, agent?: any, chosen: string | null, choose: (id: string) => void }} props */
export function RunTable({ rows: begun, run, definition, agent, chosen, choose }) {
    const [shown, setShown] = useState(ROWS);
    const moment = use(now);
    const rows = useMemo(() => withPlan(begun, definition.data?.workflow_data), [begun, definition.data]);
    const busy = under(run, begun);
    const times = (/** @type {StepRow} */ row) => {
        const { words, next } = attemptOf(row, agent, moment);
        return row !== busy ? row.attempts.length : `${words}${next && `, ${next}`}`;
    };
    const error = (/** @type {StepRow} */ { last, attempts }) => last.error_message ?? (last.status === "RUNNING" && attempts.at(-2)?.error_message ? `attempt before: ${attempts.at(-2).error_message}` : "");
    if (!rows.length) return html`<p class="faint">${run.status === "PENDING" ? "No step has begun yet." : "This run has no steps."}</p>`;
    return html`<${Table} label="Steps" columns=${["Step", "Status", "Branch", "Agent", "Attempts", "Started", "Duration", "Error"]}>
        ${rows.slice(0, shown).map((row) => html`<tr data-row key=${row.key} class=${row.id === chosen ? "chosen" : ""}>
            <td class=${`indent-${Math.min(row.depth, 6)}`}><button type="button" class="link" onClick=${() => choose(row.id)}>${row.id}</button>
                ${row.depth > 0 && html`<span class="sr">, inside ${row.parent}</span>`}</td>
            ${!row.last ? html`<td class="faint">not begun</td><td>${row.branch ?? ""}</td><td>${definition.data.workflow_data.steps[row.id]?.agent_name ?? ""}</td>
                <td></td><td></td><td></td><td></td>` : html`<td><${Status} status=${row.last.status} /></td><td>${row.branch ?? ""}</td><td>${row.last.agent_name}</td>
            <td class="number">${times(row)}</td><td><${Time} at=${row.attempts[0].started_at} /></td>
            <td class="number">${duration(span(row.last.started_at, row.last.completed_at, moment))}</td>
            <td><span class="clip" title=${error(row)}>${error(row)}</span></td>`}</tr>`)}</${Table}>
        ${rows.length > shown && html`<button type="button" onClick=${() => setShown(shown + ROWS)}>
            Show ${Math.min(ROWS, rows.length - shown)} more of ${rows.length}</button>`}`;
}

/** @param {{ run: any, rows: StepRow[], choose: (id: string) => void }} props */
export function Timeline({ run, rows, choose }) {
    const frame = useRef(/** @type {SVGSVGElement | null} */ (null));
    const [shown, setShown] = useState(ROWS);
    const isOpen = run.status === "PENDING" || run.status === "RUNNING";
    const moment = use(isOpen ? now : STILL);
    const press = useRef(choose);
    press.current = choose;
    const page = rows.slice(0, shown);
    const tracks = useMemo(() => page.map((row) => ({
        key: row.key, step: row.id, name: row.branch === null ? row.id : `${row.id} (${row.branch})`, depth: row.depth,
        bars: row.attempts.map((attempt) => {
            const from = Date.parse(attempt.started_at);
            const until = attempt.completed_at ? Date.parse(attempt.completed_at) : Math.max(moment, from);
            return { from, until, status: attempt.status, words: `${attempt.status.toLowerCase()}, ${duration(until - from)}` };
        }),
    })), [rows, shown, moment]);
    const from = Date.parse(run.created_at);
    const until = Math.max(from + 1, ...tracks.flatMap((track) => track.bars.map((bar) => bar.until)));
    useLayoutEffect(() => {
        const target = frame.current;
        if (target) redraw(target, () => drawTimeline(target, tracks, from, until, duration));
    }, [tracks]);
    useEffect(() => (frame.current ? listen(frame.current, (id) => press.current(id)) : undefined), [rows.length > 0]);
    if (!rows.length) return html`<p class="faint">No step has begun yet.</p>`;
    return html`<div class="timeline" role="region" tabindex="0" aria-label="Timeline of the steps"><svg ref=${frame} role="group"
        aria-label=${`Timeline: ${rows.length} steps in ${duration(until - from)}. The table has the same as text.`}></svg></div>
        <${Legend} plain statuses=${[...new Set(page.flatMap((row) => row.attempts.map((attempt) => attempt.status)))]} />
        ${rows.length > shown && html`<button type="button" onClick=${() => setShown(shown + ROWS)}>
            Show ${Math.min(ROWS, rows.length - shown)} more of ${rows.length}</button>`}`;
}

/** Everything about one step: its attempts with what was sent and answered.
 * @param {{ id: string, rows: StepRow[], run: any, definition: any, newest: any, deltas: any[], changed: () => void,
 *   close: () => void }} props */
export function StepPanel({ id, rows, run, definition, newest, deltas, changed, close }) {
    const mine = rows.filter((row) => row.id === id);
    const [place, setPlace] = useState(/** @type {string | null} */ (null));
    const row = mine.find((one) => one.key === place) ?? mine.find((one) => one.last.status === "FAILED") ?? mine[0];
    const heading = useRef(/** @type {HTMLHeadingElement | null} */ (null));
    useEffect(() => heading.current?.focus({ preventScroll: true }), []);
    const log = useGet(row ? "/runs/{run_id}/logs" : null, { path: { run_id: run.id },
        query: { step_id: id, page_size: 100, sort_order: "desc" } });
    const seen = row ? `${row.last.id} ${row.last.status}` : "";
    const read = useRef(seen);
    useEffect(() => {
        if (read.current !== seen) log.reload();
        read.current = seen;
    }, [seen]);
    const plan = newest?.workflow_data;
    const isRoot = row ? row.parent === null : follow(plan?.steps ?? {}, plan?.start_step).includes(id);
    const step = definition?.workflow_data?.steps?.[id];
    const key = (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Escape" && !document.querySelector("dialog[open]")) close();
    };
    return html`<aside class="panel" aria-label=${`Step ${id}`} onKeyDown=${key}>
        <header><h2 ref=${heading} tabindex="-1">${id}</h2>${row && html`<${Status} status=${row.last.status} />`}
            <button type="button" class="quiet" aria-label="Close the step" onClick=${close}>✕</button></header>
        ${mine.length > 1 && html`<label class="stack">Place <select value=${row?.key} onChange=${(/** @type {any} */ event) => setPlace(event.target.value)}>
            ${mine.slice(0, 1000).map((one) => html`<option key=${one.key} value=${one.key} selected=${one === row}>${placeOf(one)} · ${one.last.status.toLowerCase()}</option>`)}
        </select></label>`}
        ${isRoot && html`<div class="buttons"><${RetryFrom} run=${run} step=${id} definition=${newest} changed=${changed} /></div>`}
        ${!row ? html`<p class="faint">This step has not begun.</p>` : html`${[...row.attempts].reverse().map((attempt, index) => html`<${Attempt} key=${attempt.id} runId=${run.id} attempt=${attempt}
                number=${row.attempts.length - index} count=${row.attempts.length} log=${log.data?.items ?? []} previews=${deltas.filter((one) => one.attempt === attempt.id)} />`)}`}
        ${step && html`<details><summary>Definition</summary><${Json} value=${withoutNulls(step)} label=${`Definition of ${id}`} /></details>`}</aside>`;
}

/** @param {Record<string, unknown>} step */
function withoutNulls(step) {
    return Object.fromEntries(Object.entries(step).filter(([, value]) => value !== null));
}

/** What was sent and answered, read when somebody looks at it. @param {{ runId: string, attempt: any, number: number }} props */
function AttemptData({ runId, attempt, number }) {
    const loaded = useLoad(async (signal) => (await api("GET", "/runs/{run_id}/steps", { path: { run_id: runId }, query: { id: attempt.id }, signal }))[0] ?? {}, [attempt.id]);
    const read = useRef(attempt.status);
    useEffect(() => {
        if (read.current !== attempt.status) loaded.reload();
        read.current = attempt.status;
    }, [attempt.status]);
    const { input_data: input, output_data: output } = loaded.data ?? {};
    const texts = useMemo(() => [input, output].map((value) => value && pretty(value)), [loaded.data]);
    if (loaded.error) return html`<${Problem} error=${loaded.error} retry=${loaded.reload} />`;
    if (!loaded.data) return html`<${Loading} what="input and output" />`;
    return html`<h3>Input</h3><${Json} value=${texts[0]} label=${`Input of attempt ${number}`} />
        <h3>Output</h3><${Json} value=${texts[1]} label=${`Output of attempt ${number}`} />`;
}

/** @param {{ runId: string, attempt: any, number: number, count: number, log: any[], previews: any[] }} props */
function Attempt({ runId, attempt, number, count, log, previews }) {
    const moment = use(now);
    const [isOpen, setOpen] = useState(number === count);
    const entries = log.filter((entry) => entry.attempt_id === attempt.id);
    const http = entries.find((entry) => entry.http_status !== null)?.http_status;
    const latency = entries.find((entry) => entry.duration_ms !== null)?.duration_ms;
    const facts = [["Status", html`<${Status} status=${attempt.status} />`], ["Started", html`<${Time} at=${attempt.started_at} absolute />`],
        ["Took", duration(span(attempt.started_at, attempt.completed_at, moment))], ["Agent", attempt.agent_name],
        ["Next attempt", number === count && attempt.next_attempt_at && html`<${Time} at=${attempt.next_attempt_at} absolute />`],
        ["HTTP status", http], ["Latency", latency === undefined ? undefined : duration(latency)],
        ["Tokens", attempt.usage && `${attempt.usage.input_tokens} in, ${attempt.usage.output_tokens} out`],
        ["Sub-run", attempt.child_run_id && html`<a class="mono" href=${to("runs", attempt.child_run_id)}>${attempt.child_run_id}</a>`]];
    return html`<details class="attempt" open=${isOpen} onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}><summary>Attempt ${number} of ${count} <${Status} status=${attempt.status} /></summary>
        <${Facts} items=${facts.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false)} />
        ${attempt.error_message && html`<p class="bad">${attempt.error_message}</p>`}
        ${!attempt.completed_at && previews.map(({ artifact, text }) => html`<h3 key=${`h ${artifact}`}>Preview</h3>
            <pre key=${artifact} class="wrap" tabindex="0" aria-label="Preview of the output">${text}</pre>`)}
        ${isOpen && html`<${AttemptData} runId=${runId} attempt=${attempt} number=${number} />`}</details>`;
}
