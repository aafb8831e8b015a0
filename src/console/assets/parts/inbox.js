// Pure: what waits for people, each in its place.

/** What was shown, after it was read again: what is gone keeps its place, since somebody may be about to press beside it, and what is new comes last.
 * @param {any[]} shown @param {any[]} read @returns {any[]} */
export function inPlace(shown, read) {
    const now = new Map(read.map((one) => [one.url, one]));
    const known = new Set(shown.map((one) => one.url));
    return [...shown.map((one) => now.get(one.url) ?? { ...one, is_gone: true }), ...read.filter((one) => !known.has(one.url))];
}
