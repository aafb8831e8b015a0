// Keys: / search, j k rows, o or Enter open, g and a letter to go, ? help.
import { html, signal, use } from "./runtime.js";
import { go } from "./router.js";
import { keys } from "./settings.js";
import { Dialog } from "./ui.js";

export const helpOpen = signal(false);

/** @type {Record<string, [string, string]>} */
const PLACES = {
    h: ["/", "home"], r: ["/runs", "runs"], w: ["/workflows", "workflows"], a: ["/agents", "agents"],
    t: ["/triggers", "triggers"], e: ["/webhooks", "webhooks"], p: ["/approvals", "approvals"], d: ["/dead-letters", "dead letters"], s: ["/system", "system"],
    k: ["/keys", "API keys"], o: ["/organisations", "organisations"], u: ["/audit", "audit"],
    n: ["/workflows/new", "a new workflow"],
};
const CHORD_MS = 1500;

/** What takes single keys itself; a box that is ticked does not. */
const TYPED = "textarea, select, input:not([type=checkbox], [type=radio], [type=file])";

/** @param {EventTarget | null} target */
function isTyping(target) {
    return target instanceof HTMLElement && (target.isContentEditable || target.matches(TYPED));
}

/** @param {number} move */
function moveRow(move) {
    const rows = [...document.querySelectorAll("main tr[data-row]")];
    if (!rows.length) return;
    const current = document.activeElement?.closest("tr[data-row]");
    const index = current ? rows.indexOf(current) + move : move > 0 ? 0 : rows.length - 1;
    const row = rows[Math.max(0, Math.min(rows.length - 1, index))];
    const target = row?.querySelector("a[href], button") ?? row;
    if (!(target instanceof HTMLElement)) return;
    if (target === row) target.tabIndex = -1;
    target.focus();
    row?.scrollIntoView({ block: "nearest" });
}

/** Where the keyboard goes when what had it is gone: near, and to nothing that a second press would do by mistake. */
const HEIRS = ".actions, .buttons, .tabs, .pager, .filters";
const USABLE = "button:not(:disabled), a[href], input, select";

/** When the focused element is removed or disabled, the browser forgets where the keyboard was. */
function keepFocus() {
    /** The focused element and all around it. @type {Element[]} */
    let path = [];
    document.addEventListener("focusin", ({ target }) => {
        path = [];
        for (let one = target instanceof Element ? target : null; one; one = one.parentElement) path.push(one);
    });
    // Who points elsewhere has left it.
    document.addEventListener("pointerdown", () => void (path = []));
    new MutationObserver(() => {
        const last = path[0];
        if (document.activeElement !== document.body || !last || document.querySelector("dialog[open]")) return;
        if (last.isConnected && !last.matches(":disabled")) return;
        const near = path.filter((one) => one.isConnected && one !== last && one !== document.body);
        const heirs = near.map((one) => (one.matches(HEIRS) ? one.querySelector(USABLE) : one.matches("[tabindex]:not(main)") ? one : null));
        const heir = heirs.find(Boolean) ?? document.querySelector("main h1");
        path = [];
        if (heir instanceof HTMLElement || heir instanceof SVGElement) heir.focus({ preventScroll: true });
    }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["disabled"] });
}

export function startKeyboard() {
    keepFocus();
    let chord = 0;
    document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || keys.peek() !== "on") return;
        if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
        const isChord = event.timeStamp - chord < CHORD_MS && chord > 0;
        chord = 0;
        const there = PLACES[event.key];
        if (isChord && there) go(there[0]);
        else if (event.key === "g") {
            chord = event.timeStamp;
            return;
        } else if (event.key === "j") moveRow(1);
        else if (event.key === "k") moveRow(-1);
        else if (event.key === "?") helpOpen.value = true;
        else if (event.key === "/") {
            const search = document.querySelector("main [data-search]") ?? document.querySelector("main .filters :is(input, select, button)");
            if (!(search instanceof HTMLElement)) return;
            search.focus();
        } else return;
        event.preventDefault();
    });
}

export function Help() {
    const open = use(helpOpen);
    const isOn = use(keys) === "on";
    if (!open) return null;
    /** @type {[string, string][]} */
    const meanings = [["/", "search, or the first filter"], ["j  k", "next and previous row"], ["Enter", "open the row"],
        ["?", "this help"], ...Object.entries(PLACES).map(
            ([key, [, name]]) => /** @type {[string, string]} */ ([`g ${key}`, `go to ${name}`]))];
    return html`<${Dialog} title="Keyboard" onClose=${() => void (helpOpen.value = false)}>
        <label class="check"><input type="checkbox" checked=${isOn} onChange=${() => void (keys.value = isOn ? "off" : "on")} /> Single keys do this</label>
        <dl class="keys">${meanings.map(([key, meaning]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${meaning}</dd></div>`)}</dl>
        <p class="faint">In a graph the arrows move between steps, and Enter opens one. Escape closes.</p></${Dialog}>`;
}
