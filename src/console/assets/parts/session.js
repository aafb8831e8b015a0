// Who is signed in, and what they may do. Roles are named where something is hidden or refused.
import { computed, signal } from "./runtime.js";
import { ApiError, ended, meta } from "./api.js";

/**
 * @typedef {object} Session
 * @property {boolean} authentication
 * @property {boolean} signed_in
 * @property {string | null} subject
 * @property {string | null} organization_id
 * @property {string | null} role
 * @property {string[]} permissions
 * @property {string} server_time
 * @property {string} version
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
/** API keys begin so; everything else is a token. */
const KEY_BEGINS = "wf_";

/** @param {string} permission */
export function can(permission) {
    return permissions.value.has(permission);
}

/** Whether this is the operator's organisation, which alone sees how the processes fare. */
export const isOperator = () => session.value?.organization_id === "default";

/** Words for what is missing. @param {string} permission */
export function needs(permission) {
    const people = (ROLES[permission] ?? []).filter((role) => role !== "executor");
    return `Needs ${permission}: ${people.join(", ")}`;
}

/** @param {Response} response */
async function settle(response) {
    const body = await response.json().catch(() => null);
    if (!response.ok || !body) throw new ApiError(response.status, body);
    skew.value = Date.parse(body.server_time) - Date.now() || 0;
    told.value = body;
    ended.value = false;
}

export async function readSession() {
    try {
        await settle(await fetch(SESSION, { credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS) }));
        trouble.value = "";
    } catch (error) {
        trouble.value = error instanceof ApiError ? error.message : "The service cannot be reached";
    }
}

/** @param {string} credential */
export async function signIn(credential) {
    await settle(await fetch(SESSION, {
        method: "POST",
        credentials: "same-origin",
        headers: credential.startsWith(KEY_BEGINS) ? { [told.peek()?.api_key_header ?? "X-API-Key"]: credential }
            : { authorization: `Bearer ${credential}` },
        signal: AbortSignal.timeout(PATIENCE_MS),
    }));
}

export async function signOut() {
    const response = await fetch(SESSION, {
        method: "DELETE", credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    // Refused: the session has ended before.
    if (!response.ok && response.status !== 401) throw new ApiError(response.status, null);
    const before = told.peek();
    if (before?.authentication) told.value = { ...before, signed_in: false, permissions: [] };
    ended.value = false;
}
