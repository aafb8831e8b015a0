"use strict";

/** One schema instead of several that all hold. */
function merge(schema, other) {
    const merged = { ...schema, ...other };
    if (schema.properties && other.properties) merged.properties = { ...schema.properties, ...other.properties };
    if (schema.required && other.required) merged.required = [...new Set([...schema.required, ...other.required])];
    return merged;
}

/**
 * Resolves the references of a part of the document, all of which are in the document. Swagger UI's own resolver reads the
 * whole document for each operation that is opened, which takes seconds. A reference to what contains it stays.
 */
function resolveSubtree(document, path) {
    const find = (names) => names.reduce((value, name) => value?.[name], document);
    const resolve = (value, within) => {
        if (Array.isArray(value)) return value.map((item) => resolve(item, within));
        if (value === null || typeof value !== "object") return value;
        const { $ref: reference, ...members } = value;
        if (within.includes(reference)) return value;
        const { allOf, ...resolved } = Object.fromEntries(Object.entries(members).map(([name, member]) => [name, resolve(member, within)]));
        const whole = Array.isArray(allOf) ? [...allOf, resolved].reduce(merge) : { ...(allOf && { allOf }), ...resolved };
        if (typeof reference !== "string") return whole;
        const names = reference.slice(2).split("/").map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));
        return { ...resolve(find(names), [...within, reference]), ...whole, $$ref: reference };
    };
    return Promise.resolve({ spec: resolve(find(path), []) ?? null, errors: [] });
}

SwaggerUIBundle({
    url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, persistAuthorization: true,
    plugins: [() => ({ fn: { resolveSubtree } })],
});
