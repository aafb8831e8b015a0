// What happened to a run: its log, and where it comes from.
import { html, use, useEffect, useLayoutEffect, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { choices, Filter, Table } from "../parts/list.js";
import { pages, useEvery, useGet, useLoad } from "../parts/load.js";
import { withEntry, withPage } from "../parts/log.js";
import { to } from "../parts/router.js";
import { took } from "../parts/run-list.js";
import { utc } from "../parts/settings.js";
import { absolute, counted, figure } from "../parts/time.js";
import { Facts, Problem, Status, Time } from "../parts/ui.js";

/** Entries that are kept on the page, and looked through for those of the run as a whole. */
const KEPT = 2000;
const PAGE = 100;
const NOTHING = { entries: /** @type {any[]} */ ([]), older: /** @type {string | null} */ (null) };

/** Steps that are offered by name; of more one is typed. */
const STEPS = 200;
/** How often a screen reader is told of new entries. */
const TOLD_MS = 10_000;

/** @param {{ runId: string, live: { connected: boolean, listeners: Set<(entry: any) => void> }, rows: any[] }} props */
export function Log({ runId, live, rows }) {
    const [level, setLevel] = useState("");
    const [step, setStep] = useState("");
    const path = { run_id: runId };
    const query = { level, step_id: step, sort_order: "desc", page_size: PAGE };
    const first = useLoad(async (signal) => await api("GET", "/runs/{run_id}/logs", { path, query, signal }), [runId, level, step]);
    const [{ entries, older }, setLog] = useState(NOTHING);
    const [follows, setFollows] = useState(true);
    const box = useRef(/** @type {HTMLDivElement | null} */ (null));
    const zone = use(utc);
    useEffect(() => {
        if (!first.data) return;
        setLog((/** @type {typeof NOTHING} */ before) => {
            const { entries, meets } = withPage(before.entries, [...first.data.items].reverse());
            return { entries, older: meets ? before.older : first.data.next_cursor };
        });
    }, [first.data]);
    // What was written before the stream began, and after the page was read.
    const wasConnected = useRef(live.connected);
    useEffect(() => {
        if (live.connected && !wasConnected.current) first.reload();
        wasConnected.current = live.connected;
    }, [live.connected]);
    useEffect(() => {
        const add = (/** @type {any} */ entry) => {
            if (level && entry.level !== level || step && entry.step_id !== step) return;
            fresh.current++;
            setLog((/** @type {typeof NOTHING} */ before) => ({ ...before, entries: withEntry(before.entries, entry, KEPT) }));
        };
        live.listeners.add(add);
        return () => void live.listeners.delete(add);
    }, [live.listeners, level, step]);
    const fresh = useRef(0);
    const [told, setTold] = useState("");
    useEvery(live.connected, TOLD_MS, () => {
        if (fresh.current) setTold(`${counted(fresh.current, "new entries")} at ${absolute(new Date().toISOString(), zone).slice(11)}`);
        fresh.current = 0;
    });
    const steps = [...new Set(rows.map((row) => row.id))];
    useLayoutEffect(() => {
        if (follows && box.current) box.current.scrollTop = box.current.scrollHeight;
    }, [entries, follows]);
    const scrolled = () => {
        const element = box.current;
        if (element) setFollows(element.scrollHeight - element.scrollTop - element.clientHeight < 24);
    };
    const readOlder = async () => {
        const page = await api("GET", "/runs/{run_id}/logs", { path, query: { ...query, cursor: older } });
        setFollows(false);
        setLog((/** @type {typeof NOTHING} */ before) => ({ entries: [...[...page.items].reverse(), ...before.entries], older: page.next_cursor }));
    };
    const other = (/** @type {(value: string) => void} */ set) => (/** @type {string} */ value) => (set(value), setLog(NOTHING));
    return html`<div class="filters"><${Filter} name="level" label="Level" value=${level} change=${other(setLevel)} options=${choices(["info", "warning", "error"])} />
        <${Filter} name="step" label="Step" value=${step} change=${other(setStep)} options=${steps.length > STEPS ? undefined : [["", "all"], ...steps.map((id) => [id, id])]} />
        <label class="check"><input type="checkbox" checked=${follows} onChange=${() => setFollows(!follows)} /> Follow</label>
        <span class="faint">${live.connected ? "New entries appear as they are written." : ""}</span></div>
        <${Problem} error=${first.error} retry=${first.reload} />
        ${older && (entries.length < KEPT ? html`<button type="button" class="quiet" onClick=${readOlder}>Older entries</button>`
            : html`<p class="faint">There are older entries. This page keeps ${figure(KEPT)}; a step or a level shows fewer, and the API has all of them.</p>`)}
        <p class="sr" aria-live="polite">${told}</p>
        <div class="log mono" ref=${box} role="log" aria-live="off" aria-label="Log of the run" tabindex="0" onScroll=${scrolled}>
            ${entries.map((entry) => html`<div key=${entry.seq} class=${`entry l-${entry.level}`}>
                <time dateTime=${entry.timestamp}>${absolute(entry.timestamp, zone, true)}</time>
                <span class="level">${entry.level}</span><span class="message">${entry.message}${entry.detail && entry.detail !== entry.message
                    && !entry.message.includes(entry.detail) ? html`<span class="faint"> ${entry.detail}</span>` : ""}</span></div>`)}
            ${!entries.length && !first.loading && html`<p class="faint">No entries.</p>`}</div>`;
}

/** Where the run comes from, and what it has started. @param {{ run: any, attempts: any[] }} props */
export function Lineage({ run, attempts }) {
    const parent = useGet(run.parent_run_id ? "/runs/{run_id}" : null, { path: { run_id: run.parent_run_id ?? "" } });
    const children = useGet("/runs", { query: { parent_run_id: run.id, page_size: 100 } });
    const log = useLoad((signal) => pages(async (cursor, isFirst) => {
        const page = await api("GET", "/runs/{run_id}/logs", { path: { run_id: run.id }, query: { page_size: PAGE, cursor }, signal, quiet: !isFirst });
        return { items: page.items, next: page.next_cursor };
    }, KEPT), [run.id, run.status]);
    const events = (log.data?.items ?? []).filter((/** @type {any} */ entry) =>
        ["run.created", "run.dispatched", "run.started", "run.taken_over", "run.retried"].includes(entry.kind));
    const items = children.data?.items ?? [];
    const step = (/** @type {string} */ id) => attempts.find((attempt) => attempt.child_run_id === id)?.step_id;
    return html`<${Facts} items=${[["Started by", run.triggered_by ?? "–"],
            ["Parent run", run.parent_run_id ? html`<a class="mono" href=${to("runs", run.parent_run_id)}>${run.parent_run_id}</a>` : "none"],
            ...(run.parent_run_id ? [["Parent workflow", parent.data ? html`${parent.data.workflow_name} <${Status} status=${parent.data.status} />` : "…"],
                ["Step of the parent", run.parent_step_id]] : []),
            ["Definition", html`<a href=${to("workflows", run.workflow_definition_id ?? run.workflow_id)}>${run.workflow_name}</a>`]]} />
        <h2>Dispatch and retries</h2><${Problem} error=${log.error} />${log.data?.isCut && html`<p class="faint">Of the first ${KEPT} entries of the log.</p>`}
        <ol class="events">${events.map((/** @type {any} */ entry) => html`<li key=${entry.seq}><${Time} at=${entry.timestamp} absolute /> ${entry.message}</li>`)}</ol>
        <h2>Sub-runs</h2><${Problem} error=${children.error} />${items.length
            ? html`<${Table} label="Sub-runs" columns=${["Run", "Workflow", "Step", "Status", "Created", "Duration"]}>
                ${items.map((/** @type {any} */ child) => html`<tr data-row key=${child.id}><td><a class="mono" href=${to("runs", child.id)}>${child.id}</a></td>
                    <td>${child.workflow_name}</td><td>${step(child.id) ?? child.parent_step_id ?? ""}</td><td><${Status} status=${child.status} /></td>
                    <td><${Time} at=${child.created_at} /></td><td>${took(child, Date.now())}</td></tr>`)}</${Table}>
                ${children.data.next_cursor && html`<p class="faint">These are the latest ${items.length} of ${children.data.total_is_exact ? "" : "more than "}${figure(children.data.total)}:
                    <a href=${`${to("runs")}?parent_run_id=${encodeURIComponent(run.id)}`}>all in the list of runs</a></p>`}`
            : html`<p class="faint">It has started no other run.</p>`}`;
}
