import { html, use, useLayoutEffect, useMemo, useRef, useState } from "../parts/runtime.js";
import { api, ApiError, call, ifMatch } from "../parts/api.js";
import { Graph } from "../parts/graph.js";
import { Finish, Text } from "../parts/form.js";
import { Table, typed } from "../parts/list.js";
import { useLoad, useSettled } from "../parts/load.js";
import { go, to, unsaved, useGuard } from "../parts/router.js";
import { can, needs, session } from "../parts/session.js";
import { exact, fault, locate, parsed, pretty } from "../parts/text.js";
import { Action, Dialog, download, Head, Json, Pending, Problem, say, Status, words } from "../parts/ui.js";
import { Difference } from "./compare.js";
import { toDefinition } from "./workflow.js";

const PAUSE_MS = 400;
const LARGEST_FILE = 1_048_576;
const FIRST = {
    name: "new-workflow", start_step: "first",
    steps: { first: { id: "first", type: "agent", agent_name: "", input_mapping: { text: "${workflow.input.text}" } } },
};

/** @typedef {{ line: number, message: string, kind: "error" | "warning", field: string }} Finding */

/** @param {{ workflow_id?: string }} props */
export function Editor({ workflow_id: id }) {
    const loaded = useLoad((signal) => (id ? read(id, signal) : Promise.resolve({ text: pretty(FIRST), tag: null })), [id ?? ""]);
    if (!loaded.data) return html`<${Pending} loaded=${loaded} what="definition" back=${[to("workflows"), "Workflows"]} />`;
    return html`<${Edit} id=${id ?? null} first=${loaded.data} />`;
}

/** @typedef {{ text: string, tag: string | null, name?: string }} Stored
 * @param {string} id @param {AbortSignal} [signal] @returns {Promise<Stored>} */
async function read(id, signal) {
    const { data, headers } = await call("GET", "/workflows/{workflow_id}", { path: { workflow_id: id }, ...(signal ? { signal } : {}) });
    return { text: pretty(toDefinition(data)), tag: headers.get("etag"), name: data.name };
}

/** @param {{ id: string | null, first: Stored }} props */
function Edit({ id, first }) {
    use(session);
    const { name } = first;
    const [text, setText] = useState(first.text);
    const [stored, setStored] = useState(first.text);
    const [tag, setTag] = useState(first.tag);
    const [newer, setNewer] = useState(/** @type {Stored | null} */ (null));
    const [problem, setProblem] = useState(/** @type {unknown} */ (null));
    const [testing, setTesting] = useState(/** @type {any} */ (null));
    const picker = useRef(/** @type {HTMLInputElement | null} */ (null));
    const isChanged = text !== stored;
    useGuard(isChanged);
    const broken = useMemo(() => fault(text), [text]);
    const checked = useChecked(text, broken);
    // The last definition that somebody has paused at, which is drawn.
    const [drawn, setDrawn] = useState(() => exact(first.text));
    useSettled(PAUSE_MS, [text], () => broken || setDrawn(exact(text)));
    const save = async (/** @type {string | null} */ version) => {
        setProblem(null);
        setNewer(null);
        try {
            const { name: given, ...rest } = parsed(text);
            if (id && given !== undefined && given !== name) throw new Error(`A workflow keeps its name, which is ${name}. With another name it is a new workflow.`);
            const item = id
                ? await api("PUT", "/workflows/{workflow_id}", { path: { workflow_id: id }, body: { ...NOTHING, ...rest },
                    headers: ifMatch(version) })
                : await api("POST", "/workflows", { text });
            setStored(text);
            unsaved.clear();
            say(`${item.name} is stored as version ${item.version}`);
            go(to("workflows", item.id));
        } catch (error) {
            setProblem(error);
            if (id && error instanceof ApiError && error.status === 412) await read(id).then(setNewer, setProblem);
        }
    };
    const take = (/** @type {Stored} */ other) => {
        setText(other.text);
        setStored(other.text);
        setTag(other.tag);
        setNewer(null);
        setProblem(null);
    };
    const open = async (/** @type {any} */ event) => {
        const file = event.target.files?.[0];
        event.target.value = "";
        if (!file) return;
        if (file.size > LARGEST_FILE) return say("The file is larger than 1 MiB", true);
        if (isChanged && !confirm("The file replaces what is not stored. Go on?")) return;
        const content = await file.text();
        setText(fault(content) ? content : pretty(exact(content)));
    };
    return html`<${Head} title=${id ? `Edit ${name}` : "New workflow"} back=${id ? [to("workflows", id), name] : [to("workflows"), "Workflows"]}>
            <input ref=${picker} type="file" accept="application/json,.json" hidden onChange=${open} aria-label="File with a definition" />
            <button type="button" class="quiet" onClick=${() => picker.current?.click()}>Import</button>
            <button type="button" class="quiet" onClick=${() => download(`${drawn?.name ?? name ?? "definition"}.json`, "application/json", text)}>Export</button>
            <${Action} disabled=${Boolean(broken)} onClick=${() => setTesting(parsed(text))}>Try it</${Action}>
            <${Action} kind="primary" permission="workflows:write" disabled=${broken || !isChanged} onClick=${() => save(tag)}>Store</${Action}></${Head}>
        ${!can("workflows:write") && html`<p class="banner">You can look and try, but not store. ${needs("workflows:write")}.</p>`}
        <${Problem} error=${problem} />
        ${newer && html`<section><h2>From what is stored now to this text</h2><${Difference} before=${exact(newer.text)} after=${drawn} />
            <div class="buttons"><${Action} permission="workflows:write" onClick=${() => save(newer.tag)}>Store this text all the same</${Action}>
                <button type="button" onClick=${() => take(newer)}>Edit what is stored now</button></div></section>`}
        <div class="editor-view"><div><${Lines} text=${text} change=${setText} findings=${checked.findings} />
            <${Findings} checked=${checked} isChanged=${isChanged} /></div>
            <div class="editor-graph"><${Graph} definition=${drawn} label="Graph of the definition" /></div></div>
        ${testing && html`<${Try} definition=${testing} onClose=${() => setTesting(null)} />`}`;
}

