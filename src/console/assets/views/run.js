import { html, use, useCallback, useEffect, useMemo, useRef, useState } from "../parts/runtime.js";
import { api, call } from "../parts/api.js";
import { pages, useGet, useLoad } from "../parts/load.js";
import { place, setQuery, to } from "../parts/router.js";
import { can, session } from "../parts/session.js";
import { now } from "../parts/settings.js";
import { runWords, states, tree, withDelta } from "../parts/steps.js";
import { follow } from "../parts/stream.js";
import { Facts, Head, Json, Pending, Problem, Status, tabOf, Tabs, Time } from "../parts/ui.js";
import { Answers } from "./approvals.js";
import { RunActions } from "./run-actions.js";
import { Lineage, Log } from "./run-log.js";
import { RunGraph, RunTable, StepPanel, Timeline } from "./run-steps.js";
import { allows, took } from "../parts/run-list.js";

/** @type {[string, string][]} */
const TABS = [["graph", "Graph"], ["timeline", "Timeline"], ["table", "Table"], ["log", "Log"], ["data", "Input and output"],
    ["lineage", "Lineage"], ["raw", "Raw JSON"]];
/** Attempts that are read: pages by keyset, and an end. */
const PAGE = 1000;
const MOST = 10_000;
/** Entries of the log after which an attempt has its output, or none. */
const ENDS = ["attempt.completed", "attempt.failed", "attempt.skipped"];
/** Changes that come close together are read at once. */
const TOGETHER_MS = 250;
const NOBODY = /** @type {any[]} */ ([]);

/** All attempts of a run, page by page. @param {string} runId @param {AbortSignal} signal */
async function readAttempts(runId, signal) {
    const { items, isCut } = await pages(async (cursor) => {
        const { data, headers } = await call("GET", "/runs/{run_id}/steps",
            { path: { run_id: runId }, query: { page_size: PAGE, cursor }, signal });
        const next = /[?&]cursor=([^&>]+)[^>]*>;\s*rel="?next/.exec(headers.get("link") ?? "");
        return { items: data, next: next?.[1] ? decodeURIComponent(next[1]) : null };
    }, MOST);
    return { attempts: items, isCut };
}

/** @param {{ run_id: string }} props */
export function Run({ run_id: runId }) {
    const { query } = use(place);
    use(session);
    const path = { run_id: runId };
    const run = useGet("/runs/{run_id}", { path });
    const steps = useLoad((signal) => readAttempts(runId, signal), [runId]);
    const isOpen = run.data ? allows(run.data, "cancel") : false;
    const callbacks = useGet(isOpen && can("runs:write") ? "/runs/{run_id}/callbacks" : null, { path });
    const definition = useDefinition(run.data);
    const reload = () => {
        run.reload();
        steps.reload();
        callbacks.reload();
    };
    const live = useLive(runId, isOpen, reload);
    const rows = useMemo(() => tree(steps.data?.attempts ?? NOBODY), [steps.data]);
    const known = useMemo(() => states(rows), [rows]);
    const tab = tabOf(TABS, query);
    const chosen = query.get("step");
    const choose = useCallback((/** @type {string | null} */ step) => setQuery({ step }, { replace: true }), []);
    if (!run.data) return html`<${Pending} loaded=${run} what="run" back=${[to("runs"), "Runs"]} />`;
    const data = run.data;
    const open = callbacks.data ?? NOBODY;
    return html`<${Head} title=${data.workflow_name} back=${[to("runs"), "Runs"]}>
        <${RunActions} run=${data} definition=${definition.newest} changed=${reload} /></${Head}>
        <${Problem} error=${run.error ?? callbacks.error} retry=${reload} />
        <${Words} run=${data} callbacks=${open} rows=${rows} connected=${live.connected} isOpen=${isOpen} />
        ${data.error_message && html`<div class="problem"><strong>${data.error_message}</strong>${data.error_code
            && html`<div class="faint">${data.error_code}</div>`}</div>`}
        ${open.length > 0 && html`<${Answers} callbacks=${open} changed=${reload} />`}
        <${Tabs} label="Views of the run" tabs=${TABS} current=${tab}
            choose=${(/** @type {string} */ name) => setQuery({ tab: name === "graph" ? null : name }, { replace: true })} />
        <div class="with-panel"><div id="panel" role="tabpanel" aria-labelledby=${`tab-${tab}`} class="panel-main">
            ${steps.error && html`<${Problem} error=${steps.error} retry=${steps.reload} />`}
            ${steps.data?.isCut && html`<p class="banner">Only the first ${MOST.toLocaleString("en")} attempts are shown.</p>`}
            <${View} tab=${tab} run=${data} rows=${rows} states=${known} definition=${definition} chosen=${chosen} choose=${choose}
                live=${live} attempts=${steps.data?.attempts ?? NOBODY} loading=${!steps.data} /></div>
        ${chosen && html`<${StepPanel} key=${chosen} id=${chosen} rows=${rows} run=${data} definition=${definition.data} newest=${definition.newest}
            deltas=${live.deltas} changed=${reload} close=${() => choose(null)} />`}</div>`;
}

