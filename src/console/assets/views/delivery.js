// One delivery of a webhook: what is sent, and each attempt.
import { html } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { LOOKS, named } from "../parts/hooks.js";
import { useEvery, useGet } from "../parts/load.js";
import { to } from "../parts/router.js";
import { exact, fault } from "../parts/text.js";
import { duration } from "../parts/time.js";
import { Action, Facts, Head, Json, Pending, say, Status, Time } from "../parts/ui.js";

const LOOK_MS = 2000;

/** @param {{ webhook_id: string, delivery_id: string }} props */
export function Delivery({ webhook_id: webhook, delivery_id: id }) {
    const path = { delivery_id: id };
    const loaded = useGet("/webhook-deliveries/{delivery_id}", { path });
    useEvery(loaded.data?.state === "pending", LOOK_MS, loaded.reload);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="delivery" back=${[to("webhooks", webhook), "Webhook"]} />`;
    const one = loaded.data;
    const again = async () => {
        await api("POST", "/webhook-deliveries/{delivery_id}/redeliver", { path });
        say("It is sent again");
        loaded.reload();
    };
    return html`<${Head} title=${one.event_type} back=${[to("webhooks", webhook), "Webhook"]}><${Action} kind="primary" permission="webhooks:write" onClick=${again}>Send again</${Action}></${Head}>
        ${one.error && html`<div class="problem"><strong>${one.error}</strong></div>`}
        <${Facts} items=${[["State", html`<${Status} status=${one.state} as=${LOOKS[one.state]} />`], ["Attempts", one.attempts], ["HTTP status", one.status_code ?? "–"], ["Event at", html`<${Time} at=${one.event_at} absolute />`],
            ["Next attempt", html`<${Time} at=${one.next_attempt_at} />`], ["Ended", html`<${Time} at=${one.ended_at} absolute />`], ["Event", html`<span class="mono">${one.event_id}</span>`],
            ...(one.run_id ? [["Run", html`<a class="mono" href=${to("runs", one.run_id)}>${one.run_id}</a>${one.seq === null ? "" : ` entry ${one.seq}`}`]] : [])]} />
        <div class="columns"><section><h2>Attempts</h2>${one.attempt_log.length ? one.attempt_log.map((/** @type {any} */ attempt) => html`<${Attempt} key=${attempt.number} attempt=${attempt} />`) : html`<p class="faint">None has ended yet.</p>`}</section>
        <section><h2>Body</h2><${Json} value=${one.body} label="Body" /></section></div>`;
}

/** @param {{ attempt: any }} props */
export function Attempt({ attempt }) {
    const answer = attempt.answer && !fault(attempt.answer) ? exact(attempt.answer) : attempt.answer;
    return html`<article class="card"><p><strong>${attempt.number}</strong> <${Status} status=${named(attempt.outcome === "status" ? "refused" : attempt.outcome)} as=${LOOKS[attempt.outcome]} />
            ${attempt.status_code === null ? "" : ` HTTP ${attempt.status_code}`} <span class="faint">in ${duration(attempt.duration_ms)}${attempt.started_at ? html`, <${Time} at=${attempt.started_at} absolute />` : ""}</span></p>
        ${attempt.error && html`<p class="bad">${attempt.error}</p>`}${attempt.retry_after && html`<p class="faint">retry-after: ${attempt.retry_after}</p>`}
        ${attempt.is_answer_hidden ? html`<p class="faint">Only administrators see the answers of this address.</p>` : answer ? html`<details><summary>Answer</summary><${Json} value=${answer} label=${`Answer ${attempt.number}`} /></details>` : ""}</article>`;
}
