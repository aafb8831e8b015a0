// The address is the view: path and query are signals, and every change of them is an entry of the history.
import { meta } from "./api.js";
import { signal, useEffect } from "./runtime.js";

export const BASE = meta("wf-console");
export const LEAVE = "There are changes that are not stored. Leave?";

/** The forms in which something was typed that is not stored. @type {Set<{ isDialog: boolean }>} */
export const unsaved = new Set();

/** Whether the view may be left: asks if something would be lost. */
export function mayLeave() {
    if (unsaved.size && !confirm(LEAVE)) return false;
    unsaved.clear();
    return true;
}

/** @returns {{ path: string, query: URLSearchParams, full: string }} */
function read() {
    const path = location.pathname.slice(BASE.length).replace(/\/+$/, "") || "/";
    return { path, query: new URLSearchParams(location.search), full: location.pathname + location.search };
}

export const place = signal(read());

/** Time without a scroll after which the place in the page is kept. */
const STILL_MS = 150;
/** Time for which a place that was come back to is held, while the page grows; at most, if it never gets as long again. */
const HELD_MS = 1000;
const PATIENCE_MS = 15_000;

/** How far down the page was when it was left, until it is there again. @type {number | null} */
let due = null;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let keeping;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let holding;

/** Keeps how far down the page is in its entry of the history. */
function keep() {
    clearTimeout(keeping);
    if (due === null && history.state?.y !== scrollY) history.replaceState({ y: scrollY }, "");
}

const letGo = () => void (due = null);

/** Again and again while the page grows: what it was long with comes later than itself. */
function hold() {
    if (due === null) return;
    scrollTo(0, due);
    if (Math.abs(scrollY - due) > 1) return;
    clearTimeout(holding);
    holding = setTimeout(letGo, HELD_MS);
}

/** To where this entry of the history was left. */
function comeBack() {
    clearTimeout(keeping);
    clearTimeout(holding);
    due = history.state?.y ?? null;
    holding = setTimeout(letGo, PATIENCE_MS);
    requestAnimationFrame(hold);
}

/** @param {string} to @param {{ replace?: boolean }} [how] */
export function go(to, how = {}) {
    const address = to.startsWith(BASE) ? to : BASE + (to === "/" ? "" : to);
    // With another query the screen stays.
    const stays = new URL(address, location.origin).pathname === location.pathname;
    if (!how.replace && !stays && !mayLeave()) return;
    if (how.replace || address === place.value.full) history.replaceState(history.state, "", address);
    else {
        keep();
        due = null;
        history.pushState({ y: stays ? scrollY : 0 }, "", address);
    }
    const before = place.value.path;
    place.value = read();
    if (place.value.path !== before) scrollTo(0, 0);
}

/** Changes members of the query; null and "" remove them. @param {Record<string, string | null>} changes
 * @param {{ replace?: boolean }} [how] */
export function setQuery(changes, how = {}) {
    const query = new URLSearchParams(place.value.query);
    for (const [name, value] of Object.entries(changes)) {
        if (value === null || value === "") query.delete(name);
        else query.set(name, value);
    }
    const text = query.toString();
    go(BASE + (place.value.path === "/" ? "" : place.value.path) + (text ? `?${text}` : ""), how);
}

/** The address of a screen, with encoded segments. @param {...string} segments */
export function to(...segments) {
    return `${BASE}/${segments.map(encodeURIComponent).join("/")}`;
}

/** Nothing that was typed is lost without a question. @param {boolean} isChanged @param {boolean} [isDialog] */
export function useGuard(isChanged, isDialog = false) {
    useEffect(() => {
        if (!isChanged) return undefined;
        const form = { isDialog };
        const before = (/** @type {BeforeUnloadEvent} */ event) => event.preventDefault();
        unsaved.add(form);
        addEventListener("beforeunload", before);
        return () => {
            unsaved.delete(form);
            removeEventListener("beforeunload", before);
        };
    }, [isChanged]);
}

/** Links below /console stay in this page, and "back" works. */
export function startRouter() {
    let shown = place.value.full;
    history.scrollRestoration = "manual";
    comeBack();
    addEventListener("scroll", () => {
        clearTimeout(keeping);
        keeping = setTimeout(keep, STILL_MS);
    }, { passive: true });
    new ResizeObserver(hold).observe(document.body);
    for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) addEventListener(act, letGo, { passive: true, capture: true });
    addEventListener("popstate", () => {
        // A jump within the page.
        if (location.pathname + location.search === shown) return comeBack();
        if (!mayLeave()) {
            history.pushState({ y: scrollY }, "", shown);
            return;
        }
        comeBack();
        place.value = read();
    });
    place.subscribe((value) => void (shown = value.full));
    document.addEventListener("click", (event) => {
        if (event.defaultPrevented || event.button !== 0) return;
        if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
        const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
        if (!(link instanceof HTMLAnchorElement) || link.target || link.hasAttribute("download")) return;
        const url = new URL(link.href);
        if (url.origin !== location.origin || !(url.pathname === BASE || url.pathname.startsWith(`${BASE}/`))) return;
        if (url.hash && url.pathname + url.search === place.value.full) return;
        event.preventDefault();
        go(url.pathname + url.search);
    });
}