/** Members that a text without them removes. */
const NOTHING = { description: null, input_schema: null, expose: null, limits: null, retention_days: null, concurrency: null, throttle: null, debounce: null,
    deadline_seconds: null, deadline_action: null, silence_hours: null };

/** @typedef {{ findings: Finding[], summary: any, state: string, text: string }} Checked */

/** Asks the service when nobody types. @param {string} text @param {ReturnType<typeof fault>} broken @returns {Checked} */
function useChecked(text, broken) {
    const [checked, setChecked] = useState(/** @type {Checked} */ ({ findings: [], summary: null, state: "checking", text }));
    useSettled(PAUSE_MS, [text], async (signal) => {
        if (broken) return setChecked({ findings: [{ ...broken, kind: "error", field: "" }], summary: null, state: "broken", text });
        try {
            const answer = await api("POST", "/workflows/validate", { text, signal });
            setChecked({ text, findings: [...answer.errors.map(find(text, "error")), ...answer.warnings.map(find(text, "warning"))],
                summary: answer.summary, state: answer.valid ? "valid" : "invalid" });
        } catch (error) {
            if (signal.aborted) return;
            const errors = /** @type {any} */ (error).errors ?? [];
            setChecked({ text, findings: errors.length ? errors.map(find(text, "error"))
                : [{ line: 1, message: words(error), kind: "error", field: "" }], summary: null, state: "invalid" });
        }
    });
    // What is said of another text is not said of this one.
    return checked.text === text ? checked : { ...checked, summary: null, state: "checking" };
}

/** @param {string} text @param {"error" | "warning"} kind @returns {(error: any) => Finding} */
function find(text, kind) {
    return (error) => {
        const field = error.field.replace(/^body\.?/, "");
        return { kind, message: error.message, field, line: locate(text, field ? field.split(".") : named(error.message)) };
    };
}

/** The place that an error of the whole definition names in its words. @param {string} message @returns {string[]} */
function named(message) {
    const [, step, isFollowed] = message.match(/\bstep '(.+?)'( is followed by)?/) ?? [];
    if (step) return ["steps", step, ...(isFollowed ? ["next_step"] : [])];
    return message.includes("start_step") ? ["start_step"] : [];
}

