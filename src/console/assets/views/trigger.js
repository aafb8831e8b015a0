// One trigger: when it fires next, what has become of its firings, its address, its backfills.
import { html, use, useState } from "../parts/runtime.js";
import { api, call, ifMatch } from "../parts/api.js";
import { Once, Sure } from "../parts/form.js";
import { LOOKS, named, when } from "../parts/hooks.js";
import { Table } from "../parts/list.js";
import { useEvery, useGet, useLoad } from "../parts/load.js";
import { go, to } from "../parts/router.js";
import { session } from "../parts/session.js";
import { pretty } from "../parts/text.js";
import { clock } from "../parts/time.js";
import { Action, Code, Facts, Head, Json, Pending, Problem, say, Status, Time } from "../parts/ui.js";
import { Backfill, Fire, Pause } from "./trigger-actions.js";
import { EditTrigger, Health, State } from "./triggers.js";

/** While a backfill is under way, and while the trigger may fire. */
const LOOK_MS = 2000;
const FIRING_MS = 5000;

/** @param {{ trigger_id: string }} props */
export function Trigger({ trigger_id: id }) {
    use(session);
    const path = { trigger_id: id };
    const loaded = useLoad((signal) => call("GET", "/triggers/{trigger_id}", { path, signal }), [id]);
    const [open, setOpen] = useState("");
    const [token, setToken] = useState(/** @type {any} */ (null));
    const [backfills, setBackfills] = useState(0);
    useEvery(Boolean(loaded.data?.data.enabled) && !open && !token, FIRING_MS, loaded.reload);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="trigger" back=${[to("triggers"), "Triggers"]} />`;
    const { data: trigger, headers } = loaded.data;
    const tag = headers.get("etag");
    const close = () => setOpen("");
    const done = () => (close(), loaded.reload());
    const resume = async () => {
        await api("POST", "/triggers/{trigger_id}/resume", { path });
        say(`${trigger.name} fires again`);
        loaded.reload();
    };
    const remove = async () => {
        await api("DELETE", "/triggers/{trigger_id}", { path, headers: ifMatch(tag) });
        say(`${trigger.name} is deleted`);
        go(to("triggers"));
    };
    const rotate = async () => {
        setToken(await api("POST", "/triggers/{trigger_id}/token", { path }));
        done();
    };
    return html`<${Head} title=${trigger.name} back=${[to("triggers"), "Triggers"]}>
            <${Action} kind="primary" permission="runs:write" onClick=${() => setOpen("fire")}>Fire now</${Action}>
            ${trigger.enabled ? html`<${Action} permission="runs:write" onClick=${() => setOpen("pause")}>Pause</${Action}>`
                : html`<${Action} kind="primary" permission="runs:write" onClick=${resume}>Resume</${Action}>`}
            <${Action} permission="runs:write" onClick=${() => setOpen("edit")}>Edit</${Action}>
            <${Action} kind="danger quiet" permission="runs:write" onClick=${() => setOpen("delete")}>Delete</${Action}></${Head}>
        ${!trigger.enabled && html`<p class="banner">It is ${trigger.note?.startsWith("paused ") ? trigger.note : `paused${trigger.note ? `: ${trigger.note}` : ""}`}. What would be due meanwhile is not made up for.</p>`}
        <${Facts} items=${[["State", html`<${State} trigger=${trigger} />`], ["Health", html`<${Health} health=${trigger.health} />`], ["Kind", trigger.kind], ["Fires on", when(trigger)],
            ["Workflow", html`<a href=${`${to("workflows")}?name_prefix=${encodeURIComponent(trigger.workflow_name)}`}>${trigger.workflow_name}</a>${trigger.version === null ? "" : ` version ${trigger.version}`}`],
            ["Priority", trigger.priority], ...Object.entries(trigger.counters).map(([name, count]) => [named(name), count]),
            ["Changed", html`<${Time} at=${trigger.updated_at} /> by ${trigger.updated_by}`], ...(trigger.enabled && trigger.note ? [["Note", trigger.note]] : []),
            ...Object.entries(trigger.labels)]} />
        ${trigger.kafka && html`<${Reading} reading=${trigger.kafka} />`}
        ${trigger.webhook && html`<${Address} trigger=${trigger} rotate=${() => setOpen("rotate")} />`}
        <div class="columns"><section class="card"><h2>Next</h2>${trigger.next.length ? html`<ol class="times">${trigger.next.map((/** @type {string} */ at) => html`<li key=${at}>
                <${Time} at=${at} absolute /> <span class="faint"><${Time} at=${at} />${trigger.config.time_zone && `, ${clock(at, trigger.config.time_zone)}`}</span></li>`)}</ol>`
            : html`<p class="faint">${trigger.enabled ? { schedule: "It does not fire any more.", kafka: "When a record arrives." }[/** @type {string} */ (trigger.kind)] ?? "When something is delivered." : "Not while it is paused."}</p>`}</section>
        <section class="card"><h2>Input of its runs</h2>${trigger.input ? html`<${Json} value=${trigger.input} label="Input" />` : html`<p class="faint">All that is known of the firing, as <code>trigger</code>.</p>`}
            <details><summary>Configuration</summary><${Code} text=${pretty(trigger.config)} label="Configuration" /></details></section></div>
        <h2>Last firings <a class="faint" href=${`${to("runs")}?trigger_id=${encodeURIComponent(id)}`}>all its runs</a></h2>
        ${trigger.firings.length ? html`<${Table} label="Last firings" columns=${["Due", "Processed", "Cause", "Outcome", "Run", "Reason"]}>${trigger.firings.map((/** @type {any} */ firing, /** @type {number} */ index) => html`
            <tr data-row key=${index}><td><${Time} at=${firing.at} absolute /></td><td><${Time} at=${firing.fired_at} /></td><td>${firing.cause}</td>
            <td><${Status} status=${firing.outcome} as=${LOOKS[firing.outcome] ?? "CANCELLED"} /></td><td>${firing.run_id && html`<a class="mono" href=${to("runs", firing.run_id)}>${firing.run_id}</a>`}</td>
            <td>${firing.reason && named(firing.reason)} <span class="clip" title=${firing.detail ?? ""}>${firing.detail}</span></td></tr>`)}</${Table}>` : html`<p class="faint">It has not fired yet.</p>`}
        ${trigger.kind === "schedule" && html`<${Backfills} key=${`backfills-${backfills}`} id=${id} fill=${() => setOpen("backfill")} changed=${loaded.reload} />`}
        ${open === "fire" && html`<${Fire} trigger=${trigger} onClose=${done} />`}
        ${open === "pause" && html`<${Pause} trigger=${trigger} onClose=${close} done=${done} />`}
        ${open === "edit" && html`<${EditTrigger} trigger=${trigger} tag=${tag} onClose=${close} done=${done} />`}
        ${open === "backfill" && html`<${Backfill} trigger=${trigger} onClose=${() => (close(), setBackfills(backfills + 1))} />`}
        ${open === "rotate" && html`<${Sure} title="Make another token" text="The address with the token before does not work any more from now on." permission="runs:write" action="Make another token" work=${rotate} onClose=${close} />`}
        ${open === "delete" && html`<${Sure} title=${`Delete ${trigger.name}`} text="It does not fire any more. Its runs stay." permission="runs:write" action="Delete" work=${remove} onClose=${close} />`}
        ${token && html`<${Once} title=${`Address of ${trigger.name}`} items=${[["Address", token.url], ["Token", token.token]]} onClose=${() => setToken(null)} />`}`;
}

/** How its topic is read. @param {{ reading: any }} props */
function Reading({ reading }) {
    return html`${reading.error && html`<div class="problem" role="alert"><strong>The topic cannot be read: ${reading.error}</strong> <span class="faint">since <${Time} at=${reading.error_at} absolute /></span></div>`}
        <${Facts} items=${[["Consumer group", html`<span class="mono">${reading.group_id}</span>`], ["Begun", html`<${Time} at=${reading.started_at} absolute />`]]} />`;
}

/** Where deliveries of others arrive, and what was refused there. @param {{ trigger: any, rotate: () => void }} props */
function Address({ trigger, rotate }) {
    const { webhook } = trigger;
    return html`<section class="card"><h2>Address</h2>${webhook.url_by_name ? html`<${Code} text=${webhook.url_by_name} label="Address by name" wrap />` : html`<p class="faint">Only the one with the token, which was shown when it was made.</p>`}
        <${Facts} items=${[["Token made", html`<${Time} at=${webhook.token_at} absolute />`], ["Refused deliveries", webhook.refused],
            ...(webhook.refused_at ? [["Last refused", html`<${Time} at=${webhook.refused_at} />`], ["Reason", html`<span class="bad">${webhook.refused_for}</span>`]] : [])]} />
        <${Action} permission="runs:write" onClick=${rotate}>Make another token</${Action}></section>`;
}

/** @param {{ id: string, fill: () => void, changed: () => void }} props */
function Backfills({ id, fill, changed }) {
    const path = { trigger_id: id };
    const loaded = useGet("/triggers/{trigger_id}/backfills", { path });
    /** @type {any[]} */
    const items = loaded.data?.items ?? [];
    const isBusy = items.some((one) => one.state === "running");
    useEvery(isBusy, LOOK_MS, () => (loaded.reload(), changed()));
    const stop = (/** @type {any} */ one) => async () => {
        await api("POST", "/triggers/{trigger_id}/backfills/{backfill_id}/stop", { path: { ...path, backfill_id: one.id } });
        say("The backfill starts no further runs");
        loaded.reload();
    };
    return html`<h2>Backfills</h2><div class="actions"><${Action} permission="runs:write" onClick=${fill}>Start runs of a range of time</${Action}>
            ${" "}<button type="button" class="quiet" onClick=${loaded.reload}>Read again</button></div>
        <${Problem} error=${loaded.error} retry=${loaded.reload} />
        ${items.length > 0 && html`<${Table} label="Backfills" columns=${["From", "To", "State", "Done", "Started", "Present", "Failed", "By", ""]}>${items.map((one) => html`<tr data-row key=${one.id}>
            <td><${Time} at=${one.from} absolute /></td><td><${Time} at=${one.to} absolute /></td><td><${Status} status=${one.state} as=${LOOKS[one.state]} /></td><td class="number">${one.done} of ${one.total}</td>
            <td class="number">${one.started}</td><td class="number">${one.present}</td><td class=${one.failed ? "number bad" : "number"}>${one.failed}</td><td>${one.created_by}</td>
            <td class="row-actions">${one.state === "running" && html`<${Action} kind="danger quiet" permission="runs:write" onClick=${stop(one)}>Stop</${Action}>`}</td></tr>`)}</${Table}>`}`;
}
