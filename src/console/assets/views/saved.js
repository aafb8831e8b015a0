// Saved views of the list of runs: one's own, and the organisation's.
import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { valueOf } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { go, place, to } from "../parts/router.js";
import { can, needs } from "../parts/session.js";
import { Action, Dialog, Problem, say } from "../parts/ui.js";

/** What a view keeps of the address. @param {URLSearchParams} query */
function kept(query) {
    const rest = new URLSearchParams(query);
    rest.delete("cursor");
    return rest.toString();
}

export function SavedViews() {
    const { query } = use(place);
    const loaded = useGet("/views", { query: { screen: "runs" } });
    const [open, setOpen] = useState(false);
    /** @type {any[]} */
    const items = loaded.data?.items ?? [];
    const current = items.find((view) => view.query === kept(query));
    const choose = (/** @type {any} */ event) => {
        const view = items.find((one) => one.id === valueOf(event));
        go(to("runs") + (view?.query ? `?${view.query}` : ""));
    };
    return html`${items.length > 0 && html`<label class="sr" for="views">Saved view</label><select id="views" class="views" value=${current?.id ?? ""} onChange=${choose}>
            <option value="" selected=${!current}>Views…</option>${items.map((view) => html`<option key=${view.id} value=${view.id}
                selected=${view === current}>${view.name}${view.shared ? " (shared)" : ""}</option>`)}</select>`}
        <button type="button" class="quiet" onClick=${() => setOpen(true)}>Save view</button>
        ${open && html`<${Save} current=${current} onClose=${() => setOpen(false)} done=${() => (setOpen(false), loaded.reload())} />`}`;
}

/** @param {{ current: any, onClose: () => void, done: () => void }} props */
function Save({ current, onClose, done }) {
    const [name, setName] = useState(current?.name ?? "");
    const [shared, setShared] = useState(false);
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const save = async () => {
        try {
            await api("POST", "/views", { body: { screen: "runs", name: name.trim(), query: kept(place.peek().query), shared } });
            say(`${name.trim()} is saved`);
            done();
        } catch (cause) {
            setError(cause);
        }
    };
    const remove = async () => {
        await api("DELETE", "/views/{view_id}", { path: { view_id: current.id } });
        say(`${current.name} is deleted`);
        done();
    };
    return html`<${Dialog} title="Save this view" onClose=${onClose}><p class="faint">Filters, columns and order, as they are in the address.</p>
        <label for="view-name">Name of the view</label><input id="view-name" value=${name} maxlength="100" onInput=${(/** @type {any} */ event) => setName(valueOf(event))} />
        <label class="check"><input type="checkbox" checked=${shared} disabled=${!can("workflows:write")} onChange=${() => setShared(!shared)} /> For the whole organisation
            ${!can("workflows:write") && html` <span class="faint">${needs("workflows:write")}</span>`}</label>
        <${Problem} error=${error} /><div class="buttons"><${Action} kind="primary" disabled=${!name.trim()} onClick=${save}>Save</${Action}>
        ${current && html`<${Action} kind="danger" onClick=${remove}>Delete ${current.name}</${Action}>`}<button type="button" onClick=${onClose}>Close</button></div></${Dialog}>`;
}
