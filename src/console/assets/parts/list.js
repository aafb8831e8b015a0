// Lists by keyset: a page, its neighbours, and the table around it.
import { html, use } from "./runtime.js";
import { useGet } from "./load.js";
import { place, setQuery } from "./router.js";
import { fromField, toField } from "./time.js";
import { Loading, Problem } from "./ui.js";

/** The page of a list that the address names. @param {string} path @param {import("./api.js").Options} [options] */
export function usePage(path, options = {}) {
    const { query } = use(place);
    const cursor = query.get("cursor");
    return useGet(path, { ...options, query: { ...options.query, cursor } });
}

/** @param {{ page: any, what: string }} props */
export function Pager({ page, what }) {
    if (!page) return null;
    const { query } = place.peek();
    const total = `${page.total_is_exact ? "" : "more than "}${Number(page.total).toLocaleString("en")} ${what}`;
    const turn = (/** @type {string | null} */ cursor) => setQuery({ cursor });
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
    return html`<div class="table" role="region" aria-label=${label} tabindex="0"><table><caption class="sr">${label}</caption><thead><tr>
        ${columns.map((column, index) => (column === "" ? html`<td key=${index}></td>` : html`<th scope="col" key=${index}>${column}</th>`))}</tr></thead>
        <tbody>${children}</tbody></table></div>`;
}

/** @param {any} event @returns {string} */
export const valueOf = (event) => event.target.value;

/** @param {{ name: string, label: string, value: string, change: (value: string) => void, options?: [string, string][],
 *   search?: boolean, type?: string, placeholder?: string }} props */
export function Filter({ name, label, value, change, options, search, type, placeholder }) {
    const id = `filter-${name}`;
    return html`<div class="filter"><label for=${id}>${label}</label>${options
        ? html`<select id=${id} value=${value} onChange=${(/** @type {any} */ event) => change(valueOf(event))}>
            ${options.map(([key, title]) => html`<option key=${key} value=${key} selected=${key === value}>${title}</option>`)}</select>`
        : html`<input id=${id} type=${type ?? "search"} value=${value} placeholder=${placeholder ?? ""} data-search=${search ? "" : undefined}
            onChange=${(/** @type {any} */ event) => change(valueOf(event).trim())} />`}</div>`;
}

/** Filters of a time. @param {{ after: string | undefined, before: string | undefined, change: (name: string) => (value: string) => void }} props */
export function Between({ after, before, change }) {
    return html`<${Filter} name="created_after" label="Created after (UTC)" type="datetime-local" value=${toField(after ?? "")}
            change=${(/** @type {string} */ text) => change("created_after")(fromField(text))} />
        <${Filter} name="created_before" label="Created before (UTC)" type="datetime-local" value=${toField(before ?? "")}
            change=${(/** @type {string} */ text) => change("created_before")(fromField(text))} />`;
}
