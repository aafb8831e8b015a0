// An input as a form, by the schema of the workflow, or as JSON.
import { html, useState } from "./runtime.js";
import { fields, gather, show } from "./schema.js";
import { parsed, pretty } from "./text.js";
import { typed, valueOf } from "./list.js";
import { words } from "./ui.js";

/** Whether a value can be shown by a form. @param {any} value */
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** The state of a form: what was typed, and the input that it means; `any`: which is any JSON. @param {any} schema @param {any} initial @param {boolean} [any] */
export function useInput(schema, initial, any = false) {
    const form = fields(schema);
    // The schema may come later than the form is opened, so there is only what was typed.
    const [base, setBase] = useState(initial);
    const [typedTexts, setTexts] = useState(/** @type {Record<string, string>} */ ({}));
    const [typedJson, setJson] = useState(/** @type {string | null} */ (null));
    const [asJson, setAsJson] = useState(/** @type {boolean | null} */ (null));
    const texts = { ...Object.fromEntries((form ?? []).map((field) => [field.name,
        show(field, base && Object.hasOwn(base, field.name) ? base[field.name] : field.initial)])), ...typedTexts };
    const json = typedJson ?? pretty(base ?? example(form));
    const isJson = !form || (asJson ?? typedJson !== null);
    /** @returns {{ input: any, problems: Record<string, string> }} */
    const read = () => {
        if (!isJson && form) {
            const { input, problems } = gather(form, texts);
            // What a form does not show is not lost.
            const rest = Object.entries(base ?? {}).filter(([name]) => !form.some((field) => field.name === name));
            return { input: { ...Object.fromEntries(rest), ...input }, problems };
        }
        try {
            const input = parsed(json);
            if (any || isObject(input)) return { input, problems: {} };
            return { input: null, problems: { "": "The input must be an object" } };
        } catch (error) {
            return { input: null, problems: { "": words(error) } };
        }
    };
    const swap = () => {
        const { input } = read();
        if (!isJson) setJson(pretty(input));
        else if (isObject(input)) {
            setBase(input);
            setTexts({});
        } else return;
        setAsJson(!isJson);
    };
    return { form, texts, setTexts, json, setJson, isJson, swap, read };
}

/** @param {import("./schema.js").Field[] | null} form */
function example(form) {
    return Object.fromEntries((form ?? []).filter((field) => field.initial !== undefined).map((field) => [field.name, field.initial]));
}

/** @param {{ state: ReturnType<typeof useInput>, problems: Record<string, string>, id: string, label?: string }} props */
export function InputForm({ state, problems, id, label }) {
    const { form, texts, setTexts, json, setJson, isJson, swap } = state;
    const rare = (form ?? []).filter((field) => field.rare);
    const usual = (form ?? []).filter((field) => !field.rare);
    const member = (/** @type {import("./schema.js").Field} */ field) => html`<${Member} key=${field.name} field=${field} id=${`${id}-${field.name}`} text=${texts[field.name] ?? ""}
        problem=${problems[field.name]} change=${(/** @type {string} */ text) => setTexts((before) => ({ ...before, [field.name]: text }))} />`;
    const all = Object.entries(problems).map(([name, problem]) => (name ? `${name}: ${problem}` : problem)).join("; ");
    const whole = isJson ? all : problems[""];
    return html`<div class="input-form">
        ${form && html`<button type="button" class="quiet swap" onClick=${swap}>${isJson ? "As a form" : "As JSON"}</button>`}
        ${isJson ? html`<label for=${`${id}-json`}>${label ?? "Input"} (JSON)</label>
            <textarea id=${`${id}-json`} class="mono" rows="9" spellcheck=${false} value=${json} aria-invalid=${Boolean(whole)} aria-describedby=${`${id}-problem`}
                onInput=${typed(setJson)}></textarea>`
        : html`${usual.map(member)}${rare.length > 0 && html`<details open=${rare.some((field) => problems[field.name])}><summary>More</summary>${rare.map(member)}</details>`}`}
        <p class="bad" id=${`${id}-problem`} role="alert">${whole}</p></div>`;
}

/** @param {{ field: import("./schema.js").Field, id: string, text: string, problem: string | undefined, change: (text: string) => void }} props */
function Member({ field, id, text, problem, change }) {
    const set = (/** @type {any} */ event) => change(valueOf(event));
    const about = { id, "aria-invalid": problem ? "true" : "false", "aria-describedby": `${id}-about`, required: field.required };
    const options = field.kind === "boolean" ? ["true", "false"] : field.choices.map((choice) => JSON.stringify(choice));
    return html`<div class="member"><label for=${id}>${field.name}${field.required ? html`<span class="faint"> required</span>` : ""}</label>
        ${field.kind === "boolean" || field.kind === "choice" ? html`<select ...${about} value=${text} onChange=${set}>
                <option value="" selected=${text === ""}></option>${options.map((option) => html`<option key=${option} value=${option}
                    selected=${option === text}>${field.kind === "choice" ? option.replace(/^"|"$/g, "") : option}</option>`)}</select>`
        : field.kind === "json" || field.kind === "lines" ? html`<textarea ...${about} class="mono" rows=${field.kind === "lines" ? 2 : 4} spellcheck=${false} value=${text} onInput=${set}></textarea>`
        : html`<input ...${about} type="text" inputmode=${field.kind === "text" ? "text" : "decimal"} value=${text} onInput=${set} />`}
        <p class="faint" id=${`${id}-about`}>${field.description}${problem && html` <span class="bad">${problem}</span>`}</p></div>`;
}
