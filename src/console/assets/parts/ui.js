// Small components that the screens share.
import { html, signal, use, useEffect, useLayoutEffect, useRef, useState } from "./runtime.js";
import { address, ApiError, calls } from "./api.js";
import { SHAPES } from "./draw.js";
import { masked } from "./hooks.js";
import { LEAVE, useGuard } from "./router.js";
import { can, needs, session } from "./session.js";
import { absolute, relative } from "./time.js";
import { curl } from "./text.js";
import { now, utc } from "./settings.js";

/** Said to screen readers and shown for a while. */
export const said = signal(/** @type {{ text: string, bad: boolean, id: number } | null} */ (null));
let saidCount = 0;

/** @param {string} text @param {boolean} [bad] */
export function say(text, bad = false) {
    said.value = { text, bad, id: ++saidCount };
}

/** Words for what went wrong. @param {unknown} error */
export function words(error) {
    if (!(error instanceof ApiError)) return error instanceof Error ? error.message : String(error);
    return error.errors.slice(0, 5).map((one) => `${one.field.replace(/^body\./, "")}: ${one.message}`).join("; ") || error.message;
}

/** @param {string} text @param {string} [what] */
export async function copy(text, what = "Copied") {
    try {
        await navigator.clipboard.writeText(text);
        say(what);
    } catch {
        say("The browser does not let this page use the clipboard", true);
    }
}

/** @param {string} name @param {string} type @param {string} text */
export function download(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    URL.revokeObjectURL(url);
}

/** A status by word, shape and colour; `as`: the status of a run that looks like it. @param {{ status: string, paused?: boolean, as?: string }} props */
export function Status({ status, paused, as }) {
    const name = paused ? "PAUSED" : status;
    const shape = name === "PAUSED" ? "M4 3V9M8 3V9" : SHAPES[as ?? status] ?? "M6 6h.01";
    return html`<span class=${`status s-${as ?? name}`}><svg viewBox="0 0 12 12" aria-hidden="true"><path d=${shape}
        /></svg>${name.toLowerCase().replaceAll("_", " ")}</span>`;
}

/** A time in words; absolute when the keyboard is in its row, and on hover. @param {{ at: string | null | undefined, absolute?: boolean }} props */
export function Time({ at, absolute: isAbsolute }) {
    const zone = use(utc);
    const moment = use(now);
    if (!at) return html`<span class="faint">–</span>`;
    const full = absolute(at, zone, true);
    if (isAbsolute) return html`<time dateTime=${at} title=${full}>${absolute(at, zone)}</time>`;
    const words = relative(at, moment);
    return html`<time dateTime=${at} title=${full} aria-label=${`${words}, ${full}`}><span class="relative">${words}</span><span class="absolute">${absolute(at, zone)}</span></time>`;
}

/** When an open circuit breaker lets a call through: from that time on the next one, whenever that is. @param {{ at: string }} props */
export function Retried({ at }) {
    return Date.parse(at) > use(now) ? html`<${Time} at=${at} />` : html`with the next call`;
}

/** @param {{ error: unknown, retry?: () => void }} props */
export function Problem({ error, retry }) {
    if (!error) return null;
    const id = error instanceof ApiError ? error.requestId : "";
    return html`<div class="problem" role="alert"><strong>${words(error)}</strong>
        ${id && html`<div class="faint">request ${id}</div>`}
        ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}</div>`;
}

export function Logo() {
    return html`<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7" /><path d="M9 9h6v6H9zM17 17h6v6h-6zM15 12h5v5M12 15v5h5" /></svg>`;
}

/** @param {{ what?: string }} props */
export function Loading({ what }) {
    return html`<p class="loading" role="status">Loading${what ? ` ${what}` : ""}…</p>`;
}

/** What a detail screen shows before it has its data. @param {{ loaded: import("./load.js").Loaded, what: string, back: [string, string] }} props */
export function Pending({ loaded, what, back }) {
    if (!loaded.error) return html`<${Loading} what=${`the ${what}`} />`;
    return html`<${Head} title=${`${what[0]?.toUpperCase()}${what.slice(1)}`} back=${back} /><${Problem} error=${loaded.error} retry=${loaded.reload} />`;
}

/** A call as a command for a shell. @param {import("./api.js").Call} call */
function commandOf(call) {
    const who = session.peek();
    const header = who?.credential === "token" ? "Authorization: Bearer $TOKEN" : `${who?.api_key_header ?? "X-API-Key"}: $KEY`;
    return curl({ ...call, body: masked(call) }, location.origin, who?.authentication === false ? null : header);
}

