// Pure: texts as lines, JSON texts, commands, addresses.

/** @typedef {{ kind: "same" | "added" | "removed", text: string }} Line */

/** Larger differences are shown as a whole. */
const CELLS = 4_000_000;

/** @param {string} before @param {string} after @returns {Line[]} */
export function diff(before, after) {
    const a = before.split("\n");
    const b = after.split("\n");
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const left = a.slice(start, a.length - end);
    const right = b.slice(start, b.length - end);
    /** @type {(kind: Line["kind"]) => (text: string) => Line} */
    const as = (kind) => (text) => ({ kind, text });
    const middle = left.length * right.length > CELLS
        ? [...left.map(as("removed")), ...right.map(as("added"))]
        : between(left, right);
    return [...a.slice(0, start).map(as("same")), ...middle, ...a.slice(a.length - end).map(as("same"))];
}

/** @param {string[]} a @param {string[]} b @returns {Line[]} */
function between(a, b) {
    const width = b.length + 1;
    const common = new Uint32Array((a.length + 1) * width);
    const at = (/** @type {number} */ i, /** @type {number} */ j) => /** @type {number} */ (common[i * width + j]);
    for (let i = a.length - 1; i >= 0; i--) {
        for (let j = b.length - 1; j >= 0; j--) {
            common[i * width + j] = a[i] === b[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
        }
    }
    /** @type {Line[]} */
    const lines = [];
    let i = 0;
    let j = 0;
    while (i < a.length || j < b.length) {
        if (i < a.length && j < b.length && a[i] === b[j]) {
            lines.push({ kind: "same", text: String(a[i++]) });
            j++;
        } else if (i < a.length && (j === b.length || at(i + 1, j) >= at(i, j + 1))) {
            lines.push({ kind: "removed", text: String(a[i++]) });
        } else lines.push({ kind: "added", text: String(b[j++]) });
    }
    return lines;
}

/** Only what has changed, with some lines around. @param {Line[]} lines @param {number} [around]
 * @returns {(Line | null)[]} null: lines are left out */
export function hunks(lines, around = 3) {
    const near = new Uint8Array(lines.length);
    for (const [index, line] of lines.entries()) {
        if (line.kind === "same") continue;
        near.fill(1, Math.max(0, index - around), Math.min(lines.length, index + around + 1));
    }
    /** @type {(Line | null)[]} */
    const shown = [];
    for (const [index, line] of lines.entries()) {
        if (near[index]) shown.push(line);
        else if (shown.at(-1) !== null) shown.push(null);
    }
    return shown;
}

/**
 * The line (from 1) of a member such as `steps.ask.type` in a JSON text; of the nearest one above if it is not there.
 * @param {string} text @param {string[]} path
 */
export function locate(text, path) {
    let at = 0;
    let best = 0;
    let depth = 0;
    const blank = () => {
        while (/\s/.test(text[at] ?? "")) at++;
    };
    const string = () => {
        const from = at++;
        while (at < text.length && text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
        at++;
        try {
            return String(JSON.parse(text.slice(from, at)));
        } catch {
            return "";
        }
    };
    /** @param {number} matched how many members of the path lead here, or -1 */
    const value = (matched) => {
        if (++depth > 100) return;
        blank();
        const open = text[at];
        if (open === "{" || open === "[") {
            at++;
            for (let index = 0; at < text.length; index++) {
                blank();
                if (text[at] === "}" || text[at] === "]") break;
                const from = at;
                const name = open === "{" ? string() : String(index);
                if (open === "{") {
                    blank();
                    at++;
                }
                const hit = matched >= 0 && path[matched] === name;
                if (hit) best = from;
                value(hit ? matched + 1 : -1);
                blank();
                if (text[at] === ",") at++;
                else if (text[at] !== "}" && text[at] !== "]") break;
            }
            at++;
        } else if (open === '"') string();
        else while (at < text.length && !/[\s,\]}]/.test(text[at] ?? "")) at++;
        depth--;
    };
    value(0);
    return lineOf(text, best);
}

/** @param {string} text @param {number} offset */
export function lineOf(text, offset) {
    let line = 1;
    for (let at = text.indexOf("\n"); at !== -1 && at < offset; at = text.indexOf("\n", at + 1)) line++;
    return line;
}

const SPACE = /[ \t\n\r]*/y;
const TOKEN = /[{}[\],:]|"(?:[^"\\\0-\x1f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*"|(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-])/y;
/** The kinds of tokens that may come: marks, "s" a text, "v" another value; and their words. @type {Record<string, string>} */
const WANTED = { "s": "a name in double quotes", "s}": "a name in double quotes or }", ":": "a colon", ",}": "a comma or }", ",]": "a comma or ]", "": "the end" };

