import { html, use, useEffect, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Between, Filter, Pager, Table, typed, usePage } from "../parts/list.js";
import { each, pages, useEvery } from "../parts/load.js";
import { allows, cell, COLUMNS, columnsOf, compareRows, DEFAULT_COLUMNS, filtersOf, renewed, shortId, STATUSES, toCsv, toJson, took, unread }
    from "../parts/run-list.js";
import { place, setQuery, to } from "../parts/router.js";
import { columns as lastColumns, now } from "../parts/settings.js";
import { ACTIONS, AllOfFilter, Bulk } from "./bulk.js";
import { counted } from "../parts/time.js";
import { SavedViews } from "./saved.js";
import { Action, Dialog, download, Empty, Head, Loading, Problem, say, Status, Time, words } from "../parts/ui.js";

const PAGE = 50;
const LOOK_MS = 5000;
/** Rows of an export: those that pages by keyset give in a minute. */
const EXPORTED = 10_000;

export function Runs() {
    const { query } = use(place);
    const filters = filtersOf(query);
    const columns = columnsOf(query.get("cols"), use(lastColumns));
    const size = Math.min(100, Math.max(1, Number(query.get("page_size")) || PAGE));
    const asked = { ...filters, page_size: size };
    const loaded = usePage("/runs", { query: asked });
    const [chosen, setChosen] = useState(/** @type {Set<string>} */ (new Set()));
    const [choosing, setChoosing] = useState(false);
    const [exporting, setExporting] = useState(false);
    const [acting, setActing] = useState(false);
    const key = JSON.stringify([asked, query.get("cursor")]);
    useEffect(() => setChosen(new Set()), [key]);
    useEffect(() => {
        const given = query.get("cols");
        if (given) lastColumns.value = given;
    }, [query.get("cols")]);
    const fresh = useLive(loaded, { ...asked, cursor: query.get("cursor") }, !query.get("cursor") && (filters["sort_by"] ?? "created_at") === "created_at" && filters["sort_order"] !== "asc");
    const items = loaded.data?.items ?? [];
    const change = (/** @type {string} */ name) => (/** @type {string} */ value) => setQuery({ [name]: value, cursor: null });
    const all = items.length > 0 && items.every((/** @type {any} */ run) => chosen.has(run.id));
    const toggleAll = () => setChosen(all ? new Set() : new Set(items.map((/** @type {any} */ run) => run.id)));
    const show = () => {
        // The button goes, so the keyboard goes on in the list.
        const next = document.querySelector("main .table") ?? document.querySelector("main h1");
        if (next instanceof HTMLElement) next.focus();
        loaded.reload();
    };
    const picked = items.filter((/** @type {any} */ run) => chosen.has(run.id));
    return html`<${Head} title="Runs"><${SavedViews} columns=${columns} /><button type="button" class="quiet" onClick=${() => setChoosing(true)}>Columns</button>
        <button type="button" class="quiet" onClick=${() => setExporting(true)}>Export</button>
        <${Action} kind="quiet" permission="runs:write" onClick=${() => setActing(true)}>Act on all</${Action}></${Head}>
        <${Filters} filters=${filters} change=${change} />
        <div class="news">${picked.length > 0 && html`<${Selection} runs=${picked} done=${() => (setChosen(new Set()), loaded.reload())} />`}
            <div aria-live="polite">${fresh > 0 && html`<button type="button" class="primary" onClick=${show}>
                ${fresh === size ? `${size} or more` : fresh} new ${fresh === 1 ? "run" : "runs"}: show</button>`}</div></div>
        ${loaded.error ? html`<${Problem} error=${loaded.error} retry=${loaded.reload} />`
            : !loaded.data ? html`<${Loading} what="runs" />`
            : !items.length && !loaded.data.next_cursor && !loaded.data.prev_cursor ? html`<${NoRuns} filtered=${Object.keys(filters).length > 0} />`
            : html`<${Table} label="Runs" columns=${[html`<input type="checkbox" aria-label="Select all of this page" checked=${all}
                onChange=${toggleAll} />`, ...columns.map((name) => COLUMNS[name] ?? name)]}>
                ${items.map((/** @type {any} */ run) => html`<${Row} key=${run.id} run=${run} columns=${columns} chosen=${chosen.has(run.id)}
                    toggle=${() => setChosen(flipped(chosen, run.id))} />`)}</${Table}><${Pager} page=${loaded.data} what="runs" />`}
        ${choosing && html`<${Columns} columns=${columns} runs=${items} onClose=${() => setChoosing(false)} />`}
        ${acting && html`<${AllOfFilter} filters=${filters} onClose=${() => (setActing(false), loaded.reload())} />`}
        ${exporting && html`<${Export} filters=${filters} columns=${columns} onClose=${() => setExporting(false)} />`}`;
}

/** @param {Set<string>} set @param {string} id */
function flipped(set, id) {
    const next = new Set(set);
    if (!next.delete(id)) next.add(id);
    return next;
}

