import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { PagedTable, usePage, valueOf } from "../parts/list.js";
import { session, ROLES } from "../parts/session.js";
import { Action, Code, Dialog, Empty, Head, Problem, say, Time } from "../parts/ui.js";

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
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const possible = Object.keys(ROLES).filter((permission) => ROLES[permission]?.includes(role));
    const work = async () => {
        setError(null);
        /** @type {Record<string, unknown>} */
        const body = { name: name.trim(), role };
        if (organisation.trim() && organisation.trim() !== who?.organization_id) body["organization_id"] = organisation.trim();
        if (days) body["expires_at"] = new Date(Date.now() + Number(days) * 86_400_000).toISOString();
        if (scopes.length) body["scopes"] = scopes.filter((scope) => possible.includes(scope));
        try {
            setMade(await api("POST", "/api-keys", { body }));
        } catch (cause) {
            setError(cause);
        }
    };
    if (made) {
        return html`<${Dialog} title="The new key" onClose=${onClose}><p><strong>Copy it now.</strong> It is shown this one time only.</p>
            <${Code} text=${made.key} label="API key" wrap /><div class="buttons"><button type="button" class="primary" onClick=${onClose}>Done</button></div></${Dialog}>`;
    }
    return html`<${Dialog} title="New API key" onClose=${onClose}><label for="key-name">Name</label><input id="key-name" value=${name} maxlength="100"
            onInput=${(/** @type {any} */ event) => setName(valueOf(event))} />
        <label for="key-role">Role</label><select id="key-role" value=${role} onChange=${(/** @type {any} */ event) => setRole(valueOf(event))}>
            ${ROLE_NAMES.map((one) => html`<option key=${one} value=${one} selected=${one === role}>${one}</option>`)}</select>
        <label for="key-organisation">Organisation</label><input id="key-organisation" value=${organisation} onInput=${(/** @type {any} */ event) => setOrganisation(valueOf(event))} />
        <label for="key-days">Expires</label><select id="key-days" value=${days} onChange=${(/** @type {any} */ event) => setDays(valueOf(event))}>
            ${[["", "never"], ["7", "in 7 days"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]].map(([value, title]) => html`<option key=${value} value=${value} selected=${value === days}>${title}</option>`)}</select>
        <fieldset><legend>Only these permissions <span class="faint">(none: all of the role)</span></legend><div class="choices">${possible.map((scope) => html`<label key=${scope}><input type="checkbox"
            checked=${scopes.includes(scope)} onChange=${() => setScopes(scopes.includes(scope) ? scopes.filter((one) => one !== scope) : [...scopes, scope])} /> ${scope}</label>`)}</div></fieldset>
        <${Problem} error=${error} /><div class="buttons"><${Action} kind="primary" permission="keys:manage" disabled=${!name.trim()} onClick=${work}>Make the key</${Action}>
        <button type="button" onClick=${onClose}>Close</button></div></${Dialog}>`;
}

/** @param {{ apiKey: any, onClose: () => void, done: () => void }} props */
function Revoke({ apiKey, onClose, done }) {
    const work = async () => {
        await api("DELETE", "/api-keys/{key_id}", { path: { key_id: apiKey.id } });
        say(`${apiKey.name} is revoked`);
        done();
    };
    return html`<${Dialog} title=${`Revoke ${apiKey.name}`} onClose=${onClose}><p>Requests with this key are refused from now on. This cannot be undone.</p><div class="buttons">
        <${Action} kind="danger" permission="keys:manage" onClick=${work}>Revoke</${Action}><button type="button" onClick=${onClose}>Keep it</button></div></${Dialog}>`;
}