/** An empty state, with the command or the call that would fill it. @param {{ children?: any, command?: string, path?: string, method?: string, body?: unknown }} props */
export function Empty({ children, command, path, method, body }) {
    const text = path ? commandOf({ method: method ?? "POST", url: address(path), body: JSON.stringify(body) }) : command;
    return html`<div class="empty"><p>${children}</p>${text && html`<${Code} text=${text} label="Command" />`}</div>`;
}

/** @param {{ text: string, label?: string, wrap?: boolean }} props */
export function Code({ text, label, wrap }) {
    return html`<div class="code"><pre class=${wrap ? "wrap" : ""} tabindex="0" aria-label=${label ?? "Text"}>${text}</pre>
        <button type="button" class="quiet copy" onClick=${() => copy(text)}>Copy</button></div>`;
}

const SHOWN = 200_000;

/** @param {{ value: unknown, label: string }} props */
export function Json({ value, label }) {
    if (value === null || value === undefined) return html`<p class="faint">none</p>`;
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
    if (text.length <= SHOWN) return html`<${Code} text=${text} label=${label} />`;
    return html`<${Code} text=${`${text.slice(0, SHOWN)}…`} label=${label} />
        <button type="button" onClick=${() => download("value.json", "application/json", text)}>
            Download all (${Math.round(text.length / 1024)} KiB)</button>`;
}

/** A button that a permission opens; without it the button says who has it. `refused`: why it cannot be pressed all the same.
 * @param {{ permission?: string, refused?: string | false, onClick?: () => unknown, children?: any, kind?: string, disabled?: boolean, title?: string }} props */
export function Action({ permission, refused, onClick, children, kind, disabled, title }) {
    use(session);
    const button = useRef(/** @type {HTMLElement | null} */ (null));
    const [busy, setBusy] = useState(false);
    const alive = useRef(true);
    useEffect(() => () => void (alive.current = false), []);
    const missing = permission && !can(permission) ? needs(permission) : refused || "";
    const press = async () => {
        if (busy || missing) return;
        setBusy(true);
        try {
            await onClick?.();
        } catch (error) {
            // Work that was given up is no problem.
            if (!(error instanceof DOMException && error.name === "AbortError")) say(words(error), true);
        }
        if (!alive.current) return;
        setBusy(false);
        // What was refused can be mended at once.
        requestAnimationFrame(() => {
            const field = button.current?.closest("dialog, .answer, .narrow")?.querySelector('[aria-invalid="true"]');
            if (field instanceof HTMLElement) field.focus();
        });
    };
    return html`<button type="button" ref=${button} class=${kind ?? ""} disabled=${disabled && !missing} aria-disabled=${missing || busy ? "true" : undefined}
        title=${missing || title} aria-busy=${busy} onClick=${press}>${children}${missing && html`<span class="sr">. ${missing}</span>`}</button>`;
}

/** Whether a person types in it. What belongs to a form of HTML is the browser's. @param {EventTarget | null} target */
export function isText(target) {
    if (target instanceof HTMLTextAreaElement) return true;
    return target instanceof HTMLInputElement && !target.form && !["checkbox", "radio", "file"].includes(target.type);
}

/** As in a form: Enter in a line of text is the first button. @param {KeyboardEvent} event */
export function enter(event) {
    const { target, currentTarget: form } = event;
    if (event.key !== "Enter" || event.isComposing || event.defaultPrevented || !(form instanceof Element)) return;
    if (!isText(target) || target instanceof HTMLTextAreaElement) return;
    event.preventDefault();
    const first = form.querySelector(".buttons button.primary:not(:disabled)");
    if (first instanceof HTMLElement) first.click();
}

/** @param {{ title: string, onClose: () => void, children?: any, wide?: boolean }} props */
export function Dialog({ title, onClose, children, wide }) {
    const box = useRef(/** @type {HTMLDialogElement | null} */ (null));
    const before = useRef(document.activeElement);
    const inside = useRef(/** @type {Element | null} */ (null));
    const [isTyped, setTyped] = useState(false);
    useGuard(isTyped, true);
    const leave = () => {
        if (!isTyped || confirm(LEAVE)) onClose();
    };
    // What is moved in the document, because something before it has come or gone, is not modal any more.
    useLayoutEffect(() => {
        const dialog = box.current;
        if (!dialog || dialog.matches(":modal")) return;
        const last = inside.current;
        dialog.close();
        dialog.showModal();
        if (last instanceof HTMLElement) last.focus();
    });
    useLayoutEffect(() => {
        box.current?.addEventListener("focusin", ({ target }) => void (inside.current = /** @type {Element} */ (target)));
        const first = box.current?.querySelector(".body :is(input, select, textarea, button):not(:disabled)");
        if (first instanceof HTMLElement) first.focus();
        return () => {
            // While it is open, nothing else can have the keyboard.
            box.current?.close();
            const heir = before.current?.isConnected ? before.current : document.querySelector("main h1");
            if (heir instanceof HTMLElement || heir instanceof SVGElement) heir.focus();
        };
    }, []);
    return html`<dialog ref=${box} class=${wide ? "wide" : ""} aria-label=${title} onKeyDown=${enter}
        onInput=${(/** @type {Event} */ event) => isText(event.target) && setTyped(true)}
        onCancel=${(/** @type {Event} */ event) => (event.preventDefault(), leave())}>
        <header><h2>${title}</h2><button type="button" class="quiet" aria-label="Close" onClick=${leave}>✕</button></header>
        <div class="body">${children}</div></dialog>`;
}

