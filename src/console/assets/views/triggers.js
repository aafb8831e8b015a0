// What starts runs without a client: the list, and the form of one.
import { html, use, useState } from "../parts/runtime.js";
import { api, ifMatch } from "../parts/api.js";
import { Choice, Form, Finish, Once, useForm, useKey } from "../parts/form.js";
import { CONFIGS, illness, LOOKS, named, TRIGGER, when } from "../parts/hooks.js";
import { choices, PagedTable, useFilters, usePage } from "../parts/list.js";
import { useSettled } from "../parts/load.js";
import { go, to } from "../parts/router.js";
import { absolute } from "../parts/time.js";
import { utc } from "../parts/settings.js";
import { Action, Dialog, Empty, Head, say, Status, Time, words } from "../parts/ui.js";

const KINDS = Object.keys(CONFIGS);
const PAUSE_MS = 400;

export function Triggers() {
    const [making, setMaking] = useState(false);
    const { asked, filter, isFiltered } = useFilters(["name_prefix", "kind", "workflow_name", "enabled"]);
    const loaded = usePage("/triggers", { query: { ...asked, page_size: 50 } });
    return html`<${Head} title="Triggers"><${Action} kind="primary" permission="runs:write" onClick=${() => setMaking(true)}>New trigger</${Action}></${Head}>
        <div class="filters" role="search">${filter("name_prefix", "Name begins with", undefined, true)}${filter("kind", "Kind", choices([...new Set([...KINDS, ...(asked["kind"] ? [asked["kind"]] : [])])]))}
        ${filter("enabled", "State", [["", "all"], ["true", "active"], ["false", "paused"]])}${filter("workflow_name", "Workflow")}</div>
        <${PagedTable} loaded=${loaded} label="Triggers" what="triggers" columns=${["Name", "State", "Health", "Kind", "When", "Workflow", "Last due", "Fired", "Failed to start", "Note"]}
            empty=${html`<${Empty} path="/triggers" body=${{ name: "every-hour", kind: "schedule", workflow_name: "NAME", config: { cron: ["@hourly"] } }}>
                ${isFiltered ? "No trigger matches these filters." : "Triggers start runs at times, or when other services deliver something. Make one here, or from a shell:"}</${Empty}>`}
            row=${(/** @type {any} */ trigger) => html`<tr data-row key=${trigger.id}><td><a class="clip" title=${trigger.name} href=${to("triggers", trigger.id)}>${trigger.name}</a></td><td><${State} trigger=${trigger} /></td>
                <td><${Health} health=${trigger.health} /></td><td>${trigger.kind}</td><td><span class="clip" title=${when(trigger)}>${when(trigger)}</span></td><td>${trigger.workflow_name}</td><td><${Time} at=${trigger.last_fired_at} /></td>
                <td class="number">${trigger.counters.fired}</td><td class=${trigger.counters.failed_to_start ? "number bad" : "number"}>${trigger.counters.failed_to_start}</td>
                <td><span class="clip" title=${trigger.note ?? ""}>${trigger.note}</span></td></tr>`} />
        ${making && html`<${EditTrigger} trigger=${null} tag=${null} onClose=${() => setMaking(false)} done=${(/** @type {any} */ made) => go(to("triggers", made.id))} />`}`;
}

/** @param {{ trigger: any }} props */
export function State({ trigger }) {
    return html`<${Status} status=${trigger.enabled ? "ACTIVE" : "PAUSED"} as=${trigger.enabled ? "COMPLETED" : "PAUSED"} />`;
}

/** @param {{ health: any }} props */
export function Health({ health }) {
    if (health.status === "unknown") return html`<span class="faint">has not fired</span>`;
    const why = illness(health);
    return html`<${Status} status=${health.status} as=${LOOKS[health.status]} /> <span class="clip faint" title=${why}>${why}</span>`;
}

/** @param {any} trigger */
const given = (trigger) => trigger && Object.fromEntries(Object.keys(TRIGGER.properties).filter((name) => trigger[name] !== null && (name !== "labels" || Object.keys(trigger.labels).length))
    .map((name) => [name, trigger[name]]));

/** Members that an empty field means, since a change keeps what is absent. */
const EMPTY = { input: null, version: null, priority: 5, note: null, labels: {} };

