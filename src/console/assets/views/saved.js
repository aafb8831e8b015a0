// Saved views of the list of runs: one's own, and the organisation's.
import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Finish, Line, Sure } from "../parts/form.js";
import { valueOf } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { go, place, to } from "../parts/router.js";
import { can, needs } from "../parts/session.js";
import { Action, Dialog, Problem, say } from "../parts/ui.js";

/** What a view keeps: the address, with the columns that are shown. @param {URLSearchParams} query @param {string[]} columns */
function kept(query, columns) {
    const rest = new URLSearchParams(query);
    rest.delete("cursor");
    rest.set("cols", columns.join(","));
    return rest.toString();
}

/** @param {{ columns: string[] }} props */
export function SavedViews({ columns }) {
    const { query } = use(place);
    const loaded = useGet("/views", { query: { screen: "runs" } });
    const [open, setOpen] = useState(false);
    /** @type {any[]} */
    const items = loaded.data?.items ?? [];
    const now = kept(query, columns);
    const current = items.find((view) => view.query === now);
    const choose = (/** @type {any} */ event) => {
        const view = items.find((one) => one.id === valueOf(event));
        go(to("runs") + (view?.query ? `?${view.query}` : ""));
    };
    return html`<${Problem} error=${loaded.error} retry=${loaded.reload} />${items.length > 0 && html`<label class="sr" for="views">Saved view</label><select id="views" class="views" value=${current?.id ?? ""} onChange=${choose}>
            <option value="" selected=${!current}>Views…</option>${items.map((view) => html`<option key=${view.id} value=${view.id}
                selected=${view === current}>${view.name}${view.shared ? " (shared)" : ""}</option>`)}</select>`}
        <button type="button" class="quiet" onClick=${() => setOpen(true)}>Save view</button>
        ${open && html`<${Save} views=${items} current=${current} query=${now} onClose=${() => setOpen(false)} done=${() => (setOpen(false), loaded.reload())} />`}`;
}

/** @param {{ views: any[], current: any, query: string, onClose: () => void, done: () => void }} props */
function Save({ views, current, query, onClose, done }) {
    const [chosen, setChosen] = useState(current);
    const [name, setName] = useState(current?.name ?? "");
    const [shared, setShared] = useState(false);
    const [deleting, setDeleting] = useState(false);
    const permission = (chosen ?? { shared }).shared ? "workflows:write" : "runs:read";
    const choose = (/** @type {string} */ id) => {
        const view = views.find((one) => one.id === id) ?? null;
        setChosen(view);
        setName(view?.name ?? "");
    };
    const save = async () => {
        const body = { name: name.trim(), query };
        if (chosen) await api("PUT", "/views/{view_id}", { path: { view_id: chosen.id }, body });
        else await api("POST", "/views", { body: { screen: "runs", ...body, shared } });
        say(`${name.trim()} is saved`);
        done();
    };
    const remove = async () => {
        await api("DELETE", "/views/{view_id}", { path: { view_id: chosen.id } });
        say(`${chosen.name} is deleted`);
        done();
    };
    return html`<${Dialog} title="Save this view" onClose=${onClose}><p class="faint">Filters, columns and order, as they are in the address.</p>
        ${views.length > 0 && html`<${Choice} id="view-old" label="Store it as" value=${chosen?.id ?? ""} change=${choose}
            options=${[["", "a new view"], ...views.map((view) => [view.id, `${view.name}, changed`])]} />`}
        <${Line} id="view-name" label="Name of the view" value=${name} maxlength="100" change=${setName} />
        ${!chosen && html`<label class="check"><input type="checkbox" checked=${shared} disabled=${!can("workflows:write")} onChange=${() => setShared(!shared)} /> For the whole organisation
            ${!can("workflows:write") && html` <span class="faint">${needs("workflows:write")}</span>`}</label>`}
        ${chosen && html`<p><${Action} kind="danger" permission=${permission} onClick=${() => setDeleting(true)}>Delete ${chosen.name}</${Action}></p>`}
        <${Finish} work=${save} permission=${permission} disabled=${!name.trim()} onClose=${onClose}>Save</${Finish}></${Dialog}>
        ${deleting && html`<${Sure} title=${`Delete ${chosen.name}`} text=${chosen.shared ? "Nobody of the organisation has it any more." : "Its filters and columns are lost."}
            permission=${permission} action="Delete" work=${remove} onClose=${() => setDeleting(false)} />`}`;
}
