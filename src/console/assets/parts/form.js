// Pieces of dialogs that change something: a form, what the service says about its members, and what is shown once.
import { html, useState } from "./runtime.js";
import { InputForm, useInput } from "./input.js";
import { problemsOf } from "./hooks.js";
import { typed } from "./list.js";
import { unsaved } from "./router.js";
import { Action, Code, Dialog, Problem } from "./ui.js";

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

/** The end of a dialog: what went wrong, and its buttons. @param {{ work: () => Promise<unknown>, children?: any, permission?: string, kind?: string,
 *   onClose: () => void, blame?: (error: unknown) => void, stay?: string, disabled?: boolean }} props */
export function Finish({ work, children, permission, kind, onClose, blame, stay, disabled }) {
    const [error, setError] = useState(/** @type {unknown} */ (null));
    const press = async () => {
        setError(null);
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

/** A line of text with its label. @param {{ id: string, label: any, value: string, change: (value: string) => void } & Record<string, unknown>} props */
export function Line({ id, label, value, change, ...rest }) {
    return html`<label for=${id}>${label}</label><input id=${id} value=${value} ...${rest} onInput=${typed(change)} />`;
}

/** A text of several lines, mostly JSON. @param {{ id: string, label: any, value: string, change: (value: string) => void, rows: number }} props */
export function Text({ id, label, value, change, rows }) {
    return html`<label for=${id}>${label}</label><textarea id=${id} class="mono" rows=${rows} spellcheck=${false} value=${value}
        onInput=${typed(change)}></textarea>`;
}

/** @param {{ id: string, label: any, value: string, options: [string, any][], change: (value: string) => void }} props */
export function Choice({ id, label, value, options, change }) {
    return html`<label for=${id}>${label}</label><select id=${id} value=${value} onChange=${typed(change)}>
        ${options.map(([name, title]) => html`<option key=${name} value=${name} selected=${name === value}>${title}</option>`)}</select>`;
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