/** @param {{ text: string, change: (text: string) => void, findings: Finding[] }} props */
function Lines({ text, change, findings }) {
    const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
    const gutter = useRef(/** @type {HTMLDivElement | null} */ (null));
    const count = text.split("\n").length;
    const numbers = useMemo(() => {
        const bad = new Map(findings.map((finding) => [finding.line, finding.kind]));
        const marked = [0, ...[...bad.keys()].filter((line) => line <= count).sort((a, b) => a - b), count + 1];
        return marked.slice(1).map((line, index) => [Array.from({ length: line - Number(marked[index]) - 1 }, (_, one) => line - one - 1).reverse().join("\n"),
            line <= count && html`<div class=${bad.get(line)}>${line}</div>`]);
    }, [count, findings]);
    useLayoutEffect(() => {
        if (area.current && area.current.value !== text) area.current.value = text;
    }, [text]);
    const tab = (/** @type {KeyboardEvent} */ event) => {
        // Ctrl+Space indents, since Tab leaves the field.
        const element = area.current;
        if (!element || !(event.ctrlKey && event.key === " ")) return;
        event.preventDefault();
        element.setRangeText("  ", element.selectionStart, element.selectionEnd, "end");
        change(element.value);
    };
    const sync = () => {
        if (gutter.current && area.current) gutter.current.scrollTop = area.current.scrollTop;
    };
    return html`<div class="lines"><div class="gutter mono" aria-hidden="true" ref=${gutter}>${numbers}</div>
        <textarea ref=${area} class="mono" aria-label="Definition as JSON" aria-describedby="findings" spellcheck=${false} wrap="off" data-search
            onInput=${typed(change)} onKeyDown=${tab} onScroll=${sync}></textarea></div>`;
}

/** @param {{ checked: { findings: Finding[], summary: any, state: string }, isChanged: boolean }} props */
function Findings({ checked, isChanged }) {
    const jump = (/** @type {number} */ line) => () => {
        const area = document.querySelector(".lines textarea");
        if (!(area instanceof HTMLTextAreaElement)) return;
        const lines = area.value.split("\n");
        const from = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
        area.focus();
        area.setSelectionRange(from, from + (lines[line - 1]?.length ?? 0));
        area.scrollTop = Math.max(0, (line - 5) * 18);
    };
    const said = { checking: "Checking…", valid: "The definition is valid", invalid: "The definition is not valid", broken: "This is no JSON" }[checked.state];
    return html`<div id="findings" class="findings" role="status"><p class=${checked.state}><strong>${said}</strong>
        ${checked.summary && html`<span class="faint"> ${checked.summary.total_steps} steps, depth ${checked.summary.depth}</span>`}
        ${isChanged && html`<span class="faint"> · not stored</span>`}</p>
        <ul class="plain">${checked.findings.slice(0, 100).map((finding, index) => html`<li key=${index} class=${finding.kind}>
            <button type="button" class="link" onClick=${jump(finding.line)}>line ${finding.line}</button> ${finding.field && html`<span class="mono">${finding.field}</span> `}
            ${finding.message}</li>`)}</ul></div>`;
}

/** A dry run: what the mappings make of an input; agents give their input back. @param {{ definition: any, onClose: () => void }} props */
function Try({ definition, onClose }) {
    const [input, setInput] = useState("{}");
    const [mocks, setMocks] = useState("{}");
    const [result, setResult] = useState(/** @type {any} */ (null));
    const work = async () => setResult(await api("POST", "/workflows/test", { body: { definition, input_data: parsed(input), mocks: parsed(mocks) } }));
    return html`<${Dialog} title="Try the definition" wide onClose=${onClose}><p class="faint">Executed in virtual time. No agent is called: each gives its
            input back, or what is said here, so the inputs show what the mappings make.</p>
        <${Text} id="try-input" label="Input (JSON)" rows=${5} value=${input} change=${setInput} />
        <${Text} id="try-mocks" label=${'Answers by step (JSON), such as {"a": {"output": {"text": "yes"}}}'} rows=${4} value=${mocks} change=${setMocks} /><${Finish} work=${work} onClose=${onClose}>Try</${Finish}>
        ${result && html`<p><${Status} status=${result.status} /> ${result.error_message ?? ""}</p>
            <${Table} label="Steps of the test" columns=${["Step", "Status", "Input", "Output", "Error"]}>${result.steps.slice(0, 200).map((/** @type {any} */ step, /** @type {number} */ index) => html`
                <tr key=${index}><td>${step.path}</td><td><${Status} status=${step.status} /></td><td><code class="clip">${JSON.stringify(step.input_data)?.slice(0, 500)}</code></td>
                <td><code class="clip">${JSON.stringify(step.output_data)?.slice(0, 500)}</code></td><td>${step.error_message ?? ""}</td></tr>`)}</${Table}>
            ${result.warnings.length > 0 && html`<ul class="plain">${result.warnings.map((/** @type {any} */ one) => html`<li class="warning" key=${one.field + one.message}>
                <span class="mono">${one.field}</span> ${one.message}</li>`)}</ul>`}
            ${result.not_reached.length > 0 && html`<p class="faint">Not reached: ${result.not_reached.join(", ")}</p>`}
            <h3>Output</h3><${Json} value=${result.output_data} label="Output" />`}</${Dialog}>`;
}
