// What waits for people: the inbox, and the forms of answers.
import { html, use, useRef, useState } from "../parts/runtime.js";
import { api, list, prefix } from "../parts/api.js";
import { Line, useBlame } from "../parts/form.js";
import { problemsOf } from "../parts/hooks.js";
import { inPlace } from "../parts/inbox.js";
import { InputForm, useInput } from "../parts/input.js";
import { Pager, Table, usePage } from "../parts/list.js";
import { useEvery } from "../parts/load.js";
import { mayLeave, place, setQuery, to, useGuard } from "../parts/router.js";
import { lacks, session } from "../parts/session.js";
import { waitsFor } from "../parts/steps.js";
import { Action, Empty, enter, Head, isText, Json, Loading, Problem, say, Status, Time } from "../parts/ui.js";

/** How often the inbox is read again. */
const LOOK_MS = 10_000;

/** What waits for people in all runs, and what was answered. */
export function Approvals() {
    const { query } = use(place);
    const show = query.get("show") ?? "mine";
    const isHistory = show === "answered";
    const loaded = usePage("/callbacks", { query: isHistory ? { state: "answered", page_size: 50 } : { mine: show === "mine" ? true : null, sort_order: "asc", page_size: 50 } });
    useEvery(Boolean(loaded.data), LOOK_MS, loaded.reload);
    const shown = useRef(/** @type {{ view: string | null, items: any[] }} */ ({ view: null, items: [] }));
    /** @type {any[]} */
    let items = loaded.data?.items ?? [];
    if (loaded.data && !isHistory) {
        const before = shown.current.view === query.toString() ? shown.current.items : [];
        items = inPlace(before, items.filter((one) => one.step_execution_id !== null));
        shown.current = { view: query.toString(), items };
    }
    const gone = items.filter((one) => one.is_gone).length;
    const hide = () => {
        shown.current.view = null;
        loaded.reload();
    };
    return html`<${Head} title="Approvals" />
        <div class="filters"><div class="chips" role="group" aria-label="Whose">${[["mine", "For my role"], ["all", "All"], ["answered", "Answered"]].map(([name, title]) => html`
            <button type="button" class="chip" key=${name} aria-pressed=${show === name} onClick=${() => mayLeave() && setQuery({ show: name === "mine" ? null : name ?? null, cursor: null })}>${title}</button>`)}</div>
            ${gone > 0 && html`<button type="button" class="quiet" onClick=${hide}>Hide what is over (${gone})</button>`}</div>
        <${Problem} error=${loaded.error} retry=${loaded.reload} />
        <p class="sr" aria-live="polite">${loaded.data && !isHistory ? `${items.length - gone} wait` : ""}</p>
        ${!loaded.data ? loaded.loading && html`<${Loading} />` : !items.length ? html`<${Empty}>${isHistory ? "Nothing was answered yet." : `Nothing waits for ${show === "all" ? "anybody" : "you"}${loaded.data.next_cursor || loaded.data.prev_cursor ? " on this page" : ""}.`}</${Empty}>`
        : isHistory ? html`<${History} items=${items} />` : items.map((one) => html`<section key=${one.url} class="waiting">
            <h2><a href=${to("runs", one.run_id)}>${one.workflow_name}</a> <span class="faint mono">${one.run_id}</span></h2>
            <${Answer} callback=${one} changed=${loaded.reload} /></section>`)}
        ${loaded.data && (loaded.data.next_cursor || loaded.data.prev_cursor) && html`<div onClickCapture=${(/** @type {Event} */ event) => event.target instanceof HTMLButtonElement && (mayLeave() || event.stopPropagation())}>
            <${Pager} page=${loaded.data} what=${isHistory ? "answers" : "questions"} /></div>`}`;
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

/** Forms on the screen of a run. */
const MOST = 50;

/** What waits for a person, each with its form. @param {{ callbacks: any[], changed: () => void }} props */
export function Answers({ callbacks, changed }) {
    return html`<section class="answers" aria-label="Waiting for an answer">${callbacks.slice(0, MOST).map((callback) => html`
        <${Answer} key=${callback.url} callback=${callback} changed=${changed} />`)}
        ${callbacks.length > MOST && html`<p class="banner">${MOST} of ${callbacks.length} are shown; the others follow when these are answered.</p>`}</section>`;
}

/** @param {any} callback */
const tokenOf = (callback) => decodeURIComponent(new URL(callback.url, location.origin).pathname.split("/").pop() ?? "");

/** @param {{ callback: any, changed: () => void }} props */
export function Answer({ callback, changed }) {
    use(session);
    const question = callback.question;
    const id = tokenOf(callback);
    const [isTyped, setTyped] = useState(false);
    useGuard(isTyped && !callback.is_gone);
    const send = async (/** @type {unknown} */ body, /** @type {string} */ done) => {
        // The address alone is a permission.
        list({ method: "POST", url: `${prefix}/callbacks/CALLBACK_TOKEN`, body: JSON.stringify(body) });
        await api("POST", "/callbacks/{token}", { path: { token: id }, body, quiet: true });
        say(done);
        changed();
    };
    const role = lacks(callback);
    const form = { send, id, refused: callback.is_gone ? "It is answered, or its time is over" : role && `Needs the role ${role}` };
    return html`<article class="answer card" onInput=${(/** @type {Event} */ event) => isText(event.target) && setTyped(true)}><header><h2>${callback.step_id} ${callback.is_gone ? "does not wait any more" : `waits ${waitsFor(callback)}`}</h2>
        <span class="faint">since <${Time} at=${callback.created_at} />${callback.expires_at && html`, until <${Time} at=${callback.expires_at} />`}</span></header>
        ${question?.text && html`<blockquote>${question.text}</blockquote>`}${question?.data && html`<${Json} value=${question.data} label="Data of the question" />`}
        ${callback.input_data && Object.keys(callback.input_data).length > 0 && html`<${Words} input=${callback.input_data} />`}
        ${callback.is_approval ? html`<${Decision} ...${form} isAuth=${question?.state === "auth-required"} />` : html`<${Free} ...${form} question=${question} />`}</article>`;
}

/** @param {{ input: Record<string, unknown> }} props */
function Words({ input }) {
    return html`<dl class="words">${Object.entries(input).map(([name, value]) => html`<div key=${name}><dt>${name}</dt>
        <dd>${value !== null && typeof value === "object" ? html`<${Json} value=${value} label=${name} />` : String(value)}</dd></div>`)}</dl>`;
}

/** @typedef {{ send: (body: unknown, done: string) => Promise<void>, id: string, refused: string }} Form */

/** @param {Form & { isAuth: boolean }} props */
function Decision({ send, id, refused, isAuth }) {
    const [comment, setComment] = useState("");
    const { blame, problem } = useBlame();
    const decide = (/** @type {boolean} */ approved) => () => {
        blame(null);
        return send({ approved, ...(comment.trim() ? { comment: comment.trim() } : {}) }, approved ? "Approved" : "Rejected").catch((error) => {
            blame(error);
            throw error;
        });
    };
    return html`${isAuth ? html`<p>Follow what the agent asks for, then confirm it here.</p>`
        : html`<${Line} id=${`comment-${id}`} label="Comment" value=${comment} maxlength="1000" problem=${problem("comment")} change=${setComment} />`}
        <div class="buttons"><${Action} kind="primary" permission="runs:write" refused=${refused} onClick=${decide(true)}>${isAuth ? "It is done" : "Approve"}</${Action}>
        <${Action} kind="danger" permission="runs:write" refused=${refused} onClick=${decide(false)}>Reject</${Action}></div>`;
}

/** @param {Form & { question: any }} props */
function Free({ question, send, id, refused }) {
    const state = useInput(question ? question.answer_schema ?? TEXT : null, {}, true);
    const [problems, setProblems] = useState(/** @type {Record<string, string>} */ ({}));
    const answer = async () => {
        const read = state.read();
        setProblems(read.problems);
        if (Object.keys(read.problems).length) return;
        try {
            await send(read.input, "Answered");
        } catch (error) {
            setProblems(problemsOf(error, "body"));
            throw error;
        }
    };
    return html`<div onKeyDown=${enter}><${InputForm} state=${state} problems=${problems} id=${`answer-${id}`} label="Answer" />
        <div class="buttons"><${Action} kind="primary" permission="runs:write" refused=${refused} onClick=${answer}>Answer</${Action}></div></div>`;
}
