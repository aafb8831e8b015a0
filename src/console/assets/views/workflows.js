import { html, use } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Filter, PagedTable, usePage } from "../parts/list.js";
import { each, useLoad } from "../parts/load.js";
import { place, setQuery, to } from "../parts/router.js";
import { tookMs } from "../parts/run-list.js";
import { can, session } from "../parts/session.js";
import { duration, percentile } from "../parts/time.js";
import { Action, Empty, Head, Status, Time } from "../parts/ui.js";
import { go } from "../parts/router.js";

/** Runs in the strip of a workflow; rate and p95 are of these. */
const STRIP = 20;

export function Workflows() {
    const { query } = use(place);
    use(session);
    const prefix = query.get("name_prefix") ?? "";
    const status = query.get("status") ?? "active";
    const loaded = usePage("/workflows", { query: { versions: "newest", name_prefix: prefix, status: status === "all" ? "" : status, page_size: 100, sort_by: "name", sort_order: "asc" } });
    const names = (loaded.data?.items ?? []).map((/** @type {any} */ item) => item.name);
    const strips = useLoad(async (signal) => {
        if (!can("runs:read")) return new Map();
        const pages = await each(names, 4, (/** @type {string} */ name) => api("GET", "/runs", { query: { name, page_size: STRIP }, signal, quiet: name !== names[0] }));
        return new Map(pages.map((page, index) => [names[index], page.items]));
    }, [names]);
    return html`<${Head} title="Workflows"><${Action} kind="primary" permission="workflows:write" onClick=${() => go(to("workflows", "new"))}>
            New workflow</${Action}></${Head}>
        <div class="filters" role="search"><${Filter} name="name_prefix" label="Name begins with" search value=${prefix}
            change=${(/** @type {string} */ value) => setQuery({ name_prefix: value, cursor: null })} />
        <${Filter} name="status" label="Status" value=${status} change=${(/** @type {string} */ value) => setQuery({ status: value, cursor: null })}
            options=${[["active", "active"], ["inactive", "inactive"], ["deleted", "deleted"], ["all", "all"]]} /></div>
        <${PagedTable} loaded=${loaded} label="Workflows" what="workflows" columns=${["Name", "Version", "Last runs", `Success of ${STRIP}`, "p95", "Changed", "Description"]}
            empty=${html`<${Empty} method="PUT" path="/workflow-names/hello" body=${{ start_step: "a", steps: { a: { id: "a", agent_name: "AGENT", input_mapping: {} } } }}>
                There are no workflows here. Make one in <a href=${to("workflows", "new")}>the editor</a>, or from a shell:</${Empty}>`}
            row=${(/** @type {any} */ item) => html`<${Row} key=${item.id} item=${item} runs=${strips.data?.get(item.name)} />`} />`;
}

/** @param {{ item: any, runs: any[] | undefined }} props */
function Row({ item, runs }) {
    const ended = (runs ?? []).filter((run) => ["COMPLETED", "FAILED"].includes(run.status));
    const good = ended.filter((run) => run.status === "COMPLETED");
    const p95 = percentile(good.map((run) => tookMs(run, Date.now())), 0.95);
    return html`<tr data-row><td><a href=${to("workflows", item.id)}>${item.name}</a>${item.status !== "active" && html` <${Status} status=${item.status.toUpperCase()} />`}</td>
        <td class="number">${item.version}</td><td><${Strip} runs=${runs} name=${item.name} /></td>
        <td class="number">${ended.length ? `${Math.round((100 * good.length) / ended.length)} %` : "–"}</td><td class="number">${duration(p95)}</td>
        <td><${Time} at=${item.updated_at} /></td><td><span class="clip" title=${item.description ?? ""}>${item.description ?? ""}</span></td></tr>`;
}

/** @param {{ runs: any[] | undefined, name: string }} props */
function Strip({ runs, name }) {
    if (!runs) return html`<span class="faint">…</span>`;
    const failed = runs.filter((run) => run.status === "FAILED").length;
    return html`<a class="strip" href=${`${to("runs")}?name=${encodeURIComponent(name)}`} aria-label=${`${runs.length} last runs, ${failed} failed`}>
        <svg viewBox=${`0 0 ${STRIP * 6} 16`} aria-hidden="true">${[...runs].reverse().map((run, index) => html`<rect key=${run.id}
            class=${`bar s-${run.status}`} x=${(STRIP - runs.length + index) * 6} y=${run.status === "FAILED" ? 0 : 4} width="4"
            height=${run.status === "FAILED" ? 16 : 12} rx="1" />`)}</svg></a>`;
}
