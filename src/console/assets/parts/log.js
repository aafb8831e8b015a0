// Pure: the entries of a log that are shown, by their numbers, each once.

/** @typedef {{ seq: number }} Entry */

/** What is shown with a page that was read. What is older than the page stays if both meet, so that there is no hole.
 * @template {Entry} T @param {T[]} shown @param {T[]} page @returns {{ entries: T[], meets: boolean }} */
export function withPage(shown, page) {
    const first = page[0]?.seq ?? 0;
    const last = page.at(-1)?.seq ?? -1;
    const meets = shown.some((one) => one.seq === first);
    return { entries: [...shown.filter((one) => meets && one.seq < first), ...page, ...shown.filter((one) => one.seq > last)], meets };
}

/** What is shown with an entry of the stream at its place. One that is older than all is left to the next page.
 * @template {Entry} T @param {T[]} shown @param {T} entry @param {number} most @returns {T[]} */
export function withEntry(shown, entry, most) {
    const at = shown.findLastIndex((one) => one.seq <= entry.seq);
    if (shown[at]?.seq === entry.seq || (at < 0 && shown.length)) return shown;
    return [...shown.slice(0, at + 1), entry, ...shown.slice(at + 1)].slice(-most);
}
