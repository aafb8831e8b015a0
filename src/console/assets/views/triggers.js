// What starts runs without a client: the list, and the form of one.
import { html, use, useEffect, useState } from "../parts/runtime.js";
import { api } from "../parts/api.js";
import { Choice, Form, Finish, Once, useForm } from "../parts/form.js";
import { CONFIGS, named, TRIGGER, when } from "../parts/hooks.js";
import { Filter, PagedTable, usePage } from "../parts/list.js";
import { each } from "../parts/load.js";
import { go, place, setQuery, to } from "../parts/router.js";
import { absolute } from "../parts/time.js";
import { utc } from "../parts/settings.js";
import { Action, Dialog, Empty, Head, say, Status, Time, words } from "../parts/ui.js";

const KINDS = Object.keys(CONFIGS);
const PAUSE_MS = 400;
/** Previewed expressions, and times of each. */
const EXPRESSIONS = 10;
const TIMES = 10;

export function Triggers() {
    const { query } = use(place);
    const [making, setMaking] = useState(false);
    const asked = Object.fromEntries(["name_prefix", "kind", "workflow_name", "enabled"].map((name) => [name, query.get(name) ?? ""]));
    const loaded = usePage("/triggers", { query: { ...asked, page_size: 50 } });
    const change = (/** @type {string} */ name) => (/** @type {string} */ value) => setQuery({ [name]: value, cursor: null });
    return html`<${Head} title="Triggers"><${Action} kind="primary" permission="runs:write" onClick=${() => setMaking(true)}>New trigger</${Action}></${Head}>
        <div class="filters" role="search"><${Filter} name="name_prefix" label="Name begins with" search value=${asked["name_prefix"]} change=${change("name_prefix")} />
        <${Filter} name="kind" label="Kind" value=${asked["kind"]} change=${change("kind")} options=${[["", "all"], ...[...new Set([...KINDS, ...(asked["kind"] ? [asked["kind"]] : [])])].map((kind) => [kind, kind])]} />
        <${Filter} name="enabled" label="State" value=${asked["enabled"]} change=${change("enabled")} options=${[["", "all"], ["true", "active"], ["false", "paused"]]} />
        <${Filter} name="workflow_name" label="Workflow" value=${asked["workflow_name"]} change=${change("workflow_name")} /></div>
        <${PagedTable} loaded=${loaded} label="Triggers" what="triggers" columns=${["Name", "State", "Kind", "When", "Workflow", "Last due", "Fired", "Failed to start", "Note"]}
            empty=${html`<${Empty} path="/triggers" body=${{ name: "every-hour", kind: "schedule", workflow_name: "NAME", config: { cron: ["@hourly"] } }}>
                ${Object.values(asked).some(Boolean) ? "No trigger matches these filters." : "Triggers start runs at times, or when other services deliver something. Make one here, or from a shell:"}</${Empty}>`}
            row=${(/** @type {any} */ trigger) => html`<tr data-row key=${trigger.id}><td><a class="clip" title=${trigger.name} href=${to("triggers", trigger.id)}>${trigger.name}</a></td><td><${State} trigger=${trigger} /></td>
                <td>${trigger.kind}</td><td><span class="clip" title=${when(trigger)}>${when(trigger)}</span></td><td>${trigger.workflow_name}</td><td><${Time} at=${trigger.last_fired_at} /></td>
                <td class="number">${trigger.counters.fired}</td><td class=${trigger.counters.failed_to_start ? "number bad" : "number"}>${trigger.counters.failed_to_start}</td>
                <td><span class="clip" title=${trigger.note ?? ""}>${trigger.note}</span></td></tr>`} />
        ${making && html`<${EditTrigger} trigger=${null} tag=${null} onClose=${() => setMaking(false)} done=${(/** @type {any} */ made) => go(to("triggers", made.id))} />`}`;
}

/** @param {{ trigger: any }} props */
export function State({ trigger }) {
    return html`<${Status} status=${trigger.enabled ? "ACTIVE" : "PAUSED"} as=${trigger.enabled ? "COMPLETED" : "PAUSED"} />`;
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
    if (made) {
        return html`<${Once} title=${`Address of ${made.name}`} items=${[["Address", made.url], ["Token", made.token]]} onClose=${() => done(made)}>
            <p class="faint">Whoever has the address can deliver${made.config.preset === "none" ? "" : ", if the delivery is signed"}.</p></${Once}>`;
    }
    const save = async (/** @type {Record<string, any>} */ config) => {
        const members = common.read();
        if (!members) return;
        try {
            const saved = trigger
                ? await api("PUT", "/triggers/{trigger_id}", { path: { trigger_id: trigger.id }, body: { ...EMPTY, ...members, config }, headers: first ? { "if-match": first } : {} })
                : await api("POST", "/triggers", { body: { ...members, kind, config } });
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
    const [shown, setShown] = useState(/** @type {{ words: string[], times: any[], problem: string }} */ ({ words: [], times: [], problem: "" }));
    const asked = [...(Array.isArray(config?.cron) ? config.cron : []).slice(0, EXPRESSIONS).map((/** @type {string} */ cron) => ({ cron })),
        ...(config?.every ? [{ every: config.every, anchor: config.anchor }] : [])]
        .map((one) => ({ ...one, time_zone: config.time_zone, dst_gap: config.dst_gap, dst_fold: config.dst_fold, count: TIMES }));
    useEffect(() => {
        if (!asked.length) {
            setShown({ words: [], times: [], problem: "" });
            return undefined;
        }
        const abort = new AbortController();
        const timer = setTimeout(async () => {
            try {
                const found = await each(asked, 3, (query) => api("GET", "/triggers/preview", { query, signal: abort.signal }));
                /** @type {Map<string, any>} */
                const times = new Map(found.flatMap((one) => one.times.map((/** @type {any} */ time) => [time.at, time])));
                setShown({ words: found.map((one) => one.words), times: [...times.values()].sort((a, b) => (a.at < b.at ? -1 : 1)).slice(0, TIMES), problem: "" });
            } catch (error) {
                if (!abort.signal.aborted) setShown({ words: [], times: [], problem: words(error) });
            }
        }, PAUSE_MS);
        return () => {
            clearTimeout(timer);
            abort.abort();
        };
    }, [JSON.stringify(asked)]);
    return html`<div class="card" role="status" aria-label="Preview of the times">${shown.problem ? html`<p class="bad">${shown.problem}</p>`
        : shown.times.length ? html`<strong>${shown.words.join("; ")}</strong><ol class="times">${shown.times.map((time) => html`<li key=${time.at}>${absolute(time.at, zone)}
            <span class="faint"> ${time.local}${time.note ? `, ${named(time.note)}` : ""}</span></li>`)}</ol><p class="faint">Without exclusions, begin and end.</p>`
        : html`<span class="faint">The next times are shown here.</span>`}</div>`;
}
