// Endpoints that events are sent to: the list, and the form of one.
import { html, useState } from "../parts/runtime.js";
import { api, ifMatch } from "../parts/api.js";
import { Finish, Form, Once, useForm, useKey } from "../parts/form.js";
import { LOOKS, NEW_WEBHOOK, WEBHOOK } from "../parts/hooks.js";
import { PagedTable, usePage } from "../parts/list.js";
import { go, to } from "../parts/router.js";
import { Action, Dialog, Empty, Head, say, Status, Time } from "../parts/ui.js";

export function Webhooks() {
    const loaded = usePage("/webhooks", { query: { page_size: 50 } });
    const [making, setMaking] = useState(false);
    return html`<${Head} title="Webhooks"><${Action} kind="primary" permission="webhooks:write" onClick=${() => setMaking(true)}>New webhook</${Action}></${Head}>
        <${PagedTable} loaded=${loaded} label="Webhooks" what="webhooks" columns=${["Name", "Health", "Events", "Address", "Failures", "Failing since", "Last success", "Changed"]}
            empty=${html`<${Empty} path="/webhooks" body=${{ name: "first", url: "http://127.0.0.1:9010/hooks", event_types: ["run.*"] }}>
                Webhooks tell other systems what happens to runs. Make one here, or from a shell:</${Empty}>`}
            row=${(/** @type {any} */ hook) => html`<tr data-row key=${hook.id}><td><a class="clip" title=${hook.name} href=${to("webhooks", hook.id)}>${hook.name}</a></td><td><${Health} hook=${hook} /></td>
                <td><span class="clip" title=${hook.event_types.join(", ")}>${hook.event_types.join(", ")}</span></td><td><span class="clip mono" title=${hook.url}>${hook.url}</span></td>
                <td class=${hook.failures ? "number bad" : "number"}>${hook.failures}</td><td><${Time} at=${hook.failing_since} /></td><td><${Time} at=${hook.last_success_at} /></td>
                <td><${Time} at=${hook.updated_at} /> <span class="faint">${hook.updated_by}</span></td></tr>`} />
        ${making && html`<${EditWebhook} hook=${null} tag=${null} onClose=${() => setMaking(false)} done=${(/** @type {any} */ made) => go(to("webhooks", made.id))} />`}`;
}

/** @param {{ hook: any }} props */
export function Health({ hook }) {
    return html`<${Status} status=${hook.health} as=${LOOKS[hook.health]} />`;
}

/** @param {any} hook */
const given = (hook) => hook && Object.fromEntries(Object.keys(WEBHOOK.properties).filter((name) => hook[name] !== null && (name !== "headers" || Object.keys(hook.headers).length))
    .map((name) => [name, hook[name]]));

/** @param {{ hook: any, tag: string | null, onClose: () => void, done: (hook: any) => void }} props */
export function EditWebhook({ hook, tag, onClose, done }) {
    const form = useForm(hook ? WEBHOOK : NEW_WEBHOOK, given(hook));
    const [first] = useState(tag);
    const key = useKey();
    const [made, setMade] = useState(/** @type {any} */ (null));
    if (made) return html`<${Once} title=${`Secret of ${made.name}`} items=${[["Secret", made.secret]]} onClose=${() => done(made)}><p class="faint">The receiver verifies with it that a delivery is from here.</p></${Once}>`;
    const work = async () => {
        const body = form.read();
        if (!body) return;
        if (hook) {
            const saved = await api("PUT", "/webhooks/{webhook_id}", { path: { webhook_id: hook.id }, body: { ...body, enabled: hook.enabled }, headers: ifMatch(first) });
            say(`${saved.name} is stored`);
            return done(saved);
        }
        setMade(await api("POST", "/webhooks", { body, headers: key(body) }));
    };
    return html`<${Dialog} title=${hook ? `Edit ${hook.name}` : "New webhook"} onClose=${onClose} wide><${Form} form=${form} id="webhook" label="Webhook" />
        <${Finish} work=${work} permission="webhooks:write" blame=${form.blame} onClose=${onClose}>Store</${Finish}></${Dialog}>`;
}
