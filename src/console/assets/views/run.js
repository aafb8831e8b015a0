import { html, use, useCallback, useEffect, useMemo, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { reader, readWhole } from "../parts/attempts.js";
import { useGet, useLoad } from "../parts/load.js";
import { place, setQuery, to } from "../parts/router.js";
import { can, needs, session } from "../parts/session.js";
import { now } from "../parts/settings.js";
import { runWords, under, waitsForPeople } from "../parts/run-words.js";
import { states, tree, withDelta } from "../parts/steps.js";
import { follow } from "../parts/stream.js";
import { pretty } from "../parts/text.js";
import { Facts, Head, Json, Pending, Problem, Status, tabOf, Tabs, Time } from "../parts/ui.js";
import { Answers } from "./approvals.js";
import { RunActions } from "./run-actions.js";
import { Lineage, Log } from "./run-log.js";
import { RunGraph, RunTable, StepPanel, Timeline } from "./run-steps.js";
import { allows, took } from "../parts/run-list.js";

/** @type {[string, string][]} */
const TABS = [["graph", "Graph"], ["timeline", "Timeline"], ["table", "Table"], ["log", "Log"], ["data", "Input and output"],
    ["lineage", "Lineage"], ["raw", "Raw JSON"]];
/** Attempts that are read. */
const MOST = 10_000;
/** Entries of the log after which an attempt has its output, or none. */
const ENDS = ["attempt.completed", "attempt.failed", "attempt.skipped"];
/** Attempts that are read with their data. */
const WHOLE = 500;
/** Changes that come close together are read at once, and not more often than this; of a long run less often. */
const TOGETHER_MS = 250;
const EVERY_MS = 1000;
const NOBODY = /** @type {any[]} */ ([]);

/** @param {{ run_id: string }} props */
export function Run({ run_id: runId }) {
    const { query } = use(place);
    use(session);
    const path = { run_id: runId };
    const run = useGet("/runs/{run_id}", { path });
    const read = useMemo(() => reader(runId, MOST), [runId]);
    const steps = useLoad(read, [runId]);
    const isOpen = run.data ? allows(run.data, "cancel") : false;
    const callbacks = useGet(isOpen && can("runs:write") ? "/runs/{run_id}/callbacks" : null, { path });
    const definition = useDefinition(run.data);
    const reload = () => {
        run.reload();
        steps.reload();
        callbacks.reload();
    };
    const live = useLive(runId, isOpen, reload, steps.data?.items.length ?? 0);
    const rows = useMemo(() => tree(steps.data?.items ?? NOBODY), [steps.data]);
    const known = useMemo(() => states(rows), [rows]);
    // How often an agent is tried is only asked when it was tried already.
    const busy = under(run.data, rows);
    const tried = busy && (busy.attempts.length > 1 || busy.last.status === "FAILED") ? busy.last.agent_name : "";
    const agents = useGet(tried && can("agents:read") ? "/agents" : null, { query: { name: tried, page_size: 1 } });
    const agent = tried ? agents.data?.items[0] : undefined;
    const tab = tabOf(TABS, query);
    const chosen = query.get("step");
    const choose = useCallback((/** @type {string | null} */ step) => setQuery({ step }, { replace: true }), []);
    if (!run.data) return html`<${Pending} loaded=${run} what="run" back=${[to("runs"), "Runs"]} />`;
    const data = run.data;
    const open = (callbacks.data ?? NOBODY).filter((/** @type {any} */ one) => one.step_execution_id !== null);
    const plan = definition.data?.workflow_data;
    const asks = isOpen && !can("runs:write") && rows.some((row) => row.last.status === "PENDING" && waitsForPeople(plan?.steps?.[row.id]));
    return html`<${Head} title=${data.workflow_name} back=${[to("runs"), "Runs"]}>
        <${RunActions} run=${data} definition=${definition.newest} changed=${reload} /></${Head}>
        <${Problem} error=${run.error ?? callbacks.error} retry=${reload} />
        <${Words} run=${data} callbacks=${open} rows=${rows} about=${{ steps: plan?.steps, agent }} connected=${live.connected} isOpen=${isOpen} />
        ${asks && html`<p class="faint">To answer it: ${needs("runs:write")}.</p>`}
        ${data.error_message && html`<div class="problem"><strong>${data.error_message}</strong>${data.error_code
            && html`<div class="faint">${data.error_code}</div>`}</div>`}
        ${open.length > 0 && html`<${Answers} callbacks=${open} changed=${reload} />`}
        <${Tabs} label="Views of the run" tabs=${TABS} current=${tab}
            choose=${(/** @type {string} */ name) => setQuery({ tab: name === "graph" ? null : name }, { replace: true })} />
        <div class="with-panel"><div id="panel" role="tabpanel" aria-labelledby=${`tab-${tab}`} class="panel-main">
            ${steps.error && html`<${Problem} error=${steps.error} retry=${steps.reload} />`}
            ${steps.data?.isCut && html`<p class="banner">Only the first ${MOST.toLocaleString("en")} attempts are shown.</p>`}
            <${View} tab=${tab} run=${data} rows=${rows} states=${known} definition=${definition} agent=${agent} chosen=${chosen} choose=${choose}
                live=${live} attempts=${steps.data?.items ?? NOBODY} loading=${!steps.data} /></div>
        ${chosen && html`<${StepPanel} key=${chosen} id=${chosen} rows=${rows} run=${data} definition=${definition.data} newest=${definition.newest}
            deltas=${live.deltas} changed=${reload} close=${() => choose(null)} />`}</div>`;
}

/** @param {any} props */
function View({ tab, run, rows, states: known, definition, agent, chosen, choose, live, attempts, loading }) {
    switch (tab) {
        case "timeline": return html`<${Timeline} run=${run} rows=${rows} choose=${choose} />`;
        case "table": return html`<${RunTable} rows=${rows} run=${run} definition=${definition} agent=${agent} chosen=${chosen} choose=${choose} />`;
        case "log": return html`<${Log} runId=${run.id} live=${live} rows=${rows} />`;
        case "data": return html`<div class="columns"><section><h2>Input</h2><${Json} value=${run.input_data && pretty(run.input_data)} label="Input" /></section>
            <section><h2>Output</h2><${Json} value=${run.output_data && pretty(run.output_data)} label="Output" /></section></div><${UsageFacts} run=${run} />`;
        case "lineage": return html`<${Lineage} run=${run} attempts=${attempts} />`;
        case "raw": return html`<${Raw} run=${run} />`;
        default: return html`<${RunGraph} definition=${definition} states=${known} rows=${rows} run=${run} loading=${loading}
            chosen=${chosen} choose=${choose} />`;
    }
}

/** @param {{ run: any }} props */
function Raw({ run }) {
    const steps = useLoad((signal) => readWhole(run.id, WHOLE, signal), [run.id]);
    const text = useMemo(() => pretty({ run, steps: steps.data?.items }), [run, steps.data]);
    return html`<p class="faint">${steps.data ? `The steps as they were when this view was opened${steps.data.isCut ? `; only the first ${WHOLE} attempts` : ""}.` : ""}
            <button type="button" class="quiet" onClick=${steps.reload}>Read again</button></p><${Problem} error=${steps.error} retry=${steps.reload} />
        ${steps.data && html`<${Json} value=${text} label="Run and steps" />`}`;
}

/** The version that the run executes, and the newest one, which a retry takes. @param {any} run */
function useDefinition(run) {
    const id = can("workflows:read") ? run?.workflow_definition_id ?? run?.workflow_id ?? "" : "";
    const version = run?.workflow_version ?? "";
    const shown = useGet(id && version !== "" ? "/workflows/{workflow_id}/versions/{version}" : null, { path: { workflow_id: id, version: String(version) } });
    const newest = useGet(id && allows(run, "retry") ? "/workflows/{workflow_id}" : null, { path: { workflow_id: id } });
    return { data: shown.data, loading: shown.loading, newest: newest.data };
}

/** Entries of the log as they come, while the run is open. @param {string} runId @param {boolean} isOpen @param {() => void} changed @param {number} count of attempts */
function useLive(runId, isOpen, changed, count) {
    const [connected, setConnected] = useState(false);
    const [deltas, setDeltas] = useState(NOBODY);
    const listeners = useRef(/** @type {Set<(entry: any) => void>} */ (new Set()));
    const latest = useRef(changed);
    latest.current = changed;
    const least = useRef(0);
    least.current = Math.max(EVERY_MS, count / 5);
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
        let last = -Infinity;
        const later = () => {
            timer ??= setTimeout(() => {
                timer = undefined;
                last = performance.now();
                latest.current();
            }, Math.max(TOGETHER_MS, last + least.current - performance.now()));
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

/** @param {{ run: any, callbacks: any[], rows: any[], about: any, connected: boolean, isOpen: boolean }} props */
function Words({ run, callbacks, rows, about, connected, isOpen }) {
    const moment = use(now);
    const words = runWords(run, callbacks, rows, moment, about);
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
