// Pure: a form for a JSON Schema. What a form cannot show is edited as JSON; the service checks the input.
import { exact, fault } from "./text.js";

/**
 * @typedef {object} Field
 * @property {string} name
 * @property {"text" | "number" | "integer" | "boolean" | "choice" | "lines" | "json"} kind
 * @property {boolean} required
 * @property {string} description
 * @property {unknown[]} choices
 * @property {unknown} initial
 * @property {boolean} rare shown below "More"
 */

/** The fields of an object schema, or null if only JSON will do. @param {any} schema @returns {Field[] | null} */
export function fields(schema) {
    if (!schema || typeof schema !== "object" || !schema.properties || typeof schema.properties !== "object") return null;
    if (["anyOf", "oneOf", "allOf", "$ref", "if"].some((word) => word in schema)) return null;
    const required = new Set(Array.isArray(schema.required) ? schema.required : []);
    return Object.entries(schema.properties).map(([name, about]) => ({
        name,
        kind: kind(about),
        required: required.has(name),
        description: typeof about?.description === "string" ? about.description : String(about?.title ?? ""),
        choices: Array.isArray(about?.enum) ? about.enum : [],
        initial: about?.default,
        rare: about?.["x-rare"] === true,
    }));
}

/** @param {any} about @returns {Field["kind"]} */
function kind(about) {
    if (Array.isArray(about?.enum)) return "choice";
    switch (about?.type) {
        case "string": return "text";
        case "number": return "number";
        case "integer": return "integer";
        case "boolean": return "boolean";
        case "array": return about.items?.type === "string" && !about.items.enum ? "lines" : "json";
        default: return "json";
    }
}

/**
 * The input that the texts of a form mean. @param {Field[]} form @param {Record<string, string>} texts
 * @returns {{ input: Record<string, unknown>, problems: Record<string, string> }}
 */
export function gather(form, texts) {
    /** @type {Record<string, unknown>} */
    const input = {};
    /** @type {Record<string, string>} */
    const problems = {};
    for (const field of form) {
        const text = texts[field.name] ?? show(field);
        if (text === "") {
            if (field.required) problems[field.name] = "A value is required";
            continue;
        }
        try {
            input[field.name] = read(field, text);
        } catch (error) {
            problems[field.name] = error instanceof Error ? error.message : "This is not valid";
        }
    }
    return { input, problems };
}

/** @param {Field} field @param {string} text */
function read(field, text) {
    switch (field.kind) {
        case "text": return text;
        case "boolean": return text === "true";
        case "number":
        case "integer": {
            const number = Number(text);
            if (Number.isNaN(number) || /[^\d.e+-]/i.test(text.trim())) throw new Error("This is no number");
            if (field.kind === "integer" && !Number.isInteger(number)) throw new Error("This is no whole number");
            return fault(text) ? number : exact(text);
        }
        case "choice": return exact(text);
        default:
            // Of a list a text with a bracket is JSON, any other one has an item on each line.
            if (field.kind === "lines" && !text.trimStart().startsWith("[")) return text.split("\n").map((line) => line.trim()).filter(Boolean);
            try {
                return exact(text);
            } catch {
                throw new Error("This is no JSON");
            }
    }
}

/** The text of a field before anybody has typed. @param {Field} field @param {unknown} [value] */
export function show(field, value = field.initial) {
    if (value === undefined || (value === null && field.kind !== "json" && field.kind !== "choice")) return "";
    if (field.kind === "lines" && Array.isArray(value) && value.every((one) => typeof one === "string" && /^[^\s[][^\n]*$/.test(one))) {
        return value.join("\n");
    }
    if (field.kind === "lines") return JSON.stringify(value);
    if (field.kind === "json" || field.kind === "choice") return JSON.stringify(value);
    return typeof value === "object" ? JSON.stringify(value) : String(value);
}
