// The console: session, shell and the list of screens.
import { effect, html, render, use, useEffect, useErrorBoundary, useState } from "./parts/runtime.js";
import { calls, ended, unreachable } from "./parts/api.js";
import { startKeyboard, Help, helpOpen } from "./parts/keyboard.js";
import { match } from "./parts/text.js";
import { BASE, mayLeave, place, startRouter } from "./parts/router.js";
import { shortId } from "./parts/run-list.js";
import { can, needs, readSession, session, signOut, trouble } from "./parts/session.js";
import { columns, nextTheme, startSettings, theme, toggleZone, utc } from "./parts/settings.js";
import { zoneName } from "./parts/time.js";
import { Action, arrival, Dialog, Loading, Logo, Problem, said } from "./parts/ui.js";
import { SignIn } from "./views/sign-in.js";
import { Home } from "./views/home.js";

/** A screen that is loaded when it is opened. @param {() => Promise<any>} load @param {string} name */
function later(load, name) {
    /** @type {any} */
    let view = null;
    const Later = (/** @type {any} */ props) => {
        const [failed, setFailed] = useState(false);
        const [, setLoaded] = useState(false);
        useEffect(() => {
            let over = false;
            if (!view) {
                load().then((module) => {
                    view = module[name];
                    if (!over) setLoaded(true);
                }, () => over || setFailed(true));
            }
            return () => void (over = true);
        }, []);
        if (view) return html`<${view} ...${props} />`;
        if (!failed) return html`<${Loading} what="the screen" />`;
        return html`<${Problem} error=${new Error("This screen could not be loaded. If the service was updated meanwhile, load the page again.")}
            retry=${() => location.reload()} />`;
    };
    return Object.assign(Later, { load });
}

/** @type {{ path: string, view: any, title: string, permission?: string }[]} */
const SCREENS = [
    { path: "/", view: Home, title: "Home" },
    { path: "/runs", view: later(() => import("./views/runs.js"), "Runs"), title: "Runs", permission: "runs:read" },
    { path: "/runs/:run_id", view: later(() => import("./views/run.js"), "Run"), title: "Run", permission: "runs:read" },
    { path: "/compare", view: later(() => import("./views/compare.js"), "Compare"), title: "Compare runs", permission: "runs:read" },
    { path: "/workflows", view: later(() => import("./views/workflows.js"), "Workflows"), title: "Workflows", permission: "workflows:read" },
    { path: "/workflows/new", view: later(() => import("./views/editor.js"), "Editor"), title: "New workflow", permission: "workflows:read" },
    { path: "/workflows/:workflow_id", view: later(() => import("./views/workflow.js"), "Workflow"), title: "Workflow", permission: "workflows:read" },
    { path: "/workflows/:workflow_id/edit", view: later(() => import("./views/editor.js"), "Editor"), title: "Edit workflow", permission: "workflows:read" },
    { path: "/agents", view: later(() => import("./views/agents.js"), "Agents"), title: "Agents", permission: "agents:read" },
    { path: "/agents/:agent_id", view: later(() => import("./views/agents.js"), "Agent"), title: "Agent", permission: "agents:read" },
    { path: "/triggers", view: later(() => import("./views/triggers.js"), "Triggers"), title: "Triggers", permission: "workflows:read" },
    { path: "/triggers/:trigger_id", view: later(() => import("./views/trigger.js"), "Trigger"), title: "Trigger", permission: "workflows:read" },
    { path: "/webhooks", view: later(() => import("./views/webhooks.js"), "Webhooks"), title: "Webhooks", permission: "webhooks:read" },
    { path: "/webhooks/:webhook_id", view: later(() => import("./views/webhook.js"), "Webhook"), title: "Webhook", permission: "webhooks:read" },
    { path: "/webhooks/:webhook_id/deliveries/:delivery_id", view: later(() => import("./views/delivery.js"), "Delivery"), title: "Delivery", permission: "webhooks:read" },
    { path: "/approvals", view: later(() => import("./views/approvals.js"), "Approvals"), title: "Approvals", permission: "runs:write" },
    { path: "/dead-letters", view: later(() => import("./views/dead-letters.js"), "DeadLetters"), title: "Dead letters", permission: "dead-letters:manage" },
    { path: "/dead-letters/:dead_letter_id", view: later(() => import("./views/dead-letters.js"), "DeadLetter"), title: "Dead letter", permission: "dead-letters:manage" },
    { path: "/keys", view: later(() => import("./views/keys.js"), "Keys"), title: "API keys", permission: "keys:manage" },
    { path: "/organisations", view: later(() => import("./views/organisations.js"), "Organisations"), title: "Organisations", permission: "organizations:manage" },
    { path: "/organisations/:organization_id", view: later(() => import("./views/organisations.js"), "Organisation"), title: "Organisation", permission: "organizations:manage" },
    { path: "/audit", view: later(() => import("./views/audit.js"), "Audit"), title: "Audit", permission: "audit:read" },
    { path: "/system", view: later(() => import("./views/system.js"), "System"), title: "System" },
];

