// An input as a form, by the schema of the workflow, or as JSON.
import { html, useState } from "./runtime.js";
import { fields, gather, show } from "./schema.js";
import { exact, fault, pretty } from "./text.js";
import { typed, valueOf } from "./list.js";

/** The state of a form: what was typed, and the input that it means. @param {any} schema @param {any} initial */
export function useInput(schema, initial) {
    const form = fields(schema);
    const begin = () => Object.fromEntries((form ?? []).map((field) => [field.name,
        show(field, initial && Object.hasOwn(initial, field.name) ? initial[field.name] : field.initial)]));
    const [texts, setTexts] = useState(begin);
    const [json, setJson] = useState(() => pretty(initial ?? example(form)));
    // What a form does not show is not lost.
    const beyond = (/** @type {any} */ input) => Object.fromEntries(Object.entries(input ?? {}).filter(([name]) => !form?.some((field) => field.name === name)));
    const [rest, setRest] = useState(() => beyond(initial));
    const [asJson, setAsJson] = useState(false);
    const isJson = asJson || !form;
    const read = () => {
        if (!isJson && form) {
            const { input, problems } = gather(form, texts);
            return { input: { ...rest, ...input }, problems };
        }
        const found = fault(json);
        if (found) return { input: null, problems: { "": `Line ${found.line}: ${found.message}` } };
        const input = exact(json);
        const isObject = input !== null && typeof input === "object" && !Array.isArray(input);
        return isObject ? { input, problems: {} } : { input: null, problems: { "": "The input must be an object" } };
    };
    const swap = () => {
        if (!isJson && form) setJson(pretty(read().input));
        else if (form) {
            const { input } = read();
            if (!input) return;
            setRest(beyond(input));
            setTexts(Object.fromEntries(form.map((field) => [field.name, show(field, input[field.name])])));
        }
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
        problem=${problems[field.name]} change=${(/** @type {string} */ text) => setTexts({ ...texts, [field.name]: text })} />`;
    return html`<div class="input-form">
        ${form && html`<button type="button" class="quiet swap" onClick=${swap}>${isJson ? "As a form" : "As JSON"}</button>`}
        ${isJson ? html`<label for=${`${id}-json`}>${label ?? "Input"} (JSON)</label>
            <textarea id=${`${id}-json`} class="mono" rows="9" spellcheck=${false} value=${json} aria-invalid=${Boolean(problems[""])}
                onInput=${typed(setJson)}></textarea>`
        : html`${usual.map(member)}${rare.length > 0 && html`<details open=${rare.some((field) => problems[field.name])}><summary>More</summary>${rare.map(member)}</details>`}`}
        ${problems[""] && html`<p class="bad" role="alert">${problems[""]}</p>`}</div>`;
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
