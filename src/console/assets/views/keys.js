import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Finish, Line, Once, Sure, useBlame } from "../parts/form.js";
import { PagedTable, usePage } from "../parts/list.js";
import { isOperator, OPERATOR, session, ROLES } from "../parts/session.js";
import { Action, Dialog, Empty, Head, say, Time } from "../parts/ui.js";

const ROLE_NAMES = ["viewer", "operator", "editor", "admin", "executor"];

export function Keys() {
    const loaded = usePage("/api-keys", { query: { page_size: 50 } });
    const [making, setMaking] = useState(false);
    const [revoking, setRevoking] = useState(/** @type {any} */ (null));
    return html`<${Head} title="API keys"><${Action} kind="primary" permission="keys:manage" onClick=${() => setMaking(true)}>New key</${Action}></${Head}>
        <${PagedTable} loaded=${loaded} label="API keys" what="keys" columns=${["Name", "Key", "Role", "Organisation", "Limited to", "Last used", "Expires", "Created", ""]}
            empty=${html`<${Empty} command="workflow-api api-key --name me --role admin">There are no keys yet. Make one here, or on the server:</${Empty}>`}
            row=${(/** @type {any} */ key) => html`<tr data-row key=${key.id} class=${key.revoked_at ? "off" : ""}><td>${key.name}</td><td class="mono">${key.prefix}…${key.last_four}</td><td>${key.role}</td>
                <td>${key.organization_id}</td><td>${[...(key.scopes ?? []), ...(key.workflows ?? []).map((/** @type {string} */ name) => `workflow ${name}`)].join(", ") || html`<span class="faint">–</span>`}</td>
                <td><${Time} at=${key.last_used_at} /></td><td><${Time} at=${key.expires_at} /></td><td><${Time} at=${key.created_at} /> <span class="faint">${key.created_by}</span></td>
                <td class="row-actions">${key.revoked_at ? html`<span class="faint">revoked <${Time} at=${key.revoked_at} /></span>`
                    : html`<${Action} kind="danger quiet" permission="keys:manage" onClick=${() => setRevoking(key)}>Revoke</${Action}>`}</td></tr>`} />
        ${making && html`<${Make} onClose=${() => (setMaking(false), loaded.reload())} />`}
        ${revoking && html`<${Revoke} apiKey=${revoking} onClose=${() => setRevoking(null)} done=${() => (setRevoking(null), loaded.reload())} />`}`;
}

/** @param {{ onClose: () => void }} props */
function Make({ onClose }) {
    const who = use(session);
    const [name, setName] = useState("");
    const [role, setRole] = useState("viewer");
    const [organisation, setOrganisation] = useState(who?.organization_id ?? "default");
    const [days, setDays] = useState("");
    const [scopes, setScopes] = useState(/** @type {string[]} */ ([]));
    const [made, setMade] = useState(/** @type {any} */ (null));
    const { blame, problem } = useBlame();
    const possible = Object.keys(ROLES).filter((permission) => ROLES[permission]?.includes(role));
    const work = async () => {
        /** @type {Record<string, unknown>} */
        const body = { name: name.trim(), role };
        if (organisation.trim() && organisation.trim() !== who?.organization_id) body["organization_id"] = organisation.trim();
        if (days) body["expires_at"] = new Date(Date.now() + Number(days) * 86_400_000).toISOString();
        if (scopes.length) body["scopes"] = scopes.filter((scope) => possible.includes(scope));
        setMade(await api("POST", "/api-keys", { body }));
    };
    if (made) return html`<${Once} title="The new key" items=${[["API key", made.key]]} onClose=${onClose} />`;
    return html`<${Dialog} title="New API key" onClose=${onClose}><${Line} id="key-name" label="Name" value=${name} maxlength="100" problem=${problem("name")} change=${setName} />
        <${Choice} id="key-role" label="Role" value=${role} options=${ROLE_NAMES.map((one) => [one, one])} problem=${problem("role")} change=${setRole} />
        <${Line} id="key-organisation" label=${html`Organisation ${!isOperator() && html`<span class="faint">${OPERATOR}</span>`}`} value=${organisation} readonly=${!isOperator()} problem=${problem("organization_id")} change=${setOrganisation} />
        <${Choice} id="key-days" label="Expires" value=${days} problem=${problem("expires_at")} change=${setDays} options=${[["", "never"], ["7", "in 7 days"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]]} />
        <fieldset><legend>Only these permissions <span class="faint">(none: all of the role)</span></legend><div class="choices">${possible.map((scope) => html`<label key=${scope}><input type="checkbox"
            checked=${scopes.includes(scope)} onChange=${() => setScopes(scopes.includes(scope) ? scopes.filter((one) => one !== scope) : [...scopes, scope])} /> ${scope}</label>`)}</div></fieldset>
        <${Finish} work=${work} permission="keys:manage" disabled=${!name.trim()} blame=${blame} onClose=${onClose}>Make the key</${Finish}></${Dialog}>`;
}

/** @param {{ apiKey: any, onClose: () => void, done: () => void }} props */
function Revoke({ apiKey, onClose, done }) {
    const work = async () => {
        await api("DELETE", "/api-keys/{key_id}", { path: { key_id: apiKey.id } });
        say(`${apiKey.name} is revoked`);
        done();
    };
    return html`<${Sure} title=${`Revoke ${apiKey.name}`} text="Requests with this key are refused from now on, and so are those with keys and tokens that were made with it. This cannot be undone." permission="keys:manage" action="Revoke" work=${work} onClose=${onClose} />`;
}
