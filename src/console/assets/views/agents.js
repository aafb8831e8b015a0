import { html, use, useState } from "../parts/runtime.js";
import { api, call, ifMatch } from "../parts/api.js";
import { Choice, Finish, Line, Sure, Text } from "../parts/form.js";
import { Filter, PagedTable, Table, usePage } from "../parts/list.js";
import { each, useGet, useLoad } from "../parts/load.js";
import { go, place, setQuery, to } from "../parts/router.js";
import { can, session } from "../parts/session.js";
import { duration } from "../parts/time.js";
import { parsed, pretty } from "../parts/text.js";
import { Action, Dialog, Empty, Facts, Head, Json, Pending, Problem, Retried, say, Status, Time } from "../parts/ui.js";

const KINDS = ["a2a", "http", "openai", "responses", "mcp"];
/** What can be changed of an agent. */
const MEMBERS = ["url", "kind", "description", "status", "timeout_ms", "retry_config", "circuit_breaker_config", "config", "fallbacks"];

export function Agents() {
    const { query } = use(place);
    use(session);
    const [making, setMaking] = useState(false);
    const [prefix, status] = [query.get("name_prefix") ?? "", query.get("status") ?? "active"];
    const loaded = usePage("/agents", { query: { name_prefix: prefix, status: status === "all" ? "" : status, page_size: 25 } });
    const ids = (loaded.data?.items ?? []).map((/** @type {any} */ agent) => agent.id);
    const stats = useLoad(async (signal) => {
        /** @type {unknown} */
        let failed = null;
        const found = await each(ids, 4, (/** @type {string} */ id) => api("GET", "/agents/{agent_id}/stats", { path: { agent_id: id }, signal, quiet: id !== ids[0] })
            .catch((error) => void (failed = error)));
        return { failed, calls: new Map(found.filter(Boolean).map((one) => [one.agent_id, one.last_24_hours])) };
    }, [ids]);
    return html`<${Head} title="Agents"><${Action} kind="primary" permission="agents:write" onClick=${() => setMaking(true)}>New agent</${Action}></${Head}>
        <div class="filters" role="search"><${Filter} name="name_prefix" label="Name begins with" search value=${prefix}
            change=${(/** @type {string} */ value) => setQuery({ name_prefix: value, cursor: null })} />
        <${Filter} name="status" label="Status" value=${status} change=${(/** @type {string} */ value) => setQuery({ status: value, cursor: null })}
            options=${[["active", "active"], ["inactive", "inactive"], ["deleted", "deleted"], ["all", "all"]]} /></div>
        <${Problem} error=${stats.data?.failed} retry=${stats.reload} /><${PagedTable} loaded=${loaded} label="Agents" what="agents" columns=${["Name", "Kind", "Circuit breaker", "Calls 24 h", "Errors", "p50", "p95", "Address"]}
            empty=${html`<${Empty} path="/agents" body=${{ name: "shout", url: "http://127.0.0.1:9010/upper" }}>
                There are no agents here. Make one, or from a shell:</${Empty}>`}
            row=${(/** @type {any} */ agent) => html`<${Row} key=${agent.id} agent=${agent} calls=${stats.data && (stats.data.calls.get(agent.id) ?? UNKNOWN)} />`} />
        ${making && html`<${Edit} agent=${null} tag=${null} onClose=${() => setMaking(false)} done=${(/** @type {any} */ agent) => go(to("agents", agent.id))} />`}`;
}

/** Calls that could not be read. */
const UNKNOWN = { calls: "–" };
/** @param {any} calls */
const rate = (calls) => (calls?.calls > 0 ? `${((100 * calls.failures) / calls.calls).toFixed(calls.failures ? 1 : 0)} %` : "–");
/** @param {number | null | undefined} ms */
const time = (ms) => (ms === null || ms === undefined ? "–" : duration(ms));

