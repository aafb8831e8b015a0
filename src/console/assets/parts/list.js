// Lists by keyset: a page, its neighbours, and the table around it.
import { html, use, useEffect, useLayoutEffect, useRef, useState } from "./runtime.js";
import { useGet } from "./load.js";
import { place, setQuery } from "./router.js";
import { counted, fromField, toField } from "./time.js";
import { Loading, Problem } from "./ui.js";

/** The page of a list that the address names. @param {string} path @param {import("./api.js").Options} [options] */
export function usePage(path, options = {}) {
    const { query } = use(place);
    const cursor = query.get("cursor");
    return useGet(path, { ...options, query: { ...options.query, cursor } });
}

/** Whether somebody has just turned a page: then the keyboard goes on in its table. */
let isTurned = false;

/** @param {{ page: any, what: string }} props */
export function Pager({ page, what }) {
    if (!page) return null;
    const { query } = place.peek();
    const total = `${page.total_is_exact ? "" : "more than "}${counted(page.total, what)}`;
    const turn = (/** @type {string | null} */ cursor) => {
        isTurned = true;
        setQuery({ cursor });
    };
    return html`<div class="pager"><span class="faint">${total}</span><span class="grow"></span>
        ${query.get("cursor") && html`<button type="button" onClick=${() => turn(null)}>First</button>`}
        <button type="button" disabled=${!page.prev_cursor} onClick=${() => turn(page.prev_cursor)}>Previous</button>
        <button type="button" disabled=${!page.next_cursor} onClick=${() => turn(page.next_cursor)}>Next</button></div>`;
}

/**
 * @param {{ loaded: import("./load.js").Loaded, label: string, columns: string[], row: (item: any) => any, what: string,
 *   empty?: any }} props
 */
export function PagedTable({ loaded, label, columns, row, what, empty }) {
    const { data, error, loading, reload } = loaded;
    if (error) return html`<${Problem} error=${error} retry=${reload} />`;
    if (!data) return loading ? html`<${Loading} what=${what} />` : null;
    if (!data.items.length && !data.prev_cursor && !data.next_cursor) return empty ?? html`<p class="faint">No ${what}.</p>`;
    return html`<${Table} label=${label} columns=${columns}>${data.items.map(row)}</${Table}><${Pager} page=${data} what=${what} />`;
}

/** @param {{ label: string, columns: any[], children?: any }} props */
export function Table({ label, columns, children }) {
    const region = useRef(/** @type {HTMLElement | null} */ (null));
    useLayoutEffect(() => {
        if (isTurned) region.current?.focus({ preventScroll: true });
        isTurned = false;
    }, []);
    return html`<div class="table" ref=${region} role="region" aria-label=${label} tabindex="0"><table><caption class="sr">${label}</caption><thead><tr>
        ${columns.map((column, index) => (column === "" ? html`<td key=${index}></td>` : html`<th scope="col" key=${index}>${column}</th>`))}</tr></thead>
        <tbody>${children}</tbody></table></div>`;
}

/** @param {any} event @returns {string} */
export const valueOf = (event) => event.target.value;

/** A listener that takes what is typed. @param {(value: string) => void} change */
export const typed = (change) => (/** @type {any} */ event) => change(valueOf(event));

/** @param {{ name: string, label: string, value: string, change: (value: string) => void, options?: [string, string][],
 *   search?: boolean, type?: string, placeholder?: string }} props */
export function Filter({ name, label, value, change, options, search, type, placeholder }) {
    const id = `filter-${name}`;
    return html`<div class="filter"><label for=${id}>${label}</label>${options
        ? html`<select id=${id} value=${value} onChange=${typed(change)}>
            ${options.map(([key, title]) => html`<option key=${key} value=${key} selected=${key === value}>${title}</option>`)}</select>`
        : html`<${Typing} id=${id} type=${type ?? "search"} value=${value} placeholder=${placeholder ?? ""} data-search=${search ? "" : undefined} change=${change} />`}</div>`;
}

/** What is typed stays when the list is drawn again, and counts when it is complete.
 * @param {{ value: string, change: (value: string) => void } & Record<string, unknown>} props */
export function Typing({ value, change, ...rest }) {
    const [text, setText] = useState(value);
    useEffect(() => setText(value), [value]);
    const commit = (/** @type {string} */ given) => {
        setText(given.trim());
        if (given.trim() !== value) change(given.trim());
    };
    return html`<input ...${rest} value=${text} onInput=${typed(setText)} onChange=${typed(commit)} />`;
}

/** Filters of a list whose names are those in the address. @param {string[]} names */
export function useFilters(names) {
    const { query } = use(place);
    const asked = Object.fromEntries(names.map((name) => [name, query.get(name) ?? ""]));
    const change = (/** @type {string} */ name) => (/** @type {string} */ value) => setQuery({ [name]: value, cursor: null });
    /** @param {string} name @param {string} label @param {[string, string][]} [options] @param {boolean} [search] */
    const filter = (name, label, options, search) => html`<${Filter} name=${name} label=${label} value=${asked[name]} change=${change(name)} options=${options} search=${search} />`;
    return { asked, change, filter, isFiltered: Object.values(asked).some(Boolean) };
}

/** Choices of a filter. @param {string[]} names @returns {[string, string][]} */
export const choices = (names) => [["", "all"], ...names.map((name) => /** @type {[string, string]} */ ([name, name.replaceAll("_", " ")]))];

/** Filters of a time. @param {{ after: string | undefined, before: string | undefined, change: (name: string) => (value: string) => void }} props */
export function Between({ after, before, change }) {
    return html`<${Filter} name="created_after" label="Created after (UTC)" type="datetime-local" value=${toField(after ?? "")}
            change=${(/** @type {string} */ text) => change("created_after")(fromField(text))} />
        <${Filter} name="created_before" label="Created before (UTC)" type="datetime-local" value=${toField(before ?? "")}
            change=${(/** @type {string} */ text) => change("created_before")(fromField(text))} />`;
}
