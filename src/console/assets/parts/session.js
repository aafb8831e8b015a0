// Who is signed in, and what they may do. Roles are named where something is hidden or refused.
import { computed, signal } from "./runtime.js";
import { ApiError, ended, meta, page } from "./api.js";

/**
 * @typedef {object} Session
 * @property {boolean} authentication
 * @property {boolean} signed_in
 * @property {string | null} subject
 * @property {string | null} organization_id
 * @property {string | null} role
 * @property {string[]} roles further ones, for approvals
 * @property {"api_key" | "token" | null} credential
 * @property {string[]} permissions
 * @property {string} server_time
 * @property {string} version
 * @property {string | null} id
 * @property {string | null} expires_at
 * @property {string} api_key_header
 * @property {string[] | null} workflows a key can be limited to these
 */

/** The roles of docs/access.md; a test holds them against the OpenAPI document. @type {Record<string, string[]>} */
export const ROLES = {
    "agents:read": ["viewer", "operator", "editor", "admin", "executor"],
    "agents:write": ["editor", "admin"],
    "workflows:read": ["viewer", "operator", "editor", "admin", "executor"],
    "workflows:write": ["editor", "admin"],
    "runs:read": ["viewer", "operator", "editor", "admin", "executor"],
    "runs:write": ["operator", "admin", "executor"],
    "webhooks:read": ["viewer", "operator", "editor", "admin", "executor"],
    "webhooks:write": ["editor", "admin"],
    "keys:manage": ["admin"],
    "audit:read": ["admin"],
    "dead-letters:manage": ["admin"],
    "organizations:manage": ["admin"],
};

/** What the service says about this browser; undefined: not known yet. */
const told = signal(/** @type {Session | undefined} */ (undefined));
/** undefined: not known yet; null: nobody is signed in. */
export const session = computed(() => (told.value?.signed_in === false ? null : told.value));
/** Difference between the service's clock and this one. */
export const skew = signal(0);
export const permissions = computed(() => new Set(session.value?.permissions ?? []));
/** Why the session could not be read. */
export const trouble = signal("");

const SESSION = `${meta("wf-console")}/session`;
const PATIENCE_MS = 15_000;
/** Differences of clocks that do not matter. The page may have had the answer for a while, which counts as one. */
const MIN_SKEW_MS = 2000;
/** API keys begin so; everything else is a token. */
const KEY_BEGINS = "wf_";
/** Tells the other tabs of this browser that somebody has signed in or out. */
const tabs = globalThis.document && new BroadcastChannel("wf-session");
if (tabs) tabs.onmessage = () => void readSession();
page.changed = () => void readSession();

/** @param {string} permission */
export function can(permission) {
    return permissions.value.has(permission);
}

/** Whether this is the operator's organisation, which alone sees how the processes fare. */
export const isOperator = () => session.value?.organization_id === "default";

/** Who alone manages organisations. */
export const OPERATOR = "Needs an administrator of the organisation default";

/** The role that an answer needs and this caller lacks, if any. @param {{ role: string | null }} callback */
export function lacks({ role }) {
    const who = session.value;
    return !role || !who?.authentication || ["admin", role].includes(who.role ?? "") || who.roles?.includes(role) ? "" : role;
}

/** Words for what is missing. @param {string} permission */
export function needs(permission) {
    const people = (ROLES[permission] ?? []).filter((role) => role !== "executor");
    return `Needs ${permission}: ${people.join(", ")}`;
}

/** @param {RequestInit} init */
function ask(init) {
    return fetch(SESSION, { credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS), ...init });
}

/** @param {RequestInit} init */
async function settle(init) {
    const sent = Date.now();
    const response = await ask(init);
    const took = Date.now() - sent;
    const body = await response.json().catch(() => null);
    if (!response.ok || !body) throw new ApiError(response.status, body);
    // The answer was made at some time while it was awaited: a difference within that is none.
    const difference = Date.parse(body.server_time) - sent - took / 2;
    skew.value = Math.abs(difference) > took / 2 + MIN_SKEW_MS ? difference : 0;
    page.session = body.id ?? "";
    told.value = body;
    ended.value = false;
}

export async function readSession() {
    try {
        await settle({});
        trouble.value = "";
    } catch (error) {
        trouble.value = error instanceof ApiError ? error.message : "The service cannot be reached";
    }
}

/** @param {string} credential */
export async function signIn(credential) {
    await settle({
        method: "POST",
        headers: credential.startsWith(KEY_BEGINS) ? { [told.peek()?.api_key_header ?? "X-API-Key"]: credential }
            : { authorization: `Bearer ${credential}` },
    });
    tabs?.postMessage("");
}

export async function signOut() {
    const response = await ask({ method: "DELETE" });
    // Refused: the session has ended before.
    if (!response.ok && response.status !== 401) throw new ApiError(response.status, null);
    tabs?.postMessage("");
    page.session = "";
    const before = told.peek();
    if (before?.authentication) told.value = { ...before, signed_in: false, permissions: [] };
    ended.value = false;
}
