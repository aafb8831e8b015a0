import { html, useRef, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Finish, Line, useBlame, useKey } from "../parts/form.js";
import { problemsOf } from "../parts/hooks.js";
import { InputForm, useInput } from "../parts/input.js";
import { follow } from "../parts/layout.js";
import { allows } from "../parts/run-list.js";
import { go, to } from "../parts/router.js";
import { Action, Dialog, say } from "../parts/ui.js";

/** @param {{ run: any, definition: any, changed: () => void }} props */
export function RunActions({ run, definition, changed }) {
    const [open, setOpen] = useState("");
    const path = { run_id: run.id };
    const close = () => setOpen("");
    const simple = (/** @type {() => Promise<any>} */ work, /** @type {string} */ done) => async () => {
        await work();
        say(done);
        changed();
    };
    return html`${allows(run, "pause") && html`<${Action} permission="runs:write" title="No further step begins"
            onClick=${simple(() => api("POST", "/runs/{run_id}/pause", { path }), "The run is paused")}>Pause</${Action}>`}
        ${allows(run, "resume") && html`<${Action} permission="runs:write" kind="primary"
            onClick=${simple(() => api("POST", "/runs/{run_id}/resume", { path }), "The run goes on")}>Resume</${Action}>`}
        ${allows(run, "cancel") && html`<${Action} permission="runs:write" kind="danger" onClick=${() => setOpen("cancel")}>Cancel run</${Action}>`}
        ${allows(run, "retry") && html`<${Action} permission="runs:write" kind="primary" onClick=${() => setOpen("retry")}>Retry</${Action}>`}
        <a class="button quiet" href=${`${to("compare")}?a=${encodeURIComponent(run.id)}`}>Compare</a>
        ${open === "cancel" && html`<${Cancel} run=${run} onClose=${close} changed=${changed} />`}
        ${open === "retry" && html`<${Retry} run=${run} definition=${definition} step="" onClose=${close} changed=${changed} />`}`;
}

/** @param {{ run: any, onClose: () => void, changed: () => void }} props */
function Cancel({ run, onClose, changed }) {
    const [reason, setReason] = useState("");
    const { blame, problem } = useBlame();
    const work = async () => {
        await api("POST", "/runs/{run_id}/cancel", { path: { run_id: run.id }, body: reason.trim() ? { reason: reason.trim() } : {} });
        say("The run is cancelled");
        onClose();
        changed();
    };
    return html`<${Dialog} title="Cancel the run" onClose=${onClose}><p>The run and its sub-runs end. A cancelled run can be retried.</p>
        <${Line} id="reason" label="Reason" value=${reason} maxlength="500" problem=${problem("reason")} change=${setReason} />
        <${Finish} work=${work} kind="danger" permission="runs:write" stay="Keep it" blame=${blame} onClose=${onClose}>Cancel run</${Finish}></${Dialog}>`;
}

/** @param {{ run: any, step: string, definition: any, changed: () => void }} props */
export function RetryFrom({ run, step, definition, changed }) {
    const [open, setOpen] = useState(false);
    // Who is about to retry keeps the dialog, though somebody else has retried.
    if (!open && !allows(run, "retry")) return null;
    return html`<${Action} permission="runs:write" kind="primary" onClick=${() => setOpen(true)}>Retry from here</${Action}>
        ${open && html`<${Retry} run=${run} definition=${definition} step=${step} onClose=${() => setOpen(false)} changed=${changed} />`}`;
}

/** @param {{ run: any, definition: any, step: string, onClose: () => void, changed: () => void }} props */
function Retry({ run, definition: latest, step, onClose, changed }) {
    // It comes after the dialog, and is not there any more when somebody else has retried.
    const known = useRef(latest);
    known.current = latest ?? known.current;
    const definition = known.current;
    const [from, setFrom] = useState(step);
    const [edits, setEdits] = useState(false);
    const [problems, setProblems] = useState(/** @type {Record<string, string>} */ ({}));
    const state = useInput(definition?.input_schema ?? null, run.input_data ?? {});
    const { blame, problem } = useBlame();
    const key = useKey();
    const refuse = (/** @type {unknown} */ error) => {
        blame(error);
        setProblems(problemsOf(error, "body.input_data"));
    };
    const plan = definition?.workflow_data;
    const chain = plan ? follow(plan.steps ?? {}, plan.start_step) : [];
    const work = async () => {
        /** @type {Record<string, unknown>} */
        const body = {};
        if (edits) {
            const read = state.read();
            setProblems(read.problems);
            if (Object.keys(read.problems).length) return;
            body["input_data"] = read.input;
        }
        if (from) body["resume_from_step"] = from;
        const retried = await api("POST", "/runs/{run_id}/retry", { path: { run_id: run.id }, body, headers: key(body) });
        say("The run has started again");
        onClose();
        if (retried.new_run_id && retried.new_run_id !== run.id) go(to("runs", retried.new_run_id));
        else changed();
    };
    return html`<${Dialog} title=${step ? `Retry from ${step}` : "Retry the run"} onClose=${onClose} wide>
        <${Choice} id="from" label="From step" value=${from} problem=${problem("resume_from_step")} change=${setFrom}
            options=${[["", "after the last completed step"], ...[...new Set([...chain, ...(step ? [step] : [])])].map((id) => [id, id])]} />
        <p class="faint">${from ? `Everything from ${from} is repeated, completed or not.` : "Completed steps are not repeated."}</p>
        <label><input type="checkbox" checked=${edits} onChange=${() => setEdits(!edits)} /> With another input</label>
        ${edits && html`<${InputForm} state=${state} problems=${problems} id="retry" />`}
        <${Finish} work=${work} permission="runs:write" blame=${refuse} onClose=${onClose}>Retry</${Finish}></${Dialog}>`;
}
