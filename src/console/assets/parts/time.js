// Pure: times and durations in words.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** @param {number} ms */
export function duration(ms) {
    if (!Number.isFinite(ms)) return "–";
    // The clocks of the browser and of the service are not quite the same.
    if (ms < 0) return "0 ms";
    if (ms > 0 && ms < 1) return "< 1 ms";
    if (ms < 1000) return `${Math.round(ms)} ms`;
    if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
    if (ms < MINUTE) return `${Math.round(ms / 1000)} s`;
    if (ms < HOUR) return pair(ms, MINUTE, "min", 1000, "s");
    if (ms < DAY) return pair(ms, HOUR, "h", MINUTE, "min");
    return pair(ms, DAY, "d", HOUR, "h");
}

/** @param {number} ms @param {number} large @param {string} name @param {number} small @param {string} smallName */
function pair(ms, large, name, small, smallName) {
    const first = Math.floor(ms / large);
    const second = Math.floor((ms % large) / small);
    return second ? `${first} ${name} ${second} ${smallName}` : `${first} ${name}`;
}

/** @param {string | null | undefined} time @param {number} now */
export function relative(time, now) {
    if (!time) return "–";
    const ms = now - Date.parse(time);
    if (!Number.isFinite(ms)) return "–";
    const far = Math.abs(ms);
    if (far < 5000) return "just now";
    const unit = far < MINUTE ? `${Math.floor(far / 1000)} s` : far < HOUR ? `${Math.floor(far / MINUTE)} min`
        : far < DAY ? `${Math.floor(far / HOUR)} h` : `${Math.floor(far / DAY)} d`;
    return ms < 0 ? `in ${unit}` : `${unit} ago`;
}

/** The name of the zone in which times are shown. @param {boolean} utc */
export const zoneName = (utc) => (utc ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone);

/** How far a local time is from UTC, such as UTC-5; it is another one in summer. @param {Date} date */
function offset(date) {
    const minutes = -date.getTimezoneOffset();
    const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
    return minutes ? `UTC${minutes < 0 ? "-" : "+"}${hours}${rest ? `:${String(rest).padStart(2, "0")}` : ""}` : "UTC";
}

/** `precise`: to the millisecond, and with the zone also if it is local. @param {string | null | undefined} time @param {boolean} utc @param {boolean} [precise] */
export function absolute(time, utc, precise = false) {
    const date = new Date(time ?? "");
    if (Number.isNaN(date.getTime())) return "–";
    const pad = (/** @type {number} */ value, width = 2) => String(value).padStart(width, "0");
    const [year, month, day, hour, minute, second] = utc
        ? [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate(), date.getUTCHours(), date.getUTCMinutes(),
            date.getUTCSeconds()]
        : [date.getFullYear(), date.getMonth(), date.getDate(), date.getHours(), date.getMinutes(), date.getSeconds()];
    const fraction = precise ? `.${pad(date.getUTCMilliseconds(), 3)}` : "";
    return `${year}-${pad(month + 1)}-${pad(day)} ${pad(hour)}:${pad(minute)}:${pad(second)}${fraction}${utc ? " UTC" : precise ? ` ${offset(date)}` : ""}`;
}

/** @param {string | null | undefined} from @param {string | null | undefined} until @param {number} now */
export function span(from, until, now) {
    return from ? (until ? Date.parse(until) : now) - Date.parse(from) : NaN;
}

/** Time of day in a time zone of the IANA database, with its name. @param {string} at @param {string} zone */
export function clock(at, zone) {
    return `${new Date(at).toLocaleTimeString("en-GB", { timeZone: zone, hour: "2-digit", minute: "2-digit" })} ${zone}`;
}

/** A number with its thousands. @param {number} count */
export const figure = (count) => Math.round(count).toLocaleString("en");

/** A number of things, such as "1 run" and "2 runs". @param {number} count @param {string} what the things, in the plural */
export const counted = (count, what) => `${figure(count)} ${count === 1 ? what.replace(/ies$/, "y").replace(/s$/, "") : what}`;

/** @param {number} bytes */
export function bytes(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let value = bytes;
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit++;
    }
    return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** The value below which `part` of the numbers are. @param {number[]} numbers @param {number} part */
export function percentile(numbers, part) {
    if (!numbers.length) return NaN;
    const sorted = [...numbers].sort((a, b) => a - b);
    return /** @type {number} */ (sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)]);
}

/** A time for a field of the type datetime-local, in UTC. @param {string} time */
export const toField = (time) => (time ? time.replace(/(:\d\d)?(\.\d+)?Z$/, "") : "");
/** The time that such a field means. @param {string} text */
export const fromField = (text) => (text ? `${text.length === 16 ? `${text}:00` : text}Z` : "");
