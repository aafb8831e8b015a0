// The OpenAPI document, as the snapshot of the Rust tests has it.
import { readFileSync } from "node:fs";

export const ASSETS = new URL("../../src/console/assets", import.meta.url).pathname;

const snapshot = readFileSync(new URL("../it/snapshots/it__snapshots__openapi.snap", import.meta.url), "utf8");
export const document = JSON.parse(snapshot.slice(snapshot.indexOf("\n---\n") + 5));

const OPERATIONS = Object.entries(document.paths).flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({
    method: method.toUpperCase(), path, operation, pattern: new RegExp(`^${path.replace(/\{[^}]+\}/g, "[^/]+")}$`) })));

/** The operation that a request means; literal paths before those with parameters. @param {string} method @param {string} path */
export function operationOf(method, path) {
    const found = OPERATIONS.filter((one) => one.method === method && one.pattern.test(path));
    found.sort((a, b) => a.path.split("{").length - b.path.split("{").length);
    return found[0] ?? null;
}
