// What a person has chosen for this browser: theme, time zone. No secrets are kept here.
import { effect, signal } from "./runtime.js";
import { skew } from "./session.js";

/** @param {string} name @param {string} initial */
function stored(name, initial) {
    let value = initial;
    try {
        value = localStorage.getItem(`console.${name}`) ?? initial;
    } catch {
        // The browser keeps nothing: then the choice lasts as long as the page.
    }
    const kept = signal(value);
    effect(() => {
        const text = kept.value;
        try {
            localStorage.setItem(`console.${name}`, text);
        } catch {
            // As above.
        }
    });
    return kept;
}

/** auto, light or dark */
export const theme = stored("theme", "auto");
const zone = stored("zone", "local");
export const utc = signal(zone.peek() === "utc");
/** Columns of the list of runs that were used last. */
export const columns = stored("columns", "");

export function toggleZone() {
    utc.value = !utc.value;
    zone.value = utc.value ? "utc" : "local";
}

export function nextTheme() {
    theme.value = { auto: "light", light: "dark", dark: "auto" }[theme.value] ?? "auto";
}

/** Whether single keys do something. */
export const keys = stored("keys", "on");

/** The service's time; ticks while the page is visible. */
export const now = signal(Date.now());

export function startSettings() {
    effect(() => {
        document.documentElement.dataset["theme"] = theme.value;
    });
    const tick = () => {
        if (!document.hidden) now.value = Date.now() + skew.peek();
    };
    setInterval(tick, 5000);
    document.addEventListener("visibilitychange", tick);
    skew.subscribe(tick);
}
