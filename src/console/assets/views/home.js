import { html, use, useLayoutEffect, useRef } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Table } from "../parts/list.js";
import { each, useEvery, useGet, useLoad } from "../parts/load.js";
import { BASE, to } from "../parts/router.js";
import { STATUSES, took } from "../parts/run-list.js";
import { can, isOperator, session } from "../parts/session.js";
import { utc } from "../parts/settings.js";
import { absolute, counted, duration, figure } from "../parts/time.js";
import { illness, LOOKS, named } from "../parts/hooks.js";
import { Bar, Empty, Head, Legend, Problem, Retried, Status, Time } from "../parts/ui.js";

const HOUR_MS = 3_600_000;
const LOOK_MS = 30_000;
/** What is wrong, of each kind. */
const SHOWN = 8;

/** Read again while it is seen. @param {string | null} path @param {import("../parts/api.js").Options} [options] */
function useFresh(path, options) {
    const loaded = useGet(path, options);
    useEvery(path !== null, LOOK_MS, loaded.reload);
    return loaded;
}

/** The first ones of a list, and how many more there are at `href`. @param {{ items: any[], href: string, children: (item: any) => any }} props */
function First({ items, href, children }) {
    return html`<ul class="plain">${items.slice(0, SHOWN).map(children)}${items.length > SHOWN && html`<li><a href=${href}>and ${items.length - SHOWN} more</a></li>`}</ul>`;
}

/** How many of a list there are, where they are seen, and that nothing is wrong. @param {{ data: any, wrong: any[], what: string, well: string, href: string }} props */
function Total({ data, wrong, what, well, href }) {
    if (!data) return null;
    const looked = data.next_cursor ? `the first ${data.items.length}` : "all";
    return html`<p class="faint">${!data.total ? "There are none." : html`<a href=${href}>${data.total_is_exact ? "" : "more than "}${counted(data.total, what)}</a>${
        wrong.length ? data.next_cursor && `; ${looked} are looked at` : `; ${looked} ${well}`}`}</p>`;
}

export function Home() {
    const bound = use(session)?.workflows;
    if (bound) return html`<${Head} title="Home" /><p>The key is bound to workflows, and sees only these and their runs: ${bound.join(", ")}.</p>`;
    return html`<${Head} title="Home" />
        ${can("runs:read") ? html`<${Counts} /><${OverTime} />` : html`<p>Choose a screen.</p>`}
        <div class="columns">${can("runs:read") && html`<${Backlog} />`}${can("runs:write") && html`<${Approvals} />`}${can("workflows:read") && html`<${Triggers} />`}
            ${can("webhooks:read") && html`<${Webhooks} />`}${can("agents:read") && html`<${Breakers} />`}${can("dead-letters:manage") && html`<${Letters} />`}</div>`;
}

function Counts() {
    const loaded = useLoad((signal) => each(STATUSES, 5, async (status) => {
        const page = await api("GET", "/runs", { query: { status, page_size: 1 }, signal });
        return { status, total: page.total, exact: page.total_is_exact };
    }), []);
    useEvery(true, LOOK_MS, loaded.reload);
    return html`<${Problem} error=${loaded.error} retry=${loaded.reload} /><ul class="tiles" aria-label="Runs by status">
        ${STATUSES.map((status, index) => {
            const count = loaded.data?.[index];
            return html`<li key=${status}><a class="tile" href=${`${to("runs")}?status=${status}`}><${Status} status=${status} />
                <strong>${count ? `${figure(count.total)}${count.exact ? "" : "+"}` : loaded.error ? "–" : "…"}</strong></a></li>`;
        })}</ul>`;
}

