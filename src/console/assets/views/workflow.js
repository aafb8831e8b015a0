import { html, use, useRef, useState } from "../parts/runtime.js";
import { api, call } from "../parts/api.js";
import { Graph } from "../parts/graph.js";
import { Choice, Sure } from "../parts/form.js";
import { limitWords, problemsOf } from "../parts/hooks.js";
import { InputForm, useInput } from "../parts/input.js";
import { PagedTable, Pager, Table, usePage } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { go, mayLeave, place, setQuery, to, unsaved, useGuard } from "../parts/router.js";
import { took } from "../parts/run-list.js";
import { can, needs, session } from "../parts/session.js";
import { Action, download, enter, Facts, Head, isText, Json, Loading, Pending, Problem, say, Status, tabOf, Tabs, Time } from "../parts/ui.js";
import { Difference } from "./compare.js";

/** @type {[string, string][]} */
const TABS = [["graph", "Graph"], ["run", "Run it"], ["runs", "Runs"], ["versions", "Versions"], ["definition", "Definition"], ["use", "Use"]];

/** @param {{ workflow_id: string }} props */
export function Workflow({ workflow_id: id }) {
    const { query } = use(place);
    use(session);
    const loaded = useGet("/workflows/{workflow_id}", { path: { workflow_id: id } });
    const [removing, setRemoving] = useState(false);
    const tab = tabOf(TABS, query);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="workflow" back=${[to("workflows"), "Workflows"]} />`;
    const item = loaded.data;
    return html`<${Head} title=${item.name} back=${[to("workflows"), "Workflows"]}>
            <${Action} kind="primary" permission="runs:write" onClick=${() => setQuery({ tab: "run" })}>Run</${Action}>
            <${Action} permission="workflows:write" onClick=${() => go(to("workflows", id, "edit"))}>Edit</${Action}>
            <${Action} kind="quiet" onClick=${() => download(`${item.name}.json`, "application/json", `${JSON.stringify(toDefinition(item), null, 2)}\n`)}>Download</${Action}>
            <${Action} kind="danger quiet" permission="workflows:write" onClick=${() => setRemoving(true)}>Delete</${Action}></${Head}>
        ${item.description && html`<p>${item.description}</p>`}
        <${Facts} items=${[["Version", item.version], ["Status", item.status], ["Changed", html`<${Time} at=${item.updated_at} />`], ["By", item.updated_by ?? "–"],
            ...limitWords(item), ...(item.silent_since ? [["Silent since", html`<span class="bad"><${Time} at=${item.silent_since} /></span>`]] : []),
            ["Id", html`<span class="mono">${item.id}</span>`]]} />
        <p class="links"><a href=${`${to("triggers")}?workflow_name=${encodeURIComponent(item.name)}`}>Its triggers</a>
            ${(item.concurrency || item.throttle || item.debounce) && html`<a href=${`${to("runs")}?name=${encodeURIComponent(item.name)}&status=PENDING`}>Runs that wait</a>`}</p>
        <${Tabs} label="Views of the workflow" tabs=${TABS} current=${tab} choose=${(/** @type {string} */ name) => mayLeave() && setQuery({ tab: name === "graph" ? null : name, cursor: null })} />
        <div id="panel" role="tabpanel" aria-labelledby=${`tab-${tab}`}><${View} tab=${tab} item=${item} reload=${loaded.reload} /></div>
        ${removing && html`<${Remove} item=${item} onClose=${() => setRemoving(false)} />`}`;
}

/** What can be stored again. @param {any} item */
export function toDefinition(item) {
    const plan = item.workflow_data ?? {};
    const steps = Object.fromEntries(Object.entries(plan.steps ?? {}).map(([id, step]) =>
        [id, Object.fromEntries(Object.entries(/** @type {any} */ (step)).filter(([, value]) => value !== null))]));
    /** @type {Record<string, unknown>} */
    const definition = { name: item.name };
    for (const name of ["description", "input_schema", "retention_days", "expose", "concurrency", "throttle", "debounce", "deadline_seconds", "deadline_action", "silence_hours"]) {
        if (item[name] !== null && item[name] !== undefined) definition[name] = item[name];
    }
    if (plan.limits) definition["limits"] = plan.limits;
    return { ...definition, start_step: plan.start_step, steps };
}

/** @param {{ tab: string, item: any, reload: () => void }} props */
function View({ tab, item, reload }) {
    switch (tab) {
        case "run": return html`<${Start} item=${item} />`;
        case "runs": return html`<${ItsRuns} name=${item.name} />`;
        case "versions": return html`<${Versions} item=${item} reload=${reload} />`;
        case "definition": return html`<${Json} value=${toDefinition(item)} label="Definition" />`;
        case "use": return html`<${Use} id=${item.id} />`;
        default: return html`<${WithSteps} item=${item} />`;
    }
}

/** @param {{ item: any }} props */
function WithSteps({ item }) {
    const [step, setStep] = useState("");
    const about = item.workflow_data?.steps?.[step];
    return html`<${Graph} definition=${item.workflow_data} choose=${setStep} chosen=${step} label=${`Graph of ${item.name}`} />
        ${about && html`<section aria-label=${`Step ${step}`}><h2>${step}</h2><${Json} value=${Object.fromEntries(
            Object.entries(about).filter(([, value]) => value !== null))} label=${`Step ${step}`} /></section>`}`;
}

/** @param {{ item: any }} props */
function Start({ item }) {
    const state = useInput(item.input_schema, null);
    const [problems, setProblems] = useState(/** @type {Record<string, string>} */ ({}));
    const [priority, setPriority] = useState("5");
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const [isTyped, setTyped] = useState(false);
    useGuard(isTyped);
    // What is sent again is the same run.
    const sent = useRef({ text: "", key: "" });
    const start = async () => {
        const read = state.read();
        setProblems(read.problems);
        setError(null);
        if (Object.keys(read.problems).length) return;
        const text = JSON.stringify({ input_data: read.input, priority: Number(priority) });
        if (sent.current.text !== text) sent.current = { text, key: crypto.randomUUID() };
        try {
            const run = await api("POST", "/workflows/{workflow_id}/execute", { path: { workflow_id: item.id }, text, headers: { "idempotency-key": sent.current.key } });
            say("The run has started");
            unsaved.clear();
            go(to("runs", run.id));
        } catch (cause) {
            setProblems(problemsOf(cause, "body.input_data"));
            setError(cause);
        }
    };
    return html`<div class="narrow" onKeyDown=${enter} onInput=${(/** @type {Event} */ event) => isText(event.target) && setTyped(true)}><${InputForm} state=${state} problems=${problems} id="start" />
        <${Choice} id="priority" label="Priority" value=${priority} change=${setPriority}
            options=${Array.from({ length: 10 }, (_, number) => [String(number), `${number}${number === 5 ? " (normal)" : number === 9 ? " (first)" : ""}`])} />
        <${Problem} error=${error} /><div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${start}>Start the run</${Action}></div></div>`;
}

/** @param {{ name: string }} props */
function ItsRuns({ name }) {
    const loaded = usePage("/runs", { query: { name, page_size: 25 } });
    return html`<p><a href=${`${to("runs")}?name=${encodeURIComponent(name)}`}>Open in the list of runs</a></p>
        <${PagedTable} loaded=${loaded} label="Runs of the workflow" what="runs" columns=${["Run", "Status", "Created", "Duration", "Error"]}
        row=${(/** @type {any} */ run) => html`<tr data-row key=${run.id}><td><a class="mono" href=${to("runs", run.id)}>${run.id}</a></td>
            <td><${Status} status=${run.status} /></td><td><${Time} at=${run.created_at} /></td><td class="number">${took(run, Date.now())}</td>
            <td><span class="clip">${run.error_message ?? ""}</span></td></tr>`} />`;
}

/** @param {{ item: any, reload: () => void }} props */
function Versions({ item, reload }) {
    const { query } = use(place);
    const path = { workflow_id: item.id };
    const loaded = usePage("/workflows/{workflow_id}/versions", { path, query: { page_size: 25 } });
    const [from, to_] = [query.get("from"), query.get("to")];
    const restore = (/** @type {number} */ version) => async () => {
        await api("POST", "/workflows/{workflow_id}/rollback", { path, body: { version } });
        say(`Version ${version} is the newest one again`);
        reload();
        loaded.reload();
    };
    if (loaded.error) return html`<${Problem} error=${loaded.error} retry=${loaded.reload} />`;
    if (!loaded.data) return html`<${Loading} what="versions" />`;
    return html`<${Table} label="Versions" columns=${["Version", "Made", "By", "Steps", ""]}>${loaded.data.items.map((/** @type {any} */ version) => html`
        <tr data-row key=${version.id}><td>${version.version}${version.version === item.version ? html` <span class="faint">newest</span>` : ""}</td>
            <td><${Time} at=${version.updated_at} absolute /></td><td>${version.updated_by ?? version.created_by ?? "–"}</td>
            <td class="number">${Object.keys(version.workflow_data?.steps ?? {}).length}</td><td class="row-actions">
            ${version.version !== item.version && html`<button type="button" onClick=${() => setQuery({ from: String(version.version), to: String(item.version) })}>
                Compare with ${item.version}</button> <${Action} permission="workflows:write" onClick=${restore(version.version)}>Restore</${Action}>`}</td></tr>`)}</${Table}>
        <${Pager} page=${loaded.data} what="versions" />${from && to_ && html`<${VersionDiff} id=${item.id} from=${from} to=${to_} />`}`;
}

/** @param {{ id: string, from: string, to: string }} props */
function VersionDiff({ id, from, to: other }) {
    const path = { workflow_id: id, version: from, other };
    const summary = useGet("/workflows/{workflow_id}/versions/{version}/diff/{other}", { path });
    const before = useGet("/workflows/{workflow_id}/versions/{version}", { path: { workflow_id: id, version: from } });
    const after = useGet("/workflows/{workflow_id}/versions/{version}", { path: { workflow_id: id, version: other } });
    const steps = summary.data?.steps;
    const names = (/** @type {any} */ of) => Object.keys(of ?? {}).join(", ") || "none";
    return html`<section aria-label="Difference of two versions"><h2>From version ${from} to ${other}</h2><${Problem} error=${summary.error ?? before.error ?? after.error} />
        ${summary.data && html`<${Facts} items=${[["Steps added", names(steps.added)], ["Steps changed", names(steps.changed)], ["Steps removed", names(steps.removed)]]} />`}
        ${before.data && after.data && html`<${Difference} before=${toDefinition(before.data)} after=${toDefinition(after.data)} />`}</section>`;
}

/** @param {{ id: string }} props */
function Use({ id }) {
    const loaded = useGet(can("runs:read") ? "/workflows/{workflow_id}/usage" : null, { path: { workflow_id: id } });
    if (!can("runs:read")) return html`<p class="faint">${needs("runs:read")}</p>`;
    if (loaded.error) return html`<${Problem} error=${loaded.error} retry=${loaded.reload} />`;
    if (!loaded.data) return html`<${Loading} what="what its runs use" />`;
    return html`<${Table} label="Use of models" columns=${["", "Calls", "Input tokens", "Output tokens", "Cost"]}>
        ${[["Last 24 hours", loaded.data.last_24_hours], ["Last 7 days", loaded.data.last_7_days]].map(([name, sum]) => html`<tr key=${name}>
            <th scope="row">${name}</th><td class="number">${sum.calls}</td><td class="number">${sum.input_tokens}</td><td class="number">${sum.output_tokens}</td><td class="number">${sum.cost}</td></tr>`)}</${Table}>`;
}

/** @param {{ item: any, onClose: () => void }} props */
function Remove({ item, onClose }) {
    const work = async () => {
        const { headers } = await call("GET", "/workflows/{workflow_id}", { path: { workflow_id: item.id } });
        await api("DELETE", "/workflows/{workflow_id}", { path: { workflow_id: item.id }, headers: { "if-match": headers.get("etag") ?? "*" } });
        say(`${item.name} is deleted`);
        go(to("workflows"));
    };
    const newest = useGet("/workflows/{workflow_id}/versions", { path: { workflow_id: item.id }, query: { page_size: 1 } });
    const what = newest.data?.items[0]?.version > item.version ? `Version ${item.version} cannot be executed any more. The newer versions, and with them the workflow, stay as they are.`
        : `No run can start by the name ${item.name} any more, so its triggers start none. Its runs and versions stay: version ${item.version} cannot be executed, older ones can by their ids. Storing a definition of this name makes its next version.`;
    return html`<${Sure} title=${`Delete ${item.name}`} text=${what} permission="workflows:write" action="Delete" work=${work} onClose=${onClose} />`;
}