const NAVIGATION = [
    ["", ["/", "/runs", "/approvals"]],
    ["Build", ["/workflows", "/agents", "/triggers", "/webhooks"]],
    ["Operate", ["/dead-letters", "/audit", "/system"]],
    ["Access", ["/keys", "/organisations"]],
];

/** Strokes of 16 by 16. @type {Record<string, string>} */
const ICONS = {
    "/": "M2.5 7.5 8 3l5.5 4.5V13H9.8V9.5H6.2V13H2.5z",
    "/runs": "M5 3.5 12.5 8 5 12.5z",
    "/approvals": "M2.5 3.5h11v7h-6L4.5 13v-2.5h-2zM5.5 7 7.3 8.7 10.5 5.5",
    "/workflows": "M2.5 2.5h4v4h-4zM9.5 9.5h4v4h-4zM6.5 4.5h5v5",
    "/agents": "M3.5 5.5h9v7h-9zM8 2.5v3M6 8.5v1M10 8.5v1",
    "/triggers": "M8 2.5a5.5 5.5 0 1 0 .01 0M8 5v3.2l2.2 1.5",
    "/webhooks": "M2.5 8h9M8.5 4.5 12 8l-3.5 3.5M13.5 3v10",
    "/dead-letters": "M2.5 4h11v8.5h-11zM2.5 4.5 8 9l5.5-4.5",
    "/audit": "M4 2.5h8v11H4zM6 5.5h4M6 8h4M6 10.5h2.5",
    "/system": "M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01",
    "/keys": "M9.5 6.5a3 3 0 1 0-2.8 3L8 10.8h1.5v1.5H11v1.5h2.5v-2L9.3 7.6",
    "/organisations": "M3 13.5v-11h6v11M9 6.5h4v7M2 13.5h12M5 5h2M5 7.5h2M5 10h2",
};