/**
 * How many runs are new. What changes in the rows that are shown is shown at once; rows never move by themselves.
 * @param {import("../parts/load.js").Loaded} loaded @param {Record<string, any>} query @param {boolean} isNewest
 */
function useLive(loaded, query, isNewest) {
    const [fresh, setFresh] = useState(0);
    const data = loaded.data;
    useEffect(() => setFresh(0), [JSON.stringify(data?.items?.[0]?.id ?? null), JSON.stringify(query)]);
    const shown = useRef(data);
    shown.current = data;
    const isLooking = useRef(false);
    const turn = useRef(0);
    useEvery(Boolean(data) && (isNewest || data.items.some((/** @type {any} */ run) => allows(run, "cancel"))), LOOK_MS, async () => {
        if (isLooking.current) return;
        isLooking.current = true;
        try {
            const latest = await api("GET", "/runs", { query, quiet: true });
            const others = await each(unread(data.items, latest.items, turn.current++), 4, async (row) => {
                try {
                    return renewed(row, await api("GET", "/runs/{run_id}", { path: { run_id: row.id }, quiet: true }));
                } catch (error) {
                    if (/** @type {any} */ (error).status !== 404) throw error;
                    return renewed(row, null);
                }
            });
            // Something else was read meanwhile, or the screen was left.
            if (shown.current !== data) return;
            const compared = compareRows(data.items, latest.items, others);
            if (isNewest) setFresh(compared.fresh);
            if (JSON.stringify(compared.rows) !== JSON.stringify(data.items)) loaded.set({ ...data, items: compared.rows });
        } catch (error) {
            // The next look says whether it is over; what is shown stays.
            console.warn(words(error));
        } finally {
            isLooking.current = false;
        }
    });
    return fresh;
}

/** @param {{ filters: Record<string, string>, change: (name: string) => (value: string) => void }} props */
function Filters({ filters, change }) {
    const chosen = new Set((filters["status"] ?? "").split(",").filter(Boolean));
    const flip = (/** @type {string} */ status) => {
        const next = flipped(chosen, status);
        change("status")(STATUSES.filter((one) => next.has(one)).join(","));
    };
    const rest = Object.entries(filters).filter(([name]) =>
        ["name", "workflow_definition_id", "trigger_id", "parent_run_id"].includes(name));
    const value = (/** @type {string} */ name) => filters[name] ?? "";
    return html`<div class="filters" role="search" aria-label="Filters of runs">
        <${Filter} name="name_prefix" label="Workflow begins with" search value=${value("name_prefix")} change=${change("name_prefix")} />
        <div class="filter"><span class="label" id="status-label">Status</span><div class="chips" role="group" aria-labelledby="status-label">
            ${STATUSES.map((status) => html`<button type="button" key=${status} class="chip" aria-pressed=${chosen.has(status)}
                onClick=${() => flip(status)}><${Status} status=${status} /></button>`)}</div></div>
        <${Filter} name="triggered_by" label="Started by" value=${value("triggered_by")} change=${change("triggered_by")} />
        <${Between} after=${value("created_after")} before=${value("created_before")} change=${change} />
        <${Filter} name="sort" label="Order" value=${`${value("sort_by") || "created_at"} ${value("sort_order") || "desc"}`}
            change=${(/** @type {string} */ text) => setQuery({ sort_by: text.split(" ")[0] ?? null, sort_order: text.split(" ")[1] ?? null, cursor: null })}
            options=${[["created_at desc", "newest first"], ["created_at asc", "oldest first"], ["updated_at desc", "last changed"],
                ["completed_at desc", "last completed"]]} />
        ${rest.map(([name, text]) => html`<button type="button" key=${name} class="chip on" title="Remove this filter"
            onClick=${() => change(name)("")}>${name}: <span>${text}</span> <span aria-hidden="true">✕</span><span class="sr"> remove</span></button>`)}</div>`;
}

/** @param {{ run: any, columns: string[], chosen: boolean, toggle: () => void }} props */
function Row({ run, columns, chosen, toggle }) {
    return html`<tr data-row class=${chosen ? "chosen" : ""}><td><input type="checkbox" checked=${chosen} onChange=${toggle}
        aria-label=${`Select ${run.id}`} /></td>${columns.map((name) => html`<td key=${name} class=${`c-${name.split(".")[0]}`}>
        <${Cell} run=${run} name=${name} /></td>`)}</tr>`;
}

/** @param {{ run: any, name: string }} props */
function Cell({ run, name }) {
    switch (name) {
        case "run": return html`<a class="mono" href=${to("runs", run.id)} title=${run.id}>${shortId(run.id)}</a>`;
        case "workflow": return html`<a href=${to("runs", run.id)}>${run.workflow_name}</a>`;
        case "status": return html`<${Status} status=${run.status} paused=${Boolean(run.paused_at) && allows(run, "cancel")} />`;
        case "created": return html`<${Time} at=${run.created_at} />`;
        case "error": return html`${run.retrying && html`<span class="faint">next attempt <${Time} at=${run.retrying.next_attempt_at} />, </span>`}<${Text} value=${cell(run, name)} />`;
        case "completed": return html`<${Time} at=${run.completed_at} />`;
        case "due": return html`<${Time} at=${run.trigger?.at} />`;
        case "deadline": return html`<span class=${run.deadline_missed_at ? "bad" : ""}><${Time} at=${run.deadline_at} />${run.deadline_missed_at ? " missed" : ""}</span>`;
        case "trigger": return run.trigger && html`<a href=${to("triggers", run.trigger.id)}>${run.trigger.kind}</a>`;
        case "took": return took(run, use(now));
        case "parent": return run.parent_run_id && html`<a class="mono" href=${to("runs", run.parent_run_id)}>${shortId(run.parent_run_id)}</a>`;
        default: return html`<${Text} value=${cell(run, name)} />`;
    }
}

