// One endpoint: how it fares, its deliveries, what was sent again.
import { html, use, useEffect, useRef, useState } from "../parts/runtime.js";
import { api, call, ifMatch } from "../parts/api.js";
import { Once, Sure } from "../parts/form.js";
import { LOOKS, named } from "../parts/hooks.js";
import { choices, PagedTable, Table, useFilters, usePage } from "../parts/list.js";
import { useEvery, useLoad } from "../parts/load.js";
import { go, place, to } from "../parts/router.js";
import { session } from "../parts/session.js";
import { Action, Facts, Head, Pending, say, Status, Time } from "../parts/ui.js";
import { Enable, Recover, Rotate, Test } from "./webhook-actions.js";
import { EditWebhook, Health } from "./webhooks.js";

const STATES = ["pending", "held", "delivered", "failed"];
/** While something is on its way. */
const LOOK_MS = 3000;
/** @type {Record<string, string>} */
const WHY = { by_user: "a user has disabled it", gone: "its receiver answered 410", no_success: "nothing has arrived for a long time" };

/** @param {{ webhook_id: string }} props */
export function Webhook({ webhook_id: id }) {
    use(session);
    const path = { webhook_id: id };
    const loaded = useLoad((signal) => call("GET", "/webhooks/{webhook_id}", { path, signal }), [id]);
    const [open, setOpen] = useState("");
    const [secret, setSecret] = useState("");
    const [turn, setTurn] = useState(0);
    const recovers = Boolean(loaded.data?.data.recoveries.some((/** @type {any} */ one) => !one.is_ended));
    useEvery(!open && recovers, LOOK_MS, loaded.reload);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="webhook" back=${[to("webhooks"), "Webhooks"]} />`;
    const { data: hook, headers } = loaded.data;
    const tag = headers.get("etag");
    const close = () => setOpen("");
    const done = () => (close(), loaded.reload(), setTurn(turn + 1));
    const disable = async () => {
        await api("POST", "/webhooks/{webhook_id}/disable", { path });
        say(`${hook.name} is disabled`);
        done();
    };
    const remove = async () => {
        await api("DELETE", "/webhooks/{webhook_id}", { path, headers: ifMatch(tag) });
        say(`${hook.name} is deleted`);
        go(to("webhooks"));
    };
    return html`<${Head} title=${hook.name} back=${[to("webhooks"), "Webhooks"]}>
            <${Action} kind="primary" permission="webhooks:write" onClick=${() => setOpen("test")}>Test</${Action}>
            ${hook.enabled ? html`<${Action} permission="webhooks:write" onClick=${() => setOpen("disable")}>Disable</${Action}>`
                : html`<${Action} kind="primary" permission="webhooks:write" onClick=${() => setOpen("enable")}>Enable</${Action}>`}
            <${Action} permission="webhooks:write" disabled=${!hook.enabled} title=${hook.enabled ? "Send again what has failed or was held" : "It is disabled"} onClick=${() => setOpen("recover")}>Recover</${Action}>
            <${Action} permission="webhooks:write" onClick=${() => setOpen("edit")}>Edit</${Action}>
            <${Action} permission="webhooks:write" onClick=${() => setOpen("rotate")}>Rotate secret</${Action}>
            <${Action} kind="danger quiet" permission="webhooks:write" onClick=${() => setOpen("delete")}>Delete</${Action}></${Head}>
        ${!hook.enabled && html`<p class="banner">It is disabled since <${Time} at=${hook.disabled_at} />: ${WHY[hook.disabled_reason] ?? hook.disabled_reason}. New events are held.</p>`}
        <${Facts} items=${[["Health", html`<${Health} hook=${hook} />`], ["Address", html`<span class="mono">${hook.url}</span>`], ["Events", hook.event_types.join(", ")],
            ...(hook.workflow_names ? [["Workflows", hook.workflow_names.join(", ")]] : []), ...(hook.filter ? [["Filter", html`<code>${hook.filter}</code>`]] : []),
            ["Failures since the last success", hook.failures], ["Last success", html`<${Time} at=${hook.last_success_at} />`], ...(hook.failing_since ? [["Failing since", html`<${Time} at=${hook.failing_since} />`]] : []),
            ["Payload", hook.payload], ["Order", named(hook.ordering)], ["At a time", hook.max_in_flight], ["A second", hook.rate_per_second ?? "no limit"],
            ["Secret", html`${hook.secret_hint}… since <${Time} at=${hook.secret_created_at} />`], ["Signature", hook.signature],
            ...(hook.public_key ? [["Public key", html`<span class="mono">${hook.public_key}</span>`]] : []),
            ...(Object.keys(hook.headers).length ? [["Headers", Object.keys(hook.headers).join(", ")]] : []), ["Changed", html`<${Time} at=${hook.updated_at} /> by ${hook.updated_by}`]]} />
        ${hook.recoveries.length > 0 && html`<h2>Recoveries</h2><${Table} label="Recoveries" columns=${["Begun", "What", "Sent again", "State", "By"]}>${hook.recoveries.map((/** @type {any} */ one) => html`<tr key=${one.id}>
            <td><${Time} at=${one.created_at} absolute /></td><td>${one.which}</td><td class="number">${one.deliveries}</td><td><${Status} status=${one.is_ended ? "completed" : "running"} as=${one.is_ended ? "COMPLETED" : "RUNNING"} /></td><td>${one.created_by}</td></tr>`)}</${Table}>`}
        <${Deliveries} key=${`deliveries-${turn}`} id=${id} recovers=${recovers} />
        ${open === "test" && html`<${Test} hook=${hook} onClose=${done} />`}
        ${open === "enable" && html`<${Enable} hook=${hook} onClose=${close} done=${done} />`}
        ${open === "recover" && html`<${Recover} hook=${hook} onClose=${close} done=${done} />`}
        ${open === "edit" && html`<${EditWebhook} hook=${hook} tag=${tag} onClose=${close} done=${done} />`}
        ${open === "rotate" && html`<${Rotate} hook=${hook} onClose=${close} done=${(/** @type {string} */ made) => (setSecret(made), done())} />`}
        ${open === "disable" && html`<${Sure} title=${`Disable ${hook.name}`} text="What is queued stays, and new events are held until it is enabled." permission="webhooks:write" action="Disable" work=${disable} onClose=${close} />`}
        ${open === "delete" && html`<${Sure} title=${`Delete ${hook.name}`} text="Nothing is sent any more, and its deliveries are gone." permission="webhooks:write" action="Delete" work=${remove} onClose=${close} />`}
        ${secret && html`<${Once} title=${`Secret of ${hook.name}`} items=${[["Secret", secret]]} onClose=${() => setSecret("")} />`}`;
}

/** @param {{ id: string, recovers: boolean }} props */
function Deliveries({ id, recovers }) {
    const { query } = use(place);
    const { asked, filter, isFiltered } = useFilters(["state", "event_type", "run_id", "status_code"]);
    const loaded = usePage("/webhooks/{webhook_id}/deliveries", { path: { webhook_id: id }, query: { ...asked, page_size: 25 } });
    const isOnItsWay = recovers || Boolean(loaded.data?.items.some((/** @type {any} */ one) => one.state === "pending"));
    useEvery(!query.get("cursor") && isOnItsWay, LOOK_MS, loaded.reload);
    const before = useRef(recovers);
    useEffect(() => {
        if (before.current && !recovers) loaded.reload();
        before.current = recovers;
    }, [recovers]);
    return html`<h2>Deliveries <button type="button" class="quiet" onClick=${loaded.reload}>Read again</button></h2>
        <div class="filters" role="search">${filter("state", "State", choices(STATES))}${filter("event_type", "Type of events", undefined, true)}${filter("run_id", "Run")}${filter("status_code", "HTTP status")}</div>
        <${PagedTable} loaded=${loaded} label="Deliveries" what="deliveries" columns=${["Event", "State", "Attempts", "HTTP status", "Event at", "Next attempt", "Run", "Error"]}
            empty=${html`<p class="faint">No deliveries${isFiltered ? " that match these filters" : " yet"}.</p>`}
            row=${(/** @type {any} */ one) => html`<tr data-row key=${one.id}><td><a href=${to("webhooks", id, "deliveries", one.id)}>${one.event_type}</a></td><td><${Status} status=${one.state} as=${LOOKS[one.state]} /></td>
                <td class="number">${one.attempts}${one.is_under_way ? " + 1 under way" : ""}</td><td class="number">${one.status_code ?? ""}</td><td><${Time} at=${one.event_at} /></td><td><${Time} at=${one.next_attempt_at} /></td>
                <td>${one.run_id && html`<a class="mono" href=${to("runs", one.run_id)}>…${one.run_id.slice(-12)}</a>`}</td><td><span class="clip" title=${one.error ?? ""}>${one.error}</span></td></tr>`} />`;
}