/** The tab that the address names, or else the first one. @param {[string, string][]} tabs @param {URLSearchParams} query */
export function tabOf(tabs, query) {
    return tabs.find(([name]) => name === query.get("tab"))?.[0] ?? tabs[0]?.[0] ?? "";
}

/** What colours and shapes mean; `plain`: without the widths of columns. @param {{ statuses: string[], plain?: boolean }} props */
export function Legend({ statuses, plain }) {
    return html`<p class="legend">${statuses.map((status) => html`<span key=${status}>${!plain && html`<svg viewBox="0 0 10 12" aria-hidden="true"><${Bar} status=${status} y=${0} height=${12} /></svg>`}
        <${Status} status=${status} /></span>`)}</p>`;
}

/** Widths besides colours. @type {Record<string, number>} */
const WIDTHS = { COMPLETED: 6, FAILED: 10, RUNNING: 4, PENDING: 2, CANCELLED: 8 };

/** A piece of a column. @param {{ status: string, y: number, height: number }} props */
export function Bar({ status, y, height }) {
    const width = WIDTHS[status] ?? 6;
    return html`<rect class=${`bar s-${status}`} x=${(10 - width) / 2} width=${width} y=${y} height=${height} />`;
}

/** @param {{ tabs: [string, string][], current: string, choose: (name: string) => void, label: string }} props */
export function Tabs({ tabs, current, choose, label }) {
    const key = (/** @type {KeyboardEvent} */ event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!move) return;
        event.preventDefault();
        const names = tabs.map(([name]) => name);
        const next = names[(names.indexOf(current) + move + names.length) % names.length] ?? current;
        choose(next);
        const list = event.currentTarget;
        requestAnimationFrame(() => {
            const tab = list instanceof Element ? list.querySelector('[aria-selected="true"]') : null;
            if (tab instanceof HTMLElement) tab.focus();
        });
    };
    return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${key}>${tabs.map(([name, title]) => html`
        <button type="button" role="tab" key=${name} id=${`tab-${name}`} aria-controls="panel" aria-selected=${name === current}
            tabindex=${name === current ? 0 : -1} onClick=${() => choose(name)}>${title}</button>`)}</div>`;
}

/** @param {{ items: [string, any][] }} props */
export function Facts({ items }) {
    return html`<dl class="facts">${items.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** Whether somebody has just come to another screen: then the keyboard starts at its heading. */
export const arrival = { due: false };

/** The head of a screen. @param {{ title: any, children?: any, back?: [string, string] }} props */
export function Head({ title, children, back }) {
    const heading = useRef(/** @type {HTMLElement | null} */ (null));
    useLayoutEffect(() => {
        if (arrival.due) heading.current?.focus({ preventScroll: true });
        arrival.due = false;
    }, []);
    return html`<div class="head">${back && html`<a class="back" href=${back[0]}>${back[1]}</a>`}
        <div class="line"><h1 tabindex="-1" ref=${heading}>${title}</h1><div class="actions">${children}<${Calls} /></div></div></div>`;
}

/** The calls behind the screen. */
function Calls() {
    const [open, setOpen] = useState(false);
    return html`<button type="button" class="quiet" title="The API calls of this screen" onClick=${() => setOpen(true)}>
        API</button>${open && html`<${CallList} onClose=${() => setOpen(false)} />`}`;
}

/** @param {{ onClose: () => void }} props */
function CallList({ onClose }) {
    const list = use(calls);
    const who = session.peek();
    return html`<${Dialog} title="API calls behind this screen" wide onClose=${onClose}>
        ${who?.authentication && html`<p class="faint">Set ${who.credential === "token" ? "TOKEN to a token" : "KEY to an API key"}.</p>`}
        ${list.length ? list.map((call) => html`<${Code} key=${call.method + call.url} wrap label=${`${call.method} ${call.url}`}
            text=${commandOf(call)} />`) : html`<p>None yet.</p>`}</${Dialog}>`;
}