/** @param {{ trigger: any, tag: string | null, onClose: () => void, done: (trigger: any) => void }} props */
export function EditTrigger({ trigger, tag, onClose, done }) {
    const [kind, setKind] = useState(trigger?.kind ?? "schedule");
    const [made, setMade] = useState(/** @type {any} */ (null));
    const common = useForm(TRIGGER, given(trigger));
    // That of the members that the form shows, though the trigger is read again meanwhile.
    const [first] = useState(tag);
    const key = useKey();
    if (made) {
        return html`<${Once} title=${`Address of ${made.name}`} items=${[["Address", made.url], ["Token", made.token]]} onClose=${() => done(made)}>
            <p class="faint">Whoever has the address can deliver${made.config.preset === "none" ? "" : ", if the delivery is signed"}.</p></${Once}>`;
    }
    const save = async (/** @type {Record<string, any>} */ config) => {
        const members = common.read();
        if (!members) return;
        try {
            const saved = trigger
                ? await api("PUT", "/triggers/{trigger_id}", { path: { trigger_id: trigger.id }, body: { ...EMPTY, ...members, config }, headers: ifMatch(first) })
                : await api("POST", "/triggers", { body: { ...members, kind, config }, headers: key({ ...members, kind, config }) });
            say(`${saved.name} is stored`);
            if (saved.token) setMade(saved);
            else done(saved);
        } catch (cause) {
            common.blame(cause);
            throw cause;
        }
    };
    return html`<${Dialog} title=${trigger ? `Edit ${trigger.name}` : "New trigger"} onClose=${onClose} wide><${Form} form=${common} id="trigger" label="Trigger" />
        ${!trigger && html`<${Choice} id="trigger-kind" label="Kind" value=${kind} options=${KINDS.map((one) => [one, one])} change=${setKind} />`}
        <${Config} key=${kind} kind=${kind} initial=${trigger?.config ?? null} save=${save} onClose=${onClose} /></${Dialog}>`;
}

/** What a kind has of its own. @param {{ kind: string, initial: any, save: (config: Record<string, any>) => Promise<void>, onClose: () => void }} props */
function Config({ kind, initial, save, onClose }) {
    const form = useForm(CONFIGS[kind] ?? null, initial && Object.fromEntries(Object.entries(initial).filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length))), "body.config");
    const work = async () => {
        const config = form.read();
        if (config) await save(config);
    };
    return html`<h3>${kind === "schedule" ? "When it fires" : "Configuration"}</h3><${Form} form=${form} id="config" label="Configuration" />
        ${kind === "schedule" && html`<${Preview} config=${form.state.read().input} />`}
        <${Finish} work=${work} permission="runs:write" blame=${form.blame} onClose=${onClose}>Store</${Finish}>`;
}

/** The next times of what is typed, asked for when nobody types. @param {{ config: any }} props */
function Preview({ config }) {
    const zone = use(utc);
    const [shown, setShown] = useState(/** @type {any} */ ({ times: [] }));
    // As JSON it may be anything while somebody types.
    const { cron, exclude, every, anchor, ...rest } = config ?? {};
    const lines = (/** @type {any} */ list) => [list ?? []].flat().join("\n");
    const asked = { cron: lines(cron), every, ...(every ? { anchor } : {}), exclude: lines(exclude),
        ...Object.fromEntries(["time_zone", "dst_gap", "dst_fold", "start_at", "end_at"].map((name) => [name, rest[name]])) };
    useSettled(PAUSE_MS, [JSON.stringify(asked)], async (signal) => {
        try {
            setShown(asked.cron || every ? await api("GET", "/triggers/preview", { query: asked, signal }) : { times: [] });
        } catch (error) {
            if (!signal.aborted) setShown({ times: [], problem: words(error) });
        }
    });
    return html`<div class="card" role="status" aria-label="Preview of the times">${shown.problem ? html`<p class="bad">${shown.problem}</p>`
        : shown.words ? html`<strong>${shown.words}</strong>${shown.times.length ? html`<ol class="times">${shown.times.map((/** @type {any} */ time) => html`<li key=${time.at}>${absolute(time.at, zone)}
            <span class="faint"> ${time.local}${time.note ? `, ${named(time.note)}` : ""}</span></li>`)}</ol>` : html`<p class="faint">It would not fire.</p>`}`
        : html`<span class="faint">The next times are shown here.</span>`}</div>`;
}