/** @param {{ value: unknown }} props */
function Text({ value }) {
    const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    return html`<span class="clip" title=${text.slice(0, 1000)}>${text.slice(0, 200)}</span>`;
}

/** @param {{ filtered: boolean }} props */
function NoRuns({ filtered }) {
    if (filtered) return html`<${Empty}>No run matches these filters.</${Empty}>`;
    return html`<${Empty} path="/workflow-names/NAME/execute" body=${{ input_data: {} }}>
        There are no runs yet. Start one from <a href=${to("workflows")}>a workflow</a>, or from a shell:</${Empty}>`;
}

/** @param {{ runs: any[], done: () => void }} props */
function Selection({ runs, done }) {
    const [action, setAction] = useState("");
    return html`<div class="selection" role="region" aria-label="Selected runs"><strong>${runs.length} selected</strong>
        ${ACTIONS.map((name) => {
            const count = runs.filter((run) => allows(run, name)).length;
            return html`<${Action} key=${name} permission="runs:write" disabled=${count === 0} onClick=${() => setAction(name)}>
                ${name[0]?.toUpperCase()}${name.slice(1)} ${count}</${Action}>`;
        })}${runs.length === 2 && html`<a class="button" href=${`${to("compare")}?a=${runs[0].id}&b=${runs[1].id}`}>Compare</a>`}${action && html`<${Bulk} action=${action} runs=${runs} onClose=${() => setAction("")} done=${done} />`}</div>`;
}

/** @param {{ columns: string[], runs: any[], onClose: () => void }} props */
function Columns({ columns, runs, onClose }) {
    const [own, setOwn] = useState("");
    const set = (/** @type {string[]} */ next) => setQuery({ cols: next.join(",") });
    const seen = new Set(runs.flatMap((run) => Object.keys(run.input_data ?? {}).slice(0, 20).map((name) => `input.${name}`)));
    const names = [...new Set([...Object.keys(COLUMNS), ...columns, ...[...seen].filter((name) => !name.includes(",")).slice(0, 20)])];
    const add = (/** @type {Event} */ event) => {
        event.preventDefault();
        const name = `input.${own.replace(/^input\./, "").trim()}`;
        if (name !== "input.") set([...columns, name]);
        setOwn("");
    };
    return html`<${Dialog} title="Columns" onClose=${onClose}><div class="choices">${names.map((name) => html`<label key=${name}>
        <input type="checkbox" checked=${columns.includes(name)} onChange=${() => set(columns.includes(name)
            ? columns.filter((one) => one !== name) : [...columns, name])} /> ${COLUMNS[name] ?? name}</label>`)}</div>
        <form class="inline" onSubmit=${add}><label for="own">Member of the input</label>
        <input id="own" placeholder="order.id" value=${own} onInput=${typed(setOwn)} />
        <button type="submit">Add</button></form>
        <button type="button" class="quiet" onClick=${() => set(DEFAULT_COLUMNS)}>Default columns</button></${Dialog}>`;
}

/** @param {{ filters: Record<string, string>, columns: string[], onClose: () => void }} props */
function Export({ filters, columns, onClose }) {
    const [count, setCount] = useState(0);
    const stop = useRef(new AbortController());
    useEffect(() => () => stop.current.abort(), []);
    const collect = async (/** @type {string} */ format) => {
        const { items: rows, isCut } = await pages(async (cursor, isFirst) => {
            const page = await api("GET", "/runs", { query: { ...filters, page_size: 100, cursor }, quiet: !isFirst, signal: stop.current.signal });
            return { items: page.items, next: page.next_cursor };
        }, EXPORTED, setCount);
        download(`runs.${format}`, format === "csv" ? "text/csv" : "application/json",
            format === "csv" ? toCsv(rows, columns) : toJson(rows));
        say(`${counted(rows.length, "runs")} exported${isCut ? "; there are more" : ""}`);
        onClose();
    };
    return html`<${Dialog} title="Export runs" onClose=${onClose}><p>All runs of these filters, at most ${EXPORTED.toLocaleString("en")}.
        CSV has the columns of the list, JSON all members.</p>${count > 0 && html`<p role="status">${count} read…</p>`}
        <div class="buttons"><${Action} onClick=${() => collect("csv")}>CSV</${Action}><${Action} onClick=${() => collect("json")}>JSON</${Action}>
        </div></${Dialog}>`;
}
