// The only way to the service: an ordinary client of the REST API, and a list of the calls behind the screen.
import { signal } from "./runtime.js";
import { exact } from "./text.js";

/** @typedef {{ field: string, message: string, type: string }} FieldError */
/** @typedef {{ method: string, url: string, body?: string | undefined, headers?: Record<string, string> | undefined }} Call */
/**
 * @typedef {object} Options
 * @property {Record<string, string>} [path] members of the path
 * @property {Record<string, string | number | boolean | null | undefined>} [query]
 * @property {unknown} [body]
 * @property {string} [text] the body as a JSON text
 * @property {Record<string, string>} [headers]
 * @property {AbortSignal} [signal]
 * @property {boolean} [quiet] not listed among the calls of the screen
 */

/** Every wait on the network has an end. */
const PATIENCE_MS = 30_000;
const CALLS_KEPT = 30;

/** Prefix of the API, and what is before the paths of health and of the documents. */
export const prefix = meta("wf-api");
export const root = meta("wf-console").replace(/\/console$/, "");

/** The calls of this screen, the latest first. */
export const calls = signal(/** @type {Call[]} */ ([]));

/** Whether the service wants credentials again: what is on the page stays until somebody has signed in. */
export const ended = signal(false);

/** Whether the last call found no service, or one without its database. */
export const unreachable = signal(false);
const GONE = [502, 503, 504];

/**
 * The session that the page is drawn for. All tabs of a browser have one cookie: the service refuses requests of a page whose
 * session is not the cookie's any more.
 */
export const page = { session: "", changed: () => {} };

/** What the page was served with. @param {string} name */
export function meta(name) {
    return globalThis.document?.querySelector(`meta[name="${name}"]`)?.getAttribute("content") ?? "";
}

export class ApiError extends Error {
    /** @param {number} status @param {any} body */
    constructor(status, body) {
        super(typeof body?.detail === "string" ? body.detail : `The service answered ${status}`);
        this.status = status;
        this.body = body;
        /** @type {string} */
        this.code = typeof body?.code === "string" ? body.code : "";
        /** @type {FieldError[]} */
        this.errors = Array.isArray(body?.errors) ? body.errors : [];
        /** @type {string} */
        this.requestId = typeof body?.request_id === "string" ? body.request_id : "";
    }
}

/** @param {string} path @param {Options} options */
export function address(path, options = {}) {
    const filled = path.replace(/\{(\w+)\}/g, (_, name) => {
        const value = options.path?.[name];
        if (value === undefined || value === "") throw new Error(`${path}: ${name} is missing`);
        return encodeURIComponent(value);
    });
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(options.query ?? {})) {
        if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
    }
    const text = query.toString();
    return (path.startsWith("/health") ? root : prefix) + filled + (text ? `?${text}` : "");
}

/** Only if it is still this version. @param {string | null} tag @returns {Record<string, string>} */
export const ifMatch = (tag) => (tag ? { "if-match": tag } : {});

/** Puts a call on the list. @param {Call} call */
export function list(call) {
    const others = calls.peek().filter((one) => one.url !== call.url || one.method !== call.method);
    calls.value = [call, ...others].slice(0, CALLS_KEPT);
}

/**
 * The answer with its headers.
 * @param {string} method @param {string} path @param {Options} [options]
 * @returns {Promise<{ data: any, headers: Headers, status: number }>}
 */
export async function call(method, path, options = {}) {
    const url = address(path, options);
    const body = options.text ?? (options.body === undefined ? undefined : JSON.stringify(options.body));
    if (!options.quiet) list({ method, url, body, headers: options.headers });
    const late = AbortSignal.timeout(PATIENCE_MS);
    /** @type {RequestInit} */
    const init = {
        method,
        credentials: "same-origin",
        headers: {
            accept: "application/json", ...(page.session ? { "console-session": page.session } : {}),
            ...(body ? { "content-type": "application/json" } : {}), ...options.headers,
        },
        signal: options.signal ? AbortSignal.any([options.signal, late]) : late,
    };
    if (body !== undefined) init.body = body;
    let response;
    try {
        response = await fetch(url, init);
    } catch (error) {
        if (options.signal?.aborted) throw error;
        unreachable.value = true;
        throw new ApiError(0, { detail: "The service cannot be reached", code: "unreachable" });
    }
    unreachable.value = GONE.includes(response.status);
    return { data: await read(response), headers: response.headers, status: response.status };
}

/** Members with values of people, whose numbers stay as they are written. The service's own members have plain numbers. */
const THEIRS = ["input_data", "output_data", "answer", "data", "workflow_data", "input_schema", "answer_schema", "input", "before", "after", "recorded", "replayed", "mocks"];

/** Takes these members from the exact value. @param {any} data @param {any} kept */
function keep(data, kept) {
    if (data === kept || data === null || typeof data !== "object") return;
    for (const name of Object.keys(data)) {
        if (THEIRS.includes(name)) data[name] = kept[name];
        else keep(data[name], kept[name]);
    }
}

/** @param {Response} response */
async function read(response) {
    const text = await response.text();
    /** @type {any} */
    let data = null;
    if (text && response.headers.get("content-type")?.includes("json")) {
        try {
            data = JSON.parse(text);
            keep(data, exact(text, data));
        } catch {
            throw new ApiError(response.status, { detail: "The answer was cut off", code: "incomplete" });
        }
    } else if (text) data = text;
    if (response.ok) return data;
    if (response.status === 401 && data?.code === "unauthorized") ended.value = true;
    if (data?.code === "session_changed") page.changed();
    throw new ApiError(response.status, data);
}

/** Only the body. @param {string} method @param {string} path @param {Options} [options] @returns {Promise<any>} */
export async function api(method, path, options) {
    return (await call(method, path, options)).data;
}