/** @param {{ agent: any, calls: any }} props */
function Row({ agent, calls }) {
    return html`<tr data-row><td><a href=${to("agents", agent.id)}>${agent.name}</a>${agent.status !== "active" && html` <${Status} status=${agent.status.toUpperCase()} />`}</td>
        <td>${agent.kind}${agent.protocol_seen && html` <span class="faint">${agent.protocol_seen}</span>`}</td><td><${Breaker} breaker=${agent.circuit_breaker} /></td>
        <td class="number">${calls?.calls ?? "…"}</td><td class="number">${rate(calls)}</td><td class="number">${time(calls?.p50_ms)}</td>
        <td class="number">${time(calls?.p95_ms)}</td><td><span class="clip mono" title=${agent.url}>${agent.url}</span></td></tr>`;
}

/** @param {{ breaker: any }} props */
function Breaker({ breaker }) {
    if (!breaker) return html`<span class="faint">–</span>`;
    const status = { closed: "COMPLETED", open: "FAILED", half_open: "PENDING" }[/** @type {string} */ (breaker.state)] ?? "PENDING";
    return html`<span class=${`breaker s-${status}`}>${breaker.state.replace("_", " ")}</span>`;
}

/** @param {{ agent_id: string }} props */
export function Agent({ agent_id: id }) {
    use(session);
    const path = { agent_id: id };
    const loaded = useLoad((signal) => call("GET", "/agents/{agent_id}", { path, signal }), [id]);
    const stats = useGet("/agents/{agent_id}/stats", { path });
    const history = useGet(can("audit:read") ? "/audit-logs" : null, { query: { entity_type: "agent", entity_id: id, page_size: 20 } });
    const [health, setHealth] = useState(/** @type {any} */ (null));
    const [open, setOpen] = useState("");
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="agent" back=${[to("agents"), "Agents"]} />`;
    const { data: agent, headers } = loaded.data;
    const tag = headers.get("etag");
    const test = async () => setHealth(await api("GET", "/agents/{agent_id}/health", { path }));
    const done = () => (setOpen(""), loaded.reload());
    const remove = async () => {
        await api("DELETE", "/agents/{agent_id}", { path, headers: ifMatch(tag) });
        say(`${agent.name} is deleted`);
        go(to("agents"));
    };
    const breaker = agent.circuit_breaker;
    return html`<${Head} title=${agent.name} back=${[to("agents"), "Agents"]}><${Action} kind="primary" permission="agents:read" onClick=${test}>Call it</${Action}>
            <${Action} permission="agents:write" onClick=${() => setOpen("edit")}>Edit</${Action}>
            <${Action} permission="agents:write" kind="danger quiet" disabled=${agent.status === "deleted"} onClick=${() => setOpen("delete")}>Delete</${Action}></${Head}>
        ${agent.description && html`<p>${agent.description}</p>`}
        <${Facts} items=${[["Kind", agent.kind], ["Protocol seen", agent.protocol_seen ?? "–"], ["Status", agent.status], ["Address", html`<span class="mono">${agent.url}</span>`],
            ["Time-out", duration(agent.timeout_ms)], ["Credentials", agent.auth_type], ["Fallbacks", agent.fallbacks.join(", ") || "none"], ["Changed", html`<${Time} at=${agent.updated_at} />`]]} />
        <div aria-live="polite">${health && html`<div class=${health.status === "healthy" ? "card good" : "problem"}><strong>${health.status}</strong> ${health.message}
            ${health.response_time_ms !== null && html` <span class="faint">${health.response_time_ms} ms</span>`}</div>`}</div>
        <div class="columns"><section class="card"><h2>Circuit breaker</h2>${breaker ? html`<${Facts} items=${[["State", html`<${Breaker} breaker=${breaker} />`],
                ["Calls in the window", breaker.calls], ["Failures", breaker.failures], ["Opened", html`<${Time} at=${breaker.opened_at} />`], ["Tried again", breaker.retry_at ? html`<${Retried} at=${breaker.retry_at} />` : "–"]]} />`
            : html`<p class="faint">It has none.</p>`}</section>
        <section class="card"><h2>Calls</h2><${Problem} error=${stats.error} />${stats.data && html`<${Table} label="Calls" columns=${["", "Calls", "Errors", "p50", "p95", "Tokens", "Cost"]}>
            ${[["24 hours", stats.data.last_24_hours], ["7 days", stats.data.last_7_days]].map(([name, calls]) => html`<tr key=${name}><th scope="row">${name}</th><td class="number">${calls.calls}</td>
                <td class="number">${rate(calls)}</td><td class="number">${time(calls.p50_ms)}</td><td class="number">${time(calls.p95_ms)}</td><td class="number">${calls.tokens}</td><td class="number">${calls.cost}</td></tr>`)}</${Table}>`}</section></div>
        ${agent.card && html`<section><h2>Card</h2><${Facts} items=${[["Age", agent.card.age_seconds === null ? "–" : duration(agent.card.age_seconds * 1000)],
            ["Signature", agent.card.signature ?? "–"], ["Problem", agent.card.problem ?? "none"], ["Changed members", agent.card.drift ? agent.card.drift.members.join(", ") : "none"]]} />
            <details><summary>Content</summary><${Json} value=${agent.card.content} label="Card" /></details></section>`}
        <details><summary>Settings</summary><${Json} value=${Object.fromEntries(MEMBERS.map((name) => [name, agent[name]]))} label="Settings" /></details>
        ${history.data?.items.length > 0 && html`<section><h2>History</h2><ul class="plain">${history.data.items.map((/** @type {any} */ entry) => html`<li key=${entry.id}>
            <${Time} at=${entry.created_at} absolute /> ${entry.action} <span class="faint">${entry.user_id ?? ""}</span></li>`)}</ul></section>`}
        ${open === "edit" && html`<${Edit} agent=${agent} tag=${tag} onClose=${() => setOpen("")} done=${done} />`}
        ${open === "delete" && html`<${Sure} title=${`Delete ${agent.name}`} text="Steps that call it fail from now on. Its name stays taken." permission="agents:write" action="Delete" work=${remove} onClose=${() => setOpen("")} />`}`;
}

/** @param {{ agent: any, tag: string | null, onClose: () => void, done: (agent: any) => void }} props */
function Edit({ agent, tag, onClose, done }) {
    const [name, setName] = useState("");
    const [url, setUrl] = useState(agent?.url ?? "");
    const [kind, setKind] = useState(agent?.kind ?? "a2a");
    const [first] = useState(() => ({ tag, members: agent ? Object.fromEntries(MEMBERS.filter((one) => !["url", "kind"].includes(one) && agent[one] !== null)
        .map((one) => [one, agent[one]])) : { description: "", timeout_ms: 30_000 } }));
    const [rest, setRest] = useState(() => pretty(first.members));
    const save = async () => {
        const body = { ...parsed(rest), url, kind };
        // What is not there any more is removed, since a change keeps what is absent.
        if (agent) for (const one of Object.keys(first.members)) if (!(one in body)) body[one] = null;
        const saved = agent
            ? await api("PUT", "/agents/{agent_id}", { path: { agent_id: agent.id }, body, headers: ifMatch(first.tag) })
            : await api("POST", "/agents", { body: { ...body, name } });
        say(`${saved.name} is stored`);
        done(saved);
    };
    return html`<${Dialog} title=${agent ? `Edit ${agent.name}` : "New agent"} onClose=${onClose} wide>
        ${!agent && html`<${Line} id="agent-name" label="Name" value=${name} change=${setName} />`}
        <${Line} id="agent-url" label="Address" class="mono" value=${url} change=${setUrl} />
        <${Choice} id="agent-kind" label="Kind" value=${kind} options=${KINDS.map((one) => [one, one])} change=${setKind} />
        <${Text} id="agent-rest" label="Other members (JSON)" rows=${12} value=${rest} change=${setRest} />
        <${Finish} work=${save} permission="agents:write" onClose=${onClose}>Store</${Finish}></${Dialog}>`;
}
