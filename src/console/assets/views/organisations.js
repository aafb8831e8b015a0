import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { PagedTable, Table, usePage, valueOf } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { go, to } from "../parts/router.js";
import { session } from "../parts/session.js";
import { Action, Dialog, Empty, Facts, Head, Loading, Problem, say, Status, Time } from "../parts/ui.js";

/** @type {[string, string][]} */
const QUOTAS = [["agents", "Agents"], ["workflows", "Workflows"], ["api_keys", "API keys"], ["queued_runs", "Queued runs"]];

export function Organisations() {
    const loaded = usePage("/organizations", { query: { page_size: 50 } });
    const [making, setMaking] = useState(false);
    return html`<${Head} title="Organisations"><${Action} kind="primary" permission="organizations:manage" onClick=${() => setMaking(true)}>New organisation</${Action}></${Head}>
        <${PagedTable} loaded=${loaded} label="Organisations" what="organisations" columns=${["Id", "Name", "Status", "Retention", "Created", "By"]}
            empty=${html`<${Empty}>There are no organisations besides the default one.</${Empty}>`}
            row=${(/** @type {any} */ one) => html`<tr data-row key=${one.id}><td><a href=${to("organisations", one.id)}>${one.id}</a></td><td>${one.name}</td>
                <td><${Status} status=${one.status.toUpperCase()} /></td><td>${one.retention_days === null ? html`<span class="faint">default</span>` : `${one.retention_days} d`}</td>
                <td><${Time} at=${one.created_at} /></td><td>${one.created_by}</td></tr>`} />
        ${making && html`<${Edit} organisation=${null} onClose=${() => setMaking(false)} done=${(/** @type {any} */ one) => go(to("organisations", one.id))} />`}`;
}

/** @param {{ organization_id: string }} props */
export function Organisation({ organization_id: id }) {
    use(session);
    const path = { organization_id: id };
    const loaded = useGet("/organizations/{organization_id}", { path });
    const [open, setOpen] = useState("");
    if (loaded.error && !loaded.data) return html`<${Problem} error=${loaded.error} retry=${loaded.reload} />`;
    if (!loaded.data) return html`<${Loading} what="the organisation" />`;
    const one = loaded.data;
    const isActive = one.status === "active";
    const swap = async () => {
        await api("PUT", "/organizations/{organization_id}", { path, body: { status: isActive ? "suspended" : "active" } });
        say(`${one.name} is ${isActive ? "suspended" : "active again"}`);
        setOpen("");
        loaded.reload();
    };
    return html`<${Head} title=${one.name} back=${[to("organisations"), "Organisations"]}>
            <${Action} permission="organizations:manage" onClick=${() => setOpen("edit")}>Edit</${Action}>
            <${Action} permission="organizations:manage" kind=${isActive ? "danger quiet" : "primary"} onClick=${isActive ? () => setOpen("suspend") : swap}>${isActive ? "Suspend" : "Activate"}</${Action}></${Head}>
        <${Facts} items=${[["Id", one.id], ["Status", html`<${Status} status=${one.status.toUpperCase()} />`], ["Retention", one.retention_days === null ? "default" : `${one.retention_days} days`],
            ["Created", html`<${Time} at=${one.created_at} absolute />`], ["Changed", html`<${Time} at=${one.updated_at} absolute />`], ["By", one.updated_by]]} />
        <h2>Quotas</h2><${Table} label="Quotas" columns=${["", "Used", "Quota"]}>${QUOTAS.map(([name, title]) => html`<tr key=${name}><th scope="row">${title}</th>
            <td class="number">${one.usage[name]}</td><td class="number">${one.quotas[name] ?? html`<span class="faint">none</span>`}</td></tr>`)}</${Table}>
        ${open === "edit" && html`<${Edit} organisation=${one} onClose=${() => setOpen("")} done=${() => (setOpen(""), loaded.reload())} />`}
        ${open === "suspend" && html`<${Dialog} title=${`Suspend ${one.name}`} onClose=${() => setOpen("")}><p>Its keys and tokens are refused until it is active again.</p><div class="buttons">
            <${Action} kind="danger" permission="organizations:manage" onClick=${swap}>Suspend</${Action}><button type="button" onClick=${() => setOpen("")}>Keep it active</button></div></${Dialog}>`}`;
}

/** @param {{ organisation: any, onClose: () => void, done: (one: any) => void }} props */
function Edit({ organisation, onClose, done }) {
    const [id, setId] = useState("");
    const [name, setName] = useState(organisation?.name ?? "");
    const [retention, setRetention] = useState(organisation?.retention_days === null || !organisation ? "" : String(organisation.retention_days));
    const [quotas, setQuotas] = useState(/** @type {Record<string, string>} */ (Object.fromEntries(QUOTAS.map(([key]) => [key, organisation?.quotas?.[key] === null || !organisation ? "" : String(organisation.quotas[key])]))));
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const number = (/** @type {string | undefined} */ text) => (text?.trim() ? Number(text) : null);
    const work = async () => {
        setError(null);
        const body = { name: name.trim(), retention_days: number(retention), quotas: Object.fromEntries(QUOTAS.map(([key]) => [key, number(quotas[key])])) };
        try {
            const saved = organisation
                ? await api("PUT", "/organizations/{organization_id}", { path: { organization_id: organisation.id }, body })
                : await api("POST", "/organizations", { body: { ...body, id: id.trim() } });
            say(`${saved.name} is stored`);
            done(saved);
        } catch (cause) {
            setError(cause);
        }
    };
    return html`<${Dialog} title=${organisation ? `Edit ${organisation.name}` : "New organisation"} onClose=${onClose}>
        ${!organisation && html`<label for="organisation-id">Id</label><input id="organisation-id" value=${id} onInput=${(/** @type {any} */ event) => setId(valueOf(event))} />`}
        <label for="organisation-name">Name</label><input id="organisation-name" value=${name} onInput=${(/** @type {any} */ event) => setName(valueOf(event))} />
        <label for="organisation-retention">Retention of ended runs in days <span class="faint">empty: default</span></label>
        <input id="organisation-retention" inputmode="numeric" value=${retention} onInput=${(/** @type {any} */ event) => setRetention(valueOf(event))} />
        <fieldset><legend>Quotas <span class="faint">empty: none</span></legend>${QUOTAS.map(([key, title]) => html`<div key=${key}><label for=${`quota-${key}`}>${title}</label>
            <input id=${`quota-${key}`} inputmode="numeric" value=${quotas[key] ?? ""} onInput=${(/** @type {any} */ event) => setQuotas({ ...quotas, [key]: valueOf(event) })} /></div>`)}</fieldset>
        <${Problem} error=${error} /><div class="buttons"><${Action} kind="primary" permission="organizations:manage" onClick=${work}>Store</${Action}><button type="button" onClick=${onClose}>Close</button></div></${Dialog}>`;
}