/** A column for each hour, which leads to its runs; what has failed in them. */
function OverTime() {
    const loaded = useFresh("/runs/counts", { query: { interval: "hour" } });
    const zone = use(utc);
    /** @type {any[]} */
    const buckets = loaded.data?.buckets ?? [];
    const most = Math.max(1, ...buckets.map((bucket) => bucket.total));
    // Where there is no room for all, the latest hours are seen.
    const list = useRef(/** @type {HTMLElement | null} */ (null));
    useLayoutEffect(() => {
        if (list.current) list.current.scrollLeft = list.current.scrollWidth;
    }, [buckets.length]);
    return html`<section class="card"><h2>Runs by hour <span class="faint">${loaded.data?.is_complete === false ? html`of the newest runs, since <${Time} at=${loaded.data.from} absolute />` : "last 24 hours"}</span></h2>
        <${Problem} error=${loaded.error} retry=${loaded.reload} /><ul class="hours" ref=${list}>${buckets.map((bucket) => {
            const words = STATUSES.filter((status) => bucket.runs[status]).map((status) => `${bucket.runs[status]} ${status.toLowerCase()}`).join(", ");
            const end = new Date(Date.parse(bucket.begin) + HOUR_MS - 1).toISOString();
            const label = `${absolute(bucket.begin, zone, true).replace(/:\d\d\.\d+/, "")}: ${words || "no runs"}`;
            return html`<li key=${bucket.begin}><a href=${`${to("runs")}?created_after=${bucket.begin}&created_before=${end}`} title=${label}>
                <span class="sr">${label}</span><svg viewBox="0 0 10 60" preserveAspectRatio="none" aria-hidden="true">${stack(bucket.runs, most).map((part) => html`
                <${Bar} key=${part.status} ...${part} />`)}</svg></a></li>`;
        })}</ul><${Legend} statuses=${STATUSES} /></section><div class="columns"><${Failing} counts=${loaded.data} /><${Latest} /></div>`;
}

/** @param {Record<string, number>} runs @param {number} most */
function stack(runs, most) {
    let y = 60;
    return [...STATUSES].reverse().filter((status) => runs[status]).map((status) => {
        const height = Math.max(1.5, (58 * (runs[status] ?? 0)) / most);
        y -= height;
        return { status, y, height };
    });
}

/** @param {{ counts: any }} props */
function Failing({ counts }) {
    /** @type {any[]} */
    const rows = counts?.failing_workflows ?? [];
    return html`<section class="card"><h2>Failing workflows <span class="faint">of these runs</span></h2>
        ${rows.length ? html`<${Table} label="Failing workflows" columns=${["Workflow", "Failed"]}>${rows.map((one) => html`
            <tr data-row key=${one.workflow_id}><td><a href=${`${to("runs")}?status=FAILED&name=${encodeURIComponent(one.workflow_name)}&created_after=${counts.from}`}>${one.workflow_name}</a></td>
            <td class="number">${figure(one.failed)}</td></tr>`)}</${Table}>`
        : counts ? html`<p class="faint">Nothing has failed.</p>` : ""}</section>`;
}

function Latest() {
    const loaded = useFresh("/runs", { query: { page_size: 8 } });
    const items = loaded.data?.items ?? [];
    return html`<section class="card"><h2><a href=${to("runs")}>Latest runs</a></h2><${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${loaded.data && !items.length ? html`<${Empty}>There are no runs yet. Start with <a href=${to("workflows")}>a workflow</a>.</${Empty}>`
        : html`<${Table} label="Latest runs" columns=${["Workflow", "Status", "Created", "Duration"]}>${items.map((/** @type {any} */ run) => html`
            <tr data-row key=${run.id}><td><a href=${to("runs", run.id)}>${run.workflow_name}</a></td><td><${Status} status=${run.status} paused=${run.paused_at && run.status === "RUNNING"} /></td>
            <td><${Time} at=${run.created_at} /></td><td class="number">${took(run, Date.now())}</td></tr>`)}</${Table}>`}</section>`;
}

function Breakers() {
    const loaded = useFresh("/agents", { query: { page_size: 100, status: "active" } });
    const items = loaded.data?.items ?? [];
    const open = items.filter((/** @type {any} */ agent) => agent.circuit_breaker && agent.circuit_breaker.state !== "closed");
    return html`<section class="card"><h2><a href=${to("agents")}>Circuit breakers</a></h2><${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${!loaded.data ? "" : open.length ? html`<${First} items=${open} href=${to("agents")}>${(/** @type {any} */ agent) => html`<li key=${agent.id}>
            <a href=${to("agents", agent.id)}>${agent.name}</a> is ${agent.circuit_breaker.state.replace("_", " ")}
            ${agent.circuit_breaker.retry_at && html`, tried again <${Retried} at=${agent.circuit_breaker.retry_at} />`}</li>`}</${First}>`
        : html`<p class="faint">${loaded.data.next_cursor ? "Of the first 100 agents all are closed." : "All are closed."}</p>`}</section>`;
}

function Letters() {
    const loaded = useFresh("/dead-letters", { query: { status: "open", page_size: 1 } });
    return html`<section class="card"><h2><a href=${`${BASE}/dead-letters?status=open`}>Dead letters</a></h2>
        <${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${loaded.data && html`<p>${loaded.data.total ? html`<a href=${`${BASE}/dead-letters?status=open`}>${figure(loaded.data.total)} open</a>`
            : html`<span class="faint">None is open.</span>`}</p>`}</section>`;
}

