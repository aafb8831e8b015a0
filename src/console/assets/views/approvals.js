// What waits for people: the inbox, and the forms of answers.
import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { InputForm, useInput } from "../parts/input.js";
import { Pager, valueOf } from "../parts/list.js";
import { place, setQuery, to } from "../parts/router.js";
import { session } from "../parts/session.js";
import { waitsFor } from "../parts/steps.js";
import { PAGE, useWaiting } from "../parts/waiting.js";
import { Action, Empty, Head, Json, Loading, Problem, say, Time } from "../parts/ui.js";

/** What waits for people: the open callbacks of a page of running runs. */
export function Approvals() {
    const { query } = use(place);
    const who = use(session);
    const mine = query.get("show") !== "all";
    const { found: all, runs, items, error, loading, changed } = useWaiting(query.get("cursor"));
    const isMine = (/** @type {any} */ callback) => !callback.role || who?.role === "admin" || !who?.authentication || callback.role === who?.role;
    const found = all.map(({ run, callbacks }) => ({ run, callbacks: callbacks.filter((one) => !mine || isMine(one)) })).filter((one) => one.callbacks.length);
    return html`<${Head} title="Approvals" />
        <div class="filters"><div class="chips" role="group" aria-label="Whose"><button type="button" class="chip" aria-pressed=${mine} onClick=${() => setQuery({ show: null })}>For my role</button>
            <button type="button" class="chip" aria-pressed=${!mine} onClick=${() => setQuery({ show: "all" })}>All</button></div>
            <span class="faint">Questions, approvals and callbacks of ${PAGE} running runs at a time.</span></div>
        <${Problem} error=${error} retry=${changed} />
        ${loading ? html`<${Loading} />` : found.length ? found.map(({ run, callbacks }) => html`<section key=${run.id} class="waiting">
            <h2><a href=${to("runs", run.id)}>${run.workflow_name}</a> <span class="faint mono">${run.id}</span></h2>
            ${callbacks.map((/** @type {any} */ callback) => html`<${Answer} key=${callback.url} callback=${callback} changed=${changed} />`)}</section>`)
        : html`<${Empty}>Nothing waits for ${mine ? "you" : "anybody"} in ${items.length ? `these ${items.length} runs` : "any run: none is running"}.</${Empty}>`}
        ${runs.data && (runs.data.next_cursor || runs.data.prev_cursor) && html`<${Pager} page=${runs.data} what="running runs" />`}`;
}

/** The answer to a question without a schema. */
const TEXT = { type: "object", required: ["text"], properties: { text: { type: "string" } } };

/** What waits for a person, each with its form. @param {{ callbacks: any[], changed: () => void }} props */
export function Answers({ callbacks, changed }) {
    return html`<section class="answers" aria-label="Waiting for an answer">${callbacks.slice(0, 50).map((callback) => html`
        <${Answer} key=${callback.url} callback=${callback} changed=${changed} />`)}</section>`;
}

/** @param {any} callback */
const tokenOf = (callback) => decodeURIComponent(new URL(callback.url, location.origin).pathname.split("/").pop() ?? "");

/** @param {{ callback: any, changed: () => void }} props */
export function Answer({ callback, changed }) {
    const question = callback.question;
    const send = async (/** @type {unknown} */ body, /** @type {string} */ done) => {
        await api("POST", "/callbacks/{token}", { path: { token: tokenOf(callback) }, body, quiet: true });
        say(done);
        changed();
    };
    return html`<article class="answer card"><header><h2>${callback.step_id} waits ${waitsFor(callback)}</h2>
        <span class="faint">since <${Time} at=${callback.created_at} />${callback.expires_at && html`, until <${Time} at=${callback.expires_at} />`}</span></header>
        ${question?.text && html`<blockquote>${question.text}</blockquote>`}
        ${callback.input_data && Object.keys(callback.input_data).length > 0 && html`<${Words} input=${callback.input_data} />`}
        ${callback.is_approval ? html`<${Decision} send=${send} id=${callback.step_id} />` : html`<${Free} callback=${callback} send=${send} />`}</article>`;
}

/** @param {{ input: Record<string, unknown> }} props */
function Words({ input }) {
    const texts = Object.values(input).every((value) => typeof value === "string" || typeof value === "number");
    if (!texts) return html`<${Json} value=${input} label="About the request" />`;
    return html`<dl class="words">${Object.entries(input).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** @param {{ send: (body: unknown, done: string) => Promise<void>, id: string }} props */
function Decision({ send, id }) {
    const [comment, setComment] = useState("");
    const decide = (/** @type {boolean} */ approved) => () =>
        send(comment.trim() ? { approved, comment: comment.trim() } : { approved }, approved ? "Approved" : "Rejected");
    return html`<label for=${`comment-${id}`}>Comment</label><input id=${`comment-${id}`} value=${comment} maxlength="1000"
            onInput=${(/** @type {any} */ event) => setComment(valueOf(event))} />
        <div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${decide(true)}>Approve</${Action}>
        <${Action} kind="danger" permission="runs:write" onClick=${decide(false)}>Reject</${Action}></div>`;
}

/** @param {{ callback: any, send: (body: unknown, done: string) => Promise<void> }} props */
function Free({ callback, send }) {
    const state = useInput(callback.question ? callback.question.answer_schema ?? TEXT : null, {});
    const [problems, setProblems] = useState(/** @type {Record<string, string>} */ ({}));
    const answer = async () => {
        const read = state.read();
        setProblems(read.problems);
        if (!Object.keys(read.problems).length) await send(read.input, "Answered");
    };
    if (callback.question?.state === "auth-required") {
        return html`<p>Follow what the agent asks for, then confirm it here.</p><div class="buttons">
            <${Action} kind="primary" permission="runs:write" onClick=${() => send({ approved: true }, "Confirmed")}>It is done</${Action}></div>`;
    }
    return html`<${InputForm} state=${state} problems=${problems} id=${`answer-${callback.step_id}`} label="Answer" />
        <div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${answer}>Answer</${Action}></div>`;
}
