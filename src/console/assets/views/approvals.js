// What waits for people: the inbox, and the forms of answers.
import { html, use, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Line } from "../parts/form.js";
import { InputForm, useInput } from "../parts/input.js";
import { Pager, Table, usePage } from "../parts/list.js";
import { useEvery } from "../parts/load.js";
import { mayLeave, place, setQuery, to, useGuard } from "../parts/router.js";
import { session } from "../parts/session.js";
import { waitsFor } from "../parts/steps.js";
import { Action, Empty, enter, Head, isText, Json, Loading, Problem, say, Status, Time } from "../parts/ui.js";

/** How often the inbox is read again. */
const LOOK_MS = 10_000;

/** What waits for people in all runs, and what was answered. */
export function Approvals() {
    const { query } = use(place);
    const who = use(session);
    const show = query.get("show") ?? "mine";
    const isHistory = show === "answered";
    const loaded = usePage("/callbacks", { query: { state: isHistory ? "answered" : "open", page_size: 50 } });
    useEvery(Boolean(loaded.data), LOOK_MS, loaded.reload);
    const isMine = (/** @type {any} */ one) => !one.role || who?.role === "admin" || !who?.authentication || one.role === who?.role;
    /** @type {any[]} */
    const items = (loaded.data?.items ?? []).filter((/** @type {any} */ one) => isHistory || (one.step_execution_id !== null && (show === "all" || isMine(one))));
    return html`<${Head} title="Approvals" />
        <div class="filters"><div class="chips" role="group" aria-label="Whose">${[["mine", "For my role"], ["all", "All"], ["answered", "Answered"]].map(([name, title]) => html`
            <button type="button" class="chip" key=${name} aria-pressed=${show === name} onClick=${() => mayLeave() && setQuery({ show: name === "mine" ? null : name ?? null, cursor: null })}>${title}</button>`)}</div></div>
        <${Problem} error=${loaded.error} retry=${loaded.reload} />
        <p class="sr" aria-live="polite">${loaded.data && !isHistory ? `${items.length} wait` : ""}</p>
        ${!loaded.data ? loaded.loading && html`<${Loading} />` : !items.length ? html`<${Empty}>${isHistory ? "Nothing was answered yet." : `Nothing waits for ${show === "all" ? "anybody" : "you"}${loaded.data.next_cursor || loaded.data.prev_cursor ? " on this page" : ""}.`}</${Empty}>`
        : isHistory ? html`<${History} items=${items} />` : items.map((one) => html`<section key=${one.url} class="waiting">
            <h2><a href=${to("runs", one.run_id)}>${one.workflow_name}</a> <span class="faint mono">${one.run_id}</span></h2>
            <${Answer} callback=${one} changed=${loaded.reload} /></section>`)}
        ${loaded.data && (loaded.data.next_cursor || loaded.data.prev_cursor) && html`<${Pager} page=${loaded.data} what=${isHistory ? "answers" : "questions"} />`}`;
}

/** @param {{ items: any[] }} props */
function History({ items }) {
    return html`<${Table} label="Answered" columns=${["Workflow", "Step", "Answered", "By", "Answer", "Asked"]}>${items.map((one) => html`<tr data-row key=${`${one.run_id} ${one.step_id} ${one.answered_at}`}>
        <td><a href=${to("runs", one.run_id)}>${one.workflow_name}</a></td><td>${one.step_id}</td><td><${Time} at=${one.answered_at} /></td><td>${one.answered_by ?? "–"}</td>
        <td>${typeof one.answer?.approved === "boolean" ? html`<${Status} status=${one.answer.approved ? "approved" : "rejected"} as=${one.answer.approved ? "COMPLETED" : "FAILED"} /> ${one.answer.comment
            && html`<span class="clip" title=${one.answer.comment}>${one.answer.comment}</span>`}` : html`<code class="clip">${JSON.stringify(one.answer)?.slice(0, 500)}</code>`}</td>
        <td><${Time} at=${one.created_at} /></td></tr>`)}</${Table}>`;
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
    const id = tokenOf(callback);
    const [isTyped, setTyped] = useState(false);
    useGuard(isTyped);
    const send = async (/** @type {unknown} */ body, /** @type {string} */ done) => {
        await api("POST", "/callbacks/{token}", { path: { token: id }, body, quiet: true });
        say(done);
        changed();
    };
    return html`<article class="answer card" onInput=${(/** @type {Event} */ event) => isText(event.target) && setTyped(true)}><header><h2>${callback.step_id} waits ${waitsFor(callback)}</h2>
        <span class="faint">since <${Time} at=${callback.created_at} />${callback.expires_at && html`, until <${Time} at=${callback.expires_at} />`}</span></header>
        ${question?.text && html`<blockquote>${question.text}</blockquote>`}
        ${callback.input_data && Object.keys(callback.input_data).length > 0 && html`<${Words} input=${callback.input_data} />`}
        ${callback.is_approval ? html`<${Decision} send=${send} id=${id} />` : html`<${Free} callback=${callback} send=${send} id=${id} />`}</article>`;
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
    return html`<${Line} id=${`comment-${id}`} label="Comment" value=${comment} maxlength="1000" change=${setComment} />
        <div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${decide(true)}>Approve</${Action}>
        <${Action} kind="danger" permission="runs:write" onClick=${decide(false)}>Reject</${Action}></div>`;
}

/** @param {{ callback: any, send: (body: unknown, done: string) => Promise<void>, id: string }} props */
function Free({ callback, send, id }) {
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
    return html`<div onKeyDown=${enter}><${InputForm} state=${state} problems=${problems} id=${`answer-${id}`} label="Answer" />
        <div class="buttons"><${Action} kind="primary" permission="runs:write" onClick=${answer}>Answer</${Action}></div></div>`;
}