/** How long the oldest run has not begun, and what waits to be sent to executors. */
function Backlog() {
    const oldest = useFresh("/runs", { query: { status: "PENDING", sort_order: "asc", page_size: 1 } });
    const health = useFresh(isOperator() ? "/health/detailed" : null);
    const run = oldest.data?.items[0];
    const outbox = health.data?.components?.outbox;
    return html`<section class="card"><h2><a href=${`${to("runs")}?status=PENDING&sort_by=created_at&sort_order=asc`}>Backlog</a></h2><${Problem} error=${oldest.error ?? health.error} retry=${oldest.reload} />
        ${oldest.data && (run ? html`<p>The oldest run that has not begun is <a href=${to("runs", run.id)}>${run.workflow_name}</a>, <${Time} at=${run.created_at} />${run.flow_control ? html`, held by ${run.flow_control.stage}` : ""}${run.paused_at ? ", paused" : ""}.</p>`
            : html`<p class="faint">Every run has begun.</p>`)}
        ${outbox?.pending > 0 && html`<p>${counted(outbox.pending, "messages")} ${outbox.pending === 1 ? "waits" : "wait"} to be sent to executors, the oldest for ${duration(outbox.lag_seconds * 1000)}.</p>`}</section>`;
}

function Approvals() {
    const loaded = useFresh("/callbacks", { query: { page_size: 100 } });
    /** @type {any[]} */
    const items = (loaded.data?.items ?? []).filter((/** @type {any} */ one) => one.step_execution_id !== null);
    return html`<section class="card"><h2><a href=${to("approvals")}>Waiting for people</a></h2><${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${items.length ? html`<p><a href=${to("approvals")}>${items.length}${loaded.data.next_cursor ? "+" : ""} ${items.length === 1 ? "answer" : "answers"}</a> ${items.length === 1 ? "is" : "are"} waited for</p>
            <${First} items=${items} href=${to("approvals")}>${(/** @type {any} */ one) => html`<li key=${one.url}><a href=${to("runs", one.run_id)}>${one.workflow_name}</a> at <span>${one.step_id}</span> since <${Time} at=${one.created_at} /></li>`}</${First}>`
        : loaded.data ? html`<p class="faint">Nothing.</p>` : ""}</section>`;
}

/** Triggers that are paused or ill. */
function Triggers() {
    const loaded = useFresh("/triggers", { query: { page_size: 100 } });
    const wrong = (loaded.data?.items ?? []).filter((/** @type {any} */ one) => !one.enabled || one.health.status === "failing");
    return html`<section class="card"><h2><a href=${to("triggers")}>Triggers</a></h2><${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${wrong.length > 0 && html`<${First} items=${wrong} href=${to("triggers")}>${(/** @type {any} */ one) => html`<li key=${one.id}><a href=${to("triggers", one.id)}>${one.name}</a>
            ${one.enabled ? "" : html` is paused${one.note && html`: <span>${one.note}</span>`}`}${one.health.status === "failing" ? html` <span class="bad">${illness(one.health)}</span>` : ""}</li>`}</${First}>`}
        <${Total} data=${loaded.data} wrong=${wrong} what="triggers" well="fire" href=${to("triggers")} /></section>`;
}

/** Webhooks that do not arrive. */
function Webhooks() {
    const loaded = useFresh("/webhooks", { query: { page_size: 100 } });
    const wrong = (loaded.data?.items ?? []).filter((/** @type {any} */ one) => one.health !== "healthy" || one.failures > 0);
    return html`<section class="card"><h2><a href=${to("webhooks")}>Webhooks</a></h2><${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${wrong.length > 0 && html`<${First} items=${wrong} href=${to("webhooks")}>${(/** @type {any} */ one) => html`<li key=${one.id}><a href=${to("webhooks", one.id)}>${one.name}</a> <${Status} status=${one.health} as=${LOOKS[one.health]} />
            ${one.failing_since ? html` since <${Time} at=${one.failing_since} />` : ""}${one.disabled_reason ? ` (${named(one.disabled_reason)})` : ""}</li>`}</${First}>`}
        <${Total} data=${loaded.data} wrong=${wrong} what="webhooks" well="are healthy" href=${to("webhooks")} /></section>`;
}
