// Pieces of dialogs that change something: a form, what the service says about its members, and what is shown once.
import { html, useRef, useState } from "./runtime.js";
import { InputForm, useInput } from "./input.js";
import { problemOf, problemsOf } from "./hooks.js";
import { typed } from "./list.js";
import { unsaved } from "./router.js";
import { parsed } from "./text.js";
import { Action, Code, Dialog, Problem, words } from "./ui.js";

/**
 * The state of a form whose members the service checks below `prefix`.
 * @param {any} schema @param {any} initial @param {string} prefix
 */
export function useForm(schema, initial, prefix = "body") {
    const state = useInput(schema, initial);
    const [problems, setProblems] = useState(/** @type {Record<string, string>} */ ({}));
    /** The object, or null if something in it is wrong. @returns {Record<string, any> | null} */
    const read = () => {
        const { input, problems: found } = state.read();
        setProblems(found);
        return Object.keys(found).length ? null : /** @type {any} */ (input);
    };
    return { state, problems, read, blame: (/** @type {unknown} */ error) => setProblems(problemsOf(error, prefix)) };
}

/** @param {{ form: ReturnType<typeof useForm>, id: string, label?: string }} props */
export function Form({ form, id, label }) {
    return html`<${InputForm} state=${form.state} problems=${form.problems} id=${id} label=${label} />`;
}

/** What is wrong in the fields of a dialog, by the error of its work: `Finish` blames, fields ask by their members in the body. */
export function useBlame() {
    const [error, blame] = useState(/** @type {unknown} */ (null));
    return { blame, problem: (/** @type {string} */ member) => problemOf(error, member) };
}

/** The value of a JSON text that is this member of the body. @param {string} member @param {string} text @returns {any} */
export function jsonOf(member, text) {
    try {
        return parsed(text);
    } catch (cause) {
        const message = words(cause);
        throw Object.assign(new Error(message), { errors: [{ field: `body.${member}`, message }] });
    }
}

/** The key of a request, as long as its body is the same: what is sent again after a time-out is not done twice. */
export function useKey() {
    const last = useRef({ text: "", key: "" });
    return (/** @type {unknown} */ body) => {
        const text = JSON.stringify(body);
        if (last.current.text !== text) last.current = { text, key: crypto.randomUUID() };
        return { "idempotency-key": last.current.key };
    };
}

/** The end of a dialog: what went wrong, and its buttons. @param {{ work: () => Promise<unknown>, children?: any, permission?: string, kind?: string,
 *   onClose: () => void, blame?: (error: unknown) => void, stay?: string, disabled?: boolean }} props */
export function Finish({ work, children, permission, kind, onClose, blame, stay, disabled }) {
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const press = async () => {
        setError(null);
        blame?.(null);
        // What is stored may be left.
        const forms = [...unsaved].filter((form) => form.isDialog);
        for (const form of forms) unsaved.delete(form);
        try {
            await work();
        } catch (cause) {
            for (const form of forms) unsaved.add(form);
            blame?.(cause);
            setError(cause);
        }
    };
    return html`<${Problem} error=${error} /><div class="buttons"><${Action} kind=${kind ?? "primary"} permission=${permission} disabled=${disabled} onClick=${press}>${children}</${Action}>
        <button type="button" onClick=${onClose}>${stay ?? "Close"}</button></div>`;
}

/** How a field says what is wrong in it. @param {string} id @param {string | undefined} problem */
const wrong = (id, problem) => problem && { "aria-invalid": "true", "aria-describedby": `${id}-problem` };

/** @param {{ id: string, problem: string | undefined }} props */
function Wrong({ id, problem }) {
    return problem && html`<p class="bad" id=${`${id}-problem`}>${problem}</p>`;
}

/** A line of text with its label. @param {{ id: string, label: any, value: string, change: (value: string) => void, problem?: string | undefined } & Record<string, unknown>} props */
export function Line({ id, label, value, change, problem, ...rest }) {
    return html`<label for=${id}>${label}</label><input id=${id} value=${value} ...${rest} ...${wrong(id, problem)} onInput=${typed(change)} /><${Wrong} id=${id} problem=${problem} />`;
}

/** A text of several lines, mostly JSON. @param {{ id: string, label: any, value: string, change: (value: string) => void, rows: number, problem?: string | undefined }} props */
export function Text({ id, label, value, change, rows, problem }) {
    return html`<label for=${id}>${label}</label><textarea id=${id} class="mono" rows=${rows} spellcheck=${false} value=${value} ...${wrong(id, problem)}
        onInput=${typed(change)}></textarea><${Wrong} id=${id} problem=${problem} />`;
}

/** @param {{ id: string, label: any, value: string, options: [string, any][], change: (value: string) => void, problem?: string | undefined }} props */
export function Choice({ id, label, value, options, change, problem }) {
    return html`<label for=${id}>${label}</label><select id=${id} value=${value} ...${wrong(id, problem)} onChange=${typed(change)}>
        ${options.map(([name, title]) => html`<option key=${name} value=${name} selected=${name === value}>${title}</option>`)}</select><${Wrong} id=${id} problem=${problem} />`;
}

/** A question before something that is hard to undo. @param {{ title: string, text: any, permission: string, action: string, work: () => Promise<unknown>,
 *   onClose: () => void, stay?: string }} props */
export function Sure({ title, text, permission, action, work, onClose, stay }) {
    return html`<${Dialog} title=${title} onClose=${onClose}><p>${text}</p>
        <${Finish} work=${work} permission=${permission} kind="danger" onClose=${onClose} stay=${stay ?? "Keep it"}>${action}</${Finish}></${Dialog}>`;
}

/** What no later answer shows. @param {{ title: string, items: [string, string | null | undefined][], children?: any, onClose: () => void }} props */
export function Once({ title, items, children, onClose }) {
    return html`<${Dialog} title=${title} onClose=${onClose}><p><strong>Copy it now.</strong> It is shown this one time only.</p>
        ${items.filter(([, text]) => text).map(([name, text]) => html`<h3>${name}</h3><${Code} text=${text} label=${name} wrap />`)}${children}
        <div class="buttons"><button type="button" class="primary" onClick=${onClose}>Done</button></div></${Dialog}>`;
}