/** @param {{ path: string }} props */
function Icon({ path }) {
    return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${ICONS[path]} /></svg>`;
}

/** @param {string} path */
function find(path) {
    for (const screen of SCREENS) {
        const params = match(screen.path, path);
        if (params) return { screen, params };
    }
    return null;
}

function Navigation() {
    const { path } = use(place);
    const who = use(session);
    const current = `/${path.split("/")[1]}`;
    return html`<nav id="navigation" aria-label="Console">${NAVIGATION.map(([title, paths]) => {
        const shown = SCREENS.filter((screen) => paths?.includes(screen.path));
        return html`<div class="group" key=${title}>${title && html`<h2>${title}</h2>`}<ul>${shown.map((screen) => {
            const allowed = !who || !screen.permission || can(screen.permission);
            return html`<li key=${screen.path}>${allowed
                ? html`<a href=${BASE + (screen.path === "/" ? "" : screen.path)}
                    aria-current=${current === screen.path ? "page" : undefined}>
                    <${Icon} path=${screen.path} />${screen.title}</a>`
                : html`<span class="off" title=${needs(screen.permission ?? "")}><${Icon} path=${screen.path} />${screen.title}
                    <span class="sr"> ${needs(screen.permission ?? "")}</span></span>`}</li>`;
        })}</ul></div>`;
    })}</nav>`;
}

function Top() {
    const who = use(session);
    const [open, setOpen] = useState(false);
    const { full } = use(place);
    useEffect(() => setOpen(false), [full]);
    useEffect(() => void document.body.classList.toggle("menu", open), [open]);
    const zone = use(utc);
    return html`<header class="top">
        <button type="button" class="quiet burger" aria-expanded=${open} aria-controls="navigation"
            onClick=${() => setOpen(!open)}>Menu</button>
        <a class="brand" href=${BASE}><${Logo} />workflow-api</a>
        <span class="grow"></span>
        <button type="button" class="quiet" aria-label=${`Times in ${zone ? "UTC" : "local time"}; change`} title=${zoneName(zone)}
            onClick=${toggleZone}>${zone ? "UTC" : "Local"}</button>
        <button type="button" class="quiet wide-only" onClick=${nextTheme} aria-label=${`Theme ${use(theme)}; change`}>
            Theme: ${use(theme)}</button>
        <button type="button" class="quiet" aria-label="Keyboard help" onClick=${() => void (helpOpen.value = true)}>?</button>
        ${who && html`<span class="who" title=${`organisation ${who.organization_id}`}><span>${who.subject}</span>${who.role
            && html`<span class="faint"> · ${who.role}</span>`}<span class="faint"> · ${who.organization_id}</span></span>`}
        ${who?.authentication && html`<${Action} kind="quiet" onClick=${() => (mayLeave() ? signOut() : undefined)}>Sign out</${Action}>`}
    </header>`;
}

/** @param {{ permission?: string | undefined, children?: any }} props */
function Guarded({ permission, children }) {
    use(session);
    if (!permission || can(permission)) return children;
    return html`<div class="empty"><h1 tabindex="-1">You may not see this</h1><p>${needs(permission)}.</p></div>`;
}

function Screen() {
    const { path } = use(place);
    const found = find(path);
    const [error, reset] = useErrorBoundary((/** @type {unknown} */ cause) => console.error(cause));
    useEffect(() => {
        if (error) reset();
        const id = Object.values(found?.params ?? {}).at(-1);
        document.title = `${found?.screen.title ?? "Not found"}${id ? ` ${shortId(id)}` : ""} · workflow-api`;
    }, [path]);
    if (error) return html`<${Problem} error=${new Error(`This screen has failed: ${error}`)} retry=${reset} />`;
    if (!found) return html`<div class="empty"><h1>There is no such page</h1><p><a href=${BASE}>Home</a></p></div>`;
    return html`<${Guarded} permission=${found.screen.permission}>
        <${found.screen.view} key=${path} ...${found.params} /></${Guarded}>`;
}

function Said() {
    const last = use(said);
    const [shown, setShown] = useState(/** @type {typeof last} */ (null));
    useEffect(() => {
        setShown(last);
        if (!last) return undefined;
        const timer = setTimeout(() => setShown(null), last.bad ? 12_000 : 4000);
        return () => clearTimeout(timer);
    }, [last]);
    // While a dialog is open, what is outside of it is dimmed and not read out.
    useEffect(() => {
        const dialog = shown && [...document.querySelectorAll("dialog:modal")].at(-1);
        if (!dialog) return undefined;
        const copy = document.createElement("div");
        copy.className = "said";
        copy.role = "status";
        dialog.append(copy);
        const words = document.createElement("p");
        if (shown.bad) words.className = "bad";
        words.textContent = shown.text;
        // Only what changes is read out.
        const timer = setTimeout(() => copy.append(words), 50);
        return () => {
            clearTimeout(timer);
            copy.remove();
        };
    }, [shown]);
    return html`<div class="said" role="status" aria-live="polite">${shown
        && html`<p class=${shown.bad ? "bad" : ""}>${shown.text}</p>`}</div>`;
}

function App() {
    const who = use(session);
    const problem = use(trouble);
    const isOver = use(ended);
    if (who === undefined && problem) return html`<main class="alone"><${Problem} error=${new Error(problem)} retry=${readSession} /></main>`;
    if (who === null) return html`<main class="alone"><${SignIn} /></main>`;
    return html`<${Shell} who=${who} />
        ${isOver && html`<${Dialog} title="The session has ended" onClose=${() => void (ended.value = false)}><${SignIn} again /></${Dialog}>`}`;
}

/** @param {import("./parts/session.js").Session | null | undefined} who */
const personOf = (who) => (who ? `${who.subject} ${who.organization_id}` : "");

/** Drawn before it is known who is signed in. @param {{ who: import("./parts/session.js").Session | undefined }} props */
function Shell({ who }) {
    // What was typed stays while the session is made anew; another person begins anew.
    const person = personOf(who);
    return html`<a class="skip" href="#main">Skip to the content</a><${Top} /><${Navigation} />
        <main id="main" tabindex="-1" key=${person}>
        ${who?.authentication === false && html`<p class="banner"><strong>Authentication is off.</strong> Everybody who reaches this address
            may do everything.</p>`}<div role="status">${use(unreachable) && html`<p class="banner gone">The service cannot be reached at the moment.
            What is shown may be old.</p>`}</div>${who ? html`<${Screen} />` : html`<${Loading} />`}</main><${Said} key=${`said ${person}`} /><${Help} />`;
}

readSession();
startSettings();
startRouter();
startKeyboard();
// After a change of the screen the keyboard starts at its heading.
let before = place.peek().path;
effect(() => {
    const { path } = place.value;
    if (path === before) return;
    before = path;
    calls.value = [];
    arrival.due = true;
});
// Nothing of one person is left to the next one.
let last = "";
effect(() => {
    const person = personOf(session.value);
    if (!person || person === last) return;
    if (last) columns.value = "";
    last = person;
    calls.value = [];
});
// The screen is loaded while it is asked who is signed in.
find(before)?.screen.view.load?.().catch(() => {});
const root = document.getElementById("app");
if (root) render(html`<${App} />`, root);
