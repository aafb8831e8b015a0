// Dialogs of a webhook: test, enable, rotate the secret, recover.
import { html, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Finish, Line, useBlame } from "../parts/form.js";
import { useGet } from "../parts/load.js";
import { fromField } from "../parts/time.js";
import { Dialog, say } from "../parts/ui.js";
import { Attempt } from "./delivery.js";

const PING = "webhook.ping";

/** @param {{ hook: any, onClose: () => void }} props */
export function Test({ hook, onClose }) {
    const types = useGet("/webhook-events");
    const [type, setType] = useState(PING);
    const [attempt, setAttempt] = useState(/** @type {any} */ (null));
    const { blame, problem } = useBlame();
    const names = [PING, ...(types.data?.items ?? []).map((/** @type {any} */ one) => one.type).filter((/** @type {string} */ name) => name !== PING)];
    const work = async () => setAttempt(await api("POST", "/webhooks/{webhook_id}/test", { path: { webhook_id: hook.id }, body: { event_type: type } }));
    return html`<${Dialog} title=${`Test ${hook.name}`} onClose=${onClose} wide><p class="faint">An example is sent at once, once, also if the webhook is disabled.</p>
        <${Choice} id="test-type" label="Type of the event" value=${type} options=${names.map((name) => [name, name])} problem=${problem("event_type")} change=${setType} />
        <div role="status">${attempt && html`<${Attempt} attempt=${attempt} />`}</div>
        <${Finish} work=${work} permission="webhooks:write" blame=${blame} onClose=${onClose}>Send it</${Finish}></${Dialog}>`;
}

/** @param {{ hook: any, onClose: () => void, done: () => void }} props */
export function Enable({ hook, onClose, done }) {
    const [probe, setProbe] = useState(true);
    const [replay, setReplay] = useState("missing");
    const work = async () => {
        await api("POST", "/webhooks/{webhook_id}/enable", { path: { webhook_id: hook.id }, body: { probe, replay } });
        say(`${hook.name} is enabled`);
        done();
    };
    return html`<${Dialog} title=${`Enable ${hook.name}`} onClose=${onClose}><${Choice} id="replay" label="Then send" value=${replay} change=${setReplay}
            options=${[["missing", "what was held"], ["failed", "what was held or has failed"], ["none", "only new events"]]} />
        <label class="check"><input type="checkbox" checked=${probe} onChange=${() => setProbe(!probe)} /> Only if a test arrives</label>
        <${Finish} work=${work} permission="webhooks:write" onClose=${onClose}>Enable</${Finish}></${Dialog}>`;
}

/** @param {{ hook: any, onClose: () => void, done: (secret: string) => void }} props */
export function Rotate({ hook, onClose, done }) {
    const [grace, setGrace] = useState("86400");
    const work = async () => done((await api("POST", "/webhooks/{webhook_id}/rotate-secret", { path: { webhook_id: hook.id }, body: { grace_seconds: Number(grace) } })).secret);
    return html`<${Dialog} title="Rotate the secret" onClose=${onClose}><p class="faint">The new secret is random, and shown once. Meanwhile deliveries have a signature with each of both.</p>
        <${Choice} id="grace" label="The secret before signs too for" value=${grace} change=${setGrace} options=${[["0", "no time"], ["3600", "an hour"], ["86400", "a day"], ["604800", "a week"]]} />
        <${Finish} work=${work} permission="webhooks:write" onClose=${onClose}>Rotate</${Finish}></${Dialog}>`;
}

/** First counted, then sent. @param {{ hook: any, onClose: () => void, done: () => void }} props */
export function Recover({ hook, onClose, done }) {
    const [since, setSince] = useState("");
    const [until, setUntil] = useState("");
    const [which, setWhich] = useState("failed");
    const [counted, setCounted] = useState(/** @type {any} */ (null));
    const { blame, problem } = useBlame();
    const change = (/** @type {(value: string) => void} */ set) => (/** @type {string} */ value) => (set(value), setCounted(null));
    const send = (/** @type {boolean} */ dry) => api("POST", "/webhooks/{webhook_id}/recover", { path: { webhook_id: hook.id },
        body: { since: fromField(since), which, dry_run: dry, ...(until ? { until: fromField(until) } : {}) } });
    const work = async () => {
        if (!counted) return setCounted(await send(true));
        await send(false);
        say("The recovery has begun");
        done();
    };
    const many = counted && `${counted.is_exact ? "" : "more than "}${counted.deliveries}`;
    return html`<${Dialog} title="Send deliveries again" onClose=${onClose}><${Line} id="since" label="Events since (UTC)" type="datetime-local" value=${since} problem=${problem("since")} change=${change(setSince)} />
        <${Line} id="before" label=${html`Before (UTC) <span class="faint">empty: now</span>`} type="datetime-local" value=${until} problem=${problem("until")} change=${change(setUntil)} />
        <${Choice} id="which" label="What" value=${which} problem=${problem("which")} change=${change(setWhich)} options=${[["failed", "what has failed"], ["missing", "what was never sent"], ["all", "all events"]]} />
        <div role="status">${counted && html`<p><strong>${many} ${counted.deliveries === 1 ? "delivery" : "deliveries"} would be sent again.</strong></p>`}</div>
        <${Finish} work=${work} permission="webhooks:write" disabled=${!since || counted?.deliveries === 0} blame=${blame} onClose=${onClose}>${counted ? `Send ${many}` : "Count them"}</${Finish}></${Dialog}>`;
}