/** @param {any} props */
function View({ tab, run, rows, states: known, definition, chosen, choose, live, attempts, loading }) {
    switch (tab) {
        case "timeline": return html`<${Timeline} run=${run} rows=${rows} choose=${choose} />`;
        case "table": return html`<${RunTable} rows=${rows} run=${run} chosen=${chosen} choose=${choose} />`;
        case "log": return html`<${Log} runId=${run.id} live=${live} />`;
        case "data": return html`<div class="columns"><section><h2>Input</h2><${Json} value=${run.input_data} label="Input" /></section>
            <section><h2>Output</h2><${Json} value=${run.output_data} label="Output" /></section></div><${UsageFacts} run=${run} />`;
        case "lineage": return html`<${Lineage} run=${run} attempts=${attempts} />`;
        case "raw": return html`<${Json} value=${{ run, steps: attempts }} label="Run and steps" />`;
        default: return html`<${RunGraph} definition=${definition} states=${known} rows=${rows} run=${run} loading=${loading}
            chosen=${chosen} choose=${choose} />`;
    }
}

/** The version that the run executes, and the newest one, which a retry takes. @param {any} run */
function useDefinition(run) {
    const id = can("workflows:read") ? run?.workflow_definition_id ?? run?.workflow_id ?? "" : "";
    const version = run?.workflow_version ?? "";
    const shown = useGet(id && version !== "" ? "/workflows/{workflow_id}/versions/{version}" : null, { path: { workflow_id: id, version: String(version) } });
    const newest = useGet(id && allows(run, "retry") ? "/workflows/{workflow_id}" : null, { path: { workflow_id: id } });
    return { data: shown.data, loading: shown.loading, newest: newest.data };
}

/** Entries of the log as they come, while the run is open. @param {string} runId @param {boolean} isOpen @param {() => void} changed */
function useLive(runId, isOpen, changed) {
    const [connected, setConnected] = useState(false);
    const [deltas, setDeltas] = useState(NOBODY);
    const listeners = useRef(/** @type {Set<(entry: any) => void>} */ (new Set()));
    const latest = useRef(changed);
    latest.current = changed;
    // The run can be read as ended before its last entries are there, so only the stream says when it is over.
    const [follows, setFollows] = useState(isOpen);
    useEffect(() => {
        if (isOpen) setFollows(true);
    }, [runId, isOpen]);
    useEffect(() => {
        if (!follows) return undefined;
        /** @type {ReturnType<typeof setTimeout> | undefined} */
        let timer;
        let stop = () => {};
        let over = false;
        const later = () => {
            timer ??= setTimeout(() => {
                timer = undefined;
                latest.current();
            }, TOGETHER_MS);
        };
        // What was before is read as pages; the stream begins after it.
        api("GET", "/runs/{run_id}/logs", { path: { run_id: runId }, query: { sort_order: "desc", page_size: 1 }, quiet: true })
            .then((page) => page.items[0]?.seq ?? null, () => null)
            .then((after) => {
                if (over) return;
                stop = follow(runId, after, {
                    state: setConnected,
                    entry: (entry) => {
                        for (const listener of listeners.current) listener(entry);
                        if (ENDS.includes(entry.kind)) setDeltas((before) => before.filter((one) => one.attempt !== entry.attempt_id));
                        later();
                    },
                    delta: (delta) => setDeltas((before) => withDelta(before, delta)),
                    end: () => {
                        setFollows(false);
                        setDeltas(NOBODY);
                        latest.current();
                    },
                });
                later();
            });
        return () => {
            over = true;
            clearTimeout(timer);
            stop();
            setConnected(false);
        };
    }, [runId, follows]);
    return { connected, deltas, listeners: listeners.current };
}

/** @param {{ run: any, callbacks: any[], rows: any[], connected: boolean, isOpen: boolean }} props */
function Words({ run, callbacks, rows, connected, isOpen }) {
    const moment = use(now);
    const words = runWords(run, callbacks, rows, moment);
    const paused = Boolean(run.paused_at) && isOpen;
    return html`<div class="run-head"><p class="run-words"><${Status} status=${run.status} paused=${paused} /> <span>${words}</span>
        ${isOpen && html`<span class="faint live">${connected ? "live" : "connecting…"}</span>`}</p>
        <p class="sr" aria-live="polite">${`The run is ${paused ? "paused" : run.status.toLowerCase()}`}</p>
        <${Facts} items=${[["Run", html`<span class="mono">${run.id}</span>`], ["Created", html`<${Time} at=${run.created_at} absolute />`],
            ["Duration", took(run, moment)], ["Started by", run.triggered_by ?? "–"], ["Priority", run.priority],
            ["Version", run.workflow_version ?? "–"],
            ...(run.trigger ? [["Trigger", html`<a href=${to("triggers", run.trigger.id)}>${run.trigger.kind}</a> due <${Time} at=${run.trigger.at} absolute />`]] : []),
            ...(run.flow_control ? [["Flow control", html`${run.flow_control.stage}: ${run.flow_control.state}${run.flow_control.key === null ? "" : html` for <span class="mono">${run.flow_control.key}</span>`}`]] : []),
            ...(run.waiting?.due_at ? [["Goes on", html`<${Time} at=${run.waiting.due_at} absolute />`]] : []),
            ...(run.deadline_at ? [["Deadline", html`<span class=${run.deadline_missed_at ? "bad" : ""}><${Time} at=${run.deadline_at} absolute />${run.deadline_missed_at ? " missed" : ""}</span>`]] : []),
            ...(run.parent_run_id ? [["Parent", html`<a class="mono" href=${to("runs", run.parent_run_id)}>${run.parent_run_id}</a>`]] : [])]} /></div>`;
}

/** @param {{ run: any }} props */
function UsageFacts({ run }) {
    const usage = run.usage;
    if (!usage) return null;
    return html`<section><h2>Use of models</h2><${Facts} items=${[["Calls", usage.calls], ["Tokens", usage.tokens], ["Cost", usage.cost],
        ["Limit exceeded", usage.exceeded ?? "none"]]} /></section>`;
}
