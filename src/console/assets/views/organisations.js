import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Finish, Line, Sure, useBlame } from "../parts/form.js";
import { PagedTable, Table, usePage } from "../parts/list.js";
import { useGet } from "../parts/load.js";
import { go, to } from "../parts/router.js";
import { isOperator, OPERATOR, session } from "../parts/session.js";
import { Action, Dialog, Empty, Facts, Head, Pending, say, Status, Time } from "../parts/ui.js";

/** @type {[string, string][]} */
const QUOTAS = [["agents", "Agents"], ["workflows", "Workflows"], ["api_keys", "API keys"], ["queued_runs", "Queued runs"]];

export function Organisations() {
    use(session);
    const loaded = usePage("/organizations", { query: { page_size: 50 } });
    const [making, setMaking] = useState(false);
    return html`<${Head} title="Organisations"><${Action} kind="primary" permission="organizations:manage" refused=${!isOperator() && OPERATOR} onClick=${() => setMaking(true)}>New organisation</${Action}></${Head}>
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
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="organisation" back=${[to("organisations"), "Organisations"]} />`;
    const one = loaded.data;
    const isActive = one.status === "active";
    const swap = async () => {
        await api("PUT", "/organizations/{organization_id}", { path, body: { status: isActive ? "suspended" : "active" } });
        say(`${one.name} is ${isActive ? "suspended" : "active again"}`);
        setOpen("");
        loaded.reload();
    };
    return html`<${Head} title=${one.name} back=${[to("organisations"), "Organisations"]}>
            <${Action} permission="organizations:manage" refused=${!isOperator() && OPERATOR} onClick=${() => setOpen("edit")}>Edit</${Action}>
            <${Action} permission="organizations:manage" refused=${!isOperator() && OPERATOR} kind=${isActive ? "danger quiet" : "primary"} onClick=${isActive ? () => setOpen("suspend") : swap}>${isActive ? "Suspend" : "Activate"}</${Action}></${Head}>
        <${Facts} items=${[["Id", one.id], ["Status", html`<${Status} status=${one.status.toUpperCase()} />`], ["Retention", one.retention_days === null ? "default" : `${one.retention_days} days`],
            ["Created", html`<${Time} at=${one.created_at} absolute />`], ["Changed", html`<${Time} at=${one.updated_at} absolute />`], ["By", one.updated_by]]} />
        <h2>Quotas</h2><${Table} label="Quotas" columns=${["", "Used", "Quota"]}>${QUOTAS.map(([name, title]) => html`<tr key=${name}><th scope="row">${title}</th>
            <td class="number">${one.usage[name]}</td><td class="number">${one.quotas[name] ?? html`<span class="faint">none</span>`}</td></tr>`)}</${Table}>
        ${open === "edit" && html`<${Edit} organisation=${one} onClose=${() => setOpen("")} done=${() => (setOpen(""), loaded.reload())} />`}
        ${open === "suspend" && html`<${Sure} title=${`Suspend ${one.name}`} text="Its keys and tokens are refused until it is active again." permission="organizations:manage" action="Suspend" work=${swap}
            stay="Keep it active" onClose=${() => setOpen("")} />`}`;
}

/** @param {{ organisation: any, onClose: () => void, done: (one: any) => void }} props */
function Edit({ organisation, onClose, done }) {
    const [first] = useState(organisation ?? {});
    const { blame, problem } = useBlame();
    const [id, setId] = useState("");
    const [name, setName] = useState(organisation?.name ?? "");
    const [retention, setRetention] = useState(organisation?.retention_days === null || !organisation ? "" : String(organisation.retention_days));
    const [quotas, setQuotas] = useState(/** @type {Record<string, string>} */ (Object.fromEntries(QUOTAS.map(([key]) => [key, organisation?.quotas?.[key] === null || !organisation ? "" : String(organisation.quotas[key])]))));
    // What is no number is sent as it is, and the service says so.
    const number = (/** @type {string | undefined} */ text) => {
        const value = Number(text?.trim());
        return text?.trim() ? (Number.isFinite(value) ? value : text) : null;
    };
    /** Only what is another value than before. @param {Record<string, unknown>} members @param {any} before */
    const changed = (members, before) => Object.fromEntries(Object.entries(members).filter(([key, value]) => value !== (before?.[key] ?? null)));
    const work = async () => {
        const asked = changed(Object.fromEntries(QUOTAS.map(([key]) => [key, number(quotas[key])])), first.quotas);
        const body = { ...changed({ name: name.trim(), retention_days: number(retention) }, first), ...(Object.keys(asked).length ? { quotas: asked } : {}) };
        const saved = organisation
            ? await api("PUT", "/organizations/{organization_id}", { path: { organization_id: organisation.id }, body })
            : await api("POST", "/organizations", { body: { ...body, id: id.trim() } });
        say(`${saved.name} is stored`);
        done(saved);
    };
    return html`<${Dialog} title=${organisation ? `Edit ${organisation.name}` : "New organisation"} onClose=${onClose}>
        ${!organisation && html`<${Line} id="organisation-id" label="Id" value=${id} problem=${problem("id")} change=${setId} />`}
        <${Line} id="organisation-name" label="Name" value=${name} problem=${problem("name")} change=${setName} />
        <${Line} id="organisation-retention" label=${html`Retention of ended runs in days <span class="faint">empty: default</span>`} inputmode="numeric" value=${retention} problem=${problem("retention_days")} change=${setRetention} />
        <fieldset><legend>Quotas <span class="faint">empty: none</span></legend>${QUOTAS.map(([key, title]) => html`<${Line} key=${key} id=${`quota-${key}`} label=${title} inputmode="numeric"
            value=${quotas[key] ?? ""} problem=${problem(`quotas.${key}`)} change=${(/** @type {string} */ text) => setQuotas({ ...quotas, [key]: text })} />`)}</fieldset>
        <${Finish} work=${work} permission="organizations:manage" blame=${blame} onClose=${onClose}>Store</${Finish}></${Dialog}>`;
}