/** The fault of a text that is no JSON, or null. Browsers do not all say where it is. @param {string} text */
export function fault(text) {
    try {
        JSON.parse(text);
        return null;
    } catch {
        /** @type {string[]} */
        const open = [];
        let wants = "{[sv";
        for (let at = 0; ;) {
            SPACE.lastIndex = at;
            SPACE.test(text);
            TOKEN.lastIndex = at = SPACE.lastIndex;
            const token = TOKEN.exec(text)?.[0] ?? "";
            const kind = "{}[],:".includes(token) ? token : token[0] === '"' ? "s" : "v";
            if (!kind || !wants.includes(kind)) {
                const found = at >= text.length ? "the end of the text" : text[at] === '"' && !token ? "a text that does not end on its line, or has a wrong \\"
                    : token || text.slice(at).split(/[\s,\]}]/, 1)[0] || text[at] || "";
                return { line: lineOf(text, at), message: `Expected ${WANTED[wants] ?? "a value"}, found ${found.slice(0, 80)}` };
            }
            if (kind === ":") wants = "{[sv";
            else if (kind === ",") wants = open.at(-1) === "{" ? "s" : "{[sv";
            else if (kind === "s" && wants[0] === "s") wants = ":";
            else if (kind === "{" || kind === "[") {
                open.push(kind);
                wants = kind === "{" ? "s}" : "{[sv]";
            } else {
                if (kind === "}" || kind === "]") open.pop();
                wants = !open.length ? "" : open.at(-1) === "{" ? ",}" : ",]";
            }
            at += token.length;
        }
    }
}

/** A number whose text is kept when it is written again; only new browsers can. @type {undefined | ((source: string) => unknown)} */
const raw = /** @type {any} */ (JSON).rawJSON;
/** Whether a text may have numbers of which JavaScript would make other ones, or write them otherwise. */
const ODD = /(?:^|[\s:,[])(?:-0|-?(?:\d{16}|\d+[.eE]))/;

/** The value of a JSON text. Numbers that JavaScript cannot keep as they are written, such as 1.10 and those above 2^53, become
 * objects that are written again in the same way. @param {string} text @param {any} [value] what JavaScript makes of it @returns {any} */
export function exact(text, value = JSON.parse(text)) {
    if (!raw || !ODD.test(text)) return value;
    const keep = (/** @type {string} */ _, /** @type {unknown} */ one, /** @type {any} */ context) =>
        (typeof one === "number" && String(one) !== context.source ? raw(context.source) : one);
    try {
        return JSON.parse(text, /** @type {any} */ (keep));
    } catch {
        // Nested too deeply for that.
        return value;
    }
}

/** The value of a JSON text, or an error that names the line. @param {string} text @returns {any} */
export function parsed(text) {
    const found = fault(text);
    if (found) throw new Error(`Line ${found.line}: ${found.message}`);
    return exact(text);
}

/** A value as a text for people. @param {unknown} value */
export function pretty(value) {
    try {
        return value === undefined ? "" : JSON.stringify(value, null, 2);
    } catch {
        return "(nested too deeply to be shown)";
    }
}

/** The beginning of a long line, which says so. @param {string} text @param {number} most */
export const clipped = (text, most) => (text.length > most ? `${text.slice(0, most)}… (${text.length - most} more characters)` : text);

/** One line of CSV; what a spreadsheet would execute is a text. @param {unknown[]} values */
export function csvLine(values) {
    return values.map((value) => {
        const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
        const safe = /^(\s*[=+\-@]|[\t\r])/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
        return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    }).join(",");
}

/** @param {string} text */
export function quote(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** @param {import("./api.js").Call} call @param {string} origin
 * @param {string | null} who the header with the credentials, if they are needed */
export function curl(call, origin, who) {
    const parts = ["curl -sS"];
    if (call.method !== "GET") parts.push(`-X ${call.method}`);
    parts.push(quote(origin + call.url));
    if (who) parts.push(`-H "${who}"`);
    for (const [name, value] of Object.entries(call.headers ?? {})) parts.push(`-H ${quote(`${name}: ${value}`)}`);
    if (call.body !== undefined) parts.push("-H 'Content-Type: application/json'", `-d ${quote(call.body)}`);
    return parts.join(" ");
}

/** Parameters of `pattern` in `path`, or null. @param {string} pattern @param {string} path
 * @returns {Record<string, string> | null} */
export function match(pattern, path) {
    const wanted = pattern.split("/");
    const given = path.split("/");
    if (wanted.length !== given.length) return null;
    /** @type {Record<string, string>} */
    const found = {};
    for (const [index, part] of wanted.entries()) {
        const value = given[index] ?? "";
        if (part.startsWith(":")) {
            try {
                found[part.slice(1)] = decodeURIComponent(value);
            } catch {
                return null;
            }
        } else if (part !== value) return null;
    }
    return found;
}
